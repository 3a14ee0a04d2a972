"""What predict and generate share on the command line: options, running, showing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crystalctl.cli import ui

if TYPE_CHECKING:
    from crystalctl.execution import Result

N = Annotated[int, typer.Option("--n", help="Samples to draw (for each formula).")]
Model = Annotated[str | None, typer.Option(help="auto, or a family, see `crystalctl models`.")]
Weights = Annotated[
    str | None, typer.Option(help="Name of shipped weights, or a .safetensors file.")
]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; fewer is faster and coarser.")]
Sampler = Annotated[
    str, typer.Option(help="fast, or reference: every step of the published sampler.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same structures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", min=1, help="Processes, where a CPU samples (default: one per CPU)."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Draw as tasks of Ray: local (--jobs workers), auto, or HOST:PORT."),
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder, new or empty.  [default: runs/NAME, next free]")
]
Format = Annotated[
    str, typer.Option("--format", help="Files of ranked structures: cif, poscar, extxyz.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")]
SpaceGroup = Annotated[
    list[str] | None,
    typer.Option(
        "--spacegroup",
        "--sg",
        help="Group number or Hermann-Mauguin symbol; may be repeated. Or cubic, ..., any.",
    ),
]
Wyckoff = Annotated[str | None, typer.Option(help="Wyckoff positions, like 4a,4b,8c.")]
AllowSupergroup = Annotated[
    bool, typer.Option("--allow-supergroup", help="Keep structures with more symmetry.")
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html into the run folder.")
]
Relax = Annotated[
    bool | None,
    typer.Option(
        "--relax/--no-relax",
        help="Relax and rank by energy.  [default: up to 100 structures, where CHGNet is there]",
    ),
]
Calculator = Annotated[
    str | None,
    typer.Option(help="It relaxes: chgnet, mace, orb, mattersim, sevennet, module:factory."),
]
Hull = Annotated[
    Path | None,
    typer.Option(help="Rank all together by E hull: mp (shipped), or a file of `data energies`."),
]
RankBy = Annotated[
    str,
    typer.Option(help="Order of what is relaxed: score (energy and votes), or energy alone."),
]
Wavelength = Annotated[
    str, typer.Option(help="Of powder patterns: Å, or a name like CuKa, MoKa1, CoKa.")
]


def run_and_show(
    name: Literal["predict", "generate"], *, as_json: bool, quiet: bool, **request: Any
) -> None:
    """Call ``predict`` or ``generate`` of the api with progress, then print its result."""
    from crystalctl import api

    verb: Callable[..., Result] = api.predict if name == "predict" else api.generate
    folder: list[Path] = []
    try:
        with ui.progress(quiet or as_json) as on_progress:
            result = verb(
                **request,
                on_progress=on_progress,
                on_folder=folder.append,
                on_note=ui.note,
                default_out=True,
            )
    except KeyboardInterrupt:
        ui.note(ui.resume_hint(folder[0] if folder else None))
        raise typer.Exit(130) from None
    if as_json:
        ui.print_json(
            {
                "folder": str(result.folder),
                "n_samples": result.n_samples,
                "set_aside": result.set_aside,
                "structures": result.rows,
                "relaxed": None if result.relaxed is None else result.relaxed.rows,
            }
        )
    elif not quiet:
        ui.show_result(result, command=f"crystalctl {name}")
        if result.relaxed is not None:
            from crystalctl.cli.relax_view import show_relaxation

            show_relaxation(result.relaxed)
