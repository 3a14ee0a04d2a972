"""The fused pair messages: interpreted on a CPU, on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from strategies import crystals_for, tiny_model
from torch import Tensor

from crystalctl.crystal.segments import neighbour_mean
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.models.contract import total_loss
from crystalctl.models.device import fuse_messages
from crystalctl.networks.choice import Choice
from crystalctl.networks.fused import TILES, Tile, Work, best_tile, fused_messages
from crystalctl.networks.pairs import Incidence

pytest.importorskip("triton", reason="no triton for this system")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N_TABLE, M = 6, 5
SMALL = Tile(16, 16, 32, warps=4, stages=1)
WIDE = Tile(64, 32, 16, warps=4, stages=2)


@dataclass(frozen=True)
class Degrees:
    """A graph of receivers with any numbers of neighbours, ``degree`` (A,)."""

    degree: Tensor
    common_degree: int | None = None

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(self.degree), device=self.degree.device)
        receiver = torch.repeat_interleave(rows, self.degree)
        return receiver, receiver.flip(0)


def work_for(degrees: list[int], hidden: int, *, extra: bool = False) -> Work:
    """Pairs that read three weighted table rows, a receiver and a sender."""
    make = torch.Generator().manual_seed(hidden + len(degrees))
    graph = Degrees(torch.tensor(degrees))
    receiver, sender = graph.edges
    n, atoms = len(receiver), len(degrees)
    table = torch.randint(0, N_TABLE, (n, M - 2), generator=make)
    ends = torch.stack([receiver + N_TABLE, sender + N_TABLE + atoms], 1)
    weights = torch.cat([torch.rand(n, M - 2, generator=make), torch.ones(n, 2)], 1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(DEVICE).requires_grad_()

    rows = torch.cat([table, ends], 1).to(DEVICE)
    n_rows = N_TABLE + 2 * atoms
    return Work(
        draw(n_rows, hidden),
        draw(n, hidden) if extra else None,
        (draw(hidden, hidden) / hidden**0.5).detach().requires_grad_(),
        draw(hidden),
        Incidence(rows, weights.to(DEVICE), n_rows),
        Degrees(graph.degree.to(DEVICE)),
    )


def plain_messages(work: Work) -> Tensor:
    first = work.pairs @ work.ends
    if work.extra is not None:
        first = first + work.extra
    second = F.silu(F.linear(F.silu(first), work.weight, work.bias))
    return neighbour_mean(second, work.graph)


def with_gradients(out: Tensor, work: Work) -> list[Tensor]:
    """Messages and gradients of all that has them, for an uneven sum of the messages."""
    leaves = [x for x in (work.ends, work.extra, work.weight, work.bias) if x is not None]
    slope = torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, slope.to(out.dtype))]


CASES = [
    ([1], 32, False, SMALL),
    ([5, 5, 5], 48, False, SMALL),
    ([20, 20], 32, True, SMALL),
    ([3, 1, 40, 2, 9], 48, True, SMALL),  # more neighbours than two tiles
    ([16, 16, 1], 192, False, WIDE),  # a receiver ends where a tile of 32 would
    ([1] * 17, 20, True, SMALL),
    ([64, 1, 1], 32, False, WIDE),
]


@pytest.mark.parametrize(("degrees", "hidden", "extra", "tile"), CASES)
def test_messages_and_gradients_are_those_of_the_plain_form(
    degrees: list[int], hidden: int, extra: bool, tile: Tile
) -> None:
    work = work_for(degrees, hidden, extra=extra)
    expected = with_gradients(plain_messages(work), work)
    found = with_gradients(fused_messages(work, tile), work)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize(("degrees", "hidden", "extra", "tile"), CASES[3:5])
def test_bf16_differs_from_the_plain_form_by_rounding(
    degrees: list[int], hidden: int, extra: bool, tile: Tile
) -> None:
    work = work_for(degrees, hidden, extra=extra)
    exact = with_gradients(plain_messages(work), work)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert work.dtype == torch.bfloat16
        plain = with_gradients(plain_messages(work), work)
        fused = with_gradients(fused_messages(work, tile), work)
    for true, rough, found in zip(exact, plain, fused, strict=True):
        size = true.norm()
        assert 0 < (found.float() - true).norm() / size < 0.02
        assert (found.float() - rough.float()).norm() / size < 0.02
        assert found.dtype == torch.float32


def test_the_same_input_gives_the_same_bits() -> None:
    work = work_for([3, 20, 2], 32, extra=True)
    once, again = (with_gradients(fused_messages(work, SMALL), work) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


class Forced(Choice):
    """Takes a tile without trying."""

    def pick(self, kind: Any, plain: Any, ways: Any, *, tolerance: float) -> Any:
        self.taken[kind] = SMALL
        return SMALL


@pytest.mark.parametrize(
    ("family", "changes"),
    [("diffcsp", {"n_layers": 1}), ("diffcsp_pp", {"n_layers": 1, "n_radial": 4})],
)
def test_a_network_learns_the_same(family: str, changes: dict[str, Any]) -> None:
    """Atoms with all their pairs; orbits with what they see of the primitive cell."""
    crystals = crystals_for(family)
    results = []
    for choice in (None, Forced()):
        model = tiny_model(family, "predict", crystals, **changes).to(DEVICE)
        if "n_radial" in changes:
            radial = model.network.layers[0].radial
            radial.data.copy_(torch.linspace(-1, 1, radial.numel()).view_as(radial))
        model.network.fuse(choice)
        noise = NoiseSource(3, torch.arange(len(crystals), device=DEVICE))
        loss = total_loss(model.loss(crystals.to(DEVICE), noise))
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert choice is not None
    assert choice.taken
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_trial_leaves_the_gradients_of_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps rounded weights: those of the trial must still lead to their gradients."""
    monkeypatch.setitem(TILES, torch.bfloat16, (SMALL,))
    crystals = crystals_for("diffcsp").index(torch.tensor([0]))
    gradients, taken = [], []
    times = iter([2.0, 1.0])
    for clock in (None, lambda run: 1.0, lambda run: next(times)):
        model = tiny_model("diffcsp", "predict", crystals, n_layers=1, n_frequencies=2).to(DEVICE)
        choice = Choice(clock)
        model.network.fuse(None if clock is None else choice)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            noise = NoiseSource(3, torch.arange(1, device=DEVICE))
            loss = total_loss(model.loss(crystals.to(DEVICE), noise))
        loss.backward()
        gradients.append([p.grad for p in model.network.layers[0].edge_mlp.parameters()])
        taken.append(list(choice.taken.values()))
    assert taken == [[], [None], [SMALL]]
    plain, tried, fused = gradients
    for one, same, near in zip(plain, tried, fused, strict=True):
        assert (same - one).norm() < 1e-3 * one.norm()
        assert (near - one).norm() < 0.03 * one.norm()


