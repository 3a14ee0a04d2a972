"""The errors a user may see: what went wrong and what to do next, each with an exit code."""

from __future__ import annotations


class CrystalctlError(Exception):
    """An error with a message for the user: ``what`` happened and, where known, a ``hint``."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class InputError(CrystalctlError):
    """The request itself cannot be carried out (exit code 2)."""

    exit_code = 2


class DataError(InputError):
    """A dataset or structure file that cannot be used."""


class WeightsError(InputError):
    """A weights file that is missing, damaged, foreign or of the wrong kind."""


class TrainingError(CrystalctlError):
    """Training had to stop (exit code 1), for instance on a loss that is not finite."""
