"""Validation: the loss on held-out crystals with fixed noise, so that values compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from crystalctl.data.loading import Loader
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.training.ema import Average
from crystalctl.training.parallel import Processes

_STREAM = 1 << 60
"""Streams from here on are validation's own: training never reaches them."""


@torch.no_grad()
def validation_loss(
    model: Any,
    loader: Loader,
    *,
    average: Average | None,
    autocast: torch.autocast,
    processes: Processes,
) -> list[float]:
    """Loss parts over the first batch of ``loader``, with the averaged weights in place."""
    batch = next(loader.epoch(0))
    rows = model.loss_rows(batch.n_crystals, batch.n_atoms)
    parts = torch.zeros(len(rows), dtype=torch.float64, device=loader.device)
    with _in_place(average), autocast:
        for chunk in batch.chunks:
            stream = (_STREAM + chunk.place).to(loader.device)
            terms = model.loss(chunk.crystals, NoiseSource(0, stream))
            parts += torch.stack([terms[part].total.double() / rows[part] for part in rows])
    values: list[float] = processes.sum(parts).tolist()
    return values


@contextmanager
def _in_place(average: Average | None) -> Iterator[None]:
    """The averaged weights in place of the live ones."""
    if average is not None:
        average.swap()
    try:
        yield
    finally:
        if average is not None:
            average.swap()
