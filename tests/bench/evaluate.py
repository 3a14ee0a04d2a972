"""Comparisons of evaluate against the plain loop over pymatgen's StructureMatcher, one run.

    python tests/bench/evaluate.py PREDICTIONS REFERENCE --structures 60 --jobs 2

Three jobs, each timed both ways on the same structures with the same answers (checked):
"all against all", every prediction with every reference, as for METRe and novelty; "same formula",
different structures of one formula in the reference; "best of k", k shaken copies of references.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.comparing import Task, compare
from crystalctl.analysis.matching import BENCHMARK
from crystalctl.io.collect import find_sources, read_source

warnings.filterwarnings("ignore")
Pairs = list[tuple[int, int]]


def load(path: Path, most: int) -> list[Structure]:
    """The first readable structures of a file."""
    (source,) = find_sources([path])
    entries = [row.entry for row in read_source(source) if row.entry is not None][:most]
    return [Structure(Lattice(e.lattice), e.numbers.tolist(), e.frac) for e in entries]


def plain(ours: list[Structure], theirs: list[Structure], pairs: Pairs) -> dict[Any, float]:
    """The loop everybody writes."""
    matcher = StructureMatcher(**BENCHMARK)
    found = {}
    for i, j in pairs:
        result = matcher.get_rms_dist(ours[i], theirs[j])
        if result is not None:
            found[i, j] = float(result[0])
    return found


def fast(
    ours: list[Structure], theirs: list[Structure], pairs: Pairs, pool: Any
) -> dict[Any, float]:
    """What evaluate does with the same pairs."""

    def cell(one: Structure) -> Any:
        return one.lattice.matrix, one.frac_coords, [site.specie.Z for site in one]

    key = [one.composition.reduced_formula for one in ours]
    other = [one.composition.reduced_formula for one in theirs]
    wanted: dict[str, Pairs] = defaultdict(list)
    for i, j in pairs:
        if key[i] == other[j]:
            wanted[key[i]].append((i, j))
    tasks = []
    for chosen in wanted.values():
        mine, truth = sorted({i for i, _ in chosen}), sorted({j for _, j in chosen})
        cells = [(i, cell(ours[i])) for i in mine]
        tasks.append(Task(cells, [(j, cell(theirs[j])) for j in truth], pairs=chosen))
    tasks.sort(key=lambda task: -len(task.pairs))
    found: dict[Any, float] = {}
    for part in pool.map(compare, tasks, chunksize=2) if pool else map(compare, tasks):
        found.update(part.distances)
    return found


def measure(name: str, ours: Any, theirs: Any, pairs: Pairs, pool: Any) -> dict[str, Any]:
    start = time.perf_counter()
    expected = plain(ours, theirs, pairs)
    middle = time.perf_counter()
    found = fast(ours, theirs, pairs, pool)
    end = time.perf_counter()
    if found.keys() != expected.keys():
        raise SystemExit(f"{name}: {found.keys() ^ expected.keys()} differ")
    worst = max((abs(found[pair] - expected[pair]) for pair in found), default=0.0)
    if worst > 1e-9:
        raise SystemExit(f"{name}: distances differ by {worst}")
    return {
        "job": name,
        "pairs": len(pairs),
        "matches": len(found),
        "plain_pairs_per_s": round(len(pairs) / (middle - start), 1),
        "evaluate_pairs_per_s": round(len(pairs) / (end - middle), 1),
        "times_faster": round((middle - start) / (end - middle), 2),
        "largest_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--structures", type=int, default=60)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    ours = load(options.predictions, options.structures)
    theirs = load(options.reference, 100_000)
    few = theirs[: options.structures]
    rng = np.random.default_rng(0)
    shaken, owner = [], []
    for j, truth in enumerate(few[:20]):
        for _ in range(options.k):
            strain = np.eye(3) + rng.normal(size=(3, 3)) * 0.03
            moved = truth.frac_coords + rng.normal(size=(len(truth), 3)) * rng.choice([0.02, 0.2])
            lattice = Lattice(truth.lattice.matrix @ strain)
            shaken.append(Structure(lattice, truth.species, moved, to_unit_cell=True))
            owner.append(j)
    formulas = [one.composition.reduced_formula for one in theirs]
    twins = [(i, j) for i in range(len(theirs)) for j in range(i) if formulas[i] == formulas[j]]
    pool = None
    if options.jobs > 1:
        pool = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
        list(pool.map(compare, [Task([])] * (4 * options.jobs)))  # started before the clock
    everything = [(i, j) for i in range(len(ours)) for j in range(len(few))]
    for row in (
        measure("all against all", ours, few, everything, pool),
        measure("same formula", theirs, theirs, twins[: 5 * options.structures], pool),
        measure("best of k", shaken, few, list(enumerate(owner)), pool),
    ):
        print(json.dumps(row))
    if pool:
        pool.shutdown()


if __name__ == "__main__":
    main()
