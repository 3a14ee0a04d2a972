"""A request for space groups -> the templates to draw: groups, Wyckoff positions, elements.

No torch here: wrong requests are refused before it is loaded.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from crystalctl.chosen import Chosen
from crystalctl.errors import InputError
from crystalctl.symmetry.assignments import (
    Assignment,
    assignments,
    atoms_of,
    covers,
    describe,
    lattice_points,
    possible_atom_counts,
)
from crystalctl.symmetry.groups import groups_of_family, parse_group
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.witness import has_own_group
from crystalctl.symmetry.wyckoff import parse_wyckoff, position, positions

if TYPE_CHECKING:
    from crystalctl.data.statistics import Statistics

SYSTEMS = frozenset(
    ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
)
MOST_ASSIGNMENTS = 2000
"""Assignments of a composition to a group that are looked at, those with few orbits first."""
_TRIES = 200
_FLOOR = 0.02


@dataclass(frozen=True)
class Symmetry:
    """What ``--spacegroup`` and ``--wyckoff`` ask for.

    ``groups``: numbers in the order given; ``pools``: those that each word named, one group or a
    whole system.
    ``rows``: the Wyckoff positions, table rows, or None. ``allow_supergroup``: keep structures with
    more symmetry than asked for.
    """

    groups: tuple[int, ...]
    pools: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...] | None = None
    allow_supergroup: bool = False

    def admits(self, chosen: Chosen) -> bool:
        """Whether a template can give what is asked: with equal elements its structures may all
        have more symmetry than the group."""
        return self.allow_supergroup or has_own_group(chosen.rows, chosen.species)

    def plain(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "groups": list(self.groups),
            "wyckoff": None if self.rows is None else [position(r).label for r in self.rows],
            "allow_supergroup": self.allow_supergroup,
        }


class TemplateSource(Protocol):
    """What proposes templates for a composition: known structures, a network, or both."""

    def propose(
        self,
        composition: Mapping[int, int],
        n: int,
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[tuple[Chosen, float]]:
        """Up to ``n`` different templates with their votes, the most first.

        ``composition``: Z -> atoms of the primitive cell; only templates of ``groups`` and, where
        given, on exactly the positions ``rows``.
        """
        ...

    def evidence(
        self,
        composition: Mapping[int, int],
        *,
        groups: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> float:
        """How much speaks for cells of just this composition, comparable between multiples of it:
        the sum of the votes of known structures, 0 where the source knows none.
        """
        ...


def parse_symmetry(
    spacegroups: Sequence[str | int] | None,
    wyckoff: str | None = None,
    *,
    allow_supergroup: bool = False,
) -> Symmetry | None:
    """Numbers, symbols and systems (``cubic``, ``any``) -> what is asked; None for nothing.

    Raises ``InputError`` naming what exists.
    """
    if not spacegroups:
        if wyckoff is not None:
            raise InputError("--wyckoff needs the group", "add --spacegroup, like 225 or Fm-3m")
        return None
    groups: list[int] = []
    pools: dict[tuple[int, ...], None] = {}
    for text in spacegroups:
        word = str(text).strip().lower()
        found = groups_of_family(word) if word in SYSTEMS | {"any"} else [parse_group(text)]
        groups += found
        pools[tuple(found)] = None
    groups = list(dict.fromkeys(groups))
    rows = None
    if wyckoff is not None:
        if len(groups) != 1:
            raise InputError("--wyckoff needs one group", "give one --spacegroup")
        rows = tuple(sorted(parse_wyckoff(groups[0], wyckoff)))
        if not allow_supergroup and not has_own_group(rows):
            raise InputError(
                f"atoms on {describe(rows)} alone always have more symmetry than "
                f"{names_of(groups)}",
                "occupy a position with more freedom too, or add --allow-supergroup",
            )
    return Symmetry(tuple(groups), tuple(pools), rows, allow_supergroup)


def predict_templates(
    symmetry: Symmetry, composition: Mapping[int, int], statistics: Statistics, n: int
) -> list[Chosen]:
    """Up to ``n`` different templates for a composition (of the primitive cell), the best first.

    Order: how often the training data occupy these positions, then few orbits. Empty where the
    multiplicities cannot add up, or only with more symmetry than asked for.
    """
    known: Counter[Orbits] = Counter()
    for text, count in statistics.templates.items():
        group, rows = _split(text)
        if group in symmetry.groups:
            known[canonical_orbits((row, 0) for row in rows)] += count
    found: dict[Orbits, tuple[tuple[int, int], Assignment, int]] = {}
    for group in symmetry.groups:
        for way in islice(ways_in(symmetry, group, composition), MOST_ASSIGNMENTS):
            seen = known[canonical_orbits((row, 0) for row, _ in way)]
            # Of descriptions that differ by the setting only the first is kept.
            found.setdefault(canonical_orbits(way), ((-seen, len(way)), way, group))
    ranked = sorted(found.values(), key=lambda item: item[0])
    chosen = (
        Chosen(group, tuple(row for row, _ in way), tuple(z for _, z in way))
        for _, way, group in ranked
    )
    return list(islice(filter(symmetry.admits, chosen), n))


def ways_in(symmetry: Symmetry, group: int, composition: Mapping[int, int]) -> Iterator[Assignment]:
    """Every assignment of a composition to the positions asked for, or to any of ``group``."""
    if symmetry.rows is not None:
        return iter(covers(symmetry.rows, composition))
    return assignments(group, composition)


def known_templates(composition: Mapping[int, int], statistics: Statistics, n: int) -> list[Chosen]:
    """Up to ``n`` templates of the training data that a composition fits, the commonest first."""
    size = sum(composition.values())
    found: list[Chosen] = []
    for key in statistics.templates:
        group, rows = _split(key)
        if atoms_of(rows) != size:
            continue
        for way in covers(rows, composition):
            found.append(Chosen(group, rows, tuple(z for _, z in way)))
        if len(found) >= n:
            break
    return found[:n]


def turns(votes: Sequence[float], n: int) -> list[int]:
    """Which of several templates each of ``n`` samples takes.

    The next sample goes where root(votes) / (samples so far + 1) is largest (D'Hondt): templates
    with many votes are drawn several times, as not every drawing of the right one finds its
    structure, but less often than their share says, as votes may be wrong. For the same reason
    every template has ``_FLOOR`` of the most votes besides its own.
    """
    floor = _FLOOR * max(votes, default=0.0) or 1.0
    weights = [math.sqrt(vote + floor) for vote in votes]
    heap = [(-weight, index, 1) for index, weight in enumerate(weights)]
    heapq.heapify(heap)
    order = []
    for _ in range(n if heap else 0):
        _, index, taken = heap[0]
        order.append(index)
        heapq.heapreplace(heap, (-weights[index] / (taken + 1), index, taken + 1))
    return order


def shared_out(ways: Sequence[tuple[Chosen, float]], n: int) -> list[tuple[Chosen, float]]:
    """What each of ``n`` samples takes of templates with their votes, and its part of these."""
    taken = turns([votes for _, votes in ways], n)
    each = {i: iter(ways[i][0].taken(taken.count(i))) for i in set(taken)}
    found = []
    for i in taken:
        chosen, part = next(each[i])
        found.append((chosen, ways[i][1] * part))
    return found


def generate_templates(
    symmetry: Symmetry,
    n: int,
    statistics: Statistics,
    *,
    num_atoms: Sequence[int] | None,
    seed: int,
) -> tuple[list[Chosen], list[int]]:
    """``n`` templates, and the groups for which none was known from training.

    The groups and systems asked for take turns; within a system groups are drawn as often as in the
    training data (one more each). Within a group templates are drawn by their frequency; where the
    data have none that fits, legal combinations of positions are drawn. ``num_atoms`` counts atoms
    of the primitive cell. Raises ``InputError`` for sizes that no positions add up to.
    """
    known: dict[int, dict[tuple[int, ...], int]] = {g: {} for g in symmetry.groups}
    for key, count in statistics.templates.items():
        group, rows = _split(key)
        if group in known and (num_atoms is None or atoms_of(rows) in num_atoms):
            known[group][rows] = count
    usable = [g for g in symmetry.groups if _reachable(g, symmetry, statistics, num_atoms)]
    if not usable:
        raise refuse_size(symmetry, num_atoms or [], statistics.max_atoms)
    reached = ([g for g in pool if g in usable] for pool in symmetry.pools)
    pools = [(pool, [sum(known[g].values()) + 1 for g in pool]) for pool in reached if pool]
    chosen: list[Chosen] = []
    unknown: dict[int, None] = {}
    for k in range(n):
        draw = random.Random(f"template|{seed}|{symmetry.plain()}|{num_atoms}|{k}")
        pool, weights = pools[k % len(pools)]
        # A group that stands alone costs no random number: its templates are as they were.
        group = pool[0] if len(pool) == 1 else draw.choices(pool, weights)[0]
        if symmetry.rows is not None:
            chosen.append(Chosen(group, symmetry.rows))
        elif known[group]:
            rows = draw.choices(list(known[group]), list(known[group].values()))[0]
            chosen.append(Chosen(group, rows))
        else:
            unknown[group] = None
            sizes = _sizes_allowed(group, statistics, num_atoms)
            chosen.append(Chosen(group, draw_positions(group, sizes, draw)))
    return chosen, list(unknown)


def draw_positions(group: int, sizes: Sequence[int], draw: random.Random) -> tuple[int, ...]:
    """A legal combination of positions with a number of atoms (primitive cell) out of ``sizes``.

    One that can have exactly its group: fixed points alone often have a supergroup.
    """
    points = lattice_points(group)
    there = positions(group)
    for _ in range(_TRIES):
        left = draw.choice(list(sizes)) * points
        rows: list[int] = []
        while left:
            fitting = [
                p for p in there if p.multiplicity <= left and (p.freedom or p.row not in rows)
            ]
            if not fitting:
                break
            # A free position first: it is what lowers the symmetry to the group's own.
            most = max(p.freedom for p in fitting)
            pool = fitting if rows else [p for p in fitting if p.freedom == most]
            picked = draw.choice(pool)
            rows.append(picked.row)
            left -= picked.multiplicity
        if not left and has_own_group(tuple(sorted(rows))):
            return tuple(sorted(rows))
    raise InputError(
        f"no combination of positions of {names_of([group])} was found", "give other --num-atoms"
    )


def _reachable(
    group: int, symmetry: Symmetry, statistics: Statistics, num_atoms: Sequence[int] | None
) -> bool:
    if symmetry.rows is not None:
        return num_atoms is None or atoms_of(symmetry.rows) in num_atoms
    return bool(_sizes_allowed(group, statistics, num_atoms))


def _sizes_allowed(
    group: int, statistics: Statistics, num_atoms: Sequence[int] | None
) -> list[int]:
    """Atom counts asked for (or, without a wish, up to the training maximum) that can be."""
    possible = possible_atom_counts(group, _largest_cell(group, statistics.max_atoms))
    if num_atoms is not None:
        return [n for n in possible if n in num_atoms]
    return possible


def _largest_cell(group: int, max_atoms: int) -> int:
    """Atoms of the largest cell drawn in a group."""
    # The general position must fit in, or some groups could never be reached.
    general = positions(group)[-1].multiplicity // lattice_points(group)
    return max(max_atoms, 20, general)


def refuse_size(symmetry: Symmetry, num_atoms: Sequence[int], most: int) -> InputError:
    """Why no cell asked for has ``num_atoms``; ``most``: the largest cell drawn in any group."""
    where = names_of(symmetry.groups)
    asked = ", ".join(map(str, num_atoms))
    if symmetry.rows is not None:
        return InputError(
            f"the positions {describe(symmetry.rows)} have {atoms_of(symmetry.rows)} atoms in the "
            f"primitive cell, not {asked}",
            "leave out --num-atoms",
        )
    largest = max(_largest_cell(g, most) for g in symmetry.groups)
    possible = sorted(
        {n for g in symmetry.groups for n in possible_atom_counts(g, _largest_cell(g, most))}
    )
    near = sorted(sorted(possible, key=lambda n: min(abs(n - m) for m in num_atoms))[:4])
    hint = f"nearest possible: {', '.join(map(str, near))}"
    if min(num_atoms) > largest:
        return InputError(
            f"--num-atoms is {asked}, in {where} up to {largest} atoms of the primitive cell "
            "are drawn",
            hint,
        )
    return InputError(
        f"no positions of {where} add up to {asked} atoms in the primitive cell", hint
    )


def _split(key: str) -> tuple[int, tuple[int, ...]]:
    group, rows = key.split(":")
    return int(group), tuple(int(row) for row in rows.split(","))


def names_of(groups: Sequence[int]) -> str:
    shown = [f"{tables().symbols[g - 1]} ({g})" for g in groups[:3]]
    return ", ".join(shown) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
