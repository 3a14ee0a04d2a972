"""``crystalctl generate``: crystals from scratch."""

from __future__ import annotations

from typing import Annotated

import typer

from crystalctl.cli import running

NumAtoms = Annotated[str | None, typer.Option(help="Atoms in the cell: 8, or 4,6,8, or 4-12.")]

Strength = Annotated[
    float | None, typer.Option(help="How hard to pull towards that; 1 as the weights advise.")
]
Temperature = Annotated[
    float, typer.Option(help="Above 1: rarer groups, positions and elements are composed.")
]

Likeness = Annotated[
    float | None,
    typer.Option(
        help="0 to 1: new compositions as like known compounds as this; 0: any.",
        show_default="0.3; 0 with --model or --weights",
    ),
]


def generate(
    n: running.N = 20,
    num_atoms: NumAtoms = None,
    elements: Annotated[str | None, typer.Option(help="Only these elements, like Sr,Ti,O.")] = None,
    exclude: Annotated[str | None, typer.Option(help="None of these elements.")] = None,
    spacegroup: running.SpaceGroup = None,
    wyckoff: running.Wyckoff = None,
    allow_supergroup: running.AllowSupergroup = False,
    minimize: Annotated[str | None, typer.Option(help="Property to make small.")] = None,
    maximize: Annotated[str | None, typer.Option(help="Property to make large.")] = None,
    target: Annotated[str | None, typer.Option(help="Property to reach: band_gap=1.5.")] = None,
    strength: Strength = None,
    temperature: Temperature = 1.0,
    likeness: Likeness = None,
    model: running.Model = None,
    weights: running.Weights = None,
    steps: running.Steps = None,
    sampler: running.Sampler = "fast",
    seed: running.Seed = 0,
    device: running.Device = "auto",
    jobs: running.Jobs = None,
    cluster: running.Cluster = None,
    out: running.Out = None,
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
    """Generate crystals without a formula, merged and ranked."""
    # Each option goes on under its own name.
    running.run_and_show("generate", **locals() | {"formats": formats.split(",")})
