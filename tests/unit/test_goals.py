"""Goals of a generation: reading them, and moving latents towards them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategies import random_crystals

from crystalctl.analysis.packed import Packed
from crystalctl.analysis.ranking import Candidate, Ranking
from crystalctl.analysis.symmetrise import Symmetric
from crystalctl.crystal.goal import Goal
from crystalctl.errors import InputError
from crystalctl.goals import check_goal, parse_goal, rank_by_goal
from crystalctl.models.latent_search import REACH, improved
from crystalctl.planning import Sample
from crystalctl.selection import choose_weights

CELL = Packed(3 * np.eye(3), np.zeros((1, 3)), np.array([26], np.uint8))


def test_goals_are_read():
    assert parse_goal(None, None, None) is None
    assert parse_goal("e", None, None) == Goal("e", "minimize")
    assert parse_goal(None, "e", None) == Goal("e", "maximize")
    assert parse_goal(None, None, "band_gap=1.5") == Goal("band_gap", "target", 1.5)
    assert parse_goal(None, None, "e=-2e-1") == Goal("e", "target", -0.2)
    assert parse_goal("e", None, None, 2.5) == Goal("e", "minimize", None, 2.5)
    assert parse_goal(None, None, "e=1", 0.0) == Goal("e", "target", 1.0, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a", "b", None), "--minimize and --maximize exclude each other"),
        ((None, None, "gap"), "cannot read --target 'gap'"),
        ((None, None, "gap=wide"), "cannot read --target"),
        ((None, None, "=1"), "cannot read --target"),
        ((None, None, "gap=nan"), "cannot read --target"),
        (("e", None, None, -0.1), "--strength is -0.1"),
        (("e", None, None, float("nan")), "--strength is nan"),
        ((None, None, None, 1.0), "--strength without a goal"),
    ],
)
def test_others_are_refused(given, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_goal(*given)
    assert raised.value.hint


def test_weights_must_know_the_property():
    goal = Goal("band_gap", "target", 1.0)
    check_goal(None, "symat", {})
    check_goal(goal, "symat", {"property": "band_gap"})
    for config, known in (({}, "no property"), ({"property": "x"}, "know x")):
        with pytest.raises(InputError, match=known):
            check_goal(goal, "symat", config)


def test_weights_are_found_by_what_they_know(monkeypatch):
    row = {"task": "generate", "family": "diffcsp"}
    rows = [
        {**row, "name": "plain", "default": True},
        {**row, "name": "other", "property": "x"},
        {**row, "name": "mine", "family": "symat", "property": "band_gap"},
    ]
    monkeypatch.setattr("crystalctl.checkpoint.available", lambda: rows)

    def chosen(learnt, **given):
        options = {"model": None, "weights": None, **given}
        return choose_weights("generate", {"property"}, learnt=learnt, **options)

    assert chosen("band_gap") == "mine"
    assert chosen("band_gap", weights="file") == "file"
    assert chosen("x", model="diffcsp") == "other"
    with pytest.raises(
        InputError, match=r"no shipped weights know gap \(but band_gap, x\)"
    ) as raised:
        chosen("gap")
    assert "--property gap" in raised.value.hint
    with pytest.raises(InputError, match="no shipped weights know band_gap"):
        chosen("band_gap", model="diffcsp")
    with pytest.raises(InputError, match="cannot take a property"):
        chosen("x", model="diffcsp_pp")


def test_goals_in_standard_units():
    assert Goal("x", "target", 5.0).scaled(3.0, 4.0).value == 0.5
    assert Goal("x", "minimize").scaled(3.0, 4.0) == Goal("x", "minimize")


def predict(z):
    return z[:, 0, 0] + 0.5 * z[:, 1, 2]


GOALS = [Goal("x", "minimize"), Goal("x", "maximize"), Goal("x", "target", 0.7)]


def test_latents_move_towards_their_goals_and_stay_near_the_prior():
    z = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(0))
    before = z.clone()
    with torch.inference_mode():
        moved = improved(predict, z, GOALS, steps=200)
    assert torch.equal(z, before)
    low, high, hit = predict(moved) - predict(z)
    assert float(low) < -1
    assert float(high) > 1
    assert float(predict(moved)[2]) == pytest.approx(0.7, abs=0.02)
    assert abs(float(hit)) < 5
    longest = torch.linalg.vector_norm(z, dim=2).clamp(min=REACH * 4)
    assert (torch.linalg.vector_norm(moved, dim=2) <= longest * 1.0001).all()
    assert torch.equal(moved[:, 2], z[:, 2])  # nothing pulls there


def test_the_strength_is_that_of_the_steps():
    z = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    strengths = (0.0, 0.3, 1.0)
    ends = [
        improved(
            predict, z, [Goal("x", way, None, s) for way in ("minimize", "maximize")], steps=30
        )
        for s in strengths
    ]
    assert torch.equal(ends[0], z)
    moved = [(predict(end) - predict(z)).abs() for end in ends]
    assert (moved[1] < 0.6 * moved[2]).all()
    assert (moved[1] > 0.1 * moved[2]).all()


def test_each_latent_moves_on_its_own():
    z = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(1))
    together = improved(predict, z, GOALS, steps=20)
    for row, goal in enumerate(GOALS):
        alone = improved(predict, z[row : row + 1], [goal], steps=20)
        assert torch.allclose(alone[0], together[row], atol=1e-6)


def test_candidates_are_ranked_by_what_the_structure_is_predicted_to_have():
    crystals = random_crystals((2, 3, 1), 1)
    parts = dict(enumerate(crystals.split(), start=1))

    def ranking(goal: Goal | None) -> Ranking:
        samples = [Sample(k, "any", "generated", 2, k, goal=goal) for k in (1, 2, 3)]
        rows = [
            Candidate(k, sample, "X", CELL, Symmetric(CELL, 1, "P1", 0.1), (k,))
            for k, sample in enumerate(samples, start=1)
        ]
        return Ranking(rows, samples, {}, parts)

    class Model:
        def predicted(self, crystals):
            return crystals.layout.n_atoms.double() / 2

    plain = ranking(None)
    assert rank_by_goal(plain, None) is plain
    for goal, want in (
        (Goal("e", "minimize"), [3, 1, 2]),
        (Goal("e", "maximize"), [2, 1, 3]),
        (Goal("e", "target", 1.1), [1, 2, 3]),
    ):
        found = rank_by_goal(ranking(goal), Model()).candidates
        assert [c.sample.number for c in found] == want
        assert [c.rank for c in found] == [1, 2, 3]
        assert found[0].scores["predicted_e"] == len(parts[want[0]].species) / 2
