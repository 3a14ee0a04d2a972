"""crystalctl generate: sizes, elements and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystalctl import api

pytestmark = pytest.mark.usefixtures("fake_model")


def test_run(run_cli) -> None:
    done = run_cli("generate", "--n", 12, "--elements", "Na,Cl,O", "--exclude", "O")
    assert done.code == 0, done.err
    folder = Path("runs/generated")
    rows = json.loads((folder / "summary.json").read_text())["structures"]
    assert rows
    assert {row["formula"] for row in rows} == {"NaCl"}
    assert all((folder / row["file"]).is_file() for row in rows)
    assert (folder / "structures.extxyz").is_file()


def test_number_of_atoms() -> None:
    result = api.generate(n=20, num_atoms="2-4")
    assert {row["n_atoms"] for row in result.rows} <= {2, 4}  # 3 was never seen in training
    only = api.generate(n=8, num_atoms=3)
    assert {row["n_atoms"] for row in only.rows} == {3}


REFUSED = {
    "n": (["--n", "0"], "--n is 0"),
    "atoms": (["--num-atoms", "4-x"], "--num-atoms is '4-x'"),
    "too many atoms": (["--num-atoms", "4-30"], "the weights know up to 24"),
    "element": (["--elements", "Na,Xx"], "unknown element 'Xx'"),
    "never seen": (["--elements", "Pu"], "never seen Pu"),
    "nothing left": (["--elements", "Na", "--exclude", "Na"], "leaves none"),
    "group 0": (["--spacegroup", "0"], "no space group 0"),
    "group 231": (["--spacegroup", "231"], "no space group 231"),
    "symbol": (["--spacegroup", "Fm3x"], "did you mean"),
    "letter": (["--spacegroup", "225", "--wyckoff", "4a,4z"], "it has 4a, 4b, 8c"),
    "one point": (["--spacegroup", "225", "--wyckoff", "4a,4a"], "asked for 2 times"),
    "two goals": (["--minimize", "a", "--maximize", "b"], "exclude each other"),
    "no number": (["--target", "band_gap"], "write --target band_gap=1.5"),
    "goal": (["--model", "equicsp", "--minimize", "e"], "equicsp cannot take a property"),
    "goal and group": (
        ["--minimize", "e", "--sg", "225"],
        "a property to aim at and a space group at once",
    ),
    "not shipped": (["--target", "band_gap=1.5"], "no shipped weights know band_gap"),
    "not learnt": (["--weights", "x", "--minimize", "e"], "these weights know no property, not e"),
    "strength": (["--minimize", "e", "--strength", "-1"], "--strength is -1"),
    "strength alone": (["--strength", "2"], "--strength without a goal"),
    "cold": (["--temperature", "1e-39"], "--temperature is 1e-39"),
    "likeness": (["--likeness", "1.1"], "--likeness is 1.1"),
    "not composed": (["--model", "symat", "--likeness", "0"], "symat cannot take a likeness"),
    "idle": (["--no-relax", "--hull", "x.jsonl"], "--no-relax leaves --hull without use"),
    "letters alone": (["--wyckoff", "4a"], "--wyckoff needs the group"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, run_cli) -> None:
    arguments, message = REFUSED[case]
    done = run_cli("generate", *arguments)
    assert done.code == 2
    assert message in done.err
    assert 1 <= len(done.err.strip().splitlines()) <= 2
    assert not list(Path().iterdir())
