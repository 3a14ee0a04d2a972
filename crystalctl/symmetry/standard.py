"""One structure -> its group, conventional standard cell and orbits, with spglib.

Runs in the worker processes of ``detect``, so it must not import torch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystalctl.symmetry.tables import Floats, Ints, Tables, tables

LADDER_ANG = (0.1, 0.05, 0.01, 0.3)
"""Tolerances of spglib tried in turn, Å; the first whose cell passes all checks is taken."""
PLACED_WITHIN_ANG = 1e-3
"""An orbit placed from its anchor must hit the atoms of the standard cell this closely."""
MAX_STRAIN = 0.05
"""Largest component of the deformation that makes the input cell the standard cell."""
_OVERLAP_ANG = 0.1

Structure = tuple[Floats, Floats, Ints]
"""Lattice (3, 3) in Å, fractional coordinates (N, 3), atomic numbers (N,)."""


@dataclass(frozen=True)
class Standard:
    """A structure in the conventional cell of the standard setting, as anchors of O orbits.

    ``lattice`` (3, 3) Å rows; ``positions`` (O,) table rows, ``anchors`` (O, 3) on the form of the
    first operation of the position, ``species`` (O,) Z. Orbits are sorted by letter, then Z, then
    anchor. ``symprec`` Å is the tolerance that found it; ``placed_error`` and ``moved`` Å: how far
    placed atoms lie from spglib's standard cell, and how far the atoms of the input had to move.
    """

    number: int
    lattice: Floats
    positions: Ints
    anchors: Floats
    species: Ints
    symprec: float
    placed_error: float
    moved: float


class NoSymmetry(Exception):  # noqa: N818 (a verdict about a structure, not an error of ours)
    """Why a structure could not be described by orbits at one tolerance."""


def standardise(
    lattice: Floats,
    frac: Floats,
    numbers: Ints,
    ladder: Sequence[float] = LADDER_ANG,
    *,
    known: Any = None,
) -> Standard:
    """Find group, standard cell and orbits of lattice (3, 3), frac (N, 3), numbers (N,).

    ``known`` is spglib's dataset at the first tolerance, where it is at hand. Raises
    ``NoSymmetry`` with the reason at the first tolerance when none of the ladder works.
    """
    # spglib reports to stderr each time it tightens a tolerance; its C code reads this.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    first: NoSymmetry | None = None
    for symprec in ladder:
        try:
            facts = known or _dataset(lattice, frac, numbers, symprec)
            known = None
            return _at_tolerance((lattice, frac, numbers), facts, symprec)
        except NoSymmetry as verdict:
            first = first or verdict
    raise first or NoSymmetry("no tolerance given")


def standardise_all(
    structures: Sequence[Structure], ladder: Sequence[float] = LADDER_ANG
) -> list[Standard | str]:
    """One answer for each structure: its standard form, or the reason why there is none."""
    answers: list[Standard | str] = []
    for lattice, frac, numbers in structures:
        try:
            answers.append(standardise(lattice, frac, numbers, ladder))
        except NoSymmetry as verdict:
            answers.append(str(verdict))
    return answers


def _at_tolerance(structure: Structure, facts: Any, symprec: float) -> Standard:
    lattice, frac, numbers = structure
    table = tables()
    number = int(facts.number)
    if int(facts.hall_number) != table.hall_spglib[number - 1]:
        raise NoSymmetry("spglib answered in another setting")
    shift = table.origin_shift[number - 1]
    cell = np.asarray(facts.std_lattice)
    atoms = np.asarray(facts.std_positions) + shift
    species = np.asarray(facts.std_types, dtype=np.int64)
    rows, anchors, members = _orbits(table, number, cell, atoms, _orbit_ids(facts))
    placed, owner = _place(table, rows, anchors)
    placed_error = _check_placed(placed, owner, cell, atoms, members)
    anchor_species = species[[m[0] for m in members]]
    basis = np.asarray(facts.transformation_matrix)
    origin = np.asarray(facts.origin_shift) + shift
    _check_strain(lattice, cell, basis)
    moved = _check_same(
        (frac @ basis.T + origin, numbers), (placed, anchor_species[owner]), cell, basis, symprec
    )
    key = np.round(anchors, 4) % 1.0
    order = np.lexsort((key[:, 2], key[:, 1], key[:, 0], anchor_species, rows))
    return Standard(
        number,
        cell,
        rows[order],
        anchors[order],
        anchor_species[order],
        symprec,
        placed_error,
        moved,
    )


def _dataset(lattice: Floats, frac: Floats, numbers: Ints, symprec: float) -> Any:
    import spglib

    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        raise NoSymmetry("not finite")  # spglib would end the process
    with warnings.catch_warnings():
        # It announces the end of its old way to report errors; both ways are understood here.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            facts = spglib.get_symmetry_dataset((lattice, frac, numbers), symprec=symprec)
        except Exception as error:  # the class of its errors changed between versions
            raise NoSymmetry("spglib finds no group") from error
    if facts is None:
        raise NoSymmetry("spglib finds no group")
    return facts


def _orbit_ids(facts: Any) -> Ints:
    """Orbit of each atom of the standard cell, any distinct numbers."""
    primitive = np.full(int(np.max(facts.mapping_to_primitive)) + 1, -1, dtype=np.int64)
    primitive[facts.mapping_to_primitive] = facts.crystallographic_orbits
    return np.asarray(primitive[facts.std_mapping_to_primitive])


def _orbits(
    table: Tables, number: int, cell: Floats, atoms: Floats, orbit: Ints
) -> tuple[Ints, Floats, list[Ints]]:
    """Position row, anchor and atoms of each orbit; the atom chosen as anchor is the first."""
    first, last = table.first_position[number - 1], table.first_position[number]
    leading = table.first_operation[first:last]
    on_form = np.einsum("wij,aj->wai", table.rotation[leading], atoms)
    on_form = on_form + table.translation[leading][:, None]
    distance = _length(on_form - atoms, cell)
    rows, anchors, members = [], [], []
    for here in np.unique(orbit):
        atom = np.flatnonzero(orbit == here)
        fits = (distance[:, atom] < PLACED_WITHIN_ANG) & (
            table.multiplicity[first:last] == len(atom)
        )[:, None]
        if not fits.any():
            raise NoSymmetry("an orbit fits no Wyckoff position")
        which = int(fits.any(1).argmax())
        candidates = on_form[which, atom[fits[which]]]
        candidates = candidates - np.floor(candidates)
        key = np.round(candidates, 4) % 1.0
        chosen = np.lexsort((key[:, 2], key[:, 1], key[:, 0]))[0]
        rows.append(first + which)
        anchors.append(candidates[chosen])
        members.append(atom)
    return np.array(rows), np.stack(anchors), members


def _place(table: Tables, rows: Ints, anchors: Floats) -> tuple[Floats, Ints]:
    """All atoms (A, 3), orbit by orbit, and the orbit of each."""
    count = table.multiplicity[rows]
    owner = np.repeat(np.arange(len(rows)), count)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    operation = table.first_operation[rows][owner] + step
    placed = np.einsum("aij,aj->ai", table.rotation[operation], anchors[owner])
    placed = placed + table.translation[operation]
    return placed - np.floor(placed), owner


def _check_placed(
    placed: Floats, owner: Ints, cell: Floats, atoms: Floats, members: list[Ints]
) -> float:
    """Largest distance of a placed atom from its atom of the standard cell, Å."""
    worst = 0.0
    for number, atom in enumerate(members):
        distance = _length(placed[owner == number][:, None] - atoms[atom][None], cell)
        nearest = distance.argmin(1)
        worst = max(worst, float(distance.min(1).max()))
        if worst > PLACED_WITHIN_ANG or len(set(nearest.tolist())) != len(atom):
            raise NoSymmetry("placed orbits are not the standard cell")
    apart = _length(placed[:, None] - placed[None], cell)
    np.fill_diagonal(apart, np.inf)
    if len(placed) > 1 and apart.min() < _OVERLAP_ANG:
        raise NoSymmetry("atoms merge in the symmetric cell")
    return worst


def _check_strain(lattice: Floats, cell: Floats, basis: Floats) -> None:
    """Compare the shapes of the input cell, brought to the new basis, and of the standard cell."""
    before = np.linalg.inv(basis).T @ lattice
    if np.linalg.det(before) * np.linalg.det(cell) <= 0:
        raise NoSymmetry("the standard cell is a mirror image")
    # Rows differ by a rotation: before^-1 @ cell = (1 + strain) @ rotation.
    stretch = np.linalg.svd(np.linalg.solve(before, cell), compute_uv=False)
    if np.abs(stretch - 1).max() > MAX_STRAIN:
        raise NoSymmetry("the standard cell is deformed")


def _check_same(
    given: tuple[Floats, Ints],
    placed: tuple[Floats, Ints],
    cell: Floats,
    basis: Floats,
    symprec: float,
) -> float:
    """Largest distance of an input atom from the symmetric structure, Å, looked at both ways."""
    inverse = np.linalg.inv(basis)
    ways = (
        (given, placed, np.eye(3), cell),
        (placed, given, inverse, basis.T @ cell),
    )
    worst = 0.0
    for (here, z_here), (there, z_there), into, lattice in ways:
        distance = _length((here[:, None] - there[None]) @ into.T, lattice)
        distance[z_here[:, None] != z_there[None]] = np.inf
        worst = max(worst, float(distance.min(1).max()))
    if worst > 2 * symprec:
        raise NoSymmetry("the symmetric cell is not the input")
    return worst


def _length(difference: Floats, lattice: Floats) -> Floats:
    """Length in Å of differences of fractional coordinates (..., 3), to the nearest whole cell.

    Exact where it is short against the cell, which is all that is asked.
    """
    difference = difference - np.round(difference)
    return np.asarray(np.sqrt(((difference @ lattice) ** 2).sum(-1)))
