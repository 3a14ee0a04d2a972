"""The command line run in this process, with weights that need no training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from fake_weights import FakeModel, fake_checkpoint


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def without_relaxation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the extra: relaxing each run would take the tests' time."""
    monkeypatch.setattr("crystalctl.analysis.energy.default_calculator", lambda: None)


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path) -> FakeModel:
    """Fake weights instead of shipped ones, and an empty folder to work in."""
    model = FakeModel()
    monkeypatch.setitem(sys.modules, "crystalctl.checkpoint", fake_checkpoint(model))
    monkeypatch.chdir(tmp_path)
    return model


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Runs ``crystalctl ARGUMENTS`` and gives exit code and output."""
    from crystalctl.cli.app import main

    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        text = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), text.out, text.err)

    return run
