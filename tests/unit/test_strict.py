"""The batched search against pymatgen's plain StructureMatcher, above all where rounding decides.

Perfect crystals are full of equal distances: 1/2 against a tolerance of 1/2, an atom as near to one
as to another, the image to the left as near as that to the right.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from prototypes import caesium_chloride, diamond, lonely, perovskite, rock_salt, zinc_blende
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalctl.analysis import strict
from crystalctl.analysis.comparing import fits, prepare, rms
from crystalctl.analysis.matching import BENCHMARK, DUPLICATES
from crystalctl.analysis.niggli import is_lll_reduced, lll_steps, niggli_cell
from crystalctl.analysis.reduction import reduce_cell


def cell(one: Structure):
    return one.lattice.matrix, one.frac_coords, [site.specie.Z for site in one]


def of_group(group: str | int, lattice: Lattice, species, sites) -> Structure:
    return Structure.from_spacegroup(group, lattice, species, sites)


@lru_cache(maxsize=1)
def prototypes() -> dict[str, Structure]:
    """One structure type each, some in conventional cells; several types of one formula."""
    third, two = 1 / 3, 2 / 3
    hexagonal = Lattice.hexagonal(3.25, 5.2)
    return {
        "rock salt": rock_salt("Zn", "S", 5.0),
        "caesium chloride": caesium_chloride("Zn", "S", 3.1),
        "zinc blende": zinc_blende(),
        "wurtzite": of_group(186, hexagonal, ["Zn", "S"], [[third, two, 0], [third, two, 0.375]]),
        "nickel arsenide": of_group(194, hexagonal, ["Zn", "S"], [[0, 0, 0], [third, two, 0.25]]),
        "litharge": of_group(
            129, Lattice.tetragonal(3.9, 5.0), ["Zn", "S"], [[0, 0, 0], [0, 0.5, 0.26]]
        ),
        "perovskite": perovskite(),
        "hexagonal perovskite": of_group(
            194,
            Lattice.hexagonal(5.6, 4.8),
            ["Sr", "Ti", "O"],
            [[third, two, 0.75], [0, 0, 0], [0.15, 0.3, 0.25]],
        ),
        "diamond": diamond(),
        "graphite": of_group(
            194, Lattice.hexagonal(2.46, 6.7), ["C", "C"], [[0, 0, 0.25], [third, two, 0.25]]
        ),
        "one atom": of_group(225, Lattice.cubic(3.6), ["C"], [[0, 0, 0]]),
        "eight atoms": of_group(
            206, Lattice.cubic(5.5), ["C"], [[0.1, 0.1, 0.1]]
        ).get_primitive_structure(),
        "rutile": of_group(
            136, Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
        ),
        "anatase": of_group(
            141, Lattice.tetragonal(3.78, 9.5), ["Ti", "O"], [[0, 0, 0], [0, 0, 0.208]]
        ),
        "fluorite": of_group(225, Lattice.cubic(4.8), ["Ti", "O"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    }


def shaken(one: Structure, rng: np.random.Generator) -> Structure:
    return Structure(one.lattice, one.species, one.frac_coords + rng.normal(0, 0.03, (len(one), 3)))


def sheared(one: Structure, rng: np.random.Generator) -> Structure:
    strain = np.eye(3) + rng.normal(0, 0.04, (3, 3))
    return Structure(Lattice(one.lattice.matrix @ strain), one.species, one.frac_coords)


def stretched(one: Structure, rng: np.random.Generator) -> Structure:
    """By exactly the tolerance of lengths along one axis, before both are scaled."""
    return Structure(
        Lattice(one.lattice.matrix @ np.diag([1, 1, 1.3])), one.species, one.frac_coords
    )


def doubled(one: Structure, rng: np.random.Generator) -> Structure:
    twice = one.copy()
    twice.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    return twice


def one_moved(one: Structure, rng: np.random.Generator) -> Structure:
    """One atom of a doubled cell out of place: the rest still matches."""
    twice = doubled(one, rng)
    twice.translate_sites([0], [0.11, 0.06, 0.13], frac_coords=True)
    return twice


def halfway(one: Structure, rng: np.random.Generator) -> Structure:
    """The last atom halfway to an image of itself: two distances are equal, if not all."""
    moved = one.copy()
    moved.translate_sites([len(moved) - 1], [0.5, 0, 0], frac_coords=True)
    return moved


def shuffled(one: Structure, rng: np.random.Generator) -> Structure:
    order = rng.permutation(len(one))
    return Structure(
        one.lattice, [one.species[i] for i in order], one.frac_coords[order] + [0.1, 0.2, 0.3]
    )


def anywhere(one: Structure, rng: np.random.Generator) -> Structure:
    return Structure(one.lattice, one.species, rng.random((len(one), 3)))


CHANGES = (shaken, sheared, stretched, doubled, one_moved, halfway, shuffled, anywhere)


def check(one: Structure, other: Structure, tolerances: dict[str, float]) -> bool:
    """Compare with pymatgen both ways round; whether they matched at all."""
    matcher = StructureMatcher(**tolerances)
    mine, theirs = prepare(cell(one)), prepare(cell(other))
    matched = False
    for a, b, x, y in ((one, other, mine, theirs), (other, one, theirs, mine)):
        expected, found = matcher.get_rms_dist(a, b), rms(x, y, tolerances)
        assert (found is None) == (expected is None)
        if expected is not None:
            matched = True
            assert found == pytest.approx(expected[0], abs=1e-9)
        assert fits(x, y, tolerances) == matcher.fit(a, b)
    return matched


@pytest.mark.parametrize("tolerances", [BENCHMARK, DUPLICATES], ids=["benchmark", "duplicates"])
def test_prototypes_against_each_other(tolerances) -> None:
    structures = list(prototypes().values())
    outcomes = set()
    for one, other in product(structures, structures):
        if one.composition.reduced_formula == other.composition.reduced_formula:
            outcomes.add(check(one, other, tolerances))
    assert outcomes == {True, False}


@pytest.mark.parametrize("change", CHANGES)
def test_prototypes_against_changed_ones(change) -> None:
    rng = np.random.default_rng(5)
    for one in prototypes().values():
        check(one, change(one, rng), BENCHMARK)


def test_lonely_atoms() -> None:
    assert check(lonely(), sheared(lonely(), np.random.default_rng(0)), BENCHMARK)


def test_decisions_of_rounding_are_left_to_pymatgen(monkeypatch) -> None:
    asked = []
    exactly = strict._exactly
    monkeypatch.setattr(strict, "_exactly", lambda *a: asked.append(a) or exactly(*a))
    rng = np.random.default_rng(1)
    check(shaken(rock_salt(), rng), rock_salt(), BENCHMARK)
    assert not asked
    types = prototypes()
    check(types["rock salt"], types["zinc blende"], BENCHMARK)
    assert asked


@pytest.mark.parametrize("change", CHANGES)
def test_reduced_cells_are_those_of_the_matcher(change) -> None:
    """Bit for bit: what is equal to a threshold must stay so."""
    rng = np.random.default_rng(7)
    for one in prototypes().values():
        other = change(one, rng)
        expected = StructureMatcher._get_reduced_structure(other, True, True)
        found = reduce_cell(cell(other))
        assert np.array_equal(found.matrix, expected.lattice.matrix)
        assert np.array_equal(found.frac, expected.frac_coords)
        assert found.numbers.tolist() == [site.specie.Z for site in expected]


def lattices(count: int) -> list[np.ndarray]:
    """Of all systems, with numbers rounded as in files, then skewed or disturbed a little."""
    rng = np.random.default_rng(11)
    found = []
    for k in range(count):
        a, b, c = rng.uniform(2.5, 9, 3).round(3)
        angles = rng.uniform(55, 125, 3).round(2)
        made = (
            Lattice.cubic(a),
            Lattice.tetragonal(a, c),
            Lattice.hexagonal(a, c),
            Lattice.orthorhombic(a, b, c),
            Lattice.monoclinic(a, b, c, angles[0]),
            Lattice.rhombohedral(a, round(rng.uniform(50, 115), 2)),
            Lattice.from_parameters(a, b, c, *angles),
            Lattice(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * a / 2),
            Lattice(np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) * a / 2),
        )[k % 9]
        if np.isfinite(made.matrix).all() and made.volume > 5:
            change = (np.eye(3), np.eye(3)[rng.permutation(3)], [[1, 0, 0], [2, 1, 0], [-1, 3, 1]])
            noise = rng.normal(size=(3, 3)) * rng.choice([0, 1e-12, 1e-7, 1e-5, 1e-3])
            found.append(np.array(change[k % 3]) @ (made.matrix + noise))
    return found


def test_niggli_cells_are_those_of_pymatgen() -> None:
    """Bit for bit, or none where the way there is a matter of rounding."""
    sure = 0
    cells = lattices(450)
    for one in cells:
        found = niggli_cell(one)
        if found is not None:
            assert np.array_equal(found, Lattice(one).get_niggli_reduced_lattice().matrix)
            sure += 1
    assert sure > 0.9 * len(cells)


def test_ties_beside_numbers_almost_equal_are_left_to_pymatgen() -> None:
    """2 a·b = a² exactly, and a is as long as c but for the tolerance of the reduction."""
    cell = np.array([[3, 0, 0], [1.5, 4, 0], [0, 0, 3 + 4e-7]])
    assert niggli_cell(cell) is None
    found = reduce_cell((cell, np.array([[0.1, 0.2, 0.3]]), [6])).matrix
    assert np.array_equal(found, Lattice(cell).get_niggli_reduced_lattice().matrix)


def test_a_cell_without_volume_has_no_niggli_cell() -> None:
    assert niggli_cell(np.zeros((3, 3))) is None
    assert niggli_cell(np.full((3, 3), np.nan)) is None


def test_lll_is_that_of_pymatgen() -> None:
    rng = np.random.default_rng(2)
    cells = rng.normal(size=(200, 3, 3))
    for one, untouched in zip(cells, is_lll_reduced(cells), strict=True):
        steps, inverse = lll_steps(one.tobytes())
        lattice = Lattice(one)
        assert np.array_equal(np.round(lattice.lll_mapping), steps)
        assert np.allclose(inverse @ steps, np.eye(3))
        assert untouched == np.array_equal(steps, np.eye(3))


def test_lengths_and_angles_are_those_of_pymatgen_to_the_bit() -> None:
    """The reduction of a mean cell with equal numbers hangs on the last one."""
    rng = np.random.default_rng(3)
    cells = [one.lattice.matrix for one in prototypes().values()]
    cells += list(np.array(cells)[:, [2, 0, 1]] * [1, -1, 1]) + list(rng.normal(size=(200, 3, 3)))
    expected = [Lattice(one).parameters for one in cells]
    assert np.array_equal(strict._parameters(np.array(cells)), expected)


def test_lll_of_equal_numbers_is_left_to_pymatgen() -> None:
    fcc = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    assert not is_lll_reduced(fcc[None])[0]
    assert lll_steps(fcc.tobytes()) is None


def test_minima_of_cells_that_are_not_reduced() -> None:
    skewed = np.array([[3, 0, 0], [3, 4, 0], [6, 4, 5]], dtype=float)
    one = strict.Reduced(skewed, np.zeros((1, 3)), np.array([6]))
    assert np.array(one.minima) * np.cbrt(60) == pytest.approx([3, 4, 5])
    assert one.lengths[2] > one.minima[2]
