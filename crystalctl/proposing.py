"""Templates for a bare formula from both sources: known structures vote, a network adds its own.

Votes are the better judge where structures of the same stoichiometry are known; the network
reaches templates that no known structure has, and formulas for which nothing votes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from crystalctl.checkpoint import load_proposer, shipped_templates
from crystalctl.chosen import Chosen
from crystalctl.retrieval import Memory
from crystalctl.symmetry.assignments import covers
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits
from crystalctl.templating import MOST_ASSIGNMENTS

PART = 0.25
"""Weight of the network against all votes; 0.25 and 1 are 20 and 80 %."""
GROUND = 0.05
"""Added to the sum of all votes: what the network decides alone where there is none. A structure
whose elements are exchanged for neighbours has about one vote."""


class Mixture:
    """``memory``'s votes plus the shipped proposer's probabilities, scaled to their sum."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    @staticmethod
    def shipped(dataset: Path | str | None = None) -> Mixture:
        """The shipped votes, or those of a prepared ``dataset`` with the shipped costs."""
        memory = Memory.load(shipped_templates())
        if dataset is not None:
            memory = Memory.load(Path(dataset), cost=memory.cost)
        return Mixture(memory)

    @cached_property
    def proposer(self) -> Any:
        """Loaded when first asked: requests that cannot be met are refused without torch."""
        return load_proposer()

    def propose(
        self,
        composition: Mapping[int, int],
        n: int,
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[tuple[Chosen, float]]:
        """As ``TemplateSource`` says; each names the source that gave it more."""
        voted = self.memory.propose(composition, MOST_ASSIGNMENTS, groups=groups, rows=rows)
        total = sum(votes for _, votes in voted) + GROUND
        written = {_form(chosen): chosen for chosen, _ in voted}
        by_vote = {_form(chosen): votes for chosen, votes in voted}
        score = dict(by_vote)
        if rows is None:
            found = {
                canonical_orbits(orbits): probability
                for orbits, probability in self.proposer.propose(composition, n, groups=groups)
            }
        else:
            ways = list(islice(covers(rows, composition), MOST_ASSIGNMENTS))
            for way in ways:
                written.setdefault(canonical_orbits(way), Chosen.of(way))
            found = dict.fromkeys(map(canonical_orbits, ways), None)
        missing = [form for form in {**score, **found} if found.get(form) is None]
        exact = self.proposer.probabilities(composition, missing, groups=groups)
        found |= zip(missing, exact, strict=True)
        for form, probability in found.items():
            score[form] = score.get(form, 0.0) + PART * total * probability
        ranked = sorted(score.items(), key=lambda item: (-item[1], item[0]))[:n]
        return [
            (
                replace(
                    written.get(form) or Chosen.of(form),
                    source="retrieval" if 2 * by_vote.get(form, 0.0) >= votes else "proposer",
                ),
                votes,
            )
            for form, votes in ranked
        ]

    def evidence(
        self,
        composition: Mapping[int, int],
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> float:
        """As ``TemplateSource`` says."""
        return self.memory.evidence(composition, groups=groups, rows=rows)


def _form(chosen: Chosen) -> Orbits:
    """The template in the form that all its settings share."""
    assert chosen.species is not None
    return canonical_orbits(zip(chosen.rows, chosen.species, strict=True))
