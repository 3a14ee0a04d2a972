"""Elements in their known lattices, with calculators whose best lattice is known."""

from __future__ import annotations

import numpy as np
import pytest

from crystalctl.analysis import elemental as module
from crystalctl.analysis.elemental import LEAST_ANG3, elemental, lattices
from crystalctl.analysis.energy import Evaluated, load_potential


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    """The four simplest lattices: a plain calculator needs a while for all."""
    simple = [item for item in lattices() if len(item[1]) <= 2]
    names = ("A_cF4_225_a", "A_cI2_229_a", "A_cF8_227_a", "A_cP1_221_a")
    kept = tuple(item for item in simple if item[0].startswith(names))
    assert len(kept) == 4
    monkeypatch.setattr(module, "lattices", lambda: kept)


def test_the_table_has_the_common_lattices_once() -> None:
    names = [name for name, _ in lattices()]
    assert len(names) == len(set(names))
    assert all(len(structure) <= module.MAX_ATOMS for _, structure in lattices())
    assert all(len(structure.composition) == 1 for _, structure in lattices())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("symbol", "a"), [("Cu", 3.594), ("Ni", 3.488), ("Au", 4.064)])
def test_metals_of_emt_are_close_packed_with_their_constants(symbol: str, a: float) -> None:
    found = elemental(load_potential("springs:emt"), symbol)
    assert found.lattice.startswith("A_cF4_225_a")
    assert found.reason == ""
    from ase.build import bulk

    atoms = bulk(symbol, "fcc", a=a)
    atoms.calc = load_potential("springs:emt")._calculator
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=3e-3)


def test_an_element_the_calculator_does_not_know_has_a_reason() -> None:
    found = elemental(load_potential("springs:morse"), "He")
    assert found.energy is None
    assert "no parameters for He" in found.reason


def test_nothing_is_tried_that_is_packed_too_closely() -> None:
    class Watching:
        name, batch = "watching", 4

        def __init__(self) -> None:
            self.volumes: list[float] = []

        def evaluate(self, frames, *, gradients):
            self.volumes += [] if gradients else [f.get_volume() / len(f) for f in frames]
            return [Evaluated(-1.0, np.zeros((len(f), 3)), np.zeros((3, 3))) for f in frames]

    watching = Watching()
    assert elemental(watching, "C").energy is not None
    assert min(watching.volumes) >= LEAST_ANG3
