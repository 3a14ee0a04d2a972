"""What is known like a template, and the choice among composed ones by it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from crystalctl import composing
from crystalctl.chosen import Begun, Chosen
from crystalctl.composing import LOOKS, Likely, composed_anew, plan_composed
from crystalctl.data.statistics import Statistics
from crystalctl.precedents import Precedent, Precedents
from crystalctl.retrieval import Memory, plain_cost
from crystalctl.starts import Prototypes
from crystalctl.symmetry.normaliser import canonical_orbits, equivalent_orbits
from crystalctl.symmetry.wyckoff import position_row
from crystalctl.templating import parse_symmetry

Sites = list[tuple[str, int]]
HEUSLER: dict[str, Sites] = {
    "Cu2MnAl": [("a", 13), ("b", 25), ("c", 29)],
    "Ni2MnGa": [("a", 31), ("b", 25), ("c", 28)],
    "Li2CdCa": [("a", 3), ("b", 48), ("c", 20)],
}
"""Full Heusler compounds; the last one's name is wrong by purpose: it is Ca2LiCd."""
SALT: dict[str, Sites] = {"NaCl": [("a", 11), ("b", 17)], "KCl": [("b", 17), ("a", 19)]}


def template(sites: Sites, group: int = 225) -> Chosen:
    return Chosen.of([(position_row(group, letter), z) for letter, z in sites])


def memory_of(*structures: Sites, weight: list[float] | None = None) -> Memory:
    known = [template(sites) for sites in structures]
    return Memory(
        np.array([one.group for one in known]),
        np.array([len(one.rows) for one in known]),
        np.array([row for one in known for row in one.rows]),
        np.array([z for one in known for z in one.species or ()]),
        plain_cost(),
        None if weight is None else np.array(weight),
    )


def by_hand(memory: Memory, wanted: Chosen) -> tuple[bool, float]:
    """All that vote, one by one."""
    form = canonical_orbits(zip(wanted.rows, wanted.species, strict=True))
    points = {225: 4}[wanted.group]
    multiplicity = {"a": 4, "b": 4, "c": 8}
    letters = {position_row(225, letter): letter for letter in multiplicity}
    composition: dict[int, int] = {}
    for row, z in zip(wanted.rows, wanted.species, strict=True):
        composition[z] = composition.get(z, 0) + multiplicity[letters[row]] // points
    known, likeness = False, 0.0
    for entry, swap, vote in memory._voters(composition, None, None):
        there = [(r, swap[z]) for r, z in zip(entry.rows, entry.species, strict=True)]
        if canonical_orbits(there) != form:
            continue
        if all(old == new for old, new in swap.items()):
            known = True
        else:
            likeness = max(likeness, vote)
    return known, likeness


@pytest.mark.parametrize(
    "sites",
    [
        *HEUSLER.values(),
        *SALT.values(),
        [("a", 13), ("b", 25), ("c", 28)],
        [("b", 13), ("a", 25), ("c", 28)],
        [("a", 20), ("b", 48), ("c", 3)],
        [("a", 29), ("b", 25), ("c", 13)],
        [("a", 12), ("b", 8)],
        [("a", 12), ("c", 9)],
    ],
)
@pytest.mark.parametrize("weight", [None, [1.0, 0.2, 0.5, 0.9, 0.05]])
def test_a_precedent_is_what_looking_at_everything_finds(sites, weight) -> None:
    memory = memory_of(*HEUSLER.values(), *SALT.values(), weight=weight)
    wanted = template(sites)
    found = Precedents(memory).of(wanted)
    assert (found.known, found.likeness) == pytest.approx(by_hand(memory, wanted))
    assert found.starts == ()


def test_known_is_a_compound_in_whatever_setting_and_no_other_of_its_elements() -> None:
    precedents = Precedents(memory_of(*HEUSLER.values()))
    assert precedents.of(template([("b", 13), ("a", 25), ("c", 29)])).known
    assert not precedents.of(template([("a", 20), ("b", 48), ("c", 3)])).known
    assert precedents.of(template([("a", 13), ("b", 25), ("c", 29)])).likeness < 1
    assert Precedents(memory_of(*SALT.values())).of(template(HEUSLER["Cu2MnAl"])) == (False, 0, ())


class Composer:
    """Composes the templates of a list, one after the other for each sample."""

    strength = SimpleNamespace(device="cpu")
    occupation = SimpleNamespace(max_atoms=20)

    def __init__(self, *templates: Chosen) -> None:
        self.templates = templates
        self.pools: list[list[int]] = []


