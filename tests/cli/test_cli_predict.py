"""crystalctl predict: run folder, resume, seeds, and every refusal."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalctl import api
from crystalctl.errors import CrystalctlError, InputError

FAKE = Path(__file__).with_name("fake_weights.py")


@pytest.mark.usefixtures("fake_model")
class TestRunFolder:
    def test_contents(self, run_cli) -> None:
        from pymatgen.core import Structure

        done = run_cli("predict", "--formula", "NaCl", "--n", 20, "--format", "cif,poscar,extxyz")
        assert done.code == 0, done.err
        folder = Path("runs/NaCl")
        manifest = json.loads((folder / "manifest.json").read_text())
        summary = json.loads((folder / "summary.json").read_text())
        rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
        assert manifest["status"] == "finished"
        assert manifest["request"]["weights_sha256"] == {"diffcsp": "sha-of-fake-predict"}
        assert {"torch", "pymatgen", "spglib", "crystalctl"} <= set(manifest["versions"])
        assert not (folder / "partial").exists()
        first = rows[0]
        assert (first["formula"], first["space_group"]) == ("NaCl", "Fm-3m")
        assert first["file"] == "001_NaCl_Fm-3m.cif"
        assert (folder / "001_NaCl_Fm-3m.vasp").exists()
        assert (folder / "001_NaCl_Fm-3m.extxyz").exists()
        cell = Structure.from_file(folder / first["file"])
        assert len(cell) == 8
        assert cell.lattice.a == pytest.approx(float(first["a"]), abs=1e-4)
        assert "_symmetry_equiv_pos_as_xyz" in (folder / first["file"]).read_text()
        merged = sum(int(row["count"]) for row in rows)
        assert merged + sum(summary["set_aside"].values()) == 20
        assert int(first["count"]) == max(int(row["count"]) for row in rows)

    def test_what_databases_hold_is_marked(self, run_cli, monkeypatch, tmp_path) -> None:
        from prototypes import rock_salt

        from crystalctl.known import Known
        from crystalctl.symmetry.standard import standardise

        salt = rock_salt()
        orbits = standardise(salt.lattice.matrix, salt.frac_coords, np.array([11, 17]))
        file = tmp_path / "known.safetensors"
        Known.of([(orbits.positions, orbits.species, {11: 1, 17: 1})]).save(file)
        assert "known" not in run_cli("predict", "--formula", "NaCl", "--n", 20).out
        monkeypatch.setattr(sys.modules["crystalctl.checkpoint"], "known_file", lambda: file)
        formulas = "--formula", "NaCl", "--formula", "KCl"
        done = run_cli("predict", *formulas, "--n", 20, "--out", "marked")
        assert "known: yes = of" in done.out
        rows = list(csv.DictReader(Path("marked/summary.csv").read_text().splitlines()))
        said = {(row["formula"], row["space_group"] == "Fm-3m"): row["known"] for row in rows}
        assert said == {
            ("NaCl", True): "yes",
            ("NaCl", False): "formula",
            ("KCl", True): "no",
            ("KCl", False): "no",
        }
        assert ">known</button>" in Path("marked/report.html").read_text()

    def test_every_raw_sample_is_kept(self, run_cli) -> None:
        from crystalctl.io.structures import read_extxyz

        run_cli("predict", "--formula", "NaCl", "--n", 20)
        summary = json.loads(Path("runs/NaCl/summary.json").read_text())
        frames = read_extxyz(Path("runs/NaCl/structures.extxyz"))
        assert [info["sample"] for _, info in frames] == list(range(1, 21))
        broken = [info for _, info in frames if not info["valid"]]
        assert len(broken) == sum(summary["set_aside"].values()) > 0
        assert all(info["rank"] == 0 and info["reason"] for info in broken)
        assert {"not finite", "atoms closer than 0.5 Å"} <= set(summary["set_aside"])

    def test_second_run_takes_the_next_folder(self, run_cli) -> None:
        run_cli("predict", "-f", "NaCl", "--n", 2)
        run_cli("predict", "-f", "NaCl", "--n", 3)
        assert {p.name for p in Path("runs").iterdir()} == {"NaCl", "NaCl-2"}

    def test_json(self, run_cli) -> None:
        done = run_cli("predict", "-f", "NaCl", "--n", 6, "--json")
        printed = json.loads(done.out)
        assert printed["n_samples"] == 6
        assert printed["structures"][0]["formula"] == "NaCl"

    def test_the_default_by_its_name(self, run_cli) -> None:
        one = json.loads(run_cli("predict", "-f", "NaCl", "--n", 6, "--json").out)
        other = run_cli("predict", "-f", "NaCl", "--n", 6, "--model", "auto", "--json")
        assert json.loads(other.out)["structures"] == one["structures"]
        assert {row["source"].split(" x")[0] for row in one["structures"]} == {"diffcsp"}

    def test_table(self, run_cli) -> None:
        done = run_cli("predict", "-f", "NaCl", "--n", 20)
        assert "001_NaCl_Fm-3m.cif" in done.out
        assert "20 samples" in done.out
        assert "x not finite" in done.out

    def test_several_formulas_from_a_file(self, run_cli) -> None:
        Path("list.txt").write_text("NaCl  # salt\n\nMgO\n")
        done = run_cli("predict", "--formulas", "list.txt", "-f", "SrTiO3", "--n", 4, "--json")
        formulas = [row["formula"] for row in json.loads(done.out)["structures"]]
        assert list(dict.fromkeys(formulas)) == ["SrTiO3", "NaCl", "MgO"]


@pytest.mark.usefixtures("fake_model")
class TestResume:
    def test_interrupted_run_gives_the_same_files(self, run_cli, fake_model, monkeypatch) -> None:
        wanted = ("predict", "-f", "NaCl", "--n", 20, "--seed", 5)
        assert run_cli(*wanted, "--out", "whole").code == 0
        whole = len(fake_model.batches)
        sample = fake_model.sample

        def stop_at_second(targets, noise, **rest):
            if len(fake_model.batches) == whole + 1:
                raise KeyboardInterrupt
            return sample(targets, noise, **rest)

        monkeypatch.setattr(fake_model, "sample", stop_at_second)
        stopped = run_cli(*wanted, "--out", "cut")
        assert stopped.code == 130
        assert "--resume" in stopped.err
        monkeypatch.setattr(fake_model, "sample", sample)
        refused = run_cli(*wanted, "--out", "cut")
        assert refused.code == 2
        assert "--resume" in refused.err
        assert run_cli(*wanted, "--out", "cut", "--resume").code == 0
        assert len(fake_model.batches) == 2 * whole  # the first tile was not drawn again
        same_files = {p.name for p in Path("whole").iterdir()}
        assert {p.name for p in Path("cut").iterdir()} == same_files
        for name in same_files - {"manifest.json"}:
            assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()

    def test_killed_run_continues(self) -> None:
        line = "predict -f NaCl --n 20 --out run --no-relax"
        command = [sys.executable, str(FAKE), *line.split()]
        environment = {**os.environ, "FAKE_SLEEP": "0.3"}
        process = subprocess.Popen(command, env=environment)
        partial = Path("run/partial")
        deadline = time.monotonic() + 60
        while not list(partial.glob("tile-*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads(Path("run/manifest.json").read_text())["status"] == "running"
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(Path("run/manifest.json").read_text())["sessions"] == 2
        assert not partial.exists()

    def test_another_request_is_refused_with_the_difference(self, run_cli) -> None:
        run_cli("predict", "-f", "NaCl", "--n", 4, "--out", "run")
        done = run_cli("predict", "-f", "NaCl", "--n", 4, "--seed", 1, "--out", "run", "--resume")
        assert done.code == 2
        assert "seed was 0, now 1" in done.err

    def test_without_out_the_same_request_is_found(self, run_cli) -> None:
        for seed in (0, 1):
            run_cli("predict", "-f", "NaCl", "--n", 4, "--seed", seed)
        done = run_cli("predict", "-f", "NaCl", "--n", 4, "--seed", 0, "--resume", "--json")
        assert json.loads(done.out)["folder"] == "runs/NaCl"
        assert {p.name for p in Path("runs").iterdir()} == {"NaCl", "NaCl-2"}

    def test_finished_run_is_shown_again(self, run_cli, fake_model) -> None:
        first = run_cli("predict", "-f", "NaCl", "--n", 8, "--json")
        drawn = len(fake_model.batches)
        again = run_cli("predict", "-f", "NaCl", "--n", 8, "--json", "--resume")
        assert json.loads(again.out) == json.loads(first.out)
        assert len(fake_model.batches) == drawn


@pytest.mark.usefixtures("fake_model")
class TestApi:
    def test_batch_size_changes_nothing(self, fake_model) -> None:
        whole = api.predict("NaCl", n=12)
        widest = max(fake_model.batches)
        chunked = api.predict("NaCl", n=12, batch_size=2)
        assert widest > 2
        assert max(fake_model.batches[-6:]) == 2
        assert whole.rows == chunked.rows
        assert whole.folder is None
        assert not Path("runs").exists()

    def test_order_of_the_formula_changes_nothing(self) -> None:
        one, other = api.predict("SrTiO3", n=6), api.predict("O3TiSr", n=6)
        assert [row["a"] for row in one.rows] == [row["a"] for row in other.rows]

    def test_too_little_memory_halves_the_batch(self, fake_model) -> None:
        whole = api.predict("NaCl", n=12)
        fake_model.memory = 3
        assert api.predict("NaCl", n=12).rows == whole.rows
        fake_model.memory = 0
        with pytest.raises(CrystalctlError, match="memory"):
            api.predict("NaCl", n=12)

    def test_candidates(self) -> None:
        result = api.predict("NaCl", n=12, z="1")
        best = result.candidates[0]
        assert (best.rank, best.symmetric.symbol, len(best.structure)) == (1, "Fm-3m", 2)
        assert best.count == result.rows[0]["count"]

    def test_seed_changes_the_samples(self) -> None:
        one, other = api.predict("MgO", n=4, seed=1), api.predict("MgO", n=4, seed=2)
        assert one.rows != other.rows

    def test_finished_run_loads_its_structures(self) -> None:
        first = api.predict("NaCl", n=8, out="run")
        again = api.predict("NaCl", n=8, out="run", resume=True)
        assert len(again.candidates) == len(first.candidates)
        assert again.candidates[0].count == first.candidates[0].count
        assert again.candidates[0].structure.matches(first.candidates[0].structure)

    def test_ranked_by_count(self) -> None:
        counts = [row["count"] for row in api.predict("NaCl", n=20).rows]
        assert counts == sorted(counts, reverse=True)

    def test_twice_the_same_formula(self) -> None:
        with pytest.raises(InputError, match="twice"):
            api.predict(["SrTiO3", "Sr2Ti2O6"])


@pytest.mark.parametrize(("given", "steps"), [((), None), (("--sampler", "reference"), 1000)])
def test_sampler(given, steps, fake_model, run_cli) -> None:
    assert run_cli("predict", "-f", "NaCl", "--n", "2", *given).code == 0
    assert set(fake_model.steps) == {steps}


REFUSED = {
    "unknown element": (["-f", "XxO2"], "unknown element 'Xx'"),
    "case": (["-f", "srtio3"], "did you mean SrTiO3?"),
    "empty": (["-f", ""], "empty"),
    "none": ([], "--formula"),
    "fractional": (["-f", "Fe0.5Ni0.5"], "disordered structures are not supported"),
    "no samples": (["-f", "NaCl", "--n", "0"], "--n is 0"),
    "negative": (["-f", "NaCl", "--n", "-3"], "--n is -3"),
    "steps": (["-f", "NaCl", "--steps", "0"], "--steps is 0"),
    "too many steps": (["-f", "NaCl", "--steps", "1001"], "have 1000 time steps"),
    "sampler": (["-f", "NaCl", "--sampler", "heun"], "allowed: fast, reference"),
    "two samplers": (["-f", "NaCl", "--sampler", "reference", "--steps", "9"], "all steps"),
    "seed": (["-f", "NaCl", "--seed", "-1"], "--seed is -1"),
    "too large": (["-f", "Ca3(PO4)2", "--z", "2"], "26 atoms, the weights know up to 24"),
    "far too large": (["-f", "K4Fe(CN)6(H2O)9"], "the weights know up to 24"),
    "never seen": (["-f", "PuO2"], "never seen Pu"),
    "z": (["-f", "NaCl", "--z", "0,1"], "--z is '0,1'"),
    "z and atoms": (["-f", "NaCl", "--z", "1", "--num-atoms", "2"], "exclude each other"),
    "atoms": (["-f", "SrTiO3", "--num-atoms", "12"], "nearest possible: 10 or 15"),
    "format": (["-f", "NaCl", "--format", "pdf"], "allowed: cif, poscar, extxyz"),
    "model": (["-f", "NaCl", "--model", "nothing"], "unknown model 'nothing'"),
    "weights": (["-f", "NaCl", "--weights", "broken.safetensors"], "not a weights file"),
    "device": (["-f", "NaCl", "--device", "tpu"], "unknown device 'tpu'"),
    "file": (["--formulas", "nothing.txt"], "cannot read nothing.txt"),
    "spacegroup": (["-f", "NaCl", "--spacegroup", "231"], "no space group 231"),
    "wyckoff": (["-f", "NaCl", "--wyckoff", "4a,4b"], "--wyckoff needs the group"),
    "out is a file": (["-f", "NaCl", "--out", "taken/file"], "is a file"),
    "out not empty": (["-f", "NaCl", "--out", "taken"], "is not empty"),
    "out not a run": (["-f", "NaCl", "--out", "taken", "--resume"], "not a run"),
}


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, run_cli) -> None:
    arguments, message = REFUSED[case]
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    done = run_cli("predict", *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert 1 <= len(done.err.strip().splitlines()) <= 2
    assert {p.name for p in Path().rglob("*")} == {"taken", "file"}


@pytest.mark.usefixtures("fake_model")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run_cli) -> None:
    done = run_cli("predict", "-f", "NaCl", "--device", "cuda")
    assert done.code == 2
    assert "not available" in done.err


@pytest.mark.usefixtures("fake_model")
def test_unwritable_folder(run_cli, monkeypatch) -> None:
    Path("locked").mkdir()
    # Not by permissions: root, who runs many containers, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    done = run_cli("predict", "-f", "NaCl", "--out", "locked/run")
    assert done.code == 2
    assert "cannot write to" in done.err


def test_family_without_compositions(fake_model, run_cli) -> None:
    done = run_cli("predict", "-f", "NaCl", "--model", "symat")
    assert done.code == 2
    assert "symat cannot take a composition" in done.err
    assert "use diffcsp, diffcsp_pp" in done.err
    assert "or `crystalctl generate --model symat`" in done.err
    assert not fake_model.batches


def test_unexpected_error_is_one_line(fake_model, run_cli, monkeypatch) -> None:
    def fail(*arguments, **options):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(fake_model, "sample", fail)
    done = run_cli("predict", "-f", "NaCl")
    assert done.code == 1
    assert "unexpected ZeroDivisionError: inside" in done.err
    assert "Traceback" not in done.err


def test_help_and_bad_formula_are_fast() -> None:
    """Neither loads torch or pymatgen; the wall clock is left to the bench, CI being noisy."""
    script = (
        "import sys; from crystalctl.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pymatgen', 'numpy', 'ase', 'spglib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    for arguments in (["--help"], ["predict", "--help"], ["predict", "-f", "Xx"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("fake_model")
def test_resuming_with_another_format_is_refused(run_cli) -> None:
    assert run_cli("predict", "-f", "NaCl", "--n", "2", "--out", "run").code == 0
    again = ("predict", "-f", "NaCl", "--n", "2", "--out", "run", "--resume")
    assert run_cli(*again).code == 0
    done = run_cli(*again, "--format", "poscar")
    assert done.code == 2
    assert 'formats was ["cif"], now ["poscar"]' in done.err


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_terminal_without_greek_letters(options: list[str], run_cli, monkeypatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    done = run_cli("predict", "-f", "NaCl", "--n", "2", "--out", "run", "--no-relax", *options)
    assert (done.code, done.err) == (0, "")
    terminal.flush()
    assert b"NaCl" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_full_disk_is_no_programming_error(fake_model, run_cli, monkeypatch) -> None:
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fake_model, "sample", full)
    done = run_cli("predict", "-f", "NaCl")
    assert done.code == 1
    assert "No space left on device" in done.err
    assert "report" not in done.err
