"""Formula units, numbers of samples, tiles and random streams follow from the request alone."""

from __future__ import annotations

import pytest

from crystalctl.chosen import Chosen
from crystalctl.crystal.elements import parse_formula
from crystalctl.data.statistics import Statistics
from crystalctl.errors import InputError
from crystalctl.planning import (
    Sample,
    parse_atom_numbers,
    parse_units,
    plan_generate,
    plan_predict,
    plan_templates,
    stable_hash,
)
from crystalctl.tiles import tiles

STATISTICS = Statistics(
    max_atoms=40,
    elements=tuple(range(1, 90)),
    n_atoms={4: 10, 8: 30, 40: 1},
)


def test_parsing() -> None:
    assert parse_units("auto") is None
    assert parse_units("4, 1,2") == [1, 2, 4]
    assert parse_atom_numbers("4-6,12") == [4, 5, 6, 12]
    for text in ("", "x", "0", "1,,2", "-1", "1.5", "²"):
        with pytest.raises(InputError, match="--z"):
            parse_units(text)
    for text in ("", "0-3", "6-4", "a", "1-2-3", "²"):
        with pytest.raises(InputError, match="--num-atoms"):
            parse_atom_numbers(text)


def test_plan_and_tiles() -> None:
    samples = plan_predict([parse_formula("SrTiO3"), parse_formula("MgAl2O2")], 30, STATISTICS)
    assert [s.number for s in samples] == list(range(1, 61))
    assert len({s.stream for s in samples}) == 60
    assert all(sum(s.composition.values()) == s.n_atoms for s in samples)
    for kind, budget in (("cpu", 2048), ("gpu", 524288)):
        cut = tiles(samples, kind)
        assert sorted(s.number for tile in cut for s in tile) == list(range(1, 61))
        for tile in cut:
            assert len({s.n_atoms for s in tile}) == 1
            assert len(tile) * tile[0].n_atoms ** 2 <= budget
    assert tiles(samples, "cpu") == tiles(list(samples), "cpu")
    # 20 atoms: 2048 // 400 = 5 crystals
    many = plan_predict([parse_formula("SrTiO3")], 45, STATISTICS, units=[4])
    assert [len(tile) for tile in tiles(many, "cpu")] == [5] * 9
    assert max(len(t) for t in tiles(plan_generate(1500, STATISTICS), "gpu")) == 512


def test_templates_of_any_size_share_a_tile() -> None:
    """Few large batches: one network call costs more than the pairs of a small template."""
    small = Chosen(221, (1, 2), (11, 17))
    large = Chosen(1, (0,) * 20, (8,) * 20)
    plan = [Sample(1, "l", "", 20, 0, template=large), Sample(2, "s", "", 2, 0, template=small)]
    plan += [Sample(k, "s", "", 3, k, template=small) for k in range(3, 60)]
    assert [[s.number for s in tile] for tile in tiles(plan, "cpu")] == [[2, *range(3, 60), 1]]
    many = [Sample(k, "l", "", 20, k, template=large) for k in range(50)]
    assert [len(tile) for tile in tiles(many, "cpu")] == [5] * 10


class Anywhere:
    """Votes for one template of every composition: all atoms on their own, in P1."""

    def __init__(self, votes: dict[int, float]) -> None:
        self.votes = votes

    def propose(self, composition, n, *, groups=None, rows=None):
        species = tuple(z for z, count in composition.items() for _ in range(count))
        return [(Chosen(1, (0,) * len(species), species), 1.0)]

    def evidence(self, composition, *, groups=None, rows=None):
        return self.votes.get(sum(composition.values()), 0.0)


def test_samples_go_to_the_cells_that_known_structures_have() -> None:
    wanted, votes = [parse_formula("NaCl")], Anywhere({2: 1.0, 12: 3.0})
    free = plan_templates(wanted, 40, STATISTICS, None, source=votes)
    sizes = [sample.n_atoms for sample in free]
    assert set(sizes) == {2, 4, 6, 8, 12}
    assert sizes.count(12) > 2 * sizes.count(2) > 10
    assert sizes.count(4) == sizes.count(6) == sizes.count(8) == 1
    # What is asked for is all there is.
    asked = plan_templates(wanted, 40, STATISTICS, None, source=votes, units=[1, 2])
    assert {sample.n_atoms for sample in asked} == {2, 4}
    (size,) = {
        sample.n_atoms
        for sample in plan_templates(wanted, 4, STATISTICS, None, source=votes, num_atoms=8)
    }
    assert size == 8


def test_streams_are_pinned() -> None:
    """A released seed must give the same structures in later versions."""
    assert stable_hash("SrTiO3|5|0") == 2825222970742002523
    sample = plan_predict([parse_formula("SrTiO3")], 1, STATISTICS, units=[1])[0]
    assert sample.stream == stable_hash("O3TiSr|5|0")
    assert 0 <= sample.stream < 2**63


def test_generate_sizes_follow_the_histogram() -> None:
    sizes = [s.n_atoms for s in plan_generate(4100, STATISTICS)]
    assert sizes.count(8) / 4100 == pytest.approx(30 / 41, abs=0.03)
    assert {s.n_atoms for s in plan_generate(50, STATISTICS, num_atoms=[4, 5])} == {4}
    assert {s.n_atoms for s in plan_generate(50, STATISTICS, num_atoms=[5, 6])} == {5, 6}
    more = plan_generate(80, STATISTICS, seed=3)
    assert plan_generate(20, STATISTICS, seed=3) == more[:20]
    with pytest.raises(InputError, match="41 atoms"):
        plan_generate(1, STATISTICS, num_atoms=[41])
