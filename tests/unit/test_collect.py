"""Inputs of evaluate: every kind of file, nothing dropped, nothing crashes."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from prototypes import diamond, record, rock_salt, write_cif, write_lines, zinc_blende

from crystalctl.errors import InputError
from crystalctl.io.collect import find_sources, read_source
from crystalctl.io.structures import extxyz_text


def read(path: Path | str):
    (source,) = find_sources([path])
    return read_source(source)


def mess(folder: Path) -> int:
    """A folder in which a third of the CIFs are broken, each in another way; gives how many."""
    broken = [
        b"",
        b"<html>404</html>",
        os.urandom(300),
        rock_salt().to(fmt="cif").encode()[:200],
        rock_salt().to(fmt="cif").replace("_cell_length_a ", "_cell_length_q ").encode(),
        rock_salt().to(fmt="cif").replace("Na", "Qq").encode(),
    ]
    for number, content in enumerate(broken):
        write_cif(folder / "a" / f"good-{number}.cif", rock_salt(a=5.5 + number / 10))
        write_cif(folder / f"good-{number}.cif", zinc_blende(a=5.5 + number / 10))
        (folder / f"bad-{number}.cif").write_bytes(content)
    return len(broken)


def test_a_third_of_a_folder_is_broken(tmp_path) -> None:
    n = mess(tmp_path)
    (tmp_path / "gone.cif").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not a structure")
    rows = read(tmp_path)
    assert len(rows) == 3 * n + 1
    failed = [row for row in rows if row.entry is None]
    assert len(failed) == n + 1
    assert all(row.reason for row in failed)
    assert {row.id for row in failed} == {*(f"bad-{i}" for i in range(n)), "gone"}


def test_a_zip_is_its_folder(tmp_path) -> None:
    n = mess(tmp_path / "in")
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((tmp_path / "in").rglob("*.cif")):
            packed.write(path, path.relative_to(tmp_path / "in"))
        packed.writestr("../../escape.cif", rock_salt().to(fmt="cif"))
        packed.writestr("__MACOSX/._good.cif", "x")
    rows = read(archive)
    assert len(rows) == 3 * n + 1
    assert sum(row.entry is None for row in rows) == n
    assert not (tmp_path.parent / "escape.cif").exists()


def test_a_zip_of_data_files_and_a_broken_one(tmp_path) -> None:
    lines = write_lines(tmp_path / "some.jsonl", [record(rock_salt(), id="x"), "{"])
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as packed:
        packed.write(lines, "deep/some.jsonl")
    rows = read(tmp_path / "some.zip")
    assert [(row.id, row.entry is None) for row in rows] == [("x", False), ("some-1-2", True)]
    assert rows[0].source == "some.zip:deep/some.jsonl"
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    (row,) = read(tmp_path / "bad.zip")
    assert row.reason.startswith("archive cannot be read")


def test_every_format_gives_the_same_structure(tmp_path) -> None:
    salt = rock_salt()
    atoms = (salt.lattice.matrix, salt.frac_coords, [s.specie.Z for s in salt], {"rank": 2})
    (tmp_path / "a.extxyz").write_text(extxyz_text([atoms]))
    cif = salt.to(fmt="cif").replace('"', "'")
    (tmp_path / "a.csv").write_text(f'material_id,cif\nsalt,"{cif}"\n')
    write_lines(tmp_path / "a.jsonl", [record(salt)])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as text:
        text.write(json.dumps(record(salt)) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([salt.as_dict()]))
    write_cif(tmp_path / "a.cif", salt)
    for path in [p for p in tmp_path.iterdir() if p.is_file()]:
        (row,) = read(path)
        assert row.entry is not None, (path, row.reason)
        assert abs(abs(float(row.entry.lattice[0] @ row.entry.lattice[1])) - 5.64**2 / 4) < 1e-3
        assert sorted(row.entry.numbers.tolist()) == [11, 17]


def test_a_cif_of_several_structures_is_several_rows(tmp_path) -> None:
    text = "data_global\n_journal_name 'x'\n" + rock_salt().to(fmt="cif") + diamond().to(fmt="cif")
    (tmp_path / "two.cif").write_text(text)
    rows = read(tmp_path / "two.cif")
    assert [row.id for row in rows] == ["two-1", "two-2"]
    assert [len(row.entry.numbers) for row in rows] == [2, 2]


def test_a_damaged_stream_keeps_what_came_before(tmp_path) -> None:
    salt = rock_salt()
    atoms = (salt.lattice.matrix, salt.frac_coords, [11, 17], {})
    (tmp_path / "a.extxyz").write_text(extxyz_text([atoms, atoms]) + "garbage\n")
    rows = read(tmp_path / "a.extxyz")
    assert [row.entry is None for row in rows] == [False, False, True]
    assert "expected a number of atoms" in rows[2].reason


def test_single_cifs_of_a_shell_glob_are_one_input(tmp_path) -> None:
    for i in range(3):
        write_cif(tmp_path / f"{i}.cif", rock_salt())
    lines = write_lines(tmp_path / "more.jsonl", [record(rock_salt())])
    by_shell = find_sources([*sorted(tmp_path.glob("*.cif")), lines])
    by_us = find_sources([str(tmp_path / "*.cif"), lines])
    assert [len(s.files) for s in by_shell] == [len(s.files) for s in by_us] == [3, 1]
    assert by_us[0].name == tmp_path.name


def test_equal_names_get_numbers(tmp_path) -> None:
    for part in "ab":
        (tmp_path / part).mkdir()
        write_lines(tmp_path / part / "out.jsonl", [record(rock_salt())])
    sources = find_sources([tmp_path / "a" / "out.jsonl", tmp_path / "b" / "out.jsonl"])
    assert [s.name for s in sources] == ["out", "out-2"]


def test_nothing_to_find(tmp_path) -> None:
    with pytest.raises(InputError, match="is empty"):
        find_sources([tmp_path])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no structures"):
        find_sources([tmp_path])
    with pytest.raises(InputError, match="no file or folder"):
        find_sources([tmp_path / "*.cif"])


def test_a_damaged_run_folder_has_no_ranks(tmp_path) -> None:
    salt = rock_salt()
    atoms = (salt.lattice.matrix, salt.frac_coords, [11, 17], {"sample": 0, "rank": 1})
    (tmp_path / "structures.extxyz").write_text(extxyz_text([atoms]))
    (tmp_path / "manifest.json").write_text('{"request": {"task": "predict"}}')
    (source,) = find_sources([tmp_path])
    assert (source.task, source.ranked) == ("predict", {})
    (tmp_path / "summary.json").write_text('{"structures": [{"sample": 0, "rank": 1}]}')
    (source,) = find_sources([tmp_path])
    assert [row.rank for row in read_source(source)] == [1]


def test_archives_and_empty_files_say_what_they_are(tmp_path) -> None:
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "one.cif").write_text(rock_salt().to(fmt="cif"))
    rows = {row.id: row.reason for row in read(tmp_path)}
    assert rows == {"empty": "empty file", "one": ""}
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "one.cif")
    (row,) = read(tmp_path / "all.tar")
    assert "not a kind of file" in row.reason


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig", "latin-1"])
def test_encodings(tmp_path, encoding) -> None:
    text = "# Å\n" + rock_salt().to(fmt="cif")
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (tmp_path / "one.cif").write_bytes(mark + text.encode(encoding))
    (row,) = read(tmp_path)
    assert row.entry is not None, row.reason
