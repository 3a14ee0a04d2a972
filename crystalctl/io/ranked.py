"""A ranking <-> the files of its run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crystalctl.analysis.ranking import Candidate, Ranking
from crystalctl.analysis.symmetrise import symmetrise
from crystalctl.io.results import RAW, RunFolder, file_safe
from crystalctl.io.structures import FORMATS, extxyz_text, read_extxyz, structure_text


def write_ranking(
    run: RunFolder,
    ranking: Ranking,
    formats: Sequence[str],
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[dict[str, Any]]:
    """Write all results into the run folder and finish it; gives the rows of the summary."""
    run.write(RAW, _raw_text(ranking))
    rows = []
    total = len(ranking.candidates)
    width = max(3, len(str(total)))
    for candidate in ranking.candidates:
        row = candidate.row()
        stem = f"{candidate.rank:0{width}d}_{candidate.formula}_{row['space_group']}"
        for form in formats:
            name = file_safe(stem) + FORMATS[form]
            info = {k: v for k, v in row.items() if isinstance(v, int | str)}
            run.write(name, structure_text(candidate.symmetric, form, info=info))
            row.setdefault("file", name)
        rows.append(row)
        on_progress("writing", candidate.rank, total)
    counts = {
        "n_samples": len(ranking.samples),
        "n_structures": total,
        "n_set_aside": sum(ranking.set_aside().values()),
        "set_aside": ranking.set_aside(),
    }
    run.write_summary(rows, counts)
    run.finish(counts)
    return rows


def read_samples(run: RunFolder) -> dict[int, Any]:
    """The valid raw samples of a finished run as pymatgen structures, by sample number."""
    from pymatgen.io.ase import AseAtomsAdaptor

    return {
        int(info["sample"]): AseAtomsAdaptor.get_structure(atoms)
        for atoms, info in read_extxyz(run.path / RAW)
        if bool(info["valid"])
    }


def read_candidates(
    run: RunFolder, rows: Sequence[Mapping[str, Any]], samples: Sequence[Any]
) -> list[Candidate]:
    """The candidates of a finished run from the ``rows`` of its summary and its ``samples``."""
    drawn = read_samples(run)
    by_number = {sample.number: sample for sample in samples}
    return [
        Candidate(
            row["rank"],
            by_number[row["sample"]],
            row["formula"],
            drawn[row["sample"]],
            symmetrise(drawn[row["sample"]]),
            tuple(row["members"]),
        )
        for row in rows
    ]


def _raw_text(ranking: Ranking) -> str:
    ranks = ranking.rank_of()
    rows = []
    for sample in ranking.samples:
        one, facts = ranking.crystals[sample.number], ranking.facts[sample.number]
        species = one.species.tolist()
        info = {
            "formula": sample.label if sample.composition is not None else facts.formula or "-",
            "sample": sample.number,
            "z": sample.z or 0,
            "rank": ranks.get(sample.number, 0),
            "valid": facts.valid,
            "reason": facts.reason or "-",
        }
        rows.append((one.lattice[0].double().numpy(), one.frac.double().numpy(), species, info))
    return extxyz_text(rows)
