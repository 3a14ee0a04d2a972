"""``relax`` and ``rank``: structures of anybody, relaxed or as they are, ranked by energy.

A stopped run continues.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.analysis.chgnet import BATCH_ACCELERATOR
from crystalctl.analysis.energy import DEFAULT, Potential, load_potential
from crystalctl.analysis.hull import Hull
from crystalctl.analysis.ranking import differing
from crystalctl.analysis.relaxation import Relaxed, Settings, relax
from crystalctl.analysis.scoring import TEMPERATURE_EV, check_order
from crystalctl.analysis.symmetrise import Symmetric
from crystalctl.errors import InputError
from crystalctl.evaluation.report import Entry, Report, write_report
from crystalctl.io.collect import KINDS, Row, Source, find_sources, read_source
from crystalctl.io.results import RANKING
from crystalctl.io.structures import extxyz_text, structure_text, write_atomic
from crystalctl.ordering import rank_rows, structure_of, symbol_of

if TYPE_CHECKING:
    from crystalctl.cluster import Cluster

DONE, REPORT = "done.jsonl", "report.html"
STRUCTURES = "structures.extxyz"
"""All ranked structures with energies and E_hull, which ``evaluate`` reads."""
OnProgress = Callable[[str, int, int], None]
Found = tuple[dict[str, Any], Symmetric | None]
"""A row of the table, and its symmetric cell where it is ranked."""


@dataclass(frozen=True)
class Relaxation:
    """``rows``: those of the table, ranked; ``structures``: by rank; ``folder``.

    ``reference``: which energies the hull is made of, empty without one; ``together``: all formulas
    are ranked by energy above it, else each by itself. ``moved``: relaxed, not just ranked as they
    are. ``by``: "score" where at least one structure has one and ranks by it, else "energy".
    """

    rows: list[dict[str, Any]]
    structures: dict[int, Any]
    folder: Path
    calculator: str
    reference: str = ""
    together: bool = False
    moved: bool = True
    by: str = "energy"


def relax_all(
    paths: str | Path | Sequence[str | Path],
    *,
    calculator: str = DEFAULT,
    device: str = "cpu",
    settings: Settings | None = None,
    move: bool = True,
    hull: str | Path | None = None,
    by: str = "score",
    out: str | Path | None = None,
    resume: bool = False,
    cluster: Cluster | None = None,
    on_progress: OnProgress | None = None,
) -> Relaxation:
    """Relax cell and positions of every structure and rank each formula's ``by`` score or energy.

    The input is only read. Of a run folder the ranked structures are relaxed, not those merged
    into them. Without ``move`` structures stay as they are. With a ``hull`` (a shipped one by name,
    or a file, see ``analysis/hull.py``) all formulas are ranked together by energy above it, and so
    are generated runs, for which one of the calculator is shipped. Results go to ``out``
    (default: NAME-relaxed or NAME-ranked beside the input); what is done is kept as it comes, and
    ``resume`` continues there. A ``cluster`` relaxes in its workers, which need the calculator.
    Raises ``InputError`` for input without a structure, a calculator or hull that cannot serve, a
    folder in use, other settings than those of the run to be resumed.
    """
    check_order(by)
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    sources = find_sources(given)
    rows = [row for source in sources for row in read_source(source) if row.rank != 0]
    if not any(row.entry for row in rows):
        raise InputError("none of the structures can be read", f"give {KINDS}")
    potential = load_potential(calculator, device if cluster is None else "cpu")
    reference, together = _reference(hull, potential.name, sources, rows)
    how = settings or Settings()
    # One step is one call at the place where a structure is: its energy, nothing moved.
    how = how if move else replace(how, max_steps=1)
    verb = "relaxed" if move else "ranked"
    way = partial(relax, potential)
    if cluster is not None:
        way = partial(_relax_there, cluster.connect(), (calculator, device), potential.batch)
    folder = Path(out) if out is not None else _beside(Path(given[0]), verb)
    known = {"verb": verb, "calculator": potential.name, **how.plain(), **_digest(rows)}
    done = _claim(folder, known, resume=resume)
    _relax_missing(folder, rows, done, partial(way, settings=how), on_progress)
    found = rank_rows(rows, done, hull=reference, together=together, by=by, on_progress=on_progress)
    _remove_old(folder, verb)
    structures = _write_structures(folder, found)
    result = Relaxation(
        [row for row, _ in found],
        structures,
        folder,
        potential.name,
        "" if reference is None else reference.reference,
        together,
        move,
        by if any(row["rank"] and row["score_ev"] is not None for row, _ in found) else "energy",
    )
    _write(result, found)
    return result


def _reference(
    wish: str | Path | None, calculator: str, sources: Sequence[Source], rows: Sequence[Row]
) -> tuple[Hull | None, bool]:
    """The hull, and whether all formulas are ranked together by the energy above it.

    One that is asked for has to say something of the structures.
    """
    from crystalctl.checkpoint import hull_file

    file = hull_file(wish, calculator)
    if file is None:
        return None, False
    hull = Hull.load(file, calculator=calculator)
    if wish is not None:
        hull.check([structure_of(row).composition.reduced_formula for row in rows if row.entry])
    return hull, wish is not None or all(source.task == "generate" for source in sources)


def _beside(path: Path, verb: str) -> Path:
    path = path.resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    return path.parent / f"{stem or 'structures'}-{verb}"


def _digest(rows: Sequence[Row]) -> dict[str, Any]:
    """What the structures are: another set of as many is not the run to be resumed."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row.id.encode())
        if row.entry is not None:
            for part in (row.entry.lattice, row.entry.frac, row.entry.numbers):
                found.update(part.tobytes())
    return {"structures": len(rows), "sha256": found.hexdigest()}


