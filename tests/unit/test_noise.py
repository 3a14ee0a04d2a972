"""The counter-based noise: independent per-crystal streams with the right distributions."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import noise_for

from crystalctl.crystal.batch import Layout
from crystalctl.diffusion.noise import NoiseSource

N = 20_000


def layout_of(*counts: int) -> Layout:
    return Layout(torch.tensor(counts))


def ks_distance(sample: torch.Tensor, cdf) -> float:
    """Kolmogorov-Smirnov statistic times sqrt(n); 1.95 is exceeded once in a thousand."""
    ordered = sample.double().flatten().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    below, above = cdf(ordered) - steps[:-1], steps[1:] - cdf(ordered)
    return float(torch.maximum(below, above).max()) * math.sqrt(len(ordered))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson correlation times sqrt(n): standard normal when there is none."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) * a.numel() ** 0.5


def draws(source: NoiseSource, layout: Layout) -> list[torch.Tensor]:
    """What a training step or a sampler takes, in its order."""
    return [
        source.integers(layout, 1000)[layout.crystal_idx],
        source.normal(layout, 9, per_atom=False)[layout.crystal_idx],
        source.normal(layout, 3, per_atom=True),
        source.uniform(layout, 3, per_atom=True),
    ]


def test_a_crystal_draws_the_same_in_any_batch_and_order():
    counts, streams = [3, 1, 4, 2], [70, 5, 0, 2**40]
    whole = draws(NoiseSource(11, torch.tensor(streams)), layout_of(*counts))
    alone = [
        draws(NoiseSource(11, torch.tensor([s])), layout_of(n))
        for s, n in zip(streams, counts, strict=True)
    ]
    for k, values in enumerate(whole):
        assert torch.equal(values, torch.cat([part[k] for part in alone]))
    order = [2, 0, 3, 1]
    turned = draws(
        NoiseSource(11, torch.tensor([streams[i] for i in order])),
        layout_of(*[counts[i] for i in order]),
    )
    for k, values in enumerate(turned):
        assert torch.equal(values, torch.cat([alone[i][k] for i in order]))


def test_a_longer_crystal_shares_no_atom_noise_order_dependence():
    """Atom rows are numbered within the crystal: the first atoms do not depend on the count."""
    short = noise_for(1).normal(layout_of(2), 3, per_atom=True)
    long = noise_for(1).normal(layout_of(5), 3, per_atom=True)
    assert torch.equal(short, long[:2])


def test_state_is_the_draw_counter_alone():
    layout = layout_of(2, 3)
    first = noise_for(2)
    values = [first.normal(layout, 3, per_atom=True) for _ in range(4)]
    again = noise_for(2)
    again.draw = 2
    assert torch.equal(again.normal(layout, 3, per_atom=True), values[2])
    assert again.draw == 3


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_seeds_streams_draws_and_columns_differ(kind):
    layout = layout_of(*[1] * 50)
    found = set()
    total = 0
    for seed in (0, 1, -1, 12345):
        source = NoiseSource(seed, torch.arange(50) - 5)
        for _ in range(3):
            values = getattr(source, kind)(layout, 4, per_atom=True)
            found |= set(values.double().flatten().tolist())
            total += values.numel()
    # Uniform numbers have 24 bits: two of 2400 may agree by chance.
    assert total - len(found) <= 2


def test_normal_moments_and_shape_of_the_law():
    x = noise_for(N).normal(layout_of(*[1] * N), 5, per_atom=False).double()
    n = x.numel()
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**3).mean())) < 4 * (15 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    assert ks_distance(x, lambda v: 0.5 * (1 + torch.erf(v / math.sqrt(2)))) < 1.95
    assert x.isfinite().all()


def test_uniform_law():
    x = noise_for(N, seed=3).uniform(layout_of(*[1] * N), 5, per_atom=True)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert ks_distance(x, lambda v: v) < 1.95


def test_integers_are_uniform_from_one_to_high_inclusive():
    for high in (1, 2, 7, 1000):
        x = noise_for(N, seed=high).integers(layout_of(*[1] * N), high)
        assert x.dtype == torch.int64
        assert int(x.min()) >= 1
        assert int(x.max()) <= high
        counts = torch.bincount(x, minlength=high + 1)[1:].double()
        assert int((counts > 0).sum()) == high
        expected = N / high
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < high - 1 + 5 * (2 * high) ** 0.5


def test_nothing_is_correlated():
    layout = layout_of(*[2] * (N // 2))
    source = noise_for(N // 2)
    one = source.normal(layout, 3, per_atom=True)
    two = source.normal(layout, 3, per_atom=True)
    other = noise_for(N // 2, seed=1).normal(layout, 3, per_atom=True)
    shifted = NoiseSource(0, torch.arange(N // 2) + (1 << 24)).normal(layout, 3, per_atom=True)
    pairs = {
        "draws": (one, two),
        "seeds": (one, other),
        "training steps": (one, shifted),
        "columns": (one[:, 0], one[:, 1]),
        "columns 0 and 2": (one[:, 0], one[:, 2]),
        "neighbouring streams": (one[:-2], one[2:]),
        "atoms": (one[::2], one[1::2]),
        "draw and column": (one[:, 1], two[:, 0]),
    }
    for name, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 4, name
        assert abs(correlation(a.square(), b.square())) < 4, f"{name}, squares"


def test_time_steps_and_noise_of_a_training_step_are_independent():
    layout = layout_of(*[1] * N)
    source = noise_for(N)
    t = source.integers(layout, 1000).float()
    eps = source.normal(layout, 1, per_atom=False)[:, 0]
    assert abs(correlation(t, eps)) < 4
    assert abs(correlation(t, eps.square())) < 4
