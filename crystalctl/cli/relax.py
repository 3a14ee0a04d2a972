"""``crystalctl relax``: relaxed cells and positions, ranked by energy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crystalctl.cli import ui

if TYPE_CHECKING:
    from crystalctl.relaxing import Relaxation


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="Run folders, folders, zips or globs of CIFs, extxyz, JSON lines, CSV.",
    ),
]
Calculator = Annotated[
    str,
    typer.Option(
        help="chgnet, mace, orb, mattersim, sevennet, or module:factory (any ASE calculator)."
    ),
]
Hull = Annotated[
    Path | None,
    typer.Option(
        help="Rank all formulas together by E hull. Reference energies: mp (shipped, of CHGNet), a "
        "file of `data energies`, or pymatgen entries."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Workers of --cluster (default: one per CPU)."),
]
Cluster = Annotated[
    str | None, typer.Option(help="Relax as tasks of Ray: local (--jobs workers), auto, HOST:PORT.")
]

RankBy = Annotated[
    str,
    typer.Option(
        help="score: energy, and how likely the proposal was (our run folders); or energy alone."
    ),
]


def relax(
    paths: Paths,
    calculator: Calculator = "chgnet",
    hull: Hull = None,
    rank_by: RankBy = "score",
    device: Annotated[str, typer.Option(help="Where it computes: cpu or cuda.")] = "cpu",
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.05,
    max_steps: Annotated[int, typer.Option(help="Steps of one structure.")] = 200,
    keep_symmetry: Annotated[bool, typer.Option(help="Keep the space group.")] = False,
    cluster: Cluster = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.  [default: beside the input]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Relax structures and rank them by energy; the input stays as it is."""
    from crystalctl.analysis.relaxation import Settings
    from crystalctl.cluster import cluster_of
    from crystalctl.relaxing import relax_all

    settings = Settings(fmax, max_steps, keep_symmetry)
    with cluster_of(cluster, jobs) as there, ui.progress(quiet or as_json) as on_progress:
        result = relax_all(
            paths,
            calculator=calculator,
            device=device,
            settings=settings,
            hull=hull,
            by=rank_by,
            out=out,
            resume=resume,
            cluster=there,
            on_progress=on_progress,
        )
    show_outcome(result, as_json=as_json, quiet=quiet)


def show_outcome(result: Relaxation, *, as_json: bool, quiet: bool) -> None:
    """Print a relaxation as asked for."""
    if as_json:
        ui.print_json({"folder": str(result.folder), "rows": result.rows})
    elif not quiet:
        from crystalctl.cli.relax_view import show_relaxation

        show_relaxation(result)
