"""Time detection and the orbit operations: ``python tests/bench/bench_symmetry.py DATASET``.

Detection runs in worker processes; ``--jobs 1`` also prints the CPU time per structure, which does
not depend on what else the machine is doing. Failures are listed by reason.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import torch

from crystalctl.data.datasets import Dataset
from crystalctl.symmetry.detect import Detected, detect


def time_detection(data: Dataset, jobs: int) -> Detected:
    wall, cpu = time.perf_counter(), time.process_time()
    found = detect(data.crystals, jobs=jobs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{len(data)} structures in {wall:.1f} s with {jobs} jobs: {len(data) / wall:.0f} / s")
    if jobs == 1:
        print(f"CPU time: {1e3 * cpu / len(data):.2f} ms a structure, {len(data) / cpu:.0f} / s")
    print(f"failures: {len(found.failures)} {found.reasons}")
    for row, reason in found.failures[:20]:
        print(f"  {data.ids[row]}: {reason}")
    print(f"tolerances: {dict(Counter(found.symprec.tolist()).most_common())}")
    moved = found.moved.sort().values
    print(
        f"input atoms moved: 99 % below {moved[int(0.99 * len(moved))]:.3f} Å, max {moved[-1]:.3f}"
    )
    return found


def time_orbits(found: Detected, repeats: int) -> None:
    orbits, atoms = found.orbits, found.orbits.total_atoms
    print(f"{orbits.n_crystals} crystals, {orbits.total_orbits} orbits, {atoms} atoms, float32")
    anchors, vectors = torch.rand(orbits.total_orbits, 3), torch.rand(atoms, 3)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "place": lambda: orbits.place(anchors),
        "push": lambda: orbits.push(anchors),
        "pull": lambda: orbits.pull(vectors),
    }
    for name, call in calls.items():
        call()
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        print(f"  {name:5} {1e3 * best:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--rows", type=int, default=1000, help="0: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    data = Dataset.load(options.dataset)
    if options.rows:
        generator = torch.Generator().manual_seed(0)
        data = data.select(torch.randperm(len(data), generator=generator)[: options.rows])
    found = time_detection(data, options.jobs)
    first = torch.arange(min(256, len(found.crystals)))
    batch = Detected(
        found.crystals.index(first),
        found.orbits.index(first),
        found.space_group[first],
        found.source[first],
        found.symprec[first],
        found.moved[first],
        [],
    )
    time_orbits(batch, options.repeats)


if __name__ == "__main__":
    main()
