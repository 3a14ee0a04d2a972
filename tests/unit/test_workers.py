"""Worker processes: light, and gone when their parent is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crystalctl.errors import CrystalctlError
from crystalctl.symmetry import workers

PARENT = """
import os, time
from crystalctl.symmetry.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def test_a_worker_starts_without_torch():
    with workers.worker_pool(1) as pool:
        loaded = pool.submit(eval, "sorted(__import__('sys').modules)").result()
    assert "crystalctl.symmetry.workers" in loaded
    assert "torch" not in loaded


def test_a_worker_that_dies_is_an_error_with_advice():
    with pytest.raises(CrystalctlError, match="ended unexpectedly"), workers.worker_pool(1) as pool:
        pool.submit(os._exit, 3).result()


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(process: int) -> bool:
    """Whether the process does anything still; a zombie does not."""
    try:
        os.kill(process, 0)
        stat = Path(f"/proc/{process}/stat")
        return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
