"""Latents moved along the gradient of a learnt property.

Ref: section 3.4, arXiv:2307.02707; Xie et al., arXiv:2110.06197, section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crystalctl.crystal.goal import Goal
from crystalctl.models.properties import Aims

RATE = 0.01
"""Step of Adam at strength 1, in standard deviations of the prior."""
REACH = 1.1
"""How far a latent may go, in units of the typical length of one drawn from the prior."""


def improved(
    predict: Callable[[Tensor], Tensor], z: Tensor, goals: Sequence[Goal], *, steps: int
) -> Tensor:
    """Latents (C, parts, width) moved so that the property of each comes nearer to its goal.

    ``predict`` maps them to the property in standard units, (C,); ``goals`` one for each, their
    values in the same units. Every latent is moved on its own: Adam works entry by entry. No part
    gets longer than ``REACH`` sqrt(width): beyond that no training structure has been.
    """
    longest = torch.linalg.vector_norm(z, dim=2, keepdim=True)
    longest = longest.clamp(min=REACH * z.shape[2] ** 0.5)
    # The caller may be in inference mode, whose tensors take no part in gradients.
    with torch.inference_mode(False), torch.enable_grad():
        aims = Aims.of(goals, z.device)
        moving = z.clone().requires_grad_()
        longest = longest.clone()
        optimizer = torch.optim.Adam([moving], lr=RATE)
        for _ in range(steps):
            before = moving.detach().clone()
            cost = aims.cost(predict(moving))
            (moving.grad,) = torch.autograd.grad(cost.sum(), [moving])
            optimizer.step()
            with torch.no_grad():
                # Adam does not see how large a cost is: the strength is that of its steps.
                moving.copy_(before.lerp(moving, aims.strength[:, None, None]))
                length = torch.linalg.vector_norm(moving, dim=2, keepdim=True)
                moving *= (longest / length.clamp_min(1e-9)).clamp(max=1)
    return moving.detach()