@pytest.fixture
def compose(monkeypatch):
    """Templates in turn, whatever the stream."""

    def run(model, pools, streams, settings):
        at = len(model.pools)
        model.pools.append([list(pool) for pool in pools])
        chosen = model.templates[at % len(model.templates)]
        one = SimpleNamespace(
            space_group=chosen.group,
            positions=chosen.rows,
            species=chosen.species,
            cell=(4.0, 4.0, 4.0, 90.0, 90.0, 90.0),
        )
        return [one for _ in pools]

    monkeypatch.setattr(composing, "_compose", run)


def planned(model: Composer, likely: Likely | None, n: int = 1, **wish) -> list[Chosen]:
    statistics = Statistics(max_atoms=20, elements=tuple(range(1, 90)))
    samples, combined = plan_composed(
        model, n, statistics, wish.get("symmetry"), likely=likely, seed=wish.get("seed", 0)
    )
    assert not combined
    return [sample.template for sample in samples]


KNOWN = template(SALT["NaCl"])
NEAR = template([("a", 11), ("b", 35)])
FAR = template([("a", 92), ("b", 1)])
NOTHING = template([("a", 12), ("c", 9)])


@pytest.fixture
def precedents() -> Precedents:
    return Precedents(memory_of(*SALT.values()))


def test_what_is_known_or_like_nothing_is_composed_again(compose, precedents) -> None:
    model = Composer(KNOWN, NOTHING, FAR, NEAR)
    assert planned(model, Likely(precedents, 0.3)) == [replace(NEAR, cell=(4.0,) * 3 + (90.0,) * 3)]
    assert len(model.pools) == 4
    # The first is drawn from all groups, those after it from its own.
    assert [len(pools[0]) for pools in model.pools] == [230, 1, 1, 1]


def test_any_composition_will_do_where_nothing_is_asked_of_it(compose, precedents) -> None:
    for likely in (None, Likely(precedents, 0.0)):
        model = Composer(NOTHING, NEAR)
        assert planned(model, likely)[0].rows == NOTHING.rows
        assert len(model.pools) == 1


def test_where_nothing_is_taken_the_most_alike_is(compose, precedents) -> None:
    model = Composer(NOTHING, KNOWN)
    assert planned(model, Likely(precedents, 0.3))[0].species == KNOWN.species
    assert len(model.pools) == LOOKS


def test_one_is_taken_as_often_as_it_is_alike(compose, precedents) -> None:
    """Half as alike as wanted: one in two."""
    likeness = precedents.of(NEAR).likeness
    assert likeness == pytest.approx(math.exp(-1 / 6), abs=0.1)
    rival = replace(NEAR, species=(11, 53))
    likely = Likely(SimpleNamespace(of=lambda t: Precedent(False, 0.2, ())), 0.4)
    found = [planned(Composer(NEAR, rival), likely, seed=seed)[0] for seed in range(400)]
    # Taken at the first, third, ... look: 2 of 3.
    assert sum(one.species == NEAR.species for one in found) / 400 == pytest.approx(2 / 3, abs=0.07)


def in_turn(*composed: Chosen):
    """Composes these in turn, for each sample from another one on."""

    def run(model, pools, streams, settings):
        return [
            SimpleNamespace(
                space_group=t.group, positions=t.rows, species=t.species, cell=(4.0,) * 6
            )
            for t in (composed[stream % len(composed)] for stream in streams)
        ]

    return run


def test_what_an_earlier_sample_has_is_not_taken_again(monkeypatch, precedents) -> None:
    others = [template([("a", 11), ("b", z)]) for z in (9, 35, 53)]
    monkeypatch.setattr(composing, "_compose", in_turn(KNOWN, KNOWN, NOTHING, *others))
    likely = Likely(precedents, 0.05)
    few, more = (planned(Composer(), likely, n=n) for n in (2, 3))
    assert {one.species for one in more} == {one.species for one in others}
    # More samples leave the first as they are.
    assert few == more[:2]
    # Where all is taken, what is known comes, and then nothing is left but the same again.
    species = [one.species for one in planned(Composer(), likely, n=7)]
    assert species[:3] == [one.species for one in more]
    assert species[3] == KNOWN.species
    assert species[4] == NOTHING.species
    assert set(species[5:]) <= {one.species for one in others}


