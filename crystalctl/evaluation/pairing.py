"""Which prediction belongs to which reference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_SAME_FORMULAS = 0.5
"""Rows of two equally long files belong together when this share of formulas agrees."""


@dataclass(frozen=True)
class Side:
    """One entry for each row: ``ids``; reduced ``formulas`` ("" = unreadable); ``ranks``.

    A rank is a place in a ranking from 1, 0 = not ranked; ``ranks`` is empty without a ranking.
    """

    ids: Sequence[str]
    formulas: Sequence[str]
    ranks: Sequence[int] = ()


@dataclass(frozen=True)
class Pairing:
    """``drawn[j]``: rows of the predictions of reference j as given; ``ranked[j]``: by rank.

    ``how``: "ids", "rows" or "formula". ``overlap``: share of readable predictions whose formula
    the reference has.
    """

    how: str
    drawn: list[list[int]]
    ranked: list[list[int]]
    overlap: float
    has_ranks: bool


def pair(ours: Side, theirs: Side) -> Pairing:
    """Row i with row i where ids or lengths agree, by reduced formula otherwise.

    Ids agree when every prediction has the id of a reference (several may share one) and ids of
    references are unique. Lengths agree only if at least half the formulas do, too: two sets of
    generated structures may be as large as the test set by chance.
    """
    readable = [f for f in ours.formulas if f]
    there = set(theirs.formulas) - {""}
    overlap = sum(f in there for f in readable) / len(readable) if readable else 0.0
    drawn: list[list[int]] = [[] for _ in theirs.ids]
    how = _how(ours, theirs)
    if how == "ids":
        place = {name: j for j, name in enumerate(theirs.ids)}
        for i, name in enumerate(ours.ids):
            drawn[place[name]].append(i)
    elif how == "rows":
        drawn = [[i] for i in range(len(theirs.ids))]
    else:
        rows = defaultdict(list)
        for i, formula in enumerate(ours.formulas):
            rows[formula].append(i)
        drawn = [list(rows.get(formula, ())) if formula else [] for formula in theirs.formulas]
    ranks = ours.ranks
    has_ranks = bool(ranks) and any(ranks)
    ranked = drawn
    if has_ranks:
        last = len(ranks) + max(ranks)
        ranked = [sorted(rows, key=lambda i: (ranks[i] or last, i)) for rows in drawn]
    return Pairing(how, drawn, ranked, overlap, has_ranks)


def _how(ours: Side, theirs: Side) -> str:
    there = Counter(theirs.ids)
    unique = "" not in there and all(n == 1 for n in there.values())
    if unique and ours.ids and all(name in there for name in ours.ids):
        return "ids"
    if len(ours.ids) == len(theirs.ids):
        both = [(a, b) for a, b in zip(ours.formulas, theirs.formulas, strict=True) if a and b]
        if both and sum(a == b for a, b in both) >= _SAME_FORMULAS * len(both):
            return "rows"
    return "formula"
