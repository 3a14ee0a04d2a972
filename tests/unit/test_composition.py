"""Compositions from latents: the likeliest counts, and what was asked for."""

from __future__ import annotations

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from crystalctl.crystal.batch import Layout
from crystalctl.networks.composition import CompositionDecoder, likeliest_counts


@given(seed=seeds, total=st.integers(3, 7))
def test_counts_are_the_likeliest_of_all(seed, total):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, 7, generator=generator)
    used = torch.tensor([[True, True, True], [True, False, True]])
    counts = likeliest_counts(scores, used, torch.tensor([total, total - 1]))
    for row, want in ((0, total), (1, total - 1)):
        places = used[row].nonzero()[:, 0].tolist()
        ways = [w for w in product(range(1, 8), repeat=len(places)) if sum(w) == want]
        value = {
            w: sum(float(scores[row, k, c - 1]) for k, c in zip(places, w, strict=True))
            for w in ways
        }
        got = tuple(counts[row, places].tolist())
        assert value[got] == max(value.values())
        assert int(counts[row].sum()) == want


def decoder(max_atoms: int = 6) -> CompositionDecoder:
    torch.manual_seed(0)
    return CompositionDecoder(8, 16, max_atoms)


def test_a_composition_has_the_atoms_and_the_elements_that_were_asked_for():
    layout = Layout(torch.tensor([6, 1, 4, 5]))
    z = 3 * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    allowed = [None, None, frozenset({3, 8}), frozenset({26})]
    species = decoder().decode(z, layout, allowed).split(layout.counts)
    assert [len(s) for s in species] == [6, 1, 4, 5]
    assert set(species[2].tolist()) <= {3, 8}
    assert set(species[3].tolist()) == {26}
    for row in species:
        assert row.tolist() == sorted(row.tolist())


def test_it_learns_to_write_what_it_read():
    model = decoder(5)
    layout = Layout(torch.tensor([5, 3]))
    species = torch.tensor([8, 8, 8, 22, 38, 9, 9, 20])
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(150):
        optimizer.zero_grad()
        losses = model.losses(z, species, layout)
        total = sum(rows.sum() for rows in losses.values())
        first = float(total.detach()) if first is None else first
        total.backward()
        optimizer.step()
    assert float(total.detach()) < 0.1 * first
    with torch.no_grad():
        assert torch.equal(model.decode(z, layout, [None, None]), species)
