"""Sources -> one prepared ``Dataset``: rows in parallel, bad ones counted with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalctl.crystal.batch import Crystals, Layout
from crystalctl.data.cells import Chunk, Options, prepare_chunk
from crystalctl.data.datasets import SPLITS, Dataset
from crystalctl.data.readers import read_rows
from crystalctl.data.records import RawRow
from crystalctl.data.standard import Standard
from crystalctl.data.summary import count_reasons
from crystalctl.errors import DataError
from crystalctl.symmetry.detect import pack
from crystalctl.symmetry.workers import worker_pool

CHUNK = 64
"""Rows handed to a worker at a time."""
SERIAL_BELOW = 256
"""With fewer rows than this, starting worker processes costs more than it saves."""

Progress = Callable[[int, int], None]
"""Called with the number of rows done and the number of rows in all."""


def prepare(
    sources: Sequence[Path | str],
    options: Options | None = None,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read all sources into one dataset; the rows keep their order whatever ``jobs`` is.

    ``jobs`` is the number of processes (default: one per CPU). Raises ``DataError`` when a source
    cannot be read at all or when no row of it can be used.
    """
    options = options or Options()
    rows = list(read_rows(sources))
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    jobs = min(jobs or os.cpu_count() or 1, len(chunks))
    done: list[Chunk | None] = [None] * len(chunks)
    finished = 0
    work = _serial if jobs <= 1 or len(rows) < SERIAL_BELOW else _parallel
    for number, chunk in work(chunks, options, jobs):
        done[number] = chunk
        finished += len(chunks[number])
        if progress is not None:
            progress(finished, len(rows))
    return _collect([c for c in done if c is not None], sources, len(rows), options)


def _serial(
    chunks: Sequence[Sequence[RawRow]], options: Options, jobs: int
) -> Iterator[tuple[int, Chunk]]:
    for number, rows in enumerate(chunks):
        yield number, prepare_chunk(rows, options)


def _parallel(
    chunks: Sequence[Sequence[RawRow]], options: Options, jobs: int
) -> Iterator[tuple[int, Chunk]]:
    with worker_pool(jobs) as pool:
        waiting: dict[Future[Chunk], int] = {}
        queue = iter(enumerate(chunks))
        while True:
            # A few chunks ahead keeps workers busy without pickling the whole source at once.
            while len(waiting) < 3 * jobs and (item := next(queue, None)) is not None:
                waiting[pool.submit(prepare_chunk, item[1], options)] = item[0]
            if not waiting:
                return
            ready, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield waiting.pop(future), future.result()


def _collect(
    chunks: Sequence[Chunk], sources: Sequence[Path | str], rows_read: int, options: Options
) -> Dataset:
    rejected = [item for chunk in chunks for item in chunk.rejected]
    too_large = sum(chunk.too_large for chunk in chunks)
    ids = [name for chunk in chunks for name in chunk.ids]
    if not ids:
        _raise_nothing(sources, rows_read, rejected, too_large)
    space_group = torch.tensor([g for chunk in chunks for g in chunk.space_group])
    properties, ignored = _properties([row for chunk in chunks for row in chunk.labels])
    n_atoms = torch.tensor([n for chunk in chunks for n in chunk.n_atoms])
    crystals = Crystals(
        Layout(n_atoms),
        torch.from_numpy(np.concatenate([c.lattice for c in chunks])).float(),
        torch.from_numpy(np.concatenate([c.frac for c in chunks])).float(),
        torch.from_numpy(np.concatenate([c.species for c in chunks])),
    )
    found = pack([one for chunk in chunks for one in chunk.standard], torch.float32)
    meta = {
        "source": [str(source) for source in sources],
        "symprec": options.symprec,
        "primitive": options.primitive,
        "max_atoms": options.max_atoms,
        "rows_read": rows_read,
        "rejected": rejected,
        "too_large": too_large,
        "not_reduced": [name for chunk in chunks for name in chunk.not_reduced],
        "no_symmetry": int((space_group == 0).sum()),
        "no_orbits": found.reasons,
        "repeated_ids": len(ids) - len(set(ids)),
        "ignored_columns": ignored,
    }
    return Dataset(
        crystals,
        ids,
        torch.tensor([SPLITS.index(s) for c in chunks for s in c.split], dtype=torch.uint8),
        space_group.to(torch.uint8),
        torch.from_numpy(np.concatenate([c.wyckoff for c in chunks])).to(torch.uint8),
        torch.from_numpy(np.concatenate([c.orbit for c in chunks])).to(torch.int16),
        properties,
        meta,
        Standard(found.crystals, found.source),
    )


def _properties(
    labels: Sequence[dict[str, float | None]],
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Columns whose every value is a number or missing, (N,) float32 each, and the other names."""
    names = {name: None for row in labels for name in row}
    text = {name for row in labels for name, value in row.items() if value is None}
    nan = float("nan")
    columns = {
        name: torch.tensor([row.get(name, nan) for row in labels], dtype=torch.float32)
        for name in names
        if name not in text
    }
    empty = {name for name, values in columns.items() if bool(values.isnan().all())}
    kept = {name: values for name, values in columns.items() if name not in empty}
    return kept, [name for name in names if name in text or name in empty]


def _raise_nothing(
    sources: Sequence[Path | str], rows_read: int, rejected: list[dict[str, Any]], large: int
) -> None:
    where = ", ".join(str(source) for source in sources)
    reasons = ", ".join(f"{n} {reason}" for reason, n in count_reasons(rejected).items())
    parts = [p for p in (reasons, f"{large} with too many atoms" if large else "") if p]
    example = ""
    if rejected:
        first = rejected[0]
        example = f"first: row {first['row']} ({first['id']}): "
        example += first.get("detail") or first["reason"]
    raise DataError(
        f"no row of {where} can be used, of {rows_read} read: {', '.join(parts)}", example
    )
