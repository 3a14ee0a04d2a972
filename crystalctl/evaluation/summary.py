"""Facts of all structures of a run (and a reference) -> its aggregates, as plain JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crystalctl.analysis.comparing import Compared
from crystalctl.analysis.described import Described
from crystalctl.evaluation.benchmarks import Benchmark
from crystalctl.evaluation.generation import (
    coverage,
    jensen_shannon,
    novelty,
    share,
    templates,
    wasserstein,
)
from crystalctl.evaluation.metrics import Gate, match_rate
from crystalctl.evaluation.pairing import Pairing
from crystalctl.evaluation.prediction import corrected_rmse, metre
from crystalctl.evaluation.stability import METASTABLE_EV, stable_rate, sun_rate

Distances = Mapping[tuple[int, int], float]
ENERGIES = ("energy_per_atom", "formation_energy_per_atom")
"""Columns, eV/atom, whose distributions are compared where both sides have them."""
HULL = ("e_above_hull", "energy_above_hull")


@dataclass(frozen=True)
class Facts:
    """A set of structures: ``described`` row by row, and its numeric columns by name."""

    described: Sequence[Described]
    labels: Sequence[Mapping[str, float | None]]

    def column(self, name: str, rows: Sequence[int] | None = None) -> list[float]:
        """The values of a column that are there."""
        chosen = range(len(self.labels)) if rows is None else rows
        values = [self.labels[row].get(name) for row in chosen]
        return [v for v in values if v is not None and v == v]


def validity(facts: Facts) -> dict[str, Any]:
    """Counts, validity rates and the reasons of what failed."""
    rows = facts.described
    checked = all(one.comp_valid is not None for one in rows if not one.reason)
    return {
        "n_structures": len(rows),
        "n_readable": sum(not one.reason for one in rows),
        "struct_valid": share([one.struct_valid for one in rows]),
        "comp_valid": share([one.comp_valid is True for one in rows]) if checked else None,
        "valid": share([one.valid for one in rows]) if checked else None,
        "fingerprints": all(one.with_site for one in rows if not one.reason),
    }


def prediction(
    pairing: Pairing,
    distances: Distances,
    *,
    ours: Facts,
    theirs: Facts,
    counts: Sequence[int] = (),
    complete: bool = True,
) -> dict[str, Any]:
    """Match rate and RMSE for k = 1 and the best of k with each gate, METRe, cRMSE, top-1.

    k = 1 takes the predictions as given, more of them by rank. All references count;
    "where_predicted" leaves out those without a prediction.

    ``counts``: values of k beside 1 and all. ``complete``: whether ``distances`` has every pair of
    a prediction and a reference of one formula, which METRe needs.
    """
    most = max((len(rows) for rows in pairing.drawn), default=0)
    judged: dict[str, Any] = {
        "paired_by": pairing.how,
        "n_references": len(pairing.drawn),
        "n_without_prediction": sum(not rows for rows in pairing.drawn),
        "formula_overlap": pairing.overlap,
        "k_max": most,
    }
    orders = {
        f"k={k}": (pairing.drawn if k == 1 else pairing.ranked, k)
        for k in sorted({1, *counts, max(most, 1)})
    }
    if pairing.has_ranks:
        orders["top_1"] = (pairing.ranked, 1)
    there = [j for j, rows in enumerate(pairing.drawn) if rows]
    for name, (order, k) in orders.items():
        judged[name] = _match(order, distances, ours, theirs, k)
    if judged["n_without_prediction"]:
        judged["where_predicted"] = {
            name: _match([order[j] for j in there], distances, ours, theirs, k, there)
            for name, (order, k) in orders.items()
        }
    judged["metre"] = None
    if complete:
        best: dict[int, float] = {}
        for (_, j), value in distances.items():
            best[j] = min(value, best.get(j, value))
        judged["metre"] = asdict(metre([best.get(j) for j in range(len(pairing.drawn))]))
    return judged


def _match(
    order: Sequence[Sequence[int]],
    distances: Distances,
    ours: Facts,
    theirs: Facts,
    k: int,
    chosen: Sequence[int] | None = None,
) -> dict[str, Any]:
    owners = range(len(order)) if chosen is None else chosen
    table = [[distances.get((i, j)) for i in rows] for j, rows in zip(owners, order, strict=True)]
    valid = [[ours.described[i].valid for i in rows] for rows in order]
    truth = [theirs.described[j].valid for j in owners]
    known = all(one.comp_valid is not None for one in ours.described if not one.reason)
    gates: tuple[Gate, ...] = ("none", "both", "prediction") if known else ("none",)
    found: dict[str, Any] = {}
    for gate in gates:
        result = match_rate(table, k=k, gate=gate, prediction_valid=valid, reference_valid=truth)
        name = "ungated" if gate == "none" else f"gated_{gate}"
        found[name] = {"match_rate": result.match_rate, "rmse": result.rmse}
        found[name] |= {"n_matched": result.n_matched}
    found["crmse"] = corrected_rmse(table, k)
    return found


def generation(
    compared: Compared,
    *,
    ours: Facts,
    theirs: Facts | None,
    known: Facts | None,
    cutoffs: Benchmark,
) -> dict[str, Any]:
    """Distributions and coverage beside ``theirs``; uniqueness; novelty beside ``known``."""
    valid = [row for row, one in enumerate(ours.described) if one.valid]
    mine = [ours.described[row] for row in valid]
    found: dict[str, Any] = asdict(
        novelty(compared.first, None if known is None else compared.known)
    )
    found["templates"] = asdict(
        templates(
            [one.template for one in mine if one.template is not None],
            None if known is None else [o.template for o in known.described if o.template],
        )
    )
    found["n_groups"] = len({one.group for one in mine if one.group})
    if theirs is None:
        return found
    other = [one for one in theirs.described if not one.reason]
    found["wasserstein"] = {
        "density": wasserstein(_numbers(mine, "density"), _numbers(other, "density")),
        "n_elements": wasserstein(_numbers(mine, "n_elements"), _numbers(other, "n_elements")),
        **{name: wasserstein(ours.column(name, valid), theirs.column(name)) for name in ENERGIES},
    }
    found["jensen_shannon"] = {
        "space_group": jensen_shannon(
            [o.group for o in mine if o.group], [o.group for o in other if o.group]
        ),
        "wyckoff_freedom": jensen_shannon(
            [f for o in mine for f in o.freedoms], [f for o in other for f in o.freedoms]
        ),
    }
    covered = coverage(
        [(one.site, one.composition) for one in ours.described],
        [(one.site, one.composition) for one in theirs.described],
        cutoffs=cutoffs,
    )
    found["coverage"] = None if covered is None else asdict(covered)
    return found


def _numbers(rows: Sequence[Described], name: str) -> list[float]:
    return [float(v) for v in (getattr(one, name) for one in rows) if v is not None]


def stability(ours: Facts, compared: Compared, *, has_known: bool) -> dict[str, Any] | None:
    """Stable and S.U.N. rates from a column of energies above the hull; None without one."""
    name = next((n for n in HULL if ours.column(n)), None)
    if name is None:
        return None
    energies = [row.get(name) for row in ours.labels]
    found: dict[str, Any] = {
        "column": name,
        "stable": stable_rate(energies),
        "metastable": stable_rate(energies, METASTABLE_EV),
    }
    if has_known:
        rows = range(len(energies))
        unique = [compared.first.get(row) == row for row in rows]
        novel = [row in compared.first and row not in compared.known for row in rows]
        found["sun"] = sun_rate(energies, unique, novel)
        found["metastable_sun"] = sun_rate(energies, unique, novel, within_ev=METASTABLE_EV)
    return found


def reasons(texts: Sequence[str]) -> dict[str, int]:
    """Reason -> how many, the most frequent first; what follows the first colon is left out."""
    short = [text.removeprefix("not compared: ").split(":", 1)[0] for text in texts if text]
    return dict(Counter(short).most_common())
