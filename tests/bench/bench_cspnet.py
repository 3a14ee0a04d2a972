"""Fast CSPNet against the plain form in one run: ``python tests/bench/bench_cspnet.py``.

Training step (forward, backward) and sampling step (forward, kept tables), CPU, float32 (with
``--bf16`` ours as ``crystalctl train --precision bf16``, for CPUs with matrix units of that kind).
The best of several alternating passes each; read the ratios, the machine drifts.

Where there is a GPU, the ways to make the messages are timed there first (``--no-cpu``: nothing
else is): one operation after the other, with the dense half compiled, and each tile of the fused
kernel, in bf16 and float32; ``off`` is the difference of all gradients to the first way, as a part
of their norm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain_cspnet import plain_forward

from crystalctl.crystal.batch import Layout
from crystalctl.networks.choice import Choice, device_seconds
from crystalctl.networks.cspnet import CSPNet
from crystalctl.networks.fused import TILES


def best_of(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest of ``repeats`` passes of each, taken in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


class Forced(Choice):
    """Takes one tile, tried or not."""

    def __init__(self, tile: object) -> None:
        super().__init__()
        self.tile = tile

    def pick(self, kind, plain, ways, *, tolerance):
        self.taken[kind] = self.tile
        return self.tile


def inputs(counts: list[int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Species, coordinates, lattice features, time steps of random crystals; and their layout."""
    layout = Layout(torch.tensor(counts)).to(device)
    n_atoms, n_crystals = sum(counts), len(counts)
    tensors = (
        torch.randint(1, 90, (n_atoms,)),
        torch.rand(n_atoms, 3),
        torch.randn(n_crystals, 9),
        torch.randint(1, 1000, (n_crystals,)),
    )
    return *(tensor.to(device) for tensor in tensors), layout


def on_gpu(options: argparse.Namespace, device: torch.device, clock=device_seconds) -> None:
    """Milliseconds of a training and a sampling step for each way, in turn on one device."""
    net = CSPNet(hidden=options.hidden, n_layers=options.layers).to(device)
    print(f"hidden {options.hidden}, {options.layers} layers, {options.gpu_edges} pairs, {device}")
    print("precision  atoms  training ms  sampling ms      off  way")
    for dtype, tiles in TILES.items():
        for n in (5, 10, 20):
            batch = inputs([n] * max(1, options.gpu_edges // n**2), device)
            ways = dict.fromkeys(["plain", "compiled"] if options.compile else ["plain"])
            ways |= {str(tile): tile for tile in tiles}
            first = None
            for way, tile in ways.items():
                for layer in net.layers:
                    layer.second_half = layer._second_half
                if way == "compiled":
                    net.compile(dynamic=True)
                net.fuse(None if tile is None else Forced(tile))

                def run(tables=None) -> list[torch.Tensor]:
                    with torch.autocast(device.type, torch.bfloat16, dtype == torch.bfloat16):  # noqa: B023
                        out = net(*batch, tables=tables)  # noqa: B023
                        loss = out.lattice.square().mean() + out.frac.square().mean()
                    if not torch.is_grad_enabled():
                        return [loss]
                    return list(torch.autograd.grad(loss, list(net.parameters())))

                gradients = torch.cat([g.flatten() for g in run()])
                first = gradients if first is None else first
                off = ((gradients - first).norm() / first.norm()).item()
                training = clock(run)
                with torch.no_grad():
                    tables = net.tables()
                    sampling = clock(lambda: run(tables))  # noqa: B023
                row = f"{1000 * training:12.3f} {1000 * sampling:12.3f} {off:8.1e}  {way}"
                print(f"{str(dtype)[6:]:9s} {n:6d} {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--edges", type=int, default=6400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu-edges", type=int, default=34_000, help="a batch of 256 of MP-20")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--bf16", action="store_true", help="ours in bf16 on the CPU")
    parser.add_argument("--no-cpu", dest="cpu", action="store_false")
    options = parser.parse_args()
    torch.manual_seed(0)
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        on_gpu(options, torch.device("cuda"))
    if options.cpu:
        on_cpu(options)


def on_cpu(options: argparse.Namespace) -> None:
    """Seconds of both forms, and their ratio."""
    net = CSPNet(hidden=options.hidden, n_layers=options.layers)
    print(f"hidden {options.hidden}, {options.layers} layers, {torch.get_num_threads()} threads")
    print("atoms  crystals  step      plain s   fast s   ratio")
    for n in (5, 10, 20):
        counts = [n] * max(1, options.edges // n**2)
        layout = Layout(torch.tensor(counts))
        species = torch.randint(1, 90, (layout.total_atoms,))
        frac = torch.rand(layout.total_atoms, 3)
        g, t = torch.randn(len(counts), 9), torch.randint(1, 1000, (len(counts),))

        def plain() -> torch.Tensor:
            lattice, coordinates, _ = plain_forward(net, species, frac, g, t, counts)  # noqa: B023
            return lattice.square().mean() + coordinates.square().mean()

        def fast(tables: list[torch.Tensor] | None = None) -> torch.Tensor:
            fresh = Layout(layout.n_atoms)  # noqa: B023
            with torch.autocast("cpu", torch.bfloat16, options.bf16):
                out = net(species, frac, g, t, fresh, tables=tables)  # noqa: B023
            return out.lattice.square().mean() + out.frac.square().mean()

        steps = {
            "training": {"plain": lambda: plain().backward(), "fast": lambda: fast().backward()}
        }
        with torch.no_grad():
            kept = net.tables()
        steps["sampling"] = {"plain": plain, "fast": lambda: fast(kept)}  # noqa: B023
        for step, runs in steps.items():
            with torch.set_grad_enabled(step == "training"):
                s = best_of(runs, options.repeats)
            ratio = s["plain"] / s["fast"]
            seconds = f"{s['plain']:8.3f} {s['fast']:8.3f} {ratio:7.2f}"
            print(f"{n:5d} {len(counts):9d}  {step:9s} {seconds}")


if __name__ == "__main__":
    main()
