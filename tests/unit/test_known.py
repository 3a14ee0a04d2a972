"""What databases hold: the label beside each candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prototypes import caesium_chloride, perovskite, rock_salt
from pymatgen.core import Structure
from safetensors.numpy import save_file

from crystalctl.errors import DataError
from crystalctl.known import HERE, NEW, OTHERWISE, Known
from crystalctl.symmetry.standard import standardise

ROCK_SALT, PEROVSKITE = rock_salt(), perovskite()


def known_of(*structures: Structure) -> Known:
    found = []
    for one in structures:
        numbers = np.array([site.specie.Z for site in one])
        standard = standardise(one.lattice.matrix, one.frac_coords, numbers)
        values, counts = np.unique(numbers, return_counts=True)
        composition = dict(zip(values.tolist(), counts.tolist(), strict=True))
        found.append((standard.positions.tolist(), standard.species.tolist(), composition))
    return Known.of(found)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("primitive", [True, False])
def test_a_known_structure_is_known_in_every_setting(shift: float, primitive: bool) -> None:
    one = ROCK_SALT * [1, 1, 1] if primitive else ROCK_SALT * [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]
    one.translate_sites(range(len(one)), [shift] * 3)
    one.apply_strain(0.03)
    assert known_of(ROCK_SALT, PEROVSKITE).says(one) == HERE


def test_another_polymorph_is_not_known_and_another_formula_is_new() -> None:
    known = known_of(ROCK_SALT)
    caesium = caesium_chloride("Na", "Cl")
    assert known.says(caesium) == OTHERWISE
    twice = caesium.copy()
    twice.make_supercell([2, 1, 1])
    assert known.says(twice) == OTHERWISE
    other = ROCK_SALT.copy()
    other.replace_species({"Na": "K"})
    assert known.says(other) == NEW
    assert known.says(PEROVSKITE) == NEW


def test_elements_that_change_places_are_another_structure() -> None:
    inverse = PEROVSKITE.copy()
    inverse.replace_species({"Sr": "Ti", "Ti": "Sr"})
    assert known_of(PEROVSKITE).says(inverse) == OTHERWISE
    both = known_of(PEROVSKITE, inverse)
    assert both.says(inverse) == both.says(PEROVSKITE) == HERE
    assert (len(both.structures), len(both.formulas)) == (2, 1)


def test_it_is_saved_and_what_is_something_else_refused(tmp_path: Path) -> None:
    path = tmp_path / "known.safetensors"
    known = known_of(ROCK_SALT, PEROVSKITE)
    known.save(path)
    again = Known.load(path)
    assert again.structures.tolist() == known.structures.tolist()
    assert again.says(PEROVSKITE) == HERE
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="no known structures"):
        Known.load(path)
    save_file({"structures": known.structures}, path, {"kind": "templates", "version": "1"})
    with pytest.raises(DataError, match="no known structures"):
        Known.load(path)
    with pytest.raises(DataError, match="no known structures"):
        Known.load(tmp_path / "missing.safetensors")
