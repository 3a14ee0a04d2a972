"""A request -> the exact list of samples.

Everything here follows from the request and the statistics stored with the weights, never from the
machine's free memory: the same request gives the same tiles, and so the same structures,
wherever it is interrupted. No torch here: wrong requests are refused before it is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from crystalctl.crystal.elements import Formula, name_of, reduced_key, symbol_of
from crystalctl.errors import InputError
from crystalctl.units import choose_units, spread, unit_weights, voted_units

if TYPE_CHECKING:
    from crystalctl.chosen import Chosen
    from crystalctl.crystal.goal import Goal
    from crystalctl.data.statistics import Statistics
    from crystalctl.templating import Symmetry, TemplateSource


@dataclass(frozen=True, slots=True)
class Sample:
    """One structure to draw.

    ``number``: from 1, its place in the request. ``key``: names the composition or constraint, and
    with ``n_atoms`` and ``k`` the random stream. ``composition``: Z -> atoms in the cell (predict).
    """

    number: int
    key: str
    label: str
    n_atoms: int
    k: int
    z: int | None = None
    composition: Mapping[int, int] | None = None
    elements: frozenset[int] | None = None
    template: Chosen | None = None
    votes: float = 0.0
    """Its part of the votes for the template (``proposing``), shared by all samples of that
    template, or of what free samples have beside them (``parts``); or the likeness of a composed
    template (``composing``). The sum over merged samples ranks before all else."""
    exact: bool = True
    """With a template: a structure that has more symmetry is drawn again, then set aside."""
    goal: Goal | None = None
    temperature: float = 1.0
    """Of the draw, where a model composed the template; another is drawn at the same."""
    sizes: tuple[int, ...] | None = None
    """Numbers of atoms that such another template may have; None: any."""
    source: str = ""
    """The family that draws it and, after a colon, what proposed its template."""

    @property
    def stream(self) -> int:
        """The 63-bit name of this sample's random stream; no other sample shares it."""
        return stable_hash(f"{self.key}|{self.n_atoms}|{self.k}")

    @property
    def pairs(self) -> int:
        """What a network call costs: pairs of a receiver (atom, or orbit) and an atom."""
        receivers = self.n_atoms if self.template is None else len(self.template.rows)
        return receivers * self.n_atoms


def stable_hash(text: str) -> int:
    """A non-negative 63-bit integer that is the same on every machine and in every run."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def parse_units(text: str) -> list[int] | None:
    """The value of ``--z``: None for ``auto``, else the numbers of formula units asked for."""
    if text.strip().lower() == "auto":
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isascii() and p.isdigit() and int(p[:9]) >= 1 for p in parts):
        raise InputError(f"--z is '{text}'", "allowed: auto, or whole numbers like 1,2,4")
    return sorted({int(p) for p in parts})


def parse_atom_numbers(text: str) -> list[int]:
    """The value of generate's ``--num-atoms``: ``8``, ``4,6,8`` or ``4-12`` -> sorted numbers."""
    numbers: set[int] = set()
    for part in text.split(","):
        ends = [e.strip() for e in part.split("-")]
        if len(ends) > 2 or not all(e.isascii() and e.isdigit() and len(e) < 6 for e in ends):
            raise InputError(f"--num-atoms is '{text}'", "allowed: 8 or 4,6,8 or 4-12")
        first, last = int(ends[0]), int(ends[-1])
        if first < 1 or last < first:
            raise InputError(f"--num-atoms is '{text}'", "allowed: 8 or 4,6,8 or 4-12, from 1")
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def plan_predict(
    formulas: Sequence[Formula],
    n: int,
    statistics: Statistics,
    *,
    units: Sequence[int] | None = None,
    num_atoms: int | None = None,
) -> list[Sample]:
    """The samples of a prediction: ``n`` for each formula."""
    samples: list[Sample] = []
    for formula in formulas:
        chosen = choose_units(formula, statistics, units=units, num_atoms=num_atoms)
        shares = spread(n, unit_weights(formula, statistics, chosen))
        key = reduced_key(formula.unit)
        for z, share in zip(chosen, shares, strict=True):
            # By atomic number: however a formula is written, it gives the same structures.
            composition = {element: formula.unit[element] * z for element in sorted(formula.unit)}
            samples += [
                Sample(
                    len(samples) + 1 + k,
                    key,
                    formula.reduced,
                    z * formula.unit_atoms,
                    k,
                    z=z,
                    composition=composition,
                )
                for k in range(share)
            ]
    return samples


