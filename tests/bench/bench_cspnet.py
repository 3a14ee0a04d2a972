"""Fast CSPNet against the plain form in one run: ``python tests/bench/bench_cspnet.py``.

Training step (forward, backward) and sampling step (forward, kept tables), CPU, float32.
The best of several alternating passes each; read the ratios, the machine drifts.
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
from crystalctl.networks.cspnet import CSPNet


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--edges", type=int, default=6400)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
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