def test_the_votes_of_a_composed_sample_are_its_likeness(monkeypatch, precedents) -> None:
    monkeypatch.setattr(composing, "_compose", in_turn(KNOWN, NOTHING, FAR, NEAR))
    statistics = Statistics(max_atoms=20, elements=tuple(range(1, 90)))
    for likely in (Likely(precedents, 0.3), Likely(precedents, 0.0)):
        samples, _ = plan_composed(Composer(), 4, statistics, None, likely=likely)
        for sample in samples:
            assert sample.votes == precedents.of(sample.template).likeness
    assert [s.votes for s in plan_composed(Composer(), 4, statistics, None)[0]] == [0.0] * 4


def test_the_model_alone_may_compose_the_same_again(monkeypatch, precedents) -> None:
    monkeypatch.setattr(composing, "_compose", in_turn(NEAR))
    for likely in (None, Likely(precedents, 0.0)):
        assert [one.species for one in planned(Composer(), likely, n=3)] == [NEAR.species] * 3


def test_a_wish_for_groups_is_kept(compose, precedents) -> None:
    model = Composer(NEAR)
    planned(model, Likely(precedents, 0.3), symmetry=parse_symmetry([225], None))
    assert model.pools[0] == [[225]]


def test_the_prototype_of_the_most_alike_comes_with_the_template(compose) -> None:
    begun = Begun(NEAR.rows, NEAR.species, (0.0,) * 12, 1.0)
    likely = Likely(SimpleNamespace(of=lambda t: Precedent(False, 1.0, (begun,))), 0.3)
    (found,) = planned(Composer(NEAR), likely)
    assert found.start is None
    assert found.likeliest.start == begun.start
    assert found.likeliest.cell == found.cell


def test_what_is_composed_anew_is_the_most_alike(monkeypatch, precedents) -> None:
    templates = [NOTHING, KNOWN, FAR, NEAR] * 2

    def run(model, pools, streams, settings):
        return [
            SimpleNamespace(
                space_group=t.group, positions=t.rows, species=t.species, cell=(4.0,) * 6
            )
            for t in templates
        ]

    monkeypatch.setattr(composing, "_compose", run)
    model = SimpleNamespace(compose=None)
    old = composing.Sample(1, "k", "l", 2, 0, template=replace(FAR, cell=(4.0,) * 6))
    (plain,) = composed_anew(model, [old])
    assert plain.template.rows == NOTHING.rows
    (chosen,) = composed_anew(model, [old], Likely(precedents, 0.3))
    assert chosen.template.species == NEAR.species
    (first,) = composed_anew(model, [old], Likely(precedents, 0.0))
    assert first.template.species == NOTHING.species


def test_atoms_far_apart_neither_vote_nor_are_a_precedent() -> None:
    """Databases hold cells of separate atoms, with energies that are no reason to follow them."""
    memory = memory_of(*SALT.values())
    sizes = Prototypes(
        np.array([-1, -1]),
        np.array([5.6, 5.6]),
        *(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 5)), np.zeros(101), np.zeros((101, 2))),
    )
    assert Precedents(replace(memory, prototypes=sizes)).of(NEAR) == (False, 0.0, ())
    assert replace(memory, prototypes=sizes).propose({11: 1, 35: 1}, 3) == []
    dense = replace(sizes, size=np.array([5.6, 3.1]))
    found = Precedents(replace(memory, prototypes=dense)).of(NEAR)
    assert 0 < found.likeness < Precedents(memory).of(NEAR).likeness
    ((_, vote),) = replace(memory, prototypes=dense).propose({11: 1, 35: 1}, 3)
    assert vote == pytest.approx(found.likeness)


def test_every_setting_has_the_same_precedent(precedents) -> None:
    for orbits in equivalent_orbits(tuple(zip(NEAR.rows, NEAR.species, strict=True))):
        assert precedents.of(Chosen.of(orbits)) == precedents.of(NEAR)


def test_the_user_sees_how_many_are_composed(compose, precedents) -> None:
    seen: list[tuple[str, int, int]] = []
    statistics = Statistics(max_atoms=20, elements=tuple(range(1, 90)))
    plan_composed(
        Composer(NOTHING, KNOWN, NEAR),
        2,
        statistics,
        None,
        likely=Likely(precedents, 0.3),
        on_progress=lambda *step: seen.append(step),
    )
    assert seen[0] == ("composing", 0, 2)
    assert seen[-1] == ("composing", 2, 2)
