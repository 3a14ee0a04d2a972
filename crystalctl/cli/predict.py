"""``crystalctl predict``: formula -> structures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalctl.cli import running
from crystalctl.errors import InputError

Formula = Annotated[
    list[str] | None, typer.Option("--formula", "-f", help="Formula; may be repeated.")
]
Formulas = Annotated[
    Path | None, typer.Option(help="File with one formula a line; # starts a comment.")
]
NumAtoms = Annotated[int | None, typer.Option(help="Number of atoms in the cell, instead of --z.")]
Xrd = Annotated[Path | None, typer.Option(help="Measured powder pattern (2θ, counts) to rank by.")]
Templates = Annotated[
    Path | None, typer.Option(help="Prepared dataset whose structures propose templates.")
]
Units = Annotated[
    str, typer.Option("--z", help="Reduced formula units in the cell: auto, or like 1,2,4.")
]


def predict(
    formula: Formula = None,
    formulas: Formulas = None,
    n: running.N = 20,
    z: Units = "auto",
    num_atoms: NumAtoms = None,
    spacegroup: running.SpaceGroup = None,
    wyckoff: running.Wyckoff = None,
    allow_supergroup: running.AllowSupergroup = False,
    templates: Templates = None,
    model: running.Model = None,
    weights: running.Weights = None,
    steps: running.Steps = None,
    sampler: running.Sampler = "fast",
    seed: running.Seed = 0,
    device: running.Device = "auto",
    jobs: running.Jobs = None,
    cluster: running.Cluster = None,
    out: running.Out = None,
    xrd: Xrd = None,
    wavelength: running.Wavelength = "CuKa",
    formats: running.Format = "cif",
    report: running.Report = True,
    relax: running.Relax = None,
    calculator: running.Calculator = None,
    hull: running.Hull = None,
    rank_by: running.RankBy = "score",
    as_json: running.Json = False,
    resume: running.Resume = False,
    quiet: running.Quiet = False,
) -> None:
    """Predict crystal structures from a formula, merged and ranked."""
    wanted = [*(formula or []), *(read_formulas(formulas) if formulas else [])]
    changed = {"formulas": wanted, "formats": formats.split(",")}
    # Each other option goes on under its own name.
    given = {k: v for k, v in locals().items() if k not in ("formula", "wanted", "changed")}
    running.run_and_show("predict", **given | changed)


def read_formulas(path: Path) -> list[str]:
    """Formulas of a file, one a line; empty lines and ``#`` comments are skipped.

    A composition that occurs again is taken once. Raises ``InputError`` with the number of a line
    that is no formula.
    """
    from crystalctl.crystal.elements import parse_formula, reduced_key

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", "give a text file, one formula a line") from error
    kept: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        try:
            kept.setdefault(reduced_key(parse_formula(text).unit), text)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error.what}", error.hint) from error
    if not kept:
        raise InputError(f"{path} holds no formula", "one formula a line, like SrTiO3")
    return list(kept.values())
