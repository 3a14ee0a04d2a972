"""Tasks of Ray draw what one process draws, to the bit, whoever dies of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import springs
from pymatgen.core import Lattice, Structure

from crystalctl import cluster, evaluate, predict
from crystalctl.errors import InputError
from crystalctl.io.results import RunFolder
from crystalctl.relaxing import relax_all

REQUEST = {
    "formulas": ["SrTiO3", "NaCl"],
    "n": 4,
    "steps": 20,
    "weights": "diffcsp-mp20",
    "seed": 5,
    "formats": ("cif", "extxyz"),
    "report": False,
    "relax": False,
}


@pytest.fixture(scope="module")
def small_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crystalctl.tiles.EDGE_BUDGET", {"cpu": 60})
        yield


@pytest.fixture(scope="module")
def plain(small_tiles, tmp_path_factory) -> Path:
    """The run of one process."""
    folder: Path = tmp_path_factory.mktemp("plain") / "run"
    assert predict(**REQUEST, jobs=1, out=folder).n_samples == 8
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """All files of a run but the one that tells when and how it was made."""
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "manifest.json"}
    assert {"summary.csv", "summary.json", "structures.extxyz"} <= files.keys()
    assert any(name.endswith(".cif") for name in files)
    return files


def processes_below(parent: int) -> dict[int, str]:
    """Command lines of all processes that ``parent`` started, itself or by others."""
    lines = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines]
    below = {parent}
    for _ in range(4):
        below |= {int(pid) for pid, above, *_ in rows if int(above) in below}
    return {int(pid): " ".join(args) for pid, _, *args in rows if int(pid) in below - {parent}}


def test_a_killed_worker_changes_nothing(plain: Path, tmp_path: Path, monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    killed: list[int] = []
    save = RunFolder.save_tile

    def save_and_kill(run, index, tensors) -> None:
        save(run, index, tensors)
        cluster.Cluster(ray.get_runtime_context().gcs_address)  # refused, were it not Ray
        at_work = [p for p, name in processes_below(os.getpid()).items() if "ray::_task" in name]
        for worker in at_work[: 1 - len(killed)]:
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    monkeypatch.setattr(RunFolder, "save_tile", save_and_kill)
    told: list[tuple[int, int]] = []

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage == "sampling":
            told.append((done, total))

    shared = predict(
        **REQUEST, cluster="local", jobs=2, out=tmp_path / "shared", on_progress=on_progress
    )
    assert killed
    assert results(tmp_path / "shared") == results(plain)
    assert shared.n_samples == 8
    assert told == sorted(told)
    assert told[-1] == (8_000, 8_000)
    assert len(set(told)) > 2
    assert not any("ray" in name for name in processes_below(os.getpid()).values())


@contextmanager
def one_killed() -> Iterator[None]:
    """Kills the first worker seen at a task; fails where none was."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not killed and not over.wait(0.01):
            for process, name in processes_below(os.getpid()).items():
                if "ray::_task" in name and not killed:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert killed


def written(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".jsonl"}


@pytest.mark.filterwarnings("ignore:No Pauling")
def test_relax_and_evaluate_with_a_killed_worker_each(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(Path(springs.__file__).parent)  # where a factory usually is
    cells = tmp_path / "cells"
    cells.mkdir()
    random = np.random.default_rng(0)
    for number in range(16):
        shifts = 0.02 * random.normal(size=(2, 3))
        frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) + shifts
        species = ["Cs", "He" if number == 3 else "Cl"]  # helium fails
        Structure(Lattice.cubic(3.3 + 0.05 * number), species, frac).to(
            str(cells / f"{number}.cif")
        )

    how = {"calculator": "springs:morse"}
    relax_all(cells, **how, out=tmp_path / "alone")
    judged = {"jobs": 1, "out": tmp_path / "judged alone", "cache": tmp_path / "cache alone"}
    alone = evaluate(cells, reference=cells, **judged)
    told: list[int] = []
    with cluster.Cluster("local", 2) as there:
        there.connect()
        with one_killed():
            relax_all(
                cells,
                **how,
                cluster=there,
                out=tmp_path / "shared",
                on_progress=lambda stage, done, total: told.append(done) if total == 16 else None,
            )
        judged |= {"out": tmp_path / "judged shared", "cache": tmp_path / "cache shared"}
        with one_killed():
            shared = evaluate(cells, reference=cells, **judged, cluster="local")
    assert told[:16] == list(range(1, 17))
    assert written(tmp_path / "shared") == written(tmp_path / "alone")
    assert {"relaxed.csv", "structures.extxyz"} <= written(tmp_path / "shared").keys()
    assert shared.metrics == alone.metrics
    assert written(tmp_path / "judged shared") == written(tmp_path / "judged alone")


def test_a_worker_with_a_gpu_lives_on_with_what_it_prepared() -> None:
    """Ray takes our word that there is one."""
    ray = pytest.importorskip("ray")

    def work(prepared: int, item: int, report: object) -> tuple[int, int]:
        import os

        return prepared, os.getpid()

    given = {"num_cpus": 1, "num_gpus": 1, "include_dashboard": False, "log_to_driver": False}
    with cluster.cluster_of("local") as here:
        ray.init(**given, configure_logging=False)
        try:
            done = list(here.run(work, range(4), prepare=lambda x: x + 1, given=1, gpu=True))
        finally:
            ray.shutdown()
    assert sorted(item for item, _ in done) == [0, 1, 2, 3]
    assert {prepared for _, (prepared, _) in done} == {2}
    assert len({worker for _, (_, worker) in done}) == 1


def test_interrupted_then_resumed_without_a_cluster(
    plain: Path, tmp_path: Path, monkeypatch
) -> None:
    pytest.importorskip("ray")
    save = RunFolder.save_tile

    def save_and_stop(run, index, tensors) -> None:
        save(run, index, tensors)
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_tile", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            predict(**REQUEST, cluster="local", jobs=1, out=run)
    assert not any("ray" in name for name in processes_below(os.getpid()).values())
    assert len(list(run.glob("partial/tile-*"))) == 1
    predict(**REQUEST, jobs=1, out=run, resume=True)
    assert results(run) == results(plain)


@pytest.mark.parametrize("address", ["", "somewhere", "host:0", "host:port", ":6379", "h:99999999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="--cluster is") as error:
        predict(**REQUEST, cluster=address)
    assert "HOST:PORT" in error.value.hint


def test_an_address_where_nobody_answers_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="nobody answers"):
            predict(**REQUEST, cluster=address, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_an_address_where_something_else_answers_is_refused(
    answer: bytes | None, tmp_path: Path, monkeypatch
) -> None:
    """It says nothing, speaks another protocol, or hangs up: Ray would wait for it for minutes."""
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer is not None:
                    connection.sendall(answer)
                    connection.recv(1000)  # until the other side has had enough

        serving = threading.Thread(target=serve)
        serving.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="is not Ray"):
            predict(**REQUEST, cluster=address, out=tmp_path / "run")
        serving.join(timeout=10)
    assert not serving.is_alive()
    assert not (tmp_path / "run").exists()


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as error:
        predict(**REQUEST, cluster="local")
    assert "crystalctl[cluster]" in error.value.hint
