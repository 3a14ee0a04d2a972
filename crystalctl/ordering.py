"""Structures with energies -> a ranking: merged where equal, ordered by score or energy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crystalctl.analysis.hull import Hull
from crystalctl.analysis.matching import group_duplicates
from crystalctl.analysis.ranking import counted, counts_of
from crystalctl.analysis.scoring import scores
from crystalctl.analysis.symmetrise import Symmetric, symmetrise
from crystalctl.io.collect import Row
from crystalctl.known import shipped

OnProgress = Callable[[str, int, int], None]
Facts = dict[str, Any]


def structure_of(row: Row) -> Any:
    """The pymatgen structure of a row that could be read."""
    from pymatgen.core import Lattice, Structure

    assert row.entry is not None
    entry = row.entry
    return Structure(Lattice(entry.lattice), entry.numbers.tolist(), entry.frac)


def symbol_of(symmetric: Symmetric) -> str:
    """Hermann-Mauguin symbol as file names and tables have it."""
    return symmetric.symbol.replace("_", "")


def rank_rows(
    rows: Sequence[Row],
    done: Mapping[int, Facts],
    *,
    hull: Hull | None = None,
    together: bool = False,
    by: str = "score",
    on_progress: OnProgress | None = None,
) -> list[tuple[Facts, Symmetric | None]]:
    """Rows of the table: ranked ones with their symmetric cell; merged ones and failures last.

    ``done``: what became of each row, by index (``Relaxed`` as a dictionary). By formula as their
    run ranked them, or as they came, then score or energy; ``together``: all formulas by energy
    above the ``hull``. A formula of whose structures one has no share of votes (other people's)
    has no scores and goes by energy.
    """
    from pymatgen.core import Structure

    facts = [_facts(row, done.get(index), hull) for index, row in enumerate(rows)]
    good = [i for i in range(len(rows)) if not facts[i]["reason"]]
    good.sort(key=lambda i: facts[i]["energy_ev"])
    structures = {i: Structure.from_dict(done[i]["structure"]) for i in good}
    # Energies ascend: the first of a group, which stands for it, has the lowest.
    groups = {
        good[members[0]]: [good[member] for member in members]
        for members in group_duplicates([structures[i] for i in good])
    }
    for lead, members in groups.items():
        shares = [rows[i].share for i in members]
        total = None if None in shares else sum(s for s in shares if s is not None)
        drawn_by = sum((counts_of(rows[i].drawn_by) for i in members), Counter[str]())
        facts[lead] |= {"count": len(members), "share": total, "drawn_by": counted(drawn_by)}
    _score([facts[lead] for lead in groups], "e_hull_ev" if together else "energy_ev")
    found: list[tuple[Facts, Symmetric | None]] = []
    order = {} if together else _formulas(rows, facts)
    known = shipped()
    for rank, lead in enumerate(sorted(groups, key=_place(facts, order, by)), start=1):
        symmetric = symmetrise(structures[lead])
        facts[lead] |= {"rank": rank, "group": symbol_of(symmetric)}
        if known is not None:
            facts[lead]["known"] = known.says(symmetric.structure)
        found.append((facts[lead], symmetric))
        for other in groups[lead][1:]:
            facts[other]["same_as"] = rank
        if on_progress is not None:
            on_progress("symmetrising", rank, len(groups))
    return found + [(facts[i], None) for i in range(len(rows)) if i not in groups]


def _score(leaders: Sequence[Facts], energy: str) -> None:
    """Give the structures of each formula their scores, where all have a share and an energy."""
    for formula in {one["formula"] for one in leaders}:
        same = [one for one in leaders if one["formula"] == formula]
        if all(one["share"] is not None and one[energy] is not None for one in same):
            values = scores([one[energy] for one in same], [one["share"] for one in same])
            for one, value in zip(same, values, strict=True):
                one["score_ev"] = value


def _formulas(rows: Sequence[Row], facts: Sequence[Facts]) -> dict[str, int]:
    """Place of each formula: of its best rank in a run, without one of its first structure."""
    best: dict[str, tuple[float, int]] = {}
    for index, (row, one) in enumerate(zip(rows, facts, strict=True)):
        here = row.rank or math.inf, index
        best[one["formula"]] = min(best.get(one["formula"], here), here)
    return {name: place for place, name in enumerate(sorted(best, key=lambda name: best[name]))}


def _place(
    facts: Sequence[Facts], order: Mapping[str, int], by: str
) -> Callable[[int], tuple[float, float, float]]:
    """The key that sorts by what ``rank_rows`` says; ``order`` of the formulas, empty: by energy
    above a hull, all together. What has no place in a hull comes last."""

    def place(index: int) -> tuple[float, float, float]:
        one = facts[index]
        value = one["energy_ev"] if order else one["e_hull_ev"]
        if by == "score" and one["score_ev"] is not None:
            value = one["score_ev"]
        formula = order.get(one["formula"], 0)
        return formula, math.inf if value is None else value, one["energy_ev"]

    return place


def _facts(row: Row, done: Facts | None, hull: Hull | None) -> Facts:
    facts: Facts = {"rank": None, "id": row.id, "source": row.source, "formula": ""}
    facts |= {"group_before": "", "group": "", "count": None, "same_as": None, "file": ""}
    facts |= {"drawn_by": row.drawn_by}
    if row.entry is None or done is None:
        return facts | {"reason": row.reason or "cannot be read"}
    before = structure_of(row)
    formula = before.composition.reduced_formula
    above: Facts = {}
    if hull is not None:
        value, why = (None, "") if done["reason"] else hull.above(formula, done["energy"])
        above = {
            "e_hull_ev": value,
            "e_hull_reason": why,
            "hull_phases": "" if value is None else hull.phases(formula),
            "reference": hull.reference,
        }
    return facts | {
        "formula": formula,
        "group_before": "" if done["reason"] else symbol_of(symmetrise(before)),
        "energy_ev": done["energy"],
        "energy_before_ev": done["start_energy"],
        **above,
        "share": row.share,
        "score_ev": None,
        "rmsd_ang": done["rmsd"],
        "volume_change": done["volume_change"],
        "steps": done["steps"],
        "converged": done["converged"],
        "reason": done["reason"],
    }
