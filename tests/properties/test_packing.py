"""Packed crystals: cutting, joining, choosing and storing lose nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import atom_counts, dataset_of, random_crystals, seeds

from crystalctl.crystal.batch import Crystals, Layout, Target
from crystalctl.crystal.periodic import wrap
from crystalctl.crystal.segments import crystal_mean, neighbour_mean
from crystalctl.data.datasets import Dataset


def assert_same(a: Crystals, b: Crystals) -> None:
    assert a.layout.counts == b.layout.counts
    assert torch.equal(a.layout.n_atoms, b.layout.n_atoms)
    for name in ("lattice", "frac", "species"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@given(counts=atom_counts, seed=seeds)
def test_split_and_cat_are_inverse(counts, seed):
    crystals = random_crystals(counts, seed)
    assert_same(Crystals.cat(crystals.split()), crystals)


@given(counts=atom_counts, seed=seeds, data=st.data())
def test_index_takes_crystals_in_order_and_again(counts, seed, data):
    crystals = random_crystals(counts, seed)
    rows = st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=6)
    which = data.draw(rows)
    singles = crystals.split()
    assert_same(crystals.index(torch.tensor(which)), Crystals.cat([singles[i] for i in which]))


@given(counts=atom_counts)
def test_layout_indices_written_out(counts):
    layout = Layout(torch.tensor(counts))
    crystal = [c for c, n in enumerate(counts) for _ in range(n)]
    assert layout.crystal_idx.tolist() == crystal
    assert layout.atom_idx.tolist() == [i for n in counts for i in range(n)]
    assert layout.offsets.tolist() == [sum(counts[:c]) for c in range(len(counts))]
    pairs = [(i, j) for i, a in enumerate(crystal) for j, b in enumerate(crystal) if a == b]
    receiver, sender = layout.edges
    assert list(zip(receiver.tolist(), sender.tolist(), strict=True)) == pairs
    assert layout.total_edges == len(pairs)
    assert layout.to("cpu").counts == counts


@given(counts=atom_counts, seed=seeds)
def test_means_and_their_gradients_written_out(counts, seed):
    layout = Layout(torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(layout.total_atoms, 3, generator=generator, dtype=torch.float64)
    want = torch.stack([part.mean(0) for part in rows.split(counts)])
    assert torch.allclose(crystal_mean(rows, layout), want)
    messages = torch.randn(layout.total_edges, 3, generator=generator, dtype=torch.float64)
    messages.requires_grad_()
    degree = [n for n in counts for _ in range(n)]
    plain = torch.stack([part.mean(0) for part in messages.split(degree)])
    fast = neighbour_mean(messages, layout)
    assert torch.allclose(fast, plain)
    weight = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((fast * weight).sum(), messages)
    (want,) = torch.autograd.grad((plain * weight).sum(), messages)
    assert torch.allclose(got, want)


@given(counts=atom_counts, seed=seeds, data=st.data())
def test_datasets_are_stored_and_chosen_from_without_loss(tmp_path, counts, seed, data):
    dataset = dataset_of(random_crystals(counts, seed))
    path = tmp_path / "d.safetensors"
    dataset.save(path)
    loaded = Dataset.load(path)
    assert_same(loaded.crystals, dataset.crystals)
    which = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=4, unique=True))
    for one in (dataset, loaded):
        part = one.select(torch.tensor(which, dtype=torch.int64))
        assert part.ids == [dataset.ids[i] for i in which]
        assert part.meta == {"source": "test"}
        assert part.orbit.tolist() == [k for i in which for k in range(counts[i])]
        assert torch.equal(part.properties["energy"], dataset.properties["energy"][which])
        assert part.crystals.layout.counts == [counts[i] for i in which]
    mask = torch.zeros(len(counts), dtype=torch.bool)
    mask[which] = True
    assert loaded.select(mask).ids == [dataset.ids[i] for i in sorted(which)]
    for name in ("split", "space_group", "wyckoff", "orbit"):
        assert torch.equal(getattr(loaded, name), getattr(dataset, name)), name
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1))
def test_wrapped_coordinates_are_in_the_cell(values):
    x = torch.tensor(values)
    wrapped = wrap(x)
    assert float(wrapped.min()) >= 0
    assert float(wrapped.max()) < 1
    away = (x.double() - wrapped.double()) - (x.double() - wrapped.double()).round()
    assert float(away.abs().max()) < 1e-6
    assert torch.equal(wrap(wrapped), wrapped)


def test_a_target_lists_its_atoms():
    assert Target(composition={11: 2, 17: 1}).species() == [11, 11, 17]
    assert Target(n_atoms=4).species() == []


def test_replace_checks_the_name():
    with pytest.raises(TypeError):
        random_crystals().replace(colour=torch.zeros(1))
