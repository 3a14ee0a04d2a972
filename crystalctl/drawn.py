"""One tile: drawn, and as plain tensors to keep in a file or to send between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from crystalctl.crystal.batch import Crystals, Layout, Target, Template
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.errors import CrystalctlError
from crystalctl.planning import Sample
from crystalctl.symmetry.wyckoff import orbits_of

UNITS = 1000
"""Progress is counted in thousandths of a sample."""


def draw_tile(
    model: Any,
    tile: Sequence[Sample],
    *,
    seed: int,
    steps: int | None,
    device: torch.device,
    width: int | None,
    on_done: Callable[[int], None],
) -> Crystals:
    """All crystals of a tile, at most ``width`` at once, fewer where memory does not suffice.

    ``on_done`` is told how many thousandths of a sample are done.
    """
    width = min(width or len(tile), len(tile))
    parts: list[Crystals] = []
    start = 0
    while start < len(tile):
        chunk = tile[start : start + width]

        def step(i: int, of: int, start: int = start, size: int = len(chunk)) -> None:
            on_done(UNITS * start + UNITS * size * i // max(of, 1))

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
    template = None
    if chosen is not None:
        template = Template(chosen.group, chosen.rows, chosen.species, chosen.cell)
    return Target(
        composition=sample.composition,
        n_atoms=sample.n_atoms,
        elements=sample.elements,
        template=template,
        goal=sample.goal,
    )


def tensors_of(crystals: Crystals, tile: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """The crystals of a tile, and the numbers of their samples."""
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


def crystals_of(tensors: Mapping[str, torch.Tensor]) -> Crystals:
    """What ``tensors_of`` was given."""
    layout = Layout(tensors["n_atoms"])
    if "position" in tensors:
        orbits = orbits_of(tensors["position"], tensors["n_orbits"])
        layout = Layout(tensors["n_atoms"], tensors["space_group"], orbits)
    return Crystals(layout, tensors["lattice"], tensors["frac"], tensors["species"])
