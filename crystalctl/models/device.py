"""The one place that picks devices and what runs differently on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from crystalctl.errors import InputError
from crystalctl.networks.choice import Choice
from crystalctl.networks.cspnet import CSPNet

Call = Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]
"""A network call of fixed shapes: (state, time steps) -> outputs."""
_WARM_UP_CALLS = 3
ROOMY = 40 * 2**30
"""Bytes of a GPU from which on memory does not bound a training call."""
_unrecordable: set[torch.device] = set()
"""Where a recording failed: torch before 2.12 may not leave the state it began in."""


def edges_at_once(device: torch.device) -> int:
    """Ordered atom pairs one training call of a network takes: bound by cache or memory.

    At the papers' size 400 000 keep some 25 GB (counted, not measured).
    """
    if device.type == "cpu":
        return 8_192
    there = ROOMY
    if device.type == "cuda" and torch.cuda.is_available():
        there = torch.cuda.get_device_properties(device).total_memory
    return int(400_000 * min(1.0, there / ROOMY))


def pick_device(name: str = "auto", *, elsewhere: bool = False) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``elsewhere``: a GPU that is asked for may be one of another machine. Raises ``InputError`` for
    an unknown name or a GPU that is not there.
    """
    kind, _, number = name.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (number and not number.isdigit()):
        raise InputError(f"unknown device '{name}'", "use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and count == 0):
        return torch.device("cpu")
    if elsewhere and kind == "cuda":
        return torch.device("cuda")
    if count == 0:
        raise InputError("device cuda is not available here", "use --device cpu (or auto)")
    if number and int(number) >= count:
        raise InputError(f"no GPU number {number}: there are {count}", "use cuda:0 or cuda")
    # Each process of torchrun has one; whoever has none is told so when they are joined.
    own = min(int(os.environ.get("LOCAL_RANK", "0")), count - 1)
    device = torch.device("cuda", int(number or own))
    if not _has_kernels(device):
        if kind == "auto":
            warnings.warn("torch has no kernels for the GPU here", RuntimeWarning, stacklevel=2)
            return torch.device("cpu")
        raise InputError("torch has no kernels for that GPU", "use --device cpu (or auto)")
    if not elsewhere:
        torch.cuda.set_device(device)  # streams, events and graphs are those of the current one
    return device


def _has_kernels(device: torch.device) -> bool:
    """Whether torch was built for the GPU: for its kind, or to be compiled for any later one."""
    have, names = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if torch.version.hip or not names:
        return True  # of others than CUDA, and where nothing is said, nothing is known
    for name in names:  # sm_90, sm_90a, compute_120
        form, _, version = name.partition("_")
        built = divmod(int(version.rstrip("af")), 10)
        if built <= have and (form == "compute" or built[0] == have[0]):
            return True
    return False


def wants_bf16(device: torch.device) -> bool:
    """Whether ``--precision auto`` trains in bf16: on a GPU that has units for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu"


def compile_dense(
    model: torch.nn.Module, device: torch.device, *, backend: str = "inductor"
) -> None:
    """On a GPU, fuse the dense parts of the model with ``torch.compile``.

    A CPU keeps them as they are: there may be no compiler. Batch sizes vary, so shapes are dynamic
    from the start. Another ``backend`` compiles anywhere, for tests.
    """
    if device.type != "cpu" or backend != "inductor":
        # Where there is no C compiler: a warning, and the layers as they are.
        torch._dynamo.config.suppress_errors = backend == "inductor"
        model.compile(dynamic=True, backend=backend)


def fuse_messages(model: torch.nn.Module, device: torch.device) -> None:
    """On a GPU with triton, let every CSPNet of the model try the fused pair messages."""
    if device.type != "cuda" or find_spec("triton") is None:
        return
    choice = Choice()
    for network in model.modules():
        if isinstance(network, CSPNet):
            network.fuse(choice)


def replayed(call: Call, state: Mapping[str, Tensor], time: Tensor) -> Call:
    """The same function of the same shapes, as fast as the device allows.

    On a GPU one call is recorded as a CUDA graph and replayed: a sampler makes hundreds of calls of
    one shape, and for small crystals launching the kernels takes longer than running them. What it
    returns is overwritten by the next call. On the CPU it is ``call`` itself.
    """
    if time.device.type == "cpu" or time.device in _unrecordable:
        return call
    held = {name: tensor.clone() for name, tensor in state.items()}
    held_time = time.clone()
    here, side = torch.cuda.current_stream(), _side_stream(time.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP_CALLS):
            call(held, held_time)
    here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # On the stream that is warm: libraries make what they need for each stream at first use.
        with torch.cuda.graph(graph, stream=side):
            result = call(held, held_time)
    except RuntimeError as problem:  # whatever a library does that no graph can record
        torch.cuda.set_stream(here)
        _unrecordable.add(time.device)
        for cause in (problem, problem.__context__):
            if isinstance(cause, torch.OutOfMemoryError):  # the caller makes smaller batches
                raise cause from None
        what = (str(problem).strip().splitlines() or [""])[0][:200]
        warnings.warn(f"sampling without a CUDA graph ({what})", RuntimeWarning, stacklevel=2)
        return call

    def replay(current: Mapping[str, Tensor], now: Tensor) -> Mapping[str, Tensor]:
        for name, tensor in held.items():
            tensor.copy_(current[name])
        held_time.copy_(now)
        graph.replay()
        return result

    replay.call = call  # type: ignore[attr-defined]  # owns what the graph reads by address
    return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for each stream."""
    return torch.cuda.Stream()
