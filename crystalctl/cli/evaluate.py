"""``crystalctl evaluate``: judge structures of anybody, alone or beside a reference."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from crystalctl.cli import ui


class Task(StrEnum):
    """What the structures were made for."""

    auto = "auto"
    predict = "predict"
    generate = "generate"


Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: one per CPU).")
]
Cluster = Annotated[
    str | None,
    typer.Option(help="Work as tasks of Ray: local (--jobs workers), auto, or HOST:PORT."),
]


def evaluate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Run folders, folders, zips or globs of CIFs, extxyz, JSON lines, CSV.",
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(help="True structures: the same formats, or a prepared dataset."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="What is not new.  [default: the reference]")
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="Published cut-offs: mp_20, perov_5, carbon_24, mpts_52.")
    ] = "mp_20",
    task: Annotated[Task, typer.Option(help="Metrics of prediction or of generation.")] = Task.auto,
    k: Annotated[
        list[int] | None, typer.Option("--k", help="Also the best of this many predictions.")
    ] = None,
    fingerprints: Annotated[
        bool, typer.Option(help="Site fingerprints: coverage, and the published validity. Slow.")
    ] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of fingerprints.  [default: user's cache]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results.  [default: beside the input]")
    ] = None,
    jobs: Jobs = None,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Judge structures: validity, match rate, coverage, novelty; every failure has its reason."""
    from crystalctl.cli.evaluate_view import show_evaluation
    from crystalctl.evaluating import default_out
    from crystalctl.evaluating import evaluate as verb

    with ui.progress(quiet or as_json) as on_progress:
        result = verb(
            paths,
            reference=reference,
            train=train,
            benchmark_name=benchmark,
            task=task.value,
            k=k or (),
            fingerprints=fingerprints,
            cache=cache,
            out=out or default_out(paths),
            jobs=jobs,
            cluster=cluster,
            on_progress=on_progress,
        )
    if as_json:
        ui.print_json(result.metrics)
    elif not quiet:
        show_evaluation(result)
