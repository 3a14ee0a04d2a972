"""The comparisons of a run: cut into tasks and rounds, with the answers of one after the other."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from prototypes import caesium_chloride, diamond, rock_salt, zinc_blende
from pymatgen.core import Structure

from crystalctl import comparisons
from crystalctl.analysis.comparing import Task, compare, fits, prepare, rms
from crystalctl.analysis.described import Described
from crystalctl.comparisons import match_all, sort_out
from crystalctl.data.records import Entry
from crystalctl.evaluation.pairing import Pairing
from crystalctl.gathering import Set, Workers
from crystalctl.io.collect import Row


def cell(one: Structure):
    return one.lattice.matrix, one.frac_coords, [site.specie.Z for site in one]


def as_set(structures: list[Structure | None]) -> Set:
    rows, described = [], []
    for number, one in enumerate(structures):
        if one is None:
            rows.append(Row("x", number, "", None, "broken"))
            described.append(Described("broken"))
            continue
        lattice, frac, numbers = cell(one)
        rows.append(Row("x", number, "", Entry(lattice, frac, np.array(numbers))))
        formula = one.composition.reduced_formula
        described.append(Described("", reduced=formula, struct_valid=True, comp_valid=True))
    return Set("x", rows, described)


def many() -> list[Structure | None]:
    """Structures of two formulas, half of them shaken twins of others; one that is broken."""
    rng = np.random.default_rng(0)
    found: list[Structure | None] = [None]
    for k in range(14):
        make = (caesium_chloride, rock_salt, zinc_blende)[k % 3]
        one = make("Zn", "S", 4 + k / 10)
        found.append(one.perturb(0.02 * (k % 5)) if k % 2 else one)
        other = diamond()
        other.translate_sites([1], rng.normal(0, 0.06, 3) * (k % 3))
        found.append(other)
    return found


@pytest.fixture
def workers():
    with ExitStack() as stack:
        yield Workers(1, stack, None)


def test_distances_of_all_of_one_formula(workers) -> None:
    ours, theirs = many(), [rock_salt("Zn", "S"), diamond(), None, zinc_blende()]
    nobody = Pairing("formula", [[] for _ in theirs], [], 1.0, False)
    found, complete = match_all(as_set(ours), as_set(theirs), nobody, workers)
    assert complete
    expected = {}
    for i, one in enumerate(ours):
        for j, other in enumerate(theirs):
            if one is not None and other is not None:
                distance = rms(prepare(cell(one)), prepare(cell(other)))
                if distance is not None:
                    expected[i, j] = pytest.approx(distance, abs=1e-12)
    assert found.distances == expected
    assert len(expected) > 10


def test_too_many_pairs_leave_those_that_belong_together(workers, monkeypatch) -> None:
    ours, theirs = many(), [rock_salt("Zn", "S"), diamond()]
    chosen = Pairing("rows", [[2, 3], [2, 4]], [], 1.0, False)
    everything, _ = match_all(as_set(ours), as_set(theirs), chosen, workers)
    monkeypatch.setattr(comparisons, "MAX_PAIRS", 3)
    found, complete = match_all(as_set(ours), as_set(theirs), chosen, workers)
    assert not complete
    belong = {(2, 0), (3, 0), (2, 1), (4, 1)}
    assert found.distances == {p: d for p, d in everything.distances.items() if p in belong}


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_first_equal_structures_do_not_depend_on_rounds(workers, monkeypatch, size) -> None:
    monkeypatch.setattr(comparisons, "_ROUND", size)
    structures = many()
    found = sort_out(as_set(structures), None, workers)
    first: dict[int, int] = {}
    for i, one in enumerate(structures):
        if one is not None:
            leaders = [k for k, lead in first.items() if k == lead]
            ready = {k: prepare(cell(structures[k])) for k in [*leaders, i]}
            first[i] = next((k for k in leaders if fits(ready[k], ready[i])), i)
    assert found.first == first
    assert 3 < len(set(first.values())) < len(first)


def test_novelty_is_the_first_known_one(workers) -> None:
    ours = [rock_salt(), caesium_chloride("Na", "Cl"), diamond(), None]
    known = [zinc_blende(), diamond(3.5), rock_salt(a=5.5), rock_salt(a=5.6)]
    found = sort_out(as_set(ours), as_set(known), workers)
    assert found.known == {0: 2, 2: 1}
    assert found.first == {0: 0, 1: 1, 2: 2}


def test_one_that_fails_does_not_cost_the_others(monkeypatch) -> None:
    from crystalctl.analysis import comparing

    good, bad = prepare(cell(rock_salt())), prepare(cell(rock_salt(a=5.0)))

    def search(matcher, pairs):
        if any(one is bad for one, _ in pairs):
            raise ValueError("singular")
        return [0.25 for _ in pairs]

    monkeypatch.setattr(comparing, "best_rms", search)
    task = Task("distances", [(0, good), (1, bad)], [(0, good)], [(0, 0), (1, 0)])
    assert compare(task) == {(0, 0): 0.25}
