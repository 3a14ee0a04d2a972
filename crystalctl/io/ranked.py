"""A ranking <-> the files of its run folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crystalctl.analysis.packed import Packed
from crystalctl.analysis.ranking import Candidate, Ranking, differing
from crystalctl.analysis.symmetrise import symmetrise
from crystalctl.io.results import RAW, REPORT, RunFolder, file_safe
from crystalctl.io.structures import FORMATS, extxyz_text, read_extxyz, structure_text

if TYPE_CHECKING:
    from crystalctl.analysis.powder import Pattern


SCORES = ("xrd_similarity", "xrd_scale")
"""Columns of the summary that a ranking adds to the facts of a candidate."""


@dataclass(frozen=True)
class Page:
    """How to write ``report.html``: the measured pattern, if any, and the wavelength in Å."""

    measured: Pattern | None
    wavelength: float


def write_ranking(
    run: RunFolder,
    ranking: Ranking,
    formats: Sequence[str],
    *,
    page: Page | None = None,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> list[dict[str, Any]]:
    """Write all results into the run folder and finish it; gives the rows of the summary.

    ``page``: also write ``report.html``.
    """
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
    if page is not None:
        run.write(REPORT, _report(run, ranking, rows, page))
    run.finish(counts)
    return rows


def _report(run: RunFolder, ranking: Ranking, rows: Sequence[Mapping[str, Any]], page: Page) -> str:
    from crystalctl.evaluation.report import Entry, Report, page_html

    tell = differing(candidate.source for candidate in ranking.candidates)
    entries = [
        Entry(
            rank=candidate.rank,
            structure=candidate.symmetric.packed,
            formula=candidate.formula,
            space_group=candidate.symmetric.symbol,
            space_group_number=candidate.symmetric.number,
            file=row["file"],
            count=candidate.count,
            xrd_similarity=row.get("xrd_similarity"),
            xrd_scale=row.get("xrd_scale"),
            extra=({"known": candidate.known} if candidate.known else {})
            | ({"source": candidate.source} if tell else {}),
        )
        for candidate, row in zip(ranking.candidates, rows, strict=True)
    ]
    samples = ranking.samples
    predicted = samples[0].composition is not None
    formulas = list(dict.fromkeys(sample.label for sample in samples))
    more = f" and {len(formulas) - 3} more" if len(formulas) > 3 else ""
    title = f"Predicted structures of {', '.join(formulas[:3])}{more}"
    command = [str(part) for part in run.manifest.get("command", [])]
    by_votes = any(sample.votes for sample in samples)
    first = "votes for the template, " if predicted else "likeness to a known compound, "
    usual = f"{first if by_votes else ''}number of samples merged"
    return page_html(
        Report(
            title=title if predicted else "Generated structures",
            entries=entries,
            command=shlex.join(["crystalctl", *command[1:]]) if command else "",
            order="similarity to the measured pattern" if page.measured else usual,
            set_aside=ranking.set_aside(),
            n_samples=len(samples),
            measured=page.measured,
            wavelength=page.wavelength,
        )
    )


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
            Packed.of(drawn[row["sample"]]),
            symmetrise(drawn[row["sample"]]),
            tuple(row["members"]),
            {name: row[name] for name in SCORES if name in row},
            row.get("votes", 0.0),
            row.get("source", ""),
            row.get("known", ""),
        )
        for row in rows
    ]


def _raw_text(ranking: Ranking) -> Iterator[str]:
    """The extended XYZ of all samples, one after the other."""
    ranks = ranking.rank_of()
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
            "source": sample.source or "-",
        }
        lattice, frac = one.lattice[0].double().numpy(), one.frac.double().numpy()
        yield extxyz_text([(lattice, frac, species, info)])
