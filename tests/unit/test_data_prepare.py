"""Preparation keeps the crystal: checks, Niggli cells, symmetry facts, counted rejections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spglib
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystalctl.crystal.convert import to_structures
from crystalctl.crystal.lattice import from_parameters
from crystalctl.data import cells
from crystalctl.data import prepare as prepare_module
from crystalctl.data.cells import Options, niggli, standard_cell, symmetry
from crystalctl.data.datasets import Dataset
from crystalctl.data.prepare import prepare
from crystalctl.data.records import Entry, RawRow, RowError, lattice_matrix
from crystalctl.data.summary import describe
from crystalctl.errors import DataError

CUBE = [4.0, 4.0, 4.0, 90.0, 90.0, 90.0]


def row(**changes: Any) -> dict[str, Any]:
    base = {"id": "ok", "lattice": CUBE, "species": ["Cs", "Cl"], "frac": [[0, 0, 0], [0.5] * 3]}
    return {**base, **changes}


def source(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


BAD_ROWS = [
    ("not valid JSON", "{nonsense"),
    ("unknown element", row(species=["Cs", "Qq"])),
    ("wrong shape", row(frac=[[0, 0, 0]])),
    ("wrong shape", row(lattice=[1, 2, 3])),
    ("numbers that are not finite", row(frac=[[0, 0, 0], [float("nan"), 0, 0]])),
    ("numbers that are not finite", row(lattice=[4, 4, float("inf"), 90, 90, 90])),
    ("degenerate cell", row(lattice=[4, 4, 0, 90, 90, 90])),
    ("degenerate cell", row(lattice=[4, 4, 4, 60, 60, 170])),
    ("degenerate cell", row(lattice=[30, 30, 0.05, 90, 90, 90])),
    ("overlapping atoms", row(frac=[[0, 0, 0], [0.999, 0, 0]])),
    ("no atoms", row(species=[], frac=[])),
    ("not a structure", "[1, 2]"),
    ("the json row cannot be read", "[" * 100_000),
    ("numbers out of range", row(frac=[[0, 0, 0], [1e308, 1e308, 1e308]])),
    ("numbers out of range", row(lattice=[1e30, 1e30, 1e30, 90, 90, 90])),
]


def test_bad_rows_are_counted_with_a_reason_and_listed(tmp_path: Path) -> None:
    mixed = Structure(Lattice.cubic(3.0), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]).as_dict()
    bad = [*BAD_ROWS, ("partial occupancy", {"id": "alloy", "structure": mixed})]
    named = [r if isinstance(r, str) else {**r, "id": f"bad-{n}"} for n, (_, r) in enumerate(bad)]
    dataset = prepare([source(tmp_path, [row(), *named, row(id="last")])], jobs=1)
    assert dataset.ids == ["ok", "last"]
    assert dataset.meta["rows_read"] == len(bad) + 2
    assert [item["reason"] for item in dataset.meta["rejected"]] == [reason for reason, _ in bad]
    assert [item["row"] for item in dataset.meta["rejected"]] == list(range(2, len(bad) + 2))
    assert dataset.meta["rejected"][1]["id"] == "bad-1"


def test_near_atoms_are_kept(tmp_path: Path) -> None:
    dataset = prepare([source(tmp_path, [row(frac=[[0, 0, 0], [0.03, 0, 0]])])], jobs=1)
    assert dataset.meta["rejected"] == []


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row of .*, of 1 read: 1 unknown element") as caught:
        prepare([source(tmp_path, [row(species=["Cs", "Qq"])])], jobs=1)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="1 with too many atoms"):
        prepare([source(tmp_path, [row()])], Options(max_atoms=1), jobs=1)


def random_crystal(seed: int, n: int) -> Entry:
    rng = np.random.default_rng(seed)
    while True:
        lattice = rng.normal(size=(3, 3)) * 4
        if abs(np.linalg.det(lattice)) > 10:
            return Entry(lattice, rng.random((n, 3)) * 4 - 2, rng.integers(1, 90, n))


def neighbour_distances(lattice: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """Sorted distances up to 6 Å around every atom."""
    structure = Structure(lattice, ["H"] * len(frac), frac)
    return np.sort(structure.get_neighbor_list(6.0)[3])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_niggli_keeps_the_crystal(seed: int, n: int) -> None:
    entry = random_crystal(seed, n)
    lattice, frac, done = niggli(entry.lattice, entry.frac)
    assert done
    assert np.linalg.det(lattice) == pytest.approx(abs(np.linalg.det(entry.lattice)))
    before = neighbour_distances(entry.lattice, entry.frac)
    np.testing.assert_allclose(neighbour_distances(lattice, frac), before, atol=1e-6)
    ours = np.linalg.norm(lattice, axis=1)
    theirs = Lattice(entry.lattice).get_niggli_reduced_lattice().abc
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-4)


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_handedness_is_kept(mirror: float) -> None:
    """Quartz-like P3_1 21 and its mirror image stay what they are, also from left-handed bases."""
    structure = Structure.from_spacegroup(
        "P3_121", Lattice.hexagonal(4.9, 5.4), ["Si", "O"], [[0.47, 0, 0], [0.41, 0.27, 0.12]]
    )
    # Two signs: the basis may be left-handed while the crystal is not mirrored.
    left_handed = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    lattice = left_handed @ structure.lattice.matrix
    frac = structure.frac_coords @ left_handed
    if mirror < 0:
        lattice = lattice @ np.diag([1.0, 1.0, -1.0])
    cell = standard_cell(Entry(lattice, frac, np.array(structure.atomic_numbers)), Options())
    assert np.linalg.det(cell.lattice) > 0
    assert cell.space_group == (152 if mirror > 0 else 154)


def test_cell_that_a_tolerance_cannot_reduce() -> None:
    """A rounded fcc cell for which spglib's reduction runs in circles at its default tolerance."""
    parameters = np.array([5.595077, 5.595076, 5.595075, 60.0, 60.000003, 59.999995])
    lattice, _, done = niggli(lattice_matrix(parameters), np.zeros((1, 3)))
    assert done
    np.testing.assert_allclose(np.linalg.norm(lattice, axis=1), 5.595076, atol=1e-5)


