"""``crystalctl score`` with small weights: numbers, reasons, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prototypes import perovskite, record, rock_salt, write_cif, write_lines
from strategies import symmetric_crystals, tiny_model

from crystalctl.checkpoint import describe, write_file
from crystalctl.cli.app import main
from crystalctl.likelihoods import FACTORS, score


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    model = tiny_model("sgequidiff", "generate", symmetric_crystals())
    header = {"kind": "weights", **describe(model, "sgequidiff")}
    write_file(path, header, dict(model.state_dict()))
    return str(path)


def test_every_structure_has_a_number_or_a_reason(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[Any] = [record(rock_salt(), id="salt"), record(perovskite(), id="p"), "broken"]
    path = write_lines(tmp_path / "s.jsonl", lines)
    out = tmp_path / "out"
    command = ["score", str(path), "--weights", weights, "--levels", "2", "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(out), "-j", "1"])
    assert stop.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    named = {row["id"]: row for row in rows}
    assert len(rows) == 3
    assert (out / "scores.csv").read_text().count("\n") == 4
    for name in ("salt", "p"):
        row = named[name]
        assert row["log_p"] == pytest.approx(sum(row[factor] for factor in FACTORS))
        assert row["coordinates"] == 0  # no position of these has freedom
        assert row["reason"] == ""
    assert named["p"]["group_symbol"] == "Pm-3m"
    assert [row["log_p"] is None for row in rows] == [False, False, True]
    assert rows[-1]["reason"]


def test_a_structure_that_cannot_be_says_why(weights: str, tmp_path: Path) -> None:
    """spglib would end the process over the first two."""
    bad = [record(rock_salt(), id=name) for name in ("nan", "huge", "none")]
    bad[0]["frac"][0][0] = float("nan")
    bad[1]["lattice"][:3] = [1e200] * 3
    bad[2] |= {"species": [], "frac": []}
    path = write_lines(tmp_path / "s.jsonl", [record(rock_salt(), id="good"), *bad])
    rows = {row["id"]: row for row in score(path, weights=weights, levels=2, jobs=1).rows}
    assert rows["good"]["log_p"] is not None
    assert all(rows[one["id"]]["log_p"] is None and rows[one["id"]]["reason"] for one in bad)


def test_a_structure_scores_alike_wherever_it_stands(weights: str, tmp_path: Path) -> None:
    write_cif(tmp_path / "a" / "x.cif", rock_salt())
    write_lines(tmp_path / "b.jsonl", [record(perovskite()), record(rock_salt())])
    one, many = (
        score(tmp_path / name, weights=weights, levels=2, jobs=1).rows for name in ("a", "b.jsonl")
    )
    salt = next(row for row in many if row["formula"] == "NaCl")
    assert salt["log_p"] == pytest.approx(one[0]["log_p"], abs=1e-3)


def test_wrong_requests_are_refused(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_lines(tmp_path / "s.jsonl", ["broken"]))
    for extra, what in ((["--levels", "0"], "--levels is 0"), ([], "none of the structures")):
        with pytest.raises(SystemExit) as stop:
            main(["score", path, "--weights", weights, *extra])
        assert stop.value.code == 2
        assert what in capsys.readouterr().err
