"""The training loop: any family, one process or torchrun, exact resume.

Every random number comes from the seed and the step, so nothing but tensors and counters has to be
saved. Only torch, numpy and safetensors are needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Crystals, sent
from crystalctl.data.loading import Batch, Loader
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.errors import InputError, TrainingError
from crystalctl.models.contract import CrystalModel, LossTerms, total_loss
from crystalctl.models.device import compile_dense, edges_at_once, fuse_messages, wants_bf16
from crystalctl.training.ema import Average
from crystalctl.training.logbook import Logbook
from crystalctl.training.parallel import Processes
from crystalctl.training.settings import TrainConfig, learning_rate
from crystalctl.training.state import Counters, stop_signals
from crystalctl.training.store import BEST, STATE, Store
from crystalctl.training.validation import validation_loss

LOG_EVERY = 20


class _Step(nn.Module):
    """Loss as a forward call, which is what DistributedDataParallel hooks into."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, crystals: Crystals, noise: NoiseSource, rows: Mapping[str, int]
    ) -> tuple[Tensor, LossTerms]:
        terms: LossTerms = self.model.loss(crystals, noise)
        return total_loss(terms, rows), terms


class Trainer:
    """Model, optimiser and counters; ``run`` trains until done, told to stop or out of time."""

    def __init__(
        self,
        model: CrystalModel,
        family: str,
        config: TrainConfig,
        *,
        train: Crystals,
        val: Crystals | None,
        out: Path,
        device: torch.device,
        processes: Processes,
        logbook: Logbook,
    ) -> None:
        assert isinstance(model, nn.Module)
        if len(train) < processes.world:
            raise InputError(
                f"{len(train)} training structures are too few for {processes.world} processes"
            )
        self.model, self.config = model.to(device), config
        self.device, self.processes, self.logbook = device, processes, logbook
        self.loader, self.val_loader = _loaders(train, val, config, device, processes)
        _speed_up(self.model, config, device)
        self.stepper = processes.wrap(_Step(self.model))
        self.optimizer = _optimizer(self.model, config, device)
        self.average = Average(self.model, config.ema) if config.ema else None
        bf16 = config.precision == "bf16" or (config.precision == "auto" and wants_bf16(device))
        self.store = Store(
            out,
            family,
            config,
            self.model,
            self.average,
            self.optimizer,
            loader=self.loader,
            writes=processes.rank == 0,
        )
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self.parts = list(model.loss_rows(1, 1))
        self.count = Counters(
            epoch_loss=[0.0] * len(self.parts), window_loss=[0.0] * len(self.parts)
        )
        self.stop_asked = False

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.loader.n_batches

    def run(self, max_seconds: float | None = None) -> str:
        """Train; returns "finished", "time" or "interrupted". A checkpoint is written in each case.

        Raises ``TrainingError`` when the loss is not finite; the checkpoint before it stays.
        """
        start = saved = time.monotonic()
        before = self.count.seconds
        deadline = math.inf if max_seconds is None else start + max_seconds
        outcome = "finished"
        sums = self._restore_sums()
        with stop_signals(partial(setattr, self, "stop_asked", True)):
            for epoch, batch in self._batches():
                sums += self._train_step(batch)
                self.count.step += 1
                self.count.window_steps += 1
                now = time.monotonic()
                self.count.seconds = before + now - start
                done_epoch = self.count.step % self.loader.n_batches == 0
                if self.count.step % LOG_EVERY == 0 or done_epoch:
                    self._log_window(sums)
                if done_epoch:
                    self._end_epoch(sums, epoch)
                stop = self.stop_asked or now > deadline
                if self.count.step % (1 if self.device.type == "cpu" else LOG_EVERY) == 0:
                    stop = self.processes.any(stop, self.device)
                    if stop and self.count.step < self.total_steps:
                        outcome = "interrupted" if self.stop_asked else "time"
                        break
                if now - saved > 60 * self.config.save_minutes:
                    self.save(sums)
                    saved = now
        if not self.save(sums):
            raise self._not_finite("the weights are")
        return outcome

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """(epoch, batch) from the current step to the end."""
        first, skip = divmod(self.count.step, self.loader.n_batches)
        for epoch in range(first, self.config.epochs):
            for batch in self.loader.epoch(epoch, skip if epoch == first else 0):
                yield epoch, batch

    def _train_step(self, batch: Batch) -> Tensor:
        """One optimiser step; loss parts of the whole batch, (2, P) float64."""
        rows = self.model.loss_rows(batch.n_crystals, batch.n_atoms)
        lr = learning_rate(self.config, self.count.step, self.total_steps, self.count.lr_factor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = torch.zeros(len(self.parts), dtype=torch.float64, device=self.device)
        for number, chunk in enumerate(batch.chunks, start=1):
            stream = self.count.step * (1 << 24) + chunk.place
            noise = NoiseSource(self.config.seed, sent(stream, self.device))
            last = number == len(batch.chunks) or self.processes.world == 1
            with nullcontext() if last else self.stepper.no_sync():  # type: ignore[operator]
                with self.autocast:
                    loss, terms = self.stepper(chunk.crystals, noise, rows)
                # DistributedDataParallel averages gradients; the loss is a share of a sum.
                (loss * self.processes.world).backward()
            parts += torch.stack([terms[p].total.detach().double() / rows[p] for p in self.parts])
        _clip_gradients(self.model, self.config)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.count.step)
        return self.processes.sum(parts).expand(2, -1)

    def _log_window(self, sums: Tensor) -> None:
        """Log the mean loss since the last log; stop the run on a loss that is not finite."""
        step, per_epoch = self.count.step, self.loader.n_batches
        values = (sums[0] / self.count.window_steps).tolist()
        sums[0], self.count.window_steps = 0, 0
        if not all(map(math.isfinite, values)):
            raise self._not_finite(f"the loss {dict(zip(self.parts, values, strict=True))} is")
        rate = step * self.loader.layout.n_crystals / per_epoch / max(self.count.seconds, 1e-9)
        self.logbook.write(
            {
                "step": step,
                "epoch": round(step / per_epoch, 4),
                "loss": self._weighted(values),
                **{f"loss_{name}": v for name, v in zip(self.parts, values, strict=True)},
                "lr": self.optimizer.param_groups[0]["lr"],
                "structures_per_s": round(rate, 2),
                "seconds": round(self.count.seconds, 2),
                "eta_s": round(self.count.seconds / step * (self.total_steps - step)),
            }
        )

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} not finite at step {self.count.step}",
            f"the last good checkpoint is {self.store.out / STATE}; try a smaller --lr",
        )

    def _weighted(self, values: list[float]) -> float:
        weights = [getattr(self.model.config, f"weight_{name}") for name in self.parts]
        return float(sum(w * v for w, v in zip(weights, values, strict=True)))

    def _end_epoch(self, sums: Tensor, epoch: int) -> None:
        """Validate when due, keep the best weights, steer the plateau schedule."""
        means = (sums[1] / self.loader.n_batches).tolist()
        sums[1] = 0
        record: dict[str, Any] = {
            "step": self.count.step,
            "epoch": epoch + 1,
            "train_loss": self._weighted(means),
        }
        last = self.count.step == self.total_steps
        if (epoch + 1) % self.config.validate_every == 0 or last:
            value = record["train_loss"]
            if self.val_loader is not None:
                parts = validation_loss(
                    self.model,
                    self.val_loader,
                    average=self.average,
                    autocast=self.autocast,
                    processes=self.processes,
                )
                value = record["val_loss"] = self._weighted(parts)
                names = zip(self.parts, parts, strict=True)
                record |= {f"val_{name}": part for name, part in names}
            if value < self.count.best:
                self.count.best, self.count.stale = value, 0
                self.store.write_weights(BEST, self.count, record)
            else:
                self.count.stale += 1
                if self.config.schedule == "plateau" and self.count.stale > self.config.patience:
                    self.count.lr_factor *= 0.6
                    self.count.stale = 0
        self.logbook.write(record)

    def save(self, sums: Tensor) -> bool:
        """Write a checkpoint, unless a bad step just happened: then the last one stays."""
        window, epoch = sums.tolist()
        if not (all(map(math.isfinite, window)) and self.store.healthy()):
            return False
        self.count.window_loss, self.count.epoch_loss = window, epoch
        self.store.save(self.count)
        return True

    def resume(self) -> None:
        """Continue from the state on disk; raises ``InputError`` when it is of another run."""
        self.count = self.store.resume()
        self.logbook.truncate(self.count.step)

    def _restore_sums(self) -> Tensor:
        """(2, P) float64: loss parts since the last log, and since the epoch began."""
        values = [self.count.window_loss, self.count.epoch_loss]
        return torch.tensor(values, dtype=torch.float64, device=self.device)


def _loaders(
    train: Crystals,
    val: Crystals | None,
    config: TrainConfig,
    device: torch.device,
    processes: Processes,
) -> tuple[Loader, Loader | None]:
    """Batches to train on, and one batch of validation crystals, this process's share of each."""
    share = partial(
        Loader,
        chunk_cost=config.chunk_edges or edges_at_once(device),
        device=device,
        rank=processes.rank,
        world=processes.world,
    )
    loader = share(train, batch_size=config.batch_size, seed=config.seed)
    if val is None:
        return loader, None
    return loader, share(val, batch_size=min(len(val), config.validate_on), seed=0)


def _speed_up(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """What is compiled on a GPU."""
    if config.compile:
        compile_dense(model, device)
    if config.fused:
        fuse_messages(model, device)


def _optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type != "cpu" or None,
    )


def _clip_gradients(model: nn.Module, config: TrainConfig) -> None:
    if config.clip_value:
        nn.utils.clip_grad_value_(model.parameters(), config.clip_value)
    if config.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
