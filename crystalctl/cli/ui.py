"""All output of the command line: tables, progress, error panels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from crystalctl.errors import CrystalctlError

if TYPE_CHECKING:
    from crystalctl.execution import Result

_STAGES = {
    "sampling": "sampling",
    "comparing": "merging duplicates",
    "diffraction": "comparing patterns",
    "writing": "writing files",
}
_SHOWN_ROWS = 30
_ALIKE = 0.9
"""Similarity to a powder pattern that the right structure mostly reaches: docs/guide/report.md."""


def stdout() -> Console:
    """Console for results."""
    return Console(highlight=False)


def stderr() -> Console:
    """Console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def print_table(console: Console, table: Table) -> None:
    """In its natural width: a narrow terminal breaks its lines, and a file keeps them whole."""
    natural = console.options.update(max_width=1000)
    console.width = max(console.width, Measurement.get(console, natural, table).maximum)
    console.print(table)


def show_error(error: CrystalctlError) -> None:
    """One or two lines on standard error: what happened, and what to do next."""
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), error.what), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("  hint: ", "cyan"), error.hint), soft_wrap=True)


def note(text: str) -> None:
    """A line for the user that is not a result."""
    stderr().print(Text(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """Machine-readable result on standard output."""
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, indent=1, ensure_ascii=ascii_only))


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar per stage on standard error; gives the function that moves it."""
    if quiet:
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>18}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = stderr()
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        tasks: dict[str, Any] = {}
        loading = bars.add_task("loading", total=None)

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                bars.update(loading, visible=False)
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield move


def show_result(result: Result, *, command: str) -> None:
    """The table of ranked structures and what was set aside."""
    shown = result.rows[:_SHOWN_ROWS]
    table = _structures(shown, files=result.folder is not None)
    console = stdout()
    # A narrow terminal wraps whole lines; squeezed columns would cut numbers and file names.
    if shown:
        print_table(console, table)
    if len(result.rows) > len(shown):
        console.print(f"... and {len(result.rows) - len(shown)} more in summary.csv")
    aside, s = sum(result.set_aside.values()), "s" * (len(result.rows) != 1)
    console.print(
        f"{result.n_samples} samples: {len(result.rows)} structure{s} after merging duplicates, "
        f"{aside} set aside",
        soft_wrap=True,
    )
    for reason, count in result.set_aside.items():
        console.print(f"  {count} x {reason}", soft_wrap=True)
    explain_known(shown)
    if not shown:
        console.print(f"no possible structure: try {command} with a larger --n", soft_wrap=True)
    alike = shown[0].get("xrd_similarity") if shown else None
    if alike is not None and alike < _ALIKE:
        console.print(
            f"no structure explains the pattern well (XRD {alike:.2f}; the right one mostly has "
            f"{_ALIKE} or more): try {command} with a larger --n",
            soft_wrap=True,
        )
    if result.folder is not None:
        has_report = (result.folder / "report.html").is_file()
        hint = ", open report.html there" if has_report else ""
        console.print(Text(f"written to {result.folder}{hint}"), soft_wrap=True)


def explain_known(rows: Sequence[Mapping[str, Any]]) -> None:
    """What the column says, where it is shown."""
    if any(row.get("known") for row in rows):
        stdout().print(
            "known: yes = of 122 k structures of the Materials Project one has this formula, group "
            "and positions; formula = the formula, but otherwise; no = none has it",
            soft_wrap=True,
        )


def _structures(rows: Sequence[Mapping[str, Any]], *, files: bool) -> Table:
    from crystalctl.analysis.ranking import differing

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rank", "formula", "group"):
        table.add_column(name, justify="right" if name == "rank" else "left", no_wrap=True)
    for name in ("a", "b", "c", "α", "β", "γ", "g/cm³", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    names = {name: None for row in rows for name in row if name.startswith("predicted_")}
    scores = {name: name.removeprefix("predicted_") for name in names}
    if any("xrd_similarity" in row for row in rows):
        scores["xrd_similarity"] = "XRD"
    for title in scores.values():
        table.add_column(title, justify="right", no_wrap=True)
    words = ["known"] if any(row.get("known") for row in rows) else []
    words += ["source"] if differing(row.get("source", "") for row in rows) else []
    words += ["file"] if files else []
    for title in words:
        table.add_column(title, no_wrap=True)
    for row in rows:
        cells = [
            str(row["rank"]),
            row["formula"],
            row["space_group"],
            *(f"{row[name]:.2f}" for name in ("a", "b", "c")),
            *(f"{row[name]:.1f}" for name in ("alpha", "beta", "gamma")),
            f"{row['density']:.2f}",
            str(row["count"]),
            *(f"{row[name]:.3f}" for name in scores),
            *(row.get(name, "") for name in words),
        ]
        table.add_row(*map(Text, cells))
    return table


def show_models(rows: Sequence[Mapping[str, Any]], families: Sequence[Mapping[str, Any]]) -> None:
    """Shipped weights with their measured numbers, then the families and what they take."""
    console = stdout()
    if rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("weights", "model", "task", "data", "parameters", "size"):
            table.add_column(name, overflow="fold", no_wrap=name == "weights")
        for row in rows:
            table.add_row(*(Text(cell) for cell in _model_cells(row)))
        console.print(table)
        console.print("* = used unless --weights or --model says otherwise", style="dim")
        if any(row.get("beside") for row in rows):
            console.print("+ = draws a share of `predict` beside it", style="dim")
        console.print()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("weights", "measured", "(match rates: % / RMSE)"):
            table.add_column(name, overflow="fold", no_wrap=name == "weights")
        for row in rows:
            for number, (what, value) in enumerate(_measured(row)):
                name = "" if number else str(row.get("name", ""))
                table.add_row(*map(Text, (name, what, str(value))))
        console.print(table)
    else:
        console.print("no weights are shipped with this installation")
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "name", "tasks", "takes", "paper"):
        table.add_column(name, overflow="fold")
    for family in families:
        cells = (
            family["model"],
            family["title"],
            ", ".join(family["tasks"]),
            ", ".join(family["accepts"]),
            family["paper"],
        )
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


_PLAIN_KEYS = frozenset(
    ("name", "file", "family", "task", "data", "params", "size", "default", "beside", "sha256")
)


def _model_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row.get('name', '')}{' *' if row.get('default') else ' +' * bool(row.get('beside'))}",
        str(row.get("family", "")),
        str(row.get("task", "")),
        str(row.get("data", "")),
        _short(row.get("params")),
        _short(row.get("size")),
    ]


def _measured(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What was measured of some weights, and the number."""
    return _flat({k: v for k, v in row.items() if k not in _PLAIN_KEYS})


def _short(value: Any) -> str:
    if isinstance(value, int) and value >= 10_000:
        return f"{value / 1e6:.2f} M"
    return "" if value is None else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if key == "measured" else f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value


def resume_hint(folder: Path | None) -> str:
    """What to tell somebody who pressed Ctrl-C."""
    if folder is None:
        return "interrupted; nothing was written"
    return (
        f"interrupted; finished batches are kept in {folder}\n"
        "continue with the same command and --resume"
    )
