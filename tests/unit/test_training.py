"""The training loop: logs, exact resume, schedules, failures and what it needs installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import TINY, dataset_of, random_crystals, write_dataset

import crystalctl
from crystalctl.checkpoint import load_model, read_file
from crystalctl.errors import DataError, InputError, TrainingError
from crystalctl.models.diffcsp import DiffCSP
from crystalctl.training.loop import Trainer
from crystalctl.training.parallel import Processes
from crystalctl.training.run import _datasets, train
from crystalctl.training.store import BEST, LATEST, STATE

CLOCK = {"time", "seconds", "eta_s", "structures_per_s"}
TRAIN = {"epochs": 3, "batch_size": 4, "warmup_steps": 2, "precision": "fp32", "chunk_edges": 10}


def settings(task: str = "predict", **changes: Any) -> dict[str, dict[str, Any]]:
    return {"train": {**TRAIN, **changes}, "model": {**TINY, "task": task}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """10 crystals to train on, 3 to validate on."""
    return write_dataset(tmp_path / "data.safetensors", 10, n_val=3)


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def same_tensors(a: Path, b: Path) -> bool:
    first, second = read_file(a)[1], read_file(b)[1]
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, how: Any = None) -> None:
    """Ask for a stop during optimiser step number ``step`` (from 1), once."""
    original = Trainer._train_step

    def stepped(self, batch):
        if self.count.step + 1 == step:
            if how is None:
                self.stop_asked = True
            else:
                how()
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", stepped)


def test_a_run_leaves_weights_state_config_and_metrics(data, tmp_path):
    seen = []

    class Display:
        def update(self, record):
            seen.append(dict(record))

    out = tmp_path / "run"
    result = train("diffcsp", data=data, out=out, settings=settings(), progress=Display())
    assert (result.outcome, result.step) == ("finished", 9)
    assert result.weights == out / BEST
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [BEST, STATE, LATEST, "config.toml", "metrics.jsonl"]
    )
    raw = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert seen == [{k: v for k, v in r.items() if k != "time"} for r in raw]
    windows = [r for r in raw if "loss" in r]
    epochs = [r for r in raw if "train_loss" in r]
    assert [r["step"] for r in windows] == [r["step"] for r in epochs] == [3, 6, 9]
    assert [r["epoch"] for r in epochs] == [1, 2, 3]
    for window, epoch in zip(windows, epochs, strict=True):
        assert window["loss"] == pytest.approx(window["loss_lattice"] + window["loss_frac"])
        assert window["loss"] == pytest.approx(epoch["train_loss"])
        assert epoch["val_loss"] == pytest.approx(epoch["val_lattice"] + epoch["val_frac"])
        assert window["lr"] > 0
        assert window["structures_per_s"] > 0
    assert windows[-1]["eta_s"] == 0
    best = min(epochs, key=lambda r: r["val_loss"])
    assert result.best_loss == best["val_loss"]
    loaded = load_model(str(out), task="predict")
    assert loaded.meta["training"]["step"] == best["step"]
    assert loaded.meta["statistics"]["n_crystals"] == 10


@pytest.mark.parametrize("task", ["predict", "generate"])
def test_logged_loss_is_that_of_the_whole_batch(data, tmp_path, task):
    """Cutting batches into chunks changes neither the loss nor the weights beyond rounding."""
    runs = {}
    for edges in (5, 10_000):
        out = tmp_path / f"edges-{edges}"
        change = {"epochs": 1, "chunk_edges": edges, "optimizer": "adam", "lr": 1e-4}
        train("diffcsp", data=data, out=out, settings=settings(task, **change))
        runs[edges] = records(out), read_file(out / STATE)[1]
    for cut, whole in zip(runs[5][0], runs[10_000][0], strict=True):
        assert cut == pytest.approx(whole, rel=1e-5)
    for name, tensor in runs[10_000][1].items():
        assert torch.allclose(runs[5][1][name], tensor, atol=2e-5), name


@pytest.mark.parametrize("stop_at", [1, 3, 4, 8])
def test_a_resumed_run_is_the_unbroken_one(data, tmp_path, monkeypatch, stop_at):
    chosen = settings(schedule="plateau", patience=0, ema=0.9, validate_every=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("diffcsp", data=data, out=whole, settings=chosen)
    with monkeypatch.context() as patch:
        stop_after(patch, stop_at)
        first = train("diffcsp", data=data, out=broken, settings=chosen)
    assert (first.outcome, first.step) == ("interrupted", stop_at)
    second = train("diffcsp", data=data, out=broken, settings=chosen, resume=True)
    assert (second.outcome, second.step) == ("finished", 9)
    assert records(broken) == records(whole)
    for name in (STATE, BEST, LATEST):
        assert same_tensors(broken / name, whole / name), name


def test_many_runs_of_no_time_make_one_run(data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chosen = settings("generate", epochs=2, optimizer="adam", ema=0.0)
    train("diffcsp", data=data, out=whole, settings=chosen)
    outcomes = [
        train(
            "diffcsp", data=data, out=broken, settings=chosen, max_seconds=1e-9, resume=k > 0
        ).outcome
        for k in range(6)
    ]
    assert outcomes == ["time"] * 5 + ["finished"]
    assert records(broken) == records(whole)
    assert same_tensors(broken / STATE, whole / STATE)


def test_records_after_the_last_checkpoint_are_written_once(data, tmp_path, monkeypatch):
    """A killed run has logged more than it saved; resuming must not leave those lines twice."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train("diffcsp", data=data, out=whole, settings=settings())
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        train("diffcsp", data=data, out=broken, settings=settings())
    extra = {"step": 6, "epoch": 2.0, "loss": 99.0}
    with (broken / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(extra) + "\n")
    train("diffcsp", data=data, out=broken, settings=settings(), resume=True)
    assert records(broken) == records(whole)


