"""``rank``, ``data energies``, ``--hull`` and relaxation after predict, with a cheap calculator."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from crystalctl import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
MORSE = ("--calculator", "springs:morse")
BARE = ("--no-elements",)
FREE, VOTED = "diffcsp x1", "diffcsp_pp:retrieval x2, diffcsp_pp:proposer x1"


def cell(a: float, *species: str) -> Structure:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]][: len(species)]
    return Structure(Lattice.cubic(a), list(species), sites)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    where = tmp_path / "cells"
    where.mkdir()
    cell(3.5, "Cs", "Cl").to(str(where / "a.cif"))
    cell(4.2, "Cs", "Cl").to(str(where / "b.cif"))
    cell(3.6, "Cs", "Br").to(str(where / "c.cif"))
    cell(3.6, "Cs", "He").to(str(where / "d.cif"))
    return where


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Elements and one salt, as structures."""
    where = tmp_path / "reference"
    where.mkdir()
    for name in ("Cs", "Cl", "He"):
        cell(3.2, name).to(str(where / f"{name}.cif"))
    cell(3.7, "Cs", "Cl").to(str(where / "CsCl.cif"))
    return where


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_rank_without_relaxing_moves_nothing(cells: Path, run_cli) -> None:
    done = run_cli("rank", cells, *MORSE, "--no-relax")
    assert done.code == 0, done.err
    out = cells.parent / "cells-ranked"
    rows = table(out / "ranked.csv")
    ranked = [row for row in rows if row["rank"]]
    assert [row["formula"] for row in ranked] == ["CsCl", "CsBr"]
    for row in ranked:
        assert float(row["energy_ev"]) == float(row["energy_before_ev"])
        assert float(row["rmsd_ang"]) == 0
    first = Structure.from_file(out / ranked[0]["file"])
    # The two lengths are one structure for the matcher; the lower energy stands for both.
    assert ranked[0]["count"] == "2"
    assert first.lattice.a == pytest.approx(3.5, abs=1e-3)
    assert "moved" not in done.out
    assert "no parameters for He" in done.out


def test_rank_relaxes_unless_told_not_to(cells: Path, run_cli) -> None:
    assert run_cli("rank", cells, *MORSE, "-q").code == 0
    rows = table(cells.parent / "cells-relaxed" / "relaxed.csv")
    assert float(rows[0]["energy_ev"]) < float(rows[0]["energy_before_ev"])


def test_energies_are_a_cache_and_a_hull(cells: Path, reference: Path, run_cli) -> None:
    file = reference.parent / "e.jsonl"
    done = run_cli("data", "energies", reference, *MORSE, *BARE, "-o", file)
    assert done.code == 0, done.err
    assert "4 structures, 4 computed now, 1 without energy" in done.out
    whole = file.read_text()
    assert (
        "4 structures, 0 computed now"
        in run_cli("data", "energies", reference, *MORSE, *BARE, "-o", file).out
    )
    assert file.read_text() == whole
    # Killed in the middle of the last line: only that one is computed again.
    file.write_text(whole[:-20])
    assert "1 computed now" in run_cli("data", "energies", reference, *MORSE, *BARE, "-o", file).out
    assert sorted(file.read_text().splitlines()) == sorted(whole.splitlines())

    done = run_cli("rank", cells, *MORSE, "--no-relax", "--hull", file)
    assert done.code == 0, done.err
    rows = table(cells.parent / "cells-ranked" / "ranked.csv")
    ranked = {row["formula"]: row for row in rows if row["rank"]}
    salt = next(json.loads(line) for line in whole.splitlines()[1:] if '"Cs1 Cl1"' in line)
    # The hull at CsCl is the salt itself, or the elements where they are lower.
    elements = [json.loads(x)["energy_ev"] for x in whole.splitlines()[1:] if '1"' in x]
    ends = [
        e
        for e, x in zip(elements, whole.splitlines()[1:], strict=True)
        if '"Cs1"' in x or '"Cl1"' in x
    ]
    level = min(salt["energy_ev"], sum(ends) / 2)
    above = float(ranked["CsCl"]["energy_ev"]) - level
    assert float(ranked["CsCl"]["e_hull_ev"]) == pytest.approx(above, abs=1e-9)
    assert ranked["CsBr"]["e_hull_ev"] == ""
    assert "Br" in ranked["CsBr"]["e_hull_reason"]
    assert "E hull" in done.out
    assert "no energy of elemental Br" in done.out


