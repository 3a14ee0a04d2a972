"""Energy above the hull: by hand for two and three elements, files of both kinds, refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pymatgen.entries.computed_entries import ComputedEntry

from crystalctl.analysis.hull import KIND, Hull
from crystalctl.errors import InputError

SALT = [("Na2", -1.0), ("Na", -1.2), ("Cl2", -1.8), ("NaCl", -3.0), ("Na4Cl4", -2.9)]


def test_of_the_end_points_and_a_compound() -> None:
    hull = Hull.of("by hand", None, SALT)
    assert hull.above("Na", -1.1)[0] == pytest.approx(0.1)
    assert hull.above("NaCl", -2.8)[0] == pytest.approx(0.2)
    # Below the hull: by how much it would change it.
    assert hull.above("NaCl", -3.25)[0] == pytest.approx(-0.25)
    # Na3Cl on the line between Na (-1.2) and NaCl (-3.0): half of its atoms are NaCl's.
    assert hull.above("Na3Cl", -2.0)[0] == pytest.approx(-2.0 + (1.2 + 3.0) / 2)
    assert hull.above("Na6Cl2", -2.0) == hull.above("Na3Cl", -2.0)


def test_a_compound_above_the_line_of_the_elements_changes_nothing() -> None:
    hull = Hull.of("by hand", None, [("Na", -1.0), ("K", -2.0), ("NaK", -0.5)])
    assert hull.above("NaK", -1.4)[0] == pytest.approx(0.1)


def test_binaries_count_in_a_ternary_system_and_others_do_not() -> None:
    hull = Hull.of("by hand", None, [*SALT, ("K", -1.0), ("KCl", -3.0), ("CsK", -9.0)])
    assert hull.above("NaKCl2", -2.5)[0] == pytest.approx(0.5)


def test_unstable_and_broken_references_do_no_harm() -> None:
    """Allotropes, compounds that would decompose, a positive energy, one that is no number."""
    rows = [*SALT, ("Na", 4.0), ("Na3Cl", 7.0), ("NaCl3", 0.0), ("NaCl", float("nan"))]
    plain, crowded = Hull.of("a", None, SALT), Hull.of("b", None, [*rows, ("Cl", float("-inf"))])
    for formula in ("Na", "Cl", "NaCl", "Na3Cl", "NaCl3"):
        assert crowded.above(formula, -1.0) == pytest.approx(plain.above(formula, -1.0))


def test_few_phase_diagrams_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crystalctl.analysis.hull._KEPT", 2)
    hull = Hull.of("by hand", None, SALT)
    for formula, above in (("Na", 0.2), ("Cl", 0.8), ("NaCl", 2.0), ("Na", 0.2), ("NaCl", 2.0)):
        assert hull.above(formula, -1.0)[0] == pytest.approx(above)
        assert len(hull._diagrams) <= 2


def test_a_structure_below_the_hull_does_not_join_it() -> None:
    hull = Hull.of("by hand", None, SALT)
    assert hull.above("NaCl", -9.0)[0] == pytest.approx(-6.0)
    assert hull.above("NaCl", -2.8)[0] == pytest.approx(0.2)
    assert hull.above("Na", -9.0)[0] == pytest.approx(-7.8)


def test_what_the_hull_is_made_of() -> None:
    hull = Hull.of("by hand", None, SALT)
    hull.above("NaCl", -3.0)
    assert hull.phases("Na2Cl2") == "1.00 NaCl"
    assert hull.phases("Na3Cl") == "0.50 NaCl + 0.50 Na"
    assert hull.phases("Na") == "1.00 Na"


def test_many_elements_with_nothing_between_them() -> None:
    ends = [(e, -1.0 - k / 10) for k, e in enumerate(("Li", "Na", "K", "Rb", "Cs", "O", "S"))]
    value, why = Hull.of("ends", None, ends).above("LiNaKRbCsOS", -2.0)
    assert (value, why) == (pytest.approx(-2.0 + 1.3), "")


def test_a_missing_element_gives_a_reason_instead_of_a_number() -> None:
    value, why = Hull.of("by hand", None, SALT).above("NaBr", -3.0)
    assert value is None
    assert "Br" in why
    assert "by hand" in why


def test_pymatgen_entries_with_their_corrections(tmp_path: Path) -> None:
    entries = [
        ComputedEntry("Na2", -2.4),
        ComputedEntry("Cl2", -3.6),
        ComputedEntry("Na2Cl2", -11.0, correction=-1.0),
    ]
    for name, data in (("list", entries), ("dict", {"entries": entries})):
        path = tmp_path / f"{name}.json.gz"
        plain = (
            [e.as_dict() for e in data]
            if isinstance(data, list)
            else {"entries": [e.as_dict() for e in data["entries"]]}
        )
        path.write_bytes(gzip.compress(json.dumps(plain).encode()))
        hull = Hull.load(path, calculator="chgnet 1")
        assert hull.above("NaCl", -2.9)[0] == pytest.approx(0.1)
        assert "unknown origin" in hull.reference


def lines(path: Path, calculator: str = "chgnet 0.3.0") -> Path:
    rows = [{"formula": f, "energy_ev": e, "reason": ""} for f, e in SALT]
    rows.append({"formula": "Xe", "energy_ev": None, "reason": "the calculator failed"})
    header = {"kind": KIND, "calculator": calculator}
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    return path


def test_a_file_of_energies_names_its_calculator(tmp_path: Path) -> None:
    path = lines(tmp_path / "e.jsonl")
    hull = Hull.load(path, calculator="chgnet 0.3.0")
    assert hull.above("NaCl", -3.0)[0] == pytest.approx(0)
    assert "chgnet" in hull.reference
    assert hull.missing(["XeNa"]) == ["Xe"]
    with pytest.raises(InputError, match="not of mace"):
        Hull.load(path, calculator="mace 1")


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '{"a": [', "data_x", "[{}]"])
def test_what_holds_no_energies_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="no energies"):
        Hull.load(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot read"):
        Hull.load(tmp_path / "none.json")


def test_the_formula_of_an_entry_counts_with_all_its_atoms() -> None:
    """A file may give the whole cell's formula; energies are per atom."""
    hull = Hull.of("x", None, [("Na8", -1.0), ("Cl", -1.0), ("Na4 Cl4", -3.0), ("(NaCl)2", -3.5)])
    assert hull.above("Na", -1.0)[0] == pytest.approx(0)
    assert hull.above("NaCl", -3.0)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("formula", ["Na!", "1", "Na Cl?"])
def test_a_formula_that_is_none_is_refused_where_the_file_is_read(
    tmp_path: Path, formula: str
) -> None:
    header = {"kind": KIND, "calculator": "chgnet 0.3.0"}
    row = {"formula": formula, "energy_ev": -1.0, "reason": ""}
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(header)}\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match="no energies"):
        Hull.load(tmp_path / "x.jsonl")