def test_numpy_and_torch_orientation_agree() -> None:
    parameters = np.array([3.3, 5.4, 7.2, 81.0, 97.0, 109.0])
    np.testing.assert_allclose(
        lattice_matrix(parameters), from_parameters(torch.from_numpy(parameters)), atol=1e-12
    )


def test_symmetry_facts_of_spinel_like_sites(tmp_path: Path) -> None:
    structure = Structure.from_spacegroup(
        "Fd-3m",
        Lattice.cubic(8.1),
        ["Mg", "Al", "O"],
        [[0.0] * 3, [0.625] * 3, [0.3874] * 3],
    ).get_primitive_structure()
    lines = [{"id": "spinel", "structure": structure.as_dict()}]
    dataset = prepare([source(tmp_path, lines)], jobs=1)
    assert dataset.space_group.tolist() == [227]
    letters = dict(zip(dataset.crystals.species.tolist(), dataset.wyckoff.tolist(), strict=True))
    assert (letters[12], letters[13], letters[8]) == (0, 3, 4)
    orbit, species = dataset.orbit.long(), dataset.crystals.species
    assert len(set(orbit.tolist())) == 3
    assert torch.equal(species[orbit], species)
    assert torch.equal(orbit[orbit], orbit)
    assert bool((orbit <= torch.arange(14)).all())


@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING")
def test_general_position_letter_above_z() -> None:
    structure = Structure.from_spacegroup(
        "Pmmm", Lattice.orthorhombic(5, 6, 7), ["Si"], [[0.1, 0.2, 0.3]]
    )
    cell = (structure.lattice.matrix, structure.frac_coords, np.full(8, 14))
    number, wyckoff, orbit = symmetry(spglib.get_symmetry_dataset(cell, symprec=0.01), 8)
    assert number == 47
    assert wyckoff.tolist() == [26] * 8
    assert orbit.tolist() == [0] * 8


def test_primitive_only_on_request(tmp_path: Path) -> None:
    structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
    path = source(tmp_path, [{"id": "cu", "structure": structure.as_dict()}])
    assert prepare([path], jobs=1).crystals.layout.counts == [4]
    assert prepare([path], Options(primitive=True), jobs=1).crystals.layout.counts == [1]


def test_options_splits_and_labels(tmp_path: Path) -> None:
    rows = [
        row(id="a", split="train", gap=1.5, note="x", flag=None),
        row(id="b", split=None, gap=None, note="y"),
        row(id="b", split="test", species=["Cs"], frac=[[0, 0, 0]]),
    ]
    path = source(tmp_path, rows)
    dataset = prepare([path], jobs=1)
    assert dataset.split.tolist() == [1, 0, 3]
    assert list(dataset.properties) == ["gap"]
    assert dataset.properties["gap"][0] == 1.5
    assert dataset.properties["gap"].isnan().tolist() == [False, True, True]
    assert dataset.meta["ignored_columns"] == ["note", "flag"]
    assert dataset.meta["repeated_ids"] == 1
    limited = prepare([path], Options(split="val", max_atoms=1), jobs=1)
    assert limited.split.tolist() == [2]
    assert limited.meta["too_large"] == 2