def _remove_old(folder: Path, verb: str) -> None:
    """Remove the structures of an earlier ranking in the folder, whose names hold other ranks."""
    table = folder / f"{verb}.csv"
    if table.is_file():
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines):
                if row.get("file"):
                    (folder / Path(row["file"]).name).unlink(missing_ok=True)


def _claim(folder: Path, known: dict[str, Any], *, resume: bool) -> dict[int, dict[str, Any]]:
    """What is done already; refuses to write over another run."""
    text = json.dumps(known, indent=1) + "\n"
    note = folder / RANKING
    if note.is_file():
        if not resume:
            raise InputError(f"{folder} holds a ranking already", "add --resume or other --out")
        if note.read_text() != text:
            raise InputError(
                f"{folder} was made with other settings or structures",
                f"see {RANKING} there, or choose another --out",
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no ranking of ours", "choose another --out")
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
    way: Callable[[Sequence[Any]], Iterator[tuple[int, Relaxed]]],
    on_progress: OnProgress | None,
) -> None:
    """Relax what is not done, smallest first so that batches are alike; note each at once."""
    todo = [i for i, row in enumerate(rows) if row.entry is not None and i not in done]
    todo.sort(key=lambda i: rows[i].entry.numbers.size)  # type: ignore[union-attr]
    structures = [structure_of(rows[i]) for i in todo]
    with (folder / DONE).open("a") as notes:
        if notes.tell():
            notes.write("\n")  # ends a line that was cut
        for count, (place, result) in enumerate(way(structures), start=1):
            one = {"index": todo[place], **_plain(result)}
            done[todo[place]] = one
            notes.write(json.dumps(one) + "\n")
            notes.flush()
            os.fsync(notes.fileno())
            if on_progress is not None:
                on_progress("relaxing", count, len(todo))


