"""Compile the fused kernels for an H100, which takes no GPU, and print what they need of it.

``python tests/kernel_budget.py``: shared memory of a program, registers and spilled bytes of a
thread, as triton and its assembler report them. Fails where a program has too much.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crystalctl.networks import kernels
from crystalctl.networks.fourier import COARSE, WIDTH
from crystalctl.networks.fused import TILES, Tile, _sizes

SHARED = 232_448
"""Bytes of shared memory a program may have on compute capability 9.0."""
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
ROWS = ("rows", "receiver", "pairs", "bound", "begin", "degree")
EXACT = ("weights", "bias", "sums", "carry", "bias_grad")


def compiled(kernel: Any, numbers: dict[str, Any], dtype: torch.dtype, tile: Tile) -> Any:
    """A kernel for the H100 with these constants; the rest are pointers, and ``n_pairs``."""
    signature, own = {}, {}
    for name in kernel.arg_names:
        if name in numbers:
            signature[name], own[name] = "constexpr", numbers[name]
        elif name == "n_pairs":
            signature[name] = "i32"
        else:
            exact = "fp32" if name in EXACT or kernel is kernels.mean_kernel else NAMES[dtype]
            signature[name] = "*i64" if name in ROWS else f"*{exact}"
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=own,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    tiled = "WIDE" in kernel.arg_names
    options = {"num_warps": tile.warps, "num_stages": tile.stages} if tiled else {}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def registers(ptx: str) -> str:
    """What the assembler says of a kernel."""
    assembler = Path(nvidia.__file__).parent / "bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", "--gpu-name=sm_90a", source, "-o", Path(folder, "out")]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    counts = [re.search(rf"(\d+) {what}", said) for what in ("registers", "bytes spill stores")]
    return " registers, spilled bytes: ".join(m[1] for m in counts if m)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rows", type=int, help="rows a pair reads")
    parser.add_argument("--quick", action="store_true", help="the first tile of bf16 only")
    options = parser.parse_args()
    too_much = False
    for dtype, tiles in list(TILES.items())[: 1 if options.quick else None]:
        for tile in tiles[: 1 if options.quick else None]:
            numbers = {
                **_sizes(options.hidden, tile),
                "M": options.rows or 2 + 3 * (WIDTH if dtype == torch.float32 else COARSE),
                "COLUMNS": tile.columns,
                "GATHER": tile.gather,
                "HAS_EXTRA": True,
                "WIDE": dtype == torch.float32,
                "ENTRIES": 16,
            }
            print(NAMES[dtype], tile)
            for name in ("message_kernel", "mean_kernel", "slope_kernel", "table_kernel"):
                made = compiled(getattr(kernels, name), numbers, dtype, tile)
                shared, ptx = made.metadata.shared, made.asm["ptx"]
                on_tensor_cores = ptx.count("wgmma.mma_async")
                print(f"  {name:15s}{shared / 1024:6.0f} KB shared, {registers(ptx)}", end="")
                print(f", {on_tensor_cores} wgmma")
                too_much |= shared > SHARED
    if too_much:
        raise SystemExit(f"a program may have {SHARED} bytes of shared memory")


if __name__ == "__main__":
    main()