def test_elements_a_dataset_lacks_are_computed_once(cells: Path, run_cli, monkeypatch) -> None:
    from crystalctl.analysis import elemental

    monkeypatch.setattr(elemental, "lattices", lambda: (("simple cubic", cell(3.0, "Po")),))
    monkeypatch.setattr(elemental, "SCALES", (0.7, 1.35))  # the well is at 3.2 Å for all
    file = cells.parent / "e.jsonl"
    (cells / "e.cif").write_text("not a crystal")
    done = run_cli("data", "energies", cells, *MORSE, *BARE, "-o", file)
    assert "2 without energy, 0 elements" in done.out
    # What is there stays; the elements of all that can be read are added.
    assert "0 computed now" in run_cli("data", "energies", cells, *MORSE, "-o", file).out
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    found = {line["element"]: line for line in lines if "element" in line}
    assert set(found) == {"Cs", "Cl", "Br", "He"}
    assert "no parameters for He" in found["He"]["reason"]
    assert found["Cs"]["id"] == "simple cubic"
    assert "4 elements" in run_cli("data", "energies", cells, *MORSE, "-o", file).out
    assert len(file.read_text().splitlines()) == len(lines) + 1
    assert run_cli("rank", cells, *MORSE, "--no-relax", "--hull", file, "-q").code == 0
    rows = [r for r in table(cells.parent / "cells-ranked" / "ranked.csv") if r["rank"]]
    # The reference holds these very structures, none of which decays into the elements.
    assert [float(row["e_hull_ev"]) for row in rows] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert {row["hull_phases"] for row in rows} == {"1.00 CsCl", "1.00 CsBr"}


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    """A run folder: the salt with most of the votes is not the one of lowest energy."""
    from crystalctl.io.structures import extxyz_text

    run = tmp_path / "voted"
    run.mkdir()
    shapes = [cell(3.5, "Cs", "Cl"), cell(3.75, "Cs", "Cl"), cell(3.9, "Cs", "Cl")]
    shapes[1] = Structure(Lattice.tetragonal(3.3, 5.2), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    shapes[2] = Structure(Lattice.tetragonal(4.4, 3.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    raw = [
        (s.lattice.matrix, s.frac_coords, [site.specie.Z for site in s], {"sample": k})
        for k, s in enumerate(shapes, start=1)
    ]
    (run / "structures.extxyz").write_text(extxyz_text(raw))
    (run / "manifest.json").write_text(json.dumps({"request": {"task": "predict"}}))
    rows = [
        {"rank": k, "sample": k, "formula": "CsCl", "votes": v, "count": 1, "source": s}
        for k, v, s in ((1, 0.0001, FREE), (2, 0.9, VOTED), (3, 0.0999, VOTED))
    ]
    (run / "summary.json").write_text(json.dumps({"structures": rows}))
    return run


def test_our_runs_are_ranked_by_score_and_on_request_by_energy(voted: Path, run_cli) -> None:
    from crystalctl.analysis.scoring import scores

    args = ("rank", voted, *MORSE, "--no-relax")
    done = run_cli(*args, "--rank-by", "energy")
    assert done.code == 0, done.err
    out = voted.parent / "voted-ranked"
    plain = [row for row in table(out / "ranked.csv") if row["rank"]]
    assert len(plain) == 3
    energies = [float(row["energy_ev"]) for row in plain]
    assert energies == sorted(energies)
    shares = [float(row["share"]) for row in plain]
    assert sorted(shares) == pytest.approx([0.0001, 0.0999, 0.9])
    given = [float(row["score_ev"]) for row in plain]
    assert given == pytest.approx(scores(energies, shares))
    assert "ranked by energy" in done.out
    by_share = sorted(plain, key=lambda row: float(row["share"]))
    assert [row["drawn_by"] for row in by_share] == [FREE, VOTED, VOTED]
    assert "drawn by" in done.out
    assert VOTED in done.out
    # Energies differ by some eV here: the weight must be as large to matter.
    done = run_cli(*args, "--resume")
    assert done.code == 0, done.err
    assert "ranked by score" in done.out
    by_score = [row for row in table(out / "ranked.csv") if row["rank"]]
    found = [float(row["score_ev"]) for row in by_score]
    assert found == sorted(found)
    # Nothing of the first ranking is left beside the second.
    assert {p.name for p in out.glob("*.cif")} == {row["file"] for row in by_score}
    assert run_cli(*args, "--resume", "--rank-by", "beauty").code == 2


def test_a_narrow_terminal_gets_whole_rows(voted: Path, run_cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    done = run_cli("rank", voted, *MORSE, "--no-relax")
    (first,) = [line for line in done.out.splitlines() if line.startswith("   1 ")]
    assert "CsCl" in first
    assert VOTED in first


def test_an_unlikely_structure_loses_its_place_to_a_likely_one(
    voted: Path, run_cli, monkeypatch
) -> None:
    monkeypatch.setattr("crystalctl.analysis.scoring.scores.__defaults__", (100.0,))
    assert run_cli("rank", voted, *MORSE, "--no-relax", "-q").code == 0
    rows = [row for row in table(voted.parent / "voted-ranked" / "ranked.csv") if row["rank"]]
    assert [float(row["share"]) for row in rows] == pytest.approx([0.9, 0.0999, 0.0001])


def test_formulas_come_as_their_run_ranked_them(voted: Path, run_cli) -> None:
    """What was generated is ranked across formulas; one that nothing voted for has a score too."""
    rows = json.loads((voted / "summary.json").read_text())["structures"]
    for row, rank, formula in zip(rows, (3, 1, 2), ("CsCl", "CsBr", "CsI"), strict=True):
        row |= {"rank": rank, "formula": formula}
    del rows[2]["votes"]
    raw = (voted / "structures.extxyz").read_text().split("\nCl ")
    assert len(raw) == 4
    mixed = f"{raw[0]}\nCl {raw[1]}\nBr {raw[2]}\nI {raw[3]}"
    (voted / "structures.extxyz").write_text(mixed)
    (voted / "summary.json").write_text(json.dumps({"structures": rows}))
    done = run_cli("rank", voted, *MORSE, "--no-relax")
    assert done.code == 0, done.err
    ranked = [row for row in table(voted.parent / "voted-ranked" / "ranked.csv") if row["rank"]]
    assert [row["formula"] for row in ranked] == ["CsBr", "CsI", "CsCl"]
    assert [float(row["share"]) for row in ranked] == [1.0, 1.0, 1.0]
    assert [row["score_ev"] for row in ranked] == [row["energy_ev"] for row in ranked]


class TestShippedReference:
    """Energies that come with the program, of one calculator: here of the cheap one."""

    @pytest.fixture(autouse=True)
    def shipped(self, reference: Path, monkeypatch, run_cli) -> None:
        cell(3.4, "Br").to(str(reference / "Br.cif"))
        file = reference.parent / "shipped.jsonl"
        done = run_cli("data", "energies", reference, *MORSE, *BARE, "-o", file)
        assert done.code == 0, done.err
        calculator = json.loads(file.read_text().splitlines()[0])["calculator"]
        row = {"name": "mine", "file": str(file), "calculator": calculator}
        monkeypatch.setattr("crystalctl.checkpoint._index", lambda: {"hulls": [row]})

    @staticmethod
    def mixed(voted: Path, task: str) -> None:
        """The run as one of ``task``, of two formulas: CsCl first, whose E hull is higher."""
        rows = json.loads((voted / "summary.json").read_text())["structures"]
        rows[1] |= {"formula": "CsBr"}
        raw = (voted / "structures.extxyz").read_text().split("\nCl ")
        (voted / "structures.extxyz").write_text(f"{raw[0]}\nCl {raw[1]}\nBr {raw[2]}\nCl {raw[3]}")
        (voted / "summary.json").write_text(json.dumps({"structures": rows}))
        (voted / "manifest.json").write_text(json.dumps({"request": {"task": task}}))

    @staticmethod
    def ranked(voted: Path) -> list[dict[str, str]]:
        return [r for r in table(voted.parent / "voted-ranked" / "ranked.csv") if r["rank"]]

    def test_tells_how_stable_each_is_and_leaves_the_order(self, voted: Path, run_cli) -> None:
        self.mixed(voted, "predict")
        done = run_cli("rank", voted, *MORSE, "--no-relax")
        assert done.code == 0, done.err
        assert "E hull" in done.out
        assert "shipped.jsonl" in done.out
        rows = self.ranked(voted)
        assert [row["formula"] for row in rows] == ["CsCl", "CsCl", "CsBr"]
        assert all(row["e_hull_ev"] for row in rows)
        assert "ranked by score: energy" in done.out

    @pytest.mark.parametrize("asked", [False, True])
    def test_ranks_generated_ones_together_and_others_on_request(
        self, voted: Path, run_cli, asked: bool
    ) -> None:
        self.mixed(voted, "predict" if asked else "generate")
        more = ("--hull", "mine") if asked else ()
        done = run_cli("rank", voted, *MORSE, "--no-relax", "--rank-by", "energy", *more)
        assert done.code == 0, done.err
        assert "ranked by E hull" in done.out
        rows = self.ranked(voted)
        above = [float(row["e_hull_ev"]) for row in rows]
        assert above == sorted(above)
        assert [row["formula"] for row in rows] == ["CsBr", "CsCl", "CsCl"]

    def test_of_another_calculator_is_not_taken(self, voted: Path, run_cli) -> None:
        (row,) = checkpoint._index()["hulls"]
        file = Path(row["file"])
        file.write_text(file.read_text().replace(row["calculator"], "chgnet 0.3.0"))
        row["calculator"] = "chgnet 0.3.0"
        done = run_cli("rank", voted, *MORSE, "--no-relax")
        assert done.code == 0, done.err
        assert "E hull" not in done.out
        done = run_cli("rank", voted, *MORSE, "--no-relax", "--hull", "mine", "--resume")
        assert done.code == 2
        assert "energies of chgnet" in done.err


def test_structures_of_others_have_no_score(cells: Path, run_cli) -> None:
    done = run_cli("rank", cells, *MORSE, "--no-relax")
    assert "score" not in done.out
    rows = table(cells.parent / "cells-ranked" / "ranked.csv")
    assert {row["score_ev"] for row in rows} == {""}


def test_another_run_in_the_same_place_is_not_resumed(cells: Path, run_cli) -> None:
    assert run_cli("rank", cells, *MORSE, "--no-relax", "-q").code == 0
    cell(3.55, "Cs", "Cl").to(str(cells / "a.cif"))
    done = run_cli("rank", cells, *MORSE, "--no-relax", "--resume")
    assert done.code == 2
    assert "other settings or structures" in " ".join(done.err.split())


@pytest.mark.parametrize("part", ["", "structures.extxyz"])
def test_stability_of_a_ranked_run_is_evaluated(
    cells: Path, reference: Path, run_cli, part: str
) -> None:
    file = reference.parent / "e.jsonl"
    assert run_cli("data", "energies", reference, *MORSE, *BARE, "-o", file).code == 0
    assert run_cli("relax", cells, *MORSE, "--hull", file, "-q").code == 0
    done = run_cli(
        "evaluate",
        cells.parent / "cells-relaxed" / part,
        "--no-fingerprints",
        "--json",
        "--train",
        reference,
    )
    assert done.code == 0, done.err
    (run,) = json.loads(done.out)["runs"].values()
    assert run["validity"]["n_readable"] == 2
    assert run["stability"] is not None
    assert 0 <= run["stability"]["stable"] <= run["stability"]["metastable"] <= 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--hull", "none.jsonl"], "cannot read the hull"),
        (["--hull", "cells/a.cif"], "holds no energies"),
        (["--calculator", "abacus"], "chgnet, mace"),
    ],
)
def test_rank_refuses_with_the_next_step(
    cells: Path, args: list[str], says: str, run_cli, monkeypatch
) -> None:
    monkeypatch.chdir(cells.parent)
    done = run_cli("rank", "cells", *MORSE, *args)
    assert done.code == 2
    assert says in " ".join(done.err.split())


def test_rank_refuses_a_hull_without_the_elements(cells: Path, tmp_path, run_cli) -> None:
    (tmp_path / "other").mkdir()
    cell(3.2, "Na").to(str(tmp_path / "other" / "Na.cif"))
    file = tmp_path / "other.jsonl"
    assert run_cli("data", "energies", tmp_path / "other", *MORSE, *BARE, "-o", file).code == 0
    done = run_cli("rank", cells, *MORSE, "--hull", file)
    assert done.code == 2
    assert "no energy of elemental Br, Cl, Cs, He" in " ".join(done.err.split())
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_cli("rank", empty, *MORSE).code == 2


@pytest.mark.usefixtures("fake_model")
class TestAfterPredict:
    def test_relaxed_candidates_are_beside_the_untouched_run(self, run_cli) -> None:
        done = run_cli("predict", "--formula", "CsCl", "--n", 6, *MORSE, "--out", "run")
        assert done.code == 0, done.err
        summary = Path("run/summary.csv").read_text()
        rows = table(Path("run/relaxed/relaxed.csv"))
        assert len(rows) == len(table(Path("run/summary.csv")))
        assert "eV/atom" in done.out
        energies = [float(row["energy_ev"]) for row in rows if row["rank"]]
        assert energies == sorted(energies)
        assert energies
        # Continued, nothing is relaxed again, and the run is what it was.
        before = Path("run/relaxed/done.jsonl").read_text().split()
        again = run_cli(
            "predict", "--formula", "CsCl", "--n", 6, *MORSE, "--out", "run", "--resume"
        )
        assert again.code == 0, again.err
        assert Path("run/relaxed/done.jsonl").read_text().split() == before
        assert Path("run/summary.csv").read_text() == summary

    def test_json_holds_both(self, run_cli) -> None:
        done = run_cli("generate", "--n", 3, *MORSE, "--json")
        assert done.code == 0, done.err
        facts = json.loads(done.out)
        assert len(facts["relaxed"]) == len(facts["structures"])

    def test_not_relaxed_by_default_without_the_extra_and_it_says_how(self, run_cli) -> None:
        done = run_cli("predict", "--formula", "CsCl", "--n", 3, "--out", "run")
        assert done.code == 0
        assert "crystalctl[relax]" in done.err
        assert not Path("run/relaxed").exists()
        silent = run_cli("predict", "--formula", "CsCl", "--n", 3, "--out", "b", "--no-relax")
        assert "crystalctl[relax]" not in silent.err

    def test_many_are_not_relaxed_unasked(self, run_cli, monkeypatch) -> None:
        monkeypatch.setattr("crystalctl.analysis.energy.default_calculator", lambda: "chgnet")
        monkeypatch.setattr("crystalctl.after.MOST", 1)
        done = run_cli("generate", "--n", 4, "--out", "run")
        assert done.code == 0, done.err
        assert "unless you add --relax" in done.err
        assert not Path("run/relaxed").exists()

    def test_a_hull_without_the_elements_is_refused_before_sampling(
        self, reference: Path, run_cli
    ) -> None:
        run_cli("data", "energies", reference, *MORSE, *BARE, "-o", "e.jsonl")
        wish = ("--hull", "e.jsonl", *MORSE, "--out", "run")
        done = run_cli("predict", "--formula", "NaCl", *wish)
        assert done.code == 2
        assert "no energy of elemental Na" in done.err
        assert not Path("run").exists()

    def test_a_calculator_that_is_not_there_is_refused_before_sampling(self, run_cli) -> None:
        done = run_cli("predict", "--formula", "CsCl", "--calculator", "mace", "--out", "run")
        assert done.code == 2
        assert "pip install mace-torch" in done.err
        assert not Path("run").exists()
