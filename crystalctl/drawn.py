"""Tiles: drawn, as plain tensors to keep in a file or to send elsewhere, and all together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
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
        drawn = None
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
        if drawn is None:  # not above: while the error is handled it holds what did not fit
            width = (min(width, len(chunk)) + 1) // 2
            with suppress(RuntimeError):  # torch before 2.12, after a recording that failed
                torch.cuda.empty_cache()
            continue
        parts.append(drawn.to("cpu"))
        start += len(chunk)
    return Crystals.cat(parts)


def _target(sample: Sample) -> Target:
    chosen = sample.template
    template = None
    if chosen is not None:
        template = Template(chosen.group, chosen.rows, chosen.species, chosen.cell, chosen.start)
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


class Drawn(Mapping[int, Crystals]):
    """Crystals by the number of their sample, each made when it is asked for, a batch of one.

    Only what gives them back is kept (``tensors_of``): operations of orbits would take 40 times as
    much. A number added again replaces the first.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[dict[str, torch.Tensor], list[int], list[int]]] = []
        self._place: dict[int, tuple[int, int]] = {}

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """All crystals of a tile."""
        part = len(self._parts)
        atoms = [0, *accumulate(tensors["n_atoms"].tolist())]
        orbits = [0, *accumulate(tensors["n_orbits"].tolist())] if "n_orbits" in tensors else []
        self._parts.append((dict(tensors), atoms, orbits))
        for row, number in enumerate(tensors["number"].tolist()):
            self._place[number] = part, row

    def update(self, other: Drawn) -> None:
        """All crystals of another."""
        first = len(self._parts)
        self._parts += other._parts
        self._place |= {n: (first + part, row) for n, (part, row) in other._place.items()}

    def __getitem__(self, number: int) -> Crystals:
        part, row = self._place[number]
        tensors, atoms, orbits = self._parts[part]
        of_atoms = slice(atoms[row], atoms[row + 1])
        one = {name: tensors[name][row : row + 1] for name in ("n_atoms", "lattice")}
        one |= {name: tensors[name][of_atoms] for name in ("frac", "species")}
        if orbits:
            one |= {name: tensors[name][row : row + 1] for name in ("space_group", "n_orbits")}
            one["position"] = tensors["position"][orbits[row] : orbits[row + 1]]
        return crystals_of(one)

    def __iter__(self) -> Iterator[int]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)
