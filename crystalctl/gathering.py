"""Structures of an input, read and described: what ``evaluate`` judges."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crystalctl.analysis.described import Described, Wanted, describe_all
from crystalctl.analysis.reduction import Cell
from crystalctl.errors import InputError
from crystalctl.evaluation import summary
from crystalctl.evaluation.pairing import Side
from crystalctl.io.collect import KINDS, Row, Source, dataset_rows, find_sources, read_source

if TYPE_CHECKING:
    from crystalctl.cluster import Cluster

OnProgress = Callable[[str, int, int], None]
"""Called as ``on_progress(stage, done, total)``: reading, describing or comparing."""
_SERIAL_BELOW = 24
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Set:
    """Structures read and described, row by row."""

    name: str
    rows: list[Row]
    described: list[Described]

    @property
    def facts(self) -> summary.Facts:
        labels = [{} if r.entry is None else r.entry.labels for r in self.rows]
        return summary.Facts(self.described, labels)

    @property
    def side(self) -> Side:
        ranks = [rank_of(row) for row in self.rows]
        formulas = [one.reduced for one in self.described]
        return Side([row.id for row in self.rows], formulas, ranks if any(ranks) else ())

    def cells(self) -> dict[str, list[tuple[int, Cell]]]:
        """Reduced formula -> the structures that can be compared."""
        found: dict[str, list[tuple[int, Cell]]] = defaultdict(list)
        for number, (row, one) in enumerate(zip(self.rows, self.described, strict=True)):
            cell = cell_of(row)
            if cell is not None and not one.reason and not one.strange:
                found[one.reduced].append((number, cell))
        return found


class Workers:
    """Maps over many items in ``jobs`` worker processes, started with the first work worth it.

    Or in tasks of a ``cluster``; the processes then only read files, which are here.
    """

    def __init__(
        self,
        jobs: int,
        stack: ExitStack,
        on_progress: OnProgress | None,
        cluster: Cluster | None = None,
    ) -> None:
        self.jobs = jobs
        self._stack, self.report = stack, on_progress
        self._pool: Any = None
        self._cluster = cluster
        self.at_once = jobs if cluster is None else cluster.slots()
        """Items that are worked on at once."""

    def map(
        self,
        work: Callable[[T], R],
        items: Sequence[T],
        stage: str,
        *,
        least: int = _SERIAL_BELOW,
    ) -> Iterator[R]:
        """``work`` of each item in order, in processes from ``least`` items on.

        Processes that are there already take two items, too. Reports progress as ``stage``, or none
        without a name for it.
        """
        results: Any = map(work, items)
        if self._cluster is not None and len(items) > 1:
            results = self._cluster.map(work, items)
        elif self.jobs > 1 and len(items) >= (least if self._pool is None else 2):
            if self._pool is None:
                from crystalctl.symmetry.workers import worker_pool

                self._pool = self._stack.enter_context(worker_pool(self.jobs))
            size = max(1, min(8, len(items) // (4 * self.jobs)))
            results = self._pool.map(work, items, chunksize=size)
        for done, result in enumerate(results, start=1):
            if self.report is not None and stage:
                self.report(stage, done, len(items))
            yield result


def gather(source: Source, workers: Workers, wanted: Wanted) -> Set:
    """All structures of one input, read and described."""
    report = workers.report
    step = None if report is None else partial(report, f"reading {source.name}")
    rows = read_source(source, jobs=workers.jobs, on_step=step)
    return _described(source.name, rows, workers, wanted)


def gather_reference(
    path: str | Path, workers: Workers, wanted: Wanted, *, bare: bool = False
) -> Set:
    """A reference, all of whose rows must be usable structures or are left out."""
    path = Path(path)
    rows: list[Row] = []
    if path.suffix == ".safetensors":
        rows = dataset_rows(path)
    else:
        for source in find_sources([path]):
            rows += read_source(source, jobs=workers.jobs)
    if not any(row.entry for row in rows):
        raise InputError(f"nothing in {path} can be read", f"give {KINDS} or a prepared dataset")
    chosen = Wanted(False, wanted.cache, False) if bare else wanted
    return _described(path.name, rows, workers, chosen)


def _described(name: str, rows: list[Row], workers: Workers, wanted: Wanted) -> Set:
    cells = [cell_of(row) for row in rows]
    size = 4 if wanted.sites else 32
    chunks = [cells[i : i + size] for i in range(0, len(cells), size)]
    work = partial(describe_all, wanted=wanted)
    found = [one for part in workers.map(work, chunks, f"describing {name}") for one in part]
    described = [
        Described(row.reason or "cannot be read") if one is None else one
        for row, one in zip(rows, found, strict=True)
    ]
    return Set(name, rows, described)


def cell_of(row: Row) -> Cell | None:
    """The bare numbers of a row, None where it could not be read."""
    entry = row.entry
    return None if entry is None else (entry.lattice, entry.frac, entry.numbers.tolist())


def rank_of(row: Row) -> int:
    """Place of a row in a ranking from 1, 0 without one."""
    if row.rank is not None:
        return row.rank
    given = None if row.entry is None else row.entry.labels.get("rank")
    return int(given) if given is not None and math.isfinite(given) and given >= 1 else 0
