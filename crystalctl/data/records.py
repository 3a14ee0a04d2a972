"""One row of a source, still as text or JSON, and what becomes of it: a plain ``Entry``.

Runs in the worker processes, so it must not import torch; pymatgen and ASE are imported only by the
rows that need them.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ID_KEYS = ("id", "material_id", "mp_id", "entry_id", "structure_id", "name")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
MISSING = {"", "na", "n/a", "nan", "none", "null", "-"}
_CIF_BLOCK = re.compile(r"^(?=data_)", re.MULTILINE | re.IGNORECASE)
_NEGATIVE_LENGTH = re.compile(r"^\s*_cell_length_[abc]\s+['\"]?-", re.MULTILINE | re.IGNORECASE)
_SYMBOL = re.compile(r"([A-Z][a-z]?)[0-9]*[+-]?\Z")


class RowError(ValueError):
    """A row that cannot be used; ``reason`` is short and the same for all rows of its kind."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RawRow:
    """Row ``number`` (from 1) of a source, not yet parsed.

    ``kind`` picks the parser; ``payload`` is text, a mapping or a path; ``split`` and ``id`` hold
    where the row itself says nothing.
    """

    kind: str
    payload: Any
    source: str
    number: int
    id: str = ""
    split: str = ""


@dataclass
class Entry:
    """One structure as numbers: ``lattice`` (3, 3) Å rows, ``frac`` (n, 3), ``numbers`` (n,) Z.

    ``labels`` maps column to value: NaN = missing, ``None`` = present but not a number.
    """

    lattice: Array
    frac: Array
    numbers: NDArray[np.int64]
    id: str = ""
    split: str = ""
    labels: dict[str, float | None] = field(default_factory=dict)


def parse_row(raw: RawRow) -> Entry:
    """Parse one row; raises ``RowError`` when it holds no usable structure."""
    try:
        entry = _PARSERS[raw.kind](raw.payload)
    except RowError:
        raise
    except Exception as error:  # readers of foreign text raise anything at all
        raise RowError(f"the {raw.kind} row cannot be read", _short(error)) from error
    entry.id = entry.id or raw.id
    entry.split = entry.split or raw.split
    return entry


def row_id(raw: RawRow) -> str:
    """The id of a row that could not be parsed, as far as it can be told."""
    payload = raw.payload
    try:
        if raw.kind == "json" and isinstance(payload, str | bytes):
            payload = json.loads(payload)
        if isinstance(payload, Mapping):
            return _first(payload, ID_KEYS) or raw.id
    except (ValueError, RecursionError):
        pass
    return raw.id


def lattice_matrix(parameters: Array) -> Array:
    """(a, b, c, alpha, beta, gamma) in Å and degrees -> (3, 3) rows, a in xz and c along z.

    The numpy twin of ``crystal.lattice.from_parameters``: workers start without torch.
    """
    a, b, c = parameters[:3]
    cos_alpha, cos_beta, cos_gamma = np.cos(np.radians(parameters[3:]))
    sin_alpha, sin_beta = np.sin(np.radians(parameters[3:5]))
    if min(a, b, c) <= 0 or min(abs(sin_alpha), abs(sin_beta)) < 1e-8:
        raise RowError("degenerate cell", f"cell parameters {np.round(parameters, 4).tolist()}")
    cosine = (cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)
    if abs(cosine) > 1 + 1e-9:
        raise RowError("degenerate cell", f"cell parameters {np.round(parameters, 4).tolist()}")
    gamma_star = np.arccos(np.clip(cosine, -1.0, 1.0))
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [
                -b * sin_alpha * np.cos(gamma_star),
                b * sin_alpha * np.sin(gamma_star),
                b * cos_alpha,
            ],
            [0.0, 0.0, c],
        ]
    )


