"""Make ``tables.safetensors`` from PyXtal, checked against spglib: for developers, not at run time.

    python -m crystalctl.symmetry.build

PyXtal knows the Wyckoff positions, spglib the groups; the operations of each group must be the same
set in both, and the file is not written otherwise.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.errors import CrystalctlError
from crystalctl.symmetry.build_normaliser import relabellings
from crystalctl.symmetry.groups import FAMILIES, normalise_symbol
from crystalctl.symmetry.tables import (
    FORMAT_VERSION,
    LETTERS,
    N_GROUPS,
    PATH,
    PULL_DENOMINATOR,
    TRANSLATION_DENOMINATOR,
    Floats,
    Ints,
)

N_HALL = 530
_OLD_SYMBOLS = {
    "Abm2": 39, "Aba2": 41, "Cmca": 64, "Cmma": 67, "Ccca": 68,
}  # fmt: skip
"""Names before the double glide plane e (International Tables, 1992)."""
Operations = tuple[Ints, Ints]
"""Rotation parts (n, 3, 3) and translations (n, 3) in 24ths."""


def build() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """All arrays of the file and its header. Raises ``CrystalctlError`` on any disagreement."""
    halls = default_halls()
    groups: dict[str, list[Any]] = {}
    positions: dict[str, list[Any]] = {}
    pieces: dict[str, list[NDArray[Any]]] = {}
    texts: dict[str, list[str]] = {"symbols": [], "point_groups": [], "families": []}
    site_symbols: dict[str, int] = {}
    first_position, first_operation = [0], [0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(1, N_GROUPS + 1):
            source = _pyxtal_group(number)
            general = operations_of(source[0])
            hall = int(source.hall_number)
            _check_against_spglib(number, hall, general)
            _append(groups, _group_row(number, hall, halls[number], general))
            texts["symbols"].append(str(source.symbol))
            texts["point_groups"].append(str(source.point_group))
            texts["families"].append(family(number))
            for position in sorted(source, key=lambda p: LETTERS.index(p.letter)):
                row, operation = _position(position, general)
                row["group"] = number
                row["site_symmetry"] = site_symbols.setdefault(
                    site_symbol(position), len(site_symbols)
                )
                _append(positions, row)
                _append(pieces, operation)
                first_operation.append(first_operation[-1] + len(operation["coset"]))
            first_position.append(len(positions["letter"]))
    arrays = {name: np.array(values) for name, values in (groups | positions).items()}
    arrays |= {name: np.concatenate(values) for name, values in pieces.items()}
    arrays["first_position"] = np.array(first_position)
    arrays["first_operation"] = np.array(first_operation)
    arrays |= _relabellings(arrays, texts)
    header = texts | {"site_symbols": list(site_symbols), "aliases": aliases(texts["symbols"])}
    return _narrow(arrays), {"kind": "symmetry", "version": FORMAT_VERSION, **header}


def _relabellings(
    arrays: dict[str, NDArray[Any]], texts: dict[str, list[str]]
) -> dict[str, NDArray[Any]]:
    """The permutations of all groups, one after the other, and where those of each start."""
    translation = arrays["translation"] / TRANSLATION_DENOMINATOR
    source = SimpleNamespace(**(arrays | texts | {"translation": translation}))
    found = [relabellings(number, source).ravel() for number in range(1, N_GROUPS + 1)]
    starts = np.cumsum([0, *map(len, found)])
    return {"relabelling": np.concatenate(found), "first_relabelling": starts}


def _group_row(number: int, hall: int, hall_spglib: int, general: Operations) -> dict[str, Any]:
    free, fixed = lattice_rule(number)
    return {
        "hall": hall,
        "hall_spglib": hall_spglib,
        "origin_shift": origin_shift(number, hall_spglib, general),
        "lattice_free": free,
        "lattice_fixed": fixed,
        "metric": metric(number),
    }


def _append(columns: dict[str, list[Any]], row: dict[str, Any]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _narrow(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Each integer array in the smallest type that holds it."""
    out = {}
    for name, values in arrays.items():
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        elif values.dtype.kind == "i":
            kinds = (np.int8, np.uint8, np.int16, np.int32)
            fits = (k for k in kinds if (values.astype(k) == values).all())
            values = values.astype(next(fits))
        out[name] = np.ascontiguousarray(values)
    return out


