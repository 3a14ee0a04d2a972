"""What sampling is for every family that diffuses fields: one path back, some elements held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from crystalctl.crystal.batch import MAX_Z, Layout, Target
from crystalctl.diffusion.elements import ElementProcess
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import Process, State
from crystalctl.diffusion.sampling import OnStep, predictor_corrector
from crystalctl.diffusion.schedules import FEWEST, restarted_steps, spaced_steps
from crystalctl.errors import InputError
from crystalctl.models.device import replayed


class Settings(Protocol):
    """What a family's config says of sampling."""

    @property
    def n_steps(self) -> int: ...

    @property
    def sample_steps(self) -> int: ...

    @property
    def n_correct(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    @property
    def restart_level(self) -> float: ...

    @property
    def gamma(self) -> float: ...

    @property
    def sigma_low(self) -> float: ...

    @property
    def sigma_high(self) -> float: ...


RANGES = (
    "sigma_low below sigma_high, sample_steps 1 or more and at most n_steps, restart_level above 0 "
    "and at most 1, gamma, n_correct and restarts not negative"
)


def refusal(settings: Any, names: Sequence[str], allowed: str) -> InputError:
    """The error of a config whose settings of these ``names`` are not ``allowed``."""
    values = ", ".join(f"model.{name} = {getattr(settings, name)}" for name in names)
    return InputError(f"{values} cannot be", allowed)


def impossible(settings: Settings) -> list[str]:
    """Names of the settings of noise and sampler outside of ``RANGES``."""
    names = ("gamma", "n_correct", "restarts")
    wrong = [name for name in names if not 0 <= getattr(settings, name) < math.inf]
    if not 0 < settings.sigma_low < settings.sigma_high < math.inf:
        wrong.append("sigma_low")
    if not 1 <= settings.sample_steps <= settings.n_steps:
        wrong.append("sample_steps")
    if not 0 < settings.restart_level <= 1:
        wrong.append("restart_level")
    return wrong


def reverse(
    call: Callable[[State, Tensor], Mapping[str, Tensor]],
    processes: Mapping[str, Process],
    layout: Layout,
    noise: NoiseSource,
    *,
    held: State,
    settings: Settings,
    excluded: Tensor | None = None,
    start: State | None = None,
    start_level: float = 1.0,
    steps: int | None = None,
    on_step: OnStep | None = None,
) -> dict[str, Tensor]:
    """The fields at t = 0, from the priors of ``processes`` and the fields ``held`` fixed.

    ``call`` is the network: (state, time steps (C,)) -> outputs. ``excluded`` (rows, 100) bool:
    elements a row may not be; "species" then comes back as atomic numbers. ``start``: clean fields;
    the path then begins with these at the noise of ``start_level``, a share of T, and not at T.
    Ref: SDEdit, arXiv:2108.01073, Alg. 1.
    """
    share = 1.0 if start is None else start_level
    level = max(1, round(share * settings.n_steps))
    first = torch.full((layout.n_crystals,), level, device=noise.stream.device)
    state = {
        name: process.prior(layout, noise)
        if start is None
        else process.corrupt(start[name], first, layout, noise)[0]
        for name, process in processes.items()
    }
    state |= held
    network = replayed(call, state, first)

    def denoise(current: State, t: int) -> Mapping[str, Tensor]:
        time = torch.full_like(first, t)
        if excluded is None:
            return network(current, time)
        species = processes["species"]
        assert isinstance(species, ElementProcess)
        known = species.without(current["species"], excluded)
        out = network({**current, "species": known}, time)
        # The noise that says: these elements are absent from the clean crystal.
        absent = current["species"] / torch.sqrt(1 - species.schedule.alpha_bar[t])
        return {**out, "species": torch.where(excluded, absent, out["species"])}

    end = dict(
        predictor_corrector(
            denoise,
            processes,
            state,
            _path(settings, steps or settings.sample_steps, level),
            layout,
            noise,
            n_correct=settings.n_correct,
            on_step=on_step,
        )
    )
    if excluded is not None:
        end["species"] = end["species"].masked_fill(excluded, -torch.inf).argmax(1) + 1
    return end


def _path(settings: Settings, n_used: int, level: int) -> list[int]:
    """Time steps from ``level`` down to 0, as dense as ``n_used`` from T; restarts only from T."""
    if level == settings.n_steps:
        again = round(settings.restart_level * level)
        return restarted_steps(level, n_used, again, settings.restarts)
    each = round(n_used * level / settings.n_steps)
    return spaced_steps(level, min(level, max(each, FEWEST)))


def excluded_elements(targets: Sequence[Target], layout: Layout) -> Tensor:
    """Elements each row of ``layout`` may not be, (rows, 100) bool."""
    mask = torch.zeros(len(targets), MAX_Z, dtype=torch.bool)
    for row, target in enumerate(targets):
        if target.elements is not None:
            mask[row] = True
            mask[row, [z - 1 for z in target.elements]] = False
    return mask.to(layout.device)[layout.crystal_idx]