def _relax_there(
    cluster: Cluster,
    calculator: tuple[str, str],
    batch: int,
    structures: Sequence[Any],
    settings: Settings,
) -> Iterator[tuple[int, Relaxed]]:
    """As ``relax``, in tasks of a ``cluster``; ``calculator``: its name, and where it computes.

    ``batch``: of the calculator on a CPU.
    """
    gpu = calculator[1] != "cpu"
    if gpu and batch > 1:
        batch = BATCH_ACCELERATOR
    # Two batches fill a network call nearly always; several tasks a worker even out the load.
    size = max(1, min(2 * batch, len(structures) // (4 * cluster.slots(gpu=gpu))))
    parts = [range(k, k + size)[: len(structures) - k] for k in range(0, len(structures), size)]
    tasks = ((part, [structures[i] for i in part]) for part in parts)
    work = partial(_relax_task, settings=settings)
    done = cluster.run(work, tasks, prepare=_potential, given=calculator, gpu=gpu)
    for (part, _), results in done:
        yield from ((part[place], result) for place, result in results)


def _potential(calculator: tuple[str, str]) -> Potential:
    return load_potential(*calculator)


def _relax_task(
    potential: Potential, item: tuple[Any, list[Any]], _: Any, *, settings: Settings
) -> list[tuple[int, Relaxed]]:
    return list(relax(potential, item[1], settings))


def _plain(result: Relaxed) -> dict[str, Any]:
    structure = result.structure
    facts = asdict(result)
    facts["structure"] = None if structure is None else structure.as_dict()
    return facts


def _write_structures(folder: Path, found: Sequence[Found]) -> dict[int, Any]:
    """Write a CIF of each ranked structure and name it in its row; all of them by rank."""
    structures = {}
    for row, symmetric in found:
        if symmetric is not None:
            structures[row["rank"]] = symmetric.structure
            name = f"{row['rank']:03d}_{row['formula']}_{symbol_of(symmetric)}.cif"
            row["file"] = name.replace("/", "-")
            write_atomic(folder / row["file"], structure_text(symmetric, "cif", info={}))
    return structures


def _write(result: Relaxation, found: Sequence[Found]) -> None:
    verb = "relaxed" if result.moved else "ranked"
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.rows)
    write_atomic(result.folder / f"{verb}.csv", text.getvalue())
    write_atomic(result.folder / STRUCTURES, extxyz_text(list(_labelled(result))))
    by = f"energy above {result.reference}" if result.together else "energy per atom"
    if result.by == "score":
        by = f"score: {by}, {TEMPERATURE_EV:g} eV higher for a proposal e times less likely"
    write_report(
        result.folder / REPORT,
        Report(
            title=f"{verb.capitalize()} structures ({result.calculator})",
            entries=list(_entries(found)),
            order=f"{by}, {result.calculator}",
            n_samples=len(found),
            files=f"{verb}.csv",
        ),
    )


def _labelled(result: Relaxation) -> Iterator[tuple[Any, Any, list[int], dict[str, Any]]]:
    for row in result.rows:
        if row["rank"] is None:
            continue
        structure = result.structures[row["rank"]]
        info = {"rank": row["rank"], "energy_per_atom": row["energy_ev"]}
        info |= {"rmsd_to_relaxed": row["rmsd_ang"]} if result.moved else {}
        if row.get("e_hull_ev") is not None:
            info["e_above_hull"] = row["e_hull_ev"]
        numbers = [site.specie.Z for site in structure]
        yield structure.lattice.matrix, structure.frac_coords, numbers, info


def _entries(found: Sequence[Found]) -> Iterator[Entry]:
    tell = differing(row["drawn_by"] for row, _ in found)
    for row, symmetric in found:
        if symmetric is not None:
            yield Entry(
                rank=row["rank"],
                structure=symmetric.structure,
                formula=row["formula"],
                space_group=symbol_of(symmetric),
                space_group_number=symmetric.number,
                file=row["file"],
                count=row["count"],
                energy_ev=row["energy_ev"],
                e_hull_ev=row.get("e_hull_ev"),
                group_before=row["group_before"],
                moved_ang=row["rmsd_ang"],
                extra={
                    **({"known": row["known"]} if row.get("known") else {}),
                    **({} if row["score_ev"] is None else {"score": row["score_ev"]}),
                    **({"drawn by": row["drawn_by"]} if tell else {}),
                },
            )
