"""Sources of structures -> raw rows: CSV, CIF files, extxyz, JSON lines, pymatgen JSON.

Only splits a source into rows; parsing a row is ``records.parse_row``, in the worker processes.
Damage never hides the rest: what was read before it counts, and it is a row of its own, rejected
with its reason.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from crystalctl.data.parts import PARTS, damaged
from crystalctl.data.records import SPLIT_NAMES, RawRow
from crystalctl.errors import DataError

SUPPORTED = (
    "CSV with a `cif` column (.csv), a .cif file or a folder of them, "
    "extended XYZ (.extxyz, .xyz), JSON lines (.jsonl), pymatgen JSON (.json); "
    "all but .cif also with .gz"
)
SUFFIXES = {
    ".csv": "csv",
    ".cif": "cif",
    ".extxyz": "extxyz",
    ".xyz": "extxyz",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
}

_PEEK = 8192
_BROKEN = (EOFError, zlib.error, csv.Error, OSError)
"""What reading a damaged or cut stream raises."""


def read_rows(sources: Sequence[Path | str]) -> Iterator[RawRow]:
    """All rows of several sources, in order; damaged places and empty files are rows too.

    Raises ``DataError`` for a source that is missing or of an unknown kind. In a folder such a file
    is a damaged row.
    """
    for source in map(Path, sources):
        for path in _files(source):
            try:
                yield from _read_file(path, source)
            except DataError as error:
                if path == source:
                    raise
                kind, payload, _ = damaged("file that cannot be read", error.what)
                yield RawRow(kind, payload, str(path), 1, path.stem)


def sniff(path: Path) -> str:
    """Kind of a file from its suffix, and from its first bytes where the suffix says nothing."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None:
        kind = _sniff_content(path)
    if kind is None:
        raise DataError(f"{path} is not a kind of file that can be prepared", f"kinds: {SUPPORTED}")
    return kind


def _files(source: Path) -> list[Path]:
    """The files of a source: itself, the CIFs of a folder, or else its data files."""
    if not source.exists():
        raise DataError(f"no file or folder at {source}", f"kinds: {SUPPORTED}")
    if not source.is_dir():
        return [source]
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() == ".cif" and p.is_file())
    if files:
        return files
    files = sorted(p for p in source.iterdir() if p.is_file() and _known(p))
    if not files:
        raise DataError(f"the folder {source} holds no CIF and no data file", f"kinds: {SUPPORTED}")
    return files


def _known(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return not name.startswith(".") and any(name.endswith(s) for s in SUFFIXES)


def _read_file(path: Path, source: Path) -> Iterator[RawRow]:
    kind = sniff(path)
    if kind == "cif":
        name = str(path.relative_to(source).with_suffix("")) if source.is_dir() else path.stem
        split = SPLIT_NAMES.get(path.relative_to(source).parts[0], "") if source.is_dir() else ""
        yield RawRow("cif", str(path), str(path), 1, name, split)
        return
    stem = path.name.split(".")[0]
    split = SPLIT_NAMES.get(stem.lower(), "")
    number = 0
    try:
        with _open(path) as text:
            if b"\0" in text.buffer.peek(_PEEK):  # type: ignore[attr-defined]
                raise DataError(f"{path} is not a text file in UTF-8", f"kinds: {SUPPORTED}")
            for row_kind, payload, name in PARTS[kind](text, path):
                number += 1
                row_name = name or f"{stem}-{number}"
                yield RawRow(row_kind, payload, str(path), number, row_name, split)
        if number == 0:
            yield RawRow(*damaged("file without rows")[:2], str(path), 1, stem)
    except _BROKEN as error:
        row_kind, payload, _ = damaged(*_consequence(error, number))
        yield RawRow(row_kind, payload, str(path), number + 1, f"{stem}-{number + 1}")


def _consequence(error: Exception, rows_before: int) -> tuple[str, str]:
    """What a stream that breaks means for its rows: a reason, and more about it."""
    if isinstance(error, gzip.BadGzipFile) and rows_before:
        reason = "checksum that does not fit: rows of this file may be altered"
        return reason, f"{error}, after {rows_before} rows"
    return "damaged or cut short", f"{error}; the rest is lost"


def _open(path: Path) -> TextIO:
    # A byte order mark would hide the first column's name or the first brace. One author's name in
    # Latin-1 must not cost the other rows.
    try:
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        return path.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})", "check its permissions") from error


def _sniff_content(path: Path) -> str | None:
    try:
        with _open(path) as text:
            head = text.read(65536)
    except (*_BROKEN, DataError):
        return None
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if not lines or "\0" in head:  # an archive, say
        return None
    if lines[0].startswith(("{", "[")):
        return "json"
    if "cif" in [column.strip().strip('"').lower() for column in lines[0].split(",")]:
        return "csv"
    if lines[0].isdigit() and len(lines) > 1 and "lattice=" in lines[1].lower():
        return "extxyz"
    return "cif" if any(line.startswith("_cell_length_a") for line in lines) else None
