"""The README tells the truth: its commands run."""

from __future__ import annotations

import re
from pathlib import Path

from pymatgen.core import Lattice, Structure

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    """Lines of the README's code blocks that start with the program's name."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
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


def test_the_readme_has_the_commands_it_promises() -> None:
    verbs = {line.split()[1] for line in commands()}
    assert {"predict", "generate", "evaluate", "data", "train", "models"} <= verbs


def test_commands_run(shell, tmp_path: Path) -> None:
    write_structures(tmp_path / "structures.csv")
    for line in commands():
        done = shell(line)
        assert done.stdout.strip(), line
