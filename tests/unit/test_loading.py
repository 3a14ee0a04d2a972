"""Batches: every crystal once an epoch, shared among processes, cut by cost; and statistics."""

from __future__ import annotations

import json

import pytest
import torch
from strategies import random_crystals

from crystalctl.crystal.batch import Crystals
from crystalctl.data.loading import Batch, Loader
from crystalctl.data.statistics import Statistics

CPU = torch.device("cpu")


def numbered(n: int) -> Crystals:
    """Crystals of 1 to 5 atoms whose first lattice number is their own number."""
    crystals = random_crystals([1 + (7 * i) % 5 for i in range(n)])
    lattice = crystals.lattice.clone()
    lattice[:, 0, 0] = torch.arange(n)
    return crystals.replace(lattice=lattice)


def loader(n: int, **changes) -> Loader:
    settings = {"batch_size": 4, "chunk_cost": 30, "seed": 0, "device": CPU, **changes}
    return Loader(numbered(n), **settings)


def numbers(batch: Batch) -> list[int]:
    return [int(x) for chunk in batch.chunks for x in chunk.crystals.lattice[:, 0, 0]]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_every_crystal_once_an_epoch(n):
    source = loader(n)
    batches = list(source.epoch(3))
    assert len(batches) == source.n_batches
    assert sorted(x for b in batches for x in numbers(b)) == list(range(n))
    assert all(b.n_crystals == len(numbers(b)) for b in batches)
    for batch in batches:
        atoms = sum(c.crystals.layout.total_atoms for c in batch.chunks)
        assert batch.n_atoms == atoms


def test_chunks_hold_whole_crystals_at_their_place():
    crystals = numbered(11)
    singles = crystals.split()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(11, generator=generator)
    for k, batch in enumerate(loader(11).epoch(0)):
        places = torch.cat([chunk.place for chunk in batch.chunks])
        assert sorted(places.tolist()) == list(range(batch.n_crystals))
        for chunk in batch.chunks:
            for place, one in zip(chunk.place.tolist(), chunk.crystals.split(), strict=True):
                want = singles[int(order[4 * k + place])]
                assert torch.equal(one.frac, want.frac)
                assert torch.equal(one.species, want.species)
                assert torch.equal(one.lattice, want.lattice)


def test_chunk_cost_is_bounded():
    for batch in loader(40, batch_size=40, chunk_cost=30).epoch(0):
        costs = [sum(n * n for n in c.crystals.layout.counts) for c in batch.chunks]
        assert len(costs) > 5
        assert max(costs) <= 30 + 25, "one crystal may stick out"
    assert len(next(loader(40, batch_size=40, chunk_cost=10**6).epoch(0)).chunks) == 1
    alone = next(loader(9, batch_size=9, chunk_cost=1).epoch(0))
    assert all(len(chunk.crystals) == 1 for chunk in alone.chunks)


def test_order_depends_on_seed_and_epoch_only():
    def order(epoch: int, **changes):
        return [numbers(b) for b in loader(20, **changes).epoch(epoch)]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)
    assert [numbers(b) for b in loader(20).epoch(2, skip=3)] == order(2)[3:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("n", [8, 9, 10, 11, 13])
def test_processes_share_each_batch_evenly(world, n):
    ranks = [loader(n, rank=rank, world=world) for rank in range(world)]
    assert len({r.n_batches for r in ranks}) == 1
    seen = []
    for batches in zip(*[r.epoch(1) for r in ranks], strict=True):
        parts = [numbers(b) for b in batches]
        assert all(parts), "a process without work would hang the others"
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert len({b.n_crystals for b in batches}) == 1
        assert len({b.n_atoms for b in batches}) == 1
        assert batches[0].n_crystals == sum(map(len, parts))
        places = torch.cat([c.place for b in batches for c in b.chunks])
        assert sorted(places.tolist()) == list(range(len(places)))
        seen += [x for part in parts for x in part]
    assert sorted(seen) == list(range(n))


def test_statistics_count_sizes_elements_and_formula_units():
    crystals = random_crystals([4, 4, 2])
    species = torch.tensor([11, 17, 11, 17, 26, 26, 8, 8, 6, 6])
    stats = Statistics.of(crystals.replace(species=species))
    assert (stats.n_crystals, stats.max_atoms) == (3, 4)
    assert dict(stats.n_atoms) == {2: 1, 4: 2}
    assert stats.elements == (6, 8, 11, 17, 26)
    assert stats.formula_units["2:2"] == {2: 2}
    assert stats.formula_units["1:1"] == {2: 1}
    assert stats.formula_units["*:*"] == {2: 3}
    assert Statistics.from_dict(json.loads(json.dumps(stats.to_dict()))) == stats


def test_drawn_sizes_follow_the_histogram():
    stats = Statistics(n_atoms={2: 1, 5: 3})
    draw = stats.draw_n_atoms(torch.tensor([0.0, 0.2499, 0.25, 0.999999]))
    assert draw.tolist() == [2, 2, 5, 5]
    many = stats.draw_n_atoms((torch.arange(1000) + 0.5) / 1000)
    assert int((many == 2).sum()) == 250
