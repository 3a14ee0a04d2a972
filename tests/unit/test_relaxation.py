"""Energies and relaxation: back to the minimum, symmetry kept, one failure costs one."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.energy import (
    Evaluated,
    OneAtATime,
    default_calculator,
    energies_per_atom,
    load_potential,
)
from crystalctl.analysis.exact import found_group
from crystalctl.analysis.relaxation import Settings, primitive, relax, single_points
from crystalctl.errors import InputError


def salt(a: float = 3.6, other: str = "Cl") -> Structure:
    return Structure(Lattice.cubic(a), ["Cs", other], [[0, 0, 0], [0.5, 0.5, 0.5]])


def strained(structure: Structure, seed: int = 0) -> Structure:
    found = structure.copy()
    found.perturb(0.05, seed=seed) if seed else None
    return Structure(
        Lattice(found.lattice.matrix @ (np.eye(3) + np.diag([0.04, -0.03, 0.02]))),
        found.species,
        found.frac_coords,
    )


def test_the_primitive_cell_is_relaxed_and_stands_for_the_whole() -> None:
    whole = Structure(Lattice.cubic(3.7), ["Cu"] * 4, FCC)
    done = dict(relax(load_potential("springs:emt"), [whole, strained(whole, 1)]))
    # One atom moved by hand in each of the four places is no repetition.
    assert [len(done[i].structure) for i in (0, 1)] == [1, 4]
    assert done[0].energy == pytest.approx(done[1].energy, abs=2e-3)
    assert done[0].structure.volume == pytest.approx(done[1].structure.volume / 4, rel=0.01)
    small = primitive(whole)
    assert small.volume == pytest.approx(whole.volume / 4)
    assert primitive(small) is small
    turned = whole.copy()
    turned.translate_sites([0, 1, 2, 3], [0.1, 0.2, 0.3])
    assert primitive(turned).distance_matrix.shape == (1, 1)


class Several:
    """A potential that computes several at once, through one calculator."""

    def __init__(self, batch: int) -> None:
        self.name, self.batch = "several", batch
        self.sizes: list[int] = []
        self._inner = load_potential("springs:morse")

    def evaluate(self, frames, *, gradients):
        self.sizes.append(len(frames))
        return self._inner.evaluate(frames, gradients=gradients)


def test_copper_comes_back_from_a_strained_cell() -> None:
    one = strained(Structure(Lattice.cubic(3.6), ["Cu"] * 4, FCC), seed=1)
    ((index, done),) = relax(load_potential("springs:emt"), [one], Settings(fmax=0.005))
    assert (index, done.reason, done.converged) == (0, "", True)
    reference = bulk("Cu", "fcc", a=3.594)  # the minimum of EMT
    volume = done.structure.volume / 4
    assert volume == pytest.approx(reference.get_volume(), rel=0.01)
    lengths = done.structure.lattice.abc
    assert max(lengths) - min(lengths) < 0.02
    assert found_group(done.structure, symprec=0.05) == 225
    assert done.energy < done.start_energy
    assert done.rmsd == pytest.approx(0.05, abs=0.03)


FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_the_input_is_left_alone() -> None:
    one = strained(salt(), seed=1)
    before = one.copy()
    list(relax(load_potential("springs:morse"), [one], Settings(max_steps=3)))
    assert np.array_equal(one.lattice.matrix, before.lattice.matrix)
    assert np.array_equal(one.frac_coords, before.frac_coords)


def test_a_batch_gives_what_singles_give() -> None:
    many = [strained(salt(3.2 + 0.1 * k), seed=k + 1) for k in range(7)]
    settings = Settings(fmax=0.02)
    batched = Several(3)
    together = dict(relax(batched, many, settings))
    assert max(batched.sizes) == 3
    assert sum(batched.sizes) == sum(done.steps for done in together.values())
    for index, one in enumerate(many):
        ((_, alone),) = relax(Several(1), [one], settings)
        assert alone.steps == together[index].steps
        assert alone.energy == together[index].energy
        assert np.array_equal(alone.structure.frac_coords, together[index].structure.frac_coords)


def test_a_failing_structure_costs_only_itself() -> None:
    broken = Structure(Lattice.cubic(3), ["Cs", "Cl"], [[0, 0, 0], [0.01, 0, 0]])
    many = [salt(), salt(other="He"), salt(other="Ne"), broken, salt(3.4)]
    done = dict(relax(Several(2), many))
    assert [not done[i].reason for i in range(5)] == [True, False, False, False, True]
    assert "no parameters for He" in done[1].reason
    assert "not finite" in done[2].reason
    assert "atoms closer than" in done[3].reason
    assert done[1].structure is None


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_energies_without_relaxing_are_those_where_relaxing_begins(batch: int) -> None:
    """In order, in the primitive cell; one that fails costs only itself."""
    broken = Structure(Lattice.cubic(3), ["Cs", "Cl"], [[0, 0, 0], [0.01, 0, 0]])
    given = [salt(3.5), salt(other="He"), broken, salt(3.8) * (2, 1, 1), salt(other="Ne"), salt()]
    begun = {i: done.start_energy for i, done in relax(Several(1), given)}
    several = Several(batch)
    found = list(single_points(several, given))
    assert [place for place, _ in found] == list(range(6))
    values = dict(found)
    assert [values[i] for i in (0, 3, 5)] == [begun[i] for i in (0, 3, 5)]
    assert "no parameters for He" in values[1]
    assert "atoms closer than" in values[2]
    assert "not finite" in values[4]
    assert max(several.sizes) <= batch


def test_a_cell_that_comes_apart_is_set_aside() -> None:
    class Pushing:
        name, batch = "pushing", 4

        def evaluate(self, frames, *, gradients):
            return [Evaluated(-1.0, np.zeros((len(f), 3)), -np.eye(3) * 50.0) for f in frames]

    ((_, done),) = relax(Pushing(), [salt()])
    assert "volume changed" in done.reason
    assert done.structure is None


def test_steps_run_out() -> None:
    ((_, done),) = relax(Several(1), [strained(salt(), 1)], Settings(fmax=1e-9, max_steps=4))
    assert (done.steps, done.converged, done.reason) == (4, False, "")


@pytest.mark.parametrize("keep", [True, False])
def test_symmetry_is_kept_on_request(keep: bool) -> None:
    class Leaning(OneAtATime):
        """Prefers a sheared cell, and forces that are not symmetric."""

        def evaluate(self, frames, *, gradients):
            found = []
            for frame, one in zip(frames, super().evaluate(frames, gradients=True), strict=True):
                shear = np.zeros((3, 3))
                shear[0, 1] = shear[1, 0] = 0.02
                push = np.zeros((len(frame), 3))
                push[0, 0], push[1, 0] = 0.2, -0.2
                found.append(Evaluated(one.energy, one.forces + push, one.stress + shear))
            return found

    from springs import morse

    settings = Settings(keep_symmetry=keep, max_steps=15)
    ((_, done),) = relax(Leaning("leaning", morse()), [salt()], settings)
    assert done.reason == ""
    assert (found_group(done.structure) == 221) is keep
    assert done.volume_change != pytest.approx(0, abs=1e-3)


def test_energies_with_a_failure_among_them() -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    frames = [AseAtomsAdaptor.get_atoms(s) for s in (salt(), salt(other="He"), salt(3.4))]
    first, failed, third = energies_per_atom(load_potential("springs:morse"), frames)
    assert isinstance(first, float)
    assert isinstance(third, float)
    assert "no parameters for He" in failed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vasp", "chgnet, mace"),
        ("springs:absent", "module:factory"),
        ("no_such_module:factory", "module:factory"),
        ("springs:nothing", "not an ASE calculator"),
        ("sevennet", "pip install sevenn"),
    ],
)
def test_calculators_that_are_not_there(name: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load_potential(name)
    assert says in f"{refused.value.what} {refused.value.hint}"


@pytest.mark.skipif(default_calculator() is None, reason="chgnet is not installed")
@pytest.mark.filterwarnings("ignore")
class TestChgnet:
    @pytest.fixture(scope="class")
    def chgnet(self):
        return load_potential("chgnet")

    def test_forces_and_stress_are_those_of_the_package(self, chgnet) -> None:
        from chgnet.model.model import CHGNet

        one = strained(salt(4.1), seed=3)
        from pymatgen.io.ase import AseAtomsAdaptor

        theirs = CHGNet.load(verbose=False, use_device="cpu").predict_structure(one, task="efs")
        frames = [AseAtomsAdaptor.get_atoms(s) for s in (salt(4.2), one)]
        ours = chgnet.evaluate(frames, gradients=True)[1]
        assert ours.energy == pytest.approx(2 * float(theirs["e"]), abs=1e-5)
        assert np.allclose(ours.forces, theirs["f"], atol=2e-5)
        assert np.allclose(ours.stress, theirs["s"] / 160.21766208, atol=1e-5)
        assert np.abs(ours.stress).max() > 1e-3

    def test_copper(self, chgnet, capsys) -> None:
        one = strained(Structure(Lattice.cubic(3.6), ["Cu"] * 4, FCC), seed=1)
        ((_, done),) = relax(chgnet, [one], Settings(fmax=0.02))
        assert done.converged
        assert done.structure.volume / 4 == pytest.approx(3.6**3 / 4, rel=0.04)
        assert found_group(done.structure, symprec=0.1) == 225
        assert capsys.readouterr().out == ""

    def test_one_bad_cell_in_a_batch(self, chgnet) -> None:
        apart = Structure(Lattice.cubic(9.5), ["Cs"], [[0, 0, 0]])
        done = dict(relax(chgnet, [salt(4.1), apart, salt(4.0)], Settings(max_steps=2)))
        assert "without neighbours" in done[1].reason
        assert not done[0].reason
        assert not done[2].reason
