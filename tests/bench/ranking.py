"""What ranking is worth: how often the first structure shown is the true one.

    python tests/bench/ranking.py WEIGHTS TEST.safetensors --rows rows.jsonl --entries 200 --k 20

For each test entry ``--k`` samples are drawn for its composition and number of atoms, in proposed
templates, and merged. Chosen from them: the first sample, the most frequent structure, the one with
the most votes (what predict shows first without energies), the one of lowest energy as drawn, the
one of lowest energy after relaxation, and the one of best score (``analysis/scoring.py``) at each
of ``--weights``, both as drawn and relaxed. Relaxed are the ``--relax-most`` of best score as
drawn, for up to ``--relax-steps`` steps, then merged as ``relax`` does. A choice is right when
``StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)`` finds it equal to the truth. ``any`` is right
where one of the samples is.

With WEIGHTS "auto" samples are drawn as ``predict`` does where nobody names a model: most in
proposed templates, one in ten free of symmetry. ``by source`` then says of how many entries a
source gave a sample that is right, and of how many no other did. ``by formula`` parts the entries
by whether the shipped templates are of a structure of that formula too. ``--relax-most 0`` leaves
energies out.

Rows are kept in ``--rows``, where a stopped run continues. Two processes: ``--skip 100`` and other
``--rows`` for the second, then ``--entries 0 --merge A B`` prints the shares of both. Entries are
the first of a shuffle by ``--shuffle-seed`` of the file given: MP-20 validation to choose a weight
(``--fit`` gives the likeliest, and its error by bootstrap), MP-20 test to measure.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from match_rate import composition, draw, without_symmetry
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.ase import AseAtomsAdaptor

from crystalctl.analysis.energy import energies_per_atom, load_potential
from crystalctl.analysis.matching import group_duplicates
from crystalctl.analysis.relaxation import Settings, primitive, relax
from crystalctl.analysis.scoring import TEMPERATURE_EV, scores
from crystalctl.analysis.validity import invalid_reason
from crystalctl.checkpoint import load_model, shipped_templates
from crystalctl.crystal.batch import Crystals
from crystalctl.crystal.convert import to_structures
from crystalctl.crystal.elements import parse_formula, symbol_of
from crystalctl.data.datasets import Dataset
from crystalctl.models.device import pick_device
from crystalctl.parts import ONE_IN, Part, numbered, plan_formulas
from crystalctl.proposing import Mixture
from crystalctl.retrieval import Memory
from crystalctl.sampling import draw_exact
from crystalctl.selection import choose_weights
from crystalctl.symmetry.assignments import lattice_points
from crystalctl.templating import shared_out

WEIGHTS = "0,0.005,0.01,0.02,0.03,0.04,0.05,0.07,0.1,0.15,0.2,0.3"
PLAIN = ("first", "most frequent", "votes", "any")
PRESELECT_EV = 0.1
"""Weight of the score as drawn by which candidates are relaxed: unrelaxed energies are rough."""


def formulas_of(memory: Memory) -> set[frozenset[tuple[int, int]]]:
    """The reduced formulas, as pairs of atomic number and count, of the structures that vote."""
    first, atoms, z = memory.elements
    at = first.tolist()
    return {
        reduced(dict(zip(z[start:end].tolist(), atoms[start:end].tolist(), strict=True)))
        for start, end in pairwise(at)
    }


def reduced(counts: dict[int, int]) -> frozenset[tuple[int, int]]:
    common = gcd(*counts.values())
    return frozenset((z, n // common) for z, n in counts.items())


def votes_of(truth: Crystals, k: int, source: Mixture) -> list[float]:
    """The votes each of ``k`` samples carries."""
    points = lattice_points(int(truth.layout.space_group))
    counts = {z: n // points for z, n in composition(truth.species).items()}
    return [votes for _, votes in shared_out(source.propose(counts, k), k)]


def plan_auto(truth: Crystals, k: int, loaded: Any, load: Any) -> list[Part]:
    """What ``predict --num-atoms`` draws for the composition of one entry."""
    points = lattice_points(int(truth.layout.space_group))
    counts = {z: n // points for z, n in composition(truth.species).items()}
    text = "".join(f"{symbol_of(z)}{n}" for z, n in counts.items())
    return numbered(
        plan_formulas(
            loaded,
            load,
            formulas=[parse_formula(text)],
            n=k,
            n_free=k // ONE_IN,
            symmetry=None,
            templates=None,
            num_atoms=sum(counts.values()),
        )
    )


def judge(
    guesses: list[Crystals],
    votes: list[float],
    truth: Crystals,
    potential: Any,
    settings: Settings,
    most: int,
    sources: list[str],
) -> dict[str, Any]:
    """The candidates of one entry: energies, votes and whether each is right."""
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    (reference,) = to_structures(without_symmetry(truth))

    def right(structure: Any) -> bool:
        return matcher.get_rms_dist(structure, reference) is not None

    able = []
    for guess, vote, source in zip(guesses, votes, sources, strict=True):
        if not invalid_reason(guess.lattice[0].double().numpy(), guess.frac.double().numpy()):
            able.append((to_structures(without_symmetry(guess))[0], vote, source))
    structures = [structure for structure, _, _ in able]
    groups = group_duplicates(structures)
    leaders = [structures[members[0]] for members in groups]
    frames = [AseAtomsAdaptor.get_atoms(primitive(structure)) for structure in leaders]
    energies = energies_per_atom(potential, frames) if most else [None] * len(frames)
    found: list[dict[str, Any]] = [
        {
            "right": right(leader),
            "count": len(members),
            "votes": sum(able[i][1] for i in members),
            "by source": _shares([able[i][1:] for i in members]),
            "energy": energy if isinstance(energy, float) else None,
            "relaxed energy": None,
            "relaxed right": False,
            "steps": 0,
            "same as": None,
        }
        for leader, members, energy in zip(leaders, groups, energies, strict=True)
    ]
    usable = [i for i, c in enumerate(found) if c["energy"] is not None]
    rough = scores(
        [found[i]["energy"] for i in usable], [found[i]["votes"] for i in usable], PRESELECT_EV
    )
    chosen = [i for _, i in sorted(zip(rough, usable, strict=True))][:most]
    relaxed: dict[int, Any] = {}
    for place, result in relax(potential, [leaders[i] for i in chosen], settings):
        one = found[chosen[place]]
        one["steps"] = result.steps
        if not result.reason:
            relaxed[chosen[place]] = result.structure
            one["relaxed energy"] = result.energy
            one["relaxed right"] = right(result.structure)
    order = sorted(relaxed, key=lambda i: found[i]["relaxed energy"])
    for members in group_duplicates([relaxed[i] for i in order]):
        for member in members[1:]:
            found[order[member]]["same as"] = order[members[0]]
    good = Counter(source for structure, _, source in able if right(structure))
    return {
        "first": bool(structures) and right(structures[0]),
        "right samples": good,
        "candidates": found,
    }


def _shares(members: list[tuple[float, str]]) -> dict[str, tuple[int, float]]:
    """How many of the samples each source gave, and their votes."""
    return {
        name: (len(votes), sum(votes))
        for name in sorted({source for _, source in members})
        for votes in [[vote for vote, source in members if source == name]]
    }


def choices(row: dict[str, Any], weights: list[float]) -> dict[str, bool]:
    """Which choices are right for one entry, from its candidates."""
    found = row["candidates"]
    if not found:
        return {}
    right = {
        "first": row["first"],
        "most frequent": max(found, key=lambda c: c["count"])["right"],
        "votes": max(found, key=lambda c: c["votes"])["right"],
        "any": any(c["right"] for c in found),
    }
    drawn = [c for c in found if c["energy"] is not None]
    relaxed = merged(found)
    for weight in weights:
        for name, rows, energy, truth in (
            ("drawn", drawn, "energy", "right"),
            ("relaxed", relaxed, "relaxed energy", "relaxed right"),
        ):
            if rows:
                value = scores([c[energy] for c in rows], [c["votes"] for c in rows], weight)
                right[f"{name} {weight:g}"] = rows[int(np.argmin(value))][truth]
    return right


def places(row: dict[str, Any]) -> tuple[int | None, int | None]:
    """The place from 1 of the first right candidate: by votes, and by score when relaxed."""
    drawn, relaxed = row["candidates"], merged(row["candidates"])
    value = scores(
        [c["relaxed energy"] for c in relaxed], [c["votes"] for c in relaxed], TEMPERATURE_EV
    )
    return (
        _place([-c["votes"] for c in drawn], [c["right"] for c in drawn]),
        _place(list(value), [c["relaxed right"] for c in relaxed]),
    )


def _place(order: list[float], right: list[bool]) -> int | None:
    ranked = [right[i] for i in np.argsort(order, kind="stable")]
    return ranked.index(True) + 1 if any(ranked) else None


def among(found: list[int | None]) -> str:
    """In percent: how many of the places are among the first 1, 3, 5, and at all."""
    known = [place for place in found if place is not None]
    counts = [sum(place <= most for place in known) for most in (1, 3, 5)] + [len(known)]
    return ", ".join(f"{100 * count / len(found):.1f}" for count in counts)


def merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The relaxed candidates, votes of equal ones added up."""
    votes: dict[int, float] = {}
    for i, one in enumerate(found):
        if one["relaxed energy"] is not None:
            lead = i if one["same as"] is None else one["same as"]
            votes[lead] = votes.get(lead, 0.0) + one["votes"]
    return [{**found[i], "votes": total} for i, total in votes.items()]


