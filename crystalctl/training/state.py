"""What a training run carries over a break, and how it hears that it should stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


@dataclass
class Counters:
    """Where a run stands; JSON-able, saved with every checkpoint."""

    step: int = 0
    window_steps: int = 0
    seconds: float = 0.0
    best: float = math.inf
    stale: int = 0
    lr_factor: float = 1.0
    epoch_loss: list[float] = field(default_factory=list)
    window_loss: list[float] = field(default_factory=list)


@contextmanager
def stop_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Within the block, Ctrl-C and SIGTERM call ``ask`` instead of ending the process."""

    def handle(number: int, frame: FrameType | None) -> None:
        ask()

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the caller handles signals
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
