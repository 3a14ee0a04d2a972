"""``crystalctl score``: how probable a model finds structures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crystalctl.cli import running, ui

if TYPE_CHECKING:
    from crystalctl.likelihoods import Scores

_SHOWN = 50


def score(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Run folders, folders, zips or globs of CIFs, extxyz, JSON lines, CSV, datasets.",
        ),
    ],
    weights: running.Weights = None,
    levels: Annotated[int, typer.Option(help="Widths of noise that coordinates are seen at.")] = 50,
    seed: running.Seed = 0,
    device: running.Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for scores.csv.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: one per CPU).")
    ] = None,
    as_json: running.Json = False,
    quiet: running.Quiet = False,
) -> None:
    """Score structures by their probability, split by factor; no calculator is needed."""
    from crystalctl.likelihoods import score as verb

    with ui.progress(quiet or as_json) as on_progress:
        result = verb(
            paths,
            weights=weights,
            levels=levels,
            seed=seed,
            device=device,
            out=out,
            jobs=jobs,
            on_progress=on_progress,
        )
    if as_json:
        ui.print_json(result.rows)
    elif not quiet:
        _show(result)


def _show(result: Scores) -> None:
    """The most probable first; what has no number comes with its reason."""
    from rich.table import Table
    from rich.text import Text

    from crystalctl.likelihoods import FACTORS, ranked

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "formula", "group symbol"):
        table.add_column(name.removesuffix(" symbol"), no_wrap=True)
    for name in ("log p", "per atom", "p(group)", *FACTORS[1:]):
        table.add_column(name, justify="right", no_wrap=True)
    rows = list(ranked(result.rows))
    for row in rows[:_SHOWN]:
        numbers = [f"{row[name]:.2f}" for name in ("log_p", "per_atom", *FACTORS)]
        table.add_row(*map(Text, [row["id"], row["formula"], row["group_symbol"], *numbers]))
    console = ui.stdout()
    ui.print_table(console, table)
    if len(rows) > _SHOWN:
        console.print(f"... and {len(rows) - _SHOWN} more, see --json or --out")
    without = [row for row in result.rows if row["log_p"] is None]
    s = "s" * (len(result.rows) != 1)
    console.print(
        f"{len(result.rows)} structure{s}, {len(without)} without a number; "
        "coordinates: lower bound",
        soft_wrap=True,
    )
    for row in without[:5]:
        console.print(Text(f"  {row['id']}: {row['reason']}"), soft_wrap=True)
    if result.folder is not None:
        console.print(Text(f"written to {result.folder / 'scores.csv'}"), soft_wrap=True)
