"""The README and the page of examples tell the truth: their commands run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "guide" / "examples.md")


def commands(page: Path) -> list[str]:
    """Lines of a page's code blocks that start with the program's name."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("crystalctl ")]


def write_structures(path: Path) -> None:
    """A CSV in the CDVAE layout with rock salts and perovskites."""
    rows = ["material_id,cif,formation_energy_per_atom"]
    for number, (cation, a) in enumerate([("Na", 5.64), ("K", 6.29), ("Li", 5.13), ("Rb", 6.58)]):
        sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
        cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, "Cl"], sites)
        cif = cell.get_primitive_structure().to(fmt="cif").replace('"', "'")
        rows.append(f'salt-{number},"{cif}",{-2.0 + number / 10}')
    path.write_text("\n".join(rows) + "\n")


def write_scan(path: Path) -> None:
    """A powder pattern of rutile."""
    from crystalctl.analysis.diffraction import profile, simulate

    lattice = Lattice.tetragonal(4.594, 2.959)
    sites = [[0, 0, 0], [0.305, 0.305, 0]]
    cell = Structure.from_spacegroup("P4_2/mnm", lattice, ["Ti", "O"], sites)
    angles = [15 + 0.05 * k for k in range(1500)]
    counts = 1000 * profile(simulate(cell, 1.54184), np.array(angles)) + 50
    path.write_text("\n".join(f"{a:.2f} {c:.1f}" for a, c in zip(angles, counts, strict=True)))


def test_the_readme_has_the_commands_it_promises() -> None:
    verbs = {line.split()[1] for line in commands(README)}
    assert {"predict", "generate", "evaluate", "data", "train", "models"} <= verbs


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150


def test_links_lead_somewhere() -> None:
    for page in [README, *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


MOST = 10
"""Samples: of so many one is free of symmetry, so that both models of a prediction take part."""


def shortened(line: str) -> str:
    """The command with at most ``MOST`` samples."""
    return re.sub(r"--n (\d+)", lambda found: f"--n {min(int(found[1]), MOST)}", line)


def test_commands_run(shell, warm_shell, tmp_path: Path) -> None:
    write_structures(tmp_path / "structures.csv")
    write_scan(tmp_path / "scan.xy")
    first, *others = dict.fromkeys(line for page in PAGES for line in commands(page))
    assert shell(shortened(first)).stdout.strip()
    for line in others:
        assert warm_shell(shortened(line)).strip(), line
