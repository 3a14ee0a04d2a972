"""EquiCSP: other names for the axes, other places of the crystal, and the law of its noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import atom_counts, noise_for, random_crystals, seeds, tiny_model
from torch import Tensor

from crystalctl.checkpoint import describe, export, load_model, write_file
from crystalctl.crystal.batch import MAX_Z, Layout, Target
from crystalctl.crystal.lattice import to_parameters, volume
from crystalctl.crystal.periodic import wrap
from crystalctl.diffusion import von_mises
from crystalctl.diffusion.centred import CentredTorusProcess, centred, without_drift
from crystalctl.diffusion.lattice_coords import (
    AXIS_ORDERS,
    from_logtan6,
    rename_axes,
    to_logtan6,
)
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.schedules import WrappedSchedule, spaced_steps
from crystalctl.diffusion.torus import wrapped_normal_score
from crystalctl.errors import InputError
from crystalctl.models import FAMILIES
from crystalctl.models.equicsp import renamed_axes

TASKS = ["predict", "generate"]
EXACT = 1e-6
"""Largest error of a renaming of axes in float64, relative to the largest output."""


def setting(task: str, counts: list[int], seed: int, **config):
    """A model in float64, a state as it meets it, and time steps."""
    crystals = random_crystals(counts, seed)
    model = tiny_model("equicsp", task, crystals, seed=seed % 1000, **config).double()
    generator = torch.Generator().manual_seed(seed)
    species = crystals.species
    if task == "generate":
        species = torch.randn(len(species), MAX_Z, generator=generator).double()
    lattice = torch.randn(len(counts), 6, generator=generator).double()
    state = {"lattice": lattice, "frac": crystals.frac.double(), "species": species}
    t = torch.randint(1, 21, (len(counts),), generator=generator)
    return model, state, t, crystals.layout


def exact_outputs(model, state, t, layout) -> dict[str, Tensor]:
    """``denoise`` without its step to float32."""
    with torch.no_grad():
        out = model.network(state["species"], state["frac"], state["lattice"], t, layout)
    fields = {"lattice": out.lattice, "frac": out.frac}
    return fields if out.species is None else {**fields, "species": out.species}


def renaming_error(model, state, t, layout, orders: Tensor) -> float:
    """How far the outputs are from permuting with the axes, relative to the largest."""
    want = renamed_axes(exact_outputs(model, state, t, layout), orders, layout)
    got = exact_outputs(model, renamed_axes(state, orders, layout), t, layout)
    return max(float((got[k] - want[k]).abs().max() / want[k].abs().max()) for k in want)


# ------------------------------------------------------------------------------ names of the axes


@pytest.mark.parametrize("task", TASKS)
@given(counts=atom_counts, seed=seeds)
def test_new_names_of_the_axes_permute_the_exact_outputs(task, counts, seed):
    model, state, t, layout = setting(task, counts, seed, permutation="exact")
    generator = torch.Generator().manual_seed(seed)
    orders = torch.tensor(AXIS_ORDERS)[torch.randint(6, (len(counts),), generator=generator)]
    assert renaming_error(model, state, t, layout, orders) < EXACT


def test_the_plain_network_does_not_permute_and_learns_to():
    """Error before and after some steps on the loss of renamed axes alone."""
    config = {"permutation": "loss", "hidden": 32}
    model, state, t, layout = setting("predict", [3, 2, 4, 5] * 8, 3, **config)
    number = torch.arange(32) % 5 + 1
    orders = torch.tensor(AXIS_ORDERS)[number]
    before = renaming_error(model, state, t, layout, orders)
    assert before > 0.3
    model.float().train()
    crystals = random_crystals([3, 2, 4, 5] * 8, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        terms = model.loss(crystals, noise_for(32, step))
        parts = [term.total / term.n_rows for name, term in terms.items() if "perm_" in name]
        # The outputs keep their size, or all of them 0 would be the answer.
        kept = [terms[name].total / terms[name].n_rows for name in ("lattice", "score", "frac")]
        optimizer.zero_grad()
        (10 * sum(parts) + sum(kept)).backward()
        optimizer.step()
    assert renaming_error(model.double(), state, t, layout, orders) < 0.5 * before


def test_the_exact_network_reads_what_a_plain_one_would_compute():
    """First pre-activations of the pairs, with all Fourier features and ends written out."""
    model, state, _, layout = setting("predict", [3, 4], 2, permutation="exact")
    net, frac = model.network, state["frac"]
    receiver, sender = layout.edges
    delta = (frac[sender] - frac[receiver])[..., None] * torch.arange(4)
    psi = torch.cat([torch.sin(2 * math.pi * delta), torch.cos(2 * math.pi * delta)], 2)
    generator = torch.Generator().manual_seed(0)
    for reads, table, weight, axes in zip(
        net.pairs(frac, layout),
        net.tables()[:2],
        (net.layers[0].fourier_common.weight, net.layers[0].fourier_axis.weight),
        (False, True),
        strict=True,
    ):
        shape = (2, layout.total_atoms, *((3,) if axes else ()), weight.shape[0])
        ends = torch.randn(shape, generator=generator, dtype=torch.float64)
        waves = psi @ weight.T
        want = (waves if axes else waves.sum(1)) + ends[0][receiver] + ends[1][sender]
        rows = ends.flatten(0, -2)
        got = reads @ torch.cat([table, rows])
        assert torch.allclose(got, want.flatten(0, -2), atol=1e-6)


def test_exact_crystals_of_a_batch_do_not_see_each_other_in_loss_or_samples():
    crystals = random_crystals([3, 1, 4], 4)
    model = tiny_model("equicsp", "generate", crystals, permutation="exact")
    whole = model.loss(crystals, noise_for(3))
    parts = [
        model.loss(one, NoiseSource(0, torch.tensor([row])))
        for row, one in enumerate(crystals.split())
    ]
    assert set(whole) == {"lattice", "score", "frac", "species"}
    for name, term in whole.items():
        total = sum(float(part[name].total.detach()) for part in parts)
        assert total == pytest.approx(float(term.total.detach()), rel=1e-5)
    targets = [Target(n_atoms=n) for n in (3, 1, 4)]
    together = model.sample(targets, noise_for(3), steps=3).split()
    for row, target in enumerate(targets):
        alone = model.sample([target], NoiseSource(0, torch.tensor([row])), steps=3)
        assert torch.allclose(alone.lattice, together[row].lattice, atol=1e-4)
        delta = alone.frac - together[row].frac
        assert float((delta - delta.round()).abs().max()) < 1e-4


def test_tables_travel_with_the_weights(tmp_path, monkeypatch):
    """Loading weights computes no integral."""
    model = tiny_model("equicsp", "predict", random_crystals())
    model.loss(random_crystals(), noise_for(4))
    header = {"kind": "weights", **describe(model, "equicsp")}
    write_file(tmp_path / "w.safetensors", header, dict(model.state_dict()))
    export(tmp_path / "w.safetensors", tmp_path / "small.safetensors", config={}, data="none")
    monkeypatch.setattr("crystalctl.diffusion.centred.moment_nodes", None)
    loaded = load_model(str(tmp_path / "small.safetensors"), task="predict").model
    assert torch.allclose(loaded.frac.nodes, model.frac.nodes, rtol=1e-6)
    loaded.sample([Target(composition={11: 1, 17: 1})], noise_for(1), steps=2)


def test_settings_that_cannot_be_are_refused():
    config = FAMILIES["equicsp"].load().Config
    with pytest.raises(InputError, match="permutation") as raised:
        config(permutation="sometimes")
    assert "exact" in str(raised.value.hint)
    with pytest.raises(InputError, match="hidden"):
        config(permutation="exact", hidden=3)


def test_each_output_of_an_axis_follows_that_axis():
    """An output that ignored its axis would permute too: bend one axis, and see which respond."""
    model, state, t, layout = setting("predict", [4], 5, permutation="exact")
    before = exact_outputs(model, state, t, layout)
    assert float((before["lattice"][:, 0] - before["lattice"][:, 1]).abs().min()) > 1e-4
    for column in (0, 3):
        bent = state["lattice"].clone()
        bent[:, column] += 0.5
        moved = exact_outputs(model, {**state, "lattice": bent}, t, layout)
        change = (moved["lattice"] - before["lattice"]).abs()[0].view(2, 3)
        assert float(change[:, 0].min()) > 1e-5
        # The other two see it as well, through what the axes have in common, and differently.
        assert float(change[:, 1:].min()) > 1e-9
        assert not torch.allclose(change[:, 0], change[:, 1], rtol=1e-3)


def test_renaming_the_axes_of_a_cell_is_renaming_its_numbers():
    lattice = random_crystals([1] * 6, 2).lattice.double()
    orders = torch.tensor(AXIS_ORDERS)
    permuted = torch.stack([cell[list(o)] for cell, o in zip(lattice, AXIS_ORDERS, strict=True)])
    got = to_logtan6(permuted)
    assert torch.allclose(got, rename_axes(to_logtan6(lattice), orders), atol=1e-12)


@given(seed=seeds)
def test_the_lattice_vector_does_not_turn(seed):
    lattice = random_crystals([1] * 4, seed).lattice.double()
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(4, 3, 3, generator=generator, dtype=torch.float64))
    assert torch.allclose(to_logtan6(lattice @ q), to_logtan6(lattice), atol=1e-9)


@given(seed=seeds)
def test_lattice_vector_and_back(seed):
    lattice = random_crystals([1] * 8, seed).lattice.double()
    parameters = to_parameters(lattice)
    again = from_logtan6(to_logtan6(lattice))
    assert torch.allclose(to_parameters(again), parameters, rtol=1e-9, atol=1e-7)
    assert torch.allclose(volume(again), volume(lattice), rtol=1e-9)


@given(st.lists(st.floats(-30, 30), min_size=6, max_size=6))
def test_any_six_numbers_are_a_cell(numbers):
    vector = torch.tensor([numbers])
    lattice = from_logtan6(vector)
    assert lattice.isfinite().all()
    assert to_logtan6(torch.zeros(1, 3, 3)).isfinite().all()


# ------------------------------------------------------------------------- places of the crystal


def process_of(n_steps: int = 100, *, unbiased: bool = True, gamma: float = 1e-5, high=0.5):
    schedule = WrappedSchedule(n_steps, 0.005, high)
    return CentredTorusProcess(schedule, gamma=gamma, unbiased=unbiased)


def shifts_for(layout: Layout, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (A, 3) of all widths, a common drift for each crystal, and integers."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.logspace(-2, 0, layout.n_crystals)[layout.crystal_idx, None]
    noise = width * torch.randn(layout.total_atoms, 3, generator=generator)
    drift = torch.rand(layout.n_crystals, 3, generator=generator)[layout.crystal_idx]
    cells = torch.randint(-3, 4, noise.shape, generator=generator)
    return noise.double(), drift.double(), cells.double()


@given(counts=atom_counts, seed=seeds)
def test_a_drift_of_the_noise_does_not_change_the_target(counts, seed):
    """Periodic translation invariance: drifts by any amount, images by any integers."""
    layout = Layout(torch.tensor(counts))
    noise, drift, cells = shifts_for(layout, seed)
    process = process_of().double()
    t = torch.full((len(counts),), 60)
    before, after = (process.target(x, t, layout) for x in (noise, noise + drift + cells))
    delta = after - before
    period = 1 / process.law(t, layout)[2].sqrt()  # -1/2 and 1/2 are one place
    delta[:, 3:] = delta[:, 3:] - period * torch.round(delta[:, 3:] / period)
    assert float(delta.abs().max()) < 1e-8


@given(counts=atom_counts, seed=seeds)
def test_centred_noise_has_no_circular_mean_and_is_the_noise_otherwise(counts, seed):
    layout = Layout(torch.tensor(counts))
    noise, _, _ = shifts_for(layout, seed)
    d = centred(noise, layout)
    sums = torch.zeros(len(counts), 3).double()
    sums.index_add_(0, layout.crystal_idx, torch.sin(2 * math.pi * d))
    assert float(sums.abs().max()) < 1e-9
    first = layout.offsets[layout.crystal_idx]
    relative = (d - d[first]) - (noise - noise[first])
    assert float((relative - relative.round()).abs().max()) < 1e-9


@given(counts=atom_counts, seed=seeds)
def test_the_score_of_the_coordinates_is_the_gradient_through_the_mean(counts, seed):
    """Against automatic differentiation of sum_j kappa cos 2 pi (x_j - m(x)) by x."""
    layout = Layout(torch.tensor(counts))
    noise, _, _ = shifts_for(layout, seed)
    noise = 0.3 * noise  # away from the bound on the resultant
    x = noise.clone().requires_grad_()
    kappa = 0.7
    torch.cos(2 * math.pi * centred(x, layout)).sum().mul(kappa).backward()
    d = centred(noise, layout)
    score = without_drift(-2 * math.pi * kappa * torch.sin(2 * math.pi * d), d, layout)
    assert torch.allclose(score, x.grad, atol=1e-9)
    # and of scores that do not come from d it leaves no drift either
    anything = torch.randn(score.shape, dtype=torch.float64)
    left = torch.zeros(len(counts), 3).double()
    left.index_add_(0, layout.crystal_idx, without_drift(anything, d, layout))
    assert float(left.abs().max()) < 1e-9


@pytest.mark.parametrize("permutation", ["loss", "exact"])
@given(counts=atom_counts, seed=seeds)
def test_a_step_of_the_sampler_moves_with_the_crystal(permutation, counts, seed):
    """The law of the samples is invariant: the prior is uniform, and each step commutes."""
    model, state, _, layout = setting("predict", counts, seed, permutation=permutation)
    _, drift, cells = shifts_for(layout, seed)
    for t, s in ((20, 12), (3, 0)):
        steps = torch.full((len(counts),), t)

        def moved(x: Tensor, t: int = t, s: int = s, steps: Tensor = steps) -> Tensor:
            out = exact_outputs(model, {**state, "frac": x}, steps, layout)["frac"]
            x = model.frac.langevin(x, out, t, layout, noise_for(len(counts), 1))
            return model.frac.ancestral(x, out, t, s, layout, noise_for(len(counts), 2))

        one = moved(state["frac"])
        two = moved(wrap(state["frac"] + drift + cells))
        delta = two - one - drift
        assert float((delta - delta.round()).abs().max()) < 1e-5


def test_samples_lie_anywhere_alike():
    """The law of the place of one atom, over many samples of one formula, is uniform."""
    crystals = random_crystals([3], 1)
    model = tiny_model("equicsp", "predict", crystals, permutation="exact")
    targets = [Target(composition={11: 1, 17: 2})] * 1500
    frac = model.sample(targets, noise_for(1500), steps=4).frac.view(1500, 3, 3)[:, 0]
    for k in (1, 2):
        wave = torch.exp(2j * math.pi * k * frac).mean(0).abs()
        assert float(wave.max()) < 4 / math.sqrt(1500)


# ------------------------------------------------------------------------------ law of the noise


def simulated(n: int, s: float, n_draws: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """(A_1, 1 - A_2, E d^2) by brute force, and their standard errors."""
    generator = torch.Generator().manual_seed(n)
    rows = n_draws // n
    theta = s * torch.randn(rows * n, 1, generator=generator, dtype=torch.float64)
    d = 2 * math.pi * centred(theta / (2 * math.pi), Layout(torch.full((rows,), n)))
    per_crystal = torch.stack([d.cos(), 1 - (2 * d).cos(), d**2]).view(3, rows, n).mean(2)
    return per_crystal.mean(1).numpy(), (per_crystal.std(1) / rows**0.5).numpy()


@pytest.mark.parametrize("n", [2, 3, 5, 7, 20, 61, 200])
def test_moments_of_the_noise_against_simulation(n):
    """At widths that the series, the integral and its interpolation each answer for."""
    sigma = torch.tensor([0.02, 0.06, 0.12, 0.25, 0.5], dtype=torch.float64)
    table = von_mises.moments_of_all(von_mises.moment_nodes(), sigma)[:, n]
    for row, s in enumerate((2 * math.pi * sigma).tolist()):
        want, error = simulated(n, s)
        assert np.all(np.abs(table[:, row] - want) < 4.5 * error + 4e-3 * want), (n, s)


def test_interpolated_moments_against_the_integral():
    sigma = torch.tensor([0.09, 0.21, 0.37, 0.5], dtype=torch.float64)
    table = von_mises.moments_of_all(von_mises.moment_nodes(), sigma)
    for n in (7, 26, 120, 200):
        for row, s in enumerate((2 * math.pi * sigma).tolist()):
            if s > von_mises.narrow(np.array(n)):
                want = von_mises.moments(n, s)
                assert table[:, n, row] == pytest.approx(want, rel=6e-3), (n, s)


def test_series_meets_the_integral_where_it_ends():
    for n in (3, 5, 20, 200):
        s = von_mises.narrow(np.array(float(n)))
        want = von_mises.moments(n, float(s))
        assert von_mises.series(np.array(float(n)), s) == pytest.approx(want, rel=4e-3)


def test_concentration_is_the_root():
    a = torch.tensor([1e-4, 0.01, 0.3, 0.53, 0.7, 0.85, 0.9, 0.99, 0.9999]).double()
    kappa = von_mises.concentration(a)
    angle = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)[:-1]
    for value, want in zip(kappa, a, strict=True):
        density = torch.exp(value * (torch.cos(angle) - 1))
        got = (density * torch.cos(angle)).sum() / density.sum()
        assert float(got) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.parametrize(("n", "sigma"), [(2, 0.1), (4, 0.05), (5, 0.3), (20, 0.5)])
def test_kappa_is_the_most_likely_one_and_the_norms_are_one(n, sigma):
    """Brute force: the best of many kappas on simulated noise, the mean squares of the targets."""
    nodes = von_mises.moment_nodes()
    kappa, norm, square = von_mises.law_tables(nodes, torch.tensor([sigma]).double())[:, n, 0]
    generator = torch.Generator().manual_seed(1)
    layout = Layout(torch.full((200_000 // n,), n))
    noise = sigma * torch.randn(layout.total_atoms, 1, generator=generator).double()
    d = centred(noise, layout)
    cosine = torch.cos(2 * math.pi * d).mean()
    tried = kappa * torch.linspace(0.9, 1.1, 401)
    likelihood = tried * cosine - tried - torch.log(torch.special.i0e(tried))
    best = tried[likelihood.argmax()]
    assert float(best / kappa) == pytest.approx(1, abs=0.025)
    score = -2 * math.pi * kappa * torch.sin(2 * math.pi * d)
    assert float((score**2).mean() / norm) == pytest.approx(1, abs=0.02)
    assert float((d**2).mean() / square) == pytest.approx(1, abs=0.02)


def test_targets_have_unit_size_at_all_times():
    process = process_of()
    layout = Layout(torch.tensor([5] * 2000 + [1] * 10))
    for t in (1, 40, 70, 100):
        steps = torch.full((layout.n_crystals,), t)
        x, target = process.corrupt(
            torch.rand(layout.total_atoms, 3), steps, layout, noise_for(layout.n_crystals, t)
        )
        assert float(x.min()) >= 0
        assert float(x.max()) < 1
        assert float(target[-10:].abs().max()) < 1e-7  # one atom has nothing to tell
        mean_square = target[:-10].square().view(-1, 2, 3).mean((0, 2))
        assert mean_square.tolist() == pytest.approx([1, 1], abs=0.04)


def test_crystals_beyond_the_tables_are_refused():
    process = process_of()
    layout = Layout(torch.tensor([201]))
    with pytest.raises(InputError, match="up to 200"):
        process.target(torch.zeros(201, 3), torch.tensor([5]), layout)


# ------------------------------------------------------------------------------------ the sampler


def oracle(process: CentredTorusProcess, x: Tensor, centre: Tensor, t: int, layout: Layout):
    """What a perfect network says when there is one crystal only, at ``centre``."""
    return process.target(x - centre, torch.full((layout.n_crystals,), t), layout)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("n", [2, 4])
def test_the_predictor_keeps_the_law_of_the_noise_only_without_the_bias(n, unbiased):
    """Started with the noise of step t, and stopped at s, it should have that of s.

    Independent laws pull n / (n - 1) times too much; the variance r in units of what it should be
    then settles where 2 r c = r + 1, c = n / (n - 1), over many small steps.
    """
    process = process_of(400, unbiased=unbiased, gamma=0.0, high=0.1)
    layout = Layout(torch.full((4000,), n))
    centre = torch.rand(layout.total_atoms, 3)
    sigma = process.torus.schedule.sigma
    x = wrap(centre + sigma[400] * noise_for(4000, 1).normal(layout, 3, per_atom=True))
    noise = noise_for(4000)
    for t in range(400, 40, -1):
        x = process.ancestral(x, oracle(process, x, centre, t, layout), t, t - 1, layout, noise)
    d = centred(x - centre, layout)
    ratio = float(d.square().mean() / (sigma[40] ** 2 * (1 - 1 / n)))
    want = 1.0 if unbiased else 1 / (2 * n / (n - 1) - 1)
    assert ratio == pytest.approx(want, rel=0.04)


def test_the_score_is_close_to_the_exact_one_of_the_centred_law():
    """The exact score averages over the drift that nobody can see; narrow noise is linear."""
    n, sigma = 5, 0.05
    process = process_of(100)
    t = int((process.torus.schedule.sigma - sigma).abs().argmin())
    sigma = float(process.torus.schedule.sigma[t])
    layout = Layout(torch.full((500,), n))
    noise = sigma * noise_for(500).normal(layout, 3, per_atom=True)
    got = process.score(process.target(noise, torch.full((500,), t), layout), t, layout)
    drift = torch.linspace(-0.5, 0.5, 401)[:-1].double()
    y = centred(noise, layout).double()[..., None] - drift
    score = wrapped_normal_score(y, torch.tensor(sigma).double())
    near = (y - y.round()) ** 2 / (2 * sigma**2)
    log_density = -near.view(500, n, 3, -1).sum(1)
    posterior = torch.softmax(log_density, -1).repeat_interleave(n, 0)
    want = (posterior * score).sum(-1)
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert float(error) < 0.05


def test_sampling_recovers_a_crystal_up_to_its_place():
    process = process_of(200, gamma=1e-6)
    layout = Layout(torch.full((300,), 3))
    centre = torch.rand(3, 3).repeat(300, 1)
    noise = noise_for(300)
    x = process.prior(layout, noise)
    for t, s in pairwise(spaced_steps(200, 200)):
        x = process.langevin(x, oracle(process, x, centre, t, layout), t, layout, noise)
        x = process.ancestral(x, oracle(process, x, centre, t, layout), t, s, layout, noise)
    assert float(centred(x - centre, layout).abs().max()) < 0.01
    place = wrap(x - centre).view(300, 3, 3)[:, 0]
    assert float(torch.exp(2j * math.pi * place).mean(0).abs().max()) < 5 / math.sqrt(300)
