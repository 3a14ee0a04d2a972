"""Aggregates of nine textbook and broken structures against the original evaluation scripts.

The numbers were computed once with CDVAE's coverage, validity and distances (compute_metrics.py,
matminer 0.8.0) on exactly these structures.
"""

from __future__ import annotations

import pytest
from prototypes import (
    caesium_chloride,
    diamond,
    lonely,
    perovskite,
    record,
    rock_salt,
    squeezed,
    write_lines,
    zinc_blende,
)

from crystalctl import evaluate

OURS = [
    rock_salt(),
    rock_salt("K", "Br", 6.6),
    zinc_blende(),
    perovskite(4.1),
    caesium_chloride("Na", "Cl", 3.4),
    diamond(3.4),
    squeezed(),
    lonely(),
    zinc_blende("Xe", "Kr", 6.0),
]
THEIRS = [
    rock_salt(a=5.7),
    perovskite(),
    caesium_chloride(),
    zinc_blende("Ga", "As", 5.65),
    diamond(3.57),
]
COVERAGE = {
    "recall": 0.6,
    "precision": 5 / 9,
    "amsd_recall": 0.0004525560033745481,
    "amsd_precision": 0.28809955052333724,
    "amcd_recall": 4.690690842486745,
    "amcd_precision": 7.95634227054354,
}


def test_agrees_with_the_original_scripts(tmp_path) -> None:
    pytest.importorskip("smact")
    ours = write_lines(tmp_path / "ours.jsonl", [record(s) for s in OURS])
    theirs = write_lines(tmp_path / "theirs.jsonl", [record(s) for s in THEIRS])
    result = evaluate(ours, reference=theirs, task="generate", cache=tmp_path / "c", jobs=1)
    found = result.metrics["runs"]["ours"]
    for name, value in COVERAGE.items():
        assert found["generation"]["coverage"][name] == pytest.approx(value, abs=1e-6), name
    for name, value in {"comp_valid": 8 / 9, "struct_valid": 8 / 9, "valid": 7 / 9}.items():
        assert found["validity"][name] == pytest.approx(value, abs=1e-6), name
    distances = found["generation"]["wasserstein"]
    assert distances["density"] == pytest.approx(1.1691579087951458, abs=1e-6)
    assert distances["n_elements"] == pytest.approx(0.14285714285714274, abs=1e-6)