def _parse_json(payload: str | bytes | Mapping[str, Any]) -> Entry:
    """A JSON record: numbers, a pymatgen Structure or entry, or a record holding one or a CIF."""
    if isinstance(payload, str | bytes):
        try:
            payload = json.loads(payload)
        except ValueError as error:
            raise RowError("not valid JSON", _short(error)) from error
    if not isinstance(payload, Mapping):
        raise RowError("not a structure", f"JSON {type(payload).__name__}, not an object")
    if "sites" in payload and "lattice" in payload:
        return _from_pymatgen(payload)
    structure = payload.get("structure")
    if isinstance(structure, Mapping):
        entry = _from_pymatgen(structure)
        rest = {k: v for k, v in payload.items() if k not in {"structure", "parameters"}}
        data = rest.pop("data", None)
        if isinstance(data, Mapping):
            rest = {**data, **rest}
        return _with_columns(entry, rest)
    if isinstance(payload.get("cif"), str):
        return _parse_csv(payload)
    if {"lattice", "species", "frac"} <= payload.keys():
        return _from_numbers(payload)
    raise RowError("not a structure", f"JSON object with keys {sorted(payload)[:6]}")


def _from_numbers(record: Mapping[str, Any]) -> Entry:
    lattice = np.asarray(record["lattice"], dtype=np.float64)
    if lattice.shape not in ((6,), (3, 3)):
        raise RowError("wrong shape", f"lattice of shape {lattice.shape}, not 6 or 3x3 numbers")
    if lattice.shape == (6,):
        if not np.isfinite(lattice).all():
            raise RowError("numbers that are not finite", "lattice")
        lattice = lattice_matrix(lattice)
    numbers = np.array([atomic_number(s) for s in record["species"]], dtype=np.int64)
    frac = np.asarray(record["frac"] or np.zeros((0, 3)), dtype=np.float64)
    if frac.shape != (len(numbers), 3):
        raise RowError("wrong shape", f"{len(numbers)} species, frac of shape {frac.shape}")
    rest = {k: v for k, v in record.items() if k not in {"lattice", "species", "frac"}}
    return _with_columns(Entry(lattice, frac, numbers), rest)


def _from_pymatgen(structure: Mapping[str, Any]) -> Entry:
    """A pymatgen Structure dictionary, read directly: building the object costs 1 ms a row."""
    lattice = structure["lattice"]
    if "matrix" in lattice:
        matrix = np.asarray(lattice["matrix"], dtype=np.float64)
    else:
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        matrix = lattice_matrix(np.array([float(lattice[k]) for k in names]))
    numbers, frac = [], []
    for site in structure["sites"]:
        species = site["species"]
        if len(species) != 1 or abs(float(species[0].get("occu", 1)) - 1) > 1e-6:
            raise RowError("partial occupancy", str(site.get("label", "")))
        numbers.append(atomic_number(species[0]["element"]))
        frac.append(site["abc"])
    entry = Entry(matrix, np.asarray(frac, dtype=np.float64).reshape(-1, 3), np.array(numbers))
    properties = structure.get("properties")
    return _with_columns(entry, properties if isinstance(properties, Mapping) else {})


def _parse_csv(row: Mapping[str, Any]) -> Entry:
    cif = row.get("cif")
    if not isinstance(cif, str) or not cif.strip():
        raise RowError("no CIF", "the cif column is empty")
    return _with_columns(_parse_cif(cif), {k: v for k, v in row.items() if k != "cif"})


def _parse_cif_file(path: str) -> Entry:
    return _parse_cif(decoded(Path(path).read_bytes()))


def decoded(content: bytes) -> str:
    """Text of a CIF, unpacked; what Windows editors save begins with a mark of its encoding."""
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _raise_damage(payload: tuple[str, str]) -> Entry:
    """What the reader found to be no row at all."""
    raise RowError(*payload)


