"""Images of Wyckoff positions for batches, gathered from the shipped table.

What ``diffusion/group_torus.py`` needs of ``symmetry/stabilisers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalctl.diffusion.group_torus import FAINTEST, Images
from crystalctl.symmetry.stabilisers import Action, stabilisers
from crystalctl.symmetry.tables import Floats

METRICS = ("invariant", "fractional")
_RECTANGLE = np.array([[1, -0.5, 0], [0, 0.5, 0], [0, 0, 1]])
"""Frame of a hexagonal plane: along (1, 0) and (1, 2)."""


def frame_of(metric: Floats) -> tuple[Floats, Floats, Floats]:
    """Frame W, scales c and lattice points (L, 3) of its cell, for lengths ``metric`` (3, 3) in u.

    Raises ``ValueError`` where the free coordinates are neither at right angles nor hexagonal.
    """
    diagonal = np.diag(np.diag(metric)).astype(float)
    if np.abs(metric - diagonal).max() < 1e-6:
        return np.eye(3), np.sqrt(np.diag(metric)), np.zeros((1, 3))
    back = np.linalg.inv(_RECTANGLE)
    square = back.T @ metric @ back
    if np.abs(square - np.diag(np.diag(square))).max() > 1e-6:
        raise ValueError("coordinates that no frame is known for")
    return _RECTANGLE, np.sqrt(np.diag(square)), np.array([[0.0, 0, 0], [0, 1, 0]])


def images_of_actions(one: Action, metric: Floats, n: int) -> Images:
    """``n`` equal positions, float64."""
    frame, scale, points = frame_of(metric)
    matrix = np.repeat(one.matrix, len(points), 0).astype(float)
    shift = (one.shift[:, None] + points).reshape(-1, 3)
    free = torch.from_numpy((one.matrix != 0).any((0, 1))).expand(n, 3)
    rows = torch.arange(n).repeat_interleave(len(matrix))

    def each(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).expand(n, *values.shape)

    return Images(
        orbit=rows,
        matrix=torch.from_numpy(matrix).repeat(n, 1, 1),
        shift=torch.from_numpy(shift).repeat(n, 1),
        free=free,
        frame=each(frame),
        back=each(np.linalg.inv(frame)),
        scale=each(scale),
        order=torch.full((n,), float(len(one.matrix)), dtype=torch.float64),
    )


@dataclass(frozen=True)
class _Table:
    """Rows by position (P, ...), and all images packed (N, ...)."""

    first: Tensor
    count: Tensor
    matrix: Tensor
    shift: Tensor
    free: Tensor
    frame: Tensor
    back: Tensor
    scale: Tensor
    order: Tensor
    kind: Tensor


@cache
def _table(metric: str, device: torch.device) -> _Table:
    known = stabilisers()
    number = METRICS.index(metric)
    parts = []
    for which, lengths in enumerate(known.metric[number]):
        rows = slice(known.first[which], known.first[which + 1])
        parts.append(images_of_actions(Action(known.matrix[rows], known.shift[rows]), lengths, 1))
    count = torch.tensor([len(p.orbit) for p in parts])
    kind = torch.from_numpy(known.kind)

    def by_position(name: str) -> Tensor:
        values = torch.cat([getattr(p, name) for p in parts])[kind]
        return (values if values.dtype == torch.bool else values.float()).to(device)

    return _Table(
        first=(torch.cumsum(count, 0) - count)[kind].to(device),
        count=count[kind].to(device),
        matrix=torch.cat([p.matrix for p in parts]).float().to(device),
        shift=torch.cat([p.shift for p in parts]).float().to(device),
        free=by_position("free"),
        frame=by_position("frame"),
        back=by_position("back"),
        scale=by_position("scale"),
        order=by_position("order"),
        kind=kind.to(device),
    )


def images_of(position: Tensor, metric: str) -> Images:
    """The images of positions (O,), table rows."""
    table = _table(metric, position.device)
    count = table.count[position]
    total = int(count.sum())
    rows = torch.arange(len(position), device=position.device)
    orbit = torch.repeat_interleave(rows, count, output_size=total)
    shift = table.first[position] - (torch.cumsum(count, 0) - count)
    image = torch.arange(total, device=position.device) + shift[orbit]
    return Images(
        orbit=orbit,
        matrix=table.matrix[image],
        shift=table.shift[image],
        free=table.free[position],
        frame=table.frame[position],
        back=table.back[position],
        scale=table.scale[position],
        order=table.order[position],
    )


def strengths(metric: str, sigma: Tensor) -> Tensor:
    """Strength of the score of every position at widths ``sigma`` (T + 1,), (P, T + 1)."""
    known = stabilisers()
    table = np.log(np.maximum(known.strength[METRICS.index(metric)], FAINTEST))
    at = np.log(np.clip(sigma.double().numpy(), known.width[0], known.width[-1]))
    rows = np.stack([np.interp(at, np.log(known.width), row) for row in table])
    return torch.from_numpy(np.exp(rows[known.kind])).float()
