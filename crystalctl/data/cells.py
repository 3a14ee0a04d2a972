"""Make entries uniform: checks, Niggli cell in one orientation, symmetry facts.

Runs in the worker processes, so it must not import torch. A worker gets a chunk of raw rows and
gives back a few packed arrays, which keeps pickling out of the way.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.data.records import (
    Array,
    Entry,
    RawRow,
    RowError,
    lattice_matrix,
    parse_row,
    row_id,
)
from crystalctl.symmetry.standard import LADDER_ANG, NoSymmetry, Standard, standardise

MIN_VOLUME = 0.1
"""Smallest cell volume accepted, Å³."""
MIN_SPACING = 0.2
"""Smallest distance between opposite faces of the reduced cell accepted, Å."""
MIN_DISTANCE = 0.1
"""Two atoms nearer than this (Å) are one atom written twice; anything further apart is kept."""
MAX_LENGTH = 10_000.0
"""Longest cell edge accepted, Å; beyond it single precision overflows in training."""
MAX_FRAC = 1e6
"""Largest fractional coordinate accepted; beyond it the place within the cell is rounded away."""
_PAIRS_AT_ONCE = 1 << 20


NIGGLI_TOLERANCES = (1e-4, 1e-5, 1e-3, 1e-6)
"""Å², tried in turn: with some rounded cells the reduction runs in circles at one of them."""


@dataclass(frozen=True)
class Options:
    """What to do with each row; ``symprec`` in Å, ``split`` overrides the split of every row."""

    symprec: float = 0.1
    primitive: bool = False
    split: str = ""
    max_atoms: int | None = None


@dataclass
class Chunk:
    """The rows of one chunk that can be used, packed, and a list of the others.

    ``lattice`` (C, 3, 3), ``frac`` (A, 3), ``species`` (A,), ``wyckoff`` (A,), ``orbit`` (A,).
    """

    lattice: Array
    frac: Array
    species: NDArray[np.int64]
    wyckoff: NDArray[np.int64]
    orbit: NDArray[np.int64]
    n_atoms: list[int] = field(default_factory=list)
    space_group: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    labels: list[dict[str, float | None]] = field(default_factory=list)
    standard: list[Standard | str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    too_large: int = 0
    not_reduced: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One finished crystal; see ``Chunk`` for the arrays."""

    lattice: Array
    frac: Array
    numbers: NDArray[np.int64]
    space_group: int
    wyckoff: NDArray[np.int64]
    orbit: NDArray[np.int64]
    reduced: bool
    standard: Standard | str


def prepare_chunk(rows: Sequence[RawRow], options: Options) -> Chunk:
    """Parse and standardise some rows; bad ones end in ``rejected`` with a reason."""
    done: list[tuple[Cell, Entry]] = []
    rejected, too_large = [], 0
    # spglib reports to stderr each time it has to tighten a tolerance, in the middle of a progress
    # bar; a structure without a group is counted instead. Read by its C code at each call.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    with warnings.catch_warnings():
        # Third-party readers warn about every odd CIF; what matters is counted as a reason.
        warnings.simplefilter("ignore")
        for raw in rows:
            entry = None
            try:
                entry = parse_row(raw)
                cell = standard_cell(entry, options)
            except Exception as error:  # numerical libraries raise anything on strange cells
                if not isinstance(error, RowError):
                    error = RowError("the cell cannot be standardised", repr(error)[:200])
                name = entry.id if entry is not None else row_id(raw)
                rejected.append(_rejection(raw, name, error))
                continue
            if options.max_atoms is not None and len(cell.numbers) > options.max_atoms:
                too_large += 1
                continue
            done.append((cell, entry))
    chunk = _pack(done, options)
    chunk.rejected, chunk.too_large = rejected, too_large
    return chunk


def _rejection(raw: RawRow, name: str, error: RowError) -> dict[str, Any]:
    facts = {"source": raw.source, "row": raw.number, "id": name, "reason": error.reason}
    return facts | ({"detail": error.detail} if error.detail else {})


def _pack(done: Sequence[tuple[Cell, Entry]], options: Options) -> Chunk:
    cells = [cell for cell, _ in done]
    empty = np.zeros(0, dtype=np.int64)
    return Chunk(
        np.stack([c.lattice for c in cells]) if cells else np.zeros((0, 3, 3)),
        np.concatenate([c.frac for c in cells]) if cells else np.zeros((0, 3)),
        np.concatenate([c.numbers for c in cells]) if cells else empty,
        np.concatenate([c.wyckoff for c in cells]) if cells else empty,
        np.concatenate([c.orbit for c in cells]) if cells else empty,
        [len(c.numbers) for c in cells],
        [c.space_group for c in cells],
        [e.id for _, e in done],
        [options.split or e.split for _, e in done],
        [e.labels for _, e in done],
        [c.standard for c in cells],
        not_reduced=[e.id for c, e in done if not c.reduced],
    )


