"""Of merged samples the most symmetric one is shown, whatever the size of its cell."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Structure

from crystalctl.analysis.facts import sample_facts
from crystalctl.analysis.ranking import _representative


def perovskite(edge: float) -> Structure:
    return Structure.from_spacegroup(
        "Pm-3m",
        np.eye(3) * edge,
        ["Sr", "Ti", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]],
    )


def breathing(edge: float) -> Structure:
    """Every other octahedron a little larger: Fm-3m, in a cell of twice the edge."""
    return Structure.from_spacegroup(
        "Fm-3m",
        np.eye(3) * 2 * edge,
        ["Sr", "Ti", "Ti", "O"],
        [[0.25, 0.25, 0.25], [0, 0, 0], [0.5, 0.5, 0.5], [0.23, 0, 0]],
    )


@pytest.mark.parametrize("first", [0, 1])
def test_the_doubled_cell_does_not_stand_for_the_simple_one(first: int) -> None:
    drawn = [breathing(3.91), perovskite(3.9)]
    drawn = [drawn[first], drawn[1 - first], perovskite(3.95)]
    samples = [SimpleNamespace(number=number) for number in (1, 2, 3)]
    facts = {
        sample.number: sample_facts(one.lattice.matrix, one.frac_coords, list(one.atomic_numbers))
        for sample, one in zip(samples, drawn, strict=True)
    }
    best, its = _representative(samples, facts)
    assert best.number == 2 - first
    assert its.symmetric.number == 221
    alone = _representative([samples[first]], facts)[1]
    assert alone.symmetric.number == 225
