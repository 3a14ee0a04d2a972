"""Which weights serve a request, and what cannot be asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crystalctl.errors import InputError
from crystalctl.goals import TRAIN

if TYPE_CHECKING:
    from crystalctl.execution import Options
    from crystalctl.models import Family


def choose_weights(
    task: str, needs: set[str], model: str | None, weights: str | None, *, learnt: str | None = None
) -> str:
    """Name or path of the weights to use, after checking that the family can do the task.

    ``learnt``: a property they must know. Raises ``InputError`` for an unknown family, one that
    does not take what is asked, or a property that no shipped weights know.
    """
    if model is not None:
        check_family(model, task, needs)
    if weights is not None:
        return weights
    from crystalctl.checkpoint import available, default_weights
    from crystalctl.models import FAMILIES, serves

    able = [model] if model else [x for x, f in FAMILIES.items() if _can(f, task, needs)]
    if not able:
        what = " and ".join(_WORDS.get(name, name) for name in sorted(needs))
        raise InputError(f"no model can take {what} at once", "leave one out")
    shipped = [
        row
        for row in available()
        if row["family"] in able and serves(row["family"], row["task"], task)
    ]
    shipped.sort(key=lambda row: (row["task"] != task, not row.get("default")))
    if learnt is not None:
        knowing = [row for row in shipped if row.get("property") == learnt]
        if not knowing:
            known = sorted({row["property"] for row in shipped if "property" in row})
            raise InputError(
                f"no shipped weights know {learnt}" + (f" (but {', '.join(known)})" * bool(known)),
                f"train some: {TRAIN.format(able[0], learnt)}",
            )
        return str(knowing[0]["name"])
    return default_weights(task, shipped[0]["family"] if shipped else able[0])


def choose_beside() -> str | None:
    """The shipped weights that draw free of symmetry beside those of a prediction, if any."""
    from crystalctl.checkpoint import available

    return next((str(row["name"]) for row in available() if row.get("beside")), None)


def _can(family: Family, task: str, needs: set[str]) -> bool:
    return task in family.tasks and needs <= family.accepts


def check_family(family: str, task: str, needs: set[str]) -> None:
    """Raise ``InputError`` unless the family can do the task with what is ``needed``."""
    from crystalctl.models import FAMILIES

    if family not in FAMILIES:
        raise InputError(f"unknown model '{family}'", f"allowed: {', '.join(sorted(FAMILIES))}")
    lacks = sorted(needs - FAMILIES[family].accepts)
    if not lacks and task in FAMILIES[family].tasks:
        return
    able = [name for name, f in FAMILIES.items() if _can(f, task, needs)]
    hint = f"use {', '.join(sorted(able))}" if able else "no model can yet"
    if task == "predict" and "composition" in lacks and "generate" in FAMILIES[family].tasks:
        hint += f", or `crystalctl generate --model {family}`"
    what = " and ".join(_WORDS.get(name, name) for name in lacks)
    raise InputError(f"{family} cannot take {what}" if lacks else f"{family} cannot {task}", hint)


def check_numbers(n: int, options: Options, most: int) -> None:
    """Raise ``InputError`` for numbers out of range; ``most`` samples can be drawn in one run."""
    if n > most:
        raise InputError(f"--n is {n}", f"allowed: up to {most} in one run")
    whole = {"--n": n, "--steps": options.steps, "--batch-size": options.batch_size}
    for name, value in whole.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}", "allowed: 1 or more")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is {options.seed}", "allowed: 0 to 2^63 - 1")


COLDEST, HOTTEST = 0.01, 100.0


def check_composing(temperature: float, likeness: float | None) -> None:
    """Raise ``InputError`` for a temperature or likeness out of range."""
    if not COLDEST <= temperature <= HOTTEST:
        raise InputError(f"--temperature is {temperature}", f"allowed: {COLDEST:g} to {HOTTEST:g}")
    if likeness is not None and not 0 <= likeness <= 1:
        raise InputError(f"--likeness is {likeness}", "allowed: 0 to 1")


def check_steps(steps: int | None, config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for more steps than weights of this ``config`` have."""
    most = config.get("n_steps")
    if steps is not None and most is not None and steps > most:
        raise InputError(f"--steps is {steps}", f"these weights have {most} time steps")


FAST, REFERENCE = "fast", "reference"


def check_sampler(options: Options) -> None:
    """Raise ``InputError`` for a sampler there is not, or steps beside the published ones."""
    if options.sampler not in (FAST, REFERENCE):
        raise InputError(f"unknown sampler '{options.sampler}'", f"allowed: {FAST}, {REFERENCE}")
    if options.sampler == REFERENCE and options.steps is not None:
        raise InputError("--sampler reference has all steps", "leave out --steps or --sampler")


def steps_of(options: Options, config: Mapping[str, Any]) -> int | None:
    """Sampling steps of weights of this ``config``; None: as they advise."""
    return config["n_steps"] if options.sampler == REFERENCE else options.steps


_WORDS = {
    "composition": "a composition (it draws its own)",
    "elements": "a set of elements",
    "n_atoms": "a number of atoms",
    "space_group": "a space group",
    "property": "a property to aim at",
    "temperature": "a temperature",
    "likeness": "a likeness to known compounds",
}
