"""Predictions with two models and the shipped weights: shares, resume, the same structures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from crystalctl import checkpoint, predict
from crystalctl.io.results import RunFolder

REQUEST = {"formulas": ["NaCl"], "n": 10, "z": "1,2", "steps": 8, "jobs": 1}
SMALL_TILES = ("crystalctl.tiles.EDGE_BUDGET", {"cpu": 12})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*SMALL_TILES)
        return predict(**REQUEST, out=tmp_path_factory.mktemp("auto") / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def test_every_candidate_says_where_from(whole) -> None:
    from crystalctl.analysis.ranking import counts_of
    from crystalctl.io.structures import read_extxyz

    table = csv.DictReader((whole.folder / "summary.csv").read_text().splitlines())
    sources = [counts_of(row["source"]) for row in table]
    drawn = sum(sources[1:], sources[0])
    by_family = {"diffcsp_pp": 0, "equicsp": 0}
    for source, count in drawn.items():
        by_family[source.split(":")[0]] += count
    assert by_family["equicsp"] <= 1
    assert sum(by_family.values()) == 10 - sum(whole.set_aside.values())
    raw = [info["source"] for _, info in read_extxyz(whole.folder / "structures.extxyz")]
    assert [s.split(":")[0] for s in raw] == ["diffcsp_pp"] * 9 + ["equicsp"]
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    shipped = {row["name"]: row["sha256"] for row in checkpoint.available()}
    assert manifest["weights"] == ["diffcsp-pp-mp", "equicsp-mp20"]
    assert list(manifest["request"]["weights_sha256"].values()) == [
        shipped[name] for name in manifest["weights"]
    ]
    assert "<th" in (page := (whole.folder / "report.html").read_text())
    assert ">source<" in page.replace("<button>", "").replace("</button>", "")
    again = predict(**REQUEST, out=whole.folder, resume=True)
    assert [c.source for c in again.candidates] == [c.source for c in whole.candidates]


@pytest.mark.parametrize("stop_at", [9, 10], ids=["symmetric", "free"])
def test_interrupted_in_either_part(stop_at: int, whole, tmp_path: Path, monkeypatch) -> None:
    """Cut before the tile of sample ``stop_at`` is kept: what is there is not drawn again."""
    monkeypatch.setattr(*SMALL_TILES)
    save, kept = RunFolder.save_tile, []

    def save_some(run, index, tensors) -> None:
        if stop_at in tensors["number"]:
            raise KeyboardInterrupt
        kept.append(index)
        save(run, index, tensors)

    monkeypatch.setattr(RunFolder, "save_tile", save_some)
    with pytest.raises(KeyboardInterrupt):
        predict(**REQUEST, out=tmp_path / "run")
    first = len(kept)
    monkeypatch.setattr(RunFolder, "save_tile", lambda run, i, t: (kept.append(i), save(run, i, t)))
    predict(**REQUEST, out=tmp_path / "run", resume=True)
    assert len(set(kept)) == len(kept) > first > 0
    assert files(tmp_path / "run") == files(whole.folder)


def test_batch_size_and_the_word_auto_change_nothing(whole) -> None:
    """But the last digits: how single numbers are added up depends on the width of a batch."""
    other = predict(**REQUEST, model="auto", batch_size=1)
    assert [c.source for c in other.candidates] == [c.source for c in whole.candidates]
    for one, same in zip(whole.candidates, other.candidates, strict=True):
        assert same.members == one.members
        assert same.structure.lattice.abc == pytest.approx(one.structure.lattice.abc, rel=1e-4)


@pytest.mark.parametrize(
    "request_",
    [{"model": "diffcsp_pp"}, {"spacegroup": 225}, {"n": 9}],
    ids=["model", "spacegroup", "few"],
)
def test_one_model_where_that_is_asked_for(request_, monkeypatch) -> None:
    loaded, load = [], checkpoint.load_model

    def note(name, **options):
        loaded.append((name, options["task"]))
        return load(name, **options)

    monkeypatch.setattr(checkpoint, "load_model", note)
    result = predict(**REQUEST | {"steps": 1} | request_)
    assert {name for name, task in loaded if task == "predict"} == {"diffcsp-pp-mp"}
    assert not any("equicsp x" in row["source"] for row in result.rows)
