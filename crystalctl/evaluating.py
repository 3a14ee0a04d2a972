"""``evaluate``: structures of anybody, beside a reference or alone -> facts and metrics."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crystalctl.analysis.comparing import Compared
from crystalctl.analysis.described import Described, Wanted
from crystalctl.analysis.fingerprints import default_cache
from crystalctl.cluster import cluster_of
from crystalctl.comparisons import MAX_PAIRS, match_all, sort_out
from crystalctl.errors import InputError
from crystalctl.evaluation import summary
from crystalctl.evaluation.benchmarks import Benchmark, benchmark
from crystalctl.evaluation.pairing import Pairing, pair
from crystalctl.evaluation.report import write_report
from crystalctl.gathering import OnProgress, Set, Workers, gather, gather_reference, rank_of
from crystalctl.io.collect import KINDS, Source, find_sources
from crystalctl.io.structures import write_atomic
from crystalctl.overview import page

TASKS = ("auto", "predict", "generate")
FACTS, METRICS, REPORT = "facts.csv", "metrics.json", "report.html"
_PREDICTION_OVERLAP = 0.5
"""Without a word about the task, structures of which fewer have a formula of the reference were
generated, not predicted."""


@dataclass(frozen=True)
class Evaluation:
    """``metrics``: what metrics.json holds; ``facts``: the rows of facts.csv; ``folder`` or None.

    ``notes``: what the user should know about how the numbers came about.
    """

    metrics: dict[str, Any]
    facts: list[dict[str, Any]]
    notes: list[str]
    folder: Path | None


def evaluate(
    paths: str | Path | Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    train: str | Path | None = None,
    benchmark_name: str = "mp_20",
    task: str = "auto",
    k: Sequence[int] = (),
    fingerprints: bool = True,
    cache: str | Path | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    cluster: str | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Judge the structures of each path: validity, prediction or generation metrics.

    ``reference``: what predictions should match or generated structures resemble; ``train``: what
    they must not repeat to be novel (default: the reference). ``task``: "predict", "generate" or
    "auto". ``k``: further values for best-of-k. ``fingerprints``: the slow site fingerprints of
    coverage and of the published gate, kept in ``cache``. ``cluster``: describe and compare as
    tasks of Ray, "local" or an address. Nothing is written without ``out``.
    Raises ``InputError`` where there is nothing to judge or the reference has none of the formulas.
    """
    cutoffs = benchmark(benchmark_name)
    if task not in TASKS:
        raise InputError(f"unknown task '{task}'", f"allowed: {', '.join(TASKS)}")
    if any(number < 1 for number in k):
        raise InputError(f"k is {min(k)}", "k is a number of predictions, 1 or more")
    sources = find_sources([paths] if isinstance(paths, str | Path) else list(paths))
    folder = None if out is None else _checked(Path(out))
    wanted = Wanted(fingerprints, default_cache() if cache is None else Path(cache), _has_smact())
    with ExitStack() as stack:
        there = stack.enter_context(cluster_of(cluster, jobs))
        workers = Workers(jobs or os.cpu_count() or 1, stack, on_progress, there)
        runs = [(source, gather(source, workers, wanted)) for source in sources]
        _refuse_unreadable(runs)
        theirs = None if reference is None else gather_reference(reference, workers, wanted)
        known = theirs if train is None else gather_reference(train, workers, wanted, bare=True)
        judge = partial(_judge, theirs=theirs, known=known, cutoffs=cutoffs, k=k, workers=workers)
        judged = [judge(run, task=_task(source, task)) for source, run in runs]
    notes = _notes(wanted, cutoffs, judged, alone=task == "predict" and reference is None)
    metrics = {
        "benchmark": cutoffs.name,
        "cutoffs": {"site": cutoffs.site_cutoff, "composition": cutoffs.composition_cutoff},
        "reference": None if reference is None else str(reference),
        "train": None if train is None else str(train),
        "notes": notes,
        "runs": {run.name: found for (_, run), (found, _) in zip(runs, judged, strict=True)},
    }
    rows = [row for _, table in judged for row in table]
    result = Evaluation(metrics, rows, notes, folder)
    if folder is not None:
        write(result, folder)
        pages = [
            (ours, found, table) for (_, ours), (found, table) in zip(runs, judged, strict=True)
        ]
        write_report(folder / REPORT, page(pages, notes, FACTS))
    return result


def write(result: Evaluation, folder: Path) -> None:
    """Write facts.csv and metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    columns = list(dict.fromkeys(name for row in result.facts for name in row))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result.facts)
    write_atomic(folder / FACTS, table.getvalue())
    write_atomic(folder / METRICS, json.dumps(_plain(result.metrics), indent=1) + "\n")


def default_out(paths: Sequence[str | Path]) -> Path:
    """The folder beside the input that results go to: ``NAME-evaluation``.

    Of several inputs, ``evaluation`` beside the first.
    """
    first = Path(paths[0])
    if not first.exists():  # a glob: beside the folder it starts from
        names = first.parts
        plain = next((i for i, part in enumerate(names) if set("*?[") & set(part)), len(names))
        first = Path(*names[:plain])
    if first.name in ("", ".."):
        first = first.resolve()
    if len(paths) > 1:
        return first.parent / "evaluation"
    stem = first.name if first.is_dir() else first.name.split(".")[0]
    return first.parent / f"{stem or 'structures'}-evaluation"


def _checked(folder: Path) -> Path:
    """Refuse, before any work, a folder that cannot be written."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}", "choose another --out")
    return folder


