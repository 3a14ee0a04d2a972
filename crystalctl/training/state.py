"""What a training run carries over a break, and how it hears that it should stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import Tensor, nn

from crystalctl.training.ema import Average


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


def pack(
    model: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser state as named tensors on the CPU."""
    tensors = {f"model.{k}": v.detach() for k, v in model.named_parameters()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.state().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
    return {k: v.cpu() for k, v in tensors.items()}


def unpack(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """The inverse of ``pack``, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    if average is not None:
        prefix = "average."
        average.load({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".")
            state.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


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
