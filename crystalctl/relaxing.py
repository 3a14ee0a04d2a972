"""``relax``: structures of anybody -> relaxed ones, ranked by energy; a stopped run continues."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystalctl.analysis.energy import DEFAULT, Potential, load_potential
from crystalctl.analysis.matching import group_duplicates
from crystalctl.analysis.relaxation import Relaxed, Settings, relax
from crystalctl.analysis.symmetrise import Symmetric, symmetrise
from crystalctl.errors import InputError
from crystalctl.evaluation.report import Entry, Report, write_report
from crystalctl.io.collect import KINDS, Row, find_sources, read_source
from crystalctl.io.structures import structure_text, write_atomic

DONE, SETTINGS, TABLE, REPORT = "done.jsonl", "relax.json", "relaxed.csv", "report.html"
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Relaxation:
    """``rows``: those of relaxed.csv, ranked; ``structures``: by rank, relaxed; ``folder``."""

    rows: list[dict[str, Any]]
    structures: dict[int, Any]
    folder: Path
    calculator: str


def relax_all(
    paths: str | Path | Sequence[str | Path],
    *,
    calculator: str = DEFAULT,
    device: str = "cpu",
    fmax: float = 0.05,
    max_steps: int = 200,
    keep_symmetry: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Relaxation:
    """Relax cell and positions of every structure and rank each formula's by energy per atom.

    The input is only read. Of a run folder the ranked structures are relaxed, not those merged
    into them. ``fmax`` eV/Å. Results go to ``out`` (default: NAME-relaxed beside the input); what
    is done is kept as it comes, and ``resume`` continues there. Raises ``InputError`` for input
    without a structure, an unknown or missing calculator, a folder that is in use, other settings
    than those of the run to be resumed.
    """
    if not fmax > 0 or max_steps < 1:
        raise InputError("fmax and max_steps must be positive", "like 0.05 eV/Å and 200 steps")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    rows = [row for source in find_sources(given) for row in read_source(source) if row.rank != 0]
    if not any(row.entry for row in rows):
        raise InputError("none of the structures can be read", f"give {KINDS}")
    potential = load_potential(calculator, device)
    settings = Settings(fmax, max_steps, keep_symmetry)
    folder = Path(out) if out is not None else _beside(Path(given[0]))
    known = {"calculator": potential.name, **settings.plain(), "structures": len(rows)}
    done = _claim(folder, known, resume=resume)
    _relax_missing(folder, rows, done, potential, settings, on_progress)
    found = _ranked(rows, done, on_progress)
    structures = {}
    for row, symmetric in found:
        if symmetric is not None:
            structures[row["rank"]] = symmetric.structure
            name = f"{row['rank']:03d}_{row['formula']}_{_symbol(symmetric)}.cif"
            row["file"] = name.replace("/", "-")
            write_atomic(folder / row["file"], structure_text(symmetric, "cif", info={}))
    table = [row for row, _ in found]
    _write(folder, found, potential.name)
    return Relaxation(table, structures, folder, potential.name)


def _beside(path: Path) -> Path:
    path = path.resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    return path.parent / f"{stem or 'structures'}-relaxed"


def _claim(folder: Path, known: dict[str, Any], *, resume: bool) -> dict[int, dict[str, Any]]:
    """What is done already; refuses to write over another run."""
    text = json.dumps(known, indent=1) + "\n"
    note = folder / SETTINGS
    if note.is_file():
        if not resume:
            raise InputError(f"{folder} holds a relaxation already", "add --resume or other --out")
        if note.read_text() != text:
            raise InputError(
                f"{folder} was made with other settings or structures",
                f"see {SETTINGS} there, or choose another --out",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no relaxation", "choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(note, text)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error})", "choose another --out") from error
    done: dict[int, dict[str, Any]] = {}
    if (folder / DONE).is_file():
        for line in (folder / DONE).read_text().splitlines():
            try:
                one = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut
                continue
            done[one["index"]] = one
    return done


def _relax_missing(
    folder: Path,
    rows: Sequence[Row],
    done: dict[int, dict[str, Any]],
    potential: Potential,
    settings: Settings,
    on_progress: OnProgress | None,
) -> None:
    """Relax what is not done, smallest first so that batches are alike; note each at once."""
    todo = [i for i, row in enumerate(rows) if row.entry is not None and i not in done]
    todo.sort(key=lambda i: len(_entry(rows[i]).numbers))
    structures = [_structure(rows[i]) for i in todo]
    with (folder / DONE).open("a") as notes:
        if notes.tell():
            notes.write("\n")  # ends a line that was cut
        for count, (place, result) in enumerate(relax(potential, structures, settings), start=1):
            one = {"index": todo[place], **_plain(result)}
            done[todo[place]] = one
            notes.write(json.dumps(one) + "\n")
            notes.flush()
            os.fsync(notes.fileno())
            if on_progress is not None:
                on_progress("relaxing", count, len(todo))


def _entry(row: Row) -> Any:
    return row.entry


def _structure(row: Row) -> Any:
    from pymatgen.core import Lattice, Structure

    entry = _entry(row)
    return Structure(Lattice(entry.lattice), entry.numbers.tolist(), entry.frac)


def _plain(result: Relaxed) -> dict[str, Any]:
    structure = result.structure
    facts = asdict(result)
    facts["structure"] = None if structure is None else structure.as_dict()
    return facts


def _ranked(
    rows: Sequence[Row], done: dict[int, dict[str, Any]], on_progress: OnProgress | None
) -> list[tuple[dict[str, Any], Symmetric | None]]:
    """Rows of the table: by formula as they came, then energy; duplicates and failures last."""
    from pymatgen.core import Structure

    facts = [_facts(row, done.get(index)) for index, row in enumerate(rows)]
    good = [i for i in range(len(rows)) if not facts[i]["reason"]]
    good.sort(key=lambda i: facts[i]["energy_ev"])
    structures = {i: Structure.from_dict(done[i]["structure"]) for i in good}
    found: list[tuple[dict[str, Any], Symmetric | None]] = []
    lead: dict[int, int] = {}
    # Energies ascend: the first of a group, which stands for it, has the lowest.
    for members in group_duplicates([structures[i] for i in good]):
        for member in members:
            lead[good[member]] = good[members[0]]
    order = {name: k for k, name in enumerate(dict.fromkeys(f["formula"] for f in facts))}
    leaders = [i for i in good if lead[i] == i]
    leaders.sort(key=lambda i: (order[facts[i]["formula"]], facts[i]["energy_ev"]))
    for rank, i in enumerate(leaders, start=1):
        symmetric = symmetrise(structures[i])
        merged = sum(1 for other in good if lead[other] == i)
        facts[i] |= {"rank": rank, "count": merged, "group": _symbol(symmetric)}
        found.append((facts[i], symmetric))
        if on_progress is not None:
            on_progress("symmetrising", rank, len(leaders))
    for i in range(len(rows)):
        if i in lead and lead[i] != i:
            facts[i]["same_as"] = facts[lead[i]]["rank"]
        if lead.get(i) != i:
            found.append((facts[i], None))
    return found


def _symbol(symmetric: Symmetric) -> str:
    return symmetric.symbol.replace("_", "")


def _facts(row: Row, done: dict[str, Any] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"rank": None, "id": row.id, "source": row.source, "formula": ""}
    facts |= {"group_before": "", "group": "", "count": None, "same_as": None, "file": ""}
    if row.entry is None or done is None:
        return facts | {"reason": row.reason or "cannot be read"}
    before = _structure(row)
    return facts | {
        "formula": before.composition.reduced_formula,
        "group_before": "" if done["reason"] else _symbol(symmetrise(before)),
        "energy_ev": done["energy"],
        "energy_before_ev": done["start_energy"],
        "rmsd_ang": done["rmsd"],
        "volume_change": done["volume_change"],
        "steps": done["steps"],
        "converged": done["converged"],
        "reason": done["reason"],
    }


def _write(
    folder: Path, found: Sequence[tuple[dict[str, Any], Symmetric | None]], calculator: str
) -> None:
    columns = list(dict.fromkeys(name for row, _ in found for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row, _ in found)
    write_atomic(folder / TABLE, text.getvalue())
    write_report(
        folder / REPORT,
        Report(
            title=f"Relaxed structures ({calculator})",
            entries=list(_entries(found)),
            order=f"energy per atom, {calculator}",
            n_samples=len(found),
            files=TABLE,
        ),
    )


def _entries(found: Sequence[tuple[dict[str, Any], Symmetric | None]]) -> Iterator[Entry]:
    for row, symmetric in found:
        if symmetric is not None:
            yield Entry(
                rank=row["rank"],
                structure=symmetric.structure,
                formula=row["formula"],
                space_group=_symbol(symmetric),
                space_group_number=symmetric.number,
                file=row["file"],
                count=row["count"],
                energy_ev=row["energy_ev"],
                group_before=row["group_before"],
                moved_ang=row["rmsd_ang"],
            )
