"""``crystalctl data``: prepare a dataset file, and show what one holds."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crystalctl.cli import ui
from crystalctl.cli.data_view import info_table, print_prepared, print_rejected

if TYPE_CHECKING:
    from crystalctl.data.datasets import Dataset

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
    with ui.progress(quiet=not progress or as_json) as move:
        report = partial(move, "preparing") if move else None
        dataset = prepare_dataset(sources, options, jobs=jobs, progress=report)
    _save(dataset, out)
    facts = {"out": str(out), **describe(dataset)}
    if as_json:
        ui.print_json(facts)
    else:
        print_prepared(facts, len(sources))


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
        ui.print_json(facts)
        return
    ui.stdout().print(info_table(facts))
    print_rejected(facts)


@app.command()
def templates(
    file: Annotated[Path, typer.Argument(metavar="DATASET", help="A prepared dataset file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write (.safetensors).")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress.")] = True,
) -> None:
    """Learn from a dataset which elements replace each other, and its prototypes.

    For predict --templates.
    """
    _check_output(out, force)
    from dataclasses import replace

    from crystalctl.data.datasets import Dataset
    from crystalctl.prototypes import with_prototypes
    from crystalctl.retrieval import Memory
    from crystalctl.training.metric import learn_cost

    memory = Memory.load(file)
    standard = Dataset.load(file).standard
    assert standard is not None
    with ui.progress(quiet=not progress) as move:
        costs = partial(move, "learning") if move else None
        found = partial(move, "prototypes") if move else None
        memory = replace(memory, cost=learn_cost(memory, progress=costs))
        memory = with_prototypes(memory, standard.crystals, found)
    out.parent.mkdir(parents=True, exist_ok=True)
    memory.save(out)
    kinds = 0 if memory.prototypes is None else len(memory.prototypes.n_orbits)
    ui.stdout().print(f"{len(memory.group)} structures, {kinds} prototypes: {out}")


@app.command()
def energies(
    source: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A prepared dataset, or any structures.")
    ],
    calculator: Annotated[
        str, typer.Option(help="chgnet, mace, orb, mattersim, sevennet, or module:factory.")
    ] = "chgnet",
    relax: Annotated[
        bool, typer.Option("--relax/--no-relax", help="Relax each structure first.")
    ] = False,
    elements: Annotated[
        bool, typer.Option(help="Also each element in the lowest of its known lattices.")
    ] = True,
    max_steps: Annotated[int, typer.Option(min=1, help="Steps of one structure.")] = 200,
    device: Annotated[str, typer.Option(help="Where it computes: cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.  [default: NAME-CALCULATOR.jsonl beside]"),
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show progress.")] = True,
) -> None:
    """Energies of a dataset, as the --hull of relax, rank, predict and generate.

    What the file holds already is not computed again.
    """
    from crystalctl.energies import compute_energies

    with ui.progress(quiet=not progress) as move:
        done = compute_energies(
            source,
            calculator=calculator,
            relaxed=relax,
            elements=elements,
            max_steps=max_steps,
            device=device,
            out=out,
            on_progress=move,
        )
    ui.stdout().print(
        f"{done.total} structures, {done.computed} computed now, {done.failed} without energy, "
        f"{done.elements} elements ({done.calculator}): {done.file}",
        soft_wrap=True,
    )


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


def _save(dataset: Dataset, out: Path) -> None:
    from safetensors import SafetensorError

    from crystalctl.errors import DataError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        dataset.save(out)
    except (OSError, SafetensorError) as error:
        hint = "check the disk and the folder"
        raise DataError(f"{out} cannot be written ({error})", hint) from error
