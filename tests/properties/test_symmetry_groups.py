"""The affine algebra of all 230 groups and all 1731 Wyckoff positions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import spglib
import torch
from test_symmetry_roundtrip import random_lattice

from crystalctl.symmetry.groups import group, operations, primitive_basis
from crystalctl.symmetry.normaliser import relabellings
from crystalctl.symmetry.tables import LETTERS, N_GROUPS, tables
from crystalctl.symmetry.wyckoff import orbits_of, positions

NUMBERS = range(1, N_GROUPS + 1)


def codes(rotation, translation):
    """One integer for each operation; translations in [0, 24) 24ths."""
    digits = np.concatenate([rotation.reshape(-1, 9) + 1, translation], 1)
    return digits @ np.array([3**i for i in range(9)] + [3**9 * 24**i for i in range(3)])


def in_24ths(translation):
    whole = np.round(translation * 24).astype(np.int64)
    assert np.abs(translation * 24 - whole).max() == 0
    return whole % 24


@pytest.fixture(scope="module")
def every_orbit():
    """All 1731 positions as one batch, one crystal per group."""
    table = tables()
    count = torch.tensor(np.diff(table.first_position))
    return orbits_of(torch.arange(len(table.group)), count)


def test_numbers_of_positions():
    table = tables()
    assert len(table.group) == 1731
    assert len(table.coset) == 14433
    assert [p.letter for p in positions(47)] == list(LETTERS)
    assert (table.first_operation[1:] - table.first_operation[:-1] == table.multiplicity).all()


def test_operations_are_closed_with_inverses():
    for number in NUMBERS:
        rotation, translation = operations(number)
        steps = in_24ths(translation)
        own = codes(rotation, steps)
        assert len(set(own.tolist())) == len(own)
        assert np.array_equal(rotation[0], np.eye(3))
        assert not steps[0].any()
        product = np.einsum("aij,bjk->abik", rotation, rotation)
        moved = np.einsum("aij,bj->abi", rotation, steps) + steps[:, None]
        both = codes(product.reshape(-1, 3, 3), moved.reshape(-1, 3) % 24).reshape(len(own), -1)
        # Each row of the multiplication table is a permutation, so every inverse is there too.
        assert (np.sort(both, 1) == np.sort(own)).all(), number


def test_metric_and_free_lattices_are_invariant():
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        rotation = operations(number)[0]
        own = group(number)
        turned = rotation.transpose(0, 2, 1) @ own.metric @ rotation
        assert np.abs(turned - own.metric).max() == 0, number
        k = np.where(own.lattice_free, rng.normal(size=6), own.lattice_fixed)
        gram = gram_of(k)
        turned = rotation.transpose(0, 2, 1) @ gram @ rotation
        assert np.abs(turned - gram).max() < 1e-12 * np.abs(gram).max(), number


def test_no_other_coefficient_is_free():
    """Freeing any further k breaks the symmetry, except within the point groups of one lattice."""
    for number in NUMBERS:
        rotation = operations(number)[0]
        own = group(number)
        for extra in np.flatnonzero(~np.array(own.lattice_free)):
            k = np.array(own.lattice_fixed)
            k[extra] += 0.1
            gram = gram_of(k)
            assert np.abs(rotation.transpose(0, 2, 1) @ gram @ rotation - gram).max() > 1e-3


def gram_of(k):
    """L Lᵀ = exp(2 S), S = Σ k_i B_i."""
    r2, r6, r3 = math.sqrt(2), math.sqrt(6), math.sqrt(3)
    diagonal = np.array([k[3] / r2 + k[4] / r6, -k[3] / r2 + k[4] / r6, -2 * k[4] / r6]) + k[5] / r3
    xy, xz, yz = np.array(k[:3]) / r2
    s = np.array([[0, xy, xz], [xy, 0, yz], [xz, yz, 0]]) + np.diag(diagonal)
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.exp(2 * values)) @ vectors.T


def test_each_position_has_exactly_its_images():
    """A generic anchor has as many images under the whole group as the position has atoms."""
    table = tables()
    rng = np.random.default_rng(1)
    for row in range(len(table.group)):
        mine = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
        rotation, translation = table.rotation[mine], table.translation[mine]
        anchor = rotation[0] @ rng.random(3) + translation[0]
        whole_group = operations(int(table.group[row]))
        images = unique_points(whole_group[0] @ anchor + whole_group[1])
        assert len(images) == table.multiplicity[row]
        assert images == unique_points(rotation @ anchor + translation)
        assert np.linalg.matrix_rank(rotation[0]) == table.freedom[row]


@pytest.mark.parametrize("number", NUMBERS)
def test_letters_and_site_symmetries_are_those_of_spglib(number):
    """spglib's own table of positions, which PyXtal's, the source of ours, does not come from.

    One crystal with every position occupied. spglib may shift the origin, so that letters are
    permuted, all of them together and only in ways that the normaliser has.
    """
    table, there = tables(), positions(number)
    rng = np.random.default_rng(number)
    basis = primitive_basis(group(number).centring)
    frac, kinds = [], []
    # Two general orbits more: one alone has more symmetry in groups such as P1 or Pc.
    for kind, place in enumerate([*there, there[-1], there[-1]]):
        mine = slice(*table.first_operation[place.row : place.row + 2])
        points = table.rotation[mine] @ rng.random(3) + table.translation[mine]
        points = points @ np.linalg.inv(basis) % 1.0
        rounded = np.round(points, 6) % 1.0
        frac.append(points[np.unique(rounded, axis=0, return_index=True)[1]])
        kinds += [kind] * len(frac[-1])
    lattice = basis @ random_lattice(number, rng, 27_000.0)
    cell = (lattice, np.concatenate(frac), kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        facts = spglib.get_symmetry_dataset(cell, symprec=1e-4, hall_number=group(number).hall)
    assert facts.number == number
    found = set(zip(kinds, facts.wyckoffs, facts.site_symmetry_symbols, strict=True))
    assert len(found) == len(there) + 2
    seen = [(LETTERS.index(letter), site) for _, letter, site in sorted(found)][: len(there)]
    assert tuple(letter for letter, _ in seen) in set(
        map(tuple, (relabellings(number) - there[0].row).tolist())
    )
    assert [site for _, site in seen] == [there[letter].site_symmetry for letter, _ in seen]
    for place, size in zip(there, map(len, frac), strict=False):
        assert size * round(1 / np.linalg.det(basis)) == place.multiplicity


def unique_points(points):
    whole = np.round((points - np.floor(points)) * 1e6).astype(np.int64) % 10**6
    return {tuple(p) for p in whole.tolist()}


def test_operations_lead_from_the_anchor_by_group_operations():
    table = tables()
    for number in NUMBERS:
        rotation, translation = operations(number)
        first, last = table.first_position[number - 1], table.first_position[number]
        for row in range(first, last):
            mine = slice(int(table.first_operation[row]), int(table.first_operation[row + 1]))
            own_rotation, own_translation = table.rotation[mine], table.translation[mine]
            coset = table.coset[mine]
            assert (rotation[coset] @ own_rotation[0] == own_rotation).all()
            moved = rotation[coset] @ own_translation[0] + translation[coset] - own_translation
            assert np.abs(moved - np.round(moved)).max() < 1e-12


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_pull_undoes_push_on_every_position(every_orbit, dtype, within):
    free = draw(every_orbit, 2).to(dtype) - 0.5
    tangent = every_orbit.at_anchors(every_orbit.push(free))
    back = every_orbit.pull(every_orbit.push(tangent))
    assert (back - tangent).abs().max() < within * tangent.abs().max()
    projected = every_orbit.project(free)
    assert (every_orbit.project(projected) - projected).abs().max() < 5 * within
    # The projection ends in the tangent space and leaves it alone.
    assert (
        every_orbit.at_anchors(every_orbit.push(projected)) - projected
    ).abs().max() < 5 * within
    assert (every_orbit.project(tangent) - tangent).abs().max() < 10 * within


def test_projection_is_orthogonal_in_the_invariant_metric(every_orbit):
    table = tables()
    metric = torch.tensor(table.metric[table.group - 1])
    projector = every_orbit.pull_back[every_orbit.anchor]
    rest = torch.eye(3, dtype=torch.float64) - projector
    assert (rest.mT @ metric @ projector).abs().max() < 1e-14
    assert torch.linalg.matrix_rank(projector).tolist() == table.freedom.tolist()


def test_pull_of_a_symmetric_field_is_its_tangent_part(every_orbit):
    """v_i = g_i w for any w: the component across the position averages out, the rest is kept."""
    table = tables()
    general = table.first_position[1:] - 1
    start = table.first_operation[general][table.group - 1].repeat(table.multiplicity)
    leading = torch.tensor(table.rotation[start + table.coset], dtype=torch.float64)
    w = draw(every_orbit, 3) - 0.5
    field = torch.einsum("aij,aj->ai", leading, every_orbit.spread(w))
    assert (every_orbit.pull(field) - every_orbit.project(w)).abs().max() < 1e-13


def test_placing_again_changes_nothing(every_orbit):
    anchors = draw(every_orbit, 4)
    atoms = every_orbit.place(anchors)
    assert atoms.min() >= 0
    assert atoms.max() < 1
    again = every_orbit.place(every_orbit.at_anchors(atoms))
    assert circular(again - atoms).abs().max() < 1e-13
    # Whole cells added to the anchors change nothing either.
    whole = torch.floor(7 * draw(every_orbit, 7)) - 3
    shifted = every_orbit.place(anchors + whole)
    assert circular(shifted - atoms).abs().max() < 1e-13


def test_moving_an_anchor_moves_its_images_by_push(every_orbit):
    anchors, step = draw(every_orbit, 5), 0.02 * (draw(every_orbit, 6) - 0.5)
    moved = every_orbit.place(anchors + step) - every_orbit.place(anchors)
    assert circular(moved - every_orbit.push(step)).abs().max() < 1e-13


def draw(orbits, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(orbits.total_orbits, 3, generator=generator, dtype=torch.float64)


def circular(difference):
    return difference - difference.round()
