"""What runs differently on a GPU, as far as a CPU can show it."""

from __future__ import annotations

import pytest
import torch
from strategies import FAMILY_TASKS, crystals_for, noise_for, random_crystals, tiny_model

from crystalctl.models.contract import total_loss
from crystalctl.models.device import compile_dense, edges_at_once, pick_device, replayed


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
