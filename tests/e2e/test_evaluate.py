"""From a formula to the judgement of its predictions, with the shipped weights."""

from __future__ import annotations

import json

from prototypes import record, rock_salt, write_lines


def test_predict_then_evaluate(shell, tmp_path) -> None:
    write_lines(tmp_path / "truth.jsonl", [record(rock_salt(), id="mp-22862")])
    shell("crystalctl predict --formula NaCl --n 6 --out runs/NaCl --no-relax -q")
    line = "crystalctl evaluate runs --reference truth.jsonl --cache cache --json"
    found = json.loads(shell(line).stdout)["runs"]["NaCl"]
    assert found["task"] == "predict"
    assert found["validity"]["n_structures"] == 6
    assert found["prediction"]["k=6"]["ungated"]["match_rate"] == 1
    assert {"top_1", "metre"} <= set(found["prediction"])
    assert (tmp_path / "runs-evaluation" / "facts.csv").is_file()
