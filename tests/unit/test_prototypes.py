"""Prototypes: found whatever the elements, the setting and the order; where drawing begins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import noise_for, symmetric_crystals, tiny_model

from crystalctl import sampling
from crystalctl.alignment import Facts, align, classes, settings
from crystalctl.chosen import Begun, Chosen
from crystalctl.crystal.batch import Crystals, Target, Template
from crystalctl.data.standard import Standard, from_anchors
from crystalctl.diffusion.lattice_coords import from_family6, to_family6
from crystalctl.errors import InputError
from crystalctl.models import diffcsp_pp
from crystalctl.models.diffcsp_pp import SCALE
from crystalctl.planning import Sample
from crystalctl.precedents import Precedents
from crystalctl.prototypes import find_prototypes, with_prototypes
from crystalctl.retrieval import Memory
from crystalctl.starts import Prototypes
from crystalctl.symmetry.normaliser import canonical_orbits
from crystalctl.symmetry.tables import tables
from crystalctl.symmetry.wyckoff import position_row
from crystalctl.templating import shared_out
from crystalctl.tiles import tiles

RUTILE = {22: 0.3050, 50: 0.3070, 82: 0.3090, 25: 0.3030}
"""Metal -> x of the oxygen."""
SIZE = {22: 1.0, 50: 1.1, 82: 1.2, 25: 0.95}


def rutile(metal: int, x: float | None = None, *, other: bool = False) -> Facts:
    """MO2 in P4_2/mnm; ``other``: half a cell up, where all positions have other letters."""
    x = RUTILE[metal] if x is None else x
    letters, anchors = ("a", "f"), [[0, 0, 0], [x, x, 0]]
    if other:
        letters, anchors = ("b", "g"), [[0, 0, 0.5], [x - 0.5, 0.5 - x, 0]]
    return Facts(
        np.array([position_row(136, letter) for letter in letters]),
        np.array([metal, 8]),
        np.array(anchors, dtype=float),
        np.diag([4.6, 4.6, 2.96]) * SIZE[metal],
    )


def wurtzite(cation: int, anion: int, u: float, z: float, *, flipped: bool = False) -> Facts:
    """P6_3mc, moved by ``z`` along the polar axis, perhaps upside down."""
    row = position_row(186, "b")
    sign = -1 if flipped else 1
    lattice = np.array([[1, 0, 0], [-0.5, math.sqrt(0.75), 0], [0, 0, 1.63]]) * 3.8
    anchors = [[1 / 3, 2 / 3, (z + sign * height) % 1] for height in (0, u)]
    return Facts(np.array([row, row]), np.array([cation, anion]), np.array(anchors), lattice)


def found_in(structures: list[Facts]):
    return find_prototypes(structures, rank=np.arange(len(structures), dtype=float))


def packed(structures: list[Facts]) -> Crystals:
    return from_anchors(
        torch.from_numpy(np.concatenate([s.rows for s in structures])),
        torch.tensor([len(s.rows) for s in structures]),
        space_group=torch.from_numpy(tables().group[[s.rows[0] for s in structures]]),
        lattice=torch.from_numpy(np.array([s.lattice for s in structures])).float(),
        anchors=torch.from_numpy(np.concatenate([s.anchor for s in structures])).float(),
        species=torch.from_numpy(np.concatenate([s.species for s in structures])),
    )


def memory_of(structures: list[Facts]) -> Memory:
    crystals = packed(structures)
    memory = Memory.of(Standard(crystals, torch.arange(len(crystals))))
    return with_prototypes(memory, crystals)


def test_rutiles_are_one_prototype_in_both_settings() -> None:
    structures = [rutile(z, other=z in (50, 25)) for z in RUTILE]
    found = found_in(structures)
    assert (found.which == 0).all()
    assert np.allclose(found.anchor[0][1], [np.mean(list(RUTILE.values()))] * 2 + [0], atol=1e-9)
    cells = [to_family6(torch.from_numpy(s.lattice[None])).numpy() for s in structures]
    assert np.allclose(found.cell[0], np.mean(cells, 0))


def test_other_coordinates_another_cell_and_one_compound_are_none() -> None:
    assert (found_in([rutile(22), rutile(50, 0.2)]).which == -1).all()
    long = rutile(50)._replace(lattice=np.diag([4.6, 4.6, 4.0]))
    assert (found_in([rutile(22), long]).which == -1).all()
    assert (found_in([rutile(22), rutile(22, other=True)]).which == -1).all()
    assert (found_in([rutile(22)]).which == -1).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_polar_axes_have_no_origin_and_no_direction(flipped: bool) -> None:
    first, second = wurtzite(30, 16, 0.375, 0.0), wurtzite(30, 34, 0.371, 0.213, flipped=flipped)
    found = found_in([first, second])
    assert (found.which == 0).all()
    gap = (found.anchor[0][1, 2] - found.anchor[0][0, 2]) % 1
    assert gap == pytest.approx(0.373, abs=1e-6)


def test_which_element_is_which_is_found_out() -> None:
    """Cation and anion of wurtzite alike but for their name: Zn lies on the second orbit's."""
    found = found_in([wurtzite(30, 16, 0.375, 0.0), wurtzite(34, 48, 0.375, 0.1)])
    assert (found.which == 0).all()
    species = {i: np.array([[30, 16], [34, 48]])[i][found.slot[i]].tolist() for i in (0, 1)}
    assert species in (
        {0: [30, 16], 1: [34, 48]},
        {0: [16, 30], 1: [34, 48]},
        {0: [30, 16], 1: [48, 34]},
    )


