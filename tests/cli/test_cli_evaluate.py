"""``crystalctl evaluate``: results, files, and every error with its next step."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from prototypes import (
    caesium_chloride,
    diamond,
    perovskite,
    record,
    rock_salt,
    squeezed,
    write_cif,
    write_lines,
    zinc_blende,
)


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def load(folder):
    facts = list(csv.DictReader((folder / "facts.csv").read_text().splitlines()))
    return facts, json.loads((folder / "metrics.json").read_text())


def test_generated_structures_beside_a_reference(run_cli, tmp_path) -> None:
    pytest.importorskip("smact")
    ours = [rock_salt(), rock_salt(a=5.6), zinc_blende(), squeezed(), perovskite()]
    write_lines(tmp_path / "ours.jsonl", [*(record(s) for s in ours), "{broken"])
    write_lines(tmp_path / "ref.jsonl", [record(s) for s in (rock_salt(a=5.7), caesium_chloride())])
    done = run_cli(
        "evaluate", "ours.jsonl", "--reference", "ref.jsonl", "--task", "generate", "-j", "1"
    )
    assert done.code == 0, done.err
    assert "COV-R" in done.out
    assert "1 x not valid JSON" in done.out
    facts, metrics = load(tmp_path / "ours-evaluation")
    assert len(facts) == 6
    assert [row["unique"] for row in facts] == ["True", "False", "True", "", "True", ""]
    assert [row["novel"] for row in facts] == ["False", "False", "True", "", "True", ""]
    assert facts[1]["same_as"] == facts[0]["id"]
    assert facts[3]["reason"] == "atoms closer than 0.5 Å"
    run = metrics["runs"]["ours"]
    assert run["validity"]["struct_valid"] == pytest.approx(4 / 6)
    assert run["generation"]["unique"] == 0.75
    assert run["generation"]["unique_novel"] == 0.5
    assert run["generation"]["templates"]["n_unique"] == 3
    assert metrics["benchmark"] == "mp_20"


def test_predictions_alone_say_what_they_lack(run_cli, tmp_path) -> None:
    write_lines(tmp_path / "ours.jsonl", [record(rock_salt())])
    command = ("evaluate", "ours.jsonl", "--no-fingerprints", "-j", "1")
    said = "predictions without --reference: no match rate"
    assert said in run_cli(*command, "--task", "predict").err
    assert said not in run_cli(*command, "--task", "generate", "--out", "other").err


def test_several_predictions_by_formula_and_rank(run_cli, tmp_path) -> None:
    guesses = [
        record(caesium_chloride("Na", "Cl", 3.4), rank=2),
        record(rock_salt(a=5.5), rank=1),
        record(zinc_blende(), rank=1),
    ]
    write_lines(tmp_path / "ours.jsonl", guesses)
    truth = [
        record(rock_salt(), id="t1"),
        record(zinc_blende(), id="t2"),
        record(diamond(), id="t3"),
    ]
    write_lines(tmp_path / "ref.jsonl", truth)
    done = run_cli(
        *("evaluate", "ours.jsonl", "--reference", "ref.jsonl", "--json", "--no-fingerprints"),
        *("--out", "made", "-j", "1"),
    )
    found = json.loads(done.out)["runs"]["ours"]["prediction"]
    assert (found["paired_by"], found["n_without_prediction"]) == ("formula", 1)
    assert found["k=1"]["ungated"]["match_rate"] == pytest.approx(1 / 3), "as given"
    assert found["top_1"]["ungated"]["match_rate"] == pytest.approx(2 / 3), "by rank"
    assert found["k=2"]["ungated"]["n_matched"] == 2
    assert found["where_predicted"]["k=2"]["ungated"]["match_rate"] == 1
    assert found["metre"]["metre"] == pytest.approx(2 / 3)
    assert found["metre"]["crmse"] == pytest.approx(0.5 / 3, abs=1e-6)
    facts, _ = load(tmp_path / "made")
    assert [row["reference"] for row in facts] == ["t1", "t1", "t2"]
    assert [row["rmse"] != "" for row in facts] == [False, True, True]


def test_rows_of_equal_length_belong_together(run_cli, tmp_path) -> None:
    write_lines(tmp_path / "ours.jsonl", [record(rock_salt()), "{", record(zinc_blende())])
    write_lines(
        tmp_path / "ref.jsonl", [record(s) for s in (rock_salt(), perovskite(), zinc_blende())]
    )
    done = run_cli(
        "evaluate", "ours.jsonl", "--reference", "ref.jsonl", "--json", "--no-fingerprints", "-j", 1
    )
    found = json.loads(done.out)["runs"]["ours"]
    assert (found["task"], found["prediction"]["paired_by"]) == ("predict", "rows")
    assert found["prediction"]["k=1"]["ungated"]["match_rate"] == pytest.approx(2 / 3)
    assert found["failures"] == {"not valid JSON": 1}


def test_several_runs_make_one_table(run_cli, tmp_path) -> None:
    write_cif(tmp_path / "one" / "a.cif", rock_salt())
    write_cif(tmp_path / "two" / "a.cif", diamond())
    (tmp_path / "two" / "b.cif").write_text("no")
    done = run_cli("evaluate", "one", "two", "--no-fingerprints", "--out", "made", "-j", "1")
    header, structures, *_ = done.out.splitlines()
    assert header.split() == ["metric", "one", "two"]
    assert structures.split() == ["structures", "1", "2"]
    assert "failed in two:" in done.out
    facts, metrics = load(tmp_path / "made")
    assert [row["run"] for row in facts] == ["one", "two", "two"]
    assert list(metrics["runs"]) == ["one", "two"]


def test_energies_above_the_hull_give_sun(run_cli, tmp_path) -> None:
    rows = [record(rock_salt(), e_above_hull=0.0), record(zinc_blende(), e_above_hull=0.05)]
    write_lines(tmp_path / "ours.jsonl", [*rows, record(diamond())])
    write_lines(tmp_path / "known.jsonl", [record(rock_salt())])
    done = run_cli(
        *("evaluate", "ours.jsonl", "--train", "known.jsonl", "--no-fingerprints", "--json"),
        *("-j", "1"),
    )
    found = json.loads(done.out)["runs"]["ours"]["stability"]
    assert found["stable"] == pytest.approx(1 / 3)
    assert found["metastable"] == pytest.approx(2 / 3)
    assert (found["sun"], found["metastable_sun"]) == (0, pytest.approx(1 / 3))


def test_a_prepared_dataset_as_reference(run_cli, tmp_path) -> None:
    write_lines(tmp_path / "ref.jsonl", [record(rock_salt(), id="a"), record(diamond(), id="b")])
    assert run_cli("data", "prepare", "ref.jsonl", "-o", "ref.safetensors", "-j", "1").code == 0
    write_lines(tmp_path / "ours.jsonl", [record(diamond(), id="b"), record(rock_salt(), id="a")])
    done = run_cli(
        *("evaluate", "ours.jsonl", "--reference", "ref.safetensors", "--no-fingerprints"),
        *("--json", "-j", "1"),
    )
    found = json.loads(done.out)["runs"]["ours"]["prediction"]
    assert (found["paired_by"], found["k=1"]["ungated"]["match_rate"]) == ("ids", 1)


def test_processes_give_the_same_files(run_cli, tmp_path) -> None:
    metals = [
        "Li",
        "Na",
        "K",
        "Rb",
        "Cs",
        "Be",
        "Mg",
        "Ca",
        "Sr",
        "Ba",
        "Sc",
        "Ti",
        "V",
        "Cr",
        "Mn",
        "Fe",
        "Co",
        "Ni",
        "Cu",
        "Zn",
        "Ag",
        "Cd",
        "Au",
        "Hg",
        "Tl",
        "Pb",
    ]
    many = [record(rock_salt(metal, a=5)) for metal in metals]
    write_lines(tmp_path / "ours.jsonl", many)
    for jobs in "12":
        done = run_cli("evaluate", "ours.jsonl", "--no-fingerprints", "--out", jobs, "-j", jobs)
        assert done.code == 0, done.err
    for name in ("facts.csv", "metrics.json"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "2" / name).read_text()


def test_without_smact_it_says_what_is_missing(run_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "smact", None)
    monkeypatch.setattr("crystalctl.evaluating._has_smact", lambda: False)
    write_lines(tmp_path / "ours.jsonl", [record(rock_salt())])
    done = run_cli("evaluate", "ours.jsonl", "--no-fingerprints", "-j", "1")
    assert done.code == 0
    assert 'pip install "crystalctl[evaluate]"' in done.err
    _, metrics = load(tmp_path / "ours-evaluation")
    assert metrics["runs"]["ours"]["validity"]["valid"] is None


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        (("nothing",), "no file or folder at nothing", "give a run folder"),
        (("empty",), "the folder empty is empty", "give a run folder"),
        (("bad.jsonl",), "none of 2 structures can be read", "give a run folder"),
        (("salt.jsonl", "--benchmark", "oqmd"), "unknown benchmark 'oqmd'", "mp_20, perov_5"),
        (("salt.jsonl", "--reference", "c.jsonl"), "none of the formulas", "--task generate"),
        (("salt.jsonl", "--reference", "bad.jsonl"), "nothing in bad.jsonl", "prepared dataset"),
        (("salt.jsonl", "--reference", "no.jsonl"), "no file or folder", "give a run folder"),
        (("salt.jsonl", "--k", "0"), "k is 0", "1 or more"),
        (("salt.jsonl", "--out", "salt.jsonl"), "cannot write to salt.jsonl", "--out"),
        (("salt.jsonl", "--out", "salt.jsonl/x"), "cannot write to", "--out"),
    ],
)
def test_errors(run_cli, tmp_path, arguments, what, hint) -> None:
    (tmp_path / "empty").mkdir()
    write_lines(tmp_path / "bad.jsonl", ["{", '{"lattice": 3}'])
    write_lines(tmp_path / "salt.jsonl", [record(rock_salt())])
    write_lines(tmp_path / "c.jsonl", [record(diamond())])
    done = run_cli("evaluate", *arguments, "--no-fingerprints", "-j", "1")
    assert done.code == 2
    assert what in done.err
    assert hint in done.err
    assert not list(tmp_path.glob("*-evaluation"))


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["runs/NaCl"], "runs/NaCl-evaluation"),
        (["data.jsonl.gz"], "data-evaluation"),
        (["runs/*/*.cif"], "runs-evaluation"),
        (["runs/NaCl", "data.jsonl.gz"], "runs/evaluation"),
    ],
)
def test_results_go_beside_the_input(tmp_path, paths, folder) -> None:
    from crystalctl.evaluating import default_out

    (tmp_path / "runs" / "NaCl").mkdir(parents=True)
    (tmp_path / "data.jsonl.gz").write_text("")
    assert str(default_out(paths)) == folder
