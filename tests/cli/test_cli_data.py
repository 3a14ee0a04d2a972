"""``crystalctl data``: what it prints, what it refuses, what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crystalctl.cli.app import main
from crystalctl.data.datasets import Dataset
from crystalctl.retrieval import Memory

GOOD = {
    "id": "good",
    "split": "train",
    "lattice": [4.1, 4.1, 4.1, 90, 90, 90],
    "species": ["Cs", "Cl"],
    "frac": [[0, 0, 0], [0.5, 0.5, 0.5]],
    "gap": 8.3,
}
BROKEN_CIF = "data_x\n_cell_length_a 4\nloop_\n_atom_site_label\n"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in ("data", *arguments)])
    code = caught.value.code
    return int(code or 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [
        GOOD,
        {**GOOD, "id": "bad", "species": ["Cs", "Qq"]},
        {**GOOD, "id": "b", "split": None},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_prepare_then_info(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "new" / "set.safetensors"
    assert run("prepare", source, "-o", out) == 0
    shown = capsys.readouterr().out
    assert "2 structures from 3 rows" in shown
    assert "1 rejected: unknown element" in shown
    assert "row 2 (bad): unknown element: 'Qq'" in shown
    assert [p.name for p in out.parent.iterdir()] == ["set.safetensors"]

    assert run("info", out) == 0
    shown = capsys.readouterr().out
    for text in ("structures", "train: 1", "none: 1", "Cs: 2", "221: 2", "label gap", "0.1"):
        assert text in shown
    assert "1 rejected: unknown element" in shown


def test_json_output(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "set.safetensors"
    assert run("prepare", source, "-o", out, "--json", "--split", "val") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"] == {"val": 2}
    assert facts["rejected"] == {"unknown element": 1}
    assert facts["rejected_rows"][0]["id"] == "bad"
    assert run("info", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["structures"] == 2


def test_options_reach_the_work(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "set.safetensors"
    assert run("prepare", source, "-o", out, "--symprec", "0.01", "--primitive") == 0
    meta = Dataset.load(out).meta
    assert (meta["symprec"], meta["primitive"]) == (0.01, True)
    assert run("prepare", source, "-o", out, "--force", "--max-atoms", "1") == 2
    assert "2 with too many atoms" in capsys.readouterr().err
    assert Dataset.load(out).meta["symprec"] == 0.01


def test_existing_output_needs_force(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = source.parent / "set.safetensors"
    out.write_text("mine")
    assert run("prepare", source, "-o", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run("prepare", source, "-o", out, "--force") == 0
    assert len(Dataset.load(out)) == 2


def test_output_that_cannot_be_written_is_refused_first(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(source.parent.rglob("*"))
    # The source does not exist either: a message about the output shows which was looked at first.
    missing = source.parent / "nowhere.csv"
    for out, message in (
        (source / "set.safetensors", "cannot be written"),
        (source.parent / "set.pt", "should end in .safetensors"),
    ):
        assert run("prepare", missing, "-o", out) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "Traceback" not in shown
    (source.parent / "dir.safetensors").mkdir()
    assert run("prepare", missing, "-o", source.parent / "dir.safetensors") == 2
    assert "is a folder" in capsys.readouterr().err
    (source.parent / "dir.safetensors").rmdir()
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.cif", BROKEN_CIF, "of 1 read"),
        ("x.csv", "material_id,text\n1,2\n", "no column named cif"),
        ("x.weird", "hello", "not a kind of file"),
        ("x.jsonl", '{"id": 1}', "1 not a structure"),
    ],
)
def test_bad_sources(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert run("prepare", tmp_path / name, "-o", tmp_path / "o.safetensors") == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_one_broken_cif_among_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pymatgen.core import Lattice, Structure

    folder = tmp_path / "cifs"
    folder.mkdir()
    (folder / "broken.cif").write_text(BROKEN_CIF)
    Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5] * 3]).to(str(folder / "ok.cif"))
    assert run("prepare", folder, "-o", tmp_path / "o.safetensors") == 0
    assert "(broken): CIF that cannot be read" in capsys.readouterr().out
    assert Dataset.load(tmp_path / "o.safetensors").ids == ["ok"]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_info_on_what_is_no_dataset(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert run("info", path) == 2
    shown = capsys.readouterr().err
    assert "dataset" in shown
    assert "Traceback" not in shown


def test_options_out_of_range(source: Path) -> None:
    for option in (("--max-atoms", 0), ("--jobs", 0), ("--symprec", 0), ("--split", "dev")):
        assert run("prepare", source, "-o", source.parent / "o.safetensors", *option) == 2


def test_templates_of_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rutiles of three metals are a prototype, which a fourth begins at; another file has none."""
    source, made = tmp_path / "rows.jsonl", tmp_path / "set.safetensors"
    rows = []
    cells = (("Ti", 4.59, 2.96, 0.305), ("Sn", 4.74, 3.19, 0.307), ("Ru", 4.5, 3.1, 0.306))
    for metal, a, c, x in cells:
        oxygen = [[x, x, 0], [-x, -x, 0], [0.5 - x, 0.5 + x, 0.5], [0.5 + x, 0.5 - x, 0.5]]
        rows.append(
            {
                "lattice": [a, a, c, 90, 90, 90],
                "species": [metal] * 2 + ["O"] * 4,
                "frac": [[0, 0, 0], [0.5, 0.5, 0.5], *oxygen],
            }
        )
    source.write_text("\n".join(json.dumps(row) for row in rows))
    assert run("prepare", source, "-o", made) == 0
    out = tmp_path / "templates.safetensors"
    assert run("templates", made, "-o", out) == 0
    assert "3 structures, 1 prototypes" in capsys.readouterr().out
    ((chosen, _),) = Memory.load(out).propose({25: 2, 8: 4}, 9)
    (begun,) = chosen.starts
    # 0.306, or 0.194 = 1/2 - 0.306 in the other setting.
    assert (
        min(abs(begun.start[6 + 3 * begun.species.index(8)] % 0.5 - x) for x in (0.306, 0.194))
        < 1e-3
    )
    assert run("templates", out, "-o", tmp_path / "again.safetensors") == 2
    assert "crystalctl data prepare" in capsys.readouterr().err