def _judge(
    ours: Set,
    *,
    task: str,
    theirs: Set | None,
    known: Set | None,
    cutoffs: Benchmark,
    k: Sequence[int],
    workers: Workers,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Aggregates and rows of one run."""
    pairing = None if theirs is None else pair(ours.side, theirs.side)
    task = _decide(task, pairing, ours.name)
    predicts = task == "predict" and pairing is not None
    facts = ours.facts
    found: dict[str, Any] = {"task": task, "validity": summary.validity(facts)}
    if predicts:
        assert pairing is not None
        assert theirs is not None
        compared, complete = match_all(ours, theirs, pairing, workers)
        found["prediction"] = summary.prediction(
            pairing,
            compared.distances,
            ours=facts,
            theirs=theirs.facts,
            counts=k,
            complete=complete,
        )
    else:
        compared = sort_out(ours, known, workers)
        found["generation"] = summary.generation(
            compared,
            ours=facts,
            theirs=None if theirs is None else theirs.facts,
            known=None if known is None else known.facts,
            cutoffs=cutoffs,
        )
    found["stability"] = summary.stability(
        facts, compared, has_known=known is not None and not predicts
    )
    rows = _rows(ours, pairing if predicts else None, compared, theirs, known)
    found["failures"] = summary.reasons([row["reason"] for row in rows])
    return found, rows


def _rows(
    ours: Set,
    pairing: Pairing | None,
    compared: Compared,
    theirs: Set | None,
    known: Set | None,
) -> list[dict[str, Any]]:
    """The rows of facts.csv of one run."""
    owners: dict[int, list[int]] = defaultdict(list)
    for j, members in enumerate(() if pairing is None else pairing.drawn):
        for i in members:
            owners[i].append(j)
    found = []
    for i, (row, one) in enumerate(zip(ours.rows, ours.described, strict=True)):
        near = [(compared.distances[i, j], j) for j in owners[i] if (i, j) in compared.distances]
        value, owner = min(near) if near else (None, next(iter(owners[i]), None))
        new: dict[str, Any] = {
            "run": ours.name,
            "source": row.source,
            "row": row.number,
            "id": row.id,
            "formula": one.formula,
            "n_atoms": one.n_atoms or None,
            "n_elements": one.n_elements or None,
            "density": one.density,
            "volume": one.volume,
            "space_group": one.group or None,
            "struct_valid": one.struct_valid,
            "comp_valid": one.comp_valid,
            "valid": one.valid if one.comp_valid is not None or one.reason else None,
            "reason": _reason(one),
            "rank": rank_of(row) or None,
        }
        if pairing is not None and theirs is not None:
            new["reference"] = None if owner is None else theirs.rows[owner].id
            new["rmse"] = value
        else:
            lead = compared.first.get(i)
            new["unique"] = None if lead is None else lead == i
            new["same_as"] = None if lead in (None, i) else ours.rows[int(lead or 0)].id
            new["novel"] = None if known is None or lead is None else i not in compared.known
            twin = compared.known.get(i)
            new["known_as"] = None if twin is None or known is None else known.rows[twin].id
        found.append(new)
    return found


def _reason(one: Described) -> str:
    """Why a structure is not valid, or cannot be compared, in words."""
    if one.reason or one.strange:
        return one.reason or f"not compared: {one.strange}"
    if not one.struct_valid:
        return "atoms closer than 0.5 Å"
    if one.comp_valid is False:
        return "composition cannot be charge-neutral"
    return "no fingerprint of the sites" if one.with_site and one.site is None else ""


def _task(source: Source, task: str) -> str:
    return source.task if task == "auto" and source.task in TASKS else task


def _decide(task: str, pairing: Pairing | None, name: str) -> str:
    """What a run is judged as; refuses a prediction without any formula in the reference."""
    if pairing is None or task == "generate":
        return "generate" if task == "auto" else task
    if pairing.how == "formula" and not pairing.overlap:
        raise InputError(
            f"the reference has none of the formulas of {name}",
            "give the reference of these predictions; for generated structures add --task generate",
        )
    if task == "predict" or pairing.how != "formula":
        return "predict"
    return "predict" if pairing.overlap >= _PREDICTION_OVERLAP else "generate"


def _refuse_unreadable(runs: Sequence[tuple[Source, Set]]) -> None:
    everything = [one.reason for _, run in runs for one in run.described]
    if all(everything):
        first = f", the first because: {everything[0]}" if everything else ""
        raise InputError(
            f"none of {len(everything)} structures can be read{first}", f"give {KINDS}"
        )


def _notes(
    wanted: Wanted,
    cutoffs: Benchmark,
    judged: Sequence[tuple[dict[str, Any], Any]],
    *,
    alone: bool,
) -> list[str]:
    """``alone``: what somebody calls predictions has no reference."""
    notes = ["predictions without --reference: no match rate"] if alone else []
    if cutoffs.note:
        notes.append(f"{cutoffs.name}: {cutoffs.note}")
    if not wanted.smact:
        notes.append(
            "composition validity and gated match rates need smact: "
            'pip install "crystalctl[evaluate]"'
        )
    if not wanted.sites:
        notes.append("without fingerprints: no coverage, and validity does not ask for them")
    if any("prediction" in found and found["prediction"]["metre"] is None for found, _ in judged):
        notes.append(f"no METRe: more than {MAX_PAIRS:,} pairs of structures of one formula")
    return notes


def _has_smact() -> bool:
    from importlib.util import find_spec

    return find_spec("smact") is not None


def _plain(value: Any) -> Any:
    """The same without what JSON does not have: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
