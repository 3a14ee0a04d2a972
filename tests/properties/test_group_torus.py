"""The normal wrapped by the space group: invariant, exact, normalised, on every position."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from strategies import noise_for
from torch import Tensor

from crystalctl.crystal.batch import Layout
from crystalctl.diffusion.group_torus import GroupTorusProcess, Images, mean_strength
from crystalctl.diffusion.schedules import WrappedSchedule
from crystalctl.models.wyckoff_images import METRICS, images_of, images_of_actions, strengths
from crystalctl.symmetry.groups import operations
from crystalctl.symmetry.stabilisers import Action, action, embedding, metrics, stabilisers
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import positions


@cache
def kinds(metric: str) -> list[tuple[Action, np.ndarray]]:
    """The different actions of the groups on their positions, from the shipped table."""
    known = stabilisers()
    rows = [slice(a, b) for a, b in zip(known.first[:-1], known.first[1:], strict=True)]
    lengths = known.metric[METRICS.index(metric)]
    return [
        (Action(known.matrix[r], known.shift[r]), h) for r, h in zip(rows, lengths, strict=True)
    ]


def random_points(images: Images, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(images.free.shape, generator=generator, dtype=torch.float64)
    return points.masked_fill(~images.free, 0.0)


def change_under_the_group(one: Action, metric: np.ndarray, width: float) -> tuple[float, float]:
    """Largest change of log q from u to its images, and largest deviation of their velocities."""
    n = len(one.matrix)
    images = images_of_actions(one, metric, n)
    u0, u = (random_points(images, seed)[:1].expand(n, 3) for seed in (1, 2))
    a, b = torch.from_numpy(one.matrix).double(), torch.from_numpy(one.shift)
    sigma = torch.full((n,), width, dtype=torch.float64)
    log, velocity = images.wrapped(torch.einsum("kij,kj->ki", a, u) + b, u0, sigma)
    _, first = images.wrapped(u, u0, sigma)
    turned = torch.einsum("kij,kj->ki", a, first)
    size = max(float(velocity.abs().max()), 1e-3)
    return float((log - log[0]).abs().max()), float((velocity - turned).abs().max()) / size


@pytest.mark.parametrize("width", [0.03, 0.1, 0.4])
def test_the_density_is_the_same_at_all_images(width: float) -> None:
    for one, metric in kinds("invariant"):
        change, turned = change_under_the_group(one, metric, width)
        assert change < 1e-6
        assert turned < 1e-6


def test_the_papers_density_is_not_where_a_threefold_axis_is_oblique() -> None:
    """Its normal is round in fractional coordinates, which operations of 143-194 do not keep."""
    known, table = stabilisers(), tables()
    plain = kinds("fractional")
    for number in range(1, 231):
        general = int(table.first_position[number]) - 1
        change, _ = change_under_the_group(*plain[known.kind[general]], 0.1)
        assert (change > 1e-2) == (143 <= number <= 194), (number, change)


@pytest.mark.parametrize("number", [1, 14, 62, 146, 166, 194, 221, 227])
def test_the_sum_by_factors_is_the_sum_over_all_images(number: int) -> None:
    """Against operations times translations -4..4, written plainly, in the general position."""
    row = positions(number)[-1].row
    images = images_of_actions(action(row), metrics(row)[0], 1)
    u0, u = random_points(images, 3), random_points(images, 4)
    rotation, shift = (torch.tensor(x).double() for x in operations(number))
    step = torch.arange(-4.0, 5.0, dtype=torch.float64)
    whole = torch.cartesian_prod(step, step, step)
    placed = rotation @ u0[0] + shift
    centre = (placed - torch.floor(placed))[:, None] + whole
    h = torch.tensor(tables().metric[number - 1])
    for width in (0.05, 0.2, 0.5):
        away = (u[0] - centre).reshape(-1, 3)
        exponent = -torch.einsum("ni,ij,nj->n", away, h, away) / (2 * width**2)
        norm = 0.5 * float(torch.logdet(h)) - 3 * math.log(width * math.sqrt(2 * math.pi))
        expected = float(exponent.logsumexp(0)) + norm - math.log(len(rotation))
        mean = -(exponent.softmax(0)[:, None] * away).sum(0) / width**2
        log, velocity = images.wrapped(u, u0, torch.tensor([width], dtype=torch.float64))
        assert float(log) == pytest.approx(expected, abs=1e-9)
        assert torch.allclose(velocity[0], mean, atol=1e-8)


def test_velocities_are_slopes_of_the_density() -> None:
    for number, (one, metric) in enumerate(kinds("invariant")):
        images = images_of_actions(one, metric, 1)
        u = random_points(images, number).requires_grad_()
        width = torch.tensor([0.12], dtype=torch.float64)
        log, velocity = images.wrapped(u, random_points(images, -1 - number), width)
        (slope,) = torch.autograd.grad(log.sum(), u)
        inverse = torch.linalg.inv(torch.from_numpy(metric))
        expected = (inverse @ slope[0]).masked_fill(~images.free[0], 0.0)
        assert torch.allclose(velocity[0], expected, atol=1e-9)


def test_the_density_integrates_to_one() -> None:
    """Over lines and planes, on a grid: for a periodic function the sum is exact."""
    for one, metric in kinds("invariant"):
        free = (one.matrix != 0).any((0, 1))
        if free.sum() not in (1, 2):
            continue
        axis = torch.arange(64, dtype=torch.float64) / 64
        grid = torch.cartesian_prod(*[axis if used else torch.zeros(1).double() for used in free])
        images = images_of_actions(one, metric, len(grid))
        u0 = random_points(images, 5)[:1].expand(len(grid), 3)
        log, _ = images.wrapped(grid, u0, torch.full((len(grid),), 0.08, dtype=torch.float64))
        assert float(log.exp().mean()) == pytest.approx(1.0, abs=1e-9)


def test_every_position_moves_along_itself() -> None:
    """A velocity, as a displacement of the atom, is left alone by the site's own operations."""
    table = tables()
    for row in range(len(table.group)):
        rotation, _, free = embedding(row)
        project = table.pull[int(table.first_operation[row])]
        moved = rotation @ np.where(free, [0.3, -0.5, 0.7], 0.0)
        assert np.abs(project @ moved - moved).max() < 1e-12
        assert free.sum() == table.freedom[row]


