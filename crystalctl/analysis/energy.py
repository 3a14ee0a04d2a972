"""Energies with any ASE calculator: who computes them, one at a time or several in one call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from crystalctl.errors import InputError

INSTALL = 'pip install "crystalctl[relax]"'
"""How to get the calculator that is shipped as an extra."""
DEFAULT = "chgnet"


@dataclass(frozen=True)
class Evaluated:
    """``energy`` of the cell in eV; ``forces`` (n, 3) eV/Å and ``stress`` (3, 3) eV/Å³.

    The stress is that of ASE: dE/dstrain / volume, positive where the cell wants to shrink. Both
    are None where only energies were asked for.
    """

    energy: float
    forces: Any = None
    stress: Any = None

    def problem(self) -> str:
        """Why the numbers cannot be used, or an empty string."""
        parts = (self.energy, self.forces, self.stress)
        if all(part is None or np.isfinite(part).all() for part in parts):
            return ""
        return "the calculator gave numbers that are not finite"


class Potential(Protocol):
    """What computes energies. ``batch``: how many crystals are worth giving it at once."""

    @property
    def name(self) -> str: ...
    @property
    def batch(self) -> int: ...

    def evaluate(self, frames: Sequence[Any], *, gradients: bool) -> list[Evaluated | str]:
        """One answer for each ``ase.Atoms``, in order: the numbers, or why there are none.

        Never raises for a single structure. ``gradients``: forces and stress too.
        """
        ...


class OneAtATime:
    """Any ASE calculator as a ``Potential``."""

    batch = 1

    def __init__(self, name: str, calculator: Any) -> None:
        self.name = name
        self._calculator = calculator

    def evaluate(self, frames: Sequence[Any], *, gradients: bool) -> list[Evaluated | str]:
        return [self._one(frame, gradients) for frame in frames]

    def _one(self, frame: Any, gradients: bool) -> Evaluated | str:
        atoms = frame.copy()
        atoms.set_constraint()
        atoms.calc = self._calculator
        try:
            energy = float(atoms.get_potential_energy())
            if not gradients:
                return Evaluated(energy)
            forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
        except Exception as error:  # a calculator may raise anything for a strange structure
            return failure(error)
        return Evaluated(energy, np.array(forces), np.array(stress))


def failure(error: Exception) -> str:
    """The reason noted for a structure on which the calculator failed."""
    text = " ".join(str(error).split())[:120]
    return f"the calculator failed: {type(error).__name__}" + (f" ({text})" if text else "")


def energies_per_atom(potential: Potential, frames: Sequence[Any]) -> list[float | str]:
    """eV/atom of each ``ase.Atoms`` as it is, or why there is none."""
    found: list[float | str] = []
    for start in range(0, len(frames), potential.batch):
        part = frames[start : start + potential.batch]
        for frame, answer in zip(part, potential.evaluate(part, gradients=False), strict=True):
            if isinstance(answer, str):
                found.append(answer)
            else:
                found.append(answer.problem() or answer.energy / len(frame))
    return found


def load_potential(name: str, device: str = "cpu") -> Potential:
    """The calculator ``name``: one of ``known()``, or ``module:factory``.

    ``device``: a torch device by name. Raises ``InputError`` where it is unknown, not installed,
    or cannot be started (most download their weights on first use).
    """
    if ":" in name:
        return OneAtATime(name, _from_factory(name))
    if name not in _BUILDERS:
        raise InputError(
            f"unknown calculator '{name}'",
            f"allowed: {', '.join(known())}, or module:factory, a function that gives an ASE "
            "calculator",
        )
    package, install, build = _BUILDERS[name]
    if find_spec(package) is None:
        raise InputError(f"the calculator {name} is not installed", f"install it with: {install}")
    try:
        # Some greet on stdout, in the midst of what --json prints there.
        with redirect_stdout(sys.stderr):
            return build(device)
    except Exception as error:
        hint = f"check its installation ({install}); its weights may have to be downloaded once"
        raise InputError(f"{name} cannot be started: {failure(error)}", hint) from error


def known() -> list[str]:
    """The calculators with a name of their own."""
    return list(_BUILDERS)


def default_calculator() -> str | None:
    """The calculator used unless another is named; None where the extra is not installed."""
    return DEFAULT if find_spec(_BUILDERS[DEFAULT][0]) is not None else None


def _from_factory(name: str) -> Any:
    module, _, factory = name.partition(":")
    before = list(sys.path)
    try:
        # A script beside one's structures is the usual place for a factory.
        sys.path.insert(0, "")
        with redirect_stdout(sys.stderr):
            made = getattr(import_module(module), factory)()
    except Exception as error:
        raise InputError(
            f"no calculator from {name}: {type(error).__name__}: {error}",
            "give module:factory, a function without arguments that gives an ASE calculator",
        ) from error
    finally:
        sys.path[:] = before
    if not callable(getattr(made, "get_potential_energy", None)):
        raise InputError(
            f"{name} gave a {type(made).__name__}, not an ASE calculator",
            "give module:factory, a function without arguments that gives an ASE calculator",
        )
    return made


def _versioned(name: str, package: str) -> str:
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return name


def _chgnet(device: str) -> Potential:
    from crystalctl.analysis.chgnet import Chgnet

    return Chgnet(device)


def _mace(device: str) -> Potential:
    from mace.calculators import mace_mp

    calculator = mace_mp(device=device, default_dtype="float64")
    return OneAtATime(_versioned("mace", "mace-torch"), calculator)


def _orb(device: str) -> Potential:
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.calculator import ORBCalculator

    # Compiled, as it is by default, the first energy takes minutes and a C++ compiler.
    model = pretrained.orb_v3_conservative_inf_omat(device=device, compile=False)
    return OneAtATime(_versioned("orb", "orb-models"), ORBCalculator(model, device=device))


def _mattersim(device: str) -> Potential:
    from mattersim.forcefield import MatterSimCalculator

    calculator = MatterSimCalculator(device=device)
    return OneAtATime(_versioned("mattersim", "mattersim"), calculator)


def _sevennet(device: str) -> Potential:
    from sevenn.calculator import SevenNetCalculator

    return OneAtATime(_versioned("sevennet", "sevenn"), SevenNetCalculator("7net-0", device=device))


_BUILDERS: dict[str, tuple[str, str, Callable[[str], Potential]]] = {
    "chgnet": ("chgnet", INSTALL, _chgnet),
    "mace": ("mace", "pip install mace-torch", _mace),
    "orb": ("orb_models", "pip install orb-models", _orb),
    "mattersim": ("mattersim", "pip install mattersim", _mattersim),
    "sevennet": ("sevenn", "pip install sevenn", _sevennet),
}
