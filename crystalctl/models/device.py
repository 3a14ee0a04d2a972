"""The one place that picks devices and what runs differently on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from crystalctl.errors import InputError
from crystalctl.networks.choice import Choice
from crystalctl.networks.cspnet import CSPNet

Call = Callable[[Mapping[str, Tensor], Tensor], Mapping[str, Tensor]]
"""A network call of fixed shapes: (state, time steps) -> outputs."""
_WARM_UP_CALLS = 3


def edges_at_once(device: torch.device) -> int:
    """Ordered atom pairs one training call of a network takes: bound by cache or memory."""
    return 8_192 if device.type == "cpu" else 400_000


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
    device = torch.device("cuda", int(number or 0))
    torch.cuda.set_device(device)  # streams, events and graphs are those of the current one
    return device


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
    if time.device.type == "cpu":
        return call
    held = {name: tensor.clone() for name, tensor in state.items()}
    held_time = time.clone()
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
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
        what = (str(problem).strip().splitlines() or [""])[0][:200]
        warnings.warn(f"sampling without a CUDA graph ({what})", RuntimeWarning, stacklevel=2)
        return call

    def replay(current: Mapping[str, Tensor], now: Tensor) -> Mapping[str, Tensor]:
        for name, tensor in held.items():
            tensor.copy_(current[name])
        held_time.copy_(now)
        graph.replay()
        return result

    return replay
