"""Draws the planned samples tile by tile, keeping every finished tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from crystalctl.analysis.exact import found_group, orbit_cell
from crystalctl.analysis.validity import invalid_reason
from crystalctl.crystal.batch import Crystals, Layout, Target, Template
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.errors import CrystalctlError
from crystalctl.planning import Sample
from crystalctl.symmetry.wyckoff import orbits_of
from crystalctl.tiles import tiles

if TYPE_CHECKING:
    from crystalctl.io.results import RunFolder

REDRAWS = 3
"""How often a sample with too much symmetry is drawn again."""
_UNITS = 1000
"""Progress is counted in thousandths of a sample."""


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
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[int, Crystals]:
    """Crystals of all samples by sample number, each a batch of one on the CPU.

    Tiles that ``run`` already holds are read back. ``batch_size`` only limits how many are drawn at
    once; ``first_tile`` numbers the tiles of the run. Raises ``CrystalctlError`` when one crystal
    alone does not fit into memory.
    """
    total = _UNITS * len(samples)
    found: dict[int, Crystals] = {}
    for index, tile in enumerate(tiles(samples, device.type), start=first_tile):
        done = _UNITS * len(found)
        crystals = _kept(run, index, tile)
        if crystals is None:

            def on_done(part: int, done: int = done) -> None:
                on_progress("sampling", done + part, total)

            crystals = _draw_tile(
                model,
                tile,
                seed=seed,
                steps=steps,
                device=device,
                width=min(batch_size or len(tile), len(tile)),
                on_done=on_done,
            )
            if run is not None:
                run.save_tile(index, _tensors(crystals, tile))
        parts = crystals.split()
        found |= {sample.number: part for sample, part in zip(tile, parts, strict=True)}
        on_progress("sampling", _UNITS * len(found), total)
    return found


def draw_exact(
    model: Any,
    samples: Sequence[Sample],
    *,
    device: torch.device,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    **options: Any,
) -> dict[int, Crystals]:
    """As ``draw``; samples of a prescribed group that are impossible or lack it are drawn again.

    Up to ``REDRAWS`` times, each with its own random stream; what is left then is set aside by the
    ranking.
    """
    found = draw(model, samples, device=device, on_progress=on_progress, **options)
    wrong = [s for s in samples if unwanted(s, found[s.number])]
    first = len(tiles(samples, device.type))
    for attempt in range(1, REDRAWS + 1):
        if not wrong:
            break
        again = [replace(s, key=f"{s.key}|again {attempt}") for s in wrong]
        new = draw(model, again, device=device, first_tile=first, **options)
        first += len(tiles(again, device.type))
        found |= new
        wrong = [s for s in wrong if unwanted(s, new[s.number])]
    return found


def unwanted(sample: Sample, crystal: Crystals) -> bool:
    """Whether a structure that must have a group exactly is impossible or has another."""
    if sample.template is None or not sample.exact:
        return False
    if invalid_reason(crystal.lattice[0].double().numpy(), crystal.frac.double().numpy()):
        return True
    cell = orbit_cell(crystal)
    return cell is not None and found_group(cell.structure) != cell.number


def _draw_tile(
    model: Any,
    tile: Sequence[Sample],
    *,
    seed: int,
    steps: int | None,
    device: torch.device,
    width: int,
    on_done: Callable[[int], None],
) -> Crystals:
    """All crystals of a tile, at most ``width`` at once, fewer where memory does not suffice."""
    parts: list[Crystals] = []
    start = 0
    while start < len(tile):
        chunk = tile[start : start + width]

        def step(i: int, of: int, start: int = start, size: int = len(chunk)) -> None:
            on_done(_UNITS * start + _UNITS * size * i // max(of, 1))

        stream = torch.tensor([s.stream for s in chunk], dtype=torch.int64, device=device)
        try:
            with torch.inference_mode():
                drawn = model.sample(
                    [_target(s) for s in chunk],
                    NoiseSource(seed, stream),
                    steps=steps,
                    on_step=step,
                )
        except torch.OutOfMemoryError as error:
            if width == 1:
                raise CrystalctlError(
                    f"a crystal of {chunk[0].n_atoms} atoms does not fit into the device's memory",
                    "use --device cpu",
                ) from error
            width = (min(width, len(chunk)) + 1) // 2
            torch.cuda.empty_cache()
            continue
        parts.append(drawn.to("cpu"))
        start += len(chunk)
    return Crystals.cat(parts)


def _target(sample: Sample) -> Target:
    chosen = sample.template
    template = None if chosen is None else Template(chosen.group, chosen.rows, chosen.species)
    return Target(
        composition=sample.composition,
        n_atoms=sample.n_atoms,
        elements=sample.elements,
        template=template,
        goal=sample.goal,
    )


def _tensors(crystals: Crystals, tile: Sequence[Sample]) -> dict[str, torch.Tensor]:
    return {
        "number": torch.tensor([s.number for s in tile], dtype=torch.int64),
        "n_atoms": crystals.layout.n_atoms.clone(),
        "lattice": crystals.lattice.contiguous().clone(),
        "frac": crystals.frac.contiguous().clone(),
        "species": crystals.species.contiguous().clone(),
    } | _orbit_tensors(crystals.layout)


def _orbit_tensors(layout: Layout) -> dict[str, torch.Tensor]:
    """What gives the orbits back; nothing for crystals without."""
    if layout.orbits is None or layout.space_group is None:
        return {}
    return {
        "space_group": layout.space_group.clone(),
        "n_orbits": layout.orbits.n_orbits.clone(),
        "position": layout.orbits.position.clone(),
    }


def _kept(run: RunFolder | None, index: int, tile: Sequence[Sample]) -> Crystals | None:
    tensors = run.load_tile(index) if run is not None else None
    if tensors is None or tensors["number"].tolist() != [s.number for s in tile]:
        return None
    layout = Layout(tensors["n_atoms"])
    if "position" in tensors:
        orbits = orbits_of(tensors["position"], tensors["n_orbits"])
        layout = Layout(tensors["n_atoms"], tensors["space_group"], orbits)
    return Crystals(layout, tensors["lattice"], tensors["frac"], tensors["species"])