@pytest.mark.parametrize("group", [2, 4, 14, 19, 33, 61, 82, 146, 152, 160, 185, 198, 205])
def test_general_positions_are_recognised_in_every_disguise(group: int) -> None:
    """Another image of each atom, another order, another setting, another origin where it is free;
    that a structure is the same is known because all its distances are."""
    draw = np.random.default_rng(group)
    table = tables()
    row = int(table.first_position[group]) - 1
    free = torch.tensor(table.lattice_free[group - 1]).double()
    k = torch.tensor(table.lattice_fixed[group - 1]) + free * torch.from_numpy(
        draw.normal(size=6) * 0.1 + [0, 0, 0, 0, 0, 3.3]
    )
    base = Facts(
        np.full(3, row), np.array([3, 3, 9]), draw.random((3, 3)), from_family6(k[None])[0].numpy()
    )
    way = settings(group)
    here = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
    for number in range(0, len(way.matrix), max(1, len(way.matrix) // 6)):
        matrix, shift = way.matrix[number], way.shift[number] + way.polar @ draw.random(3)
        moved = base.anchor @ matrix.T + shift
        image = draw.integers(here.stop - here.start, size=3)
        operation = table.rotation[here][image], table.translation[here][image]
        moved = np.einsum("oij,oj->oi", operation[0], moved) + operation[1]
        order = draw.permutation(3)
        other = Facts(
            base.rows,
            np.array([11, 11, 17])[order],
            (moved[order] + draw.normal(size=(3, 3)) * 1e-4) % 1,
            np.linalg.inv(matrix).T @ base.lattice,
        )
        assert same_distances(base, other)
        (both,) = classes([base, other])
        aligned = align(both, 0, np.array([1]))
        assert aligned.rms[0] < 1e-3
        assert np.abs(aligned.anchor[0] - both.anchor[0]).max() < 1e-3
    far = base._replace(species=np.array([11, 11, 17]), anchor=draw.random((3, 3)))
    (both,) = classes([base, far])
    assert np.isinf(align(both, 0, np.array([1])).rms[0])


def same_distances(one: Facts, other: Facts) -> bool:
    def spectrum(facts: Facts) -> np.ndarray:
        (crystal,) = packed([facts]).split()
        frac = crystal.frac.double().numpy()
        cells = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
        gap = (frac[:, None] - frac)[:, :, None] + cells
        distance = np.linalg.norm(gap @ facts.lattice, axis=-1).ravel()
        return np.sort(distance)[: 20 * len(frac)]

    return bool(np.abs(spectrum(one) - spectrum(other)).max() < 2e-2)


def forms(memory: Memory) -> list[object]:
    ends = np.cumsum(memory.n_orbits)
    owner = [slice(end - n, end) for end, n in zip(ends, memory.n_orbits, strict=True)]
    return [
        canonical_orbits(zip(memory.rows[o].tolist(), memory.species[o].tolist(), strict=True))
        for o in owner
    ]


def test_votes_lead_to_the_prototype_with_the_elements_asked_for(tmp_path) -> None:
    structures = [rutile(z, other=z in (50, 25)) for z in RUTILE]
    before = Memory.of(Standard(packed(structures), torch.arange(4)))
    memory = memory_of(structures)
    assert forms(before) == forms(memory)
    memory.save(tmp_path / "t.safetensors")
    memory = Memory.load(tmp_path / "t.safetensors")
    ((chosen, _),) = memory.propose({44: 2, 8: 4}, 9)
    (begun,) = chosen.starts
    assert begun.part == pytest.approx(1)
    assert canonical_orbits(zip(begun.rows, begun.species, strict=True)) == canonical_orbits(
        zip(chosen.rows, chosen.species, strict=True)
    )
    place = dict(zip(begun.species, np.reshape(begun.start[6:], (2, 3)), strict=True))
    assert np.allclose(place[8], [0.306, 0.306, 0], atol=2e-5)
    assert np.allclose(place[44], 0, atol=2e-5)


def test_the_precedent_of_a_composed_template_has_the_same_start() -> None:
    memory = memory_of([rutile(z, other=z in (50, 25)) for z in RUTILE])
    ((chosen, _),) = memory.propose({44: 2, 8: 4}, 9)
    found = Precedents(memory).of(replace(chosen, starts=()))
    ((begun,), (same,)) = found.starts, chosen.starts
    assert (begun.rows, begun.species) == (same.rows, same.species)
    assert begun.start == pytest.approx(same.start)
    assert not found.known
    assert Precedents(memory).of(replace(chosen, species=(22, 8), starts=())).known


def test_each_element_stands_where_its_like_did() -> None:
    """The prototype lists the one anion first, the template the two cations."""
    row, anchor = position_row(14, "e"), np.random.default_rng(0).random((3, 3))
    lattice = np.array([[5.0, 0, 0], [0, 6, 0], [-1, 0, 7]])
    memory = memory_of(
        [Facts(np.full(3, row), np.array(z), anchor, lattice) for z in ([3, 3, 9], [11, 11, 17])]
    )
    ((chosen, _),) = memory.propose({19: 8, 35: 4}, 9)
    (begun,) = chosen.starts
    assert begun.species == (19, 19, 35)
    found = np.reshape(begun.start[6:], (3, 3))
    assert np.allclose(found[2], anchor[2], atol=2e-5)
    assert np.allclose(sorted(found[:2].tolist()), sorted(anchor[:2].tolist()), atol=2e-5)


def test_cells_grow_with_the_elements(tmp_path) -> None:
    memory = memory_of([rutile(z) for z in RUTILE])

    def volume(metal: int) -> float:
        ((chosen, _),) = memory.propose({metal: 2, 8: 4}, 1)
        k = torch.tensor([chosen.starts[0].start[:6]])
        return float(torch.linalg.det(from_family6(k))[0])

    # One structure of each metal; what others say keeps them nearer to their mean.
    sizes = [volume(z) for z in (25, 22, 50, 82)]
    assert sizes == sorted(sizes)
    # Nobody knows what ruthenium does to a cell: it is as large as those most like it.
    votes = {e.species[0]: vote for e, _, vote in memory._voters({44: 2, 8: 4}, None, None)}
    known = memory.prototypes
    assert known is not None
    oxygen = np.zeros(101)
    oxygen[8], own = 2 / 3, dict(zip(memory.species[::2], known.size, strict=True))
    square = (oxygen @ known.pairs) ** 2
    half = len(square) // 2
    size = sum(votes[z] * own[z] for z in votes) / sum(votes.values())
    size += oxygen @ known.volume + square[:half].sum() - square[half:].sum()
    assert volume(44) == pytest.approx(6 * math.exp(size), rel=1e-6)


def test_files_with_one_size_for_a_prototype_are_read(tmp_path) -> None:
    known = memory_of([rutile(z) for z in RUTILE]).prototypes
    assert known is not None
    raw = known.tensors()
    del raw["structure_size"]
    raw["prototype_cell"] = np.concatenate([raw["prototype_cell"], [[3.0]]], 1)
    again = Prototypes.from_tensors(raw)
    assert again is not None
    assert again.cell.shape == (1, 5)
    assert (again.size == 3).all()
    assert raw == {}


def test_files_without_prototypes_are_read_and_begin_at_noise(tmp_path) -> None:
    memory = Memory.of(Standard(packed([rutile(22), rutile(50)]), torch.arange(2)))
    memory.save(tmp_path / "t.safetensors")
    ((chosen, _),) = Memory.load(tmp_path / "t.safetensors").propose({44: 2, 8: 4}, 9)
    assert chosen.starts == ()


def test_only_the_setting_asked_for_is_a_start() -> None:
    memory = memory_of([rutile(z) for z in RUTILE])
    for letters, there in (("af", 1), ("bg", 0)):
        rows = [position_row(136, letter) for letter in letters]
        ((chosen, _),) = memory.propose({44: 2, 8: 4}, 9, rows=rows)
        assert sorted(chosen.rows) == rows
        assert len(chosen.starts) == there


def test_samples_begin_by_turns_at_structures_and_at_noise() -> None:
    begun = [Begun((1,), (8,), (0.0,) * 9, part) for part in (0.6, 0.3)]
    chosen = Chosen(1, (1,), (8,), source="retrieval", starts=tuple(begun))
    taken = chosen.taken(5)
    assert [one.source for one, _ in taken] == [
        "prototype",
        "retrieval",
        "prototype",
        "retrieval",
        "retrieval",
    ]
    parts = [part for _, part in taken]
    assert sum(parts) == pytest.approx(1)
    assert parts[0] == pytest.approx(2 * parts[2]) == pytest.approx(6 * parts[1])
    assert not any(one.starts for one, _ in taken)
    both = shared_out([(chosen, 3.0), (Chosen(1, (1,), (9,)), 1.0)], 6)
    assert sum(votes for _, votes in both) == pytest.approx(4)
    samples = [
        Sample(i + 1, "key", "label", 1, i, template=one) for i, (one, _) in enumerate(taken)
    ]
    kinds = [
        {s.template.start is None for s in tile if s.template} for tile in tiles(samples, "cpu")
    ]
    assert all(len(kind) == 1 for kind in kinds)


def test_a_structure_without_a_vote_has_a_part_all_the_same() -> None:
    chosen = Chosen(1, (1,), (8,), starts=(Begun((1,), (8,), (0.0,) * 9, 0.0),))
    assert [part for _, part in chosen.taken(1)] == [1]
    assert sum(part for _, part in chosen.taken(3)) == pytest.approx(1)


def test_what_is_drawn_again_begins_at_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def draw(model, samples, **options):
        seen.extend(s.template.start for s in samples)
        return dict.fromkeys((s.number for s in samples), None)

    monkeypatch.setattr(sampling, "draw", draw)
    monkeypatch.setattr(sampling, "unwanted", lambda sample, crystal: True)
    start = (0.0,) * 9
    chosen = Chosen(1, (1,), (8,), start=start)
    sample = Sample(1, "key", "label", 1, 0, template=chosen)
    sampling.draw_exact(object(), [sample], device=torch.device("cpu"))
    assert seen == [start, *[None] * sampling.REDRAWS]


def test_more_prototypes_than_sixteen_bits_count_are_kept() -> None:
    n = 40000
    many = Prototypes(
        np.arange(n),
        np.zeros(n),
        np.ones(n),
        np.zeros((n, 3)),
        np.zeros((n, 5)),
        np.zeros(101),
        np.zeros((101, 2)),
    )
    again = Prototypes.from_tensors(many.tensors())
    assert again is not None
    assert (again.which == many.which).all()


def begun_targets() -> tuple[list[Target], Crystals]:
    """Each of some symmetric crystals as the start of a structure like it."""
    crystals = symmetric_crystals()
    found = []
    for one in crystals.split():
        orbits = one.layout.orbits
        assert orbits is not None
        assert one.layout.space_group is not None
        k = to_family6(one.lattice)[0].tolist()
        anchors = orbits.at_anchors(one.frac).flatten().tolist()
        species = orbits.at_anchors(one.species).tolist()
        template = Template(
            int(one.layout.space_group),
            tuple(orbits.position.tolist()),
            tuple(species),
            start=(*k, *anchors),
        )
        found.append(Target(template=template))
    return found, crystals


def test_drawing_begins_at_the_structure() -> None:
    targets, crystals = begun_targets()
    model = tiny_model("diffcsp_pp", "predict", crystals, n_steps=100, start_level=0.01)
    drawn = model.sample(targets, noise_for(len(targets)), steps=100)
    gap = drawn.frac - crystals.frac
    assert (gap - gap.round()).abs().max() < 0.05
    ratio = drawn.lattice.double().det() / crystals.lattice.double().det()
    assert (ratio.log().abs() < 0.3).all()
    free = model.sample(
        [replace(t, template=replace(t.template, start=None)) for t in targets],
        noise_for(len(targets)),
        steps=100,
    )
    gap = free.frac - crystals.frac
    assert (gap - gap.round()).abs().max() > 0.1


def test_the_volume_is_the_mean_of_the_drawn_one_and_the_known_one(monkeypatch) -> None:
    targets, crystals = begun_targets()
    model = tiny_model("diffcsp_pp", "predict", crystals, n_steps=100)
    bigger = 0.3

    def drawn(*args, start, **options):
        volume = start["lattice"][:, 5:] + bigger / math.sqrt(3) / SCALE[5]
        lattice = torch.cat([start["lattice"][:, :5], volume], 1)
        return {"frac": start["frac"], "species": options["held"]["species"], "lattice": lattice}

    monkeypatch.setattr(diffcsp_pp, "reverse", drawn)
    found = model.sample(targets, noise_for(len(targets)))
    ratio = found.lattice.double().det() / crystals.lattice.double().det()
    assert torch.allclose(ratio.log(), torch.full_like(ratio, bigger / 2), atol=1e-4)


def test_a_batch_of_both_kinds_is_what_each_is_alone() -> None:
    targets, crystals = begun_targets()
    model = tiny_model("diffcsp_pp", "predict", crystals)
    mixed = [
        target if i % 2 else replace(target, template=replace(target.template, start=None))
        for i, target in enumerate(targets)
    ]
    together = model.sample(mixed, noise_for(len(mixed))).split()
    noise = noise_for(len(mixed))
    for i, target in enumerate(mixed):
        alone = model.sample([target], noise.of([i]))
        assert torch.equal(alone.species, together[i].species)
        assert torch.allclose(alone.frac, together[i].frac, atol=1e-4)
        assert torch.allclose(alone.lattice, together[i].lattice, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, -0.1, 1.5, math.nan])
def test_levels_that_cannot_be_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="start_level"):
        tiny_model("diffcsp_pp", "predict", symmetric_crystals(), start_level=level)