def _pyxtal_group(number: int) -> Any:
    from pyxtal.symmetry import Group

    return Group(number)


def operations_of(position: Any) -> Operations:
    """Operations of a PyXtal position, translations in [0, 24) 24ths."""
    rotation = np.stack([op.rotation_matrix for op in position.ops])
    translation = np.stack([op.translation_vector for op in position.ops])
    return _whole(rotation), _whole(translation * TRANSLATION_DENOMINATOR) % TRANSLATION_DENOMINATOR


def _spglib(function: str, *args: Any) -> Any:
    import spglib

    with warnings.catch_warnings():
        # It announces the end of its old way to report errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(spglib, function)(*args)


def database_operations(hall: int) -> Operations:
    """Operations of a hall number in spglib's database."""
    found = _spglib("get_symmetry_from_database", hall)
    translation = _whole(found["translations"] * TRANSLATION_DENOMINATOR)
    return _whole(found["rotations"]), translation % TRANSLATION_DENOMINATOR


def _whole(values: Any) -> Ints:
    whole: Ints = np.round(values).astype(np.int64)
    if np.abs(values - whole).max() > 1e-4:
        raise CrystalctlError("an operation is not a whole number of 24ths")
    return whole


def as_set(operations: Operations) -> set[tuple[int, ...]]:
    """Operations as a set, to compare two lists whatever their order."""
    rotation, translation = operations
    joined = np.concatenate([rotation.reshape(-1, 9), translation], 1)
    return {tuple(row) for row in joined.tolist()}


def _check_against_spglib(number: int, hall: int, general: Operations) -> None:
    if int(_spglib("get_spacegroup_type", hall).number) != number:
        raise CrystalctlError(f"hall number {hall} is not of group {number} in spglib")
    if as_set(database_operations(hall)) != as_set(general):
        raise CrystalctlError(f"PyXtal and spglib differ about the operations of group {number}")


def default_halls() -> dict[int, int]:
    """The hall number that spglib standardises each group to: the first of the group."""
    halls: dict[int, int] = {}
    for hall in range(1, N_HALL + 1):
        halls.setdefault(int(_spglib("get_spacegroup_type", hall).number), hall)
    return halls


def origin_shift(number: int, hall: int, general: Operations) -> Ints:
    """The shift p (24ths) with x_ours = x_hall + p for the same crystal in two settings.

    Taken from PyXtal and not searched for: a shift that differs by an element of the normaliser
    gives the same operations with other Wyckoff letters. Raises ``CrystalctlError`` where the
    settings differ by more than this shift.
    """
    from pyxtal.symmetry import HALL_TABLE, abc2matrix

    rotation, translation = database_operations(hall)
    if as_set((rotation, translation)) == as_set(general):
        return np.zeros(3, dtype=np.int64)
    basis, vector = abc2matrix(HALL_TABLE["P"][hall - 1])
    shift = _whole(np.asarray(vector) * TRANSLATION_DENOMINATOR) % TRANSLATION_DENOMINATOR
    moved = (translation + shift - rotation @ shift) % TRANSLATION_DENOMINATOR
    if not np.array_equal(basis, np.eye(3)) or as_set((rotation, moved)) != as_set(general):
        raise CrystalctlError(f"two settings of group {number} differ by more than the origin")
    return shift


