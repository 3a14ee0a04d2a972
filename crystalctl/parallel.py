"""Tiles drawn in several processes of this machine, or as tasks of a cluster.

On a CPU networks and tiles are small: a second thread gains little on free cores and costs much on
busy ones, a second process draws twice as much. Each has the weights from their file, and one
thread.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from crystalctl.crystal.batch import Crystals
from crystalctl.drawn import crystals_of, draw_tile, tensors_of
from crystalctl.errors import CrystalctlError
from crystalctl.planning import Sample
from crystalctl.symmetry.workers import start_worker, worker_pool

if TYPE_CHECKING:
    from crystalctl.cluster import Cluster

Tile = tuple[int, list[Sample]]
"""Number and samples."""
WORTH = 500_000
"""Pairs times steps of a run (some 15 s of a core) that pay for starting processes (3 s each)."""
_USUAL_STEPS = 100
_LOOK_S = 0.2
"""How often progress is looked at."""


@dataclass(frozen=True)
class Processes:
    """How many (None: one for each core), and the weights they load; or a cluster instead."""

    jobs: int | None
    weights: str
    task: str
    cluster: Cluster | None = None

    @property
    def count(self) -> int:
        """Their number."""
        return self.jobs or os.cpu_count() or 1


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One thread of torch for the length of the block, on the CPU."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def worth_it(processes: Processes, left: Sequence[Tile], steps: int | None) -> bool:
    """Whether these tiles are drawn sooner by several processes."""
    cost = sum(sample.pairs for _, tile in left for sample in tile) * (steps or _USUAL_STEPS)
    return processes.count > 1 and len(left) > 1 and cost >= WORTH


def draw_tiles(
    processes: Processes,
    left: Sequence[Tile],
    options: dict[str, Any],
    on_units: Callable[[int], None],
) -> Iterator[tuple[Tile, Crystals]]:
    """Each tile with its crystals as it is finished; ``options`` of ``draw_tile``.

    Raises ``CrystalctlError`` when a process ends unexpectedly.
    """
    context = multiprocessing.get_context("spawn")
    units, stop = context.Value("q", 0), context.Event()
    start = (processes.weights, processes.task, units, stop)
    count = min(processes.count, len(left))
    waiting = iter(left)
    with worker_pool(count, _start, start) as pool:
        pending: dict[Future[Any], Tile] = {}
        try:
            while True:
                # Few tiles wait in the pool: a run may have a million samples.
                for index, tile in islice(waiting, 2 * count - len(pending)):
                    pending[pool.submit(_draw, tile, options)] = (index, tile)
                if not pending:
                    break
                ready, _ = wait(pending, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                on_units(units.value)
                for future in ready:
                    yield pending.pop(future), crystals_of(future.result())
        finally:
            stop.set()


class _Worker:
    """What a worker process holds."""

    model: Any
    units: Any
    stop: Any


def _start(weights: str, task: str, units: Any, stop: Any) -> None:
    start_worker()
    from crystalctl.checkpoint import load_model

    torch.set_num_threads(1)
    _Worker.model = load_model(weights, task=task).model
    _Worker.units, _Worker.stop = units, stop


def _draw(tile: list[Sample], options: dict[str, Any]) -> dict[str, torch.Tensor]:
    told = 0

    def on_done(part: int) -> None:
        nonlocal told
        if _Worker.stop.is_set():
            raise CrystalctlError("stopped")
        with _Worker.units.get_lock():
            _Worker.units.value += part - told
        told = part

    device = torch.device("cpu")
    drawn = draw_tile(_Worker.model, tile, device=device, on_done=on_done, **options)
    return tensors_of(drawn, tile)


def draw_on_cluster(
    processes: Processes,
    left: Sequence[Tile],
    options: dict[str, Any],
    on_units: Callable[[int], None],
    *,
    device: torch.device,
) -> Iterator[tuple[Tile, Crystals]]:
    """As ``draw_tiles``, by tasks of ``processes.cluster`` on devices like ``device``.

    The weights travel as the content of their file, which the workers need not have.
    """
    from crystalctl.checkpoint import resolve

    assert processes.cluster is not None
    work = partial(_draw_task, options=options)
    content = resolve(processes.weights).read_bytes()
    drawn = processes.cluster.run(
        work,
        left,
        prepare=_prepare,
        given=(content, processes.task, device.type),
        gpu=device.type != "cpu",
        on_units=on_units,
    )
    for tile, tensors in drawn:
        yield tile, crystals_of(tensors)


def _prepare(given: tuple[bytes, str, str]) -> tuple[Any, torch.device]:
    from crystalctl.checkpoint import load_model
    from crystalctl.models.device import pick_device

    content, task, kind = given
    device = pick_device(kind)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        file.write_bytes(content)
        return load_model(str(file), task=task, device=device).model, device


def _draw_task(
    prepared: tuple[Any, torch.device],
    item: Tile,
    report: Callable[[int], None],
    *,
    options: dict[str, Any],
) -> dict[str, torch.Tensor]:
    model, device = prepared
    with one_thread(device):
        drawn = draw_tile(model, item[1], device=device, on_done=report, **options)
    return tensors_of(drawn, item[1])
