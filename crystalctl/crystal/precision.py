"""Geometry in the precision of its numbers, also where a network beside it runs in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast off, as a context or a decorator.

    Autocast turns products of float32 into bf16, which keeps three digits of a coordinate: as much
    as the smallest noise. And a GPU has no factorisation or determinant of bf16.
    """
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        for kind in ("cpu", *([accelerator.type] if accelerator else [])):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
