"""The real command line with the shipped weights, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a ``crystalctl ...`` line as a user would, in ``tmp_path``; fails when it fails."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        program, *words = line.split()
        assert program == "crystalctl"
        return subprocess.run(
            [sys.executable, "-m", "crystalctl", *words],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )

    return run
