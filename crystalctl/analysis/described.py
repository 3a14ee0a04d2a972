"""One structure -> what the metrics of generation and prediction need of it."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from crystalctl.analysis.charges import smact_valid
from crystalctl.analysis.fingerprints import (
    Array,
    cached_site_fingerprint,
    composition_fingerprint,
    structure_key,
)
from crystalctl.analysis.reduction import Cell
from crystalctl.analysis.validity import (
    MAX_LENGTH_ANG,
    MAX_VOLUME_PER_ATOM,
    MIN_DISTANCE_ANG,
    MIN_VOLUME_PER_ATOM,
)
from crystalctl.errors import CrystalctlError
from crystalctl.symmetry.tables import LETTERS, tables

SYMPREC_ANG = 0.1
"""Tolerance of the groups and Wyckoff positions whose distributions are compared."""
MIN_VOLUME_ANG3 = 0.1
Template = tuple[int, tuple[tuple[str, int], ...]]
"""Space group, and (Wyckoff letter, how often it is occupied) sorted by letter."""


@dataclass(frozen=True)
class Described:
    """Facts of one structure.

    ``reason``: why there is no structure, else empty. ``struct_valid``, ``comp_valid``: CDVAE's
    tests (``comp_valid`` None = smact is not installed). ``strange``: why the cell cannot be
    compared with others, else empty. ``density`` g/cm³. ``site`` (61,) None = no fingerprint,
    ``composition`` (132,). ``with_site``: whether it was asked for.
    """

    reason: str
    formula: str = ""
    reduced: str = ""
    n_atoms: int = 0
    n_elements: int = 0
    density: float | None = None
    volume: float | None = None
    struct_valid: bool = False
    comp_valid: bool | None = None
    strange: str = ""
    group: int = 0
    template: Template | None = None
    freedoms: tuple[int, ...] = ()
    site: Array | None = None
    composition: Array | None = None
    with_site: bool = False

    @property
    def valid(self) -> bool:
        """CDVAE's validity: both tests, and a fingerprint where one was asked for."""
        made = self.site is not None or not self.with_site
        return self.struct_valid and self.comp_valid is not False and made


@dataclass(frozen=True)
class Wanted:
    """How much to find out: fingerprints of the sites (slow), where to keep them, SMACT."""

    sites: bool = True
    cache: Path | None = None
    smact: bool = True


def describe(cell: Cell, wanted: Wanted) -> Described:
    """Facts of one cell, see ``Described``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen and spglib comment on every odd structure
        return _describe(cell, wanted)


def _describe(cell: Cell, wanted: Wanted) -> Described:
    lattice, frac, numbers = cell
    if not len(numbers):
        return Described("no atoms")
    from pymatgen.core import Composition, Element, Lattice, Structure

    counts = Counter(int(z) for z in numbers)
    symbols = {Element.from_Z(z).symbol: n for z, n in sorted(counts.items())}
    composition = Composition(symbols)
    facts = Described(
        "",
        composition.formula.replace(" ", ""),
        composition.reduced_formula,
        len(numbers),
        len(counts),
        comp_valid=smact_valid(symbols) if wanted.smact else None,
        composition=composition_fingerprint(symbols),
        with_site=wanted.sites,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(lattice, axis=1)
        volume = float(abs(np.linalg.det(lattice)))
    if not (np.isfinite(volume) and np.isfinite(frac).all()):
        return replace(facts, strange="not finite")
    if lengths.min() <= 0 or volume < MIN_VOLUME_ANG3:
        return replace(facts, strange="cell without volume", volume=volume)
    structure = Structure(Lattice(lattice), list(numbers), frac)
    facts = replace(
        facts,
        density=float(structure.density),
        volume=volume,
        struct_valid=apart(structure),
        strange=_strange(lengths, volume, len(numbers)),
    )
    if not facts.strange:
        facts = _with_symmetry(facts, cell)
    if wanted.sites:
        key = structure_key(lattice, frac, numbers)
        facts = replace(facts, site=cached_site_fingerprint(structure, key, wanted.cache))
    return facts


def describe_all(cells: Sequence[Cell | None], wanted: Wanted) -> list[Described | None]:
    """Facts of many cells, None for None. Runs in worker processes."""
    # spglib writes straight to the terminal about every odd structure.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    return [None if cell is None else _safely(cell, wanted) for cell in cells]


def _safely(cell: Cell, wanted: Wanted) -> Described:
    try:
        return describe(cell, wanted)
    except CrystalctlError:
        raise
    except Exception as error:  # one structure of ten thousand must not cost the others
        return Described(f"cannot be described: {type(error).__name__} {error}")


def apart(structure: Any) -> bool:
    """CDVAE's structural validity: every two atoms at least 0.5 Å apart, volume 0.1 Å³ or more.

    Distances to the images of the same atom do not count there. Ref: Xie et al.,
    arXiv:2110.06197, Sec. 5.2.
    """
    if structure.volume < MIN_VOLUME_ANG3:
        return False
    distances = np.array(structure.distance_matrix)
    np.fill_diagonal(distances, np.inf)
    return bool(distances.min() >= MIN_DISTANCE_ANG)


def _strange(lengths: Array, volume: float, n_atoms: int) -> str:
    """Cells on which reductions and matching may not end."""
    if lengths.max() > MAX_LENGTH_ANG:
        return f"cell length above {MAX_LENGTH_ANG:g} Å"
    if volume / float(lengths.prod()) < 1e-3:
        return "cell angles without volume"
    if volume / n_atoms > MAX_VOLUME_PER_ATOM:
        return f"volume per atom above {MAX_VOLUME_PER_ATOM:g} Å³"
    if volume / n_atoms < MIN_VOLUME_PER_ATOM:
        return f"volume per atom below {MIN_VOLUME_PER_ATOM} Å³"
    return ""


def _with_symmetry(facts: Described, cell: Cell) -> Described:
    import spglib

    try:
        found = spglib.get_symmetry_dataset(
            (cell[0], cell[1], [int(z) for z in cell[2]]), symprec=SYMPREC_ANG
        )
    except Exception:  # the class of its errors changed between versions
        found = None
    if found is None:
        return facts
    # One letter for each orbit of the primitive cell: atoms that are copies count once.
    letters = {
        int(orbit): found.wyckoffs[i] for i, orbit in enumerate(found.crystallographic_orbits)
    }
    occupied = Counter(letters.values())
    table, number = tables(), int(found.number)
    first = int(table.first_position[number - 1])
    freedoms = tuple(
        int(table.freedom[first + LETTERS.index(letter)])
        for letter, times in sorted(occupied.items())
        for _ in range(times)
    )
    template = (number, tuple(sorted(occupied.items())))
    return replace(facts, group=number, template=template, freedoms=freedoms)
