"""Every kind of source gives the same crystals, and bad ones say why."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from prototypes import caesium_chloride
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.io.ase import AseAtomsAdaptor

from crystalctl.data.prepare import prepare
from crystalctl.data.readers import read_rows, sniff
from crystalctl.data.records import RawRow, RowError, atomic_number, parse_row, row_id
from crystalctl.errors import DataError


def perovskite() -> Structure:
    return Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    )


def rock_salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
    ).get_primitive_structure()


def record(structure: Structure, **columns: Any) -> dict[str, Any]:
    return {
        "lattice": list(structure.lattice.parameters),
        "species": [site.specie.symbol for site in structure],
        "frac": structure.frac_coords.tolist(),
        **columns,
    }


def write_csv(path: Path, structures: list[Structure]) -> Path:
    with path.open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["", "material_id", "pretty_formula", "heat", "cif"])
        for number, one in enumerate(structures):
            table.writerow([number, f"m-{number}", one.reduced_formula, -1.5, one.to(fmt="cif")])
    return path


def write_source(kind: str, folder: Path, structures: list[Structure]) -> Path:
    """Write ``structures`` as a source of this kind, ids m-0, m-1, ... where it can hold them."""
    if kind == "csv":
        return write_csv(folder / "set.csv", structures)
    if kind == "csv.gz":
        plain = write_csv(folder / "plain.csv", structures)
        (folder / "set.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
        return folder / "set.csv.gz"
    if kind == "cifs":
        (folder / "cifs" / "deeper").mkdir(parents=True)
        for number, one in enumerate(structures):
            where = folder / "cifs" / ("deeper" if number else "")
            one.to(str(where / f"m-{number}.cif"))
        return folder / "cifs"
    if kind == "extxyz":
        frames = [AseAtomsAdaptor.get_atoms(s) for s in structures]
        for number, frame in enumerate(frames):
            frame.calc = None
            frame.info = {"id": f"m-{number}", "heat": -1.5}
        write(folder / "set.extxyz", frames, format="extxyz")
        return folder / "set.extxyz"
    named = {f"m-{n}": s for n, s in enumerate(structures)}
    documents: dict[str, Any] = {
        "jsonl.gz": [record(s, id=n, heat=-1.5) for n, s in named.items()],
        "structures.jsonl": [{**s.as_dict(), "@class": "Structure"} for s in structures],
        "records.jsonl": [
            {"material_id": n, "structure": s.as_dict(), "heat": -1.5} for n, s in named.items()
        ],
        "list.json": [s.as_dict() for s in structures],
        "dict.json": {n: s.as_dict() for n, s in named.items()},
        "entries.json": [
            ComputedStructureEntry(s, -12.5, entry_id=n).as_dict() for n, s in named.items()
        ],
        "lines.json": [s.as_dict() for s in structures],
    }
    document = documents[kind]
    lines = "jsonl" in kind or kind == "lines.json"
    text = "\n".join(json.dumps(d) for d in document) if lines else json.dumps(document)
    path = folder / (kind if "." in kind[:-6] else f"set.{kind}")
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    return path


KINDS = [
    "csv",
    "csv.gz",
    "cifs",
    "extxyz",
    "jsonl.gz",
    "structures.jsonl",
    "records.jsonl",
    "list.json",
    "dict.json",
    "entries.json",
    "lines.json",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_crystals(kind: str, tmp_path: Path) -> None:
    source = write_source(kind, tmp_path, [perovskite(), rock_salt()])
    dataset = prepare([source], jobs=1)
    assert dataset.meta["rejected"] == []
    order = np.argsort(-dataset.crystals.layout.n_atoms.numpy()).tolist()
    assert [dataset.crystals.layout.counts[i] for i in order] == [5, 2]
    assert [dataset.space_group.tolist()[i] for i in order] == [221, 225]
    species = [sorted(part.species.tolist()) for part in dataset.crystals.split()]
    assert [species[i] for i in order] == [[8, 8, 8, 22, 38], [11, 17]]
    volumes = dataset.crystals.lattice.det()[order]
    np.testing.assert_allclose(volumes, [3.9**3, 5.6**3 / 4], rtol=1e-4)
    if kind not in {"structures.jsonl", "list.json", "lines.json", "cifs"}:
        assert [dataset.ids[i] for i in order] == ["m-0", "m-1"]
    if kind == "cifs":
        assert sorted(dataset.ids) == ["deeper/m-1", "m-0"]
    if kind in {"csv", "extxyz", "jsonl.gz", "records.jsonl"}:
        assert dataset.properties["heat"].tolist() == [-1.5, -1.5]
    if kind == "csv":
        assert list(dataset.properties) == ["heat"]
        assert dataset.meta["ignored_columns"] == ["pretty_formula"]
    if kind == "entries.json":
        assert dataset.properties["energy"].tolist() == [-12.5, -12.5]


def test_single_cif_file_and_several_sources(tmp_path: Path) -> None:
    perovskite().to(str(tmp_path / "one.cif"))
    second = write_source("jsonl.gz", tmp_path, [rock_salt()])
    dataset = prepare([tmp_path / "one.cif", second], jobs=1)
    assert dataset.ids == ["one", "m-0"]
    assert dataset.space_group.tolist() == [221, 225]


def test_split_from_the_row_or_else_the_file_name(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        rows = [record(rock_salt(), id=f"{name}-plain"), record(rock_salt(), split="Validation")]
        text = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    dataset = prepare([tmp_path], jobs=1)
    assert dataset.split.tolist() == [3, 2, 1, 2, 2, 2]
    assert dataset.ids[:2] == ["test-plain", "test-2"]


def test_kind_from_the_content(tmp_path: Path) -> None:
    path = write_source("jsonl.gz", tmp_path, [rock_salt()])
    bare = tmp_path / "nosuffix"
    bare.write_bytes(gzip.decompress(path.read_bytes()))
    assert sniff(bare) == "json"
    assert [row.kind for row in read_rows([bare])] == ["json"]
    table = tmp_path / "table.txt"
    write_csv(table, [rock_salt()])
    assert sniff(table) == "csv"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("picture.png", b"\x89PNG\r\n\x1a\n\x00\xff", "not a kind of file"),
        ("set.csv", b"material_id,structure\n1,2\n", "no column named cif"),
        ("set.json", b'{"a": [1, 2', "not valid JSON"),
        ("set.json", b"3.5", "JSON float"),
        ("set.jsonl.gz", gzip.compress(b"[1]\n" * 99, mtime=0)[:-12], "1 damaged or cut short"),
        ("set.jsonl.gz", b"plain text", "damaged or cut short"),
        ("set.jsonl", b"\xff\xfe\x00\x01", "not a text file"),
        ("set.extxyz", b"\nnot a count\n", "1 lines outside any frame"),
        ("set.jsonl", b"\n", "file without rows"),
        ("set.json", b"", "file without rows"),
        ("set.csv", b"", "no column named cif; its columns are: none"),
    ],
)
def test_unusable_sources(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare([path], jobs=1)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_missing_source_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        list(read_rows([tmp_path / "nowhere.csv"]))
    with pytest.raises(DataError, match="no CIF and no data file"):
        list(read_rows([tmp_path]))


def test_unreadable_rows_of_text_are_row_errors() -> None:
    rows = {
        "not valid JSON": RawRow("json", "{broken", "s", 1),
        "not a structure": RawRow("json", '{"a": 1}', "s", 1),
        "no CIF": RawRow("csv", {"cif": "  ", "material_id": "x"}, "s", 1),
        "CIF that cannot be read": RawRow("csv", {"cif": "data_x\n_cell_length_a oops"}, "s", 1),
        "not periodic": RawRow("extxyz", "1\nProperties=species:S:1:pos:R:3\nH 0 0 0\n", "s", 1),
        "the extxyz row cannot be read": RawRow("extxyz", "2\n\nH 0 0\n", "s", 1),
    }
    for reason, row in rows.items():
        with pytest.raises(RowError) as caught:
            parse_row(row)
        assert caught.value.reason == reason


def test_symbols() -> None:
    assert [atomic_number(s) for s in ("Fe", "Fe3+", "O2-", "D", "Pu", 26)] == [
        26,
        26,
        8,
        1,
        94,
        26,
    ]
    for bad in ("Xx", "X", "fe", "Lr", 0, 101, ""):
        with pytest.raises(RowError, match="unknown element"):
            atomic_number(bad)


def test_a_frame_that_promises_too_many_atoms_is_one_rejected_row(tmp_path: Path) -> None:
    path = tmp_path / "set.extxyz"
    whole = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nFe 0 0 0\n'
    path.write_text(whole + whole.replace("1", "99999999999", 1))
    dataset = prepare([path])
    assert len(dataset) == 1
    assert "frame cut short" in dataset.meta["rejected"][0]["detail"]


def test_a_frame_must_begin_with_plain_digits(tmp_path: Path) -> None:
    path = tmp_path / "set.extxyz"
    path.write_text("²\ncomment\n")
    (row,) = read_rows([path])
    with pytest.raises(RowError, match="lines outside any frame"):
        parse_row(row)


def frame(name: str, *, count: str = "2", atoms: tuple[str, ...] = ("Mg 0 0 0", "O 2 2 2")) -> str:
    comment = f'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 id="{name}"'
    return "\n".join([count, comment, *atoms]) + "\n"


def rejected(path: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """Ids that were kept, and row number and reason of the others."""
    dataset = prepare([path], jobs=1)
    bad = dataset.meta["rejected"]
    assert dataset.meta["rows_read"] == len(dataset) + len(bad)
    return dataset.ids, [(item["row"], item["reason"]) for item in bad]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        ("nonsense\nmore of it\n", [(2, "lines outside any frame")]),
        (frame("x", count="two"), [(2, "lines outside any frame")]),
        (frame("x", atoms=("Mg 0 0 0",)), [(2, "the extxyz row cannot be read")]),
        (frame("x", count="9"), [(2, "the extxyz row cannot be read")]),
        (
            frame("x", count="1"),
            [(3, "lines outside any frame")],  # one atom of two: a frame, and a line too many
        ),
        ("\n\n", []),
    ],
)
def test_a_damaged_frame_costs_only_itself(damage: str, lost: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.extxyz"
    path.write_text(frame("first") + damage + frame("then") + frame("last"))
    kept, bad = rejected(path)
    assert [name for name in kept if name != "x"] == ["first", "then", "last"]
    assert bad == lost


def test_an_extxyz_cut_in_a_frame_keeps_the_frames_before(tmp_path: Path) -> None:
    path = tmp_path / "set.extxyz"
    path.write_text((frame("first") + frame("cut"))[:-9])
    assert rejected(path) == (["first"], [(2, "the extxyz row cannot be read")])


def _many(kind: str) -> str:
    salt = caesium_chloride()  # its symmetry is found sooner than that of rock salt
    records = [record(salt, id=f"m-{n}") for n in range(400)]
    if kind == "csv":
        cif = salt.to(fmt="cif").replace('"', "'")
        return "material_id,cif\n" + "".join(f'm-{n},"{cif}"\n' for n in range(400))
    if kind == "extxyz":
        return "".join(frame(f"m-{n}") for n in range(400))
    return (
        "".join(f"{json.dumps(r)}\n" for r in records) if kind == "jsonl" else json.dumps(records)
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "extxyz"])
def test_a_cut_gzip_keeps_what_came_before_the_cut(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"set.{kind}.gz"
    whole = gzip.compress(_many(kind).encode(), mtime=0)
    path.write_bytes(whole[: len(whole) // 2])
    rows = list(read_rows([path]))
    kept, (reason, detail) = rows[:-1], rows[-1].payload
    assert len(kept) > 50
    if kind != "extxyz":  # its id is in the comment line
        assert [row_id(row) for row in kept] == [f"m-{n}" for n in range(len(kept))]
    assert (rows[-1].kind, reason) == ("damaged", "damaged or cut short")
    assert "end-of-stream" in detail
    assert rows[-1].number == len(rows)


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    content = bytearray(gzip.compress(_many("jsonl").encode()))
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    kept, bad = rejected(path)
    assert len(kept) == 400
    ((number, reason),) = bad
    assert number == 401
    assert "rows of this file may be altered" in reason


@pytest.mark.parametrize("form", ["list", "dictionary", "entries"])
def test_a_cut_json_keeps_whole_structures(form: str, tmp_path: Path) -> None:
    structures = [rock_salt().as_dict()] * 6
    named = {f"m-{n}": s for n, s in enumerate(structures)}
    forms = {
        "list": structures,
        "dictionary": named,
        "entries": {"about": {"version": 1}, "entries": structures},
    }
    text = json.dumps(forms[form])
    path = tmp_path / "set.json"
    path.write_text(text[: len(text) // 2 - 40])
    rows = list(read_rows([path]))
    usable = [row for row in rows[:-1] if "sites" in row.payload]
    assert len(usable) == 2
    assert rows[-1].payload[0] == "damaged or cut short"
    if form == "dictionary":
        assert [row.id for row in usable] == ["m-0", "m-1"]


def test_one_structure_cut_short_is_no_structure(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(rock_salt().as_dict())[:-40])
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_rows([path]))


def test_a_file_of_a_folder_that_cannot_be_read_is_a_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record(rock_salt(), id="good")))
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    (tmp_path / "c.json").write_text('{"a": [1, 2')
    (tmp_path / "d.extxyz").write_text("")
    kept, bad = rejected(tmp_path)
    assert kept == ["good"]
    reasons = ["file that cannot be read", "file that cannot be read", "file without rows"]
    assert [reason for _, reason in bad] == reasons


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_encodings_of_a_cif(encoding: str, tmp_path: Path) -> None:
    text = "# Universität\r\n" + perovskite().to(fmt="cif").replace("\n", "\r\n")
    (tmp_path / "one.cif").write_bytes(text.encode(encoding))
    (tmp_path / "zero.cif").write_bytes(b"")
    (tmp_path / "junk.cif").write_bytes(b"\x00\xff" * 99)
    kept, bad = rejected(tmp_path)
    assert kept == ["one"]
    assert [reason for _, reason in bad] == ["CIF that cannot be read"] * 2


def test_line_ends_compression_and_signs_of_a_cif(tmp_path: Path) -> None:
    text = perovskite().to(fmt="cif")
    (tmp_path / "old.cif").write_bytes(text.replace("\n", "\r").encode())
    (tmp_path / "packed.cif").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "signs.cif").write_text(text.replace("_cell_length_a   ", "_cell_length_a   -"))
    kept, bad = rejected(tmp_path)
    assert sorted(kept) == ["old", "packed"]
    assert [reason for _, reason in bad] == ["degenerate cell"]


def test_a_table_names_its_cif_column_in_any_case(tmp_path: Path) -> None:
    text = '"' + perovskite().to(fmt="cif").replace('"', "'") + '"'
    (tmp_path / "t.csv").write_text(f"material_id, CIF\na,{text}\n")
    assert prepare([tmp_path / "t.csv"]).ids == ["a"]


def test_an_atom_of_no_element_is_a_rejected_row(tmp_path: Path) -> None:
    good = '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 pbc="T T T"\nFe 0 0 0\n'
    (tmp_path / "x.extxyz").write_text(good + good.replace("Fe", "X"))
    kept, bad = rejected(tmp_path)
    assert len(kept) == 1
    assert [reason for _, reason in bad] == ["unknown element"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_that_is_not_utf8_costs_no_row(tmp_path: Path, suffix: str) -> None:
    cif = perovskite().to(fmt="cif").encode()
    content = b'material_id,cif\na,"# \xc5ngstr\xf6m\n' + cif + b'"\nb,"' + cif + b'"\n'
    path = tmp_path / f"set.csv{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert prepare([path]).ids == ["a", "b"]


def test_json_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_rows([path]))


@pytest.mark.parametrize("journal_first", [True, False])
def test_cif_blocks_without_atoms_do_not_matter(tmp_path: Path, journal_first: bool) -> None:
    parts = ["data_global\n_journal_year 2001\n", perovskite().to(fmt="cif")]
    path = tmp_path / "one.cif"
    path.write_text("\n".join(parts if journal_first else reversed(parts)))
    dataset = prepare([path])
    assert dataset.crystals.layout.counts == [5]


def test_a_second_structure_in_a_cif_is_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "two.cif"
    path.write_text(perovskite().to(fmt="cif") + "\n" + rock_salt().to(fmt="cif"))
    with pytest.raises(DataError, match="several structures in one CIF"):
        prepare([path])
