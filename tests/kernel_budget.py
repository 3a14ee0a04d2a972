"""Compile the fused kernels for an H100, which takes no GPU, and print what they need of it.

``python tests/kernel_budget.py``: shared memory of a program, registers and spilled bytes of a
thread, as triton and its assembler report them. The messages of a crystal and their gradients are
computed as usual, but kernels are only compiled where they would be launched, so numbers are not
right. Fails where a program has too much.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from crystalctl.crystal.batch import Layout
from crystalctl.networks.cspnet import CSPNet
from crystalctl.networks.fused import TILES, Tile, Work, fused_messages

SHARED = 232_448
"""Bytes of shared memory a program may have on compute capability 9.0."""


class H100:
    """What triton asks of a GPU before it compiles for it."""

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Compute capability, threads of a warp."""
        return GPUTarget("cuda", 90, 32)


@contextmanager
def compiled_only() -> Iterator[dict[str, Any]]:
    """Kernels by name, compiled instead of launched."""
    made: dict[str, Any] = {}
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made[self.__name__] = launch(self, *args, grid=grid, warmup=True, **options)

    driver.set_active(H100())
    with patch.object(JITFunction, "run", compile_only):
        yield made


def run(hidden: int, dtype: torch.dtype, tile: Tile) -> None:
    """Messages of a crystal with an addend, and all their gradients."""
    coarse = dtype == torch.bfloat16
    net, layout = CSPNet(hidden=hidden, n_layers=1), Layout(torch.tensor([5]))
    pairs = net.pairs(torch.rand(5, 3), layout, coarse=coarse).incidence
    second = net.layers[0].edge_mlp[2]
    ends, extra = (torch.randn(n, hidden).requires_grad_() for n in (pairs.n_rows, 25))
    work = Work(ends, extra, second.weight, second.bias, pairs, layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
        fused_messages(work, tile).sum().backward()


def registers(ptx: str) -> str:
    """What the assembler says of a kernel."""
    assembler = Path(nvidia.__file__).parent / "bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", "--gpu-name=sm_90a", source, "-o", Path(folder, "out")]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    counts = [re.search(rf"(\d+) {what}", said) for what in ("registers", "bytes spill stores")]
    return ", registers, spilled bytes: " + ", ".join(m[1] if m else "?" for m in counts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="the first tile of bf16, no registers")
    options = parser.parse_args()
    too_much = False
    for dtype, tiles in list(TILES.items())[: 1 if options.quick else None]:
        for tile in tiles[: 1 if options.quick else None]:
            print(f"{str(dtype)[6:]} {tile}")
            with compiled_only() as made:
                run(options.hidden, dtype, tile)
            for name, kernel in made.items():
                shared, ptx = kernel.metadata.shared, kernel.asm["ptx"]
                needs = f"{shared / 1024:6.0f} KB shared, {ptx.count('wgmma.mma_async')} wgmma"
                print(f"  {name:15s}{needs}" + ("" if options.quick else registers(ptx)))
                too_much |= shared > SHARED
    if too_much:
        raise SystemExit(f"a program may have {SHARED} bytes of shared memory")


if __name__ == "__main__":
    main()
