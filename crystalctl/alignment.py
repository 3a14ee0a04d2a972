"""Structures of one group brought onto each other, whatever the elements and the setting."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, permutations, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from crystalctl.crystal.batch import Crystals
from crystalctl.diffusion.lattice_coords import to_family6
from crystalctl.symmetry.build_normaliser import normalising
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, tables

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NEAR = 0.12
"""Root mean square distance of the atoms of like structures, in units of (V/N)^(1/3), at most."""
LIKE = 0.15
"""Difference of the logarithms of their cells, volume aside, at most."""
MOST_CHOICES = 120
"""Ways to tell kinds of atoms apart that are tried."""


class Facts(NamedTuple):
    """One structure: orbits ``rows`` (O,), ``anchor`` (O, 3), ``species`` (O,), ``lattice``."""

    rows: Ints
    species: Ints
    anchor: Floats
    lattice: Floats

    @property
    def compound(self) -> tuple[tuple[int, int], ...]:
        """Atomic numbers with their atoms in the conventional cell."""
        count: Counter[int] = Counter()
        atoms = tables().multiplicity[self.rows]
        for z, n in zip(self.species.tolist(), atoms.tolist(), strict=True):
            count[z] += n
        return tuple(sorted(count.items()))


def facts_of(crystals: Crystals) -> list[Facts]:
    """The conventional cells of a batch one by one. Raises ``ValueError`` without orbits."""
    orbits = crystals.layout.orbits
    if orbits is None:
        raise ValueError("prototypes are found in crystals with orbits")
    ends = np.cumsum(orbits.n_orbits.numpy())[:-1]
    return [
        Facts(rows, species, anchor, lattice)
        for rows, species, anchor, lattice in zip(
            np.split(orbits.position.numpy(), ends),
            np.split(orbits.at_anchors(crystals.species).numpy(), ends),
            np.split(orbits.at_anchors(crystals.frac).double().numpy(), ends),
            crystals.lattice.double().numpy(),
            strict=True,
        )
    ]


@dataclass(frozen=True)
class Setting:
    """Changes of setting: ``matrix`` (T, 3, 3), ``shift`` (T, 3), ``polar`` (3, 3) projector."""

    matrix: Floats
    shift: Floats
    polar: Floats


@cache
def settings(group: int) -> Setting:
    """All that keep ``group``, shifts along its polar axes aside."""
    table = tables()
    last = int(table.first_position[group]) - 1
    here = slice(int(table.first_operation[last]), int(table.first_operation[last + 1]))
    polar = table.rotation[here].astype(np.float64).mean(0)
    pure: dict[tuple[int, ...], Floats] = {}
    turns: dict[bytes, tuple[Ints, Floats]] = {}
    for matrix, shift in normalising(group, table):
        w = shift / TRANSLATION_DENOMINATOR
        if np.array_equal(matrix, np.eye(3)):
            w = w - polar @ w
            pure.setdefault(tuple(np.rint(w * 48).astype(int) % 48), w)
        elif table.families[group - 1] != "triclinic" or np.array_equal(matrix, -np.eye(3)):
            turns[matrix.tobytes()] = matrix, w
    both = [(np.eye(3), np.zeros(3)), *turns.values()]
    every = [(m, w + s) for m, w in both for s in pure.values()]
    return Setting(
        np.array([m for m, _ in every], dtype=np.float64), np.array([w for _, w in every]), polar
    )


Block = tuple[int, int, int]
"""Kind of atom, multiplicity, freedom."""


@dataclass(frozen=True)
class Class:
    """N structures of one group whose kinds of atoms occupy as many orbits of the same sizes.

    ``member`` (N,): which structures. ``blocks``: of each orbit. ``rows`` (N, O), ``slot`` (N, O):
    where each orbit stands in the structure, ``anchor`` (N, O, 3), ``atoms`` (N, A, 3) orbit by
    orbit, ``lattice`` (N, 3, 3).
    """

    group: int
    member: Ints
    blocks: tuple[Block, ...]
    rows: Ints
    slot: Ints
    anchor: Floats
    atoms: Floats
    lattice: Floats


def classes(structures: Sequence[Facts]) -> Iterator[Class]:
    """Structures that may be one prototype, two or more each."""
    table = tables()
    found: dict[tuple[int, tuple[Block, ...]], list[tuple[int, Ints]]] = defaultdict(list)
    for number, one in enumerate(structures):
        kind: dict[int, list[tuple[int, int]]] = defaultdict(list)
        size = list(
            zip(
                table.multiplicity[one.rows].tolist(), table.freedom[one.rows].tolist(), strict=True
            )
        )
        for z, what in zip(one.species.tolist(), size, strict=True):
            kind[z].append(what)
        order = sorted(kind, key=lambda z: sorted(kind[z]))
        rank = {z: i for i, z in enumerate(order)}
        keys = [(rank[z], *what) for z, what in zip(one.species.tolist(), size, strict=True)]
        slot = np.array(sorted(range(len(keys)), key=lambda i: keys[i]))
        blocks = tuple(keys[i] for i in slot)
        found[int(table.group[one.rows[0]]), blocks].append((number, slot))
    for (group, blocks), members in found.items():
        if len(members) > 1:
            yield _class(group, blocks, members, structures)


def _class(
    group: int,
    blocks: tuple[Block, ...],
    members: list[tuple[int, Ints]],
    structures: Sequence[Facts],
) -> Class:
    table = tables()
    slot = np.array([s for _, s in members])
    rows = np.array([structures[i].rows[s] for i, s in members])
    anchor = np.array([structures[i].anchor[s] for i, s in members])
    atoms = []
    for column, (_, multiplicity, _) in enumerate(blocks):
        operation = table.first_operation[rows[:, column]][:, None] + np.arange(multiplicity)
        turned = table.rotation[operation] @ anchor[:, None, column, :, None]
        atoms.append(turned[..., 0] + table.translation[operation])
    return Class(
        group,
        np.array([i for i, _ in members]),
        blocks,
        rows,
        slot,
        np.stack([a[:, 0] for a in atoms], 1),
        np.concatenate(atoms, 1),
        np.array([structures[i].lattice for i, _ in members]),
    )


class Aligned(NamedTuple):
    """N structures brought onto a leader: ``rms`` (N,), infinite where none of its kind, ``anchor``
    (N, O, 3), ``orbit`` (N, O): which of theirs lies on each of the leader's, ``cell`` (N, 6)."""

    rms: Floats
    anchor: Floats
    orbit: Ints
    cell: Floats