def test_the_fastest_way_is_taken_and_remembered() -> None:
    runs = []

    def counted(name: str) -> Any:
        def run() -> list[Tensor]:
            runs.append(name)
            return [torch.ones(3)]

        return run

    seconds = {"plain": 2.0, "slow": 3.0, "fast": 1.0, "faster": 0.5}

    def clock(run: Any) -> float:
        run()
        return seconds[runs[-1]]

    choice = Choice(clock)
    ways = {name: counted(name) for name in ("slow", "fast", "faster")}
    assert choice.pick("a", counted("plain"), ways, tolerance=0) == "faster"
    seconds["plain"] = 0.1
    assert choice.pick("b", counted("plain"), ways, tolerance=0) is None
    runs.clear()
    assert choice.pick("a", counted("plain"), ways, tolerance=0) == "faster"
    assert not runs


@pytest.mark.parametrize("value", [1.2, float("nan"), float("inf")])
def test_a_wrong_way_is_refused_however_fast(value: float) -> None:
    choice = Choice(lambda run: run()[0][0].item() == 1.0)
    ways = {"wrong": lambda: [torch.ones(2), torch.tensor([1.0, value])]}
    plain = lambda: [torch.ones(2), torch.ones(2)]  # noqa: E731
    with pytest.warns(RuntimeWarning, match="not used: wrong.*off by"):
        assert choice.pick("a", plain, ways, tolerance=0.1) is None


def test_what_differs_by_rounding_is_right() -> None:
    choice = Choice(lambda run: abs(run()[0][0].item() - 1.01))
    ways = {"rounded": lambda: [torch.full((3,), 1.01)]}
    assert choice.pick("a", lambda: [torch.ones(3)], ways, tolerance=0.02) == "rounded"


def test_a_way_that_fails_is_left_out_with_one_line() -> None:
    def fails() -> list[Tensor]:
        raise RuntimeError("out of resource: shared memory\nand two hundred lines")

    choice = Choice(lambda run: 1.0)
    with pytest.warns(RuntimeWarning) as said:
        assert choice.pick("a", lambda: [torch.ones(3)], {"x": fails}, tolerance=1) is None
    (warning,) = said
    assert "out of resource" in str(warning.message)
    assert "\n" not in str(warning.message)


def test_work_is_tried_with_its_gradients_and_once_for_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TILES, torch.float32, (SMALL,))
    times = iter([2.0, 1.0, 2.0, 1.0])
    seen = []

    def clock(run: Any) -> float:
        seen.append(len(run()))
        return next(times)

    choice, work = Choice(clock), work_for([2, 3], 16, extra=True)
    assert best_tile(work, plain_messages, choice) == SMALL
    assert seen == [5, 5]
    assert all(x.grad is None for x in (work.ends, work.extra, work.weight, work.bias))
    similar = work_for([3, 3], 16, extra=True)  # 6 pairs, not 5
    assert best_tile(similar, plain_messages, choice) == SMALL
    with torch.no_grad():
        assert best_tile(work, plain_messages, choice) == SMALL
    assert seen == [5, 5, 1, 1]


def test_what_the_kernels_cannot_do_stays_plain() -> None:
    choice, work = Forced(), work_for([2, 3], 16)
    assert best_tile(work, plain_messages, choice) == SMALL
    guided = Incidence(work.pairs.rows, work.pairs.weights.clone().requires_grad_(), 10)
    assert best_tile(replace(work, pairs=guided), plain_messages, choice) is None
    double = replace(work, ends=work.ends.detach().double())
    assert best_tile(double, plain_messages, choice) is None


def test_only_a_gpu_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("diffcsp", "predict", crystals_for("diffcsp"))
    fuse_messages(model, torch.device("cpu"))
    assert model.network.layers[0].choice is None
    monkeypatch.setattr("crystalctl.models.device.find_spec", lambda name: None)
    fuse_messages(model, torch.device("cuda"))
    assert model.network.layers[0].choice is None
    monkeypatch.undo()
    fuse_messages(model, torch.device("cuda"))
    first, second = model.network.layers
    assert first.choice is second.choice is not None


def test_the_kernels_compile_for_a_gpu_and_fit_it(tmp_path: Path) -> None:
    """The interpreter lets pass what the compiler does not."""
    script = Path(__file__).parents[1] / "kernel_budget.py"
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, script, "--quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("KB shared") == 4
