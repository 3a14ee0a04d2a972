"""SyMat's property part, its training, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import SIZES, TINY_SYMAT, dataset_of, noise_for, random_crystals, tiny_model

from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Crystals, Layout, Target
from crystalctl.crystal.goal import Goal
from crystalctl.crystal.lattice import to_parameters
from crystalctl.diffusion.lattice_coords import from_scaled6, to_scaled6
from crystalctl.errors import DataError, InputError
from crystalctl.models.symat import SyMatConfig
from crystalctl.training.run import train

SMALL = {k: v for k, v in TINY_SYMAT.items() if k in SyMatConfig.__dataclass_fields__}


def settings(**model: Any) -> dict[str, dict[str, Any]]:
    run = {"epochs": 2, "batch_size": 4, "warmup_steps": 2, "precision": "fp32", "lr": 1e-2}
    return {"train": run, "model": {**SMALL, "task": "generate", **model}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 crystals; the energy of two is unknown."""
    dataset = dataset_of(random_crystals([1 + i % 4 for i in range(12)]), [1] * 9 + [2] * 3)
    energy = torch.linspace(-1, 1, 12)
    energy[[3, 10]] = torch.nan
    path = tmp_path / "data.safetensors"
    replace(dataset, properties={"energy": energy, "flat": torch.ones(12)}).save(path)
    return path


def test_scaled_cells_come_back():
    crystals = random_crystals((4, 1, 3), 2)
    n = crystals.layout.n_atoms
    back = from_scaled6(to_scaled6(crystals.lattice, n), n)
    assert torch.allclose(to_parameters(back), to_parameters(crystals.lattice), rtol=1e-4)
    wild = from_scaled6(100 * torch.randn(20, 6), torch.full((20,), 5))
    assert wild.isfinite().all()


def test_labels_follow_their_crystals():
    crystals = random_crystals(SIZES).replace(labels=torch.tensor([1.0, 2.0, torch.nan, 4.0]))
    assert crystals.index(torch.tensor([3, 0])).labels.tolist() == [4.0, 1.0]
    both = Crystals.cat([crystals, crystals])
    assert both.labels.nan_to_num(nan=-1).tolist() == [1, 2, -1, 4] * 2
    assert Crystals.cat([crystals, random_crystals(SIZES)]).labels is None
    assert crystals.to("cpu").labels is not None


def test_unknown_labels_teach_nothing():
    crystals = random_crystals(SIZES)
    model = tiny_model("symat", "generate", crystals, property="energy")
    labels = torch.tensor([1.0, torch.nan, torch.nan, 3.0])
    known = model.loss(crystals.replace(labels=labels), noise_for(4))["property"]
    guess = model.loss(crystals.replace(labels=labels.nan_to_num(nan=7.0)), noise_for(4))
    none = model.loss(crystals, noise_for(4))["property"]
    assert float(none.total.detach()) == 0
    assert 0 < float(known.total.detach()) < float(guess["property"].total.detach())
    known.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_train_learns_a_column_and_weights_know_it(data: Path, tmp_path: Path):
    result = train("symat", data=data, out=tmp_path / "a", settings=settings(property="energy"))
    model = load_model(str(result.weights), task="generate").model
    known = torch.tensor([-1, -9 / 11, -7 / 11, -3 / 11, -1 / 11, 1 / 11, 3 / 11, 5 / 11])
    assert model.config.property_mean == pytest.approx(float(known.mean()), abs=1e-5)
    assert model.config.property_std == pytest.approx(float(known.std()), abs=1e-5)
    crystals = random_crystals(SIZES)
    assert model.predicted(crystals).shape == (4,)


def test_train_refuses_a_column_that_cannot_be_learnt(data: Path, tmp_path: Path):
    for name, message in (("gap", "0 structures have a 'gap'"), ("flat", "'flat'")):
        with pytest.raises(DataError, match=message) as raised:
            train("symat", data=data, out=tmp_path / "a", settings=settings(property=name))
        assert "energy, flat" in raised.value.hint
    wrong = {"train": settings()["train"], "model": {"property": "energy"}}
    with pytest.raises(InputError, match="property"):
        train("equicsp", data=data, out=tmp_path / "b", settings=wrong)


def test_training_starts_from_weights(data: Path, tmp_path: Path):
    first = train("symat", data=data, out=tmp_path / "a", settings=settings())
    still = settings(property="energy")
    still["train"] |= {"lr": 1e-12, "lr_min": 0.0, "ema": 0.0}
    second = train("symat", data=data, out=tmp_path / "b", settings=still, init=str(first.weights))
    before = dict(load_model(str(first.weights), task="generate").model.named_parameters())
    after = dict(load_model(str(second.weights), task="generate").model.named_parameters())
    assert after.keys() - before.keys() == {n for n in after if n.startswith("regressor")}
    assert all(torch.allclose(after[n], before[n], atol=1e-6) for n in before)


def test_goals_move_the_predicted_property():
    crystals = random_crystals(SIZES)
    model = tiny_model("symat", "generate", crystals, property="energy", search_steps=60)
    layout = Layout(torch.full((6,), 3))

    def latents(goal: Goal | None) -> torch.Tensor:
        targets = [Target(n_atoms=3, goal=goal)] * 6
        return model._latents(targets, layout, noise_for(6))

    def predicted(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.regressor(z.flatten(1))[:, 0]

    plain = predicted(latents(None))
    assert (predicted(latents(Goal("energy", "minimize"))) < plain).all()
    assert (predicted(latents(Goal("energy", "maximize"))) > plain).all()
    hit = predicted(latents(Goal("energy", "target", 0.1)))
    assert ((hit - 0.1).abs() <= (plain - 0.1).abs() + 1e-3).all()
    assert torch.equal(latents(Goal("energy", "minimize", None, 0.0)), latents(None))
    made = model.sample([Target(n_atoms=3, goal=Goal("energy", "minimize"))], noise_for(1), steps=2)
    assert len(made.species) == 3


def test_goals_the_weights_do_not_know_are_refused():
    model = tiny_model("symat", "generate", random_crystals(SIZES), property="energy")
    with pytest.raises(InputError, match="know energy"):
        model.sample([Target(goal=Goal("gap", "minimize"))], noise_for(1), steps=2)


@pytest.mark.parametrize(
    "wrong", [{"n_levels": 3}, {"sigma_low": 20.0}, {"nearest": 0}, {"temperature_noise": -1.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError, match=r"model\.") as raised:
        SyMatConfig(**{**SMALL, **wrong})
    assert raised.value.hint