def standard_cell(entry: Entry, options: Options) -> Cell:
    """Check an entry and bring it to its Niggli cell with symmetry facts.

    Raises ``RowError`` for numbers that are not finite, a degenerate cell, atoms on top of each
    other, or no atoms at all.
    """
    lattice, frac, numbers = entry.lattice, entry.frac, entry.numbers
    _check_numbers(lattice, frac, numbers)
    if options.primitive:
        lattice, frac, numbers = _primitive(lattice, frac, numbers, options.symprec)
    lattice, frac, reduced = niggli(lattice, frac)
    _check_geometry(lattice, frac)
    frac = frac - np.floor(frac)
    frac = np.where(frac.astype(np.float32) >= 1.0, 0.0, frac)
    import spglib

    structure = (lattice, frac, numbers)
    facts = _ask(spglib.get_symmetry_dataset, structure, symprec=options.symprec)
    number, wyckoff, orbit = symmetry(facts, len(numbers))
    ladder = (options.symprec, *(step for step in LADDER_ANG if step != options.symprec))
    standard: Standard | str
    try:
        standard = standardise(*structure, ladder, known=facts)
    except NoSymmetry as verdict:
        standard = str(verdict)
    return Cell(*structure, number, wyckoff, orbit, reduced, standard)


def niggli(lattice: Array, frac: Array) -> tuple[Array, Array, bool]:
    """The Niggli cell in the orientation of ``from_parameters``: lattice, frac, and whether found.

    The new basis is an integer combination of the old one, so coordinates follow exactly. Where the
    reduction fails its check the input cell is kept, only turned, and the flag is false.
    """
    import spglib

    found = lattice
    done = False
    for tolerance in NIGGLI_TOLERANCES:
        reduced = _ask(spglib.niggli_reduce, lattice, tolerance)
        if reduced is None or not np.isfinite(reduced).all():
            continue
        steps = np.linalg.solve(lattice.T, np.asarray(reduced).T).T
        whole = np.round(steps)
        if np.abs(steps - whole).max() < 1e-2 and abs(abs(np.linalg.det(whole)) - 1) < 1e-6:
            found = whole @ lattice
            frac = frac @ np.linalg.inv(whole)
            done = True
            break
    if np.linalg.det(found) < 0:
        # Turning a left-handed basis would mirror the crystal; the opposite basis spans the same
        # lattice with the same angles and is right-handed.
        found, frac = -found, -frac
    return _turned(found), frac, done


def _ask(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The answer of a spglib function, or None when it has none."""
    with warnings.catch_warnings():
        # It announces the end of its old way to report errors; both ways are understood here.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return function(*args, **options)
        except Exception:  # the class of its errors changed between versions
            return None


def _turned(lattice: Array) -> Array:
    """The same lattice turned to the ``from_parameters`` orientation."""
    lengths = np.linalg.norm(lattice, axis=1)
    unit = lattice / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    angles = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    return lattice_matrix(np.concatenate([lengths, angles]))


def symmetry(facts: Any, n_atoms: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Space group number, Wyckoff letter index and orbit of each atom; (0, 0s, own number) if none.

    ``facts`` is spglib's dataset or None; ``orbit`` the number of the first atom that the symmetry
    of the crystal maps here.
    """
    if facts is None:
        return 0, np.zeros(n_atoms, dtype=np.int64), np.arange(n_atoms)
    wyckoff = np.array([26 if w == "A" else ord(w) - ord("a") for w in facts.wyckoffs])
    _, first, member = np.unique(
        facts.crystallographic_orbits, return_index=True, return_inverse=True
    )
    return int(facts.number), wyckoff, first[member]


def _primitive(
    lattice: Array, frac: Array, numbers: NDArray[np.int64], symprec: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """The primitive cell within ``symprec``, atoms where they are; the same cell where none."""
    import spglib

    cell = _ask(
        spglib.standardize_cell,
        (lattice, frac, numbers),
        to_primitive=True,
        no_idealize=True,
        symprec=symprec,
    )
    if cell is None or len(numbers) % len(cell[2]):
        return lattice, frac, numbers
    return np.asarray(cell[0]), np.asarray(cell[1]), np.asarray(cell[2], dtype=np.int64)


def _check_numbers(lattice: Array, frac: Array, numbers: NDArray[np.int64]) -> None:
    if len(numbers) == 0:
        raise RowError("no atoms")
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        raise RowError("numbers that are not finite")
    if np.abs(lattice).max() > MAX_LENGTH or np.abs(frac).max() > MAX_FRAC:
        raise RowError("numbers out of range", f"over {MAX_LENGTH:g} Å or {MAX_FRAC:g} cells")
    if numbers.min() < 1 or numbers.max() > 100:
        raise RowError("unknown element", f"atomic numbers {sorted({*numbers.tolist()})}")
    volume = abs(float(np.linalg.det(lattice)))
    if volume < MIN_VOLUME:
        raise RowError("degenerate cell", f"volume {volume:.3g} Å³")


def _check_geometry(lattice: Array, frac: Array) -> None:
    """Reject flat cells and atoms on top of each other; ``lattice`` is a reduced cell."""
    spacing = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    if spacing.min() < MIN_SPACING:
        raise RowError("degenerate cell", f"{spacing.min():.3g} Å thick")
    if len(frac) < 2:
        return
    # Faces are at least 0.2 Å apart, so a vector shorter than 0.1 Å has every component within half
    # a cell and rounding finds it exactly; no search over images is needed.
    nearest = np.inf
    rows = max(1, _PAIRS_AT_ONCE // len(frac))
    for start in range(0, len(frac), rows):
        difference = frac[start : start + rows, None] - frac[None]
        difference -= np.round(difference)
        square = ((difference @ lattice) ** 2).sum(-1)
        own = np.arange(len(square))
        square[own, start + own] = np.inf
        nearest = min(nearest, float(np.sqrt(square.min())))
    if nearest < MIN_DISTANCE:
        raise RowError("overlapping atoms", f"{nearest:.3f} Å apart")
