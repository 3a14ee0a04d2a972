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
from crystalctl.analysis.comparing import Prepared, Task, compare, fits, may_match, rms
from crystalctl.analysis.matching import BENCHMARK, DUPLICATES


def cell(structure: Structure) -> comparing.Cell:
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
    mine, theirs = Prepared(cell(one)), Prepared(cell(other))
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
    mine, theirs = Prepared(cell(one)), Prepared(cell(other))
    scale = (theirs.reduced.volume / mine.reduced.volume) ** (1 / 3)
    lattice = Lattice(mine.reduced.lattice.matrix * scale)
    mapped = any(
        abs(abs(np.linalg.det(steps)) - 1) < 0.5
        for _, _, steps in lattice.find_all_mappings(
            theirs.reduced.lattice, ltol=ltol, atol=10, skip_rotation_matrix=True
        )
    )
    if mapped:
        assert may_match(mine, theirs, ltol)


def test_the_bound_excludes_something() -> None:
    flat = Structure(Lattice.tetragonal(3, 30), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    pair = Prepared(cell(flat)), Prepared(cell(caesium_chloride("Na", "Cl", 3.4)))
    assert not may_match(*pair, 0.3)
    assert not may_match(*reversed(pair), 0.3)


def test_another_composition_is_not_compared(monkeypatch) -> None:
    monkeypatch.setattr(comparing, "best_rms", lambda *_: pytest.fail("compared"))
    assert rms(Prepared(cell(rock_salt())), Prepared(cell(zinc_blende()))) is None


@pytest.mark.parametrize(
    "broken", [None, (np.zeros((3, 3)), np.zeros((1, 3)), [11]), (np.full((3, 3), np.nan),) * 3]
)
def test_what_cannot_be_reduced_matches_nothing(broken) -> None:
    assert rms(Prepared(broken), Prepared(cell(rock_salt()))) is None
    assert not fits(Prepared(cell(rock_salt())), Prepared(broken))


def test_one_task_answers_everything() -> None:
    ours = [
        (3, cell(rock_salt())),
        (5, cell(caesium_chloride("Na", "Cl"))),
        (8, cell(rock_salt(a=6))),
    ]
    truth = [(0, cell(rock_salt(a=5.5)))]
    found = compare(Task(ours, truth, truth, (), True, frozenset({3, 5, 8})))
    assert set(found.distances) == {(3, 0), (8, 0)}
    assert found.first == {3: 3, 5: 5, 8: 3}
    assert found.known == {3: 0, 8: 0}


def test_only_the_wanted_pairs_without_a_table() -> None:
    ours = [(0, cell(rock_salt())), (1, cell(rock_salt()))]
    found = compare(Task(ours, [(0, cell(rock_salt()))], pairs=[(1, 0)]))
    assert set(found.distances) == {(1, 0)}
    assert not found.first


def test_a_lonely_atom_matches_itself() -> None:
    assert rms(Prepared(cell(lonely())), Prepared(cell(lonely()))) == pytest.approx(0)