def test_a_torn_last_line_of_the_log_does_not_stop_a_resume(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        train("diffcsp", data=data, out=out, settings=settings())
    with (out / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 6, "ep')
    assert train("diffcsp", data=data, out=out, settings=settings(), resume=True).step == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_after_the_step_and_handlers_come_back(data, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    stop_after(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    result = train("diffcsp", data=data, out=tmp_path / "run", settings=settings())
    assert (result.outcome, result.step) == ("interrupted", 2)
    assert result.weights.name == LATEST
    assert signal.getsignal(number) is before


def test_the_same_seed_gives_the_same_run_and_another_does_not(data, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train("diffcsp", data=data, out=tmp_path / name, settings=settings(epochs=1, seed=seed))
    assert same_tensors(tmp_path / "a" / STATE, tmp_path / "b" / STATE)
    assert not same_tensors(tmp_path / "a" / STATE, tmp_path / "c" / STATE)


def test_learning_rate_falls_like_a_cosine_after_warm_up(data, tmp_path, monkeypatch):
    rates = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    change = {"lr": 1e-2, "lr_min": 1e-4, "warmup_steps": 2, "epochs": 8}
    train("diffcsp", data=data, out=tmp_path / "run", settings=settings(**change))
    assert len(rates) == 24
    half_way = (1e-2 + 1e-4) / 2
    assert rates[12] == pytest.approx(half_way)
    assert rates[0] == pytest.approx(1e-2 / 2)
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert rates[-1] < 1e-3


def test_plateau_lowers_the_rate_when_validation_stalls(data, tmp_path, monkeypatch):
    values = iter([1.0, 2.0, 3.0, 0.5, 4.0, 5.0])
    monkeypatch.setattr(
        "crystalctl.training.loop.validation_loss", lambda *_, **__: [next(values), 0.0]
    )
    change = {"schedule": "plateau", "patience": 1, "lr": 1e-3, "lr_min": 0.0, "epochs": 6}
    train("diffcsp", data=data, out=tmp_path / "run", settings=settings(**change, warmup_steps=0))
    rates = [r["lr"] for r in records(tmp_path / "run") if "lr" in r]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 6e-4, 6e-4, 6e-4])
    assert read_file(tmp_path / "run" / BEST)[0]["training"]["step"] == 12


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(data, tmp_path, monkeypatch):
    original = Trainer._train_step

    def broken(self, batch):
        parts = original(self, batch)
        return parts * float("nan") if self.count.step == 4 else parts

    monkeypatch.setattr(Trainer, "_train_step", broken)
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"nan.* is not finite at step 6") as raised:
        train("diffcsp", data=data, out=out, settings=settings(save_minutes=0.0))
    assert STATE in raised.value.hint
    header, tensors = read_file(out / STATE)
    assert header["counters"]["step"] == 4
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    monkeypatch.undo()
    assert train("diffcsp", data=data, out=out, settings=settings(), resume=True).step == 9


def test_weights_that_are_not_finite_are_never_saved(data, tmp_path, monkeypatch):
    """A finite loss may have a gradient that is not: the step after it must not be kept."""
    original = torch.optim.AdamW.step

    def poisoned(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        first = self.param_groups[0]["params"][0]
        if int(self.state[first]["step"]) == 5:
            first.data.fill_(float("nan"))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    out = tmp_path / "run"
    with pytest.raises(TrainingError):
        train("diffcsp", data=data, out=out, settings=settings(save_minutes=0.0))
    for name in (STATE, LATEST, BEST):
        tensors = read_file(out / name)[1]
        assert all(bool(t.isfinite().all()) for t in tensors.values()), name


def test_fewer_crystals_than_a_batch(tmp_path):
    path = write_dataset(tmp_path / "few.safetensors", 3)
    out = tmp_path / "run"
    result = train("diffcsp", data=path, out=out, settings=settings(batch_size=64, epochs=2))
    assert result.step == 2
    assert all("val_loss" not in r for r in records(out))
    assert result.weights.name == BEST


def test_validation_file_size_cap_and_unmarked_rows(tmp_path):
    train_file = write_dataset(tmp_path / "train.safetensors", 8)
    val_file = write_dataset(tmp_path / "val.safetensors", 4, seed=1)
    out = tmp_path / "run"
    chosen = settings(max_atoms=2, epochs=1)
    train("diffcsp", data=train_file, val=val_file, out=out, settings=chosen)
    assert load_model(str(out), task="predict").meta["statistics"]["max_atoms"] == 2
    assert "val_loss" in records(out)[-1]
    larger = tmp_path / "larger.safetensors"
    dataset_of(random_crystals((3, 4))).save(larger)
    with pytest.raises(DataError, match="no structure"):
        train("diffcsp", data=larger, out=tmp_path / "none", settings=chosen)


def test_rows_held_out_are_never_trained_on(tmp_path):
    crystals = random_crystals([2] * 7)
    marked = tmp_path / "marked.safetensors"
    dataset_of(crystals, [0, 1, 1, 2, 2, 2, 3]).save(marked)
    only_test = tmp_path / "test.safetensors"
    dataset_of(crystals, [3] * 7).save(only_test)
    sizes = []
    for data, val in ((marked, None), (marked, marked), (marked, only_test), (only_test, None)):
        train_part, val_part = _datasets(data, val, 0)
        sizes.append((len(train_part), None if val_part is None else len(val_part)))
    assert sizes == [(3, 3), (3, 3), (3, 7), (7, None)]


def test_what_is_larger_than_all_that_is_trained_on_does_not_validate(tmp_path):
    data, val, huge = (tmp_path / f"{name}.safetensors" for name in ("data", "val", "huge"))
    dataset_of(random_crystals([2, 3]), [1, 1]).save(data)
    dataset_of(random_crystals([3, 30, 2, 4]), [2] * 4).save(val)
    dataset_of(random_crystals([30]), [2]).save(huge)
    with pytest.warns(RuntimeWarning, match="2 of 4 validation structures"):
        _, held = _datasets(data, val, 0)
    assert held.crystals.layout.n_atoms.tolist() == [3, 2]
    with pytest.raises(DataError, match="no structure to use"):
        _datasets(data, huge, 0)


def test_paper_recipe_runs(data, tmp_path):
    chosen = {"train": {"epochs": 1, "batch_size": 5}, "model": TINY}
    out = tmp_path / "run"
    train("diffcsp", data=data, out=out, recipe="paper", settings=chosen)
    header, tensors = read_file(out / STATE)
    assert header["training"]["clip_value"] == 0.5
    assert header["training"]["optimizer"] == "adam"
    assert not any(name.startswith("average.") for name in tensors)


# ----------------------------------------------------------------------------- other processes

DRIVER = """
import sys
BLOCKED = {names!r}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from crystalctl.training.run import _datasets, train
{head}
train("diffcsp", data=Path({data!r}), out=Path({out!r}), settings={settings!r}, device="cpu")
"""
KILL = """
import os, signal
from crystalctl.training.store import Store
save = Store.save
def die_or_save(store, count):
    if count.step >= 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    save(store, count)
Store.save = die_or_save
"""


def run_driver(folder: Path, launcher: list[str], **values: Any) -> subprocess.CompletedProcess:
    script = folder / "driver.py"
    script.write_text(DRIVER.format(**{"names": set(), "head": "", **values}))
    root = str(Path(crystalctl.__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(
        [sys.executable, *launcher, str(script)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("task", ["predict", "generate"])
def test_two_processes_train_what_one_does(data, tmp_path, task):
    # Without clipping, or the moments in the state would not show gradients of the wrong size.
    chosen = settings(task, epochs=2, lr=1e-4, chunk_edges=5, ema=0.9, clip_norm=0.0)
    one, two = tmp_path / "one", tmp_path / "two"
    train("diffcsp", data=data, out=one, settings=chosen)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = run_driver(tmp_path, launcher, data=str(data), out=str(two), settings=chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(records(one), records(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    first, second = read_file(one / STATE)[1], read_file(two / STATE)[1]
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-5, rtol=1e-3), name


def test_torchrun_begins_a_killed_process_again_from_the_last_state(data, tmp_path):
    chosen = settings(epochs=4, save_minutes=1e-9, lr=1e-4, ema=0.9, clip_norm=0.0)
    one, two = tmp_path / "one", tmp_path / "two"
    train("diffcsp", data=data, out=one, settings=chosen)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    values = {"data": str(data), "out": str(two), "settings": chosen, "head": KILL}
    done = run_driver(tmp_path, [*torchrun, "--max-restarts=1"], **values)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr
    for a, b in zip(records(one), records(two), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    first, second = read_file(one / STATE)[1], read_file(two / STATE)[1]
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=1e-5, rtol=1e-3), name


def test_training_needs_no_materials_or_terminal_package(data, tmp_path):
    names = {"pymatgen", "rich", "typer", "spglib", "pyxtal", "ase", "smact"}
    out = tmp_path / "run"
    chosen = settings(epochs=1)
    done = run_driver(tmp_path, [], names=names, data=str(data), out=str(out), settings=chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / BEST).is_file()


# ----------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"family": "diffcps"}, "unknown model 'diffcps'", "diffcsp"),
        ({"recipe": "quick"}, "unknown recipe 'quick'", "fast, paper"),
        ({"settings": {"opt": {"lr": 1}}}, "unknown settings section 'opt'", "train.KEY"),
        ({"settings": {"train": {"epoch": 1}}}, "train.epoch", "train.epochs"),
        ({"settings": {"model": {"hiden": 1}}}, "model.hiden", "model.hidden"),
        ({"settings": {"train": {"epochs": "many"}}}, "train.epochs = 'many'.* int", ""),
        ({"settings": {"train": {"epochs": 2.5}}}, "train.epochs = 2.5.* int", ""),
        ({"settings": {"train": {"epochs": 0}}}, "train.epochs = 0", ""),
        ({"settings": {"train": {"lr": -1}}}, "train.lr = -1", ""),
        ({"settings": {"train": {"lr": "nan"}}}, "train.lr = nan", ""),
        ({"settings": {"train": {"optimizer": "sgd"}}}, "train.optimizer = 'sgd'", "adam, adamw"),
        ({"settings": {"train": {"schedule": "step"}}}, "train.schedule", "cosine"),
        ({"settings": {"train": {"precision": "fp8"}}}, "train.precision", "bf16"),
        ({"settings": {"model": {"task": "guess"}}}, "no task 'guess'", "predict, generate"),
        ({"device": "tpu"}, "unknown device 'tpu'", "cuda"),
    ],
)
def test_requests_that_cannot_work_are_refused(data, tmp_path, changes, message, hint):
    request = {"family": "diffcsp", "data": data, "out": tmp_path / "run", **changes}
    with pytest.raises(InputError, match=message) as raised:
        train(request.pop("family"), **request)
    assert hint in raised.value.hint
    assert not (tmp_path / "run").exists(), "a refused run must not leave a folder"


def test_a_folder_in_use_and_nothing_to_resume(data, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty") as raised:
        train("diffcsp", data=data, out=used, settings=settings())
    assert "--resume" in raised.value.hint
    with pytest.raises(InputError, match="nothing to resume"):
        train("diffcsp", data=data, out=used, settings=settings(), resume=True)
    with pytest.raises(InputError, match="cannot make the folder"):
        train("diffcsp", data=data, out=used / "note.txt", settings=settings())
    assert (used / "note.txt").read_text() == "mine"
    with pytest.raises(DataError, match="no dataset file"):
        train("diffcsp", data=tmp_path / "none", out=tmp_path / "run", settings=settings())


def test_resuming_with_other_data_or_another_model_is_refused(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop_after(monkeypatch, 2)
    train("diffcsp", data=data, out=out, settings=settings())
    monkeypatch.undo()
    before = (out / STATE).read_bytes()
    wider = settings()
    wider["model"] = {**wider["model"], "hidden": 24}
    for other in (wider, settings("generate")):
        with pytest.raises(InputError, match=r"another (config|task)"):
            train("diffcsp", data=data, out=out, settings=other, resume=True)
    fewer = write_dataset(tmp_path / "fewer.safetensors", 7)
    with pytest.raises(InputError, match="another"):
        train("diffcsp", data=fewer, out=out, settings=settings(), resume=True)
    assert (out / STATE).read_bytes() == before


def test_resuming_with_another_batch_size_is_refused(data, tmp_path, monkeypatch):
    """Step numbers would then mean other crystals, and the sums of the epoch would be wrong."""
    out = tmp_path / "run"
    stop_after(monkeypatch, 2)
    train("diffcsp", data=data, out=out, settings=settings())
    monkeypatch.undo()
    for change in ({"batch_size": 5}, {"optimizer": "adam"}, {"seed": 1}):
        with pytest.raises(InputError, match="another"):
            train("diffcsp", data=data, out=out, settings=settings(**change), resume=True)


def test_another_number_of_processes_resumes_where_it_cuts_the_same_batches(tmp_path, monkeypatch):
    """9 crystals in batches of 4: the last one is a batch of its own for 1 process, not for 2."""

    @contextmanager
    def two(device):
        yield Processes(rank=0, world=2), device

    def as_one_of_two():
        monkeypatch.undo()
        monkeypatch.setattr("crystalctl.training.run.processes", two)
        monkeypatch.setattr(Processes, "wrap", lambda self, module: module)
        monkeypatch.setattr(Processes, "sum", lambda self, value: value)

    for n in (9, 10):
        crystals = write_dataset(tmp_path / f"{n}.safetensors", n)
        out = tmp_path / f"run-{n}"
        stop_after(monkeypatch, 2)
        train("diffcsp", data=crystals, out=out, settings=settings(chunk_edges=999))
        as_one_of_two()
        if n == 10:
            train(
                "diffcsp", data=crystals, out=out, settings=settings(chunk_edges=999), resume=True
            )
            continue
        before = (out / STATE).read_bytes()
        with pytest.raises(
            InputError, match=r"3 batches an epoch \(processes: 1\), now .* 2 \(pro"
        ) as caught:
            train(
                "diffcsp", data=crystals, out=out, settings=settings(chunk_edges=999), resume=True
            )
        assert "resume with 1 again" in caught.value.hint
        assert (out / STATE).read_bytes() == before
        monkeypatch.undo()


def test_the_model_is_the_family_asked_for(data, tmp_path):
    out = tmp_path / "run"
    train("diffcsp", data=data, out=out, settings=settings("generate", epochs=1))
    assert isinstance(load_model(str(out / BEST), task="generate").model, DiffCSP)


@pytest.mark.parametrize("task", ["predict", "generate"])
@pytest.mark.parametrize("hidden", [16, 100])
def test_init_continues_from_weights(task, hidden, data, tmp_path):
    """The settings of the weights hold; a rate of nothing leaves them as they are."""
    begun = settings(task)
    begun["model"]["hidden"] = hidden  # 100: as many as there are elements
    first = train("diffcsp", data=data, out=tmp_path / "a", settings=begun).weights
    still = {"train": {**TRAIN, "lr": 1e-12, "lr_min": 0, "ema": 0}}
    again = train("diffcsp", data=data, out=tmp_path / "b", settings=still, init=str(first)).weights
    assert read_file(again)[0]["config"] == read_file(first)[0]["config"]
    old, new = read_file(first)[1], read_file(again)[1]
    assert all(torch.allclose(old[name], new[name], atol=1e-9) for name in old)


def test_generating_begins_with_what_predicting_learnt(data, tmp_path):
    """One-hot vectors then mean to the network what the atomic numbers meant."""
    first = train("diffcsp", data=data, out=tmp_path / "a", settings=settings()).weights
    still = settings("generate", lr=1e-12, lr_min=0, ema=0)
    again = train("diffcsp", data=data, out=tmp_path / "b", settings=still, init=str(first)).weights
    old, new = read_file(first)[1], read_file(again)[1]
    name = "network.embedding.weight"
    assert torch.allclose(old.pop(name).T, new[name], atol=1e-9)
    assert all(torch.allclose(old[name], new[name], atol=1e-9) for name in old)


def test_init_refuses_weights_that_do_not_fit(data, tmp_path):
    first = train("diffcsp", data=data, out=tmp_path / "a", settings=settings()).weights
    wider = settings()
    wider["model"]["hidden"] = 32
    with pytest.raises(InputError, match="do not fit these settings"):
        train("diffcsp", data=data, out=tmp_path / "b", settings=wider, init=str(first))
    with pytest.raises(InputError, match="are diffcsp weights, not diffcsp_pp"):
        train("diffcsp_pp", data=data, out=tmp_path / "c", settings=settings(), init=str(first))
    state = first.parent / STATE
    with pytest.raises(InputError, match="training state"):
        train("diffcsp", data=data, out=tmp_path / "d", settings=settings(), init=str(state))
