"""The cost of exchanging elements, learnt from structures made for it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import symmetric_crystals

from crystalctl.chosen import Chosen
from crystalctl.data.standard import Standard
from crystalctl.retrieval import Memory, plain_cost
from crystalctl.symmetry.wyckoff import position_row
from crystalctl.training.metric import learn_cost

LIKE_MG, LIKE_AL = (12, 26, 82, 40), (13, 19, 79, 60)
"""Two families that have nothing to do with the periodic table."""


def memory() -> Memory:
    """AB compounds: rock salt where A is of the first family, caesium chloride for the second."""
    rows, species, groups = [], [], []
    for family, group, letters in ((LIKE_MG, 225, "ab"), (LIKE_AL, 221, "ab")):
        for a in family:
            for b in (8, 16, 34):
                groups.append(group)
                rows += [position_row(group, letter) for letter in letters]
                species += [a, b]
    n = np.full(len(groups), 2)
    return Memory(np.array(groups), n, np.array(rows), np.array(species), plain_cost())


def share(of: Memory, z: int) -> float:
    """Share of the votes for caesium chloride, for a compound of ``z`` and tellurium."""
    votes = {chosen.group: vote for chosen, vote in of.propose({z: 1, 52: 1}, 9)}
    return votes[221] / sum(votes.values())


def test_learnt_costs_tell_the_families_apart() -> None:
    before = memory()
    cost = learn_cost(before, epochs=150, lr=3e-2)
    after = replace(before, cost=cost)
    assert np.allclose(cost, cost.T)
    assert (np.diag(cost) == 0).all()
    for z in LIKE_AL:
        assert share(after, z) > max(0.9, share(before, z))
    for z in LIKE_MG:
        assert share(after, z) < min(0.1, share(before, z))


def test_costs_are_the_same_for_the_same_seed_and_leave_the_generator_alone() -> None:
    import torch

    state = torch.random.get_rng_state()
    assert (learn_cost(memory(), epochs=2) == learn_cost(memory(), epochs=2)).all()
    assert (torch.random.get_rng_state() == state).all()


def test_equivalent_descriptions_vote_together() -> None:
    a, b = position_row(225, "a"), position_row(225, "b")
    rows = np.array([a, b, b, a, a, b])
    species = np.array([11, 17, 11, 17, 3, 9])
    found = Memory(np.full(3, 225), np.full(3, 2), rows, species, plain_cost()).propose(
        {11: 1, 17: 1}, 9
    )
    assert len(found) == 1
    assert isinstance(found[0][0], Chosen)
    assert found[0][1] > 2
    # In the very positions asked for, whatever the setting of the data.
    asked = Memory(np.full(1, 225), np.full(1, 2), rows[:2], species[:2], plain_cost())
    ((chosen, _),) = asked.propose({17: 1, 11: 1}, 9, rows=[a, b])
    assert chosen.rows == (a, b)


def test_low_energy_votes_count_more_and_unknown_ones_half(tmp_path):
    """Two forms of one compound, three structures: the votes are Boltzmann factors."""
    crystals = symmetric_crystals()
    standard = Standard(crystals, torch.arange(len(crystals)))
    energy = np.array([0.0, 0.08, np.nan, -0.1])
    memory = Memory.of(standard, energy)
    assert memory.weight is not None
    assert np.allclose(memory.weight, [1, math.exp(-1), 0.5, 1])
    memory.save(tmp_path / "m.safetensors")
    again = Memory.load(tmp_path / "m.safetensors")
    assert again.weight is not None
    assert np.allclose(again.weight, memory.weight, atol=1e-3)
    salt, perovskite = ({11: 1, 17: 1}, {38: 1, 22: 1, 8: 3})
    assert again.propose(salt, 1)[0][1] == pytest.approx(1)
    assert again.evidence(salt) == pytest.approx(sum(vote for _, vote in again.propose(salt, 9)))
    assert again.evidence({11: 2, 17: 2}) == 0
    assert again.evidence(salt, groups=[1]) == 0
    assert again.propose(perovskite, 1)[0][1] == pytest.approx(math.exp(-1), abs=1e-3)
