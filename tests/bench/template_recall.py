"""How often the true template of a test entry is among the first templates proposed.

    python tests/bench/template_recall.py TEST.safetensors --entries 2262

The template (group, Wyckoff positions, elements on them) is compared in the form that all settings
share. Prints, for the votes of known structures, the learnt proposer and both together, the share
among the first 1, 3, 5 and 20, and the same for the entries whose template no vote has, as JSON.

    python tests/bench/template_recall.py TEST.safetensors --formula-alone diffcsp-pp-mp

The number of atoms is not told either: the 20 samples that `predict --formula` would plan with
these weights, their templates by votes, and how often the number of atoms is the true one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crystalctl.checkpoint import load_model, load_proposer, shipped_templates
from crystalctl.crystal.batch import Crystals
from crystalctl.crystal.elements import parse_formula, symbol_of
from crystalctl.data.datasets import Dataset
from crystalctl.data.statistics import Statistics
from crystalctl.errors import InputError
from crystalctl.models.proposer import sequences_of
from crystalctl.planning import plan_templates
from crystalctl.proposing import Mixture
from crystalctl.retrieval import Memory
from crystalctl.symmetry.normaliser import Orbits, canonical_orbits

FIRST = (1, 3, 5, 20)


def forms(proposals: list[tuple[Any, float]]) -> list[Orbits]:
    return [canonical_orbits(zip(c.rows, c.species, strict=True)) for c, _ in proposals]


def templates(crystals: Crystals) -> list[tuple[dict[int, int], Orbits]]:
    """Composition of the primitive cell and template of each crystal."""
    return [
        (
            dict(one.elements),
            canonical_orbits(
                (row, one.elements[kind][0]) for row, kind in zip(one.rows, one.kinds, strict=True)
            ),
        )
        for one in sequences_of(crystals)
    ]


def alone(
    entries: list[tuple[dict[int, int], Orbits]], mixture: Mixture, weights: str
) -> dict[str, float]:
    """What is planned for each formula without its number of atoms."""
    statistics = Statistics.from_dict(load_model(weights, task="predict").meta["statistics"])
    hits: Counter[str] = Counter()
    for composition, true in entries:
        text = "".join(f"{symbol_of(z)}{n}" for z, n in composition.items())
        formula = parse_formula(parse_formula(text).reduced)
        try:
            samples = plan_templates([formula], 20, statistics, None, source=mixture)
        except InputError:
            hits["refused"] += 1
            continue
        ranked = sorted(samples, key=lambda sample: -sample.votes)
        found = list(dict.fromkeys(forms([(s.template, s.votes) for s in ranked])))
        size = sum(composition.values())
        hits["number of atoms first"] += ranked[0].n_atoms == size
        hits["samples of that number"] += sum(s.n_atoms == size for s in samples) / 20
        for n in FIRST:
            hits[str(n)] += true in found[:n]
    return {name: round(100 * count / len(entries), 1) for name, count in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("test", type=Path)
    parser.add_argument("--entries", type=int, default=0, help="first of a seeded shuffle, 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proposer", help="other weights: a proposer's, or SGEquiDiff's")
    parser.add_argument("--task", default="propose", help="of those: propose, or generate")
    parser.add_argument("--templates", type=Path, default=shipped_templates())
    parser.add_argument("--source", nargs="*", default=["votes", "proposer", "both"])
    parser.add_argument("--formula-alone", metavar="WEIGHTS", help="see above")
    options = parser.parse_args()
    dataset = Dataset.load(options.test)
    assert dataset.standard is not None
    entries = templates(dataset.standard.crystals)
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(options.seed))
    entries = [entries[i] for i in order[: options.entries or None].tolist()]
    proposer = load_proposer()
    if options.proposer:
        proposer = load_model(options.proposer, task=options.task).model
    memory = Memory.load(options.templates)
    mixture = Mixture(memory)
    mixture.__dict__["proposer"] = proposer
    if options.formula_alone:
        print(json.dumps(alone(entries, mixture, options.formula_alone), indent=1))
        return
    sources: dict[str, Callable[[dict[int, int]], list[Orbits]]] = {
        "votes": lambda c: forms(memory.propose(c, 20)),
        "proposer": lambda c: [canonical_orbits(t) for t, _ in proposer.propose(c, 20)],
        "both": lambda c: forms(mixture.propose(c, 20)),
    }
    hits: dict[str, Counter[str]] = {name: Counter() for name in options.source}
    seconds, occurs = Counter[str](), 0
    for composition, true in entries:
        ways = forms(memory.propose(composition, 10**6))
        occurs += true in ways
        for name in options.source:
            start = time.monotonic()
            found = sources[name](composition)
            seconds[name] += time.monotonic() - start
            for n in FIRST:
                hits[name][str(n)] += true in found[:n]
                hits[name][f"{n}, no vote"] += true in found[:n] and true not in ways
    n = len(entries)
    kinds = {"": n, ", no vote": n - occurs}
    table = {
        name: {
            f"{k}{kind}": round(100 * count[f"{k}{kind}"] / max(of, 1), 1)
            for kind, of in kinds.items()
            for k in FIRST
        }
        | {"seconds each": round(seconds[name] / n, 3)}
        for name, count in hits.items()
    }
    print(json.dumps({"entries": n, "voted for": round(100 * occurs / n, 1), **table}, indent=1))


if __name__ == "__main__":
    main()
