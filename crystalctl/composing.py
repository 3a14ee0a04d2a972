"""Models that know templates themselves: what they propose for a formula, and what they compose.

What is composed may be chosen by its likeness to known compounds (``Likely``). No torch here but
what the model brings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from crystalctl.chosen import Chosen
from crystalctl.crystal.elements import name_of
from crystalctl.data.statistics import Statistics
from crystalctl.errors import InputError
from crystalctl.planning import Sample, check_elements, plan_symmetric, stable_hash
from crystalctl.precedents import Precedents
from crystalctl.symmetry.assignments import covers, describe, possible_atom_counts
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits
from crystalctl.symmetry.witness import has_own_group
from crystalctl.templating import MOST_ASSIGNMENTS, Symmetry, draw_positions, names_of, refuse_size

TRIES = 8
"""How often a template that cannot have its group is drawn anew."""
LOOKS = 64
"""The same where templates are chosen by their likeness: one in twenty is taken on average."""
KEPT = 16
"""How many of those not taken are kept, in case that none is."""
OnProgress = Callable[[str, int, int], None]
LIKENESS = 0.3
"""Wanted where nobody says otherwise."""
ANY = tuple(range(1, 231))
OWN = "own"
"""Source of templates that the model itself proposes."""


def knows_templates(model: Any) -> bool:
    """Whether a model proposes and composes templates."""
    return hasattr(model, "compose")


class Own:
    """The model's own proposals, as ``TemplateSource`` says."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def propose(
        self,
        composition: Mapping[int, int],
        n: int,
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[tuple[Chosen, float]]:
        """Up to ``n`` templates with their probabilities, the likeliest first."""
        if rows is None:
            found = self.model.propose(composition, n, groups=groups)
            return [(replace(Chosen.of(orbits), source=OWN), p) for orbits, p in found]
        ways = {
            canonical_orbits(way): way
            for way in islice(covers(rows, composition), MOST_ASSIGNMENTS)
        }
        exact = self.model.probabilities(composition, list(ways), groups=groups)
        ranked = sorted(zip(ways.values(), exact, strict=True), key=lambda item: -item[1])
        return [(replace(Chosen.of(way), source=OWN), p) for way, p in ranked[:n]]

    def evidence(
        self,
        composition: Mapping[int, int],
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> float:
        """0: its probabilities are those of one composition and say nothing of multiples."""
        return 0.0


@dataclass(frozen=True)
class Likely:
    """A choice among composed templates: new ones that are like known compounds.

    One is taken with the probability of its likeness (``Precedent``) over ``wanted``, and 1 above
    that; what is known, or an earlier sample has, is not. Others follow in the same group; where
    ``LOOKS`` are in vain the most alike of them is taken, known or not. With ``wanted`` = 0 the
    first is. Drawing begins at the prototype of the most alike.
    """

    precedents: Precedents
    wanted: float

    def judge(self, chosen: Chosen, point: float) -> tuple[Chosen, float, bool]:
        """The template with its prototype, its likeness, and whether it is taken; ``point``:
        uniform in [0, 1)."""
        found = self.precedents.of(chosen)
        taken = not self.wanted or (not found.known and point * self.wanted < found.likeness)
        return replace(chosen, starts=found.starts), found.likeness, taken


def plan_within(
    model: Any,
    n: int,
    statistics: Statistics,
    symmetry: Symmetry | None,
    *,
    num_atoms: Sequence[int] | None,
    elements: frozenset[int] | None,
    temperature: float,
    seed: int,
    likely: Likely | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> tuple[list[Sample], str]:
    """Samples within groups, of the model's templates or of the training data's, and a note.

    Without a wish for a group all groups are drawn, as often as in the training data.
    """
    if knows_templates(model):
        why = "the model's templates have more symmetry than"
        samples, groups = plan_composed(
            model,
            n,
            statistics,
            symmetry,
            num_atoms=num_atoms,
            elements=elements,
            temperature=temperature,
            seed=seed,
            likely=likely,
            on_progress=on_progress,
        )
    else:
        why, wish = "no training structure fits in", symmetry
        if wish is None:
            known = sorted({int(key.split(":")[0]) for key in statistics.templates})
            wish = Symmetry(tuple(known), (tuple(known),), allow_supergroup=True)
        samples, groups = plan_symmetric(
            n, statistics, wish, num_atoms=num_atoms, elements=elements, seed=seed
        )
    if not groups:
        return samples, ""
    shown = ", ".join(str(g) for g in groups[:8]) + (", ..." if len(groups) > 8 else "")
    return samples, f"{why} group {shown}: Wyckoff positions are combined freely"


def plan_composed(
    model: Any,
    n: int,
    statistics: Statistics,
    symmetry: Symmetry | None,
    *,
    num_atoms: Sequence[int] | None = None,
    elements: frozenset[int] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    likely: Likely | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> tuple[list[Sample], list[int]]:
    """The samples of a generation with templates that the model composes.

    The groups and systems asked for take turns; without a wish all groups are as likely as the
    model finds them. A template that cannot have its group exactly, or is not ``likely``, is drawn
    again; where no try has its group positions are combined freely: the second result names those
    groups. ``votes`` of a sample is its likeness. Raises ``InputError`` for sizes that no positions
    add up to.
    """
    check_elements(elements, statistics)
    wish = symmetry or Symmetry(ANY, (ANY,), allow_supergroup=True)
    name = f"{wish.plain()}|{num_atoms}|{sorted(elements or ())}|{temperature}|{seed}"
    settings = {"temperature": temperature, "elements": elements, "sizes": num_atoms}
    chosen, combined = _chosen(model, n, wish, name, settings, likely, on_progress)
    label = name_of(dict.fromkeys(sorted(elements or ()), 1))
    samples = [
        Sample(
            k + 1,
            f"generate:{replace(template, cell=None).key}:{label}",
            "generated",
            template.n_atoms,
            k,
            elements=elements,
            template=template,
            votes=likeness,
            exact=not wish.allow_supergroup,
            temperature=temperature,
            sizes=None if num_atoms is None else tuple(num_atoms),
        )
        for k, (template, likeness) in enumerate(chosen)
    ]
    return samples, combined


def composed_anew(
    model: Any, samples: Sequence[Sample], likely: Likely | None = None
) -> list[Sample]:
    """The samples, with other templates of the same group where the model composed them.

    For samples that did not come out: atoms that crowd a template in its cell will do so again.
    A template that cannot have its group exactly is not taken; of others the first, or the most
    ``likely``.
    """
    found = list(samples)
    for i, sample in enumerate(samples):
        old = sample.template
        if old is None or old.cell is None or not knows_templates(model):
            continue
        settings = {
            "temperature": sample.temperature,
            "elements": sample.elements,
            "sizes": sample.sizes,
        }
        streams = [stable_hash(f"{sample.stream}|{k}") for k in range(TRIES)]
        drawn = _compose(model, [[old.group]] * TRIES, streams, settings)
        able = [
            _chosen_of(t) for t in drawn if t is not None and has_own_group(t.positions, t.species)
        ]
        if able and likely is not None:
            judged = [likely.judge(t, 0.0) for t in able]
            able = [max(judged, key=lambda x: (x[2], x[1]) if likely.wanted else ())[0]]
        if able:
            found[i] = replace(sample, template=able[0], n_atoms=able[0].n_atoms)
    return found


class _Found(NamedTuple):
    """A composed template, its likeness, and its form: the same with the same elements in all
    settings."""

    chosen: Chosen
    likeness: float
    form: Orbits


class _Search:
    """For the template of one sample, among those that are composed for it."""

    def __init__(self, pool: Sequence[int], likely: Likely | None) -> None:
        self.pool = pool
        self.likely = likely
        self.tries = 0
        self.last: Chosen | None = None
        # Those that were taken, and of the others the most alike.
        self._able: list[_Found] = []
        self._others: list[_Found] = []

    @property
    def open(self) -> bool:
        """Whether another try may be made."""
        return self.tries < (TRIES if self.likely is None else LOOKS)

    def see(self, drawn: Chosen, admitted: bool, point: float) -> None:
        """One more try; ``admitted``: it can have its group. ``point`` as of ``Likely``."""
        self.tries += 1
        self.last = drawn
        if not admitted:
            return
        assert drawn.species is not None
        form = canonical_orbits(zip(drawn.rows, drawn.species, strict=True))
        if self.likely is None:
            self._able.append(_Found(drawn, 0.0, form))
            return
        # The same group: else those with many known compounds would crowd out the others.
        self.pool = [drawn.group]
        able, likeness, taken = self.likely.judge(drawn, point)
        if taken:
            self._able.append(_Found(able, likeness, form))
        elif all(form != other.form for other in self._others):
            found = [*self._others, _Found(able, likeness, form)]
            self._others = sorted(found, key=lambda one: -one.likeness)[:KEPT]

    def choice(self, others: set[Orbits]) -> _Found | None:
        """What is chosen as far as is known by now; ``others``: what samples before this one have,
        which is not taken again where templates are chosen by their likeness."""
        if self.likely is None or not self.likely.wanted:
            return self._able[0] if self._able else None
        new = next((one for one in self._able if one.form not in others), None)
        if new is not None or self.open:
            return new
        rest = [*self._able, *self._others]
        return next((one for one in rest if one.form not in others), rest[0] if rest else None)


def _chosen(
    model: Any,
    n: int,
    wish: Symmetry,
    name: str,
    settings: Mapping[str, Any],
    likely: Likely | None,
    on_progress: OnProgress,
) -> tuple[list[tuple[Chosen, float]], list[int]]:
    """A template with its likeness for each sample, and the groups where positions were combined
    freely."""
    num_atoms: Sequence[int] | None = settings["sizes"]
    if wish.rows is not None:
        template = Chosen(wish.groups[0], wish.rows)
        if num_atoms is not None and template.n_atoms not in num_atoms:
            raise refuse_size(wish, num_atoms, model.occupation.max_atoms)
        _refuse_one_element(wish, settings["elements"])
        return [(template, 0.0)] * n, []
    searches = [_Search(wish.pools[k % len(wish.pools)], likely) for k in range(n)]
    chosen = _chosen_now(searches)
    while waiting := [k for k in range(n) if chosen[k] is None and searches[k].open]:
        streams = [stable_hash(f"compose|{name}|{k}|{searches[k].tries}") for k in waiting]
        found = _compose(model, [searches[k].pool for k in waiting], streams, settings)
        for k, template in zip(waiting, found, strict=True):
            if template is None:
                pool = replace(wish, groups=tuple(searches[k].pool))
                raise refuse_size(pool, num_atoms or [], model.occupation.max_atoms)
            point = stable_hash(f"likely|{name}|{k}|{searches[k].tries}") / 2**63
            drawn = _chosen_of(template)
            searches[k].see(drawn, wish.admits(drawn), point)
        chosen = _chosen_now(searches)
        on_progress("composing", sum(one is not None for one in chosen), n)
    on_progress("composing", n, n)
    combined: dict[int, None] = {}
    done: list[tuple[Chosen, float]] = []
    for k, one in enumerate(chosen):
        if one is not None:
            done.append((one.chosen, one.likeness))
            continue
        last = searches[k].last
        assert last is not None
        draw = random.Random(f"compose|{name}|{k}")
        sizes = num_atoms or possible_atom_counts(last.group, model.occupation.max_atoms)
        done.append((Chosen(last.group, draw_positions(last.group, sizes, draw)), 0.0))
        combined[last.group] = None
    return done, list(combined)


def _chosen_now(searches: Sequence[_Search]) -> list[_Found | None]:
    """What each has chosen so far: only what comes before it counts, so that more samples leave
    the first as they are."""
    forms: set[Orbits] = set()
    found = []
    for search in searches:
        one = search.choice(forms)
        found.append(one)
        if one is not None:
            forms.add(one.form)
    return found


def _chosen_of(template: Any) -> Chosen:
    return Chosen(template.space_group, template.positions, template.species, template.cell)


_AT_ONCE = 256


def _compose(
    model: Any, pools: Sequence[Sequence[int]], streams: Sequence[int], settings: Mapping[str, Any]
) -> list[Any]:
    import torch

    from crystalctl.diffusion.noise import NoiseSource

    found: list[Any] = []
    for start in range(0, len(pools), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        stream = torch.tensor(streams[part], device=model.strength.device)
        found += model.compose(pools[part], NoiseSource(0, stream), **settings)
    return found


def _refuse_one_element(wish: Symmetry, elements: frozenset[int] | None) -> None:
    """Raise ``InputError`` for positions that with one element have more than their group."""
    assert wish.rows is not None
    if elements is None or len(elements) > 1:
        return
    only = Chosen(wish.groups[0], wish.rows, tuple(elements) * len(wish.rows))
    if not wish.admits(only):
        raise InputError(
            f"with one element the positions {describe(wish.rows)} are more symmetric than "
            f"{names_of(wish.groups)}",
            "allow more --elements, or add --allow-supergroup",
        )
