"""The real command line with the shipped weights, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WARM = Path(__file__).with_name("warm.py")


def words_of(line: str) -> list[str]:
    program, *words = line.split()
    assert program == "crystalctl"
    return words


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a ``crystalctl ...`` line as a user would, in ``tmp_path``; fails when it fails."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "crystalctl", *words_of(line)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )

    return run


@pytest.fixture
def warm_shell(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """As ``shell``, for many commands: imports are made once. Gives what a command prints."""
    out, err = tmp_path / "warm.out", tmp_path / "warm.err"
    with subprocess.Popen(
        [sys.executable, str(WARM)],
        env={**os.environ, "COLUMNS": "160"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(line: str) -> str:
            request = {"words": words_of(line), "folder": str(tmp_path), "out": str(out)}
            process.stdin.write(json.dumps({**request, "err": str(err)}) + "\n")
            process.stdin.flush()
            code = process.stdout.readline().strip()
            assert code == "0", (line, code, err.read_text()[-2000:] if err.exists() else "")
            return out.read_text()

        yield run
        process.stdin.close()
