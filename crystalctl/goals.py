"""What a generated crystal should be good at: ``--minimize``, ``--maximize``, ``--target``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crystalctl.crystal.goal import Goal
from crystalctl.errors import InputError
from crystalctl.planning import Sample

if TYPE_CHECKING:
    from crystalctl.analysis.ranking import Ranking

TRAIN = "crystalctl train --model {} --task generate --property {} --data FILE --out FOLDER"
"""How to come by weights that know a property."""


def parse_goal(
    minimize: str | None, maximize: str | None, target: str | None, strength: float | None = None
) -> Goal | None:
    """The goal, or None; raises ``InputError`` for several, or a number that cannot be."""
    given = {"minimize": minimize, "maximize": maximize, "target": target}
    chosen = [(way, text) for way, text in given.items() if text is not None]
    if strength is not None and not 0 <= strength < math.inf:
        raise InputError(f"--strength is {strength}", "allowed: 0 or more; 1 is the default")
    if not chosen:
        if strength is not None:
            raise InputError("--strength without a goal", "add --minimize, --maximize or --target")
        return None
    if len(chosen) > 1:
        names = " and ".join(f"--{way}" for way, _ in chosen)
        raise InputError(f"{names} exclude each other", "give one of them")
    way, text = chosen[0]
    strength = 1.0 if strength is None else strength
    if way != "target":
        return Goal(text.strip(), way, strength=strength)
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name.strip() or not math.isfinite(value):
        raise InputError(f"cannot read --target {text!r}", "write --target band_gap=1.5")
    return Goal(name.strip(), "target", value, strength)


def check_goal(goal: Goal | None, family: str, config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` unless weights of this ``config`` have learnt the property."""
    if goal is None or config.get("property") == goal.property:
        return
    known = config.get("property")
    raise InputError(
        f"these weights know {known if known else 'no property'}, not {goal.property}",
        f"train some: {TRAIN.format(family, goal.property)}",
    )


def rank_by_goal(ranking: Ranking, model: Any) -> Ranking:
    """The same candidates, the nearest to their goal first; unchanged where there is none.

    Each gets ``predicted_NAME``: what ``model`` reads from the finished structure, not from the
    latent it was made of.
    """
    goal = ranking.samples[0].goal if ranking.samples else None
    if goal is None or not ranking.candidates:
        return ranking
    from crystalctl.crystal.batch import Crystals

    crystals = [ranking.crystals[c.sample.number] for c in ranking.candidates]
    values = model.predicted(Crystals.cat(crystals)).tolist()
    name = f"predicted_{goal.property}"
    scored = [
        (goal.distance(value), replace(c, scores={**c.scores, name: round(value, 4)}))
        for c, value in zip(ranking.candidates, values, strict=True)
    ]
    scored.sort(key=lambda pair: pair[0])
    ranked = [replace(c, rank=rank) for rank, (_, c) in enumerate(scored, start=1)]
    return replace(ranking, candidates=ranked)


def with_goal(samples: Sequence[Sample], goal: Goal | None) -> list[Sample]:
    """The samples, all with that goal."""
    return [replace(sample, goal=goal) for sample in samples]
