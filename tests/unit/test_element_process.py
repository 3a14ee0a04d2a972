"""Diffusion of elements: Bayes' rule against densities, and sampled laws against known ones."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import crystals_for, noise_for, tiny_model
from torch import Tensor

from crystalctl.crystal.batch import Layout, Target
from crystalctl.crystal.goal import Goal
from crystalctl.diffusion.elements import ElementProcess
from crystalctl.diffusion.sampling import predictor_corrector
from crystalctl.diffusion.schedules import CosineSchedule, spaced_steps

N_ROWS = 4000
LAYOUT = Layout(torch.ones(N_ROWS, dtype=torch.int64))
OF_THREE = {8: 0.6, 22: 0.3, 38: 0.1}
"""Data: each row one of three elements, with these probabilities."""


def logits() -> Tensor:
    """What a perfect network says of every row when the others tell nothing: the frequencies."""
    row = torch.full((100,), -torch.inf)
    for z, p in OF_THREE.items():
        row[z - 1] = math.log(p)
    return row.expand(N_ROWS, 100)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_probabilities_are_those_of_bayes_rule(scale):
    """Against the normal densities themselves, in float64, at all times of a path."""
    process = ElementProcess(CosineSchedule(50), says="element", scale=scale)
    generator = torch.Generator().manual_seed(3)
    layout = Layout(torch.ones(50, dtype=torch.int64))
    t = torch.arange(1, 51)
    species = torch.randint(1, 101, (50,), generator=generator)
    x, eps = process.corrupt(process.clean(species), t, layout, noise_for(50))
    raw = torch.randn(50, 100, generator=generator)
    out = process.outputs(raw, x, t, layout)

    keep = process.schedule.alpha_bar[t].double()[:, None, None]
    centres = keep.sqrt() * scale * torch.eye(100, dtype=torch.float64)
    density = torch.distributions.Normal(centres, (1 - keep).sqrt())
    joint = density.log_prob(x.double()[:, None, :]).sum(2) + raw.double()
    want = joint.log_softmax(1)
    assert torch.allclose(out["element"].double().exp(), want.exp(), atol=1e-4)
    clean = (x - (1 - keep[:, 0]).sqrt() * out["species"]) / keep[:, 0].sqrt()
    late = t < 45  # before, 1 / sqrt(alpha_bar) is all rounding
    assert torch.allclose(clean[late], scale * want[late].exp(), atol=2e-3 * scale)
    errors = process.errors(out, eps, species)
    assert torch.allclose(errors[:, 0].double(), -want[range(50), species - 1], atol=2e-2)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("n_used", [25, 200])
def test_the_sampler_draws_the_frequencies_that_the_network_says(scale, n_used):
    process = ElementProcess(CosineSchedule(200), says="element", scale=scale)
    noise = noise_for(N_ROWS)

    def denoise(state: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        time = torch.full((N_ROWS,), t)
        return process.outputs(logits(), state["species"], time, LAYOUT)

    start = {"species": process.prior(LAYOUT, noise)}
    steps = spaced_steps(200, n_used)
    end = predictor_corrector(
        denoise, {"species": process}, start, steps, LAYOUT, noise, n_correct=0
    )
    species = end["species"].argmax(1) + 1
    for z, p in OF_THREE.items():
        share = float((species == z).double().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / N_ROWS), (z, share)
    # And each row ends on one element, not between several.
    assert float((end["species"].amax(1) / scale - 1).abs().quantile(0.99)) < 0.05


def test_what_is_excluded_is_neither_seen_nor_said():
    process = ElementProcess(CosineSchedule(50), says="element", scale=2.0)
    layout = Layout(torch.ones(3, dtype=torch.int64))
    excluded = torch.zeros(3, 100, dtype=torch.bool)
    excluded[:, 7] = True
    excluded[1, 10:] = True
    for step in (1, 25, 50):
        t = torch.full((3,), step)
        x = process.without(process.prior(layout, noise_for(3)), excluded)
        seen = process.seen(x, t, layout)
        assert bool((seen[excluded] == 0).all())
        assert torch.allclose(seen.sum(1), torch.ones(3), atol=1e-5)
        said = process.outputs(torch.zeros(3, 100), x, t, layout)["element"].exp()
        assert bool((said[excluded] == 0).all())


def test_the_other_form_is_the_published_one():
    process = ElementProcess(CosineSchedule(50), says="noise", scale=1.0)
    layout = Layout(torch.ones(4, dtype=torch.int64))
    x, t = process.prior(layout, noise_for(4)), torch.tensor([1, 9, 30, 50])
    raw = process.prior(layout, noise_for(4, 1))
    assert process.seen(x, t, layout) is x
    out = process.outputs(raw, x, t, layout)
    assert out == {"species": raw}
    assert torch.equal(process.errors(out, x, torch.ones(4)), (raw - x).square())


@pytest.mark.parametrize("family", ["diffcsp", "equicsp"])
def test_only_elements_asked_for_are_drawn(family):
    model = tiny_model(family, "generate", crystals_for(family), species_says="element")
    targets = [Target(n_atoms=4, elements=frozenset({3, 8})) for _ in range(6)]
    found = model.sample(targets, noise_for(6), steps=5)
    assert set(found.species.tolist()) <= {3, 8}


def test_guided_samples_are_of_the_elements_asked_for_too():
    """The gradient passes what is not seen by, and stays finite."""
    settings = {"species_says": "element", "property": "e"}
    model = tiny_model("diffcsp", "generate", crystals_for("diffcsp"), **settings)
    goal = Goal("e", "minimize", None, 3.0)
    targets = [Target(n_atoms=3, elements=frozenset({3, 8}), goal=goal) for _ in range(4)]
    plain = [Target(n_atoms=3, elements=frozenset({3, 8})) for _ in range(4)]
    found, other = (model.sample(which, noise_for(4), steps=5) for which in (targets, plain))
    assert set(found.species.tolist()) <= {3, 8}
    assert bool(found.lattice.isfinite().all() and found.frac.isfinite().all())
    assert not torch.equal(found.lattice, other.lattice)