@dataclass(frozen=True)
class _Leader:
    """What others are compared with: its ``anchor`` (O, 3), the ``metric`` of its cell in units of
    (V/N)^(1/3), its ``cell`` (6,), of each orbit the ``atoms`` and where they begin, ``first``."""

    anchor: Floats
    metric: Floats
    cell: Floats
    atoms: Ints
    first: Ints


Pairs = list[tuple[list[int], list[int]]]
"""Orbits of the leader, and those of another that may lie on them."""


def align(of: Class, leader: int, others: Ints) -> Aligned:
    """``others`` brought onto the structure ``leader``, each in the best of all settings."""
    n, n_orbits = len(others), len(of.blocks)
    best = Aligned(
        np.full(n, np.inf),
        np.zeros((n, n_orbits, 3)),
        np.zeros((n, n_orbits), dtype=np.int64),
        np.zeros((n, 6)),
    )
    atoms = np.array([m for _, m, _ in of.blocks])
    lattice = of.lattice[leader]
    unit = (abs(np.linalg.det(lattice)) / atoms.sum()) ** (1 / 3)
    lead = _Leader(
        of.anchor[leader],
        lattice @ lattice.T / unit**2,
        to_family6(torch.from_numpy(lattice[None]))[0].numpy(),
        atoms,
        np.cumsum(atoms) - atoms,
    )
    way = settings(of.group)
    choices = _choices(of.blocks)
    known: dict[bytes, tuple[Ints, Floats]] = {}
    for matrix, shift in zip(way.matrix, way.shift, strict=True):
        code = matrix.tobytes()
        if code not in known:
            turned = np.linalg.inv(matrix).T @ of.lattice[others]
            cell = to_family6(torch.from_numpy(turned)).numpy()
            # The last coefficient is the volume.
            apart = np.linalg.norm((cell - lead.cell)[:, :5], axis=1)
            known[code] = np.flatnonzero(apart < LIKE), cell
        fit, cell = known[code]
        if not len(fit):
            continue
        moved = of.atoms[others[fit]] @ matrix.T + shift
        for pairs in choices:
            for offset in _offsets(lead, moved, pairs, way.polar):
                _improve(best, fit, moved + offset, cell, pairs, lead)
    return best