def likeliest(rows: list[dict[str, Any]], *, draws: int = 200) -> dict[str, Any]:
    """The weight T that makes the right candidates likeliest under p exp(-E / T)^g.

    Maximum likelihood of the conditional logit with features ln p and E over entries that have a
    right and a wrong candidate; T is the ratio of the two slopes. Error: bootstrap over entries.
    """
    entries = []
    for row in rows:
        found = merged(row["candidates"])
        good = np.array([c["relaxed right"] for c in found], dtype=bool)
        if 0 < good.sum() < len(good):
            least = min((c["votes"] for c in found if c["votes"] > 0), default=1.0)
            logs = np.log([max(c["votes"], least) for c in found])
            energy = np.array([c["relaxed energy"] for c in found])
            entries.append((logs, energy - energy.min(), good))
    temperatures = np.geomspace(0.002, 1.0, 60)
    slopes = np.linspace(0.0, 2.0, 41)
    # (entries, slopes, temperatures): the grid is small, and nothing can fail to converge.
    table = np.zeros((len(entries), len(slopes), len(temperatures)))
    for e, (logs, energy, good) in enumerate(entries):
        power = slopes[:, None, None] * (logs - energy / temperatures[None, :, None])
        power -= power.max(axis=2, keepdims=True)
        weight = np.exp(power)
        table[e] = np.log(weight[..., good].sum(axis=2) / weight.sum(axis=2) + 1e-12)

    def best(which: Any) -> tuple[float, float]:
        s, t = np.unravel_index(int(np.argmax(table[which].sum(axis=0))), table.shape[1:])
        return float(slopes[s]), float(temperatures[t])

    slope, temperature = best(slice(None))
    rng = np.random.default_rng(0)
    again = [best(rng.integers(len(entries), size=len(entries)))[1] for _ in range(draws)]
    low, high = np.percentile(again, [16, 84])
    return {
        "entries with a choice": len(entries),
        "weight": round(temperature, 4),
        "16-84 %": [round(float(low), 4), round(float(high), 4)],
        "slope": round(slope, 2),
    }


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Shares of right choices in percent; an entry without a valid sample has none right."""
    weights = sorted({float(w) for w in options.weights.split(",")} | {0.0, TEMPERATURE_EV})
    right = [choices(row, weights) for row in rows]
    names = [*PLAIN, *(f"{kind} {w:g}" for kind in ("drawn", "relaxed") for w in weights)]
    share = {n: round(100 * sum(r.get(n, False) for r in right) / len(rows), 1) for n in names}
    steps = [c["steps"] for row in rows for c in row["candidates"] if c["steps"]]
    facts = {
        "entries": len(rows),
        "calculator": rows[0]["calculator"],
        "relaxed": f"{rows[0]['relax most']} of best score as drawn, "
        f"up to {rows[0]['relax steps']} steps",
        "steps on average": round(float(np.mean(steps)), 1) if steps else 0,
        "seconds an entry": round(sum(row["seconds"] for row in rows) / len(rows), 1),
        **{name: share[name] for name in PLAIN},
        "lowest energy": share["drawn 0"],
        "lowest energy after relaxation": share["relaxed 0"],
        f"score after relaxation ({TEMPERATURE_EV:g} eV)": share[f"relaxed {TEMPERATURE_EV:g}"],
        "by weight in eV, as drawn": {f"{w:g}": share[f"drawn {w:g}"] for w in weights},
        "by weight in eV, relaxed": {f"{w:g}": share[f"relaxed {w:g}"] for w in weights},
    }
    ranked = [places(row) for row in rows]
    facts["among the first 1, 3, 5, all: votes"] = among([by_votes for by_votes, _ in ranked])
    facts["among the first 1, 3, 5, all: score after relaxation"] = among([s for _, s in ranked])
    facts["by source"] = by_source(rows)
    facts["by formula"] = by_formula(rows, right)
    return facts | ({"likeliest weight": likeliest(rows)} if options.fit else {})


def by_formula(rows: list[dict[str, Any]], right: list[dict[str, bool]]) -> dict[str, str]:
    """In percent: right by votes, by score after relaxation, at all; formulas known and new."""
    names = "votes", f"relaxed {TEMPERATURE_EV:g}", "any"
    found = {}
    for known in (True, False):
        some = [r for r, row in zip(right, rows, strict=True) if row["formula known"] == known]
        share = (f"{100 * sum(r.get(n, False) for r in some) / len(some):.1f}" for n in names)
        found["known" if known else "new"] = f"{len(some)} entries: {', '.join(share)}"
    return found


def by_source(rows: list[dict[str, Any]]) -> dict[str, str]:
    """In percent of the entries: where a source gave a right sample, and where no other did."""
    found = [set(row.get("right samples", ())) for row in rows]
    names = sorted(set().union(*found))
    share = {n: (sum(n in f for f in found), sum(f == {n} for f in found)) for n in names}
    return {
        n: f"{100 * some / len(rows):.1f}, alone {100 * alone / len(rows):.1f}"
        for n, (some, alone) in share.items()
    }


def compute(options: argparse.Namespace) -> list[str]:
    """Judge the entries that ``--rows`` lacks; all its lines."""
    options.templates, options.proposer, options.verbose = shipped_templates(), None, False
    device = pick_device(options.device)
    known: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in known:
            known[name] = load_model(name, task="predict", device=device)
        return known[name]

    auto = options.weights_file == "auto"
    needs = {"composition"}
    loaded = load(choose_weights("predict", needs, None, None) if auto else options.weights_file)
    standard = Dataset.load(options.test).standard
    assert standard is not None
    generator = torch.Generator().manual_seed(options.shuffle_seed)
    order = torch.randperm(len(standard.crystals), generator=generator)
    chosen = order[options.skip : options.skip + options.entries]
    test = standard.crystals.index(chosen)
    source, formulas = Mixture.shipped(), formulas_of(Memory.load(shipped_templates()))
    potential = load_potential(options.calculator, device.type)
    settings, most = Settings(max_steps=options.relax_steps), options.relax_most
    lines = options.rows.read_text().splitlines() if options.rows.is_file() else []
    with options.rows.open("a") as notes:
        for index in range(len(lines), len(test)):
            start = time.monotonic()
            one = test.index(torch.tensor([index]))
            if auto:
                parts = plan_auto(one, options.k, loaded, load)
                drawn: dict[int, Crystals] = {}
                for part in parts:
                    drawn |= draw_exact(
                        part.loaded.model,
                        part.samples,
                        seed=options.seed,
                        steps=options.steps,
                        device=device,
                    )
                planned = [sample for part in parts for sample in part.samples]
                guesses = [drawn[sample.number] for sample in planned]
                votes, sources = [s.votes for s in planned], [s.source for s in planned]
            else:
                (guesses,) = draw(loaded.model, one, options.steps, options)
                votes = votes_of(one, options.k, source)[: len(guesses)]
                sources = [str(loaded.meta["family"])] * len(guesses)
            row = {
                "index": index + options.skip,
                "row": int(chosen[index]),
                "formula known": reduced(composition(one.species)) in formulas,
                "calculator": potential.name,
                "relax steps": options.relax_steps,
                "relax most": most,
                **judge(guesses, votes, one, potential, settings, most, sources),
            }
            row["seconds"] = round(time.monotonic() - start, 1)
            lines.append(json.dumps(row))
            notes.write(lines[-1] + "\n")
            notes.flush()
    return lines[: options.entries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights_file", metavar="WEIGHTS", help="predict weights, or auto")
    parser.add_argument("test", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=200)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first of the shuffle")
    parser.add_argument("--shuffle-seed", type=int, default=0)
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="rows of other processes")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--relax-steps", type=int, default=30)
    parser.add_argument("--relax-most", type=int, default=20)
    parser.add_argument("--weights", default=WEIGHTS, help="eV, of the score, comma-separated")
    parser.add_argument("--fit", action="store_true", help="also print the likeliest weight")
    parser.add_argument("--calculator", default="chgnet")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--edges", type=int, default=8192)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    lines = compute(options) if options.entries else []
    for path in options.merge:
        lines += path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    print(json.dumps(report(rows, options), indent=1))


if __name__ == "__main__":
    main()
