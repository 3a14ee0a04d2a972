"""The tables of ``crystalctl evaluate``: one row for each metric, one column for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from crystalctl.cli import ui

if TYPE_CHECKING:
    from crystalctl.evaluating import Evaluation

_SHOWN_REASONS = 8


def show_evaluation(result: Evaluation) -> None:
    """Metrics side by side, what failed and why, notes, and where the files are."""
    runs = result.metrics["runs"]
    cells = {name: dict(_lines(found)) for name, found in runs.items()}
    labels = list(dict.fromkeys(label for lines in cells.values() for label in lines))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric", no_wrap=True)
    for name in runs:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for label in labels:
        table.add_row(Text(label), *(Text(cells[name].get(label, "-")) for name in runs))
    console = ui.stdout()
    ui.print_table(console, table)
    for name, found in runs.items():
        failures = list(found["failures"].items())
        if failures:
            console.print(Text(f"failed in {name}:" if len(runs) > 1 else "failed:"))
        for reason, count in failures[:_SHOWN_REASONS]:
            console.print(Text(f"  {count} x {reason}"), soft_wrap=True)
        if len(failures) > _SHOWN_REASONS:
            console.print(f"  and {len(failures) - _SHOWN_REASONS} more reasons in facts.csv")
    for note in result.notes:
        ui.note(note)
    if result.folder is not None:
        console.print(Text(f"written to {result.folder}"), soft_wrap=True)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, value) of one run, in the order of the table; what was not computed is left out."""
    valid = found["validity"]
    yield "structures", str(valid["n_structures"])
    yield "readable", str(valid["n_readable"])
    yield "structurally valid", _percent(valid["struct_valid"])
    yield "compositionally valid", _percent(valid["comp_valid"])
    yield "valid", _percent(valid["valid"])
    if "prediction" in found:
        yield from _prediction(found["prediction"])
    if "generation" in found:
        yield from _generation(found["generation"])
    if found.get("stability"):
        for name in ("stable", "metastable", "sun", "metastable_sun"):
            if name in found["stability"]:
                yield (
                    name.replace("_", " ").replace("sun", "S.U.N."),
                    _percent(found["stability"][name]),
                )


def _prediction(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "references", str(found["n_references"])
    if found["n_without_prediction"]:
        yield "  without a prediction", str(found["n_without_prediction"])
    yield "paired by", str(found["paired_by"])
    for key in [key for key in found if key.startswith("k=") or key == "top_1"]:
        label = "top-1 of the ranking" if key == "top_1" else key
        # The published gates: both sides for one prediction, the prediction for several.
        gate = "gated_both" if key in ("k=1", "top_1") else "gated_prediction"
        yield f"match rate / RMSE, {label}", _rate(found[key]["ungated"])
        if gate in found[key]:
            words = gate.removeprefix("gated_") + " valid"
            yield f"match rate / RMSE, {label}, {words}", _rate(found[key][gate])
        if "where_predicted" in found:
            where = found["where_predicted"][key]["ungated"]
            yield f"match rate / RMSE, {label}, where predicted", _rate(where)
        yield f"cRMSE, {label}", _number(found[key]["crmse"])
    if found["metre"]:
        one = found["metre"]
        yield "METRe / cRMSE", f"{_percent(one['metre'])} / {_number(one['crmse'])}"


def _generation(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "unique", _percent(found["unique"])
    if found["novel"] is not None:
        yield "novel", _percent(found["novel"])
        yield "unique and novel", _percent(found["unique_novel"])
    one = found["templates"]
    yield "templates", str(one["n_unique"])
    if one["n_new"] is not None:
        yield "  unique and novel", f"{one['n_new']} ({_percent(one['unique_novel'])})"
    yield "space groups", str(found["n_groups"])
    if "coverage" not in found:
        return
    if found["coverage"]:
        yield "COV-R", _percent(found["coverage"]["recall"])
        yield "COV-P", _percent(found["coverage"]["precision"])
    for name, value in found["wasserstein"].items():
        if value is not None:
            yield f"Wasserstein, {name.replace('_', ' ')}", _number(value)
    for name, value in found["jensen_shannon"].items():
        yield f"Jensen-Shannon, {name.replace('_', ' ')}", _number(value)


def _rate(found: Mapping[str, Any]) -> str:
    return f"{_percent(found['match_rate'])} / {_number(found['rmse'])}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
