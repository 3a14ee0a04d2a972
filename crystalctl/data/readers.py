"""Sources of structures -> raw rows: CSV, CIF files, extxyz, JSON lines, pymatgen JSON.

Only splits a source into rows; parsing a row is ``records.parse_row``, in the worker processes.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from crystalctl.data.records import SPLIT_NAMES, RawRow, csv_rows
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


def read_rows(sources: Sequence[Path | str]) -> Iterator[RawRow]:
    """All rows of several sources, in order.

    Raises ``DataError`` for a source that is missing, of an unknown kind, damaged or empty.
    """
    for source in sources:
        for path in _files(Path(source)):
            yield from _read_file(path, Path(source))


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
    try:
        with _open(path) as text:
            if b"\0" in text.buffer.peek(_PEEK):  # type: ignore[attr-defined]
                raise DataError(f"{path} is not a text file in UTF-8", f"kinds: {SUPPORTED}")
            for number, (row_kind, payload, name) in enumerate(_PARTS[kind](text, path), start=1):
                yield RawRow(
                    row_kind, payload, str(path), number, name or f"{stem}-{number}", split
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged or cut short ({error})", "get the file again, or repack it"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _open(path: Path) -> TextIO:
    # A byte order mark would hide the first column's name or the first brace. One author's name in
    # Latin-1 must not cost the other rows.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _sniff_content(path: Path) -> str | None:
    try:
        with _open(path) as text:
            head = text.read(65536)
    except (OSError, EOFError, zlib.error):
        return None
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    if not lines:
        return None
    if lines[0].startswith(("{", "[")):
        return "json"
    if "cif" in [column.strip().strip('"') for column in lines[0].split(",")]:
        return "csv"
    if lines[0].isdigit() and len(lines) > 1 and "lattice=" in lines[1].lower():
        return "extxyz"
    return "cif" if any(line.startswith("_cell_length_a") for line in lines) else None


Part = tuple[str, Any, str]
"""Kind of row, payload, and an id where the source has one outside the row."""


def _csv_parts(text: TextIO, path: Path) -> Iterator[Part]:
    rows = csv_rows(text)
    columns = [name for name in rows.fieldnames or [] if name]
    if "cif" not in columns:
        raise DataError(
            f"{path} has no column named cif; its columns are: {', '.join(columns) or 'none'}",
            "rename the column that holds the CIF text to cif",
        )
    for row in rows:
        # A row longer than the header keeps its rest under None.
        yield "csv", {name: value for name, value in row.items() if name}, ""


def _jsonl_parts(text: TextIO, path: Path) -> Iterator[Part]:
    for line in text:
        if line.strip():
            yield "json", line, ""


def _json_parts(text: TextIO, path: Path) -> Iterator[Part]:
    content = text.read()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        if _is_object(content.lstrip().split("\n", 1)[0]):
            yield from (("json", line, "") for line in content.splitlines() if line.strip())
            return
        raise DataError(f"{path} is not valid JSON ({error})", f"kinds: {SUPPORTED}") from error
    if isinstance(document, Mapping):
        if _is_record(document):
            document = [document]
        elif isinstance(document.get("entries"), list):
            document = document["entries"]
        elif isinstance(document.get("structures"), list):
            document = document["structures"]
    if isinstance(document, Mapping):
        yield from (("json", value, str(name)) for name, value in document.items())
    elif isinstance(document, list):
        yield from (("json", value, "") for value in document)
    else:
        raise DataError(
            f"{path} holds a JSON {type(document).__name__}, not structures",
            "pymatgen JSON is a list of Structure dictionaries, or a dictionary id -> Structure",
        )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_record(document: Mapping[str, Any]) -> bool:
    return bool({"@class", "sites", "structure", "frac"} & document.keys())


def _extxyz_parts(text: TextIO, path: Path) -> Iterator[Part]:
    """Cut the text into frames: a count, a comment line, then one line per atom."""
    lines = iter(text)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.strip().isdecimal():
            # The frame borders are lost from here on, so nothing after can be trusted.
            raise DataError(
                f"{path}: frame {number} should begin with a number of atoms, "
                f"found {line.strip()[:40]!r}",
                "cut the file before that line, or write it again",
            )
        yield "extxyz", "".join([line, *islice(lines, int(line) + 1)]), ""


_PARTS = {
    "csv": _csv_parts,
    "jsonl": _jsonl_parts,
    "json": _json_parts,
    "extxyz": _extxyz_parts,
}
