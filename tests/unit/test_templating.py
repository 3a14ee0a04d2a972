"""From a wish for symmetry to templates: what fits, what cannot, and what the data propose."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from strategies import symmetric_crystals

from crystalctl.chosen import Chosen
from crystalctl.data.standard import Standard
from crystalctl.data.statistics import Statistics
from crystalctl.errors import DataError, InputError
from crystalctl.refusals import refuse_composition
from crystalctl.retrieval import Memory
from crystalctl.symmetry.assignments import (
    assignments,
    atoms_of,
    covers,
    fits,
    lattice_points,
    possible_atom_counts,
)
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import parse_wyckoff, position, positions
from crystalctl.templating import (
    draw_positions,
    generate_templates,
    parse_symmetry,
    predict_templates,
    turns,
)

STATISTICS = Statistics(max_atoms=20, elements=(8, 11, 17, 22, 38), n_atoms={2: 1, 5: 1})


def labels(way) -> set[tuple[str, int]]:
    return {(position(row).label, z) for row, z in way}


def test_perovskite_sites_are_found() -> None:
    ways = [labels(way) for way in assignments(221, {38: 1, 22: 1, 8: 3})]
    assert {("1a", 38), ("1b", 22), ("3c", 8)} in ways
    assert len(ways) == 4
    assert len({frozenset(way) for way in ways}) == 4


def test_every_assignment_is_exact_and_fixed_points_are_used_once() -> None:
    for group, composition in ((62, {38: 4, 22: 4, 8: 12}), (227, {12: 2, 13: 4, 8: 8})):
        ways = list(assignments(group, composition))
        assert ways
        for way in ways:
            rows = [row for row, _ in way]
            fixed = [row for row in rows if position(row).freedom == 0]
            assert len(fixed) == len(set(fixed))
            for z, count in composition.items():
                size = sum(position(row).multiplicity for row, other in way if other == z)
                assert size == count * lattice_points(group)
        assert [len(way) for way in ways] == sorted(len(way) for way in ways)


def brute_force(group: int, composition: dict[int, int]) -> set[tuple[tuple[int, int], ...]]:
    """All assignments by trying every number of orbits on every position for every element."""
    there = positions(group)
    found = [({row: 0 for row in range(len(there))}, ())]
    for z, count in composition.items():
        longer = []
        for used, way in found:
            ranges = [
                range(2 - used[i] if p.freedom == 0 else count * 4 // p.multiplicity + 1)
                for i, p in enumerate(there)
            ]
            for numbers in itertools.product(*ranges):
                size = sum(k * p.multiplicity for k, p in zip(numbers, there, strict=True))
                if size == count * lattice_points(group):
                    rows = [
                        (p.row, z) for k, p in zip(numbers, there, strict=True) for _ in range(k)
                    ]
                    longer.append(({i: used[i] + k for i, k in enumerate(numbers)}, (*way, *rows)))
        found = longer
    return {tuple(sorted(way)) for _, way in found}


@pytest.mark.parametrize(
    ("group", "composition"),
    [(2, {3: 2, 8: 3}), (5, {3: 3, 8: 3}), (146, {3: 3, 8: 4}), (216, {3: 2, 8: 6}), (161, {8: 2})],
)
def test_assignments_are_all_there_are(group: int, composition: dict[int, int]) -> None:
    ways = list(assignments(group, composition))
    assert len(ways) == len(set(ways))
    assert set(ways) == brute_force(group, composition)


@pytest.mark.parametrize("group", [12, 65, 69, 82, 123])
def test_many_elements_that_would_share_a_position_are_refused_without_trying(group: int) -> None:
    # five odd numbers, and at most four positions that could make a number odd; a search that
    # tries would try millions of ways for the other atoms first
    odd = {3: 5, 26: 7, 8: 19, 15: 11, 12: 3}
    assert not fits(group, odd)
    assert fits(group, {3: 5, 26: 7, 8: 19}) == (group != 69)


def test_counts_that_no_positions_add_up_to() -> None:
    assert possible_atom_counts(225, 8) == [1, 2, 3, 4, 6, 7, 8]
    assert possible_atom_counts(230, 20) == [8, 12, 16, 20]
    assert not list(assignments(225, {38: 1, 22: 1, 8: 3}))


@pytest.mark.parametrize("number", range(1, 231))
def test_free_combinations_are_legal_in_every_group(number: int) -> None:
    sizes = possible_atom_counts(number, 48)
    rows = draw_positions(number, sizes, random.Random(number))
    assert atoms_of(rows) in sizes
    assert {int(tables().group[row]) for row in rows} == {number}
    fixed = [row for row in rows if position(row).freedom == 0]
    assert len(fixed) == len(set(fixed))


def test_wishes_are_read() -> None:
    assert parse_symmetry(None) is None
    wish = parse_symmetry(["Fm-3m", "225", "F m -3 m"], "4b,4a")
    assert wish is not None
    assert wish.groups == (225,)
    assert [position(row).label for row in wish.rows or ()] == ["4a", "4b"]
    cubic = parse_symmetry(["cubic"])
    assert cubic is not None
    assert (cubic.groups[0], len(cubic.groups), len(cubic.pools)) == (195, 36, 1)
    both = parse_symmetry([14, "P121/c1", "cubic"])
    assert both is not None
    assert [pool[0] for pool in both.pools] == [14, 195]
    chosen, _ = generate_templates(both, 6, STATISTICS, num_atoms=None, seed=0)
    assert [c.group == 14 for c in chosen] == [True, False] * 3
    assert all(c.group == 14 or c.group >= 195 for c in chosen)
    with pytest.raises(InputError, match="needs one group"):
        parse_symmetry(["cubic"], "4a")


def test_positions_given_are_covered_exactly() -> None:
    rows = parse_wyckoff(225, "4a,4b")
    assert len(covers(rows, {11: 1, 17: 1})) == 2
    assert not covers(rows, {11: 1, 17: 2})
    wish = parse_symmetry([225], "4a,8c")
    assert wish is not None
    assert not predict_templates(wish, {11: 1, 17: 1}, STATISTICS, 5)
    error = refuse_composition(wish, {11: 1, 17: 1}, [1, 2], 20)
    assert "4a 8c" in error.what
    assert "3 atoms" in error.hint


def test_nearest_counts_are_named() -> None:
    wish = parse_symmetry([225])
    assert wish is not None
    error = refuse_composition(wish, {38: 1, 22: 1, 8: 3}, [1], 20)
    assert "possible up to 20 atoms: 10" in error.hint
    with pytest.raises(InputError, match="add up to 5 atoms") as raised:
        generate_templates(wish, 2, STATISTICS, num_atoms=[5], seed=0)
    assert "nearest possible: 3, 4, 6, 7" in raised.value.hint


@pytest.mark.parametrize(
    ("groups", "wyckoff", "composition", "units", "what", "hint"),
    [
        ([194], None, {11: 1, 17: 1}, [1], "add up to NaCl with 2 atoms", "20 atoms: 4, 8, 12, 16"),
        ([194], "2a,2c", {11: 1, 17: 1}, [1], "2a 2c of P63/mmc", "up to 20 atoms: 4; use"),
        # 24c, 24d and 16a, 16b hold it, in a cell the weights do not know
        ([230], None, {38: 1, 22: 1, 8: 3}, [1, 2], "Ia-3d", "smallest cell that fits has 40"),
        ([225], "4a,4b,8c", {11: 1, 17: 1}, [1, 2], "always has more symmetry", "--allow-super"),
        ([225], None, {11: 1, 17: 1}, [2], "always has more symmetry", "20 atoms: 2, "),
    ],
)
def test_refusals_say_what_is_possible(groups, wyckoff, composition, units, what, hint) -> None:
    wish = parse_symmetry(groups, wyckoff)
    assert wish is not None
    error = refuse_composition(wish, composition, units, 20)
    assert what in error.what
    assert hint in error.hint


def test_sizes_beyond_what_is_drawn_are_refused_at_once() -> None:
    wish = parse_symmetry([225])
    assert wish is not None
    with pytest.raises(InputError, match="up to 48 atoms") as raised:
        generate_templates(wish, 1, STATISTICS, num_atoms=[5000], seed=0)
    assert "48" in raised.value.hint


def test_elements_that_give_a_supergroup_are_not_proposed() -> None:
    """Chlorine on 4a and 4b of Fm-3m is one simple cubic lattice, whatever sits on 8c."""
    wish, loose = parse_symmetry([225]), parse_symmetry([225], allow_supergroup=True)
    assert wish is not None
    assert loose is not None
    assert not predict_templates(wish, {11: 2, 17: 2}, STATISTICS, 5)
    assert predict_templates(loose, {11: 2, 17: 2}, STATISTICS, 5)
    a, b, c = parse_wyckoff(225, "4a,4b,8c")
    assert wish.admits(Chosen(225, (a, b, c), (13, 25, 29)))
    assert not wish.admits(Chosen(225, (a, b, c), (17, 17, 11)))
    assert loose.admits(Chosen(225, (a, b, c), (17, 17, 11)))


def test_known_templates_are_drawn_and_unknown_groups_reported() -> None:
    rows = parse_wyckoff(225, "4a,4b")
    statistics = Statistics(max_atoms=20, templates={f"225:{rows[0]},{rows[1]}": 3})
    wish = parse_symmetry([225, 14])
    assert wish is not None
    chosen, unknown = generate_templates(wish, 4, statistics, num_atoms=None, seed=1)
    assert [c.group for c in chosen] == [225, 14, 225, 14]
    assert chosen[0] == Chosen(225, tuple(rows))
    assert unknown == [14]
    again, _ = generate_templates(wish, 2, statistics, num_atoms=None, seed=1)
    assert again == chosen[:2]


def test_memory_votes_for_the_like_and_survives_a_file(tmp_path) -> None:
    crystals = symmetric_crystals()
    Memory.of(Standard(crystals, torch.arange(4))).save(tmp_path / "m.safetensors")
    memory = Memory.load(tmp_path / "m.safetensors")
    ((salt, votes),) = memory.propose({19: 1, 35: 1}, 5)
    assert (salt.group, [position(row).label for row in salt.rows]) == (225, ["4a", "4b"])
    assert salt.species == (19, 35)
    assert 0 < votes < 1
    ((same, exact),) = memory.propose({11: 1, 17: 1}, 5)
    assert (same.species, exact) == ((11, 17), 1.0)
    assert not memory.propose({19: 1, 35: 1}, 5, groups=[221])
    assert not memory.propose({19: 1, 35: 2}, 5)
    (tmp_path / "bad.safetensors").write_bytes(b"none")
    with pytest.raises(DataError, match="holds no templates"):
        Memory.load(tmp_path / "bad.safetensors")


def test_samples_are_shared_by_votes_and_nobody_is_forgotten() -> None:
    assert turns([], 3) == []
    assert turns([2.0], 3) == [0, 0, 0]
    assert turns([0.0, 0.0, 0.0], 5) == [0, 1, 2, 0, 1]
    order = turns([0.7, 0.2, 0.05, 0.0], 40)
    counts = [order.count(i) for i in range(4)]
    assert counts == sorted(counts, reverse=True)
    assert counts[3] > 0
    assert counts[0] / counts[1] == pytest.approx((0.714 / 0.214) ** 0.5, rel=0.15)
    # A longer request starts like a shorter one.
    assert turns([0.7, 0.2, 0.05, 0.0], 7) == order[:7]
