"""Run folders: names, refusals, atomic tiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crystalctl.errors import InputError
from crystalctl.io.results import RunFolder, check_folder, default_folder, file_safe
from crystalctl.io.structures import write_atomic

REQUEST = {"formulas": ["NaCl"], "n": 4, "seed": 0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(
        tmp_path / "run", REQUEST, facts={"command": ["crystalctl"]}, resume=False
    )


def test_file_safe() -> None:
    assert file_safe("001_SrTiO3_P4/mbm") == "001_SrTiO3_P4-mbm"
    assert file_safe("../ä b") == "..---b"


def test_tiles(run: RunFolder) -> None:
    assert run.load_tile(0) is None
    run.save_tile(0, {"number": torch.arange(3)})
    found = run.load_tile(0)
    assert found is not None
    assert found["number"].tolist() == [0, 1, 2]
    path = run.partial / "tile-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert run.load_tile(0) is None
    assert [p.name for p in run.partial.iterdir()] == [path.name]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(*arguments) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_pieces_that_stop_coming_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, iter(["a", "b\n"]))
    assert path.read_text() == "ab\n"

    def pieces():
        yield "c"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomic(path, pieces())
    assert path.read_text() == "ab\n"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_finish(run: RunFolder) -> None:
    run.save_tile(0, {"number": torch.arange(3)})
    run.write_summary([{"rank": 1, "formula": "NaCl"}], {"n_samples": 4})
    run.finish({"n_samples": 4})
    again = RunFolder.open(run.path, REQUEST, facts={"command": ["crystalctl"]}, resume=True)
    assert again.finished
    assert again.read_summary()["structures"][0]["formula"] == "NaCl"
    assert not run.partial.exists()
    assert json.loads((run.path / "manifest.json").read_text())["counts"] == {"n_samples": 4}
    (run.path / "summary.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        again.read_summary()


def test_difference_is_named(run: RunFolder) -> None:
    other = {**REQUEST, "n": 9, "seed": 3}
    with pytest.raises(InputError, match=r"n was 4, now 9; seed was 0, now 3"):
        RunFolder.open(run.path, other, facts={}, resume=True)
    with pytest.raises(InputError, match="not empty"):
        RunFolder.open(run.path, REQUEST, facts={}, resume=False)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", resume=False)
    check_folder(tmp_path / "new" / "deep", resume=False)
    with pytest.raises(InputError, match="is a file"):
        check_folder(tmp_path / "file" / "run", resume=False)
    with pytest.raises(InputError, match="not a run"):
        check_folder(tmp_path, resume=True)
    assert not (tmp_path / "new").exists()


def test_default_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_folder("NaCl") == Path("runs/NaCl")
    for name, seed in (("NaCl", 0), ("NaCl-2", 0), ("NaCl-3", 1)):
        request = {**REQUEST, "seed": seed}
        RunFolder.open(Path("runs", name), request, facts={}, resume=False)
    assert default_folder("NaCl") == Path("runs/NaCl-4")
    assert default_folder("NaCl", REQUEST) == Path("runs/NaCl-2")
    assert default_folder("NaCl", {**REQUEST, "n": 5}) == Path("runs/NaCl-4")


def test_a_run_killed_while_writing_its_first_file_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".manifest.json.12.part").write_text('{"sta')
    check_folder(folder, resume=True)
    run = RunFolder.open(folder, REQUEST, facts={}, resume=False)
    run.finish({})
    assert {p.name for p in folder.iterdir()} == {"manifest.json"}


def test_the_manifest_is_there_before_anything_else(tmp_path: Path, monkeypatch) -> None:
    def killed(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crystalctl.io.results.write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.open(tmp_path / "run", REQUEST, facts={}, resume=False)
    assert not any((tmp_path / "run").iterdir())


def test_a_name_too_long_for_a_folder() -> None:
    with pytest.raises(InputError, match="too long"):
        check_folder(Path("a" * 300), resume=False)
