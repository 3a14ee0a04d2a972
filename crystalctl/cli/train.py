"""``crystalctl train``: weights from a prepared dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalctl.cli import ui

if TYPE_CHECKING:
    from rich.progress import Progress

    from crystalctl.training.run import TrainResult

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, like model.hidden=256; may be repeated."),
]
Init = Annotated[str | None, typer.Option(help="Weights to start from, a shipped name or a file.")]
Val = Annotated[
    Path | None, typer.Option(help="Validation dataset  [default: rows marked val in --data]")
]
MaxTime = Annotated[
    str | None, typer.Option(help="Stop with a checkpoint after 90s, 30m, 2h, 1h30m.")
]
Property = Annotated[
    str | None, typer.Option("--property", help="Label column to learn as well (diffcsp, symat).")
]


def train(
    data: Annotated[Path, typer.Option(help="Dataset from `crystalctl data prepare`.")],
    out: Annotated[Path, typer.Option(help="Run folder, new or empty.")],
    model: Annotated[str, typer.Option(help="Model family, see `crystalctl models`.")] = "diffcsp",
    task: Annotated[str | None, typer.Option(help="predict or generate.")] = None,
    val: Val = None,
    recipe: Annotated[
        str, typer.Option(help="fast, or paper for the published settings.")
    ] = "fast",
    prop: Property = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    max_time: MaxTime = None,
    batch_size: Annotated[int | None, typer.Option(help="Structures per optimiser step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run.")] = None,
    settings: Settings = None,
    init: Init = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a model; under torchrun, on all its processes."""
    from crystalctl.training.settings import parse_duration

    sections = _sections(
        settings or [],
        {"task": task, "property": prop},
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        precision=precision,
        seed=seed,
    )
    seconds = None if max_time is None else parse_duration(max_time)
    from crystalctl.training.run import train as run

    first = os.environ.get("RANK", "0") == "0"
    with _display(quiet=quiet or not first) as display:
        result = run(
            model,
            data=data,
            out=out,
            val=val,
            recipe=recipe,
            settings=sections,
            device=device,
            max_seconds=seconds,
            resume=resume,
            init=init,
            progress=display,
        )
    if first:
        _tell(result)


def _sections(
    settings: list[str], model: Mapping[str, str | None], **options: Any
) -> dict[str, dict[str, Any]]:
    """Settings by section: the ``--set`` items, overridden by the options that were given."""
    from crystalctl.config import parse_assignments

    sections: dict[str, dict[str, Any]] = {**parse_assignments(settings)}
    given = {key: value for key, value in options.items() if value is not None}
    sections["train"] = {**sections.get("train", {}), **given}
    named = {key: value for key, value in model.items() if value is not None}
    sections["model"] = {**sections.get("model", {}), **named}
    return sections


def _tell(result: TrainResult) -> None:
    """How the run ended and what to do next; exit code 130 after Ctrl-C."""
    typer.echo(f"{_OUTCOMES[result.outcome]} at step {result.step}; weights: {result.weights}")
    if result.outcome != "finished":
        typer.echo("continue with the same command and --resume")
    if result.outcome == "interrupted":
        raise typer.Exit(130)


_OUTCOMES = {
    "finished": "finished",
    "time": "stopped after --max-time",
    "interrupted": "interrupted",
}


class _Display:
    """Shows training records: a moving line on a terminal, a line per epoch elsewhere."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.task = bars.add_task("training", total=None, note="")

    def update(self, record: Mapping[str, Any]) -> None:
        """Take one record of ``metrics.jsonl``."""
        if "train_loss" in record:
            losses = [f"train {record['train_loss']:.4f}"]
            if "val_loss" in record:
                losses.append(f"val {record['val_loss']:.4f}")
            self.bars.console.print(f"epoch {record['epoch']}: {', '.join(losses)}")
            return
        total = record["seconds"] + record["eta_s"]
        note = f"loss {record['loss']:.4f}  {record['structures_per_s']:.0f} structures/s"
        left = timedelta(seconds=record["eta_s"])
        note = f"step {record['step']}  {note}  left {left}"
        self.bars.update(self.task, completed=record["seconds"], total=total, note=note)


@contextmanager
def _display(*, quiet: bool) -> Iterator[_Display | None]:
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn

    percentage, note = "{task.percentage:>3.0f}%", "{task.fields[note]}"
    columns = (BarColumn(), TextColumn(percentage), TextColumn(note))
    console = ui.stderr()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _Display(bars)
