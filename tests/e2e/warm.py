"""Runs command lines in forks of a process that has imported already what they import.

Imports are half of the time of a short command. Reads a line of JSON for each command: ``words``,
``folder`` to run in, ``out`` and ``err`` files for its output; answers with its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from typing import Any

from crystalctl.cli.app import main

HEAVY = (
    "torch",
    "ase.io",
    "chgnet.model.model",
    "crystalctl.api",
    "crystalctl.evaluating",
    "crystalctl.relaxing",
    "pymatgen.io.cif",
    "scipy.optimize",
)
LONGEST_S = 300
"""A command that takes longer is killed."""


def run(words: list[str], folder: str, out: str, err: str) -> None:
    """The command, in this process, to its end."""
    os.chdir(folder)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["crystalctl", *words]
    main()


def code_of(request: dict[str, Any]) -> int:
    """The exit code of a command in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(LONGEST_S)
    code: Any = 0
    try:
        run(**request)
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        print(code_of(json.loads(line)), flush=True)
