"""The learnt proposer: sequences, probabilities, search, training; and its mixture with votes."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from prototypes import caesium_chloride, perovskite, record, rock_salt, write_lines, zinc_blende
from strategies import symmetric_crystals

from crystalctl import proposing
from crystalctl.checkpoint import load_model, read_file
from crystalctl.chosen import Chosen
from crystalctl.data.prepare import prepare
from crystalctl.data.statistics import Statistics
from crystalctl.models.proposer import (
    Proposer,
    ProposerConfig,
    Written,
    pack,
    sequence_of,
    sequences_of,
)
from crystalctl.proposing import Mixture
from crystalctl.symmetry.assignments import assignments, covers
from crystalctl.symmetry.normaliser import canonical_orbits, equivalent_orbits
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import parse_wyckoff
from crystalctl.training.loop import Trainer
from crystalctl.training.run import train
from crystalctl.training.store import STATE

STATISTICS = Statistics(max_atoms=20, elements=(8, 11, 17, 22, 38), n_atoms={2: 1, 5: 1})
SMALL = ProposerConfig(hidden=16, n_layers=1, n_heads=2)
PEROVSKITE = {38: 1, 22: 1, 8: 3}


@pytest.fixture
def proposer() -> Proposer:
    torch.manual_seed(0)
    return Proposer(SMALL, STATISTICS).eval()


def orbits(group: int, letters: str, species: list[int]):
    return tuple(sorted(zip(parse_wyckoff(group, letters), species, strict=True)))


def test_a_template_is_one_sequence_in_whatever_setting() -> None:
    salt = orbits(225, "4a,4b", [11, 17])
    other = orbits(225, "4b,4a", [11, 17])
    assert salt != other
    assert sequence_of(salt) == sequence_of(other)
    one = sequence_of(orbits(221, "1a,1b,3c", [38, 22, 8]))
    assert sorted(one.elements) == [(8, 3), (22, 1), (38, 1)]
    # What is left of the element each orbit holds, before that orbit.
    assert [one.elements[kind][1] for kind in one.kinds] == list(one.left)


def test_sequences_of_crystals_are_those_of_their_orbits() -> None:
    crystals = symmetric_crystals()
    layout = crystals.layout
    species = layout.orbits.at_anchors(crystals.species).tolist()
    rows = layout.orbits.position.tolist()
    start = 0
    for n, group, found in zip(
        layout.orbits.n_orbits.tolist(),
        layout.space_group.tolist(),
        sequences_of(crystals),
        strict=True,
    ):
        pairs = zip(rows[start : start + n], species[start : start + n], strict=True)
        assert found == sequence_of(tuple(sorted(pairs)))
        assert found.group == group
        start += n


@torch.no_grad()
def test_probabilities_of_all_sequences_add_up_to_one(proposer) -> None:
    """In a group where no choice leads to a dead end."""
    first = int(tables().first_position[220])
    rows = {"a": first, "b": first + 1}
    known = ((11, 1), (17, 1))
    ways = [(rows["a"], rows["b"]), (rows["b"], rows["a"])]
    sequences = [Written(known, 221, way, (0, 1), (1, 1)) for way in ways]
    group, position = proposer.log_probability(pack(sequences, torch.device("cpu")))
    assert float(position.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(group[0]) == float(group[1])


@torch.no_grad()
def test_padding_and_company_change_nothing(proposer) -> None:
    sequences = sequences_of(symmetric_crystals())
    together = sum(proposer.log_probability(pack(sequences, torch.device("cpu"))))
    for one, value in zip(sequences, together.tolist(), strict=True):
        alone = sum(proposer.log_probability(pack([one], torch.device("cpu"))))
        assert float(alone) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("groups", [None, [221], [123, 221, 225]])
def test_proposals_are_exact_different_and_the_best_first(proposer, groups) -> None:
    found = proposer.propose(PEROVSKITE, 20, groups=groups)
    assert found
    assert len({template for template, _ in found}) == len(found)
    assert all(a[1] >= b[1] for a, b in pairwise(found))
    for template, probability in found:
        chosen = Chosen.of(template)
        assert groups is None or chosen.group in groups
        assert template == canonical_orbits(template)
        assert template in {canonical_orbits(way) for way in covers(chosen.rows, PEROVSKITE)}
        assert 0 < probability <= 1
    again = proposer.probabilities(PEROVSKITE, [t for t, _ in found], groups=groups)
    assert again == pytest.approx([p for _, p in found], rel=1e-4)


def test_the_search_finds_what_looking_at_everything_finds(proposer) -> None:
    every = list({canonical_orbits(way) for way in assignments(221, PEROVSKITE)})
    probabilities = proposer.probabilities(PEROVSKITE, every, groups=[221])
    best = sorted(zip(every, probabilities, strict=True), key=lambda x: -x[1])
    found = proposer.propose(PEROVSKITE, 3, groups=[221])
    assert [t for t, _ in found] == [t for t, _ in best[:3]]


def test_nothing_is_proposed_where_nothing_fits(proposer) -> None:
    assert proposer.propose({11: 1, 17: 1}, 5, groups=[227]) == []
    assert proposer.probabilities({11: 1, 17: 1}, []) == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [
        record(structure, material_id=str(i))
        for i, structure in enumerate(
            [rock_salt(), caesium_chloride(), zinc_blende(), perovskite()] * 2
        )
    ]
    source = write_lines(tmp_path / "data.jsonl", lines)
    out = tmp_path / "data.safetensors"
    prepare([source], jobs=1).save(out)
    return out


SETTINGS = {
    "train": {"epochs": 60, "batch_size": 4, "lr": 1e-2, "ema": 0.0, "warmup_steps": 2},
    "model": {"hidden": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1, "exchange": 0.0},
}


def test_training_teaches_the_templates_of_the_data(data, tmp_path) -> None:
    out = tmp_path / "run"
    train("proposer", data=data, out=out, settings=SETTINGS, device="cpu")
    model = load_model(str(out), task="propose").model
    known = {
        (11, 17): orbits(225, "4a,4b", [11, 17]),
        (55, 17): orbits(221, "1a,1b", [55, 17]),
        (30, 16): orbits(216, "4a,4c", [30, 16]),
    }
    for elements, template in known.items():
        (first, *_) = model.propose(dict.fromkeys(elements, 1), 3)
        assert first[0] == canonical_orbits(template)


def test_a_resumed_training_is_the_unbroken_one(data, tmp_path, monkeypatch) -> None:
    """Dropout and the exchange of elements follow the seed and the step too."""
    settings = {
        "train": {**SETTINGS["train"], "epochs": 3},
        "model": {**SETTINGS["model"], "exchange": 1.0},
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train("proposer", data=data, out=whole, settings=settings, device="cpu")
    original = Trainer._train_step

    def stopping(self, batch):
        self.stop_asked = self.count.step == 2
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    result = train("proposer", data=data, out=cut, settings=settings, device="cpu")
    assert result.outcome == "interrupted"
    torch.manual_seed(99)
    train("proposer", data=data, out=cut, settings=settings, device="cpu", resume=True)
    first, second = read_file(whole / STATE)[1], read_file(cut / STATE)[1]
    assert all(torch.equal(first[name], second[name]) for name in first)


class Known:
    """A memory with given votes."""

    def __init__(self, votes: dict[Chosen, float]) -> None:
        self.votes = votes

    def propose(self, composition, n, *, groups=None, rows=None):
        return list(self.votes.items())[:n]

    def evidence(self, composition, *, groups=None, rows=None):
        return sum(self.votes.values())


def mixture(votes: dict[Chosen, float], proposer: Proposer, monkeypatch) -> Mixture:
    monkeypatch.setattr(proposing.Mixture, "proposer", proposer)
    return Mixture(Known(votes))  # type: ignore[arg-type]


def test_the_mixture_reaches_what_nothing_votes_for(proposer, monkeypatch) -> None:
    found = mixture({}, proposer, monkeypatch).propose(PEROVSKITE, 10)
    alone = proposer.propose(PEROVSKITE, 10)
    assert [Chosen.of(template) for template, _ in alone] == [chosen for chosen, _ in found]
    ground = proposing.PART * proposing.GROUND
    assert [v for _, v in found] == pytest.approx([ground * p for _, p in alone])


def test_votes_and_probabilities_add_up_and_the_voted_setting_stays(proposer, monkeypatch) -> None:
    voted = Chosen.of(orbits(221, "1b,1a,3d", [38, 22, 8]))
    form = canonical_orbits(zip(voted.rows, voted.species, strict=True))
    assert len(equivalent_orbits(form)) > 1
    found = dict(mixture({voted: 2.0}, proposer, monkeypatch).propose(PEROVSKITE, 10))
    (probability,) = proposer.probabilities(PEROVSKITE, [form])
    assert found[voted] == pytest.approx(2 + proposing.PART * 2.05 * probability)
    assert max(found, key=lambda chosen: found[chosen]) == voted
    assert len(found) == 10
    assert {chosen.source for chosen in found if chosen != voted} == {"proposer"}
    assert [chosen.source for chosen in found if chosen == voted] == ["retrieval"]


def test_a_template_is_from_who_gave_it_more(proposer, monkeypatch) -> None:
    voted = Chosen.of(orbits(221, "1a,1b,3d", [38, 22, 8]))
    form = canonical_orbits(zip(voted.rows, voted.species, strict=True))
    (probability,) = proposer.probabilities(PEROVSKITE, [form], groups=[221])
    part = proposing.PART * proposing.GROUND * probability
    where = {"groups": [221], "rows": voted.rows}
    for votes, source in ((part / 2, "proposer"), (2 * part, "retrieval")):
        found = mixture({voted: votes}, proposer, monkeypatch).propose(PEROVSKITE, 10, **where)
        assert [chosen.source for chosen, _ in found if chosen == voted] == [source]
        assert len(found) == 2


def test_prescribed_positions_are_kept_as_they_were_asked_for(proposer, monkeypatch) -> None:
    rows = tuple(sorted(parse_wyckoff(221, "1b,1a,3d")))
    found = mixture({}, proposer, monkeypatch).propose(PEROVSKITE, 10, groups=[221], rows=rows)
    assert {chosen.rows for chosen, _ in found} == {rows}
    assert len(found) == 2
    assert all(math.isfinite(votes) and votes > 0 for _, votes in found)
