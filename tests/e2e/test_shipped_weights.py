"""The shipped weights know the textbook structures."""

from __future__ import annotations

import json
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalctl import predict
from crystalctl.analysis.hull import Hull
from crystalctl.checkpoint import available, hull_file, load_model, shipped_templates, weights_dir

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m",
    Lattice.cubic(3.905),
    ["Sr", "Ti", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]],
)


@pytest.mark.parametrize(
    ("formula", "known"), [("NaCl", ROCK_SALT), ("SrTiO3", PEROVSKITE)], ids=["NaCl", "SrTiO3"]
)
def test_predict_finds_the_known_structure(formula: str, known: Structure) -> None:
    result = predict(formula, n=20, seed=0)
    found = [c.rank for c in result.candidates if StructureMatcher().fit(c.structure, known)]
    assert found, [c.symmetric.symbol for c in result.candidates]


def test_index_names_every_file_with_its_hash() -> None:
    rows = available()
    index = tomllib.loads((weights_dir() / "index.toml").read_text())
    kinds = ("templates", "hulls", "known")
    known = {row["file"]: row["sha256"] for kind in kinds for row in index[kind]}
    there = {p.name for end in ("safetensors", "gz") for p in weights_dir().glob(f"*.{end}")}
    assert {row["file"] for row in rows} | set(known) == there
    assert shipped_templates().name in known
    for name, digest in known.items():
        assert sha256((weights_dir() / name).read_bytes()).hexdigest() == digest
    for row in rows:
        path = weights_dir() / row["file"]
        assert sha256(path.read_bytes()).hexdigest() == row["sha256"]
        assert path.stat().st_size < 16 * 2**20
        meta = load_model(row["name"], task=row["task"]).meta
        assert meta["family"] == row["family"]
        assert meta["config"].get("property", "") == row.get("property", "")


def test_the_shipped_hull_knows_every_element_and_what_is_stable() -> None:
    file = hull_file("mp", "chgnet 0.3.0")
    assert file is not None
    assert file == hull_file(None, "chgnet 9")
    assert hull_file(None, "mace 1") is None
    hull = Hull.load(file, calculator="chgnet 0.3.0")
    assert hull.missing(["SrTiO3", "NaCl", "UPuXe", "PaTc"]) == []
    # Energies of known compounds, and what they would decay to: by hand, from its own rows.
    assert hull.phases("Sr2Ti2O6") == "1.00 SrTiO3"
    assert hull.phases("Na3Cl") == "0.50 NaCl + 0.50 Na"
    ((salt, energy),) = [row for row in hull.systems[frozenset(("Na", "Cl"))] if row[0] == "NaCl"]
    assert hull.above(salt, energy + 0.1)[0] == pytest.approx(0.1)


def test_weights_readme_has_the_numbers_of_the_index() -> None:
    text = (weights_dir() / "README.md").read_text()
    rows = tomllib.loads((weights_dir() / "index.toml").read_text())["weights"]
    for row in rows:
        assert row["name"] in text
        assert row["sha256"][:16] in text
        for values in row.get("measured", {}).values():
            assert str(values) in text, (row["name"], values)


def test_a_killed_run_continues_to_the_same_files(shell, tmp_path: Path) -> None:
    line = "crystalctl predict --formula SrTiO3 --n 4 --steps 4 --no-relax --out whole --json"
    whole = shell(line)
    rows = json.loads(whole.stdout)["structures"]
    again = shell(f"{line} --resume")
    assert json.loads(again.stdout)["structures"] == rows
    assert {p.name for p in (tmp_path / "whole").glob("*.cif")} == {row["file"] for row in rows}
