"""Many samples -> ranked candidates: impossible ones set aside, duplicates merged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crystalctl.analysis.exact import orbit_cell
from crystalctl.analysis.facts import Facts, facts_within_group, sample_facts, with_symmetry
from crystalctl.analysis.matching import group_cells
from crystalctl.analysis.packed import Packed
from crystalctl.analysis.symmetrise import Symmetric
from crystalctl.analysis.validity import invalid_reason, lengths_angles
from crystalctl.planning import Sample
from crystalctl.symmetry.groups import group

if TYPE_CHECKING:
    from crystalctl.crystal.batch import Crystals

OnProgress = Callable[[str, int, int], None]
_COUNTED = re.compile(r"(\S+) x(\d+)")
_TRIED_MEMBERS = 20
"""Members of a group whose symmetry is looked at to choose the one that represents it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One ranked structure.

    ``packed``: the sample that represents its group; ``symmetric``: its group and conventional
    cell. ``members``: numbers of all samples merged, its own included.
    ``scores``: what else it was ranked by, columns of the summary.
    """

    rank: int
    sample: Sample
    formula: str
    packed: Packed
    symmetric: Symmetric
    members: tuple[int, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    votes: float = 0.0
    """For the templates of all its members, see ``Sample.votes``; 0 where nothing voted."""
    source: str = ""
    """Sources of its members and how many each gave, the most first."""
    known: str = ""
    """Whether databases hold it, see ``known.py``; empty where nobody looked."""

    @property
    def structure(self) -> Any:
        """The sample that represents its group, a pymatgen Structure."""
        return self.packed.structure

    @property
    def count(self) -> int:
        """How many samples were merged into it."""
        return len(self.members)

    def row(self) -> dict[str, Any]:
        """Facts for the summary: Å, degrees, g/cm³; the cell is the one written to the file."""
        cell = self.symmetric.structure
        values = lengths_angles(cell.lattice.matrix)
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        return {
            "rank": self.rank,
            "formula": self.formula,
            "space_group": self.symmetric.symbol,
            "space_group_number": self.symmetric.number,
            **{name: round(value, 5) for name, value in zip(names, values, strict=True)},
            "density": round(float(cell.density), 5),
            "n_atoms": len(self.packed),
            "z": self.sample.z,
            "count": self.count,
            "source": self.source,
            **({"votes": float(f"{self.votes:.6g}")} if self.votes else {}),
            **({"known": self.known} if self.known else {}),
            **self.scores,
            "sample": self.sample.number,
            "symprec": self.symmetric.symprec,
            "members": list(self.members),
        }


@dataclass(frozen=True)
class Ranking:
    """Candidates by rank, and every sample: ``facts`` and ``crystals`` by sample number."""

    candidates: list[Candidate]
    samples: Sequence[Sample]
    facts: Mapping[int, Facts]
    crystals: Mapping[int, Crystals] = field(repr=False)

    def set_aside(self) -> dict[str, int]:
        """Reason -> number of impossible samples, the most frequent first."""
        return dict(Counter(f.reason for f in self.facts.values() if f.reason).most_common())

    def rank_of(self) -> dict[int, int]:
        """Rank of the candidate each valid sample was merged into, by sample number."""
        return {number: c.rank for c in self.candidates for number in c.members}


def counted(sources: Mapping[str, int]) -> str:
    """How many samples each source gave, as text: "diffcsp_pp:retrieval x7, diffcsp x1"."""
    ordered = sorted(sources.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} x{count}" for name, count in ordered if name)


def counts_of(text: str) -> Counter[str]:
    """What ``counted`` was given; anything else counts as nothing."""
    return Counter({name: int(count) for name, count in _COUNTED.findall(text)})


def differing(texts: Iterable[str]) -> bool:
    """Whether these texts of ``counted`` name more than one source."""
    return len(set().union(*map(counts_of, texts))) > 1


def rank_samples(
    samples: Sequence[Sample],
    crystals: Mapping[int, Crystals],
    *,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Ranking:
    """Judge, merge and rank.

    Order: as the formulas were asked for, then votes for the template, merged count, space group
    number (all high first), sample number. ``crystals`` holds a batch of one for each sample
    number.
    """
    facts: dict[int, Facts] = {}
    for sample in samples:
        facts[sample.number] = _facts(sample, crystals[sample.number])
    valid = [s for s in samples if facts[s.number].valid]
    groups = group_cells(
        [packed.cell for s in valid if (packed := facts[s.number].packed) is not None],
        on_step=lambda done, total: on_progress("comparing", done, total),
    )
    order = {label: i for i, label in enumerate(dict.fromkeys(s.label for s in samples))}
    found: list[tuple[Sample, Facts, tuple[int, ...]]] = []
    for same in groups:
        members = [valid[i] for i in same]
        best, best_facts = _representative(members, facts)
        found.append((best, best_facts, tuple(s.number for s in members)))
    by_number = {s.number: s for s in samples}

    def votes(members: tuple[int, ...]) -> float:
        return sum(by_number[number].votes for number in members)

    def sources(members: tuple[int, ...]) -> str:
        return counted(Counter(by_number[number].source for number in members))

    def place(item: tuple[Sample, Facts, tuple[int, ...]]) -> tuple[float, ...]:
        sample, its, members = item
        return order[sample.label], -votes(members), -len(members), -_number(its), sample.number

    found.sort(key=place)
    candidates = []
    for rank, (sample, its, numbers) in enumerate(found, start=1):
        assert its.packed is not None
        assert its.symmetric is not None  # set by with_symmetry
        name = its.formula if sample.composition is None else sample.label
        candidates.append(
            Candidate(
                rank,
                sample,
                name,
                its.packed,
                its.symmetric,
                numbers,
                votes=votes(numbers),
                source=sources(numbers),
            )
        )
    return Ranking(candidates, samples, facts, crystals)


def _facts(sample: Sample, one: Crystals) -> Facts:
    lattice, frac = one.lattice[0].double().numpy(), one.frac.double().numpy()
    reason = invalid_reason(lattice, frac)
    if reason:
        return Facts(reason)
    cell = orbit_cell(one)
    if cell is not None:
        return facts_within_group(cell, exact=sample.exact)
    return sample_facts(lattice, frac, one.species.tolist())


def _representative(members: Sequence[Sample], facts: Mapping[int, Facts]) -> tuple[Sample, Facts]:
    """The member with the highest symmetry, the first of several: the least noisy sample."""
    tried = [(s, with_symmetry(facts[s.number])) for s in members[:_TRIED_MEMBERS]]
    return max(tried, key=lambda pair: (*_symmetry(pair[1]), -pair[0].number))


def _symmetry(facts: Facts) -> tuple[float, int]:
    """Operations for each atom, then the number of the group.

    Equal structures may have been drawn in cells of different size. A perovskite in a doubled cell
    has 192 operations for 40 atoms in Fm-3m (225), with 48 for 5 in Pm-3m (221) it has more.
    """
    if facts.symmetric is None:
        return 0.0, 0
    found = facts.symmetric
    return group(found.number).order / len(found.packed.numbers), found.number


def _number(facts: Facts) -> int:
    return facts.symmetric.number if facts.symmetric is not None else 0
