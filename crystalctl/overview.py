"""The page of an evaluation: metrics of all runs side by side, and their structures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from crystalctl.evaluation.report import Entry, Metric, Report, Run
from crystalctl.gathering import Set, cell_of
from crystalctl.symmetry.tables import tables

Judged = tuple[Set, Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""A run, its aggregates, and its rows of facts.csv."""
_PERCENT = ("structurally valid", "compositionally valid", "valid")
_COLUMNS = ("run", "id", "reference", "rmse", "unique", "novel", "source")


def page(judged: Sequence[Judged], notes: Sequence[str], facts: str) -> Report:
    """What ``write_report`` shows. ``facts``: name of the file with all rows.

    Structures come in the order of each run's input, the runs in turn, so that the pictures show
    some of each; the table is cut where the report says so.
    """
    columns = [dict(_values(found)) for _, found, _ in judged]
    names = list(dict.fromkeys(name for values in columns for name in values))
    many = len(judged) > 1
    turns = zip_longest(*(zip(run.rows, rows, strict=True) for run, _, rows in judged))
    paired = (one for turn in turns for one in turn if one is not None)
    entries = [_entry(rank, row, facts_of, many) for rank, (row, facts_of) in enumerate(paired, 1)]
    aside: dict[str, int] = {}
    for _, found, _ in judged:
        for reason, count in found["failures"].items():
            aside[reason] = aside.get(reason, 0) + count
    return Report(
        title="Evaluation of " + ", ".join(run.name for run, _, _ in judged),
        entries=entries,
        notes=notes,
        order="order of the input",
        set_aside=aside,
        n_samples=len(entries),
        metrics=[Metric(name, _better(name)) for name in names],
        runs=[Run(run.name, values) for (run, _, _), values in zip(judged, columns, strict=True)],
        files=facts,
    )


def _entry(rank: int, row: Any, facts: Mapping[str, Any], many: bool) -> Entry:
    number = facts["space_group"]
    extra = {name: facts.get(name) for name in _COLUMNS if many or name != "run"}
    return Entry(
        rank=rank,
        structure=None if facts["reason"] else _structure(row),
        formula=facts["formula"] or "",
        space_group=tables().symbols[number - 1] if number else "",
        space_group_number=number,
        reason=facts["reason"],
        # The files are where the input is, some in archives: a link from here would be broken.
        extra={
            name: ("yes" if value else "no") if isinstance(value, bool) else value
            for name, value in extra.items()
            if value is not None
        },
    )


def _structure(row: Any) -> Any:
    from pymatgen.core import Lattice, Structure

    cell = cell_of(row)
    if cell is None:
        return None
    lattice, frac, numbers = cell
    return Structure(Lattice(lattice), list(numbers), frac)


def _better(name: str) -> str:
    if name.startswith(("RMSE", "cRMSE", "Wasserstein", "Jensen")):
        return "lower"
    return "" if name in ("structures", "space groups", "templates") else "higher"


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """(metric, value) of one run; rates in percent."""
    valid = found["validity"]
    yield "structures", valid["n_structures"]
    for name, key in zip(_PERCENT, ("struct_valid", "comp_valid", "valid"), strict=True):
        yield f"{name}, %", _percent(valid[key])
    prediction = found.get("prediction") or {}
    for key in [key for key in prediction if key.startswith("k=") or key == "top_1"]:
        for gate, words in (("ungated", ""), ("gated_both", ", both valid")):
            if gate in prediction[key]:
                yield f"match rate, {key}{words}, %", _percent(prediction[key][gate]["match_rate"])
                yield f"RMSE, {key}{words}", prediction[key][gate]["rmse"]
    if prediction.get("metre"):
        yield "METRe, %", _percent(prediction["metre"]["metre"])
        yield "cRMSE of METRe", prediction["metre"]["crmse"]
    generation = found.get("generation") or {}
    for key, name in (("unique", "unique"), ("novel", "novel"), ("unique_novel", "unique, novel")):
        if generation.get(key) is not None:
            yield f"{name}, %", _percent(generation[key])
    if generation:
        yield "templates", generation["templates"]["n_unique"]
        yield "space groups", generation["n_groups"]
    if generation.get("coverage"):
        yield "COV-R, %", _percent(generation["coverage"]["recall"])
        yield "COV-P, %", _percent(generation["coverage"]["precision"])
    for family, title in (("wasserstein", "Wasserstein"), ("jensen_shannon", "Jensen-Shannon")):
        for key, value in (generation.get(family) or {}).items():
            if value is not None:
                yield f"{title}, {key.replace('_', ' ')}", value
    for key, value in (found.get("stability") or {}).items():
        if key in ("stable", "metastable", "sun", "metastable_sun"):
            yield f"{key.replace('_', ' ').replace('sun', 'S.U.N.')}, %", _percent(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
