"""The table of relaxed or ranked structures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from crystalctl.analysis.scoring import TEMPERATURE_EV
from crystalctl.cli import ui

if TYPE_CHECKING:
    from crystalctl.relaxing import Relaxation

_SHOWN = 50
_TEXT = ("formula", "before", "group", "known", "drawn by")


def show_relaxation(result: Relaxation) -> None:
    """Ranked rows, what failed, and which energies these are."""
    from crystalctl.analysis.ranking import differing

    ranked = [row for row in result.rows if row["rank"] is not None]
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ["rank", "formula", *(["before"] if result.moved else []), "group", "eV/atom"]
    names += ["E hull"] if result.reference else []
    names += ["score"] if _scored(ranked) else []
    names += ["gained", "moved Å"] if result.moved else []
    names += ["count"]
    tell = differing(row["drawn_by"] for row in ranked)
    words = ["known"] if any(row.get("known") for row in ranked) else []
    words += ["drawn by"] if tell else []
    for name in [*names, *words]:
        table.add_column(name, justify="left" if name in _TEXT else "right", no_wrap=True)
    for row in ranked[:_SHOWN]:
        cells = _cells(row, result, scored=_scored(ranked))
        cells += [row.get(name.replace(" ", "_"), "") for name in words]
        table.add_row(*(Text(str(cell)) for cell in cells))
    console = ui.stdout()
    ui.print_table(console, table)
    if len(ranked) > _SHOWN:
        verb = "relaxed" if result.moved else "ranked"
        console.print(f"... and {len(ranked) - _SHOWN} more in {verb}.csv")
    failed = [row for row in result.rows if row["reason"]]
    open_ended = sum(1 for row in result.rows if not row["reason"] and not row["converged"])
    loose = f", {open_ended} not converged" if result.moved else ""
    console.print(
        f"{len(result.rows)} structures: {len(ranked)} after merging, {len(failed)} failed{loose}; "
        f"energies: {result.calculator}",
        soft_wrap=True,
    )
    ui.explain_known(ranked)
    if _scored(ranked):
        console.print(Text(_order(result)), soft_wrap=True)
    if result.reference:
        console.print(Text(f"E hull (eV/atom) above {result.reference}"), soft_wrap=True)
    for row in failed[:5]:
        console.print(Text(f"  {row['id']}: {row['reason']}"), soft_wrap=True)
    lacking = dict.fromkeys(row["e_hull_reason"] for row in ranked if row.get("e_hull_reason"))
    for reason in lacking:
        console.print(Text(f"  no E hull: {reason}"), soft_wrap=True)
    console.print(Text(f"written to {result.folder}"), soft_wrap=True)


def _order(result: Relaxation) -> str:
    """What the score is, and whether it made the order."""
    what = f"{TEMPERATURE_EV:g} eV/atom higher for a proposal e times less likely"
    kind = "E hull" if result.together else "energy"
    if result.by == "score":
        return f"ranked by score: {kind}, {what}; --rank-by energy leaves the proposals out"
    return f"ranked by {kind}; score: {what}"


def _scored(rows: list[dict[str, Any]]) -> bool:
    return any(row["score_ev"] is not None for row in rows)


def _cells(row: dict[str, Any], result: Relaxation, *, scored: bool) -> list[Any]:
    cells = [row["rank"], row["formula"], *([row["group_before"]] if result.moved else [])]
    cells += [row["group"], f"{row['energy_ev']:.4f}"]
    if result.reference:
        above = row["e_hull_ev"]
        cells.append("-" if above is None else f"{above:.4f}")
    if scored:
        cells.append("-" if row["score_ev"] is None else f"{row['score_ev']:.4f}")
    if result.moved:
        gained = row["energy_before_ev"] - row["energy_ev"]
        cells += [f"{gained:.4f}", f"{row['rmsd_ang']:.2f}"]
    return [*cells, row["count"]]
