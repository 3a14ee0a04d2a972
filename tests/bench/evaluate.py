"""Comparisons of evaluate against the plain loop over pymatgen's StructureMatcher, one run.

    python tests/bench/evaluate.py REFERENCE --generated GENERATED --structures 100 --jobs 2

Each job is timed both ways on the same structures, with the same answers (checked); the plain loop
is one process, as everybody writes it, evaluate uses ``--jobs`` of them, started before the clock.
"shaken": each reference against a copy with strained cell and displaced atoms. "random": against
atoms of its composition anywhere in a random cell of its volume. "displaced": anywhere in its own
cell. "polymorphs": against another entry of its formula. "METRe": all pairs of a formula for
``--formulas`` references with ``--k`` predictions each. "uniqueness": the generated structures.
"all against all": every shaken copy with every reference.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalctl import comparisons
from crystalctl.analysis.comparing import Task, compare, prepare_all
from crystalctl.analysis.described import Described
from crystalctl.analysis.matching import BENCHMARK, DUPLICATES
from crystalctl.comparisons import match_all, sort_out
from crystalctl.data.records import Entry
from crystalctl.evaluation.pairing import Pairing
from crystalctl.gathering import Set, Workers
from crystalctl.io.collect import Row, find_sources, read_source

warnings.filterwarnings("ignore")
Found = dict[Any, Any]


def load(path: Path) -> list[Structure]:
    """The readable structures of a file."""
    (source,) = find_sources([path])
    entries = [row.entry for row in read_source(source) if row.entry is not None]
    return [Structure(Lattice(e.lattice), e.numbers.tolist(), e.frac) for e in entries]


def shaken(one: Structure, rng: np.random.Generator) -> Structure:
    strain = np.eye(3) + rng.normal(size=(3, 3)) * 0.03
    moved = one.frac_coords + rng.normal(size=(len(one), 3)) * rng.choice([0.01, 0.03, 0.1])
    return Structure(Lattice(one.lattice.matrix @ strain), one.species, moved, to_unit_cell=True)


def displaced(one: Structure, rng: np.random.Generator) -> Structure:
    return Structure(one.lattice, one.species, rng.random((len(one), 3)))


def random(one: Structure, rng: np.random.Generator) -> Structure:
    while True:
        cell = Lattice.from_parameters(*rng.uniform(0.6, 1.6, 3), *rng.uniform(60, 120, 3))
        if cell.volume > 0.3:
            break
    matrix = cell.matrix * np.cbrt(one.volume / cell.volume)
    return Structure(Lattice(matrix), one.species, rng.random((len(one), 3)))


def as_set(name: str, structures: list[Structure]) -> Set:
    """What evaluate holds of structures it has read and described."""
    rows, described = [], []
    for number, one in enumerate(structures):
        numbers = np.array([site.specie.Z for site in one])
        rows.append(Row(name, number, "", Entry(one.lattice.matrix, one.frac_coords, numbers)))
        reduced = one.composition.reduced_formula
        described.append(Described("", reduced=reduced, struct_valid=True, comp_valid=True))
    return Set(name, rows, described)


def plain_pairs(
    ours: list[Structure], theirs: list[Structure], pairs: list[tuple[int, int]]
) -> Found:
    matcher = StructureMatcher(**BENCHMARK)
    found = {}
    for i, j in pairs:
        result = matcher.get_rms_dist(ours[i], theirs[j])
        if result is not None:
            found[i, j] = float(result[0])
    return found


def plain_unique(structures: list[Structure]) -> Found:
    matcher = StructureMatcher(**DUPLICATES)
    first: Found = {}
    leaders: list[int] = []
    for i, one in enumerate(structures):
        lead = next((k for k in leaders if matcher.fit(structures[k], one)), i)
        first[i] = lead
        if lead == i:
            leaders.append(i)
    return first


def of_pairs(
    name: str, ours: list[Structure], theirs: list[Structure], pairs: Any, workers: Workers
) -> tuple[str, int, Callable[[], Found], Callable[[], Found]]:
    """A job of all pairs of a formula, as for METRe."""
    mine, other = as_set("ours", ours), as_set("theirs", theirs)
    pairing = Pairing("formula", [], [], 1.0, False)
    return (
        name,
        len(pairs),
        lambda: plain_pairs(ours, theirs, pairs),
        lambda: match_all(mine, other, pairing, workers)[0].distances,
    )


def of_rows(
    name: str, ours: list[Structure], theirs: list[Structure], workers: Workers
) -> tuple[str, int, Callable[[], Found], Callable[[], Found]]:
    """A job of row i against row i alone, each structure met once."""
    rows = [(i, i) for i in range(len(ours))]
    mine, other = as_set("ours", ours), as_set("theirs", theirs)
    pairing = Pairing("rows", [[i] for i in range(len(ours))], [], 1.0, False)

    def fast() -> Found:
        comparisons.MAX_PAIRS = 0  # only what belongs together
        found = match_all(mine, other, pairing, workers)[0].distances
        comparisons.MAX_PAIRS = most
        return found

    most = comparisons.MAX_PAIRS
    return name, len(rows), lambda: plain_pairs(ours, theirs, rows), fast


def measure(
    name: str, pairs: int, plain: Callable[[], Found], fast: Callable[[], Found]
) -> dict[str, Any]:
    start = time.perf_counter()
    expected = plain()
    middle = time.perf_counter()
    found = fast()
    end = time.perf_counter()
    if found.keys() != expected.keys():
        raise SystemExit(f"{name}: {found.keys() ^ expected.keys()} differ")
    worst = max((abs(found[pair] - expected[pair]) for pair in found), default=0.0)
    if worst > 1e-9:
        raise SystemExit(f"{name}: answers differ by {worst}")
    return {
        "job": name,
        "pairs": pairs,
        "matches": len(found),
        "plain_s": round(middle - start, 2),
        "evaluate_s": round(end - middle, 2),
        "times_faster": round((middle - start) / (end - middle), 2),
        "largest_difference": worst,
    }


def jobs_of(options: argparse.Namespace, workers: Workers) -> Any:
    rng = np.random.default_rng(options.seed)
    everything = load(options.reference)
    chosen = rng.permutation(len(everything))[: options.structures]
    theirs = [everything[i] for i in chosen]
    for make in (shaken, random, displaced):
        yield of_rows(make.__name__, [make(one, rng) for one in theirs], theirs, workers)
    same = defaultdict(list)
    for one in everything:
        same[one.composition.reduced_formula].append(one)
    twins = [(a, b) for group in same.values() for a in group for b in group if a is not b]
    twins = [twins[i] for i in rng.permutation(len(twins))[: options.structures]]
    yield of_rows("polymorphs", [a for a, _ in twins], [b for _, b in twins], workers)
    some = theirs[: options.formulas]
    makers = (shaken, shaken, displaced, random)
    drawn = [makers[k % 4](one, rng) for one in some for k in range(options.k)]
    formula = [one.composition.reduced_formula for one in some]
    ours_formula = [one.composition.reduced_formula for one in drawn]
    pairs = [
        (i, j) for i, f in enumerate(ours_formula) for j, other in enumerate(formula) if f == other
    ]
    yield of_pairs("METRe", drawn, some, pairs, workers)
    copies = [shaken(one, rng) for one in some]
    crossed = [(i, j) for i in range(len(some)) for j in range(len(some))]
    yield of_pairs("all against all", copies, some, crossed, workers)
    if options.generated:
        made = load(options.generated)
        ours = as_set("ours", made)
        count = len(made) * (len(made) - 1) // 2
        yield (
            "uniqueness",
            count,
            lambda: plain_unique(made),
            lambda: sort_out(ours, None, workers).first,
        )


def start_all(workers: Workers) -> None:
    """Processes have started and imported what they need before the clock does."""
    (one,) = prepare_all([(np.eye(3) * 3, np.zeros((1, 3)), [11])])
    assert one is not None
    task = Task("distances", [(0, one)], [(0, one)], [(0, 0)])
    list(workers.map(compare, [task] * (64 * workers.jobs), "", least=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("--generated", type=Path)
    parser.add_argument("--structures", type=int, default=100)
    parser.add_argument("--formulas", type=int, default=20)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ExitStack() as stack:
        workers = Workers(options.jobs, stack, None)
        start_all(workers)
        for job in jobs_of(options, workers):
            print(json.dumps({"processes": options.jobs, **measure(*job)}), flush=True)


if __name__ == "__main__":
    main()