def test_coordinates_stay_below_one_in_single_precision(tmp_path: Path) -> None:
    rows = [row(frac=[[-1e-9, 0, 0.5], [0.5, 0.5, 0.9999999999]])]
    dataset = prepare([source(tmp_path, rows)], jobs=1)
    assert float(dataset.crystals.frac.max()) < 1.0
    assert float(dataset.crystals.frac.min()) >= 0.0


def test_parallel_equals_serial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(id=str(n), lattice=[4 + n / 50, 4, 4, 90, 90, 90], size=n) for n in range(40)]
    rows[7] = row(id="bad", species=["Cs", "Qq"])
    path = source(tmp_path, rows)
    monkeypatch.setattr(prepare_module, "CHUNK", 8)
    serial = prepare([path], jobs=1)
    monkeypatch.setattr(prepare_module, "SERIAL_BELOW", 1)
    seen: list[tuple[int, int]] = []
    parallel = prepare([path], jobs=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)
    assert len(seen) == 5
    assert parallel.ids == serial.ids
    assert parallel.meta == serial.meta
    assert parallel.standard is not None
    assert serial.standard is not None
    assert torch.equal(parallel.standard.source, serial.standard.source)
    assert torch.equal(parallel.standard.crystals.frac, serial.standard.crystals.frac)
    assert torch.equal(parallel.crystals.lattice, serial.crystals.lattice)
    assert torch.equal(parallel.properties["size"], serial.properties["size"])


def test_saved_file_reads_back_and_describes_itself(tmp_path: Path) -> None:
    rows = [row(id="α-1", gap=2.0), row(id="two", split="val", gap=1.0), "{"]
    dataset = prepare([source(tmp_path, rows)], jobs=1)
    dataset.save(tmp_path / "set.safetensors")
    loaded = Dataset.load(tmp_path / "set.safetensors")
    assert loaded.ids == ["α-1", "two"]
    facts = json.loads(json.dumps(describe(loaded)))
    assert facts["structures"] == 2
    assert facts["atoms"] == 4
    assert facts["splits"] == {"none": 1, "val": 1}
    assert facts["elements"] == {"Cl": 2, "Cs": 2}
    assert facts["space_groups"] == {"221": 2}
    assert facts["properties"]["gap"]["max"] == 2.0
    assert facts["rejected"] == {"not valid JSON": 1}
    assert facts["volume_per_atom_ang3"]["mean"] == pytest.approx(32.0)
    assert to_structures(loaded.crystals)[0].formula == "Cs1 Cl1"


def test_workers_start_without_torch() -> None:
    code = "import sys, crystalctl.data.cells; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_large_cell_is_checked_a_part_at_a_time() -> None:
    lattice = np.eye(3) * 100.0
    grid = np.arange(12) / 12
    frac = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    cells._check_geometry(lattice, frac)
    # The last atom, in the last part, on top of the first but for a lattice vector.
    frac[-1] = frac[0] + 1 - 1e-5
    with pytest.raises(RowError, match="overlapping atoms"):
        cells._check_geometry(lattice, frac)


def test_an_unforeseen_error_in_a_cell_is_a_rejected_row(tmp_path: Path, monkeypatch) -> None:
    def fail(*args: Any) -> None:
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(cells, "niggli", fail)
    chunk = cells.prepare_chunk([RawRow("json", row(), "x.jsonl", 1)], Options())
    assert [item["reason"] for item in chunk.rejected] == ["the cell cannot be standardised"]


def test_an_id_that_cannot_be_encoded_does_not_lose_the_dataset(tmp_path: Path) -> None:
    dataset = prepare([source(tmp_path, [row(id="\ud800x"), row(id="fine")])])
    dataset.save(tmp_path / "set.safetensors")
    assert Dataset.load(tmp_path / "set.safetensors").ids == ["?x", "fine"]


def test_conventional_cells_are_kept_and_read_back(tmp_path: Path) -> None:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0] * 3, [0.305, 0.305, 0]]
    )
    rows = [{"id": k, "structure": s.as_dict()} for k, s in (("salt", salt), ("rutile", rutile))]
    dataset = prepare([source(tmp_path, rows)], Options(primitive=True), jobs=1)
    dataset.save(tmp_path / "d.safetensors")
    both = Dataset.load(tmp_path / "d.safetensors")
    assert both.standard is not None
    assert both.standard.crystals.layout.space_group.tolist() == [225, 136]
    assert both.standard.crystals.layout.counts == [8, 6]
    last = both.select(torch.tensor([1])).standard
    assert last is not None
    assert last.source.tolist() == [0]
    assert last.crystals.layout.orbits.multiplicity.tolist() == [2, 4]
    assert sorted(last.crystals.species.tolist()) == [8] * 4 + [22] * 2
    expected = rutile.lattice.matrix @ rutile.lattice.matrix.T
    found = last.crystals.lattice[0].double().numpy()
    assert np.allclose(found @ found.T, expected, atol=1e-4)
