"""SGEquiDiff's factors: probabilities that add up, draws that are legal, a bound that is one."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from strategies import noise_for, symmetric_crystals, templates, tiny_model

from crystalctl import sampling
from crystalctl.chosen import Chosen
from crystalctl.composing import composed_anew, plan_composed
from crystalctl.crystal.batch import Crystals, Target
from crystalctl.data.statistics import Statistics
from crystalctl.errors import InputError
from crystalctl.models import occupation, search
from crystalctl.models.formula_search import probabilities, propose
from crystalctl.models.likelihood import coordinate_bound, log_likelihood
from crystalctl.models.occupation import Occupation, no_formula
from crystalctl.models.sgequidiff import SGEquiDiff, SGEquiDiffConfig
from crystalctl.networks.telescope import TelescopeNet
from crystalctl.networks.wyckoff_net import Occupied
from crystalctl.planning import Sample
from crystalctl.symmetry.assignments import assignments, atoms_of
from crystalctl.symmetry.features import group_features, position_features
from crystalctl.symmetry.normaliser import canonical_orbits
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.witness import has_own_group
from crystalctl.symmetry.wyckoff import position, positions
from crystalctl.templating import parse_symmetry


@pytest.fixture(scope="module")
def crystals() -> Crystals:
    return symmetric_crystals()


@pytest.fixture(scope="module")
def model(crystals: Crystals) -> Any:
    return tiny_model("sgequidiff", "generate", crystals)


def writer(max_atoms: int) -> Occupation:
    torch.manual_seed(0)
    statistics = Statistics(max_atoms=max_atoms)
    made = Occupation(statistics, hidden=16, n_layers=2, n_heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(made.net.row.weight)
    torch.nn.init.normal_(made.net.element.weight)
    return made


def test_features_tell_all_groups_and_positions_apart() -> None:
    groups, places = (torch.from_numpy(f()) for f in (group_features, position_features))
    assert len(torch.unique(groups[1:].round(decimals=6), dim=0)) == 230
    assert len(torch.unique(places.round(decimals=6), dim=0)) == len(tables().group)


def test_bins_of_every_parameter_add_up_to_one() -> None:
    """Triclinic, so that gamma must leave a volume; each parameter given those before."""
    torch.manual_seed(0)
    net = TelescopeNet(16, 62, position_features().shape[1])
    kind, family = torch.from_numpy(group_features()[2:3]).float(), torch.tensor([0])
    with torch.no_grad():
        drawn = net.draw(torch.rand(1, 12), family, kind, None)
        for place in range(6):
            n = net.n_values
            every = drawn.expand(n, 6).clone()
            every[:, place] = net.low[place] + (torch.arange(n) + 0.5) * net.step[place]
            log_p = net.log_probability(every, family.expand(n), kind.expand(n, -1), None)
            assert float(log_p[:, place].double().exp().sum()) == pytest.approx(1, abs=1e-5)
            if place == 5:
                possible = log_p[:, 5] > -math.inf
                a, b, g = (torch.deg2rad(every[:, k].double()) for k in (3, 4, 5))
                square = 1 + 2 * a.cos() * b.cos() * g.cos()
                square = square - a.cos() ** 2 - b.cos() ** 2 - g.cos() ** 2
                assert torch.equal(possible, square > 0)


FAMILY_OF = [(2, 0), (14, 1), (62, 2), (139, 3), (166, 4), (225, 5)]


@pytest.mark.parametrize(("number", "family"), FAMILY_OF)
def test_drawn_lattices_are_of_their_family_and_bins(number: int, family: int) -> None:
    torch.manual_seed(0)
    net = TelescopeNet(16, 62, position_features().shape[1])
    n = 50
    kind = torch.from_numpy(group_features()[number]).float().expand(n, -1)
    families = torch.full((n,), family)
    with torch.no_grad():
        drawn = net.draw(torch.rand(n, 12), families, kind, None)
        log_p = net.log_probability(drawn, families, kind, None)
    assert log_p.isfinite().all()
    free = torch.tensor([net.free_of[family, k] for k in range(6)])
    assert not log_p[:, ~free].any()
    assert torch.equal(net.values(net.bins(drawn))[:, free], drawn[:, free])
    if family >= 3:
        assert torch.equal(drawn[:, 0], drawn[:, 1])
    if family == 4:
        assert (drawn[:, 5] == 120).all()


@pytest.mark.parametrize(("number", "most"), [(225, 2), (75, 2)])
def test_all_short_sequences_add_up_to_one(
    number: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every set of orbits with up to two atoms in the primitive cell, each of 100 elements."""
    monkeypatch.setattr(occupation, "LARGEST", most)
    made = writer(most)
    elements = range(1, 101)
    there = [p.row for p in positions(number) if atoms_of([p.row]) <= most]
    sequences = [[(row, z)] for row in there for z in elements]
    singles = [row for row in there if atoms_of([row]) == 1]
    for one, other in combinations_with_replacement(singles, 2):
        if one != other:
            sequences += [[(one, a), (other, b)] for a in elements for b in elements]
        elif position(one).freedom:
            sequences += [[(one, a), (one, b)] for a in elements for b in elements if a <= b]
    total, group = 0.0, torch.tensor([number])
    parameters = torch.tensor([[4.0, 4.0, 4.0, 90.0, 90.0, 90.0]])
    with torch.no_grad():
        for length in (1, 2):
            chosen = torch.tensor([s for s in sequences if len(s) == length])
            n = len(chosen)
            orbits = Occupied(chosen[..., 0], chosen[..., 1], torch.full((n,), length))
            place, element = made.log_probability(
                group.expand(n), parameters.expand(n, 6), no_formula(group.expand(n)), orbits
            )
            total += float((place + element).double().exp().sum())
    assert total == pytest.approx(1.0, abs=1e-5)


