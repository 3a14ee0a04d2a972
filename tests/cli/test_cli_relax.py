"""``crystalctl relax`` with a cheap calculator: ranks, failures, resume, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from crystalctl.cli.app import main

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two equal salts of other lengths, one with other atoms, one impossible, one broken."""
    where = tmp_path / "cells"
    where.mkdir()
    for name, a, other in (("a", 3.5, "Cl"), ("b", 3.8, "Cl"), ("c", 3.6, "Br"), ("d", 3.6, "He")):
        cell = Structure(Lattice.cubic(a), ["Cs", other], [[0, 0, 0], [0.5, 0.5, 0.5]])
        cell.to(str(where / f"{name}.cif"))
    (where / "e.cif").write_text("not a crystal")
    return where


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in ("relax", "--calculator", "springs:morse", *args)])
    return int(caught.value.code or 0)


def table(where: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((where / "relaxed.csv").open()))


def test_relaxed_ranked_and_every_failure_has_its_reason(folder: Path, capsys) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert run(folder, "--fmax", 0.01) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    out = folder.parent / "cells-relaxed"
    rows = table(out)
    assert len(rows) == 5
    ranked = [row for row in rows if row["rank"]]
    assert [row["formula"] for row in ranked] == ["CsCl", "CsBr"]
    assert ranked[0]["count"] == "2"
    assert [row["known"] for row in ranked] == ["yes", "yes"]
    assert ranked[0]["group_before"] == ranked[0]["group"] == "Pm-3m"
    assert float(ranked[0]["energy_ev"]) < float(ranked[0]["energy_before_ev"])
    assert [row["same_as"] for row in rows].count("1") == 1
    assert "no parameters for He" in next(
        row["reason"] for row in rows if row["id"].startswith("d")
    )
    assert sum(bool(row["reason"]) for row in rows) == 2
    relaxed = Structure.from_file(out / ranked[0]["file"])
    assert 2.5 < relaxed.lattice.a < 4
    shown = capsys.readouterr().out
    assert "eV/atom" in shown
    assert "known: yes = of" in shown
    assert "<table" in (out / "report.html").read_text()


def test_a_stopped_run_continues_to_the_same_table(folder: Path) -> None:
    out = folder.parent / "out"
    assert run(folder, "--out", out, "-q") == 0
    whole = (out / "relaxed.csv").read_text()
    lines = (out / "done.jsonl").read_text().splitlines()
    (out / "relaxed.csv").unlink()
    # Killed in the middle of the third line.
    (out / "done.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    assert run(folder, "--out", out, "-q") == 2
    assert run(folder, "--out", out, "-q", "--resume", "--fmax", 0.2) == 2
    assert run(folder, "--out", out, "-q", "--resume") == 0
    assert (out / "relaxed.csv").read_text() == whole
    assert len({json.loads(x)["index"] for x in lines}) == 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--fmax", "0"], "must be positive"),
        (["--calculator", "vasp"], "chgnet, mace"),
        (["--calculator", "mace"], "pip install mace-torch"),
    ],
)
def test_bad_wishes_say_what_is_possible(folder: Path, args: list[str], says: str, capsys) -> None:
    assert run(folder, *args) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_nothing_to_relax(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.cif").write_text("nothing")
    assert run(tmp_path) == 2
    assert "none of the structures can be read" in capsys.readouterr().err


def test_a_calculator_that_greets_does_not_spoil_the_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """mace and mattersim print on stdout while they load."""
    (folder.parent / "greeting.py").write_text(
        "print('imported')\n\ndef make():\n    import springs\n\n    print('hello')\n"
        "    return springs.morse()\n"
    )
    monkeypatch.chdir(folder.parent)
    assert run(folder, "--calculator", "greeting:make", "--max-steps", 2, "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert "hello" in shown.err
