"""What a family that learns a property has in common with the others: its loss and its aims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout, Target
from crystalctl.crystal.goal import Goal
from crystalctl.diffusion.process import State
from crystalctl.errors import InputError
from crystalctl.models.contract import LossTerm
from crystalctl.models.device import edges_at_once


class Settings(Protocol):
    """What a family's config says of the property; training fills in mean and spread."""

    @property
    def property_mean(self) -> float: ...

    @property
    def property_std(self) -> float: ...

    @property
    def weight_property(self) -> float: ...

    @property
    def property(self) -> str: ...


class Steerable(Protocol):
    """A process whose output can be changed by a gradient."""

    def steered(self, out: Tensor, gradient: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """The output that means a score higher by ``gradient``; ``t`` (C,) steps."""
        ...


def property_loss(found: Tensor, labels: Tensor | None, settings: Settings) -> LossTerm:
    """Squared error in standard units, (C,) each; unknown labels cost nothing."""
    labels = torch.full_like(found, torch.nan) if labels is None else labels
    wanted = (labels - settings.property_mean) / settings.property_std
    error = torch.nan_to_num(found.float() - wanted, nan=0.0)
    return LossTerm(error.square().sum(), len(found), settings.weight_property)


@dataclass(frozen=True)
class Aims:
    """Goals of several crystals as numbers, (C,) each: ``sign`` 1 for small, -1 for large.

    ``sign`` 0 aims at ``value``, in standard units. ``strength`` says how hard to pull; 0 with no
    goal.
    """

    sign: Tensor
    value: Tensor
    strength: Tensor

    @classmethod
    def of(cls, goals: Sequence[Goal | None], device: torch.device) -> Aims:
        """Of ``goals`` whose values are in standard units."""
        signs = [1.0 if goal is None else _SIGNS[goal.direction] for goal in goals]
        values = [0.0 if goal is None else goal.value or 0.0 for goal in goals]
        strengths = [0.0 if goal is None else goal.strength for goal in goals]
        return cls(*(torch.tensor(x, device=device) for x in (signs, values, strengths)))

    def cost(self, found: Tensor) -> Tensor:
        """What should become small, (C,), for properties ``found`` in standard units."""
        off = (found - self.value).square() / 2
        return torch.where(self.sign == 0, off, self.sign * found)


_SIGNS = {"minimize": 1.0, "maximize": -1.0, "target": 0.0}


def at_once(crystals: Crystals, device: torch.device) -> Iterator[Crystals]:
    """The crystals on the device, in order, as many at once as one network call takes."""
    calls = torch.cumsum(crystals.layout.pair_counts, 0) // edges_at_once(device)
    sizes = torch.unique_consecutive(calls, return_counts=True)[1].tolist()
    for rows in torch.arange(len(crystals)).split(sizes):
        yield crystals.index(rows).to(device)


def wanted(targets: Sequence[Target], settings: Settings) -> list[Goal | None]:
    """The goal of each target in standard units; None where there is none, or nothing pulls.

    Raises ``InputError`` for a property that the weights have not learnt.
    """
    goals = [target.goal for target in targets]
    if any(goal is not None and goal.property != settings.property for goal in goals):
        raise InputError(
            f"these weights know {settings.property or 'no property'}",
            "train some with --property",
        )
    return [
        goal.scaled(settings.property_mean, settings.property_std)
        if goal is not None and goal.strength > 0
        else None
        for goal in goals
    ]


def guided(
    denoise: Callable[[State, Tensor, Layout], Mapping[str, Tensor]],
    processes: Mapping[str, Steerable],
    goals: Sequence[Goal | None],
    layout: Layout,
    *,
    factor: float,
) -> Callable[[State, Tensor], Mapping[str, Tensor]]:
    """The network call of a sampler that is drawn towards the ``goals``, one for each crystal.

    ``denoise`` maps (state, time steps, layout) to outputs, among them "property" (C,), the one to
    expect of the clean crystal, in standard units. The score of every diffused field gets
    -factor * strength * gradient of the cost of that property: samples then follow the density
    times exp(-factor * strength * cost), as far as the expectation stands for the property.
    Ref: Alg. 2, arXiv:2105.05233, for every field.
    """
    # Sampling runs in inference mode, whose tensors take no part in gradients.
    with torch.inference_mode(False):
        aims = Aims.of(goals, layout.device)
        fresh = layout.renewed()

    def call(state: State, t: Tensor) -> Mapping[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            held = {name: field.clone() for name, field in state.items()}
            moving = [held[name].requires_grad_() for name in processes]
            out = denoise(held, t.clone(), fresh)
            cost = factor * aims.strength * aims.cost(out["property"])
            pulls = torch.autograd.grad(cost.sum(), moving)
        changed = {
            name: process.steered(out[name].detach(), -pull, t, layout)
            for (name, process), pull in zip(processes.items(), pulls, strict=True)
        }
        return {**{name: field.detach() for name, field in out.items()}, **changed}

    return call
