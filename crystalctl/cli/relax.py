"""``crystalctl relax``: relaxed cells and positions, ranked by energy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from crystalctl.cli import ui


def relax(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Run folders, folders, zips or globs of CIFs, extxyz, JSON lines, CSV.",
        ),
    ],
    calculator: Annotated[
        str,
        typer.Option(
            help="chgnet, mace, orb, mattersim, sevennet, or module:factory (any ASE calculator)."
        ),
    ] = "chgnet",
    device: Annotated[str, typer.Option(help="Where it computes: cpu or cuda.")] = "cpu",
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.05,
    max_steps: Annotated[int, typer.Option(help="Steps of one structure.")] = 200,
    keep_symmetry: Annotated[bool, typer.Option(help="Keep the space group.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.  [default: beside the input]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Relax structures and rank them by energy; the input stays as it is."""
    from crystalctl.relaxing import relax_all

    with ui.progress(quiet or as_json) as on_progress:
        result = relax_all(
            paths,
            calculator=calculator,
            device=device,
            fmax=fmax,
            max_steps=max_steps,
            keep_symmetry=keep_symmetry,
            out=out,
            resume=resume,
            on_progress=on_progress,
        )
    if as_json:
        ui.print_json({"folder": str(result.folder), "rows": result.rows})
    elif not quiet:
        _show(result.rows, result.calculator, result.folder)


def _show(rows: list[dict[str, Any]], calculator: str, folder: Path) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rank", "formula", "before", "group", "eV/atom", "gained", "moved Å", "count"):
        table.add_column(
            name, justify="left" if name in ("formula", "before", "group") else "right"
        )
    for row in rows:
        if row["rank"] is not None:
            gained = row["energy_before_ev"] - row["energy_ev"]
            cells = (row["rank"], row["formula"], row["group_before"], row["group"])
            numbers = (f"{row['energy_ev']:.4f}", f"{gained:.4f}", f"{row['rmsd_ang']:.2f}")
            table.add_row(*(Text(str(cell)) for cell in (*cells, *numbers, row["count"])))
    console = ui.stdout()
    console.print(table)
    failed = [row for row in rows if row["reason"]]
    open_ended = sum(1 for row in rows if not row["reason"] and not row["converged"])
    ranked = sum(1 for row in rows if row["rank"] is not None)
    console.print(
        f"{len(rows)} structures: {ranked} after merging, {len(failed)} failed, "
        f"{open_ended} not converged; energies: {calculator}"
    )
    for row in failed[:5]:
        console.print(Text(f"  {row['id']}: {row['reason']}"), soft_wrap=True)
    console.print(Text(f"written to {folder}"), soft_wrap=True)