CASES = [
    (225, {11: 1, 17: 1}, True),
    (186, {16: 2, 30: 2}, True),
    (221, {8: 3, 22: 1, 38: 1}, False),
    (166, {3: 1, 8: 2, 27: 1}, False),
    (2, {5: 2, 8: 3}, False),
]


@pytest.mark.parametrize(("number", "composition", "whole"), CASES)
def test_proposals_are_all_assignments_of_the_formula(
    number: int, composition: dict[int, int], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together at most 1; less only where two elements need one position, which ends nowhere."""
    monkeypatch.setattr(search, "LEAST", 1e-12)
    monkeypatch.setattr(search, "MOST_CALLS", 10_000)
    made = writer(20)
    found = propose(made, composition, 10_000, groups=[number])
    known = {canonical_orbits(way) for way in assignments(number, composition)}
    assert {canonical_orbits(orbits) for orbits, _ in found} == known
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    total = sum(p for _, p in found)
    assert total == pytest.approx(1, abs=1e-5) if whole else 0.2 < total < 1 + 1e-6
    exact = probabilities(made, composition, [orbits for orbits, _ in found], groups=[number])
    assert exact == pytest.approx([p for _, p in found], rel=1e-3, abs=1e-9)


def test_groups_of_a_formula_share_all_probability(model: Any) -> None:
    found = model.propose({22: 1, 8: 2}, 5)
    assert 0 < sum(p for _, p in found) <= 1 + 1e-6
    assert len({canonical_orbits(orbits) for orbits, _ in found}) == len(found)


def test_compositions_are_legal_in_all_groups(model: Any) -> None:
    pools = [[number] for number in range(1, 231)]
    found = model.compose(pools, noise_for(230), temperature=2.0, elements=frozenset({3, 8, 22}))
    table = tables()
    for number, template in enumerate(found, start=1):
        assert template.space_group == number
        pairs = list(zip(template.positions, template.species, strict=True))
        assert pairs == sorted(pairs)
        assert set(template.species) <= {3, 8, 22}
        for row in set(template.positions):
            assert int(table.group[row]) == number
            assert table.freedom[row] or template.positions.count(row) == 1
        assert len(template.cell) == 6


def test_compositions_have_the_sizes_asked_for(model: Any) -> None:
    found = model.compose([range(1, 231)] * 40, noise_for(40), sizes=[6, 8])
    assert {atoms_of(template.positions) for template in found} <= {6, 8}
    assert model.compose([[225], [1]], noise_for(2), sizes=[49])[0] is None


def test_samples_that_did_not_come_out_get_other_templates_of_their_group(model: Any) -> None:
    wish = parse_symmetry([103, 225])
    samples, _ = plan_composed(
        model, 4, model.statistics, wish, num_atoms=[6, 8, 10], elements=frozenset({3, 8})
    )
    bare = replace(samples[0], template=Chosen(225, samples[0].template.rows))
    anew = composed_anew(model, [*samples, bare])
    assert anew[-1] == bare
    assert anew == composed_anew(model, [*samples, bare])
    others = 0
    for old, new in zip(samples, anew, strict=False):
        assert new.template.group == old.template.group
        assert new.template.cell is not None
        assert new.n_atoms == new.template.n_atoms
        assert new.n_atoms in (6, 8, 10)
        assert set(new.template.species) <= {3, 8}
        assert has_own_group(new.template.rows, new.template.species)
        others += new.template != old.template
    assert others >= 2


def test_a_sample_is_drawn_in_its_template_twice_then_in_others(model: Any, monkeypatch) -> None:
    wish = parse_symmetry([225])
    samples, _ = plan_composed(model, 3, model.statistics, wish, elements=frozenset({3, 8}))
    seen: dict[int, list[tuple[int, ...]]] = {sample.number: [] for sample in samples}

    def never_good(sample: Sample, crystal: Crystals) -> bool:
        seen[sample.number].append(tuple(crystal.layout.orbits.position.tolist()))
        return True

    monkeypatch.setattr(sampling, "unwanted", never_good)
    found = sampling.draw_exact(model, samples, seed=0, steps=1, device=torch.device("cpu"))
    for sample in samples:
        drawn = seen[sample.number]
        assert len(drawn) == 1 + sampling.REDRAWS
        assert drawn[0] == drawn[1] == sample.template.rows
        assert tuple(found[sample.number].layout.orbits.position.tolist()) == drawn[-1]
    assert sum(len(set(drawn)) > 1 for drawn in seen.values()) >= 2


def test_a_lattice_that_is_given_stays(model: Any) -> None:
    cell = (4.005, 4.005, 4.005, 90.0, 90.0, 90.0)
    template = replace(templates()[1], cell=cell)
    drawn = model.sample([Target(template=template)], noise_for(1), steps=2)
    lengths = torch.linalg.vector_norm(drawn.lattice[0], dim=1)
    assert torch.allclose(lengths, torch.full((3,), 4.005), atol=1e-4)


def test_modules_train_alone(crystals: Crystals) -> None:
    for parts, expected in (("lattice", ["lattice"]), ("group, coordinates", ["group", "frac"])):
        made = tiny_model("sgequidiff", "generate", crystals, parts=parts)
        terms = made.loss(crystals, noise_for(len(crystals)))
        assert list(terms) == expected
        sum(term.total for term in terms.values()).backward()
        for name, parameter in made.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    whole = tiny_model("sgequidiff", "generate", crystals)
    alone = tiny_model("sgequidiff", "generate", crystals, parts="lattice")
    assert set(whole.state_dict()) == set(alone.state_dict())
    with pytest.raises(InputError, match="parts"):
        SGEquiDiff(SGEquiDiffConfig(parts="lattices"), Statistics(max_atoms=4))
    with pytest.raises(InputError, match="metric"):
        SGEquiDiff(SGEquiDiffConfig(metric="round"), Statistics(max_atoms=4))


def test_log_p_has_all_factors_and_is_the_same_in_any_batch(model: Any, crystals: Crystals) -> None:
    together = log_likelihood(model, crystals, noise_for(len(crystals)), levels=3)
    alone = log_likelihood(model, crystals.index(torch.tensor([0])), noise_for(1), levels=3)
    for name, values in together.items():
        assert values.isfinite().all(), name
        assert float(values[0]) == pytest.approx(float(alone[name][0]), abs=1e-3)
    long = crystals.replace(lattice=crystals.lattice * 50)
    assert (log_likelihood(model, long, noise_for(4), levels=1)["lattice"] == -math.inf).all()


def test_the_bound_is_the_density_of_a_model_that_knows(
    model: Any, crystals: Crystals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exact score of one crystal: its blurred density, less what is known at the start.

    E log q at the least width, minus the same at the largest, where the prior is uniform.
    """
    orbits = crystals.layout.orbits
    assert orbits is not None
    process = model.process(orbits.position)
    images, sigma = process.images, model.schedule.sigma
    free = images.free
    u0 = orbits.at_anchors(crystals.frac).float().masked_fill(~free, 0.0)

    def exact(u: torch.Tensor, species: Any, time: torch.Tensor, unit: Any, **_: Any) -> Any:
        width = sigma[time][unit.layout.crystal_idx]
        _, velocity = images.wrapped(u, u0, width)
        rows = torch.arange(len(u))
        return velocity * (width / process.strength[rows, time[0]].sqrt())[:, None]

    monkeypatch.setattr(model, "denoise", exact)
    runs = [coordinate_bound(model, crystals, noise_for(4, seed), levels=100) for seed in range(6)]
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(len(crystals))
    for t, sign in ((1, 1), (model.config.n_steps, -1)):
        width = sigma[t].expand(len(u0))
        for _ in range(200):
            kick = images.shape(torch.randn(len(u0), 3, generator=generator))
            log, _ = images.wrapped(u0 + sigma[t] * kick, u0, width)
            expected.index_add_(0, orbits.orbit_crystal, sign * log / 200)
    expected.index_add_(0, orbits.orbit_crystal, images.order.log())
    found = torch.stack(runs).mean(0)
    assert torch.allclose(found, expected, atol=0.5), (found, expected)