def _position(position: Any, general: Operations) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The facts of one position and of its operations."""
    rotation, translation = operations_of(position)
    images = general[0] @ rotation[0]
    moved = (general[0] @ translation[0] + general[1]) % TRANSLATION_DENOMINATOR
    same = (images[None] == rotation[:, None]).all((2, 3))
    same &= (moved[None] == translation[:, None]).all(2)
    if not same.any(1).all() or not _idempotent(rotation[0], translation[0]):
        raise CrystalctlError(f"position {position.letter} of group {position.number} is no orbit")
    coset = same.argmax(1)
    # Vectors that the site symmetry leaves alone are the tangent space of the position, and the
    # mean over the site symmetry is the orthogonal projector on it in every invariant metric.
    tangent = general[0][same[0]].mean(0)
    inverse = np.linalg.inv(general[0][coset])
    pull = _exact(tangent @ inverse * PULL_DENOMINATOR)
    row = {
        "letter": LETTERS.index(position.letter),
        "multiplicity": len(rotation),
        "freedom": int(np.linalg.matrix_rank(rotation[0])),
    }
    if len(rotation) * same[0].sum() != len(general[0]):
        raise CrystalctlError(
            f"position {position.letter} of {position.number}: wrong multiplicity"
        )
    columns = {"rotation": rotation, "translation": translation, "pull": pull, "coset": coset}
    return row, columns


def _exact(values: Floats) -> Ints:
    whole = np.round(values).astype(np.int64)
    if np.abs(values - whole).max() > 1e-9:
        raise CrystalctlError(f"a projector is not a whole number of {PULL_DENOMINATOR}ths")
    return whole


def _idempotent(rotation: Ints, translation: Ints) -> bool:
    """Whether placing the anchor twice is placing it once."""
    again = (rotation @ translation) % TRANSLATION_DENOMINATOR
    return bool((rotation @ rotation == rotation).all() and not again.any())


def site_symbol(position: Any) -> str:
    """The oriented site-symmetry symbol, such as ``m.m2``."""
    position.get_site_symmetry()
    return str(position.site_symm)


def family(number: int) -> str:
    """Crystal family of a group."""
    return FAMILIES[int(np.searchsorted([2, 15, 74, 142, 194], number))]


def lattice_rule(number: int) -> tuple[list[bool], list[float]]:
    """Which of k1..k6 are free, and the values of the others. Ref: Sec. 4.1, arXiv:2402.03992."""
    free = {
        "triclinic": "123456",
        "monoclinic": "2456",
        "orthorhombic": "456",
        "tetragonal": "56",
        "hexagonal": "56",
        "cubic": "6",
    }[family(number)]
    fixed = [0.0] * 6
    if family(number) == "hexagonal":
        fixed[0] = -math.sqrt(2) / 4 * math.log(3)
    return [str(k) in free for k in range(1, 7)], fixed


def metric(number: int) -> Floats:
    """Gram matrix of a = b = c = 1 with γ = 120° for hexagonal axes, 90° otherwise."""
    out = np.eye(3)
    if family(number) == "hexagonal":
        out[0, 1] = out[1, 0] = -0.5
    return out


def aliases(symbols: list[str]) -> dict[str, int]:
    """Look-up keys of all spellings -> number; an ambiguous one is left out, if not standard."""
    found: dict[str, set[int]] = {}
    for number, text in _spellings():
        found.setdefault(normalise_symbol(text), set()).add(number)
    out = {key: numbers.pop() for key, numbers in found.items() if len(numbers) == 1}
    return out | {normalise_symbol(text): n for n, text in enumerate(symbols, start=1)}


def _spellings() -> Iterator[tuple[int, str]]:
    for hall in range(1, N_HALL + 1):
        facts = _spglib("get_spacegroup_type", hall)
        number = int(facts.number)
        for field in (facts.international_short, facts.international_full, facts.international):
            for text in str(field).split("="):
                yield number, text
                if 3 <= number <= 15:
                    # P 1 21/n 1 is written P21/n.
                    yield number, re.sub(r"(?<= )1( |$)", "", text)
                if number >= 195:
                    # Before 1983 the bar over the 3 of m-3 and m-3m was not written.
                    yield number, text.replace("-3", "3")
    for text, number in _OLD_SYMBOLS.items():
        yield number, text


def main(path: Path = PATH) -> None:
    """Write the file and say how large it is."""
    from safetensors.numpy import save_file

    arrays, header = build()
    save_file(arrays, path, metadata={"crystalctl": json.dumps(header, separators=(",", ":"))})
    print(
        f"{path}: {len(arrays['letter'])} positions, {len(arrays['coset'])} operations, "
        f"{path.stat().st_size} bytes"
    )


if __name__ == "__main__":
    main(*(Path(p) for p in sys.argv[1:2]))