def test_operations_of_a_position_map_it_onto_itself_and_none_is_missing() -> None:
    """Points of the position are found again among the orbit of one, as often as there are."""
    table = tables()
    draw = np.random.default_rng(0)
    for row in draw.choice(len(table.group), 120, replace=False):
        rotation, shift, free = embedding(row)
        one = action(row)
        u = np.where(free, draw.random(3), 0.0)
        images = one.matrix @ u + one.shift
        placed = images @ rotation.T + shift
        r, t = operations(int(table.group[row]))
        orbit = r @ (rotation @ u + shift) + t
        apart = placed[:, None] - orbit
        assert np.abs(apart - np.rint(apart)).max(2).min(1).max() < 1e-9
        # Points of the orbit on the position, by projecting them with its first operation.
        again = orbit @ rotation.T + shift
        steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
        moved = (orbit[:, None] + steps) @ rotation.T + shift - (orbit[:, None] + steps)
        on = np.abs(moved).max(2).min(1) < 1e-9
        inside = np.unique(np.round(np.where(free, again, 0)[on] % 1.0, 6) % 1.0, axis=0)
        assert len(inside) == len(np.unique(np.round(images % 1.0, 6) % 1.0, axis=0)), row


def test_shipped_tables_are_those_of_the_groups() -> None:
    known = stabilisers()
    for row in range(0, len(known.kind), 37):
        one, kind = action(row), known.kind[row]
        rows = slice(known.first[kind], known.first[kind + 1])
        assert np.array_equal(one.matrix, known.matrix[rows])
        assert np.allclose(one.shift, known.shift[rows])
        assert np.allclose(metrics(row), known.metric[:, kind], atol=1e-6)


def test_strengths_are_mean_squares_of_the_score() -> None:
    """Other random numbers than those of the table, to the error of 4000 samples."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(4000, 6, generator=generator).double().clamp(1e-6, 1 - 1e-6)
    sigma = torch.tensor([0.02, 0.1, 0.25], dtype=torch.float64)
    table = strengths("invariant", sigma.float())
    for label in ((1, "a"), (194, "k"), (225, "h"), (166, "i")):
        row = next(p.row for p in positions(label[0]) if p.letter == label[1])
        images = images_of_actions(action(row), metrics(row)[0], len(samples))
        found = mean_strength(images, sigma, samples)
        assert torch.allclose(found.float(), table[row], rtol=0.1, atol=6e-3), label


def test_noise_has_the_inverse_metric_as_covariance() -> None:
    for label in ((194, "k"), (166, "i"), (221, "m")):
        row = next(p.row for p in positions(label[0]) if p.letter == label[1])
        n = 20_000
        images = images_of(torch.full((n,), row), "invariant")
        layout = Layout(torch.tensor([n]))
        kick = images.shape(noise_for(1).normal(layout, 3, per_atom=True)).double()
        free = images.free[0]
        inverse = torch.linalg.inv(torch.from_numpy(metrics(row)[0]))[free][:, free]
        assert torch.allclose(torch.cov(kick.T)[free][:, free], inverse, atol=0.03)
        assert not kick[:, ~free].any()


def test_the_sampler_finds_points_with_the_exact_score() -> None:
    """Predictor and corrector with the score of one point: all arrive at one of its images."""
    row = next(p.row for p in positions(194) if p.letter == "k")
    n = 64
    layout = Layout(torch.full((n,), 1))
    images = images_of(torch.full((n,), row), "invariant")
    schedule = WrappedSchedule(200, 0.005, 0.5)
    strength = strengths("invariant", schedule.sigma)[row].expand(n, -1)
    process = GroupTorusProcess(schedule, images, strength, gamma=5e-6)
    target = torch.tensor([0.13, 0.0, 0.31]).masked_fill(~images.free[0], 0.0).expand(n, 3)
    noise = noise_for(n)
    u = process.prior(layout, noise)
    for t in range(200, 0, -1):
        for correct in (True, False):
            _, velocity = images.wrapped(u, target, schedule.sigma[t].expand(n))
            out = velocity * schedule.sigma[t] / strength[:, t].sqrt()[:, None]
            if correct:
                u = process.langevin(u, out, t, layout, noise)
            else:
                u = process.ancestral(u, out, t, t - 1, layout, noise)
    one = action(row)
    every = torch.from_numpy(one.matrix).float() @ target[0] + torch.from_numpy(one.shift).float()
    away = u[:, None] - every
    distance = (away - away.round()).abs().amax(2)
    assert float(distance.amin(1).max()) < 0.02
    assert len(set(distance.argmin(1).tolist())) > len(every) // 2
