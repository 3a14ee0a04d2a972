"""Relax cells and positions of many crystals: each its own optimiser, all in one network call.

The optimisers are ASE's and take one step at a time; what is ours is the loop that computes the
forces of all crystals together. A crystal that is done leaves the batch and another one enters.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crystalctl.analysis.energy import Evaluated, Potential, energies_per_atom, failure
from crystalctl.analysis.validity import invalid_reason
from crystalctl.errors import InputError

_SYMPREC_ANG = 0.01
_EXPLODED = 3.0
"""A cell whose volume changed by more than this factor is another structure."""


@dataclass(frozen=True)
class Settings:
    """``fmax``: largest force in eV/Å, and virial per atom in eV, that counts as relaxed.

    ``max_steps``: network calls for one crystal. ``keep_symmetry``: the space group found at
    0.01 Å constrains every step.
    """

    fmax: float = 0.05
    max_steps: int = 200
    keep_symmetry: bool = False

    def __post_init__(self) -> None:
        if not self.fmax > 0 or self.max_steps < 1:
            raise InputError("fmax and max_steps must be positive", "like 0.05 eV/Å and 200 steps")

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Relaxed:
    """What became of one crystal.

    ``structure``: the relaxed pymatgen Structure, None with a ``reason``. Energies in eV/atom
    before and after. ``rmsd``: root mean square displacement in Å, the change of the cell and a
    common shift taken out; ``volume_change``: relative.
    """

    reason: str
    structure: Any = None
    energy: float | None = None
    start_energy: float | None = None
    steps: int = 0
    converged: bool = False
    rmsd: float | None = None
    volume_change: float | None = None


def relax(
    potential: Potential, structures: Sequence[Any], settings: Settings | None = None
) -> Iterator[tuple[int, Relaxed]]:
    """Relax pymatgen structures; gives ``(index, result)`` as each is done, in no fixed order.

    Each in its primitive cell, which has the same energy per atom and up to four times fewer
    atoms. The structures are left alone. One that fails costs nobody else anything.
    """
    chosen = settings or Settings()
    # Indices: ``structures`` may make each when it is asked for.
    waiting = deque(range(len(structures)))
    running: list[_Path] = []
    while waiting or running:
        while waiting and len(running) < potential.batch:
            index = waiting.popleft()
            started = _start(index, structures[index], chosen)
            if isinstance(started, Relaxed):
                yield index, started
            else:
                running.append(started)
        answers = potential.evaluate([path.atoms for path in running], gradients=True)
        still = []
        for path, answer in zip(running, answers, strict=True):
            done = path.advance(answer)
            if done is None:
                still.append(path)
            else:
                yield path.index, done
        running = still


def single_points(
    potential: Potential, structures: Sequence[Any]
) -> Iterator[tuple[int, float | str]]:
    """``(index, eV/atom or why there is none)`` of structures as they are, in order.

    In the primitive cell, as ``relax``, but without forces, which take several times longer.
    """
    for start in range(0, len(structures), potential.batch):
        indices = range(start, min(start + potential.batch, len(structures)))
        frames = {index: _frame(structures[index]) for index in indices}
        able = [frame for frame in frames.values() if not isinstance(frame, str)]
        found = iter(energies_per_atom(potential, able))
        for index, frame in frames.items():
            yield index, frame if isinstance(frame, str) else next(found)


def _frame(structure: Any) -> Any:
    """The primitive cell as ``ase.Atoms``, or why there is none."""
    reason = invalid_reason(structure.lattice.matrix, structure.frac_coords)
    return reason or _atoms(primitive(structure))


def _atoms(structure: Any) -> Any:
    from ase import Atoms

    return Atoms(
        numbers=[site.specie.Z for site in structure],
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )


def _start(index: int, structure: Any, settings: Settings) -> _Path | Relaxed:
    reason = invalid_reason(structure.lattice.matrix, structure.frac_coords)
    if reason:
        return Relaxed(reason)
    try:
        return _Path(index, primitive(structure), settings)
    except Exception as error:  # spglib has its own errors, and they change
        return Relaxed(f"cannot be prepared: {type(error).__name__}: {error}")


def primitive(structure: Any) -> Any:
    """The primitive cell of a pymatgen structure where spglib (0.01 Å) finds a smaller one.

    No atom and no axis is turned or moved to where symmetry would have it: the structure as it is,
    without repetition. Itself where it has none.
    """
    import spglib
    from pymatgen.core import Structure

    cell = (structure.lattice.matrix, structure.frac_coords, [s.specie.Z for s in structure])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = spglib.standardize_cell(
                cell, to_primitive=True, no_idealize=True, symprec=_SYMPREC_ANG
            )
        except Exception:  # the class of its errors changed between versions
            return structure
    if found is None or len(found[2]) >= len(structure):
        return structure
    lattice, frac, numbers = found
    return Structure(lattice, numbers, frac)


class _Path:
    """One crystal on its way down."""

    def __init__(self, index: int, structure: Any, settings: Settings) -> None:
        from ase.filters import UnitCellFilter
        from ase.optimize import BFGS

        self.index, self._settings = index, settings
        self.atoms = _atoms(structure)
        if settings.keep_symmetry:
            from ase.constraints import FixSymmetry

            self.atoms.set_constraint(FixSymmetry(self.atoms, symprec=_SYMPREC_ANG))
        self._start = self.atoms.copy()
        self._start_energy: float | None = None
        self.atoms.calc = _given()
        self._steps = 0
        filtered = UnitCellFilter(self.atoms, cell_factor=cell_factor(self.atoms))
        # logfile=None: nothing is printed.
        self._optimiser = BFGS(filtered, logfile=None)

    def advance(self, answer: Evaluated | str) -> Relaxed | None:
        """Take the numbers at the present place and a step; the result where it is the end."""
        reason = answer if isinstance(answer, str) else answer.problem() or self._exploded()
        if reason or isinstance(answer, str):
            return Relaxed(reason, start_energy=self._start_energy, steps=self._steps)
        self._steps += 1
        self.atoms.calc.results = {
            "energy": answer.energy,
            "free_energy": answer.energy,
            "forces": answer.forces,
            "stress": answer.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
        }
        if self._start_energy is None:
            self._start_energy = answer.energy / len(self.atoms)
        try:
            converged = self._largest() <= self._settings.fmax
            if converged or self._steps >= self._settings.max_steps:
                return self._result(answer.energy, converged)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # FixSymmetry warns of long first steps
                self._optimiser.step()
        except Exception as error:
            return Relaxed(failure(error), start_energy=self._start_energy, steps=self._steps)
        return None

    def _largest(self) -> float:
        """The largest force, or virial per atom: ASE's criterion, whatever the cell's scale."""
        forces = self.atoms.get_forces()
        virial = self.atoms.get_stress(voigt=False) * self.atoms.get_volume() / len(self.atoms)
        return max(float(np.linalg.norm(rows, axis=1).max()) for rows in (forces, virial))

    def _exploded(self) -> str:
        if not (np.isfinite(self.atoms.positions).all() and np.isfinite(self.atoms.cell).all()):
            return "not finite"
        ratio = self.atoms.get_volume() / self._start.get_volume()
        if not 1 / _EXPLODED < ratio < _EXPLODED:
            return f"the volume changed {ratio:.2g}-fold while relaxing"
        return ""

    def _result(self, energy: float, converged: bool) -> Relaxed:
        from pymatgen.core import Lattice, Structure

        cell, frac = np.array(self.atoms.cell), self.atoms.get_scaled_positions(wrap=False)
        reason = invalid_reason(cell, frac)
        if reason:
            return Relaxed(reason, start_energy=self._start_energy, steps=self._steps)
        moved = frac - self._start.get_scaled_positions(wrap=False)
        moved = (moved - moved.mean(axis=0)) @ (cell + np.array(self._start.cell)) / 2
        return Relaxed(
            "",
            Structure(Lattice(cell), self.atoms.numbers, frac, to_unit_cell=True),
            energy / len(self.atoms),
            self._start_energy,
            self._steps,
            converged,
            float(np.sqrt((moved**2).sum(axis=1).mean())),
            float(self.atoms.get_volume() / self._start.get_volume() - 1),
        )


def cell_factor(atoms: Any) -> float:
    """Å of an optimiser's step that stand for a unit of strain.

    The energy's curvature by strain grows with the volume, by positions it does not: with the
    square root both have the same scale, whatever the cell's size.
    """
    return float(np.sqrt(len(atoms)))


def _given() -> Any:
    """An ASE calculator that repeats the numbers put into it."""
    from ase.calculators.calculator import Calculator

    class Given(Calculator):  # type: ignore[misc]
        implemented_properties = ("energy", "free_energy", "forces", "stress")

        def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
            return self.results[name]

    return Given()
