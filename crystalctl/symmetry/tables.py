"""The shipped table of the 230 groups and their 1731 Wyckoff positions, as arrays.

Everything is in the standard setting of the International Tables: unique axis b, hexagonal axes for
the rhombohedral groups, origin choice 2. ``build.py`` makes the file; nothing is computed here.
Only numpy is used, so that worker processes need not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from crystalctl.errors import CrystalctlError

PATH = Path(__file__).with_name("tables.safetensors")
FORMAT_VERSION = 2
N_GROUPS = 230
TRANSLATION_DENOMINATOR = 24
"""Translations are stored as integers over this."""
PULL_DENOMINATOR = 12
"""The matrices of ``pull`` are stored as integers over this."""
LETTERS = "abcdefghijklmnopqrstuvwxyzA"
"""Wyckoff letter of index 0..26; A follows z, in group 47 only."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """Rows of groups, of positions and of operations; ``group`` numbers are 1..230.

    Groups (row = number - 1): ``first_position`` (231,), ``hall`` and ``hall_spglib`` (230,) the
    hall numbers of our setting and of spglib's default one, ``origin_shift`` (230, 3) with
    x_ours = x_spglib + shift, ``lattice_free`` (230, 6) bool and ``lattice_fixed`` (230, 6) the
    coefficients k1..k6 of ``docs/concepts/symmetry.md``, ``metric`` (230, 3, 3).

    Positions (1731, by group, then letter): ``group``, ``letter`` 0..26, ``multiplicity``,
    ``freedom`` 0..3, ``first_operation`` (1732,), ``site_symmetry`` (index of a symbol).

    ``relabelling`` holds, from ``first_relabelling`` (231,) on, the (M, P) permutations of the P
    positions of a group under its affine normaliser: entry [m, p] is what position p becomes.

    Operations (14433, by position): atom i of an orbit stands at ``rotation`` @ anchor +
    ``translation``; ``pull`` takes a vector there back to the anchor; ``coset`` is the row, among
    the operations of the general position, of a group operation that leads from atom 0 to atom i.
    """

    first_position: Ints
    hall: Ints
    hall_spglib: Ints
    origin_shift: Floats
    lattice_free: NDArray[np.bool_]
    lattice_fixed: Floats
    metric: Floats
    group: Ints
    letter: Ints
    multiplicity: Ints
    freedom: Ints
    site_symmetry: Ints
    first_operation: Ints
    rotation: Ints
    translation: Floats
    pull: Floats
    coset: Ints
    relabelling: Ints
    first_relabelling: Ints
    symbols: Sequence[str]
    point_groups: Sequence[str]
    families: Sequence[str]
    site_symbols: Sequence[str]
    aliases: Mapping[str, int]


@cache
def tables() -> Tables:
    """The tables, read once per process. Raises ``CrystalctlError`` if the file is damaged."""
    return read_tables(PATH)


def read_tables(path: Path) -> Tables:
    """Read a table file. Raises ``CrystalctlError`` if it is missing, damaged or foreign."""
    hint = "reinstall crystalctl"
    try:
        with safe_open(path, framework="np") as handle:
            header = json.loads((handle.metadata() or {}).get("crystalctl", "{}"))
            names = list(handle.keys())
            raw = {name: np.asarray(handle.get_tensor(name)) for name in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise CrystalctlError(f"the symmetry tables cannot be read ({error})", hint) from error
    if header.get("kind") != "symmetry" or header.get("version") != FORMAT_VERSION:
        raise CrystalctlError(f"{path} does not hold symmetry tables of this version", hint)
    fields: dict[str, Any] = {
        "origin_shift": raw.pop("origin_shift") / float(TRANSLATION_DENOMINATOR),
        "translation": raw.pop("translation") / float(TRANSLATION_DENOMINATOR),
        "pull": raw.pop("pull") / float(PULL_DENOMINATOR),
        "lattice_free": raw.pop("lattice_free").astype(bool),
        "lattice_fixed": raw.pop("lattice_fixed"),
        "metric": raw.pop("metric"),
    }
    fields |= {name: values.astype(np.int64) for name, values in raw.items()}
    for values in fields.values():
        # Everyone shares these arrays; a write would be a bug somewhere else.
        values.setflags(write=False)
    for name in ("symbols", "point_groups", "families", "site_symbols", "aliases"):
        fields[name] = header[name]
    return Tables(**fields)
