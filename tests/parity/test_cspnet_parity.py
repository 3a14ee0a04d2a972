"""The fast CSPNet against the plain one of ``tests/plain_cspnet.py``, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from plain_cspnet import plain_forward

from crystalctl.crystal.batch import Layout
from crystalctl.networks.cspnet import CSPNet
from crystalctl.networks.layers import time_features

TOLERANCE = 1e-6
"""Relative to the largest value of a tensor; the table interpolation is good to about 2e-7."""


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.detach(), want.detach()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-12))


def make_case(n_frequencies: int, soft: bool, counts: list[int]):
    torch.manual_seed(n_frequencies + soft)
    net = CSPNet(
        hidden=24, n_layers=3, n_frequencies=n_frequencies, time_width=16, soft_species=soft
    ).double()
    for parameter in net.parameters():  # zero biases and unit norms would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    total = sum(counts)
    species = torch.randn(total, 100).double() if soft else torch.randint(1, 101, (total,))
    frac = torch.rand(total, 3).double()
    frac[0] = torch.tensor([0.0, 1 - 1e-9, 0.5]).double()
    gram = torch.randn(len(counts), 9).double()
    return net, species, frac, gram, torch.randint(1, 1001, (len(counts),))


@pytest.mark.parametrize("counts", [[3, 1, 5, 2], [4, 4, 4], [1], [1, 1, 6]])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n_frequencies", [8, 128])
def test_outputs_and_gradients_equal_the_plain_form(n_frequencies, soft, counts):
    net, species, frac, gram, t = make_case(n_frequencies, soft, counts)
    fast = net(species, frac, gram, t, Layout(torch.tensor(counts)))
    fast = [fast.lattice, fast.frac, fast.species]
    plain = list(plain_forward(net, species, frac, gram, t, counts))
    assert (fast[2] is None) == (plain[2] is None) == (not soft)
    pairs = [(f, p) for f, p in zip(fast, plain, strict=True) if p is not None]
    for f, p in pairs:
        assert relative_error(f, p) < TOLERANCE
    weights = [torch.randn_like(p) for _, p in pairs]
    names, parameters = zip(*net.named_parameters(), strict=True)

    def gradients(outputs):
        loss = sum((w * o).sum() + o.square().sum() for w, o in zip(weights, outputs, strict=True))
        return torch.autograd.grad(loss, parameters)

    got, want = gradients([f for f, _ in pairs]), gradients([p for _, p in pairs])
    errors = {n: relative_error(g, w) for n, g, w in zip(names, got, want, strict=True)}
    assert max(errors.values()) < TOLERANCE, {n: e for n, e in errors.items() if e > TOLERANCE}


def test_kept_tables_give_the_same_output():
    net, species, frac, gram, t = make_case(8, False, [3, 2])
    layout = Layout(torch.tensor([3, 2]))
    fresh = net(species, frac, gram, t, layout)
    kept = net(species, frac, gram, t, layout, tables=net.tables())
    assert torch.equal(fresh.frac, kept.frac)
    assert torch.equal(fresh.lattice, kept.lattice)


@torch.no_grad()
def test_half_the_rows_are_enough_for_bf16():
    net, _, frac, _, _ = make_case(128, False, [6, 5])
    layout = Layout(torch.tensor([6, 5]))
    delta = net.pairs(frac, layout).delta
    angle = (2 * math.pi * delta[:, :, None] * torch.arange(128)).flatten(1)
    features = torch.cat([angle.sin(), angle.cos()], 1)
    weight = net.layers[0].fourier_weight()
    exact = features @ weight.t()

    def off(got):
        return float((got - exact).norm() / exact.norm())

    read = {}
    for coarse in (False, True):
        pairs = net.pairs(frac, layout, coarse=coarse).incidence
        table = net.tables(coarse=coarse)[0]
        ends = torch.cat([table, table.new_zeros(22, table.shape[1])])
        read[coarse] = off(pairs @ ends)
        assert pairs.rows.shape[1] == (14 if coarse else 26)
    plain = off(features.bfloat16().double() @ weight.bfloat16().double().t())
    assert read[False] < 1e-6
    assert 1e-5 < read[True] < plain / 2


@torch.no_grad()
def test_only_tables_made_under_autocast_are_coarse():
    net, species, frac, gram, t = make_case(128, False, [6, 5])
    net, frac, gram = net.float(), frac.float(), gram.float()
    layout = Layout(torch.tensor([6, 5]))
    exact = net(species, frac, gram, t, layout).frac
    fine = net.tables()
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(species, frac, gram, t, layout).frac
        given = net(species, frac, gram, t, layout, tables=fine).frac
    assert not torch.equal(rough, given)
    for one in (rough, given):
        assert float((one - exact).norm() / exact.norm()) < 0.02


def test_a_changed_weight_column_block_is_noticed():
    """The yardstick itself: exchanging receiver and sender columns must break parity."""
    net, species, frac, gram, t = make_case(8, False, [4])
    before = plain_forward(net, species, frac, gram, t, [4])[1]
    with torch.no_grad():
        weight = net.layers[0].edge_mlp[0].weight
        weight[:, :48] = weight[:, :48].roll(24, 1).clone()
    after = net(species, frac, gram, t, Layout(torch.tensor([4]))).frac
    assert relative_error(after, before) > 1e-4


def test_float32_stays_near_float64():
    net, species, frac, gram, t = make_case(128, False, [5, 3])
    layout = Layout(torch.tensor([5, 3]))
    exact = net(species, frac, gram, t, layout)
    single = net.float()(species, frac.float(), gram.float(), t, layout)
    assert relative_error(single.frac.double(), exact.frac) < 1e-4
    assert relative_error(single.lattice.double(), exact.lattice) < 1e-4


def test_time_features_written_out():
    t, width = torch.tensor([0, 1, 37, 1000]), 12
    got = time_features(t, width)
    for row, step in enumerate(t.tolist()):
        for i in range(6):
            angle = step * 10000.0 ** (-i / 5)
            assert got[row, i] == pytest.approx(math.sin(angle), abs=1e-9)
            assert got[row, 6 + i] == pytest.approx(math.cos(angle), abs=1e-9)
