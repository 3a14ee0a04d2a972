"""Anything people keep structures in -> rows; one that cannot be read is a row with its reason."""

from __future__ import annotations

import glob
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crystalctl.data.readers import SUFFIXES, SUPPORTED, read_rows, sniff
from crystalctl.data.records import Entry, RawRow, RowError, decoded, parse_row, row_id
from crystalctl.errors import DataError, InputError
from crystalctl.io.results import MANIFEST, RANKING, RAW

OnStep = Callable[[int, int], None]
KINDS = f"a run folder, {SUPPORTED}, or a .zip of them"
_MAX_MEMBER_BYTES = 2**31
_CHUNK = 32
_CIF_BLOCK = re.compile(r"^(?=data_)", re.MULTILINE | re.IGNORECASE)
_SERIAL_BELOW = 200


@dataclass(frozen=True)
class Row:
    """One structure of an input: ``entry`` (None where it could not be read, ``reason`` says why).

    ``rank``: place in its run's ranking, 0 = merged into another or unranked, None = no ranking.
    ``share``: of the votes of its run for its formula (of the samples, where nothing voted).
    ``drawn_by``: sources of the samples it stands for, as the run's summary has them.
    """

    source: str
    number: int
    id: str
    entry: Entry | None
    reason: str = ""
    rank: int | None = None
    share: float | None = None
    drawn_by: str = ""


@dataclass(frozen=True)
class Source:
    """One input to judge as a whole: ``files`` under ``base``; ``task`` of a run of ours, or ""."""

    name: str
    files: tuple[Path, ...]
    base: Path
    task: str = ""
    ranked: dict[int, int] = field(default_factory=dict, hash=False)
    """Rank by sample number, of the samples that represent a ranked structure."""
    shares: dict[int, float] = field(default_factory=dict, hash=False)
    """And their shares of the votes, see ``Row``."""
    drawn_by: dict[int, str] = field(default_factory=dict, hash=False)
    """And where they came from."""


def find_sources(paths: Sequence[Path | str]) -> list[Source]:
    """The inputs that ``paths`` name: files, folders, zips, globs; a folder of runs is several.

    Single CIFs given together (what a shell makes of ``*.cif``) are one input. Raises
    ``InputError`` for a path that is not there or a folder that holds nothing.
    """
    expanded: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.exists():
            expanded.append(path)
            continue
        hits = sorted(Path(p) for p in glob.glob(str(given), recursive=True))
        if not hits:
            raise InputError(f"no file or folder at {given}", f"give {KINDS}")
        expanded += hits
    single = [p for p in expanded if not p.is_dir() and p.suffix.lower() == ".cif"]
    sources: list[Source] = []
    if single:
        base = Path(os.path.commonpath([p.parent.absolute() for p in single]))
        single_files = tuple(p.absolute() for p in single)
        name = single[0].stem if len(single) == 1 else (base.name or "structures")
        sources.append(Source(name, single_files, base))
    for path in expanded:
        if path.is_dir():
            sources += _of_folder(path)
        elif path not in single:
            sources.append(Source(path.name.split(".")[0], (path,), path.parent))
    return _with_own_names(sources)


def _of_folder(folder: Path) -> list[Source]:
    if (folder / MANIFEST).is_file() and (folder / RAW).is_file():
        return [_run(folder)]
    runs = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}") if (p.parent / RAW).is_file())
    if runs:
        return [_run(run) for run in runs]
    if (folder / RANKING).is_file() and (folder / RAW).is_file():
        # Its CIFs are the same structures, without their energies.
        return [Source(folder.resolve().name, (folder / RAW,), folder)]
    # A link that leads nowhere is no file, but somebody meant a structure by it.
    every = sorted(p for p in folder.rglob("*") if not p.is_dir() and not p.name.startswith("."))
    files = [p for p in every if p.suffix.lower() == ".cif"]
    files = files or [p for p in every if _known(p)]
    if not files:
        what = f"the folder {folder} is empty" if not every else f"{folder} holds no structures"
        raise InputError(what, f"give {KINDS}")
    return [Source(folder.resolve().name, tuple(files), folder)]


