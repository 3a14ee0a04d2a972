"""One process or many: what the loop needs of ``torch.distributed``, a no-op for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crystalctl.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process raised its flag; waits for the others."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself, or DistributedDataParallel around it."""
        if self.world == 1:
            return module
        # Buffers are constants here; to send them at every step would cost more than gradients.
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


def begun_again() -> bool:
    """Whether ``torchrun --max-restarts`` started these processes after some had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes ``torchrun`` started, joined for the length of the block.

    Yields them with this process's device: gloo on the CPU, nccl and one GPU each on CUDA.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(), device
        return
    if device.type != "cpu":
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= torch.cuda.device_count():
            raise InputError(
                f"process {number} has no GPU of its own: there are {torch.cuda.device_count()}",
                "start as many processes as there are GPUs, or use --device cpu",
            )
        device = torch.device(device.type, number)
        torch.cuda.set_device(device)
    _join("gloo" if device.type == "cpu" else "nccl")
    try:
        yield Processes(dist.get_rank(), world), device
    finally:
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join the process group.

    Processes that ``torchrun`` began again get the store of the dead ones, with the addresses of
    these in it, and connect to whom they read first. So each attempt has keys of its own; on one
    machine, for agents of several do not count attempts alike.
    """
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend)
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.distributed_c10d.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)
