"""Settings of a training run and the named recipes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from crystalctl.errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults are the ``fast`` recipe.

    ``clip_value`` and ``clip_norm`` 0 mean no clipping, ``ema`` 0 no averaging. ``schedule`` is
    "cosine" (to ``lr_min`` over all epochs), "plateau" (factor 0.6 after ``patience`` validations
    without a better loss) or "constant". ``chunk_edges`` bounds the ordered atom pairs of one
    network call, 0 = by device; ``compile`` and ``fused`` matter on GPUs only; ``max_atoms`` leaves
    larger cells out, 0 = none.
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_min: float = 1e-5
    weight_decay: float = 0.0
    schedule: str = "cosine"
    patience: int = 30
    warmup_steps: int = 500
    clip_value: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "auto"
    compile: bool = True
    fused: bool = True
    seed: int = 0
    chunk_edges: int = 0
    max_atoms: int = 0
    validate_every: int = 1
    validate_on: int = 2048
    save_minutes: float = 10.0


RECIPES: dict[str, dict[str, object]] = {
    "fast": {},
    # App. B.3 of arXiv:2309.04475; the other two CSPNet families train alike.
    "paper": {
        "epochs": 1000,
        "batch_size": 256,
        "optimizer": "adam",
        "lr": 1e-3,
        "lr_min": 1e-4,
        "schedule": "plateau",
        "patience": 30,
        "warmup_steps": 0,
        "clip_value": 0.5,
        "clip_norm": 0.0,
        "ema": 0.0,
        "precision": "fp32",
    },
}

CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("cosine", "plateau", "constant"),
    "precision": ("auto", "fp32", "bf16"),
}

_INF = math.inf
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, _INF),
    "batch_size": (1, _INF),
    "lr": (1e-12, 10),
    "lr_min": (0, 10),
    "weight_decay": (0, _INF),
    "patience": (0, _INF),
    "warmup_steps": (0, _INF),
    "clip_value": (0, _INF),
    "clip_norm": (0, _INF),
    "ema": (0, 0.999999),
    "seed": (0, 2**31),
    "chunk_edges": (0, _INF),
    "max_atoms": (0, _INF),
    "validate_every": (1, _INF),
    "validate_on": (1, _INF),
    "save_minutes": (0, _INF),
}
"""Smallest and largest value of each number; NaN is in no range."""


def check(config: TrainConfig) -> None:
    """Raise ``InputError`` on a value no run can have."""
    for key, allowed in CHOICES.items():
        value = getattr(config, key)
        if value not in allowed:
            raise InputError(f"train.{key} = {value!r}", f"use one of: {', '.join(allowed)}")
    for key, (low, high) in RANGES.items():
        if not low <= getattr(config, key) <= high:
            top = "" if high == _INF else f" and at most {high:g}"
            raise InputError(
                f"train.{key} = {getattr(config, key)}", f"it must be at least {low:g}{top}"
            )


def learning_rate(config: TrainConfig, step: int, total_steps: int, factor: float) -> float:
    """Learning rate of optimiser step ``step`` (from 0): warm-up, then the schedule.

    ``factor`` is what the plateau schedule has come down to. A short run warms up in a tenth of it.
    """
    if config.schedule == "cosine":
        done = step / max(1, total_steps)
        lr = config.lr_min + (config.lr - config.lr_min) * (1 + math.cos(math.pi * done)) / 2
    else:
        lr = max(config.lr_min, config.lr * factor)
    warmup = min(config.warmup_steps, total_steps // 10)
    if step < warmup:
        lr *= (step + 1) / warmup
    return lr


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "2h", "1h30m" or a plain number of seconds."""
    match = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?", text.strip())
    try:
        if not match or not text.strip():
            raise ValueError
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = 3600 * hours + 60 * minutes + seconds
        if total <= 0:
            raise ValueError
    except ValueError:
        raise InputError(f"cannot read the time {text!r}", "write 90s, 30m, 2h or 1h30m") from None
    return total
