"""What runs differently on a GPU, as far as a CPU can show it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from strategies import FAMILY_TASKS, crystals_for, noise_for, random_crystals, tiny_model

from crystalctl.errors import InputError
from crystalctl.models.contract import total_loss
from crystalctl.models.device import (
    compile_dense,
    edges_at_once,
    pick_device,
    replayed,
    wants_bf16,
)


def test_a_cpu_keeps_the_layers_as_they_are():
    model = tiny_model("diffcsp", "predict", random_crystals())
    before = [layer.second_half for layer in model.network.layers]
    compile_dense(model, torch.device("cpu"))
    assert [layer.second_half for layer in model.network.layers] == before


@pytest.mark.parametrize(
    ("family", "settings"), [("diffcsp", {}), ("equicsp", {"permutation": "exact"})]
)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore::DeprecationWarning")
def test_the_compiled_network_is_the_same_function_with_the_same_parameters(family, settings):
    crystals = random_crystals()
    plain, compiled = (tiny_model(family, "predict", crystals, **settings) for _ in range(2))
    compile_dense(compiled, torch.device("cpu"), backend="aot_eager")
    assert compiled.network.layers[0].second_half != compiled.network.layers[0]._second_half
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    losses = []
    for model in (plain, compiled):
        loss = total_loss(model.loss(crystals, noise_for(len(crystals))))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "task"), FAMILY_TASKS)
@pytest.mark.parametrize("permutation", ["exact", "loss"])
def test_no_tensor_is_kept_under_two_names(family, task, permutation):
    """A file would hold it twice, and the one not averaged might be read last."""
    settings = {"permutation": permutation} if family == "equicsp" else {}
    state = tiny_model(family, task, crystals_for(family), **settings).state_dict()
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(places) == len(set(places))


def test_replay_on_a_cpu_is_the_call_itself():
    def call(state, time):
        return {"x": state["x"] + time}

    assert replayed(call, {"x": torch.zeros(2)}, torch.zeros(2)) is call


def test_the_cpu_takes_less_at_once_than_a_gpu():
    assert edges_at_once(torch.device("cpu")) < edges_at_once(torch.device("cuda"))
    assert pick_device("cpu").type == "cpu"


def a_gpu(monkeypatch, capability, built, *, count=1):
    """What torch says of GPUs that are not there; gives the list of those made current."""
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    return made


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((6, 1), ["sm_75", "sm_80", "compute_120"], False),
        ((12, 1), ["sm_90", "compute_120"], True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_left_alone(capability, built, runs, monkeypatch):
    made = a_gpu(monkeypatch, capability, built)
    if runs:
        assert pick_device("auto") == pick_device("cuda:0") == torch.device("cuda:0")
        return
    with pytest.warns(RuntimeWarning, match="no kernels"):
        assert pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="no kernels"):
        pick_device("cuda")
    assert made == []


def test_each_process_makes_only_its_own_gpu_current(monkeypatch):
    made = a_gpu(monkeypatch, (9, 0), ["sm_90"], count=4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == torch.device("cuda:3")
    assert made == [torch.device("cuda:3")]
    assert pick_device("auto", elsewhere=True).type == "cuda"
    assert len(made) == 1


@pytest.mark.parametrize(("gigabytes", "pairs"), [(8, 80_000), (80, 400_000)])
def test_a_small_gpu_takes_less_at_once(gigabytes, pairs, monkeypatch):
    a_gpu(monkeypatch, (8, 6), ["sm_86"])
    facts = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    assert edges_at_once(torch.device("cuda:0")) == pairs


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_without_units_for_bf16_trains_in_fp32(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there)
    assert wants_bf16(torch.device("cuda")) is there
    assert not wants_bf16(torch.device("cpu"))