def _choices(blocks: tuple[Block, ...]) -> list[Pairs]:
    """The ways to tell which kind of atom is which, where several occupy alike orbits."""
    column: dict[Block, list[int]] = defaultdict(list)
    shape: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, (kind, atoms, freedom) in enumerate(blocks):
        column[kind, atoms, freedom].append(i)
        shape[kind].append((atoms, freedom))
    alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for kind, what in shape.items():
        alike[tuple(what)].append(kind)
    found = []
    for choice in product(*(permutations(kinds) for kinds in alike.values())):
        other = dict(zip(chain(*alike.values()), chain(*choice), strict=True))
        found.append([(here, column[other[k], a, f]) for (k, a, f), here in column.items()])
        if len(found) == MOST_CHOICES:
            break
    return found


def _offsets(lead: _Leader, moved: Floats, pairs: Pairs, polar: Floats) -> Iterator[Floats]:
    """Shifts (N, 1, 3) along polar axes that bring some atom onto one of the leader's."""
    if not polar.any():
        yield np.zeros((len(moved), 1, 3))
        return
    here, there = min(pairs, key=lambda pair: len(pair[1]) * int(lead.atoms[pair[1][0]]))
    for orbit in there:
        for image in range(int(lead.atoms[orbit])):
            gap = lead.anchor[here[0]] - moved[:, lead.first[orbit] + image]
            yield ((gap - np.rint(gap)) @ polar.T)[:, None]


def _improve(
    best: Aligned, fit: Ints, moved: Floats, cell: Floats, pairs: Pairs, lead: _Leader
) -> None:
    """Takes over this setting for the structures ``fit`` that come nearer in it than before.

    ``moved`` (F, A, 3): their atoms in it, ``cell``: of all structures.
    """
    n_atoms = int(lead.atoms.sum())
    limit = np.minimum(best.rms[fit], NEAR) ** 2 * n_atoms
    least = np.zeros(len(fit))
    left = np.arange(len(fit))
    parts = []
    for here, there in sorted(pairs, key=lambda pair: len(pair[0])):
        cost, gap = _gaps(lead, moved[left], here, there)
        # Each orbit has its nearest at best.
        least[left] += np.maximum(cost.min(2).sum(1), cost.min(1).sum(1))
        parts.append((here, there, left, cost, gap))
        left = left[least[left] < limit[left]]
        if not len(left):
            return
    for i in left:
        total = 0.0
        orbit = np.zeros(len(lead.atoms), dtype=np.int64)
        anchor = np.zeros((len(lead.atoms), 3))
        for here, there, rows, cost, gap in parts:
            k = int(np.searchsorted(rows, i))
            a, b = linear_sum_assignment(cost[k])
            total += float(cost[k][a, b].sum())
            orbit[here] = np.array(there)[b]
            anchor[here] = lead.anchor[here] - gap[k][a, b]
        if total < limit[i]:
            row = fit[i]
            best.rms[row] = np.sqrt(total / n_atoms)
            best.anchor[row], best.orbit[row], best.cell[row] = anchor, orbit, cell[row]


def _gaps(lead: _Leader, moved: Floats, here: list[int], there: list[int]) -> tuple[Floats, Floats]:
    """From the orbits ``there`` to the leader's ``here``: the sum of squares over their atoms
    (N, H, T), and the vector from the nearest atom to the anchor (N, H, T, 3)."""
    size = int(lead.atoms[there[0]])
    atom = (lead.first[there][:, None] + np.arange(size)).ravel()
    gap = lead.anchor[here][:, None] - moved[:, None, atom]
    gap -= np.rint(gap)
    square = np.einsum("noai,ij,noaj->noa", gap, lead.metric, gap)
    shape = len(moved), len(here), len(there), size
    square, gap = square.reshape(shape), gap.reshape(*shape, 3)
    nearest = square.argmin(3)[..., None]
    return (
        size * np.take_along_axis(square, nearest, 3)[..., 0],
        np.take_along_axis(gap, nearest[..., None], 3)[..., 0, :],
    )
