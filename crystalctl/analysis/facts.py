"""One sample -> its facts: possible or not and why, symmetry, density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crystalctl.analysis.symmetrise import Symmetric, symmetrise
from crystalctl.analysis.validity import invalid_reason


@dataclass(frozen=True)
class Facts:
    """What is known of one sample.

    ``reason`` is empty for a possible structure; only then ``structure`` (the sample as a pymatgen
    Structure) and the rest are there.
    """

    reason: str
    structure: Any = None
    formula: str = ""
    symmetric: Symmetric | None = None
    density: float | None = None

    @property
    def valid(self) -> bool:
        return not self.reason


def sample_facts(lattice: Any, frac: Any, species: list[int]) -> Facts:
    """Facts of one sample, without its symmetry (``with_symmetry`` adds that).

    ``lattice`` (3, 3) Å rows, ``frac`` (n, 3), ``species`` n atomic numbers. Never raises for a
    strange cell: the reason is in the result.
    """
    reason = invalid_reason(lattice, frac)
    if reason:
        return Facts(reason)
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(lattice), species, frac, to_unit_cell=True)
    return Facts("", structure, structure.composition.reduced_formula, None, structure.density)


def with_symmetry(facts: Facts) -> Facts:
    """The same facts with the space group and the symmetrised conventional cell."""
    symmetric = symmetrise(facts.structure)
    return Facts("", facts.structure, facts.formula, symmetric, facts.density)
