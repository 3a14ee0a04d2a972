"""Energy guidance: gradients of the network, where they move samples, and DiffCSP with a goal."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from strategies import SIZES, noise_for, random_crystals, tiny_model, write_dataset

from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Layout, Target
from crystalctl.crystal.goal import Goal
from crystalctl.crystal.periodic import wrap
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.sampling import predictor_corrector
from crystalctl.diffusion.schedules import CosineSchedule, WrappedSchedule, spaced_steps
from crystalctl.diffusion.torus import TorusProcess
from crystalctl.errors import InputError
from crystalctl.models.contract import total_loss
from crystalctl.models.properties import guided
from crystalctl.training.run import train

TASKS = ("predict", "generate")


# ------------------------------------------------------------- where a known gradient moves samples

N, T, START, SPREAD, CENTRE = 500, 400, 200, 0.05, 0.4
SLOPE, FACTOR = torch.tensor([1.0, -2.0, 0.0]), 2.0
PROCESSES = {
    "lattice": GaussianProcess(CosineSchedule(T), width=3, per_atom=False, limit=10.0),
    "frac": TorusProcess(WrappedSchedule(T, 0.002, 0.5), gamma=0.0),
}


def expected(state, t, layout):
    """A perfect network for independent normal data of width SPREAD, at 0 and at CENTRE.

    Property: SLOPE . (lattice + frac - CENTRE) / SPREAD; what is expected of the clean crystal is
    linear in the noised one while the noise is small against the period.
    """
    alpha = PROCESSES["lattice"].schedule.alpha_bar[t][:, None]
    variance = alpha * SPREAD**2 + 1 - alpha
    sigma = PROCESSES["frac"].schedule.sigma[t][:, None]
    delta = wrap(state["frac"] - CENTRE + 0.5) - 0.5
    lattice = alpha.sqrt() * SPREAD**2 / variance * state["lattice"]
    frac = SPREAD**2 / (SPREAD**2 + sigma**2) * delta
    norm = PROCESSES["frac"].schedule.norm[t][:, None]
    return {
        "lattice": (1 - alpha).sqrt() * state["lattice"] / variance,
        "frac": -delta / (SPREAD**2 + sigma**2) / norm.sqrt(),
        "property": ((lattice + frac) * SLOPE).sum(1) / SPREAD,
    }


def samples(goal: Goal | None, shift: torch.Tensor | float = 0.0) -> dict[str, torch.Tensor]:
    """From where the noise is still small against the period, so that all is exactly normal.

    ``shift``: how far the density that is wanted lies from the data.
    """
    layout = Layout(torch.ones(N, dtype=torch.int64))
    noise = noise_for(N)
    call = guided(expected, PROCESSES, [goal] * N, layout, factor=FACTOR)
    steps = [t for t in spaced_steps(T, T) if t <= START]
    width = math.sqrt(SPREAD**2 + float(PROCESSES["frac"].schedule.sigma[START]) ** 2)
    alpha = float(PROCESSES["lattice"].schedule.alpha_bar[START])
    spread = math.sqrt(alpha * SPREAD**2 + 1 - alpha)
    lattice = math.sqrt(alpha) * shift + spread * noise.normal(layout, 3, per_atom=False)
    frac = wrap(CENTRE + shift + width * noise.normal(layout, 3, per_atom=True))
    with torch.inference_mode():
        start = torch.full((N,), 0)
        end = predictor_corrector(
            lambda x, t: call(x, start + t),
            PROCESSES,
            {"lattice": lattice, "frac": frac},
            steps,
            layout,
            noise,
            n_correct=0,
        )
    return {"lattice": end["lattice"], "frac": wrap(end["frac"] - CENTRE + 0.5) - 0.5}


@pytest.mark.parametrize(
    ("goal", "sign"), [(Goal("x", "minimize"), -1), (Goal("x", "maximize", None, 0.5), 0.5)]
)
def test_normal_data_tilted_by_a_linear_property_only_shift(goal, sign):
    """Normal data times exp(-f g x / s) are normal data of the same width, f g s further down."""
    want = sign * FACTOR * SPREAD * SLOPE
    plain, unguided = samples(None), samples(None, want)
    for name, field in samples(goal, want).items():
        assert plain[name].std(0) == pytest.approx(SPREAD, rel=0.12)
        shift = field - plain[name]  # from the same noise
        assert torch.allclose(shift, shift.mean(0), atol=1e-4), name
        assert torch.allclose(shift.mean(0), want, atol=1e-4, rtol=0.1)
        left = (unguided[name] - plain[name]).mean(0)
        assert float(left.abs().max()) < 0.8 * float(want.abs().max())


def test_a_target_is_approached_from_both_sides():
    """exp(-f (y - v)^2 / 2) on y = g x / s of variance 2 |g|^2: a known mean; no more than that.

    The variance around the expectation is not in the cost, so the pull is too strong by far.
    """
    own = float(2 * SLOPE.square().sum())

    def y(found):
        return ((found["lattice"] + found["frac"]) * SLOPE).sum(1) / SPREAD

    plain = y(samples(None))
    assert float(plain.mean()) == pytest.approx(0, abs=0.7)
    assert float(plain.var()) == pytest.approx(own, rel=0.15)
    for value in (3.0, -3.0):
        found = y(samples(Goal("x", "target", value)))
        want = value * own * FACTOR / (1 + own * FACTOR)
        assert float(found.mean()) == pytest.approx(want, rel=0.1)
        assert float(found.std()) < 0.5 * math.sqrt(own)


# ------------------------------------------------------------------------- gradients of the network


@pytest.mark.parametrize("task", TASKS)
def test_the_gradient_is_that_of_finite_differences(task):
    crystals = random_crystals(SIZES)
    model = tiny_model("diffcsp", task, crystals, property="e").double()
    time = torch.tensor([3, 9, 15, 20])
    state = {
        name: field.double().requires_grad_() if field.is_floating_point() else field
        for name, field in model._clean(crystals).items()
    }

    def read(state):
        matrix = state["lattice"].view(-1, 3, 3)
        gram = (matrix @ matrix.transpose(1, 2)).flatten(1)
        out = model.network(state["species"], state["frac"], gram, time, crystals.layout)
        return out.scalar.sum()

    fields = [name for name in state if state[name].requires_grad]
    assert fields == ["lattice", "frac"] + ["species"] * (task == "generate")
    gradients = torch.autograd.grad(read(state), [state[name] for name in fields])
    generator = torch.Generator().manual_seed(0)
    for name, gradient in zip(fields, gradients, strict=True):
        way = 1e-4 * torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            up, down = (read({**state, name: state[name] + s * way}) for s in (1, -1))
        assert float((gradient * way).sum()) == pytest.approx(float(up - down) / 2, rel=1e-5), name
    # Also where an atom sees itself; and a crystal moved as a whole stays as it is.
    whole = torch.zeros(len(crystals), 3, dtype=torch.float64)
    whole.index_add_(0, crystals.layout.crystal_idx, gradients[1])
    assert float(whole.abs().max()) < 1e-6 * float(gradients[1].abs().max())


@pytest.mark.parametrize("task", TASKS)
def test_the_property_does_not_depend_on_axes_origin_or_order(task):
    crystals = random_crystals(SIZES)
    model = tiny_model("diffcsp", task, crystals, property="e", property_mean=3.0)
    known = model.predicted(crystals)
    assert known.shape == (4,)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    moved = crystals.replace(
        lattice=crystals.lattice @ turn, frac=wrap(crystals.frac + torch.tensor([0.3, 0.9, 0.5]))
    )
    assert torch.allclose(model.predicted(moved), known, atol=1e-4)
    order = torch.tensor([2, 1, 0, 3, 7, 6, 5, 4, 9, 8])
    mixed = crystals.replace(frac=crystals.frac[order], species=crystals.species[order])
    assert torch.allclose(model.predicted(mixed), known, atol=1e-5)
    assert float((known - 3.0).abs().max()) > 1e-4


# ---------------------------------------------------------------------------------- DiffCSP with it


def targets_for(task: str, goals: list[Goal | None]) -> list[Target]:
    if task == "generate":
        return [Target(n_atoms=n, goal=g) for n, g in zip((2, 4, 3), goals, strict=True)]
    formulas = ({11: 1, 17: 1}, {26: 2, 8: 2}, {22: 1, 8: 2})
    return [Target(composition=f, goal=g) for f, g in zip(formulas, goals, strict=True)]


def same(one, other) -> bool:
    names = ("lattice", "frac", "species")
    return all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


@pytest.mark.parametrize("task", TASKS)
def test_strength_0_is_no_guidance_to_the_byte(task):
    model = tiny_model("diffcsp", task, random_crystals(SIZES), property="e", guidance=30.0)
    plain = model.sample(targets_for(task, [None] * 3), noise_for(3), steps=4)
    for strength in (0.0, 1.0):
        goal = Goal("e", "minimize", None, strength)
        with torch.inference_mode():
            found = model.sample(targets_for(task, [goal] * 3), noise_for(3), steps=4)
        assert same(found, plain) is (strength == 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_goal_moves_its_own_crystal_only(task):
    model = tiny_model("diffcsp", task, random_crystals(SIZES), property="e", guidance=30.0)
    goals = [Goal("e", "minimize"), None, Goal("e", "target", 0.3, 2.0)]
    plain = model.sample(targets_for(task, [None] * 3), noise_for(3), steps=4).split()
    batch = model.sample(targets_for(task, goals), noise_for(3), steps=4).split()
    assert [torch.allclose(a.frac, b.frac) for a, b in zip(plain, batch, strict=True)] == [
        False,
        True,
        False,
    ]
    for row, target in enumerate(targets_for(task, goals)):
        alone = model.sample([target], NoiseSource(0, torch.tensor([row])), steps=4)
        delta = alone.frac - batch[row].frac
        assert float((delta - delta.round()).abs().max()) < 1e-4
        assert torch.equal(alone.species, batch[row].species)
        assert torch.allclose(alone.lattice, batch[row].lattice, atol=1e-4)


def test_guided_crystals_are_of_elements_that_training_had():
    crystals = random_crystals(SIZES)
    model = tiny_model("diffcsp", "generate", crystals, property="e", guidance=300.0)
    seen = set(crystals.species.tolist())
    plain = model.sample([Target(n_atoms=4)] * 6, noise_for(6), steps=4)
    targets = [Target(n_atoms=4, goal=Goal("e", "minimize"))] * 6
    assert set(model.sample(targets, noise_for(6), steps=4).species.tolist()) <= seen
    assert not set(plain.species.tolist()) <= seen


def test_a_property_the_weights_do_not_know_is_refused():
    for known in ("", "e"):
        model = tiny_model("diffcsp", "generate", random_crystals(SIZES), property=known)
        goals = [Goal("gap", "minimize"), None, None]
        with pytest.raises(InputError, match="these weights know"):
            model.sample(targets_for("generate", goals), noise_for(3), steps=2)


def test_a_factor_below_zero_is_refused():
    with pytest.raises(InputError, match="guidance = -1"):
        tiny_model("diffcsp", "generate", random_crystals(SIZES), property="e", guidance=-1.0)


@pytest.mark.parametrize("task", TASKS)
def test_every_parameter_learns_and_unknown_labels_teach_nothing(task):
    crystals = random_crystals(SIZES)
    model = tiny_model("diffcsp", task, crystals, property="e", property_std=2.0)
    labels = torch.tensor([1.0, torch.nan, torch.nan, 3.0])
    terms = model.loss(crystals.replace(labels=labels), noise_for(4))
    assert model.loss_rows(4, crystals.layout.total_atoms) == {
        k: v.n_rows for k, v in terms.items()
    }
    total_loss(terms).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    none = model.loss(crystals, noise_for(4))["property"].total
    assert float(none.detach()) == 0 < float(terms["property"].total.detach())


def test_train_learns_a_column_beside_the_rest(tmp_path: Path):
    data = write_dataset(tmp_path / "data.safetensors", 12)
    tiny = {"task": "generate", "hidden": 16, "n_layers": 1, "n_frequencies": 4, "time_width": 8}
    settings = {"train": {"epochs": 1, "batch_size": 4}, "model": {**tiny, "property": "energy"}}
    result = train("diffcsp", data=data, out=tmp_path / "a", settings=settings)
    model = load_model(str(result.weights), task="generate").model
    assert model.config.property_mean == pytest.approx(0, abs=1e-6)
    assert model.config.property_std == pytest.approx(0.6556, abs=1e-3)
    with torch.inference_mode():
        made = model.sample([Target(goal=Goal("energy", "minimize"))] * 2, noise_for(2), steps=3)
    assert model.predicted(made).isfinite().all()
