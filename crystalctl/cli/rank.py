"""``crystalctl rank``: existing structures by energy, or energy above a hull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalctl.cli import ui
from crystalctl.cli.relax import Calculator, Cluster, Hull, Jobs, Paths, RankBy


def rank(
    paths: Paths,
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax before; the input stays as it is.")
    ] = True,
    calculator: Calculator = "chgnet",
    hull: Hull = None,
    rank_by: RankBy = "score",
    device: Annotated[str, typer.Option(help="Where it computes: cpu or cuda.")] = "cpu",
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/Å.")] = 0.05,
    max_steps: Annotated[int, typer.Option(help="Steps of one structure.")] = 200,
    cluster: Cluster = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.  [default: beside the input]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Rank existing structures by energy, merged; relaxed first unless --no-relax."""
    from crystalctl.analysis.relaxation import Settings
    from crystalctl.cli.relax import show_outcome
    from crystalctl.cluster import cluster_of
    from crystalctl.relaxing import relax_all

    settings = Settings(fmax, max_steps)
    with cluster_of(cluster, jobs) as there, ui.progress(quiet or as_json) as on_progress:
        result = relax_all(
            paths,
            calculator=calculator,
            device=device,
            settings=settings,
            move=relax,
            hull=hull,
            by=rank_by,
            out=out,
            resume=resume,
            cluster=there,
            on_progress=on_progress,
        )
    show_outcome(result, as_json=as_json, quiet=quiet)
