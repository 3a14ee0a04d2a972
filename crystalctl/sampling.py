"""Draws the planned samples tile by tile, keeping every finished tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from crystalctl.analysis.exact import found_group, orbit_cell
from crystalctl.analysis.validity import invalid_reason
from crystalctl.composing import composed_anew
from crystalctl.crystal.batch import Crystals
from crystalctl.drawn import UNITS, Drawn, draw_tile, tensors_of
from crystalctl.parallel import (
    Processes,
    Tile,
    draw_on_cluster,
    draw_tiles,
    one_thread,
    worth_it,
)
from crystalctl.planning import Sample
from crystalctl.tiles import tiles

if TYPE_CHECKING:
    from crystalctl.chosen import Chosen
    from crystalctl.composing import Likely
    from crystalctl.io.results import RunFolder

REDRAWS = 3
"""How often a sample that is impossible or has too much symmetry is drawn again."""


def draw(
    model: Any,
    samples: Sequence[Sample],
    *,
    seed: int,
    steps: int | None,
    device: torch.device,
    run: RunFolder | None = None,
    batch_size: int | None = None,
    first_tile: int = 0,
    processes: Processes | None = None,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Drawn:
    """Crystals of all samples by sample number, each a batch of one on the CPU.

    Tiles that ``run`` already holds are read back. ``batch_size`` only limits how many are drawn at
    once; ``first_tile`` numbers the tiles of the run. On the CPU tiles are shared out to
    ``processes`` where there is enough to do; with one thread each, here too, so that neither the
    number of processes nor that of cores changes a bit; nor does a cluster, which is given all
    tiles there are. Raises ``CrystalctlError`` when one crystal alone does not fit into memory.
    """
    total = UNITS * len(samples)
    found = Drawn()
    left: list[Tile] = []
    for index, tile in enumerate(tiles(samples, device.type), start=first_tile):
        kept = _kept(run, index, tile)
        if kept is None:
            left.append((index, tile))
        else:
            found.add(kept)
    before = UNITS * len(found)

    def on_units(done: int) -> None:
        on_progress("sampling", before + done, total)

    options = {"seed": seed, "steps": steps, "width": batch_size}
    if processes is not None and processes.cluster is not None and left:
        drawn = draw_on_cluster(processes, left, options, on_units, device=device)
    elif processes is not None and device.type == "cpu" and worth_it(processes, left, steps):
        drawn = draw_tiles(processes, left, options, on_units)
    else:
        drawn = _one_by_one(model, left, options, device, on_units)
    for (index, tile), crystals in drawn:
        # Copies: a tensor from another process holds a file open.
        tensors = tensors_of(crystals, tile)
        if run is not None:
            run.save_tile(index, tensors)
        found.add(tensors)
    on_progress("sampling", total, total)
    return found


def _one_by_one(
    model: Any,
    left: Sequence[Tile],
    options: dict[str, Any],
    device: torch.device,
    on_units: Callable[[int], None],
) -> Iterator[tuple[Tile, Crystals]]:
    done = 0
    for index, tile in left:

        def on_done(part: int, done: int = done) -> None:
            on_units(done + part)

        with one_thread(device):
            crystals = draw_tile(model, tile, device=device, on_done=on_done, **options)
        yield (index, tile), crystals
        done += UNITS * len(tile)
        on_units(done)


def draw_exact(
    model: Any,
    samples: Sequence[Sample],
    *,
    device: torch.device,
    composer: Any = None,
    likely: Likely | None = None,
    first_tile: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> Drawn:
    """As ``draw``; samples of a prescribed group that are impossible or lack it are drawn again.

    Up to ``REDRAWS`` times, each with its own random stream, and from the second time on in another
    (``likely``) template where the model, or the ``composer``, composed it; what is left then is
    set aside by the ranking.
    """
    first = first_tile
    found = draw(
        model, samples, device=device, first_tile=first, on_progress=on_progress, **options
    )
    wrong = [s for s in samples if unwanted(s, found[s.number])]
    first += len(tiles(samples, device.type))
    for attempt in range(1, REDRAWS + 1):
        if not wrong:
            break
        again = [
            replace(s, key=f"{s.key}|again {attempt}", template=_anew(s.template)) for s in wrong
        ]
        if attempt > 1:
            again = composed_anew(composer or model, again, likely)
            if composer is not None:
                again = [replace(s, template=s.template and s.template.likeliest) for s in again]
        new = draw(model, again, device=device, first_tile=first, **options)
        first += len(tiles(again, device.type))
        found.update(new)
        wrong = [s for s in wrong if unwanted(s, new[s.number])]
    return found


def most_tiles(samples: Sequence[Sample], device: torch.device) -> int:
    """How many numbers of tiles ``draw_exact`` may use."""
    return (1 + REDRAWS) * len(tiles(samples, device.type))


def unwanted(sample: Sample, crystal: Crystals) -> bool:
    """Whether a structure that must have a group exactly is impossible or has another."""
    if sample.template is None or not sample.exact:
        return False
    if invalid_reason(crystal.lattice[0].double().numpy(), crystal.frac.double().numpy()):
        return True
    cell = orbit_cell(crystal)
    return cell is not None and found_group(cell.structure) != cell.number


def _anew(template: Chosen | None) -> Chosen | None:
    """Not again from a known structure: what is near it is as wrong."""
    return None if template is None else replace(template, start=None)


def _kept(
    run: RunFolder | None, index: int, tile: Sequence[Sample]
) -> dict[str, torch.Tensor] | None:
    tensors = run.load_tile(index) if run is not None else None
    if tensors is None or tensors["number"].tolist() != [s.number for s in tile]:
        return None
    return tensors