def _parse_cif(text: str) -> Entry:
    """The structure of a CIF, as pymatgen reads it, all atoms of the cell, not reduced."""
    from pymatgen.io.cif import CifParser

    # Journals add blocks (data_global) that hold no atoms; pymatgen takes them for broken ones.
    blocks = [b for b in _CIF_BLOCK.split(text) if "_atom_site_fract_x" in b.lower()]
    if len(blocks) > 1:
        raise RowError("several structures in one CIF", f"{len(blocks)} blocks with atoms")
    if _NEGATIVE_LENGTH.search(text):
        raise RowError("degenerate cell", "a cell length is negative")
    try:
        parser = CifParser(StringIO("".join(blocks) or text))
        structures = parser.parse_structures(primitive=False, on_error="raise")
    except Exception as error:
        raise RowError("CIF that cannot be read", _short(error)) from error
    structure = structures[0]
    numbers = []
    for site in structure:
        if not site.is_ordered:
            raise RowError("partial occupancy", f"{site.species_string} at {site.frac_coords}")
        numbers.append(atomic_number(site.specie.symbol))
    return Entry(
        np.array(structure.lattice.matrix), np.array(structure.frac_coords), np.array(numbers)
    )


def _parse_extxyz(text: str) -> Entry:
    """One frame of an extended XYZ file."""
    from ase.io import read

    lines = text.splitlines()
    if len(lines) < int(lines[0]) + 2:
        # ASE would first make room for as many atoms as the line promises.
        raise ValueError(f"frame cut short: {int(lines[0])} atoms, {len(lines)} lines")
    atoms = read(StringIO(text), format="extxyz")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise RowError("not periodic", "the frame has no lattice in three directions")
    columns = dict(atoms.info)
    if atoms.calc is not None:
        columns |= {k: v for k, v in atoms.calc.results.items() if np.ndim(v) == 0}
    if atoms.numbers.min(initial=1) < 1:
        raise RowError("unknown element", "X")
    frac = np.linalg.solve(np.asarray(atoms.cell).T, atoms.positions.T).T
    entry = Entry(np.array(atoms.cell), frac, np.asarray(atoms.numbers, dtype=np.int64))
    return _with_columns(entry, columns)


_PARSERS: dict[str, Callable[[Any], Entry]] = {
    "json": _parse_json,
    "csv": _parse_csv,
    "cif": _parse_cif_file,
    "extxyz": _parse_extxyz,
    "damaged": _raise_damage,
}


def _with_columns(entry: Entry, columns: Mapping[str, Any]) -> Entry:
    """Sort the remaining columns of a row into id, split and labels."""
    entry.id = _first(columns, ID_KEYS) or entry.id
    split = str(columns.get("split") or "").strip().lower()
    entry.split = SPLIT_NAMES.get(split, "") or entry.split
    for name, value in columns.items():
        if name and name != "split" and name not in ID_KEYS and not name.startswith(("@", "Unnam")):
            entry.labels[name] = _number(value)
    return entry


def _number(value: Any) -> float | None:
    """A label as a number; NaN where it is missing, ``None`` where it is something else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return float("nan")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if np.ndim(value) == 0 and isinstance(value, _SCALARS) else None


_SCALARS = (bool, int, float, np.bool_, np.integer, np.floating)


def _first(columns: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = columns.get(key)
        if isinstance(value, str | int) and str(value).strip():
            return str(value).strip()
    return ""


@cache
def atomic_number(symbol: str | int) -> int:
    """Z of a symbol (``Fe``, ``Fe3+``, ``D``) or of a number from 1 to 100."""
    from ase.data import atomic_numbers

    if isinstance(symbol, int):
        z = symbol
    else:
        match = _SYMBOL.match(symbol)
        name = match.group(1) if match else symbol
        z = 1 if name in {"D", "T"} else atomic_numbers.get(name, 0)
    if not 1 <= z <= 100:
        raise RowError("unknown element", repr(symbol))
    return int(z)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200]


def csv_rows(text: Any) -> csv.DictReader[str]:
    """Rows of a CSV file object, with room for long CIFs in a cell."""
    csv.field_size_limit(2**31 - 1)
    return csv.DictReader(text)
