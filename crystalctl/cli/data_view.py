"""What ``crystalctl data`` prints: counts after preparing, and the table of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def print_prepared(facts: dict[str, Any], n_sources: int) -> None:
    """One line of counts, then everything that was not taken as it stood."""
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
    print_rejected(facts)


def print_rejected(facts: dict[str, Any], first: int = 5) -> None:
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


def info_table(facts: dict[str, Any]) -> Table:
    """The facts of ``data.summary.describe`` with the name of the file, as two columns."""
    from rich.table import Table
    from rich.text import Text

    elements, groups = facts["elements"], facts["space_groups"]
    rows = {
        "file": facts["file"],
        "structures": facts["structures"],
        "atoms": facts["atoms"],
        "splits": _counts(facts["splits"], 4),
        "atoms per cell": _counts(facts["n_atoms"], 60),
        "volume per atom": _spread(facts["volume_per_atom_ang3"]) + " Å³",
        f"elements ({len(elements)})": _counts(elements, 20),
        f"space groups ({len(groups)})": _counts(groups, 12),
    }
    for name, values in facts["properties"].items():
        rows[f"label {name}"] = f"{values['count']} values, {_spread(values)}"
    for name, value in facts["meta"].items():
        shown = ", ".join(map(str, value[:8])) if isinstance(value, list) else value
        rows[name.replace("_", " ")] = "none" if shown in ("", None) else shown
    rows["rejected rows"] = len(facts["rejected_rows"])
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(str(value)))
    return table


def _counts(counts: dict[Any, int], most: int) -> str:
    shown = [f"{name}: {count}" for name, count in list(counts.items())[:most]]
    return "  ".join(shown) + ("  ..." if len(counts) > most else "")


def _spread(values: dict[str, float]) -> str:
    return f"{values['min']:.4g} to {values['max']:.4g}, median {values['median']:.4g}"
