"""Which of several ways to the same numbers is taken: the fastest that is right, found by trying.

A kernel that is faster on one device and for one size may be slower, or fail, on another; so each
kind of call is made in all ways once, checked against the plain one and timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Way = TypeVar("Way", bound=Hashable)
Run = Callable[[], Sequence[Tensor]]
"""Makes the call once; what comes out of it, gradients too."""
_REPEATS = 5


class Choice:
    """Remembers the way taken for each kind of call; ``seconds`` times a run."""

    def __init__(self, seconds: Callable[[Run], float] | None = None) -> None:
        self.seconds = seconds or device_seconds
        self.taken: dict[Hashable, Hashable | None] = {}

    def pick(
        self, kind: Hashable, plain: Run, ways: Mapping[Way, Run], *, tolerance: float
    ) -> Way | None:
        """The fastest way of ``ways`` that gives what ``plain`` does, None where that is ``plain``.

        Tried at the first call of each ``kind``. ``tolerance``: of the norm of the difference, as a
        part of the norm. A way that raises or is wrong is left out with a warning.
        """
        if kind not in self.taken:
            self.taken[kind] = self._fastest(plain, ways, tolerance)
        return self.taken[kind]  # type: ignore[return-value]

    def _fastest(self, plain: Run, ways: Mapping[Way, Run], tolerance: float) -> Way | None:
        expected = plain()
        best, least = None, self.seconds(plain)
        for way, run in ways.items():
            try:
                errors = [_error(*pair) for pair in zip(run(), expected, strict=True)]
                if not all(error <= tolerance for error in errors):  # NaN neither
                    raise ArithmeticError(f"results are off by {errors}")
                taken = self.seconds(run)
            except Exception as problem:  # whatever a compiler or driver says
                lines = str(problem).strip().splitlines() or [""]
                what = f"{type(problem).__name__}: {lines[0][:200]}"
                warnings.warn(f"not used: {way} ({what})", RuntimeWarning, stacklevel=4)
                continue
            if taken < least:
                best, least = way, taken
        return best


def _error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference as a part of the norm of ``expected``; NaN where anything is."""
    found, expected = found.double(), expected.double()
    size: float = torch.linalg.vector_norm(expected).item()
    difference: float = torch.linalg.vector_norm(found - expected).item()
    return difference / (size or 1.0)


def device_seconds(run: Run) -> float:
    """Seconds of a run on the clock of the GPU, the mean of several after one to warm up."""
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_REPEATS):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / (1000 * _REPEATS)