def _known(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((*SUFFIXES, ".zip"))


def _run(folder: Path) -> Source:
    """A run of ours: all its samples, and which of them stand for a ranked structure."""
    task, ranked, shares, drawn_by = "", {}, {}, {}
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        task = str(manifest["request"]["task"])
        rows = json.loads((folder / "summary.json").read_text("utf-8"))["structures"]
        ranked = {int(row["sample"]): int(row["rank"]) for row in rows}
        shares = _shares(rows)
        drawn_by = {int(row["sample"]): str(row.get("source", "")) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):  # an unfinished or damaged run has no ranks
        pass
    return Source(folder.resolve().name, (folder / RAW,), folder, task, ranked, shares, drawn_by)


def _shares(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Sample number -> part of the votes among those of its formula, or where nothing voted for
    that of the merged samples."""
    voted = {row["formula"] for row in rows if row.get("votes")}
    weights = [float(r.get("votes" if r["formula"] in voted else "count", 0.0)) for r in rows]
    total: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        total[row["formula"]] = total.get(row["formula"], 0.0) + weight
    return {
        int(row["sample"]): weight / total[row["formula"]]
        for row, weight in zip(rows, weights, strict=True)
        if total[row["formula"]] > 0
    }


def _with_own_names(sources: list[Source]) -> list[Source]:
    """Names must tell the inputs apart: those met before get a number."""
    seen: dict[str, int] = {}
    named = []
    for one in sources:
        seen[one.name] = seen.get(one.name, 0) + 1
        name = one.name if seen[one.name] == 1 else f"{one.name}-{seen[one.name]}"
        named.append(replace(one, name=name))
    return named


def read_source(source: Source, *, jobs: int = 1, on_step: OnStep | None = None) -> list[Row]:
    """All structures of one input in order, broken ones with the reason. Never raises for them."""
    with TemporaryDirectory() as scratch:
        raws = [raw for path in source.files for raw in _raw_rows(path, source.base, Path(scratch))]
        rows = []
        for row in _parse_all(raws, jobs):
            rows.append(_ranked(row, source) if source.ranked else row)
            if on_step is not None:
                on_step(len(rows), len(raws))
    return rows


def _ranked(row: Row, source: Source) -> Row:
    sample = None if row.entry is None else row.entry.labels.get("sample")
    number = -1 if sample is None else int(sample)
    return replace(
        row,
        rank=source.ranked.get(number, 0),
        share=source.shares.get(number),
        drawn_by=source.drawn_by.get(number, ""),
    )


def _raw_rows(path: Path, base: Path, scratch: Path) -> Iterator[RawRow | Row]:
    name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
    number = 0
    try:
        if path.suffix.lower() == ".zip":
            yield from _zip_rows(path, name, scratch)
            return
        if sniff(path) == "cif":
            yield from _cif_rows(path, name)
            return
        for raw in read_rows([path]):
            number = raw.number
            yield RawRow(raw.kind, raw.payload, name, raw.number, raw.id, raw.split)
    except (DataError, OSError, ValueError) as error:
        # What was read before the damage counts; the damage itself is one row.
        yield Row(name, number + 1, Path(name).stem, None, f"file cannot be read: {error}")


def _cif_rows(path: Path, name: str) -> Iterator[RawRow]:
    text = decoded(path.read_bytes())
    yield from _blocks(text, name, str(Path(name).with_suffix("")))


def _blocks(text: str, source: str, name: str) -> Iterator[RawRow]:
    """The structures of a CIF: a file of several is what many programs write."""
    blocks = [b for b in _CIF_BLOCK.split(text) if "_atom_site_fract_x" in b.lower()]
    if not text.strip():
        yield RawRow("damaged", ("empty file", ""), source, 1, name)
        return
    if len(blocks) < 2:
        yield RawRow("csv", {"cif": text}, source, 1, name)
        return
    for number, block in enumerate(blocks, start=1):
        yield RawRow("csv", {"cif": block}, source, number, f"{name}-{number}")


def _zip_rows(path: Path, name: str, scratch: Path) -> Iterator[RawRow | Row]:
    """Members of an archive, under the names they have in it; none decides where it is written."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        yield Row(name, 1, path.stem, None, f"archive cannot be read: {error}")
        return
    with archive:
        members = [m for m in archive.infolist() if not m.is_dir() and _wanted(m.filename)]
        if any(m.filename.lower().endswith(".cif") for m in members):
            members = [m for m in members if m.filename.lower().endswith(".cif")]
        for number, member in enumerate(sorted(members, key=lambda m: m.filename), start=1):
            label = f"{name}:{member.filename}"
            try:
                if member.file_size > _MAX_MEMBER_BYTES:
                    raise ValueError("larger than 2 GiB")
                content = archive.read(member)
            except Exception as error:  # damaged, encrypted, of an unknown compression
                yield Row(label, number, member.filename, None, f"cannot be unpacked: {error}")
                continue
            if member.filename.lower().endswith(".cif"):
                text = decoded(content)
                yield from _blocks(text, label, str(Path(member.filename).with_suffix("")))
                continue
            suffix = "".join(Path(member.filename).suffixes[-2:]).lower()
            copy = scratch / f"{path.stem}-{number}{suffix}"
            copy.write_bytes(content)
            for raw in _raw_rows(copy, scratch, scratch):
                if isinstance(raw, RawRow):
                    yield RawRow(raw.kind, raw.payload, label, raw.number, raw.id, raw.split)
                else:
                    yield Row(label, raw.number, raw.id, None, raw.reason)


def _wanted(member: str) -> bool:
    # What macOS puts beside every file of an archive is no structure.
    path = Path(member)
    return "__MACOSX" not in path.parts and not path.name.startswith(".") and _known(path)


def _parse_all(raws: Sequence[RawRow | Row], jobs: int) -> Iterator[Row]:
    if jobs == 1 or len(raws) < _SERIAL_BELOW:
        yield from _parse_chunk(raws)
        return
    from crystalctl.symmetry.workers import worker_pool

    chunks = [raws[i : i + _CHUNK] for i in range(0, len(raws), _CHUNK)]
    with worker_pool(min(jobs, len(chunks))) as pool:
        for rows in pool.map(_parse_chunk, chunks):
            yield from rows


def _parse_chunk(raws: Sequence[RawRow | Row]) -> list[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # readers comment on every odd CIF
        return [raw if isinstance(raw, Row) else _parse(raw) for raw in raws]


def _parse(raw: RawRow) -> Row:
    try:
        entry = parse_row(raw)
    except RowError as error:
        return Row(raw.source, raw.number, row_id(raw), None, str(error))
    return Row(raw.source, raw.number, entry.id or raw.id, entry)


def dataset_rows(path: Path) -> list[Row]:
    """The structures of a prepared dataset."""
    from crystalctl.data.datasets import Dataset

    dataset = Dataset.load(path)
    rows = []
    for number, one in enumerate(dataset.crystals.split()):
        labels: dict[str, Any] = {k: float(v[number]) for k, v in dataset.properties.items()}
        entry = Entry(
            one.lattice[0].double().numpy(),
            one.frac.double().numpy(),
            one.species.numpy(),
            dataset.ids[number],
            labels=labels,
        )
        rows.append(Row(path.name, number + 1, dataset.ids[number], entry))
    return rows
