"""What ranking is worth: how often the first structure shown is the true one.

    python tests/bench/ranking.py WEIGHTS TEST.safetensors --rows rows.jsonl --entries 200 --k 20

For each test entry ``--k`` samples are drawn for its composition and number of atoms, in proposed
templates, and merged. Chosen from them: the first sample, the most frequent structure, the one with
the most votes (what predict shows first without energies), the one of lowest energy as drawn, the
one of lowest energy after relaxation. A choice is right when ``StructureMatcher(ltol=0.3, stol=0.5,
angle_tol=10)`` finds it equal to the truth. Rows are kept in ``--rows``, where a stopped run
continues; the shares of right choices are printed as JSON. ``any`` is right where one of the
samples is.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from match_rate import composition, draw, without_symmetry
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from crystalctl.analysis.energy import energies_per_atom, load_potential
from crystalctl.analysis.matching import group_duplicates
from crystalctl.analysis.relaxation import Settings, relax
from crystalctl.analysis.validity import invalid_reason
from crystalctl.checkpoint import load_model, shipped_templates
from crystalctl.crystal.batch import Crystals
from crystalctl.crystal.convert import to_structures
from crystalctl.data.datasets import Dataset
from crystalctl.models.device import pick_device
from crystalctl.proposing import Mixture
from crystalctl.symmetry.assignments import lattice_points
from crystalctl.templating import turns

CHOICES = ("first", "most frequent", "votes", "energy", "relaxed energy", "any")


def votes_of(truth: Crystals, k: int, source: Mixture) -> list[float]:
    """The votes each of ``k`` samples carries."""
    points = lattice_points(int(truth.layout.space_group))
    counts = {z: n // points for z, n in composition(truth.species).items()}
    votes = [v for _, v in source.propose(counts, k)]
    taken = turns(votes, k)
    return [votes[i] / taken.count(i) for i in taken]


def judge(
    guesses: list[Crystals],
    votes: list[float],
    truth: Crystals,
    potential: Any,
    settings: Settings,
    most: int,
) -> dict[str, Any]:
    """Which choices are right for one entry; the ``most`` lowest in energy are relaxed."""
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    (reference,) = to_structures(without_symmetry(truth))

    def right(structure: Any) -> bool:
        return matcher.get_rms_dist(structure, reference) is not None

    able = []
    for guess, vote in zip(guesses, votes, strict=True):
        if not invalid_reason(guess.lattice[0].double().numpy(), guess.frac.double().numpy()):
            able.append((to_structures(without_symmetry(guess))[0], vote))
    if not able:
        return dict.fromkeys(CHOICES, False)
    structures = [structure for structure, _ in able]
    groups = group_duplicates(structures)
    leaders = [structures[members[0]] for members in groups]
    frequent = max(range(len(groups)), key=lambda g: len(groups[g]))
    voted = max(range(len(groups)), key=lambda g: sum(able[i][1] for i in groups[g]))
    found = {
        "first": right(structures[0]),
        "most frequent": right(leaders[frequent]),
        "votes": right(leaders[voted]),
        "any": any(map(right, leaders)),
        "candidates": len(leaders),
    }
    frames = [AseAtomsAdaptor.get_atoms(structure) for structure in leaders]
    energies = energies_per_atom(potential, frames)
    known = [i for i, e in enumerate(energies) if isinstance(e, float)]
    lowest = min(known, key=lambda i: energies[i], default=None)
    found["energy"] = lowest is not None and right(leaders[lowest])
    chosen = [leaders[i] for i in sorted(known, key=lambda i: energies[i])[:most]]
    done = [r for _, r in relax(potential, chosen, settings) if not r.reason]
    best = min(done, key=lambda r: r.energy, default=None)
    found["relaxed energy"] = best is not None and right(best.structure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("test", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=200)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--relax-steps", type=int, default=200)
    parser.add_argument("--relax-most", type=int, default=20)
    parser.add_argument("--calculator", default="chgnet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--edges", type=int, default=8192)
    options = parser.parse_args()
    options.templates, options.verbose = shipped_templates(), False
    warnings.filterwarnings("ignore")
    device = pick_device(options.device)
    model = load_model(options.weights, task="predict", device=device).model
    standard = Dataset.load(options.test).standard
    assert standard is not None
    order = torch.randperm(len(standard.crystals), generator=torch.Generator().manual_seed(0))
    test = standard.crystals.index(order[: options.entries])
    source = Mixture.shipped()
    potential = load_potential(options.calculator, device.type)
    settings, most = Settings(max_steps=options.relax_steps), options.relax_most
    lines = options.rows.read_text().splitlines() if options.rows.is_file() else []
    with options.rows.open("a") as notes:
        for index in range(len(lines), len(test)):
            one = test.index(torch.tensor([index]))
            (guesses,) = draw(model, one, options.k, options)
            votes = votes_of(one, options.k, source)[: len(guesses)]
            row = {"index": index, **judge(guesses, votes, one, potential, settings, most)}
            lines.append(json.dumps(row))
            notes.write(lines[-1] + "\n")
            notes.flush()
    rows = [json.loads(line) for line in lines]
    shares = {c: round(100 * sum(row[c] for row in rows) / len(rows), 1) for c in CHOICES}
    print(json.dumps({"entries": len(rows), "calculator": potential.name, **shares}, indent=1))


if __name__ == "__main__":
    main()
