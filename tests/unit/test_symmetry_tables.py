"""The shipped table is what PyXtal and spglib say, and names of groups and positions are read."""

from __future__ import annotations

import json
import sys
from subprocess import run

import numpy as np
import pytest
from safetensors import safe_open

from crystalctl.errors import CrystalctlError, InputError
from crystalctl.symmetry import build
from crystalctl.symmetry.groups import group, groups_of_family, operations, parse_group
from crystalctl.symmetry.tables import N_GROUPS, PATH, read_tables, tables
from crystalctl.symmetry.wyckoff import parse_wyckoff, position, position_row, positions


def test_the_file_is_what_build_makes():
    arrays, header = build.build()
    with safe_open(PATH, framework="np") as handle:
        assert json.loads(handle.metadata()["crystalctl"]) == header
        assert set(handle.keys()) == set(arrays)
        for name, values in arrays.items():
            shipped = handle.get_tensor(name)
            assert shipped.dtype == values.dtype
            assert np.array_equal(shipped, values), name
    assert PATH.stat().st_size < 1_000_000


def test_operations_are_those_of_spglib():
    for number in range(1, N_GROUPS + 1):
        rotation, translation = operations(number)
        steps = np.round(translation * 24).astype(np.int64)
        expected = build.database_operations(group(number).hall)
        assert build.as_set((rotation, steps)) == build.as_set(expected)


def test_a_wrong_setting_is_noticed():
    diamond = build.database_operations(525)
    with pytest.raises(CrystalctlError, match="group 227"):
        build._check_against_spglib(227, 526, diamond)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("225", 225),
        (225, 225),
        ("Fm-3m", 225),
        ("F m -3 m", 225),
        ("fm-3m", 225),
        ("Fm\u22123m", 225),
        ("Fm3m", 225),
        ("F 4/m -3 2/m", 225),
        ("Fd-3m:2", 227),
        ("P21/c:b1", 14),
        ("Pnna:cab", 52),
        ("P2_1/c", 14),
        ("P21/c", 14),
        ("P 1 21/c 1", 14),
        ("P21/n", 14),
        ("P2_{1}/c", 14),
        ("Pbnm", 62),
        ("Cmca", 64),
        ("Cmce", 64),
        ("R-3m:H", 166),
        ("F d -3 m S", 227),
        ("FD-3MZ", 227),
        ("R -3 m H", 166),
        ("I41/amdS", 141),
        (" p 63/m m c ", 194),
        ("P1", 1),
        ("P-1", 2),
    ],
)
def test_symbols_as_people_write_them(text, number):
    assert parse_group(text) == number


def test_every_standard_symbol_is_its_own_group():
    for number in range(1, N_GROUPS + 1):
        assert parse_group(group(number).symbol) == number
        assert parse_group(str(number)) == number


@pytest.mark.parametrize(
    "text", ["0", "231", 0, 231, "-5", "Fm3x", "", "xyz", "P7", "P-31m:3", "P-4m2:x"]
)
def test_no_such_group(text):
    with pytest.raises(InputError) as caught:
        parse_group(text)
    assert caught.value.hint


def test_an_almost_right_symbol_gets_suggestions():
    with pytest.raises(InputError) as caught:
        parse_group("Fm3x")
    assert "Fm-3m (225)" in caught.value.hint


def test_group_facts():
    rock_salt = group(225)
    assert (rock_salt.centring, rock_salt.family, rock_salt.point_group) == ("F", "cubic", "m-3m")
    assert rock_salt.order == 192
    assert group(166).family == "hexagonal"
    assert group(166).metric[0, 1] == -0.5
    assert group(14).lattice_free == (False, True, False, True, True, True)
    assert groups_of_family("Cubic") == list(range(195, 231))
    assert len(groups_of_family("any")) == 230
    with pytest.raises(InputError, match="quasi"):
        groups_of_family("quasi")


def test_positions_of_rock_salt():
    labels = [p.label for p in positions(225)]
    assert labels[:5] == ["4a", "4b", "8c", "24d", "24e"]
    assert labels[-1] == "192l"
    first = position(position_row(225, "4a"))
    assert (first.site_symmetry, first.freedom) == ("m-3m", 0)
    assert position_row(47, "A") == positions(47)[-1].row
    assert [position(r).label for r in parse_wyckoff(225, "4a, b 8c,24e,24e")] == [
        "4a",
        "4b",
        "8c",
        "24e",
        "24e",
    ]


@pytest.mark.parametrize(
    "text", ["4z", "m", "8a", "4aa", "", " ", "4", "A", "4a,,8c", "4a,", ",4a", "4a ; ,8c"]
)
def test_no_such_position(text):
    with pytest.raises(InputError) as caught:
        parse_wyckoff(225, text)
    assert "4a" in caught.value.hint


def test_a_fixed_point_is_occupied_once():
    with pytest.raises(InputError, match="4a"):
        parse_wyckoff(225, "4a,4b,4a")


def test_tables_are_read_only_and_damage_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        tables().rotation[0] = 0
    (tmp_path / "cut.safetensors").write_bytes(PATH.read_bytes()[:1000])
    for name in ("cut.safetensors", "missing.safetensors"):
        with pytest.raises(CrystalctlError):
            read_tables(tmp_path / name)


def test_run_time_needs_neither_torch_nor_pyxtal():
    code = (
        "import sys; from crystalctl.symmetry import standard, wyckoff; wyckoff.positions(225); "
        "print(sorted({'torch', 'pyxtal', 'spglib', 'pymatgen'} & set(sys.modules)))"
    )
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
