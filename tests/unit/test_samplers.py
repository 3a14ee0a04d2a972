"""Reverse processes against data whose score is known, predictor and corrector apart.

An oracle that knows the answer catches a wrong sign or gain, but not a wrong noise amplitude: the
moments do.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from strategies import crystals_for, noise_for, tiny_model
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.crystal.periodic import wrap
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.sampling import predictor_corrector
from crystalctl.diffusion.schedules import (
    CosineSchedule,
    WrappedSchedule,
    restarted_steps,
    spaced_steps,
)
from crystalctl.diffusion.torus import TorusProcess, wrapped_normal_score
from crystalctl.errors import InputError

N_ROWS = 4000
LAYOUT = Layout(torch.ones(N_ROWS, dtype=torch.int64))
CENTRE, SPREAD = 0.97, 0.05
"""Data on the torus: a wrapped normal that lies across the boundary."""


def circular_distance(x: Tensor, centre: float) -> Tensor:
    delta = (x - centre).double()
    return delta - torch.round(delta)


def torus_score(process: TorusProcess, x: Tensor, t: int, spread: float) -> Tensor:
    """What a perfect network says at ``t``: the exact score over sqrt(lambda_t)."""
    width = math.sqrt(float(process.schedule.sigma[t]) ** 2 + spread**2)
    score = wrapped_normal_score((x - CENTRE).double(), torch.tensor(width).double())
    return (score / process.schedule.norm[t].sqrt()).float()


def check_std(sample: Tensor, want: float, n_sigma: float = 5) -> None:
    """The standard deviation is ``want`` to within its own sampling error."""
    got = float(sample.double().std())
    error = want / math.sqrt(2 * sample.numel())
    assert abs(got - want) < n_sigma * error, f"std {got}, expected {want} +- {error}"


# ----------------------------------------------------------------------------- torus, predictor


@pytest.mark.parametrize("n_used", [200, 50, 12])
def test_torus_predictor_alone_follows_the_textbook_variance(n_used):
    """From sigma_t small against the period everything is linear: the variance is known exactly."""
    process = TorusProcess(WrappedSchedule(200, 0.005, 0.12), gamma=0.0)
    sigma = process.schedule.sigma.double()
    steps = spaced_steps(200, n_used)
    variance = SPREAD**2 + float(sigma[-1]) ** 2
    x = wrap(CENTRE + math.sqrt(variance) * noise_for(N_ROWS, 1).normal(LAYOUT, 3, per_atom=True))
    noise = noise_for(N_ROWS)
    for t, s in pairwise(steps):
        x = process.ancestral(x, torus_score(process, x, t, SPREAD), t, s, LAYOUT, noise)
        removed = float(sigma[t] ** 2 - sigma[s] ** 2)
        pull = 1 - removed / (SPREAD**2 + float(sigma[t]) ** 2)
        variance = pull**2 * variance + float(sigma[s] ** 2) * removed / float(sigma[t] ** 2)
    distance = circular_distance(x, CENTRE)
    assert abs(float(distance.mean())) < 5 * SPREAD / math.sqrt(distance.numel())
    check_std(distance, math.sqrt(variance))
    if n_used == 200:  # and with small steps that is the data
        assert math.sqrt(variance) == pytest.approx(SPREAD, rel=0.04)


def test_torus_predictor_alone_reaches_the_data_from_the_prior():
    process = TorusProcess(WrappedSchedule(300, 0.005, 0.5), gamma=0.0)
    noise = noise_for(N_ROWS)
    state = {"frac": process.prior(LAYOUT, noise)}

    def denoise(current, t):
        return {"frac": torus_score(process, current["frac"], t, SPREAD)}

    end = predictor_corrector(
        denoise, {"frac": process}, state, spaced_steps(300, 300), LAYOUT, noise, n_correct=0
    )
    distance = circular_distance(end["frac"], CENTRE)
    assert abs(float(distance.mean())) < 0.003
    assert float(distance.std()) == pytest.approx(SPREAD, rel=0.04)
    # the fourth moment of a normal: no stragglers left from the uniform prior
    kurtosis = float((distance**4).mean() / (distance**2).mean() ** 2)
    assert kurtosis == pytest.approx(3, abs=0.25)


def test_torus_predictor_recovers_a_point_exactly():
    process = TorusProcess(WrappedSchedule(50, 0.005, 0.5), gamma=0.0)
    for n_used in (50, 7, 1):
        noise = noise_for(N_ROWS)
        x = process.prior(LAYOUT, noise)
        for t, s in pairwise(spaced_steps(50, n_used)):
            x = process.ancestral(x, torus_score(process, x, t, 0.0), t, s, LAYOUT, noise)
        # With one step from sigma = 0.5 the score is not that of a single image.
        tolerance = 1e-5 if n_used > 1 else 0.5
        assert float(circular_distance(x, CENTRE).abs().max()) < tolerance


# ----------------------------------------------------------------------------- torus, corrector


def test_torus_corrector_alone_settles_at_the_data_of_that_step():
    """Langevin with step h on N(0, v) settles at variance v / (1 - h / 2v)."""
    schedule = WrappedSchedule(100, 0.005, 0.5)
    t = 50
    variance = float(schedule.sigma[t]) ** 2 + SPREAD**2
    step = 0.1 * variance
    process = TorusProcess(schedule, gamma=step * float(schedule.sigma[1] / schedule.sigma[t]) ** 2)
    noise = noise_for(N_ROWS)
    for start in (0.01, 0.12):  # from below and from above
        x = wrap(CENTRE + start * noise_for(N_ROWS, 2).normal(LAYOUT, 3, per_atom=True))
        for _ in range(60):
            x = process.langevin(x, torus_score(process, x, t, SPREAD), t, LAYOUT, noise)
        distance = circular_distance(x, CENTRE)
        check_std(distance, math.sqrt(variance / (1 - step / (2 * variance))))
        assert abs(float(distance.mean())) < 5 * math.sqrt(variance / distance.numel())


def test_torus_corrector_noise_and_drift_of_one_step():
    schedule = WrappedSchedule(100, 0.005, 0.5)
    process = TorusProcess(schedule, gamma=1e-6)
    for t in (2, 40, 100):
        step = 1e-6 * float(schedule.sigma[t] / schedule.sigma[1]) ** 2
        x = torch.full((N_ROWS, 3), CENTRE)
        moved = process.langevin(x, torch.zeros_like(x), t, LAYOUT, noise_for(N_ROWS))
        check_std(circular_distance(moved, CENTRE), math.sqrt(2 * step))
        out = torch.full_like(x, -0.7)
        pushed = process.langevin(x, out, t, LAYOUT, noise_for(N_ROWS))
        drift = circular_distance(pushed, 0.0) - circular_distance(moved, 0.0)
        drift = drift - torch.round(drift)
        want = -0.7 * step * float(schedule.norm[t]) ** 0.5
        assert torch.allclose(drift, torch.tensor(want).double(), atol=2e-6)
    quiet = process.langevin(x, torch.zeros_like(x), 1, LAYOUT, noise_for(N_ROWS))
    assert torch.equal(quiet, x)


def test_corrector_comes_before_the_predictor_and_gets_fresh_outputs():
    calls: list[tuple[str, int, float]] = []

    class Recorder:
        def langevin(self, x, out, t, layout, noise):
            calls.append(("corrector", t, float(out)))
            return x + 1

        def ancestral(self, x, out, t, s, layout, noise):
            calls.append((f"predictor to {s}", t, float(out)))
            return x + 10

    seen: list[tuple[int, int]] = []
    state = {"x": torch.zeros(1), "held": torch.tensor([5.0])}
    end = predictor_corrector(
        lambda current, t: {"x": current["x"]},
        {"x": Recorder()},
        state,
        [4, 2, 0],
        LAYOUT,
        noise_for(1),
        n_correct=2,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert calls == [
        ("corrector", 4, 0.0),
        ("corrector", 4, 1.0),
        ("predictor to 2", 4, 2.0),
        ("corrector", 2, 12.0),
        ("corrector", 2, 13.0),
        ("predictor to 0", 2, 14.0),
    ]
    assert seen == [(1, 2), (2, 2)]
    assert float(end["x"]) == 24
    assert end["held"] is state["held"]
    assert float(state["x"]) == 0


def test_a_step_up_adds_noise_and_is_not_counted():
    calls: list[tuple[str, int, int]] = []

    class Recorder:
        def noised(self, x, t, s, layout, noise):
            calls.append(("up", t, s))
            return x + 100

        def ancestral(self, x, out, t, s, layout, noise):
            calls.append(("down", t, s))
            return x + out

    seen: list[tuple[int, int]] = []
    end = predictor_corrector(
        lambda current, t: {"x": current["x"]},
        {"x": Recorder()},
        {"x": torch.ones(1)},
        [4, 0, 3, 0],
        LAYOUT,
        noise_for(1),
        n_correct=0,
        on_step=lambda done, total: seen.append((done, total)),
    )
    assert calls == [("down", 4, 0), ("up", 0, 3), ("down", 3, 0)]
    assert seen == [(1, 2), (2, 2)]
    assert float(end["x"]) == 204


def test_torus_restarts_keep_the_data_and_mend_what_one_way_down_got_wrong():
    """With a network that is wrong at high noise only, restarts below that forget the error."""
    process = TorusProcess(WrappedSchedule(200, 0.005, 0.5), gamma=0.0)

    def spread_after(restarts: int, wrong: float) -> float:
        noise = noise_for(N_ROWS)
        state = {"frac": process.prior(LAYOUT, noise)}

        def denoise(current, t):
            # Above sigma = 0.1 the data are said to be wider than they are.
            spread = wrong if float(process.schedule.sigma[t]) > 0.1 else SPREAD
            return {"frac": torus_score(process, current["frac"], t, spread)}

        steps = restarted_steps(200, 150, 140, restarts)
        end = predictor_corrector(
            denoise, {"frac": process}, state, steps, LAYOUT, noise, n_correct=0
        )
        return float(circular_distance(end["frac"], CENTRE).std())

    assert spread_after(3, SPREAD) == pytest.approx(SPREAD, rel=0.06)
    once, again = spread_after(0, 0.6), spread_after(3, 0.6)
    assert 0.9 * SPREAD < again < (SPREAD + once) / 2


def test_torus_predictor_and_corrector_together_reach_the_data():
    process = TorusProcess(WrappedSchedule(200, 0.005, 0.5), gamma=5e-6)
    noise = noise_for(N_ROWS)
    state = {"frac": process.prior(LAYOUT, noise)}
    end = predictor_corrector(
        lambda current, t: {"frac": torus_score(process, current["frac"], t, SPREAD)},
        {"frac": process},
        state,
        spaced_steps(200, 200),
        LAYOUT,
        noise,
    )
    assert float(circular_distance(end["frac"], CENTRE).std()) == pytest.approx(SPREAD, rel=0.05)


# ----------------------------------------------------------------------------- forward process


def test_torus_corruption_law_and_target():
    process = TorusProcess(WrappedSchedule(100, 0.005, 0.5), gamma=1e-5)
    x0 = torch.full((N_ROWS, 3), CENTRE)
    for t in (1, 50, 80):
        steps = torch.full((N_ROWS,), t)
        x, target = process.corrupt(x0, steps, LAYOUT, noise_for(N_ROWS))
        sigma = float(process.schedule.sigma[t])
        distance = circular_distance(x, CENTRE)
        if sigma < 0.1:
            check_std(distance, sigma)
        exact = torus_score(process, x, t, 0.0)
        assert float(target.square().mean()) == pytest.approx(1, rel=0.05)
        scale = 1 / sigma  # normalised slope; x is known to a float32 ulp only
        assert float((target - exact).abs().max()) < 3e-7 * scale + 1e-5 * scale * 0.1
        assert float(x.min()) >= 0
        assert float(x.max()) < 1


def test_adding_noise_to_a_noised_row_is_noising_it_once():
    torus = TorusProcess(WrappedSchedule(100, 0.005, 0.2), gamma=0.0)
    gauss = GaussianProcess(CosineSchedule(100), width=3, per_atom=True, limit=1e9)
    noise = noise_for(N_ROWS)
    at = torch.full((N_ROWS,), 40)
    x, _ = torus.corrupt(torch.full((N_ROWS, 3), CENTRE), at, LAYOUT, noise)
    x = torus.noised(x, 40, 90, LAYOUT, noise)
    check_std(circular_distance(x, CENTRE), float(torus.schedule.sigma[90]))
    assert 0 <= float(x.min()) <= float(x.max()) < 1
    y, _ = gauss.corrupt(torch.full((N_ROWS, 3), 2.0), at, LAYOUT, noise)
    y = gauss.noised(y, 40, 90, LAYOUT, noise)
    bar = float(gauss.schedule.alpha_bar[90])
    check_std(y, math.sqrt(1 - bar))
    assert float(y.mean()) == pytest.approx(2 * math.sqrt(bar), abs=5 / math.sqrt(y.numel()))


def test_each_crystal_gets_its_own_step():
    process = TorusProcess(WrappedSchedule(100, 0.001, 0.1), gamma=0.0)
    layout = Layout(torch.tensor([2000, 3000]))
    x0 = torch.full((5000, 3), 0.5)
    x, _ = process.corrupt(x0, torch.tensor([1, 100]), layout, noise_for(2))
    check_std(x[:2000] - 0.5, 0.001)
    check_std(x[2000:] - 0.5, 0.1)
    gauss = GaussianProcess(CosineSchedule(100), width=3, per_atom=True, limit=1e9)
    y, eps = gauss.corrupt(torch.full((5000, 3), 2.0), torch.tensor([1, 60]), layout, noise_for(2))
    bar = gauss.schedule.alpha_bar
    for rows, t in ((slice(0, 2000), 1), (slice(2000, 5000), 60)):
        want = bar[t].sqrt() * 2 + (1 - bar[t]).sqrt() * eps[rows]
        assert torch.allclose(y[rows], want)


# ----------------------------------------------------------------------------- Gaussian process

MEAN, WIDTH = 3.0, 0.5


def gaussian_eps(process: GaussianProcess, x: Tensor, t: int) -> Tensor:
    """The expected noise in ``x`` for data N(MEAN, WIDTH^2)."""
    bar = float(process.schedule.alpha_bar[t])
    return math.sqrt(1 - bar) * (x - math.sqrt(bar) * MEAN) / (bar * WIDTH**2 + 1 - bar)


@pytest.mark.parametrize("per_atom", [True, False])
@pytest.mark.parametrize("n_used", [200, 40])
def test_gaussian_predictor_reaches_the_data(n_used, per_atom):
    process = GaussianProcess(CosineSchedule(200), width=3, per_atom=per_atom, limit=1e9)
    noise = noise_for(N_ROWS)
    x = process.prior(LAYOUT, noise)
    bar = process.schedule.alpha_bar.double().tolist()
    mean, variance = 0.0, 1.0
    for t, s in pairwise(spaced_steps(200, n_used)):
        x = process.ancestral(x, gaussian_eps(process, x, t), t, s, LAYOUT, noise)
        # Moments of the textbook step (x - beta / sqrt(1 - bar) eps) / sqrt(1 - beta) + noise.
        beta = 1 - bar[t] / bar[s]
        slope = math.sqrt(1 - bar[t]) / (bar[t] * WIDTH**2 + 1 - bar[t])
        gain = beta / math.sqrt(1 - bar[t])
        factor = (1 - gain * slope) / math.sqrt(1 - beta)
        shift = gain * slope * math.sqrt(bar[t]) * MEAN / math.sqrt(1 - beta)
        mean = factor * mean + shift
        variance = factor**2 * variance + beta * (1 - bar[s]) / (1 - bar[t]) * (s > 0)
    assert float(x.double().mean()) == pytest.approx(mean, abs=5 * WIDTH / math.sqrt(x.numel()))
    check_std(x, math.sqrt(variance))
    if n_used == 200:
        assert mean == pytest.approx(MEAN, abs=0.02)
        assert math.sqrt(variance) == pytest.approx(WIDTH, rel=0.05)


def test_gaussian_step_is_the_textbook_formula_below_the_limit():
    process = GaussianProcess(CosineSchedule(100), width=9, per_atom=False, limit=1e9)
    beta, bar = process.schedule.beta.double(), process.schedule.alpha_bar.double()
    source = noise_for(N_ROWS, 5)
    x0 = 4 * source.normal(LAYOUT, 9, per_atom=False).double()
    eps = source.normal(LAYOUT, 9, per_atom=False).double()
    for t in (1, 2, 30, 90):
        x = bar[t].sqrt() * x0 + (1 - bar[t]).sqrt() * eps
        got = process.ancestral(x.float(), eps.float(), t, t - 1, LAYOUT, noise_for(N_ROWS))
        want = (x - beta[t] / (1 - bar[t]).sqrt() * eps) / (1 - beta[t]).sqrt()
        if t > 1:
            z = noise_for(N_ROWS).normal(LAYOUT, 9, per_atom=False)
            want = want + (beta[t] * (1 - bar[t - 1]) / (1 - bar[t])).sqrt() * z
        assert torch.allclose(got.double(), want, atol=2e-5), t
    # Which of them are below the limit makes no difference to those that are.
    limited = GaussianProcess(CosineSchedule(100), width=9, per_atom=False, limit=13.0)
    got = process.ancestral(x.float(), eps.float(), 90, 89, LAYOUT, noise_for(N_ROWS))
    bounded = limited.ancestral(x.float(), eps.float(), 90, 89, LAYOUT, noise_for(N_ROWS))
    free = torch.linalg.vector_norm(x0, dim=1) < 12.9
    assert 0.2 < float(free.float().mean()) < 0.8
    assert torch.allclose(got[free], bounded[free], atol=1e-5)
    assert not torch.allclose(got[~free], bounded[~free], atol=1e-3)


def test_gaussian_limit_bounds_a_wild_prediction():
    process = GaussianProcess(CosineSchedule(100), width=9, per_atom=False, limit=60.0)
    noise = noise_for(N_ROWS)
    x = process.prior(LAYOUT, noise)
    for t, s in pairwise(spaced_steps(100, 10)):
        x = process.ancestral(x, 5 * noise.normal(LAYOUT, 9, per_atom=False), t, s, LAYOUT, noise)
    assert float(torch.linalg.vector_norm(x, dim=1).max()) < 61
    assert torch.isfinite(process.ancestral(x * 0, x * 0, 1, 0, LAYOUT, noise)).all()


@pytest.mark.parametrize("n_used", [100, 9, 1])
def test_gaussian_predictor_recovers_a_point(n_used):
    process = GaussianProcess(CosineSchedule(100), width=9, per_atom=False, limit=60.0)
    noise = noise_for(N_ROWS)
    point = torch.linspace(-4, 8, 9).expand(N_ROWS, 9)
    x = process.prior(LAYOUT, noise)
    bar = process.schedule.alpha_bar
    for t, s in pairwise(spaced_steps(100, n_used)):
        eps = (x - bar[t].sqrt() * point) / (1 - bar[t]).sqrt()
        x = process.ancestral(x, eps, t, s, LAYOUT, noise)
    assert torch.allclose(x, point, atol=0.05 if n_used == 1 else 1e-4)


def test_gaussian_has_no_corrector():
    process = GaussianProcess(CosineSchedule(10), width=9, per_atom=False, limit=1.0)
    x = torch.randn(N_ROWS, 9)
    assert process.langevin(x, x, 5, LAYOUT, noise_for(N_ROWS)) is x


def test_wrap_stays_below_one():
    x = torch.tensor([-1e-9, 1.0, -0.25, 2.75, 0.0, -1.0])
    assert wrap(x).tolist() == [0.0, 0.0, 0.75, 0.75, 0.0, 0.0]
    assert float(wrap(torch.randn(10_000) * 100).max()) < 1


# ----------------------------------------------------------------------------- settings

WRONG = [
    *({name: value} for name in ("gamma", "n_correct", "restarts") for value in (-1, math.inf)),
    {"restart_level": 0.0},
    {"restart_level": 1.5},
    {"sample_steps": 0},
    {"sample_steps": 21},
    {"sigma_low": 0.7},
]


@pytest.mark.parametrize("family", ["diffcsp", "diffcsp_pp", "equicsp", "sgequidiff"])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_settings_that_no_sampler_can_have_are_refused(family, wrong):
    with pytest.raises(InputError, match=f"model.{next(iter(wrong))} = "):
        tiny_model(family, "generate", crystals_for(family), **wrong)


@pytest.mark.parametrize("wrong", [{"species_says": "colour"}, {"species_scale": 0.0}], ids=str)
def test_settings_that_no_species_can_have_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        tiny_model("diffcsp", "generate", crystals_for("diffcsp"), **wrong)
