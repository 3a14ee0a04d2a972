"""The table of elemental properties is matminer's, number by number, where matminer is installed.

``python tests/parity/test_magpie_table.py > crystalctl/analysis/magpie.csv`` writes it again.
"""

from __future__ import annotations

import math
import warnings
from importlib import resources

import pytest

LAST = 103
"""Heavier elements have numbers without a measurement there."""


def table() -> str:
    """The properties of matminer's preset "magpie", an element a line; empty = unknown."""
    from matminer.featurizers.composition import ElementProperty
    from pymatgen.core import Element

    preset = ElementProperty.from_preset("magpie", impute_nan=False)
    lines = [",".join(("symbol", *preset.features))]
    for z in range(1, LAST + 1):
        element = Element.from_Z(z)
        values = [
            float(preset.data_source.get_elemental_property(element, name))
            for name in preset.features
        ]
        if not all(map(math.isnan, values)):
            numbers = ("" if math.isnan(x) else f"{x:.12g}" for x in values)
            lines.append(",".join((element.symbol, *numbers)))
    return "\n".join(lines) + "\n"


def test_the_table_is_that_of_matminer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("matminer", exc_type=ImportError)
        made = table()
    kept = resources.files("crystalctl.analysis").joinpath("magpie.csv").read_text("utf-8")
    assert kept.splitlines() == made.splitlines()


if __name__ == "__main__":
    print(table(), end="")