def plan_templates(
    formulas: Sequence[Formula],
    n: int,
    statistics: Statistics,
    symmetry: Symmetry | None,
    *,
    source: TemplateSource,
    units: Sequence[int] | None = None,
    num_atoms: int | None = None,
) -> list[Sample]:
    """The samples of a prediction within templates: ``n`` for each formula.

    Each number of formula units gets its share; within it ``shared_out`` says how often each
    template is drawn: those ``source`` votes for, then what else the group allows or the training
    data occupy.
    Raises ``InputError`` when nothing fits.
    """
    from crystalctl.templating import shared_out

    groups, rows = (symmetry.groups, symmetry.rows) if symmetry else (None, None)
    samples: list[Sample] = []
    for formula in formulas:
        chosen = choose_units(formula, statistics, units=units, num_atoms=num_atoms)
        weights = voted_units(
            formula,
            statistics,
            chosen,
            partial(source.evidence, groups=groups, rows=rows),
            more=units is None and num_atoms is None,
        )
        found = {}
        for z in weights:
            composition = {element: formula.unit[element] * z for element in sorted(formula.unit)}
            if ways := _ways(composition, n, statistics, symmetry, source):
                found[z] = composition, ways
        if not found:
            raise _nothing_fits(formula, symmetry, chosen, statistics.max_atoms)
        shares = spread(n, {z: weights[z] for z in found})
        for (z, (composition, ways)), share in zip(found.items(), shares, strict=True):
            for k, (template, votes) in enumerate(shared_out(list(ways.items()), share)):
                samples.append(
                    Sample(
                        len(samples) + 1,
                        f"{reduced_key(formula.unit)}|{template.key}",
                        formula.reduced,
                        z * formula.unit_atoms,
                        k,
                        z=z,
                        composition=composition,
                        template=template,
                        votes=votes,
                        exact=symmetry is not None and not symmetry.allow_supergroup,
                    )
                )
    return samples


def _nothing_fits(
    formula: Formula, symmetry: Symmetry | None, units: Sequence[int], most: int
) -> InputError:
    """Why no template holds these numbers of units, and what is possible instead."""
    from crystalctl.refusals import refuse_composition

    if symmetry is not None:
        return refuse_composition(symmetry, formula.unit, units, most)
    return InputError(
        f"no template of the training data fits {formula.reduced}",
        "name a --spacegroup, other --z, or use --model diffcsp",
    )


def _ways(
    composition: Mapping[int, int],
    n: int,
    statistics: Statistics,
    symmetry: Symmetry | None,
    source: TemplateSource,
) -> dict[Chosen, float]:
    """Up to ``n`` templates for a composition with their votes, the likeliest first."""
    from crystalctl.templating import known_templates, predict_templates

    groups, rows = (symmetry.groups, symmetry.rows) if symmetry else (None, None)
    ways = dict(source.propose(composition, n, groups=groups, rows=rows))
    if symmetry is not None:
        ways = {way: votes for way, votes in ways.items() if symmetry.admits(way)}
    if len(ways) < n:
        others = (
            known_templates(composition, statistics, n)
            if symmetry is None
            else predict_templates(symmetry, composition, statistics, n)
        )
        ways |= {replace(way, source="listed"): 0.0 for way in others if way not in ways}
    return dict(list(ways.items())[:n])


def plan_symmetric(
    n: int,
    statistics: Statistics,
    symmetry: Symmetry,
    *,
    num_atoms: Sequence[int] | None = None,
    elements: frozenset[int] | None = None,
    seed: int = 0,
) -> tuple[list[Sample], list[int]]:
    """The samples of a generation within space groups, and the groups without known templates.

    Raises ``InputError`` for sizes no positions add up to and elements beyond the weights.
    """
    from crystalctl.templating import generate_templates

    check_elements(elements, statistics)
    chosen, unknown = generate_templates(symmetry, n, statistics, num_atoms=num_atoms, seed=seed)
    samples = [
        Sample(
            k + 1,
            f"generate:{template.key}:{name_of(dict.fromkeys(sorted(elements or ()), 1))}",
            "generated",
            template.n_atoms,
            k,
            elements=elements,
            template=template,
            exact=not symmetry.allow_supergroup,
        )
        for k, template in enumerate(chosen)
    ]
    return samples, unknown


def check_elements(elements: frozenset[int] | None, statistics: Statistics) -> None:
    """Raise ``InputError`` for elements beyond the weights."""
    unknown = sorted((elements or frozenset()).difference(statistics.elements))
    if unknown:
        names = ", ".join(symbol_of(z) for z in unknown)
        raise InputError(f"the weights have never seen {names}", "leave them out of --elements")


def plan_generate(
    n: int,
    statistics: Statistics,
    *,
    num_atoms: Sequence[int] | None = None,
    elements: frozenset[int] | None = None,
    seed: int = 0,
) -> list[Sample]:
    """The samples of a generation: numbers of atoms drawn from the training histogram.

    ``num_atoms`` restricts them; sizes never seen in training are equally likely. Raises
    ``InputError`` for sizes or elements beyond the weights.
    """
    allowed = list(num_atoms) if num_atoms is not None else sorted(statistics.n_atoms)
    if not allowed:
        allowed = list(range(1, statistics.max_atoms + 1))
    if max(allowed) > statistics.max_atoms:
        raise InputError(
            f"--num-atoms asks for {max(allowed)} atoms, the weights know up to "
            f"{statistics.max_atoms}",
            f"give numbers from 1 to {statistics.max_atoms}",
        )
    check_elements(elements, statistics)
    weights = [statistics.n_atoms.get(size, 0) for size in allowed]
    if not any(weights):
        weights = [1] * len(allowed)
    key = "any" if elements is None else name_of({z: 1 for z in sorted(elements)})
    samples = []
    for k in range(n):
        # A hash, not a generator: sample k is the same however many are asked for.
        point = stable_hash(f"size|{seed}|{key}|{k}") / 2**63 * sum(weights)
        size = allowed[_locate(weights, point)]
        samples.append(Sample(k + 1, f"generate:{key}", "generated", size, k, elements=elements))
    return samples


def _locate(weights: Sequence[int], point: float) -> int:
    total = 0.0
    for index, weight in enumerate(weights):
        total += weight
        if point < total:
            return index
    return max(i for i, weight in enumerate(weights) if weight)
