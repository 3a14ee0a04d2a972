"""``crystalctl data``: prepare a dataset file, and show what one holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from crystalctl.data.prepare import Progress

app = typer.Typer(help="Prepare datasets for training and look at them.", no_args_is_help=True)


class Split(StrEnum):
    """Splits a dataset row can belong to."""

    train = "train"
    val = "val"
    test = "test"


JsonFlag = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]


@app.command()
def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...",
            help="CSV with a cif column, CIF file or folder, extxyz, JSON lines, pymatgen JSON.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Dataset file (.safetensors).")],
    split: Annotated[
        Split | None, typer.Option(help="Put every row in this split, whatever the source says.")
    ] = None,
    max_atoms: Annotated[
        int | None, typer.Option(min=1, help="Leave out structures with more atoms than this.")
    ] = None,
    symprec: Annotated[
        float, typer.Option(min=1e-5, max=1.0, help="Tolerance of the symmetry search in Å.")
    ] = 0.1,
    primitive: Annotated[
        bool, typer.Option("--primitive", help="Reduce every structure to its primitive cell.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: one per CPU).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing output file.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Turn structure files into one dataset file: Niggli cells, symmetry, ids, splits, labels."""
    _check_output(out, force)
    from crystalctl.data.cells import Options
    from crystalctl.data.prepare import prepare as prepare_dataset
    from crystalctl.data.summary import describe

    options = Options(symprec, primitive, split.value if split else "", max_atoms)
    with _progress_bar(progress and not as_json) as report:
        dataset = prepare_dataset(sources, options, jobs=jobs, progress=report)
    _save(dataset, out)
    facts = {"out": str(out), **describe(dataset)}
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _print_prepared(facts, len(sources))


@app.command()
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A prepared dataset file.")],
    as_json: JsonFlag = False,
) -> None:
    """Show what a dataset file holds: counts, splits, elements, groups, labels, rejected rows."""
    from crystalctl.data.datasets import Dataset
    from crystalctl.data.summary import describe

    facts = {"file": str(file), **describe(Dataset.load(file))}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    from rich.console import Console

    console = Console()
    console.print(_info_table(facts))
    _print_rejected(facts)


def _check_output(out: Path, force: bool) -> None:
    """Refuse an output that cannot be written, before any work is done."""
    import os

    from crystalctl.errors import DataError

    if out.suffix != ".safetensors":
        raise DataError(f"{out} should end in .safetensors", f"use -o {out.name}.safetensors")
    if out.is_dir():
        raise DataError(f"{out} is a folder", "name a file to write")
    if out.exists() and not force:
        raise DataError(f"{out} exists already", "choose another name, or replace it with --force")
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{out} cannot be written: {folder} is not a folder one may write to")


def _save(dataset: Any, out: Path) -> None:
    from safetensors import SafetensorError

    from crystalctl.errors import DataError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        dataset.save(out)
    except (OSError, SafetensorError) as error:
        hint = "check the disk and the folder"
        raise DataError(f"{out} cannot be written ({error})", hint) from error


@contextmanager
def _progress_bar(enabled: bool) -> Iterator[Progress | None]:
    """A bar on stderr, drawn only on a terminal."""
    if not enabled:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_prepared(facts: dict[str, Any], n_sources: int) -> None:
    meta = facts["meta"]
    typer.echo(
        f"{facts['structures']} structures from {meta['rows_read']} rows "
        f"({n_sources} source{'s' if n_sources > 1 else ''}) -> {facts['out']}"
    )
    notes = (
        (meta["too_large"], f"left out with more than {meta['max_atoms']} atoms"),
        (meta["no_symmetry"], f"kept without a space group (none within {meta['symprec']} Å)"),
        (len(meta["not_reduced"]), "kept in their own cell (Niggli reduction failed)"),
        (meta["repeated_ids"], "ids that occur again"),
    )
    for count, what in notes:
        if count:
            typer.echo(f"  {count} {what}")
    if meta["ignored_columns"]:
        typer.echo(f"  columns without numbers, not kept: {', '.join(meta['ignored_columns'])}")
    _print_rejected(facts)


def _print_rejected(facts: dict[str, Any], first: int = 5) -> None:
    """Rejected rows by reason, and the first few of them."""
    rows = facts["rejected_rows"]
    for reason, count in facts["rejected"].items():
        typer.echo(f"  {count} rejected: {reason}")
    for item in rows[:first]:
        detail = f": {item['detail']}" if item.get("detail") else ""
        typer.echo(
            f"    {item['source']} row {item['row']} ({item['id']}): {item['reason']}{detail}"
        )
    if len(rows) > first:
        typer.echo(f"    ... all {len(rows)} with: crystalctl data info FILE --json")


def _info_table(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=facts["file"], show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("structures", "atoms"):
        table.add_row(name, str(facts[name]))
    table.add_row("splits", _counts(facts["splits"], 4))
    table.add_row("atoms per cell", _counts(facts["n_atoms"], 60))
    table.add_row("volume per atom", _spread(facts["volume_per_atom_ang3"]) + " Å³")
    table.add_row(f"elements ({len(facts['elements'])})", _counts(facts["elements"], 20))
    groups = facts["space_groups"]
    table.add_row(f"space groups ({len(groups)})", _counts(groups, 12))
    for name, values in facts["properties"].items():
        table.add_row(f"label {name}", f"{values['count']} values, {_spread(values)}")
    table.add_row("rejected rows", str(len(facts["rejected_rows"])))
    for name, value in facts["meta"].items():
        shown = ", ".join(map(str, value[:8])) if isinstance(value, list) else value
        table.add_row(name.replace("_", " "), "none" if shown in ("", None) else str(shown))
    return table


def _counts(counts: dict[Any, int], most: int) -> str:
    shown = [f"{name}: {count}" for name, count in list(counts.items())[:most]]
    return "  ".join(shown) + ("  ..." if len(counts) > most else "")


def _spread(values: dict[str, float]) -> str:
    return f"{values['min']:.4g} to {values['max']:.4g}, median {values['median']:.4g}"
