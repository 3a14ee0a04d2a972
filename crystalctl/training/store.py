"""The files of a training run: the state that resumes it, and the weights that sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.checkpoint import describe, read_file, write_file
from crystalctl.data.loading import Loader
from crystalctl.errors import InputError
from crystalctl.training.ema import Average
from crystalctl.training.settings import TrainConfig
from crystalctl.training.state import Counters

STATE, BEST, LATEST = "last.safetensors", "best.safetensors", "weights.safetensors"
FIXED = ("batch_size", "optimizer", "seed", "ema")
"""Settings a resumed run cannot change: its steps would be other steps, its state another shape."""


class Store:
    """Reads and writes ``out``; with ``writes`` False (all processes but the first) only reads."""

    def __init__(
        self,
        out: Path,
        family: str,
        config: TrainConfig,
        model: nn.Module,
        average: Average | None,
        optimizer: torch.optim.Optimizer,
        *,
        loader: Loader,
        writes: bool,
    ) -> None:
        self.out, self.writes = out, writes
        self.batching = {
            "size": loader.batch_size,
            "in_epoch": loader.n_batches,
            "processes": loader.world,
        }
        self.config = config
        self.model, self.average, self.optimizer = model, average, optimizer
        self.identity = {**describe(model, family), "n_crystals": loader.layout.n_crystals}

    def healthy(self) -> bool:
        """Whether all weights are finite; a finite loss may have a gradient that is not."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    def write_weights(self, name: str, count: Counters, facts: Mapping[str, Any]) -> None:
        """The averaged weights, if finite, as a file that ``load_model`` reads."""
        if not self.writes or not self.healthy():
            return
        state = dict(self.model.state_dict())  # with the tables that take time to compute
        if self.average:
            state |= self.average.state()
        header = {
            "kind": "weights",
            **self.identity,
            "training": {**asdict(self.config), **facts, "seconds": round(count.seconds)},
        }
        write_file(self.out / name, header, {k: v.detach().cpu() for k, v in state.items()})

    def save(self, count: Counters) -> None:
        """Everything a resumed run needs, and the current averaged weights."""
        if not self.writes:
            return
        header = {
            "kind": "training state",
            **self.identity,
            "training": {**asdict(self.config), "batching": self.batching},
            "counters": asdict(count),
        }
        write_file(self.out / STATE, header, _pack(self.model, self.average, self.optimizer))
        self.write_weights(LATEST, count, {"step": count.step})

    def resume(self) -> Counters:
        """Load the state; raises ``InputError`` when it is of another run."""
        header, tensors = read_file(self.out / STATE)
        settings = header.get("training", {})
        # A state written before a setting existed has nothing to compare it with.
        header["config"] = {**self.identity["config"], **header.get("config", {})}
        different = [key for key, value in self.identity.items() if header.get(key) != value]
        different += [
            f"train.{key}" for key in FIXED if settings.get(key) != getattr(self.config, key)
        ]
        if header["kind"] != "training state" or different:
            raise InputError(
                f"the run in {self.out} has another {', '.join(different) or 'kind of file'}",
                "resume with the same --data, --model and settings, or choose another --out",
            )
        self._check_batching(settings.get("batching", self.batching))
        _unpack(tensors, self.model, self.average, self.optimizer)
        return Counters(**header["counters"])

    def _check_batching(self, before: Mapping[str, int]) -> None:
        """With another number of processes a small last batch may be cut otherwise."""
        if all(before[key] == self.batching[key] for key in ("size", "in_epoch")):
            return
        raise InputError(
            f"the run in {self.out} has {before['in_epoch']} batches an epoch "
            f"(processes: {before['processes']}), now it would have "
            f"{self.batching['in_epoch']} (processes: {self.batching['processes']})",
            f"resume with {before['processes']} again, or choose another --out",
        )


def _pack(
    model: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights, averaged weights and optimiser state as named tensors on the CPU."""
    tensors = {f"model.{k}": v.detach() for k, v in model.named_parameters()}
    if average is not None:
        tensors |= {f"average.{k}": v for k, v in average.state().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items()}
    return {k: v.cpu() for k, v in tensors.items()}


def _unpack(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """The inverse of ``_pack``, in place."""
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
