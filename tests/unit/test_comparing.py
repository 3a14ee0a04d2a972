"""Fast comparisons say what pymatgen's StructureMatcher says; the bound excludes no match."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from prototypes import caesium_chloride, lonely, rock_salt, zinc_blende
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalctl.analysis import comparing
from crystalctl.analysis.comparing import Task, compare, fits, may_match, prepare, rms
from crystalctl.analysis.matching import BENCHMARK, DUPLICATES
from crystalctl.analysis.reduction import Cell


def cell(structure: Structure) -> Cell:
    return structure.lattice.matrix, structure.frac_coords, [s.specie.Z for s in structure]


@st.composite
def structures(draw: st.DrawFn) -> tuple[Structure, Structure]:
    """Two structures of one composition: often the same, shaken, sheared, scaled or repeated."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 4))
    species = ["Na", "Na", "Cl", "O"][:n]
    lattice = Lattice.from_parameters(*rng.uniform(2.5, 7, 3), *rng.uniform(65, 115, 3))
    one = Structure(lattice, species, rng.random((n, 3)))
    if draw(st.booleans()):
        other = one.copy()
        other.perturb(draw(st.sampled_from([0.01, 0.2, 0.6])))
        strain = np.eye(3) + rng.normal(size=(3, 3)) * draw(st.sampled_from([0.0, 0.03, 0.12]))
        matrix = other.lattice.matrix @ strain * rng.uniform(0.6, 1.6)
        other = Structure(Lattice(matrix), other.species, other.frac_coords)
        if draw(st.booleans()):
            other.make_supercell(
                draw(st.sampled_from([[1, 1, 2], [[1, 1, 0], [0, 1, 0], [0, 2, 1]]]))
            )
    else:
        other = Structure(
            Lattice.from_parameters(*rng.uniform(2.5, 9, 3), *rng.uniform(65, 115, 3)),
            species,
            rng.random((n, 3)),
        )
    return one, other


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(structures(), st.sampled_from([BENCHMARK, DUPLICATES]))
def test_same_answers_as_the_matcher(pair, tolerances) -> None:
    one, other = pair
    matcher = StructureMatcher(**tolerances)
    expected = matcher.get_rms_dist(one, other)
    mine, theirs = prepare(cell(one)), prepare(cell(other))
    found = rms(mine, theirs, tolerances)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected[0], abs=1e-9)
        assert may_match(mine, theirs, tolerances["ltol"])
    assert fits(mine, theirs, tolerances) == matcher.fit(one, other)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.3]))
def test_the_bound_keeps_every_lattice_the_matcher_finds(seed, ltol) -> None:
    """Lattices alone: whenever pymatgen maps one on the other, the bound lets the pair pass."""
    rng = np.random.default_rng(seed)
    one = Structure(Lattice(rng.normal(size=(3, 3)) * 4), ["Na"], [[0, 0, 0]])
    assume(one.volume > 5)
    matrix = one.lattice.matrix @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.1)
    other = Structure(Lattice(matrix), ["Na"], [[0, 0, 0]])
    mine, theirs = prepare(cell(one)), prepare(cell(other))
    scale = (theirs.volume / mine.volume) ** (1 / 3)
    lattice = Lattice(mine.matrix * scale)
    mapped = any(
        abs(abs(np.linalg.det(steps)) - 1) < 0.5
        for _, _, steps in lattice.find_all_mappings(
            Lattice(theirs.matrix), ltol=ltol, atol=10, skip_rotation_matrix=True
        )
    )
    if mapped:
        assert may_match(mine, theirs, ltol)


def test_the_bound_excludes_something() -> None:
    flat = Structure(Lattice.tetragonal(3, 30), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    pair = prepare(cell(flat)), prepare(cell(caesium_chloride("Na", "Cl", 3.4)))
    assert not may_match(*pair, 0.3)
    assert not may_match(*reversed(pair), 0.3)


def test_another_composition_is_not_compared(monkeypatch) -> None:
    monkeypatch.setattr(comparing, "best_rms", lambda *_: pytest.fail("compared"))
    assert rms(prepare(cell(rock_salt())), prepare(cell(zinc_blende()))) is None


@pytest.mark.parametrize(
    "broken", [None, (np.zeros((3, 3)), np.zeros((1, 3)), [11]), (np.full((3, 3), np.nan),) * 3]
)
def test_what_cannot_be_reduced_matches_nothing(broken) -> None:
    assert rms(prepare(broken), prepare(cell(rock_salt()))) is None
    assert not fits(prepare(cell(rock_salt())), prepare(broken))


def numbered(*structures: Structure, start: int = 0):
    return [(start + 2 * i, prepare(cell(one))) for i, one in enumerate(structures)]


def test_tasks() -> None:
    ours = numbered(rock_salt(), caesium_chloride("Na", "Cl"), rock_salt(a=6), start=3)
    truth = numbered(caesium_chloride("Na", "Cl", 3.9), rock_salt(a=5.5))
    pairs = [(3, 0), (3, 2), (5, 0), (7, 2)]
    assert set(compare(Task("distances", ours, truth, pairs))) == {(3, 2), (5, 0), (7, 2)}
    assert set(compare(Task("distances", ours, truth, pairs[:2]))) == {(3, 2)}
    assert compare(Task("distinct", ours)) == {3: 3, 5: 5, 7: 3}
    assert compare(Task("known", ours, truth[1:])) == {3: 2, 7: 2}
    assert compare(Task("met", ours, truth[:1])) == {5: 0}
    assert compare(Task("distinct", [])) == {}


def test_a_lonely_atom_matches_itself() -> None:
    assert rms(prepare(cell(lonely())), prepare(cell(lonely()))) == pytest.approx(0)
