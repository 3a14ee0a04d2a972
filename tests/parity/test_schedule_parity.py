"""Schedules, the wrapped normal's score and its norm against formulas written out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystalctl.diffusion.schedules import (
    CosineSchedule,
    WrappedSchedule,
    restarted_steps,
    score_norm,
    spaced_steps,
)
from crystalctl.diffusion.torus import wrapped_normal_score

SIGMAS = [1e-3, 5e-3, 0.02, 0.1, 0.25, 0.299999, 0.3, 0.300001, 0.35, 0.5, 1.0, 2.0, 5.0]


def brute_score(delta: torch.Tensor, sigma: float) -> torch.Tensor:
    """The sum over 101 images, shifted by its largest exponent."""
    distance = delta[:, None] + torch.arange(-50, 51, dtype=torch.float64)
    exponent = -(distance**2) / (2 * sigma**2)
    weight = torch.exp(exponent - exponent.max(1, keepdim=True).values)
    return -(weight * distance).sum(1) / sigma**2 / weight.sum(1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_equals_the_sum_over_images(sigma):
    delta = torch.cat(
        [
            torch.linspace(-1.5, 1.5, 601, dtype=torch.float64),
            torch.tensor([0.49999999, 0.5, -0.5, 1e-9], dtype=torch.float64),
        ]
    )
    got = wrapped_normal_score(delta, torch.tensor(sigma, dtype=torch.float64))
    want = brute_score(delta, sigma)
    # The middle between two images is a point of zero slope reached by cancellation of 1/sigma^2.
    floor = 1e-10 * max(1.0, 1e-2 / sigma**2)
    # 101 images are themselves a truncation and cancel: at sigma = 5 the true slope is ~1e-213.
    assert torch.allclose(got, want, rtol=1e-10, atol=floor), float((got - want).abs().max())


def test_score_is_the_slope_of_the_log_density():
    delta = torch.linspace(-0.45, 0.45, 19, dtype=torch.float64).requires_grad_()
    for sigma in (0.05, 0.2, 0.6):
        images = delta[:, None] + torch.arange(-20, 21, dtype=torch.float64)
        density = torch.logsumexp(-(images**2) / (2 * sigma**2), 1)
        (slope,) = torch.autograd.grad(density.sum(), delta)
        got = wrapped_normal_score(delta.detach(), torch.tensor(sigma, dtype=torch.float64))
        assert torch.allclose(got, slope, rtol=1e-10, atol=1e-10)


def test_score_in_float32_is_good_enough_for_training():
    delta = torch.linspace(-0.5, 0.5, 401, dtype=torch.float64)
    for sigma in (0.005, 0.05, 0.2, 0.29, 0.31, 0.5):
        got = wrapped_normal_score(delta.float(), torch.tensor(sigma))
        want = brute_score(delta.float().double(), sigma)
        scale = float(want.abs().max())
        keep = (delta.abs() < 0.49) | (torch.tensor(sigma) > 0.1)
        assert float((got.double() - want).abs()[keep].max()) < 1e-4 * scale


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.15, 0.3, 0.5])
def test_score_norm_equals_quadrature_over_the_density(sigma):
    """E over the wrapped density on one period: another integral than the one in the package."""
    nodes = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000 - 0.5
    images = nodes[:, None] + torch.arange(-5, 6, dtype=torch.float64)
    density = torch.exp(-(images**2) / (2 * sigma**2)).sum(1) / (sigma * math.sqrt(2 * math.pi))
    assert float(density.mean()) == pytest.approx(1, abs=1e-7)
    want = float((density * brute_score(nodes, sigma) ** 2).mean())
    got = float(score_norm(torch.tensor([sigma], dtype=torch.float64)))
    assert got == pytest.approx(want, rel=1e-6)


def test_score_norm_at_narrow_widths_is_that_of_a_normal():
    sigma = torch.tensor([0.005, 0.02], dtype=torch.float64)
    assert torch.allclose(score_norm(sigma), 1 / sigma**2, rtol=1e-9)


def test_cosine_schedule_written_out():
    n_steps, s = 1000, 0.008
    f = [math.cos((t / n_steps + s) / (1 + s) * math.pi / 2) ** 2 for t in range(n_steps + 1)]
    beta = [0.0] + [min(max(1 - f[t] / f[t - 1], 1e-4), 0.9999) for t in range(1, n_steps + 1)]
    schedule = CosineSchedule(n_steps)
    assert torch.allclose(schedule.beta.double(), torch.tensor(beta).double(), rtol=1e-5)
    product = 1.0
    for t in range(n_steps + 1):
        product *= 1 - beta[t]
        assert float(schedule.alpha_bar[t]) == pytest.approx(product, rel=1e-5), t
    # Away from the clips this is f(t) / f(0).
    for t in (100, 500, 900):
        assert float(schedule.alpha_bar[t]) == pytest.approx(f[t] / f[0], rel=2e-3)
    assert float(schedule.alpha_bar[0]) == 1
    assert float(schedule.beta[0]) == 0


def test_wrapped_schedule_is_log_spaced():
    schedule = WrappedSchedule(50, 0.005, 0.5)
    assert schedule.sigma.shape == schedule.norm.shape == (51,)
    assert float(schedule.sigma[0]) == 0
    for t in range(1, 51):
        want = 0.005 * 100 ** ((t - 1) / 49)
        assert float(schedule.sigma[t]) == pytest.approx(want, rel=1e-6)
        want_norm = float(score_norm(torch.tensor([want], dtype=torch.float64)))
        assert float(schedule.norm[t]) == pytest.approx(want_norm, rel=1e-5)


@pytest.mark.parametrize(
    ("n_steps", "n_used"), [(1000, 1000), (1000, 999), (1000, 7), (20, 20), (5, 1)]
)
def test_spaced_steps_fall_from_the_top_to_zero(n_steps, n_used):
    steps = spaced_steps(n_steps, n_used)
    assert steps[0] == n_steps
    assert steps[-1] == 0
    assert len(steps) == n_used + 1
    gaps = [a - b for a, b in pairwise(steps)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("n_used", [0, -1, 21])
def test_impossible_step_counts_are_refused(n_used):
    with pytest.raises(ValueError, match="steps"):
        spaced_steps(20, n_used)


@given(st.integers(2, 1000), st.data())
def test_restarts_share_the_steps_and_end_at_zero(n_steps, data):
    n_used = data.draw(st.integers(1, n_steps))
    level = data.draw(st.integers(1, n_steps))
    restarts = data.draw(st.integers(0, 8))
    steps = restarted_steps(n_steps, n_used, level, restarts)
    ups = [(t, s) for t, s in pairwise(steps) if s > t]
    assert steps[0] == n_steps
    assert steps[-1] == 0
    assert len(steps) - 1 - len(ups) == n_used
    assert all(s != t for t, s in pairwise(steps))
    assert ups in ([], [(0, level)] * restarts)
    if n_used in (n_steps, 3) or not restarts:
        assert steps == spaced_steps(n_steps, n_used)


def test_restarts_take_steps_as_long_as_the_first_way_down():
    steps = restarted_steps(1000, 50, 400, 4)
    assert steps.count(400) == 4
    down = [t - s for t, s in pairwise(steps) if s < t]
    assert len(down) == 50
    assert min(down) >= 50
    assert max(down) <= 56
