"""The text of a source cut into rows; what is damaged in it becomes a row that says so."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TextIO

from crystalctl.data.records import csv_rows
from crystalctl.errors import DataError

Part = tuple[str, Any, str]
"""Kind of row, payload, and an id where the source has one outside the row."""

JSON_KINDS = "pymatgen JSON is a list of Structure dictionaries, or a dictionary id -> Structure"
_LISTS = ("entries", "structures")
_RECORD = {"@class", "sites", "structure", "frac"}
_BETWEEN = re.compile(r"[\s,:]*")
_FRAME_COMMENT = re.compile(r"\b(lattice|properties)\s*=", re.IGNORECASE)


def damaged(reason: str, detail: str = "") -> Part:
    """A place that holds no readable row: rejected like a bad row, with this reason."""
    return "damaged", (reason, detail), ""


def csv_parts(text: TextIO, path: Path) -> Iterator[Part]:
    """Rows of a table with a ``cif`` column."""
    rows = csv_rows(text)
    columns = [name for name in rows.fieldnames or [] if name]
    key = next((name for name in columns if name.strip().lower() == "cif"), None)
    if key is None:
        raise DataError(
            f"{path} has no column named cif; its columns are: {', '.join(columns) or 'none'}",
            "rename the column that holds the CIF text to cif",
        )
    for row in rows:
        # A row longer than the header keeps its rest under None.
        yield "csv", {"cif" if n == key else n: value for n, value in row.items() if n}, ""


def jsonl_parts(text: TextIO, path: Path) -> Iterator[Part]:
    """Lines, empty ones left out."""
    for line in text:
        if line.strip():
            yield "json", line, ""


def json_parts(text: TextIO, path: Path) -> Iterator[Part]:
    """Structures of one JSON document; of a broken one, those that are whole before the break."""
    content, broken = _all_of(text)
    try:
        document = json.loads(content) if content.strip() else []
    except (ValueError, RecursionError) as error:
        if _is_object(content.lstrip().split("\n", 1)[0]):
            yield from (("json", line, "") for line in content.splitlines() if line.strip())
        else:
            whole = list(_whole_values(content))
            if not whole and broken is None:
                raise DataError(f"{path} is not valid JSON ({error})", JSON_KINDS) from error
            yield from whole
            if broken is None:
                yield damaged("damaged or cut short", f"not valid JSON: {error}; the rest is lost")
    else:
        yield from _structures(document, path)
    if broken is not None:
        raise broken


def _all_of(text: TextIO) -> tuple[str, Exception | None]:
    """All text that can be read, and what ended it before its end."""
    content, broken = b"", None
    try:
        # Not read(): it would throw away what came before the damage.
        while piece := text.buffer.read1():  # type: ignore[attr-defined]
            content += piece
    except (EOFError, zlib.error, OSError) as error:
        broken = error
    return content.decode("utf-8-sig", errors="replace"), broken


def _structures(document: Any, path: Path) -> Iterator[Part]:
    if isinstance(document, Mapping):
        if _RECORD & document.keys():
            document = [document]
        for name in _LISTS:
            if isinstance(document, Mapping) and isinstance(document.get(name), list):
                document = document[name]
    if isinstance(document, Mapping):
        yield from (("json", value, str(name)) for name, value in document.items())
    elif isinstance(document, list):
        yield from (("json", value, "") for value in document)
    else:
        what = f"{path} holds a JSON {type(document).__name__}, not structures"
        raise DataError(what, JSON_KINDS)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _whole_values(content: str, start: int = 0) -> Iterator[Part]:
    """The objects of a list or dictionary that cannot be read to its end, up to there."""
    decoder = json.JSONDecoder()
    at = len(content) - len(content[start:].lstrip())
    if content[at : at + 1] not in ("[", "{"):
        return
    named, name = content[at] == "{", ""
    at += 1
    try:
        while True:
            if named:
                name, at = decoder.raw_decode(content, _next(content, at))
                if name in _RECORD or not isinstance(name, str):
                    return
            at = _next(content, at)
            value, at = decoder.raw_decode(content, at)
            if isinstance(value, Mapping):
                yield "json", value, name
    except (ValueError, RecursionError):
        if name in _LISTS:
            yield from _whole_values(content, at)


def _next(content: str, at: int) -> int:
    found = _BETWEEN.match(content, at)
    return found.end() if found else at


def extxyz_parts(text: TextIO, path: Path) -> Iterator[Part]:
    """Frames: a count, a comment line, then one line per atom.

    Where the lines do not add up, reading goes on at the next count before a comment with a
    lattice; what lies between is one damaged row.
    """
    frame: list[str] = []
    left = 0
    lost = ""
    for line, following in pairwise(chain(text, [""])):
        is_count = line.strip().isdecimal()
        if left and not (is_count and _FRAME_COMMENT.search(following)):
            frame.append(line)
            left -= 1
        elif is_count and (not lost or _FRAME_COMMENT.search(following)):
            if frame:
                yield "extxyz", "".join(frame), ""
            frame, left, lost = [line], int(line) + 1, ""
        elif line.strip() and not lost:
            lost = line.strip()[:40]
            yield damaged("lines outside any frame", f"expected a number of atoms, found {lost!r}")
        if frame and not left:
            yield "extxyz", "".join(frame), ""
            frame = []
    if frame:
        yield "extxyz", "".join(frame), ""


PARTS = {"csv": csv_parts, "jsonl": jsonl_parts, "json": json_parts, "extxyz": extxyz_parts}
