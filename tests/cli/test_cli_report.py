"""report.html of a run, and ranking by a measured powder pattern."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.diffraction import profile, simulate


def write_scan(path: Path, structure: Structure) -> None:
    angles = np.arange(15, 90, 0.05)
    counts = 900 * profile(simulate(structure, 1.54184), angles) + 30
    path.write_text("\n".join(f"{a:.2f} {c:.1f}" for a, c in zip(angles, counts, strict=True)))


def salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )


@pytest.mark.usefixtures("fake_model")
class TestReport:
    @pytest.mark.parametrize("command", [("predict", "-f", "NaCl"), ("generate",)])
    def test_a_run_has_a_report_of_its_structures(self, run_cli, command) -> None:
        done = run_cli(*command, "--n", 12, "--out", "run")
        assert "report.html" in done.out
        page = Path("run/report.html").read_text(encoding="utf-8")
        rows = json.loads(Path("run/summary.json").read_text())["structures"]
        assert page.count("<tr data-rank=") == len(rows)
        assert all(row["file"] in page for row in rows)

    def test_no_report_on_request(self, run_cli) -> None:
        done = run_cli("predict", "-f", "NaCl", "--n", 4, "--no-report", "--out", "run")
        assert done.code == 0
        assert "report.html" not in done.out
        assert not Path("run/report.html").exists()

    def test_wavelength_without_a_pattern(self, run_cli) -> None:
        run_cli("predict", "-f", "NaCl", "--n", 4, "--wavelength", "MoKa", "--out", "run")
        assert "0.71073 Å" in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("fake_model")
class TestPattern:
    def test_ranks_by_similarity(self, run_cli) -> None:
        write_scan(Path("scan.xy"), salt())
        done = run_cli("predict", "-f", "NaCl", "--n", 20, "--xrd", "scan.xy", "--out", "run")
        assert done.code == 0, done.err
        assert " XRD " in done.out
        assert "larger --n" not in done.out
        rows = list(csv.DictReader(Path("run/summary.csv").read_text().splitlines()))
        found = [float(row["xrd_similarity"]) for row in rows]
        assert found == sorted(found, reverse=True)
        assert rows[0]["space_group"] == "Fm-3m"
        assert found[0] > 0.9 > found[1]
        assert float(rows[0]["xrd_scale"]) == pytest.approx(1.0, abs=0.01)
        assert rows[0]["file"].startswith("001_")
        page = Path("run/report.html").read_text(encoding="utf-8")
        assert "similarity to the measured pattern" in page
        assert 'id="measured"' in page

    def test_the_pattern_decides(self, run_cli) -> None:
        """Not the order of the other criteria: another pattern puts another candidate first."""
        first = run_cli("predict", "-f", "NaCl", "--n", 20, "--out", "plain")
        assert first.code == 0
        rows = list(csv.DictReader(Path("plain/summary.csv").read_text().splitlines()))
        last = Structure.from_file(Path("plain") / rows[-1]["file"])
        write_scan(Path("scan.xy"), last)
        run_cli("predict", "-f", "NaCl", "--n", 20, "--xrd", "scan.xy", "--out", "run")
        ranked = list(csv.DictReader(Path("run/summary.csv").read_text().splitlines()))
        assert ranked[0]["sample"] == rows[-1]["sample"]
        assert sorted(row["sample"] for row in ranked) == sorted(row["sample"] for row in rows)

    def test_says_when_no_candidate_is_like_it(self, run_cli) -> None:
        write_scan(Path("scan.xy"), Structure(Lattice.cubic(3.0), ["W"], [[0, 0, 0]]))
        done = run_cli("predict", "-f", "NaCl", "--n", 6, "--xrd", "scan.xy", "--out", "run")
        best = float(
            json.loads(Path("run/summary.json").read_text())["structures"][0]["xrd_similarity"]
        )
        assert best < 0.9
        assert f"no structure explains the pattern well (XRD {best:.2f}" in done.out

    def test_resume_keeps_scores_and_refuses_another_pattern(self, run_cli) -> None:
        write_scan(Path("scan.xy"), salt())
        command = ("predict", "-f", "NaCl", "--n", 6, "--xrd", "scan.xy", "--out", "run")
        before = json.loads(run_cli(*command, "--json").out)
        again = run_cli(*command, "--resume", "--json")
        assert json.loads(again.out)["structures"] == before["structures"]
        other = salt()
        other.apply_strain(0.05)
        write_scan(Path("scan.xy"), other)
        refused = run_cli(*command, "--resume")
        assert refused.code == 2
        assert "xrd" in refused.err

    @pytest.mark.parametrize(
        ("content", "extra", "says"),
        [
            ("a b\n", (), "holds no numbers"),
            ("1\n2\n", (), "one column"),
            ("1 2\n", (), "at least 10"),
            (None, (), "cannot read"),
            ("1 2\n", ("--wavelength", "Cu"), "unknown wavelength 'Cu'"),
        ],
    )
    def test_refusals_come_before_any_work(self, run_cli, fake_model, content, extra, says) -> None:
        if content is not None:
            Path("scan.xy").write_text(content)
        done = run_cli("predict", "-f", "NaCl", "--xrd", "scan.xy", "--out", "run", *extra)
        assert done.code == 2
        assert says in done.err
        assert "hint" in done.err
        assert not Path("run").exists()
        assert fake_model.batches == []

    def test_wrong_wavelength_without_a_pattern(self, run_cli) -> None:
        assert run_cli("predict", "-f", "NaCl", "--wavelength", "9").code == 2
