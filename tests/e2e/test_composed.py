"""Generation with two models and the shipped weights: one composes, the other draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystalctl import checkpoint, generate, sampling
from crystalctl.errors import InputError
from crystalctl.io.results import RunFolder
from crystalctl.io.structures import read_extxyz
from crystalctl.precedents import Precedent, Precedents
from crystalctl.retrieval import Memory

REQUEST = {"n": 12, "seed": 3, "steps": 8, "jobs": 1, "likeness": 0}
BOTH = "diffcsp_pp:sgequidiff"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return generate(**REQUEST, out=tmp_path_factory.mktemp("composed") / "run")


def sources(folder: Path) -> set[str]:
    return {info["source"] for _, info in read_extxyz(folder / "structures.extxyz")}


def compositions(result) -> list[str]:
    return sorted(row["formula"] for row in result.rows for _ in range(row["count"]))


def test_one_model_composes_and_the_other_draws(whole) -> None:
    assert sources(whole.folder) == {BOTH}
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    shipped = {row["name"]: row["sha256"] for row in checkpoint.available()}
    assert manifest["weights"] == ["diffcsp-pp-mp", "sgequidiff-mp"]
    assert list(manifest["request"]["weights_sha256"].values()) == [
        shipped[name] for name in manifest["weights"]
    ]
    alone = generate(**REQUEST | {"likeness": None}, model="sgequidiff")
    assert not whole.set_aside
    # The composer's compositions, as nothing is asked of them, each in another cell.
    others = sum(alone.set_aside.values())
    shared = [f for f in compositions(alone) if f in compositions(whole)]
    assert len(shared) == REQUEST["n"] - others
    assert {row["a"] for row in alone.rows}.isdisjoint({row["a"] for row in whole.rows})


def test_processes_and_a_resumed_run_change_nothing(whole, tmp_path, monkeypatch) -> None:
    def interrupted(run, index, tensors) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_tile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(**REQUEST, out=tmp_path / "run")
    again = generate(**REQUEST | {"jobs": 2}, out=tmp_path / "run", resume=True)
    same = "structures.extxyz"
    assert (again.folder / same).read_bytes() == (whole.folder / same).read_bytes()
    assert again.rows == whole.rows


def test_positions_without_elements_stay_with_the_composer(tmp_path) -> None:
    found = generate(n=2, spacegroup=225, wyckoff="4a,4b", steps=4, jobs=1, out=tmp_path / "run")
    assert sources(found.folder) == {"sgequidiff"}
    named = generate(n=2, model="diffcsp_pp", spacegroup=225, steps=4, out=tmp_path / "named")
    assert sources(named.folder) == {"diffcsp_pp"}


@pytest.mark.parametrize("model", [None, "sgequidiff"])
def test_new_compositions_like_known_compounds(model, monkeypatch) -> None:
    """None of them is among the known ones, and all have their like; any composition does not."""
    precedents = Precedents(Memory.load(checkpoint.shipped_templates()))
    begun: list[bool] = []

    def judged(**options) -> list[Precedent]:
        found = []
        draw = sampling.draw

        def noted(model, samples, **rest):
            found.extend(precedents.of(s.template) for s in samples)
            begun.extend(s.template.start is not None for s in samples)
            return draw(model, samples, **rest)

        with monkeypatch.context() as patch:
            patch.setattr(sampling, "draw", noted)
            rows = generate(n=24, seed=5, steps=2, jobs=1, model=model, **options).rows
        # What is most alike is shown first.
        votes = [row.get("votes", 0.0) for row in rows]
        assert votes == sorted(votes, reverse=True)
        assert any(votes) == (model is None or "likeness" in options)
        return found

    def share(found: list[Precedent]) -> float:
        return sum(one.likeness > 0.02 and not one.known for one in found) / len(found)

    chosen, any_ = judged(likeness=1.0), judged(likeness=0.0)
    assert share(chosen) > 0.75 > 0.6 > share(any_)
    # Only the weights that predict begin at prototypes.
    assert (sum(begun) > len(begun) / 2) if model is None else not any(begun)
    default = judged()
    assert (share(default) > 0.75) == (model is None)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"wyckoff": "4a,4b", "num_atoms": 7}, "have 2 atoms in the primitive cell, not 7"),
        ({"wyckoff": "4a,4b", "elements": "Na"}, "with one element the positions 4a 4b"),
        ({"num_atoms": 300}, "up to 48 atoms of the primitive cell are drawn"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_at_once(wish, said) -> None:
    with pytest.raises(InputError, match=said):
        generate(n=2, spacegroup=225, **wish)


def test_what_does_not_come_out_is_composed_anew(monkeypatch) -> None:
    """The third attempt at a sample has another template of the same group."""
    tried: list[list] = []
    draw = sampling.draw

    def noted(model, samples, **options):
        tried.append([s.template for s in samples])
        return draw(model, samples, **options)

    monkeypatch.setattr(sampling, "draw", noted)
    monkeypatch.setattr(sampling, "unwanted", lambda sample, crystal: len(tried) < 3)
    generate(n=3, spacegroup=[62, 139, 225], steps=4, jobs=1)
    first, second, third = tried
    assert first == second
    for old, new in zip(first, third, strict=True):
        assert old.group == new.group
        assert old != new
