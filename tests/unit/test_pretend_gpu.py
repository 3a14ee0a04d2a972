"""Training and sampling on a device that is not the CPU, as far as a CPU can show it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pretend_gpu import Graph, OnGpu, pretend_gpu
from strategies import FAMILY_TASKS, crystals_for, templates, tiny_model

from crystalctl.crystal.batch import Target
from crystalctl.crystal.goal import Goal
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models import FAMILIES
from crystalctl.models import device as device_module
from crystalctl.models.device import replayed
from crystalctl.training.logbook import Logbook
from crystalctl.training.loop import Trainer
from crystalctl.training.parallel import Processes
from crystalctl.training.settings import TrainConfig


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    with pretend_gpu(monkeypatch) as device:
        yield device


def test_the_pretended_device_refuses_what_a_real_one_refuses(gpu: Any) -> None:
    x = torch.arange(4.0, device=gpu.device, requires_grad=True)
    assert isinstance(x, OnGpu)
    (x * x).sum().backward()
    assert x.grad is not None
    assert x.grad.device == gpu.device
    assert not gpu.reads
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(4)
    assert x.sum().item() == 6.0
    assert x.detach()[torch.tensor([True, False, True, False], device=gpu.device)].shape == (2,)
    assert len(gpu.reads) == 3  # a number; what is sent, and how many of it are true
    torch.ones(2).to(gpu.device, non_blocking=True)
    assert len(gpu.reads) == 3
    cell = torch.eye(3, device=gpu.device)[None]
    with gpu.recording(Graph(), None), pytest.raises(RuntimeError, match="in a graph"):
        torch.linalg.det(cell)
    gpu.strict = True
    for read in (x.tolist, x.cpu, x.nonzero, lambda: bool(x.sum() > 0)):
        with pytest.raises(RuntimeError, match="wait"):
            read()
    with pytest.raises(RuntimeError, match="sends"):
        torch.tensor([1.0], device=gpu.device)


CASES = [(family, task, {}) for family, task in FAMILY_TASKS]
CASES.append(("diffcsp_pp", "predict", {"n_radial": 4}))
CASES.append(("equicsp", "predict", {"permutation": "exact"}))
CASES += [("diffcsp", task, {"property": "energy"}) for task in ("predict", "generate")]
each_case = pytest.mark.parametrize(("family", "task", "changes"), CASES)


def trainer(
    family: str, task: str, changes: dict[str, Any], *, device: torch.device, out: Any
) -> Trainer:
    crystals = crystals_for(family)
    config = TrainConfig(
        epochs=2, batch_size=2, warmup_steps=0, precision="fp32", compile=False, chunk_edges=16
    )
    return Trainer(
        tiny_model(family, task, crystals, **changes),
        family,
        config,
        train=crystals,
        val=crystals,
        out=out,
        device=device,
        processes=Processes(),
        logbook=Logbook(out / "metrics.jsonl", active=True, progress=None),
    )


@each_case
def test_a_training_run_is_that_of_the_cpu(
    family: str, task: str, changes: dict[str, Any], gpu: Any, tmp_path: Any
) -> None:
    runs = {}
    for name, device in (("cpu", torch.device("cpu")), ("gpu", gpu.device)):
        folder = tmp_path / name
        folder.mkdir()
        runs[name] = trainer(family, task, changes, device=device, out=folder)
        assert runs[name].run() == "finished"
    assert runs["gpu"].count.best == pytest.approx(runs["cpu"].count.best, rel=1e-5)
    for (name, one), (_, other) in zip(
        *(r.model.named_parameters() for r in runs.values()), strict=True
    ):
        assert isinstance(other, torch.nn.Parameter)
        assert other.device == gpu.device
        same = torch.isclose(one, other.cpu(), rtol=1e-4, atol=1e-5)
        if name.endswith("in_proj_bias"):
            # No softmax sees the bias of its keys: Adam follows rounding errors there.
            same[len(same) // 3 : 2 * len(same) // 3] = True
        assert same.all(), name
    again = trainer(family, task, changes, device=gpu.device, out=tmp_path / "gpu")
    again.resume()
    assert again.count.step == runs["gpu"].count.step


HOST_READS = {"diffcsp": 0, "diffcsp_pp": 5, "sgequidiff": 8, "symat": 18}
"""Times the host waits for the device in one network call of training; docs/guide/train.md says
which. A family that is not named here never waits."""
WAITING = {"symat"}
"""Families whose neighbour lists are as long as they turn out: every call waits for that number."""


@each_case
def test_reads_of_a_training_step(
    family: str, task: str, changes: dict[str, Any], gpu: Any, tmp_path: Any
) -> None:
    run = trainer(family, task, changes, device=gpu.device, out=tmp_path)
    _, batch = next(run._batches())
    run._train_step(batch)  # tables that are made once
    gpu.reads.clear()
    run._train_step(batch)
    assert len(gpu.reads) == HOST_READS.get(family, 0) * len(batch.chunks), gpu.reads


def wanted(family: str, task: str) -> list[Target]:
    if FAMILIES[family].symmetric:
        return [Target(template=template) for template in templates()]
    if task == "predict":
        return [Target(composition={11: 1, 17: 1}), Target(composition={22: 1, 8: 2})]
    return [Target(n_atoms=3), Target(n_atoms=2, elements=frozenset({8, 12}))]


@each_case
def test_sampling_is_that_of_the_cpu_and_never_waits(
    family: str, task: str, changes: dict[str, Any], gpu: Any
) -> None:
    targets = wanted(family, task)
    if name := changes.get("property"):
        targets = [replace(target, goal=Goal(name, "minimize")) for target in targets]
    model = tiny_model(family, task, crystals_for(family), **changes)
    stream = torch.arange(len(targets))
    expected = model.sample(targets, NoiseSource(3, stream))
    model.to(gpu.device)

    def after(step: int, steps: int) -> None:
        gpu.strict = step < steps and family not in WAITING

    drawn = model.sample(targets, NoiseSource(3, stream.to(gpu.device)), on_step=after)
    assert drawn.frac.device == gpu.device
    torch.testing.assert_close(drawn.lattice.cpu(), expected.lattice, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn.frac.cpu(), expected.frac, rtol=1e-4, atol=1e-4)
    assert drawn.species.cpu().tolist() == expected.species.tolist()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording has failed yet, nor does what fails here count later."""
    monkeypatch.setattr(device_module, "_unrecordable", set())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)


@pytest.mark.usefixtures("fresh")
def test_what_cannot_be_recorded_is_tried_once_and_then_called(gpu: Any) -> None:
    calls = []

    def call(state: Any, time: Any) -> Any:
        calls.append(None)
        return {"x": state["x"].nonzero()}

    state, time = {"x": torch.ones(2, device=gpu.device)}, torch.ones(1, device=gpu.device)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph"):
        assert replayed(call, state, time) is call
    assert len(calls) == 4
    assert replayed(call, state, time) is call
    assert len(calls) == 4


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.usefixtures("fresh")
def test_memory_that_does_not_suffice_for_a_recording_is_said(hidden: bool, gpu: Any) -> None:
    """``hidden``: leaving the recording fails in its turn, as it may on a real device."""
    calls = []

    def call(state: Any, time: Any) -> Any:
        calls.append(None)
        if len(calls) > 3:
            try:
                raise torch.OutOfMemoryError("no memory")
            finally:
                if hidden:
                    raise RuntimeError("captures underway")
        return state

    state, time = {"x": torch.ones(2, device=gpu.device)}, torch.ones(1, device=gpu.device)
    with pytest.raises(torch.OutOfMemoryError):
        replayed(call, state, time)
