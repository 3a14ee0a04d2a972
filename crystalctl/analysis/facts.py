"""One sample -> its facts: possible or not and why, symmetry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from crystalctl.analysis.exact import SYMPREC_ANG, OrbitCell, found_group
from crystalctl.analysis.packed import Packed
from crystalctl.analysis.symmetrise import Symmetric, symmetrise
from crystalctl.analysis.validity import invalid_reason


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one sample.

    ``reason`` is empty for a possible structure; only then ``packed`` (the sample) and the rest are
    there.
    """

    reason: str
    packed: Packed | None = None
    formula: str = ""
    symmetric: Symmetric | None = None

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
    return Facts("", Packed.of(structure), structure.composition.reduced_formula)


def with_symmetry(facts: Facts) -> Facts:
    """The same facts with the space group and the symmetrised conventional cell."""
    if facts.symmetric is not None or facts.packed is None:
        return facts
    return replace(facts, symmetric=symmetrise(facts.packed.structure))


def facts_within_group(cell: OrbitCell, *, exact: bool) -> Facts:
    """Facts of a sample that was drawn within a group.

    With ``exact`` it must have that group and no more; without, what is found is reported.
    """
    structure = cell.structure
    reason = invalid_reason(structure.lattice.matrix, structure.frac_coords)
    if reason:
        return Facts(reason)
    facts = Facts("", cell.packed, structure.composition.reduced_formula)
    if found_group(structure) == cell.number:
        symmetric = Symmetric(cell.packed, cell.number, cell.symbol, SYMPREC_ANG, cell)
        return replace(facts, symmetric=symmetric)
    return Facts("more symmetric than the group asked for") if exact else facts
