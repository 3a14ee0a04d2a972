"""Match rate and RMSE of predict weights on a benchmark split (arXiv:2309.04475, section 5.1).

    python tests/bench/match_rate.py WEIGHTS TEST.safetensors --entries 300 --k 20 --steps 100

Each test entry's own composition and number of atoms are given, and to DiffCSP++ its true template
(group, Wyckoff positions and the species on them), which is the published comparison; with
``--templates FILE`` its k samples are drawn in the first k templates proposed instead. Prints,
for k = 1 and ``--k``, the match rate and RMSE ungated, gated on both (the published k = 1) and on
the prediction (the published k = 20), as JSON. ``--train FILE`` adds the numbers without the
entries that have a matching structure of the same composition in that dataset.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystalctl.checkpoint import load_model
from crystalctl.crystal.batch import Crystals, Layout, Target, Template
from crystalctl.crystal.convert import to_structures
from crystalctl.data.datasets import Dataset
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.evaluation.metrics import match_rate, passes_gate
from crystalctl.models import FAMILIES
from crystalctl.models.device import pick_device
from crystalctl.proposing import Mixture
from crystalctl.retrieval import Memory
from crystalctl.symmetry.assignments import lattice_points
from crystalctl.templating import TemplateSource, shared_out

warnings.filterwarnings("ignore")


def composition(numbers: torch.Tensor) -> dict[int, int]:
    """Atomic number -> atoms."""
    values, counts = torch.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def without_symmetry(crystal: Crystals) -> Crystals:
    """Each tensor sent to another process holds a file open there: the fewer the better."""
    return Crystals(Layout(crystal.layout.n_atoms), crystal.lattice, crystal.frac, crystal.species)


def target_of(crystal: Crystals) -> Target:
    """What is told of one true crystal: its composition, or its template where it has orbits."""
    orbits, group = crystal.layout.orbits, crystal.layout.space_group
    if orbits is None or group is None:
        return Target(composition=composition(crystal.species))
    species = orbits.at_anchors(crystal.species).tolist()
    return Target(template=Template(int(group), tuple(orbits.position.tolist()), tuple(species)))


def targets_of(
    crystal: Crystals, k: int, source: TemplateSource | None, *, starts: bool = True
) -> list[Target]:
    """The ``k`` requests for one true crystal; proposals share them by votes."""
    if source is None:
        return [target_of(crystal)] * k
    points = lattice_points(int(crystal.layout.space_group))
    counts = {z: n // points for z, n in composition(crystal.species).items()}
    return [
        Target(template=Template(c.group, c.rows, c.species, start=c.start if starts else None))
        for c, _ in shared_out(source.propose(counts, k), k)
    ]


def draw(
    model: Any, truth: Crystals, steps: int | None, options: argparse.Namespace
) -> list[list[Crystals]]:
    """``options.k`` samples for each crystal of ``truth``; same-size entries share batches."""
    device, k = pick_device(options.device), options.k
    source = Mixture(Memory.load(options.templates)) if options.templates else None
    if source is not None and options.proposer:
        source.__dict__["proposer"] = load_model(options.proposer, task="propose").model
    wanted = [
        (pairs, row, repeat, target)
        for row, (pairs, one) in enumerate(
            zip(truth.layout.pair_counts.tolist(), truth.split(), strict=True)
        )
        for repeat, target in enumerate(targets_of(one, k, source, starts=not options.from_noise))
    ]
    wanted.sort(key=lambda item: item[:3])
    found: list[list[Crystals | None]] = [[None] * k for _ in range(len(truth))]
    start, done = time.monotonic(), 0
    while done < len(wanted):
        pairs = wanted[done][0]
        batch = wanted[done : done + max(1, options.edges // pairs)]
        batch = [item for item in batch if item[0] == pairs]
        stream = torch.tensor([row * 1000 + repeat for _, row, repeat, _ in batch], device=device)
        targets = [target for *_, target in batch]
        crystals = model.sample(targets, NoiseSource(options.seed, stream), steps=steps)
        for (_, row, repeat, _), crystal in zip(batch, crystals.to("cpu").split(), strict=True):
            found[row][repeat] = crystal
        done += len(batch)
        if options.verbose:
            print(f"{done}/{len(wanted)} {time.monotonic() - start:.0f} s", flush=True)
    return [[one for one in row if one is not None] for row in found]


def judge(job: tuple[list[Crystals], Crystals, list[Crystals]]) -> dict[str, Any]:
    """Distances, gates and leakage of one entry."""
    guesses, truth, twins = job
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    matcher = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    (reference,) = to_structures(truth)
    rms, valid = [], []
    for guess in guesses:
        value, gate = None, False
        try:
            (structure,) = to_structures(guess)
            gate = passes_gate(structure)
            result = matcher.get_rms_dist(structure, reference)
            value = None if result is None else float(result[0])
        except Exception:  # an impossible cell: a prediction that does not match
            value = None
        rms.append(value)
        valid.append(gate)
    leaked = any(matcher.fit(to_structures(twin)[0], reference) for twin in twins)
    return {"rms": rms, "valid": valid, "reference": passes_gate(reference), "leaked": leaked}


def twins_of(test: Crystals, train: Path | None) -> list[list[Crystals]]:
    """Training crystals of the same reduced composition as each test crystal."""
    if train is None:
        return [[] for _ in range(len(test))]

    def key(numbers: torch.Tensor) -> tuple[tuple[int, float], ...]:
        counts = composition(numbers)
        return tuple((z, round(c / len(numbers), 4)) for z, c in sorted(counts.items()))

    crystals = Dataset.load(train).crystals
    rows: dict[Any, list[int]] = defaultdict(list)
    for row, numbers in enumerate(crystals.species.split(crystals.layout.counts)):
        rows[key(numbers)].append(row)
    return [
        [crystals.index(torch.tensor([row])) for row in rows.get(key(numbers), [])]
        for numbers in test.species.split(test.layout.counts)
    ]


def report(rows: list[dict[str, Any]], k: int) -> dict[str, Any]:
    """Match rates in percent and RMSE for k = 1 and ``k``, per gate."""
    table: dict[str, Any] = {"entries": len(rows)}
    for count in sorted({1, k}):
        for gate in ("none", "both", "prediction"):
            result = match_rate(
                [row["rms"] for row in rows],
                k=count,
                gate=gate,  # type: ignore[arg-type]
                prediction_valid=[row["valid"] for row in rows],
                reference_valid=[row["reference"] for row in rows],
            )
            rmse = None if result.rmse is None else round(result.rmse, 4)
            table[f"k={count} gate={gate}"] = [round(100 * result.match_rate, 2), rmse]
    return table


def measure(loaded: Any, test: Crystals, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of ``options`` with ``steps`` sampling steps."""
    start = time.monotonic()
    guesses = draw(loaded.model, test, steps, options)
    seconds = time.monotonic() - start
    bare = [[without_symmetry(guess) for guess in row] for row in guesses]
    truths = [without_symmetry(one) for one in test.split()]
    jobs = list(zip(bare, truths, twins_of(test, options.train), strict=True))
    with ProcessPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(judge, jobs, chunksize=4))
    for row in rows:  # nothing was proposed for some
        row["rms"] += [None] * (options.k - len(row["rms"]))
        row["valid"] += [False] * (options.k - len(row["valid"]))
    if options.rows:
        options.rows.write_text(json.dumps(rows))
    for path in options.merge:
        rows += json.loads(path.read_text())
    facts: dict[str, Any] = {"weights": options.weights, "sha256": loaded.sha256[:16]}
    facts |= {"steps": steps, "calls": 2 * steps, "seconds_per_sample": seconds}
    facts["seconds_per_sample"] = round(seconds / len(test) / options.k, 4)
    facts["all"] = report(rows, options.k)
    if options.train:
        facts["without twins in training"] = report([r for r in rows if not r["leaked"]], options.k)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("test", type=Path)
    parser.add_argument("--entries", type=int, default=0, help="first of a seeded shuffle, 0 = all")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first of the shuffle")
    parser.add_argument("--shuffle-seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument(
        "--steps", type=int, nargs="*", help="several: the curve, a report for each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--edges", type=int, default=8192)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--templates", type=Path, help="propose templates, not the true one")
    parser.add_argument("--from-noise", action="store_true", help="no known structure to begin at")
    parser.add_argument("--proposer", help="weights of another proposer than the default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="also write the judgement of each entry here")
    parser.add_argument(
        "--merge", type=Path, nargs="*", default=[], help="add entries judged before"
    )
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    loaded = load_model(options.weights, task="predict", device=pick_device(options.device))
    dataset = Dataset.load(options.test)
    test = dataset.crystals
    if FAMILIES[loaded.meta["family"]].symmetric:
        if dataset.standard is None:
            raise SystemExit(f"{options.test} has no orbits: prepare it again")
        test = dataset.standard.crystals
    if options.entries:
        generator = torch.Generator().manual_seed(options.shuffle_seed)
        order = torch.randperm(len(test), generator=generator)
        test = test.index(order[options.skip : options.skip + options.entries])
    for steps in options.steps or [loaded.model.config.sample_steps]:
        print(json.dumps(measure(loaded, test, steps, options), indent=1), flush=True)


if __name__ == "__main__":
    main()
