"""Training in bf16: networks round, geometry does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import FAMILY_TASKS, crystals_for, tiny_model

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.periodic import neighbours
from crystalctl.crystal.precision import full_precision
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models.contract import total_loss

CASES = [(family, task, {}) for family, task in FAMILY_TASKS]
CASES += [("diffcsp_pp", task, {"n_radial": 4}) for task in ("predict", "generate")]
CASES += [("equicsp", task, {"permutation": "exact"}) for task in ("predict", "generate")]


def bf16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize(("family", "task", "changes"), CASES)
def test_every_family_trains_in_bf16(family: str, task: str, changes: dict[str, Any]) -> None:
    crystals = crystals_for(family)
    model = tiny_model(family, task, crystals, **changes)
    losses = []
    for context in (full_precision(), bf16()):
        with context:
            noise = NoiseSource(0, torch.arange(crystals.layout.n_crystals))
            loss = total_loss(model.loss(crystals, noise))
        losses.append(loss.item())
    loss.backward()
    assert loss.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


def test_geometry_is_exact_beside_a_network_in_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    frac, lattice = torch.rand(4, 3, generator=generator), 4 * torch.eye(3)[None]
    layout = Layout(torch.tensor([4]))
    plain = neighbours(frac, lattice, layout, 4.0)
    with bf16():
        assert (frac @ lattice[0]).dtype == torch.bfloat16
        beside = neighbours(frac, lattice, layout, 4.0)
        with full_precision():
            assert (frac @ lattice[0]).dtype == torch.float32
        assert (frac @ lattice[0]).dtype == torch.bfloat16
    assert torch.equal(beside.vector, plain.vector)
