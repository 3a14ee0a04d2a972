"""Known structures as starts: prototypes, and how large a cell of other elements is. No torch here.

A prototype is what structures of several compounds share: coordinates and cell of their mean.
``prototypes.py`` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.symmetry.tables import tables

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_TURN = 2**16
"""Coordinates are kept in this many parts of a cell."""


@dataclass(frozen=True)
class Prototypes:
    """P prototypes of N structures.

    ``which`` (N,): the prototype of each structure, -1 = none; ``size`` (N,): the logarithm of the
    volume of its atoms less what its elements do to it. That is, with x (101,) the share of each
    atomic number, x . ``volume`` + the squares of x ``pairs`` (101, R), those of the second half
    subtracted: elements make a cell larger, and some pairs of them. ``n_orbits`` (P,); ``anchor``
    (Q, 3) fractional coordinates of all their orbits; ``cell`` (P, 5): of the logarithm of the
    conventional cell (``to_family6``) the first five coefficients.
    """

    which: Ints
    size: Floats
    n_orbits: Ints
    anchor: Floats
    cell: Floats
    volume: Floats
    pairs: Floats

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a file keeps."""
        fixed = np.rint(self.anchor % 1.0 * _TURN).astype(np.int64) % _TURN
        narrow = len(self.n_orbits) <= np.iinfo(np.int16).max
        return {
            "prototype": self.which.astype(np.int16 if narrow else np.int32),
            "structure_size": self.size.astype(np.float16),
            "prototype_orbits": self.n_orbits.astype(np.uint16),
            "prototype_anchor": fixed.astype(np.uint16),
            "prototype_cell": self.cell.astype(np.float16),
            "element_volume": self.volume.astype(np.float16),
            "element_pairs": self.pairs.astype(np.float16),
        }

    @staticmethod
    def from_tensors(raw: dict[str, NDArray[Any]]) -> Prototypes | None:
        """The inverse of ``tensors``, which are taken out of ``raw``; None where there are none."""
        if "prototype" not in raw:
            return None
        which, cell = raw.pop("prototype").astype(np.int64), raw.pop("prototype_cell")
        # Older files have the mean size of a prototype only, as a sixth number of its cell.
        size = raw.pop("structure_size") if "structure_size" in raw else cell[which, 5]
        return Prototypes(
            which,
            size.astype(np.float64),
            raw.pop("prototype_orbits").astype(np.int64),
            raw.pop("prototype_anchor").astype(np.float64) / _TURN,
            cell[:, :5].astype(np.float64),
            raw.pop("element_volume").astype(np.float64),
            raw.pop("element_pairs").astype(np.float64),
        )

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.n_orbits)

    def start(
        self,
        number: int,
        rows: Sequence[int],
        species: Sequence[int],
        *,
        size: float,
        order: Sequence[int],
    ) -> tuple[float, ...]:
        """Prototype ``number`` with ``species`` on its orbits, as ``start`` of a ``Template``.

        ``rows`` and ``species`` (O,) in the order of the prototype; ``size``: as of a structure;
        ``order`` (O,): in which the anchors are wanted.
        """
        end = int(self._ends[number])
        anchors = self.anchor[end - len(rows) : end][list(order)]
        atoms = tables().multiplicity[list(rows)]
        n_atoms = int(atoms.sum())
        share = np.bincount(list(species), atoms / n_atoms, minlength=len(self.volume))
        square = (share @ self.pairs) ** 2
        half = len(square) // 2
        size += float(share @ self.volume + square[:half].sum() - square[half:].sum())
        # The trace of the logarithm of the cell is that of its volume.
        sixth = (math.log(n_atoms) + size) / math.sqrt(3)
        return (*self.cell[number].tolist(), sixth, *anchors.ravel().tolist())
