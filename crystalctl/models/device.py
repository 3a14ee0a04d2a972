"""The one place that picks devices and what runs differently on them."""

from __future__ import annotations

import torch

from crystalctl.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises ``InputError`` for an unknown name or a GPU that is not there.
    """
    kind, _, number = name.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (number and not number.isdigit()):
        raise InputError(f"unknown device '{name}'", "use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise InputError("device cuda is not available here", "use --device cpu (or auto)")
    if number and int(number) >= count:
        raise InputError(f"no GPU number {number}: there are {count}", "use cuda:0 or cuda")
    return torch.device("cuda", int(number or 0))
