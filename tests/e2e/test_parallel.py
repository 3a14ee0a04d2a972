"""Several processes draw what one draws, to the bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crystalctl import parallel, predict
from crystalctl.errors import CrystalctlError
from crystalctl.io.results import RunFolder

REQUEST = {
    "formulas": ["SrTiO3", "NaCl"],
    "n": 10,
    "steps": 8,
    "report": False,
}


@pytest.fixture(autouse=True, scope="module")
def small_work_is_worth_it() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "WORTH", 0)
        patch.setattr("crystalctl.tiles.EDGE_BUDGET", {"cpu": 60})
        yield


@pytest.fixture(scope="module")
def alone() -> list:
    """What one process draws."""
    return cells(predict(**REQUEST, jobs=1))


def cells(result) -> list:
    assert result.n_samples == 20
    return [(c.rank, c.structure.lattice.matrix.tolist()) for c in result.candidates]


def test_processes_change_nothing(alone) -> None:
    """Of either of the two models that share a prediction."""
    reports: list[tuple[int, int]] = []

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "sampling":
            reports.append((done, total))

    shared = predict(**REQUEST, jobs=2, on_progress=on_progress)
    assert cells(shared) == alone
    assert any("equicsp x1" in row["source"] for row in shared.rows)
    assert reports == sorted(reports)
    assert reports[-1] == (20_000, 20_000)


def test_the_cpu_has_one_thread_while_it_samples() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with parallel.one_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with parallel.one_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_killed_process_costs_the_run_but_no_tile(alone, tmp_path: Path, monkeypatch) -> None:
    save = RunFolder.save_tile

    def save_and_kill(run, index, tensors) -> None:
        save(run, index, tensors)
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(RunFolder, "save_tile", save_and_kill)
    with pytest.raises(CrystalctlError, match="ended unexpectedly"):
        predict(**REQUEST, jobs=2, out=tmp_path / "run")
    monkeypatch.setattr(RunFolder, "save_tile", save)
    resumed = predict(**REQUEST, jobs=1, out=tmp_path / "run", resume=True)
    assert cells(resumed) == alone


def children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
