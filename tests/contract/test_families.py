"""What every family must do, over FAMILIES and their tasks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from strategies import FAMILY_TASKS, SIZES, crystals_for, noise_for, templates, tiny_model

from crystalctl.checkpoint import build, describe, load_model, write_file
from crystalctl.crystal.batch import Crystals, Target
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.errors import InputError
from crystalctl.models import FAMILIES
from crystalctl.models.contract import total_loss

SAYS_ELEMENTS = {"species_says": "element", "species_scale": 3.0}
CASES = [(family, task, {}) for family, task in FAMILY_TASKS] + [
    (family, "generate", SAYS_ELEMENTS) for family in ("diffcsp", "diffcsp_pp", "equicsp")
]
pytestmark = pytest.mark.parametrize(("family", "task", "settings"), CASES)


@pytest.fixture
def crystals(family: str) -> Crystals:
    return crystals_for(family)


@pytest.fixture
def model(family: str, task: str, settings: dict[str, Any], crystals: Crystals) -> Any:
    return tiny_model(family, task, crystals, **settings)


def targets_for(family: str, task: str) -> list[Target]:
    if FAMILIES[family].symmetric:
        kept = templates()
        if task == "generate":
            kept[1:3] = [replace(template, species=None) for template in kept[1:3]]
        allowed = [None, frozenset({3, 8}), None, None] if task == "generate" else [None] * 4
        return [Target(template=t, elements=e) for t, e in zip(kept, allowed, strict=True)]
    if task == "predict":
        formulas = [{11: 1, 17: 1}, {6: 1}, {26: 2, 8: 3}, {22: 1, 8: 2}]
        return [Target(composition=formula) for formula in formulas]
    return [Target(n_atoms=3), Target(), Target(n_atoms=1), Target(elements=frozenset({3, 8}))]


def tensors_of(crystals: Crystals) -> dict[str, torch.Tensor]:
    named = {f.name: getattr(crystals, f.name) for f in fields(crystals) if f.name != "layout"}
    known = {name: tensor for name, tensor in named.items() if tensor is not None}
    return {**known, "n_atoms": crystals.layout.n_atoms}


def test_loss_leaves_its_input_alone_and_is_finite(model, crystals):
    before = {name: tensor.clone() for name, tensor in tensors_of(crystals).items()}
    terms = model.loss(crystals, noise_for(len(crystals)))
    for name, tensor in tensors_of(crystals).items():
        assert torch.equal(tensor, before[name]), name
    rows = model.loss_rows(len(crystals), crystals.layout.total_atoms)
    assert {name: term.n_rows for name, term in terms.items()} == rows
    assert all(bool(term.total.isfinite()) for term in terms.values())
    total_loss(terms).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_loss_cut_into_pieces_is_the_whole(model, crystals):
    """Loss and gradients: what chunks of a batch and processes of a run rely on."""
    rows = model.loss_rows(len(crystals), crystals.layout.total_atoms)
    whole = total_loss(model.loss(crystals, noise_for(len(crystals))))
    parts = []
    for part in (torch.tensor([2, 0]), torch.tensor([3]), torch.tensor([1])):
        noise = NoiseSource(0, part)
        parts.append(total_loss(model.loss(crystals.index(part), noise), rows))
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    parameters = list(model.parameters())
    one = torch.autograd.grad(whole, parameters)
    many = torch.autograd.grad(sum(parts), parameters)
    for a, b in zip(one, many, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-9)


def test_a_batch_is_its_single_crystals(model, family, task):
    targets = targets_for(family, task)
    batch = model.sample(targets, NoiseSource(3, torch.tensor([9, 4, 7, 1])), steps=4).split()
    for target, stream, inside in zip(targets, [9, 4, 7, 1], batch, strict=True):
        alone = model.sample([target], NoiseSource(3, torch.tensor([stream])), steps=4)
        assert alone.layout.counts == inside.layout.counts
        assert torch.equal(alone.species, inside.species)
        assert torch.allclose(alone.lattice, inside.lattice, atol=1e-4)
        delta = alone.frac - inside.frac
        assert float((delta - delta.round()).abs().max()) < 1e-4


def test_the_same_seed_gives_the_same_crystals_to_the_bit(model, family, task):
    targets = targets_for(family, task)
    one, two, other = (
        model.sample(targets, noise_for(len(targets), seed), steps=3) for seed in (5, 5, 6)
    )
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, tensors_of(two)[name]), name
    assert not torch.equal(one.lattice, other.lattice)


def test_sampling_and_loss_use_no_global_randomness(model, family, task, crystals):
    targets = targets_for(family, task)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model.sample(targets, noise_for(len(targets)), steps=2)
    model.loss(crystals, noise_for(len(crystals)))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_are_what_was_asked_for(model, family, task, crystals):
    targets = targets_for(family, task)
    seen = []
    out = model.sample(
        targets, noise_for(len(targets)), steps=3, on_step=lambda a, b: seen.append((a, b))
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(out) == len(targets)
    assert out.lattice.shape == (len(targets), 3, 3)
    assert float(out.frac.min()) >= 0
    assert float(out.frac.max()) < 1
    assert out.lattice.isfinite().all()
    assert not out.lattice.requires_grad
    for target, one in zip(targets, out.split(), strict=True):
        numbers = one.species.tolist()
        if target.template:
            assert one.layout.orbits.position.tolist() == list(target.template.positions)
            assert one.layout.space_group.tolist() == [target.template.space_group]
            if target.template.species:
                found = one.layout.orbits.at_anchors(one.species)
                assert found.tolist() == list(target.template.species)
        elif target.composition:
            assert numbers == target.species()
        elif target.n_atoms:
            assert len(numbers) == target.n_atoms
        else:
            assert len(numbers) in set(SIZES)
        if target.elements:
            assert set(numbers) <= target.elements
        assert all(1 <= z <= 100 for z in numbers)


def test_requests_for_the_other_task_are_refused(model, family, task):
    wrong = Target(n_atoms=2) if task == "predict" else Target(composition={11: 1})
    with pytest.raises(InputError, match="these weights") as raised:
        model.sample([*targets_for(family, task), wrong], noise_for(5), steps=2)
    assert raised.value.hint


def test_saved_and_loaded_weights_sample_the_same(model, family, task, tmp_path):
    path = tmp_path / "w.safetensors"
    header = {"kind": "weights", **describe(model, family)}
    write_file(path, header, dict(model.state_dict()))
    loaded = load_model(str(path), task=task, family=family)
    assert not loaded.model.training
    assert loaded.model.config == model.config
    assert loaded.model.statistics == model.statistics
    assert describe(loaded.model, family) == describe(model, family)
    targets = targets_for(family, task)
    one, two = (m.sample(targets, noise_for(4), steps=3) for m in (model, loaded.model))
    for name, tensor in tensors_of(one).items():
        assert torch.equal(tensor, tensors_of(two)[name]), name
    assert {n for n, _ in build(loaded.meta).named_parameters()} == {
        n for n, _ in model.named_parameters()
    }


def test_four_crystals_are_learnt(family, task, settings, crystals):
    model = tiny_model(family, task, crystals, hidden=32, **settings).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    stacked = Crystals.cat([crystals] * 8)

    def loss_at(step: int) -> torch.Tensor:
        streams = torch.arange(len(stacked)) + 1000 * step
        return total_loss(model.loss(stacked, NoiseSource(0, streams)))

    def validation() -> float:
        with torch.no_grad():
            return sum(float(loss_at(-k)) for k in range(1, 6)) / 5

    before = validation()
    for step in range(40 if family == "sgequidiff" else 150):  # its steps are slow
        optimizer.zero_grad()
        loss_at(step).backward()
        optimizer.step()
    assert validation() < 0.75 * before


def test_a_lattice_without_volume_stays_finite(model, task, crystals):
    """Training data is checked, but the path of a sampler passes through any matrix."""
    flat = crystals.replace(lattice=crystals.lattice * 0)
    terms = model.loss(flat, noise_for(len(flat)))
    assert all(bool(t.total.isfinite()) for t in terms.values())


def test_accepts_tasks_and_settings_are_declared(family, task, settings):
    row = FAMILIES[family]
    assert task in row.tasks
    assert settings.keys() <= {field.name for field in fields(row.load().Config)}
    assert row.accepts <= {
        "composition",
        "n_atoms",
        "space_group",
        "elements",
        "property",
        "temperature",
        "likeness",
    }
    assert row.paper.startswith("arXiv:")
