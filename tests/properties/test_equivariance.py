"""Symmetries of the denoiser on whole cells, with the largest error of each field."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from strategies import FAMILY_TASKS, atom_counts, random_crystals, seeds, tiny_model
from torch import Tensor

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.models import FAMILIES

TOLERANCE = 1e-6
"""Relative to the largest value, in float64. Interpolated Fourier features allow 2e-7."""

WHOLE_CELLS = [
    pair
    for pair in FAMILY_TASKS
    if not FAMILIES[pair[0]].symmetric and hasattr(FAMILIES[pair[0]].load(), "denoise")
]

pytestmark = pytest.mark.parametrize(("family", "task"), WHOLE_CELLS)


def setting(family: str, task: str, counts: list[int], seed: int):
    """A model in float64, a state as it meets it on its way, and time steps."""
    crystals = random_crystals(counts, seed)
    model = tiny_model(family, task, crystals, seed=seed % 1000).double()
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    species: Tensor = crystals.species
    if task == "generate":
        species = torch.randn(total, MAX_Z, generator=generator).double()
    lattice = torch.randn(len(counts), model.lattice.width, generator=generator).double()
    state = {"lattice": lattice, "frac": crystals.frac.double(), "species": species}
    t = torch.randint(1, 21, (len(counts),), generator=generator)
    return model, state, t, crystals.layout


def outputs(model, state: Mapping[str, Tensor], t: Tensor, layout: Layout) -> dict[str, Tensor]:
    """What ``denoise`` gives, but in float64; compared with its float32 form."""
    is_matrix = state["lattice"].shape[1] == 9
    g = matrix = state["lattice"]
    if is_matrix:
        matrix = state["lattice"].view(-1, 3, 3)
        g = (matrix @ matrix.transpose(1, 2)).flatten(1)
    with torch.no_grad():
        exact = model.network(state["species"], state["frac"], g, t, layout)
        single = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        rounded = deepcopy(model).float().denoise(single, t, layout)
    found = {
        "lattice": exact.lattice
        if not is_matrix
        else (exact.lattice.view(-1, 3, 3) @ matrix).flatten(1),
        "frac": exact.frac,
    }
    if exact.species is not None:
        found["species"] = exact.species
    for name, tensor in found.items():  # the float32 form is the same function
        assert torch.allclose(rounded[name].double(), tensor, rtol=1e-3, atol=1e-4), name
    return found


def check_equal(got: Mapping[str, Tensor], want: Mapping[str, Tensor], what: str) -> None:
    errors = {
        name: float((got[name] - want[name]).abs().max() / want[name].abs().max().clamp(min=1e-9))
        for name in want
    }
    assert max(errors.values()) < TOLERANCE, f"{what}: largest error per field {errors}"


def random_rotation(seed: int, *, mirror: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))
    if (torch.linalg.det(q) < 0) != mirror:
        q = -q
    return q


@given(counts=atom_counts, seed=seeds)
def test_rotations_turn_the_lattice_output_and_nothing_else(family, task, counts, seed):
    model, state, t, layout = setting(family, task, counts, seed)
    if state["lattice"].shape[1] != 9:
        return  # lengths and angles do not turn: see test_the_lattice_vector_does_not_turn
    before = outputs(model, state, t, layout)
    q = random_rotation(seed, mirror=seed % 2 == 0)
    turned = {**state, "lattice": (state["lattice"].view(-1, 3, 3) @ q).flatten(1)}
    want = {**before, "lattice": (before["lattice"].view(-1, 3, 3) @ q).flatten(1)}
    check_equal(outputs(model, turned, t, layout), want, "rotation")


@given(counts=atom_counts, seed=seeds)
def test_translations_and_integer_shifts_change_nothing(family, task, counts, seed):
    model, state, t, layout = setting(family, task, counts, seed)
    before = outputs(model, state, t, layout)
    generator = torch.Generator().manual_seed(seed + 1)
    shift = torch.rand(len(counts), 3, generator=generator, dtype=torch.float64)
    moved = {**state, "frac": (state["frac"] + shift[layout.crystal_idx]) % 1.0}
    check_equal(outputs(model, moved, t, layout), before, "translation")
    cells = torch.randint(-2, 3, state["frac"].shape, generator=generator)
    check_equal(
        outputs(model, {**state, "frac": state["frac"] + cells}, t, layout), before, "integer shift"
    )


@given(counts=atom_counts, seed=seeds)
def test_permuted_atoms_permute_the_rows(family, task, counts, seed):
    model, state, t, layout = setting(family, task, counts, seed)
    before = outputs(model, state, t, layout)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [
            int(start) + torch.randperm(n, generator=generator)
            for start, n in zip(layout.offsets, counts, strict=True)
        ]
    )
    mixed = {**state, "frac": state["frac"][order], "species": state["species"][order]}
    want = {n: rows if n == "lattice" else rows[order] for n, rows in before.items()}
    check_equal(outputs(model, mixed, t, layout), want, "permutation")


@given(counts=atom_counts, seed=seeds)
def test_crystals_of_a_batch_do_not_see_each_other(family, task, counts, seed):
    model, state, t, layout = setting(family, task, counts, seed)
    before = outputs(model, state, t, layout)
    for c, n in enumerate(counts):
        rows = layout.crystal_idx == c
        alone = {
            "lattice": state["lattice"][c : c + 1],
            "frac": state["frac"][rows],
            "species": state["species"][rows],
        }
        want = {
            name: out[c : c + 1] if name == "lattice" else out[rows] for name, out in before.items()
        }
        got = outputs(model, alone, t[c : c + 1], Layout(torch.tensor([n])))
        check_equal(got, want, f"crystal {c} alone")


def test_the_outputs_depend_on_every_input(family, task):
    """A network that ignores its input would pass all of the above."""
    model, state, t, layout = setting(family, task, [3, 2], 1)
    before = outputs(model, state, t, layout)
    generator = torch.Generator().manual_seed(0)
    bent = state["frac"].clone()
    bent[0] += 0.1
    stretched = state["lattice"] * 1.2
    changed_species = state["species"].flip(0)
    for name, other, when in (
        ("frac", {**state, "frac": bent}, t),
        ("lattice", {**state, "lattice": stretched}, t),
        ("species", {**state, "species": changed_species}, t),
        ("t", state, torch.randint(1, 21, t.shape, generator=generator) + 20),
    ):
        after = outputs(model, other, when, layout)
        moved = {k: float((after[k] - before[k]).abs().max()) for k in before}
        assert min(moved.values()) > 1e-6, (name, moved)
