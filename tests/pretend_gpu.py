"""A GPU that is not there: tensors that say they are on one, while the CPU does their arithmetic.

What a real one refuses is an error here: operands on two devices. What makes the host wait for it
(reading a number, a shape that depends on data, sending without ``non_blocking``) is listed in
``reads``, what is sent to it in ``sent``; both are errors while ``strict``, and in a recorded
graph. Graphs are recorded and replayed operation by operation into the same memory, as CUDA graphs
are; factorisations, whose libraries may refuse to be recorded, are errors there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"
aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    # Their CUDA kernels look at the result before they return.
    aten._linalg_eigh.default,
    aten.linalg_matrix_exp.default,
}
NOT_RECORDED = {
    aten._linalg_det.default,
    aten._linalg_solve_ex.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_cholesky_ex.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
COPIES = {aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default}


class OnGpu(torch.Tensor):
    """``elem`` holds the numbers."""

    elem: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _the.run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """As numbers on the host; the built-in one knows no subclasses."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnGpu({self.elem!r})"


class Graph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Run what was recorded again, into the memory of the first time."""
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(_leaves((out,)), _leaves((again,)), strict=True):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class PretendGpu(TorchDispatchMode):
    """The device while it is entered; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device(NAME, 0)
        self.reads: list[str] = []
        self.sent: list[str] = []
        self.strict = False
        self.graph: Graph | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        leaves = list(_leaves((*args, *kwargs.values())))
        held = [x for x in leaves if isinstance(x, OnGpu)]
        places = [x for x in leaves if isinstance(x, torch.device)]
        here = any(place.type == NAME for place in places)
        plain = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu)]
        if not held and not here:
            return func(*args, **kwargs)
        back = func is aten.copy_.default and not isinstance(args[0], OnGpu)
        back = back or (bool(places) and not here)
        if back or _waits(func, args, kwargs):
            self._note(self.reads, f"{func} makes the host wait")
        if self.graph is not None and func in NOT_RECORDED:
            raise RuntimeError(f"{func} in a graph")
        if func in COPIES and plain and not back:
            if not (
                kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,))
            ):
                self._note(
                    self.reads, f"{func} makes the host wait: it sends {tuple(plain[0].shape)}"
                )
            self._note(self.sent, f"{func} sends {tuple(plain[0].shape)} to the device")
        elif held and func not in COPIES and any(x.dim() for x in plain):
            shapes = [tuple(x.shape) for x in plain if x.dim()]
            raise RuntimeError(f"{func}: operands on two devices, on the CPU: {shapes}")
        known = {id(x.elem): x for x in held}
        args = _mapped(_bare, args)
        kwargs = {name: _mapped(_bare, value) for name, value in kwargs.items()}
        out = func(*args, **kwargs)
        if self.graph is not None:
            self.graph.operations.append((func, args, kwargs, out))
        if back:
            return out
        return _mapped(lambda x: _wrapped(x, known), out)

    def _note(self, what: list[str], text: str) -> None:
        if self.strict or self.graph is not None:
            raise RuntimeError(text)
        what.append(text)

    @contextmanager
    def recording(self, graph: Graph, stream: Any) -> Iterator[None]:
        """Stands in for ``torch.cuda.graph``."""
        self.graph = graph
        try:
            yield
        finally:
            self.graph = None


def _leaves(items: Iterable[Any]) -> Iterator[Any]:
    """What nested lists and tuples hold; operations know no other containers."""
    for x in items:
        if isinstance(x, (list, tuple)):
            yield from _leaves(x)
        else:
            yield x


def _mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """``x`` or, if it is a list or tuple, a like one of what its items become."""
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(change, item) for item in x)
    return change(x)


def _bare(x: Any) -> Any:
    if isinstance(x, OnGpu):
        return x.elem
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def _wrapped(x: Any, known: dict[int, OnGpu]) -> Any:
    """``x`` on the device: what it is already there, where an operation changed it in place."""
    if not isinstance(x, torch.Tensor):
        return x
    return known[id(x)] if id(x) in known else OnGpu(x)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func in INDEXED:
        return any(x is not None and x.dtype == torch.bool for x in args[1])
    return func in WAITS


_the: PretendGpu


class _Backend(_DummyBackendModule):
    """What ``torch.autocast`` asks of a device; it casts nothing there."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """bf16, as on a GPU."""
        return [torch.bfloat16]


# While tests are collected: the engine of autograd counts devices once, at the first backward.
if torch._C._get_privateuse1_backend_name() != NAME:
    _setup_privateuseone_for_python_backend(NAME, _Backend())


class _Stream:
    def wait_stream(self, other: Any) -> None:
        """Operations run one after the other anyway."""


@contextmanager
def pretend_gpu(monkeypatch: Any) -> Iterator[PretendGpu]:
    """The device, with all that ``models/device.py`` asks of ``torch.cuda``."""
    global _the
    _the = PretendGpu()

    @contextmanager
    def on_stream(stream: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", _the.recording)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _the:
            yield _the
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
