"""Which structures databases already hold: a label beside each candidate. No torch here.

The file keeps no structure, but a number for each: a hash of its group, the Wyckoff positions that
are occupied, and the elements on them, in the form that all settings share; and one of its reduced
formula. Nothing is predicted, drawn or ranked by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.errors import DataError
from crystalctl.symmetry.normaliser import canonical_orbits
from crystalctl.symmetry.standard import NoSymmetry, standardise

if TYPE_CHECKING:
    from crystalctl.analysis.ranking import Ranking

KIND, VERSION = "known structures", "1"
HERE, OTHERWISE, NEW = "yes", "formula", "no"
"""A structure of this formula has the group and positions; only others of the formula; none."""
Hashes = NDArray[np.uint32]


@dataclass(frozen=True)
class Known:
    """``structures`` (N,) and ``formulas`` (M,): their hashes, ascending."""

    structures: Hashes
    formulas: Hashes

    @staticmethod
    def of(templates: Iterable[tuple[Iterable[int], Iterable[int], Mapping[int, int]]]) -> Known:
        """From the rows and the species of orbits, and the composition, of each structure."""
        structures, formulas = set(), set()
        for rows, species, composition in templates:
            structures.add(_of_structure(rows, species))
            formulas.add(_of_formula(composition))
        return Known(*(np.array(sorted(found), np.uint32) for found in (structures, formulas)))

    @staticmethod
    def load(path: Path) -> Known:
        """Read what ``save`` wrote. Raises ``DataError``."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as handle:
                header = handle.metadata() or {}
                if (header.get("kind"), header.get("version")) != (KIND, VERSION):
                    raise ValueError(f"it is {header or 'something else'}")
                return Known(handle.get_tensor("structures"), handle.get_tensor("formulas"))
        except (SafetensorError, ValueError, OSError) as error:
            raise DataError(f"{path} holds no known structures ({error})") from error

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads."""
        from safetensors.numpy import save

        from crystalctl.io.structures import write_atomic

        tensors = {"structures": self.structures, "formulas": self.formulas}
        write_atomic(path, save(tensors, {"kind": KIND, "version": VERSION}))

    def says(self, structure: Any) -> str:
        """``HERE``, ``OTHERWISE`` or ``NEW`` for a pymatgen structure."""
        numbers = np.array([site.specie.Z for site in structure])
        values, counts = np.unique(numbers, return_counts=True)
        composition = dict(zip(values.tolist(), counts.tolist(), strict=True))
        if not _among(self.formulas, _of_formula(composition)):
            return NEW
        try:
            found = standardise(structure.lattice.matrix, structure.frac_coords, numbers)
        except NoSymmetry:
            return OTHERWISE
        here = _of_structure(found.positions.tolist(), found.species.tolist())
        return HERE if _among(self.structures, here) else OTHERWISE


def shipped() -> Known | None:
    """What comes with the weights, if they are there."""
    from crystalctl.checkpoint import known_file

    path = known_file()
    return None if path is None else _loaded(path)


_loaded = cache(Known.load)


def with_known(ranking: Ranking) -> Ranking:
    """The ranking, its candidates labelled."""
    known = shipped()
    if known is None:
        return ranking
    labelled = [
        replace(candidate, known=known.says(candidate.symmetric.structure))
        for candidate in ranking.candidates
    ]
    return replace(ranking, candidates=labelled)


def _of_structure(rows: Iterable[int], species: Iterable[int]) -> int:
    return _hash(canonical_orbits(zip(rows, species, strict=True)))


def _of_formula(composition: Mapping[int, int]) -> int:
    common = gcd(*composition.values())
    return _hash(tuple((z, n // common) for z, n in sorted(composition.items())))


def _hash(pairs: Iterable[tuple[int, int]]) -> int:
    """Four bytes: of 90 k formulas a new one meets another's number once in 50 000 times."""
    text = " ".join(f"{one}:{other}" for one, other in pairs)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _among(hashes: Hashes, value: int) -> bool:
    at = int(np.searchsorted(hashes, value))
    return at < len(hashes) and int(hashes[at]) == value
