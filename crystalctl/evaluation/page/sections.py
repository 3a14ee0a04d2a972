"""The sections of a report: header, comparison, 3-D view, table, charts, cards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from crystalctl.evaluation.page import charts, scene
from crystalctl.evaluation.page.markup import (
    DASH,
    cell,
    compact,
    facts,
    file_link,
    formula,
    number,
    space_group,
    text,
)

if TYPE_CHECKING:
    from crystalctl.evaluation.report import Entry, Metric, Report

_FEW = 5
"""Fewer structures than this have no distribution worth a chart."""


def intro(report: Report) -> str:
    """Counts, the command and notes."""
    n = len(report.entries)
    counts = []
    if report.n_samples is not None:
        counts.append(f"{report.n_samples} samples")
    if report.entries:
        counts.append(f"{n} structure{'s' if n != 1 else ''}")
    if report.set_aside:
        counts.append(f"{sum(report.set_aside.values())} set aside")
    if report.measured is not None:
        counts.append(f"compared with {report.measured.name}")
    parts = [f'<p class="lead">{text(" · ".join(counts))}</p>'] if counts else []
    if report.command:
        parts.append(f'<code class="command">{text(report.command)}</code>')
    if report.notes:
        notes = "".join(f"<li>{text(note)}</li>" for note in report.notes)
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "".join(parts)


def comparison(report: Report) -> str:
    """Metrics of one or several runs as a table, and bars where there are several."""
    if not (report.runs and report.metrics):
        return ""
    head = "".join(f"<th>{_head(text(run.name))}</th>" for run in report.runs)
    rows = []
    for metric in report.metrics:
        best = _best(report, metric)
        values = [run.values.get(metric.name) for run in report.runs]
        cells = "".join(
            cell(compact(value), kind="best" if k in best else "") for k, value in enumerate(values)
        )
        arrow = {"higher": " ↑", "lower": " ↓"}.get(metric.better, "")
        rows.append(
            f'<tr><td class="left" title="{text(metric.meaning)}">{text(metric.name)}'
            f'<span class="dim">{arrow}</span></td>{cells}</tr>'
        )
    shown = ""
    if len(report.runs) > 1:
        pictures = "".join(_bars(report, metric) for metric in report.metrics)
        shown = f'<div class="charts few">{pictures}</div>'
    title = "Comparison" if len(report.runs) > 1 else "Metrics"
    return (
        f'<section class="panel" id="comparison"><h2>{title}</h2><div class="over"><table '
        f'class="plain"><thead><tr><th class="left">{_head("metric")}</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{shown}</section>"
    )


def _head(html: str) -> str:
    return f"<span>{html}</span>"


def _best(report: Report, metric: Metric) -> set[int]:
    """Columns with the best value; none where there is nothing to compare."""
    values = {
        k: value
        for k, run in enumerate(report.runs)
        if (value := run.values.get(metric.name)) is not None and math.isfinite(value)
    }
    if len(values) < 2 or metric.better not in ("higher", "lower"):
        return set()
    target = max(values.values()) if metric.better == "higher" else min(values.values())
    return {k for k, value in values.items() if value == target}


def _bars(report: Report, metric: Metric) -> str:
    best = _best(report, metric)
    rows = [
        (run.name, run.values.get(metric.name), k in best or not metric.better)
        for k, run in enumerate(report.runs)
    ]
    return f"<div><h3>{text(metric.name)}</h3>{charts.bars(rows, title=metric.name)}</div>"


def viewer(report: Report, ranks: Sequence[int]) -> str:
    """The interactive view of one structure, filled by the script."""
    if not ranks:
        return ""
    buttons = "".join(
        f'<button type="button" data-do="{what}" title="{title}">{label}</button>'
        for what, label, title in (
            ("before", "‹", "previous structure"),
            ("next", "›", "next structure"),
            ("in", "+", "zoom in"),
            ("out", "−", "zoom out"),
            ("a", "along a", "look along a"),
            ("b", "along b", "look along b"),
            ("c", "along c", "look along c"),
            ("reset", "reset", "as at the beginning"),
        )
    )
    switches = "".join(
        f'<button type="button" data-show="{what}" aria-pressed="{state}">{what}</button>'
        for what, state in (("labels", "false"), ("bonds", "true"), ("cell", "true"))
    )
    return (
        '<section class="panel viewer" id="structure"><div class="stage">'
        '<div class="legend" id="legend"></div><canvas id="view" tabindex="0" role="img"></canvas>'
        f'<div class="tools">{buttons}{switches}</div>'
        '<p class="hint below">Drag to turn, click then scroll to zoom; '
        "choose a structure in the table.</p></div>"
        '<div class="chosen" id="chosen" aria-live="polite"></div></section>'
    )


Column = tuple[str, str, list[tuple[str, float | str | None]]]
"""Name, kind of alignment, and for each row what is shown (HTML) and what is sorted by."""


def table(report: Report, drawn: set[int], most: int) -> str:
    """The sortable table of all structures, up to ``most`` rows."""
    if not report.entries:
        empty = "<h2>Ranked structures</h2><p>No possible structure.</p>"
        return f'<section class="panel" id="structures">{empty}</section>'
    entries = list(report.entries[:most])
    columns = _columns(entries, drawn)
    head = "".join(
        f'<th class="{kind}"{_sorted(k)} scope="col">'
        f'<button type="button">{text(name)}</button></th>'
        for k, (name, kind, _) in enumerate(columns)
    )
    rows = []
    for k, entry in enumerate(entries):
        cells = "".join(
            cell(values[k][0], sort=values[k][1], kind=kind) for _, kind, values in columns
        )
        rows.append(f'<tr data-rank="{entry.rank}">{cells}</tr>')
    left = len(report.entries) - len(entries)
    more = f'<p class="hint">{left} more in {text(report.files)}</p>' if left else ""
    order = f"Ranked by {report.order}. " if report.order else ""
    search = ""
    if len(entries) > 10:
        search = '<p class="screen"><input type="search" id="filter" placeholder="filter rows"></p>'
    return (
        '<section class="panel" id="structures"><h2>Ranked structures</h2>'
        f'<p class="hint">{text(order)}<span class="screen">Click a heading to sort by it.</span>'
        f'</p>{search}<div class="over"><table id="ranked"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}</section>"
    )


def _sorted(column: int) -> str:
    return ' aria-sort="ascending"' if column == 0 else ""


def _columns(entries: Sequence[Entry], drawn: set[int]) -> list[Column]:
    def numbers(name: str, values: Sequence[float | None], digits: int) -> Column:
        return name, "", [(number(v, digits), v) for v in values]

    def words(name: str, values: Sequence[str]) -> Column:
        return name, "left", [(text(v) if v else DASH, v) for v in values]

    found: list[Column] = [("rank", "", [(str(e.rank), e.rank) for e in entries])]
    if drawn:
        found.append(("picture", "left", [(_thumb(e.rank, drawn), e.rank) for e in entries]))
    found.append(("formula", "left", [(formula(e.formula), e.formula) for e in entries]))
    groups: list[tuple[str, float | str | None]] = [
        (space_group(e.space_group, e.space_group_number), e.space_group_number) for e in entries
    ]
    found.append(("space group", "left", groups))
    for k, (name, digits) in enumerate(
        [("a", 2), ("b", 2), ("c", 2), ("α", 1), ("β", 1), ("γ", 1)]
    ):
        found.append(numbers(name, [e.cell[k] if e.cell else None for e in entries], digits))
    found.append(numbers("Å³/atom", [e.cell[6] if e.cell else None for e in entries], 2))
    found.append(numbers("g/cm³", [e.density for e in entries], 2))
    sizes = [None if e.structure is None else len(e.structure) for e in entries]
    found.append(numbers("atoms", sizes, 0))
    optional = [
        numbers("merged", [e.count for e in entries], 0),
        numbers("XRD", [e.xrd_similarity for e in entries], 3),
        numbers("E (eV/atom)", [e.energy_ev for e in entries], 3),
        numbers("E hull", [e.e_hull_ev for e in entries], 3),
        numbers("moved (Å)", [e.moved_ang for e in entries], 3),
    ]
    found += [column for column in optional if any(key is not None for _, key in column[2])]
    if any(e.group_before for e in entries):
        found.append(("before", "left", [(space_group(e.group_before), None) for e in entries]))
    for name in dict.fromkeys(name for e in entries for name in e.extra):
        values = [e.extra.get(name) for e in entries]
        if any(isinstance(v, str) for v in values):
            found.append(words(name, ["" if v is None else str(v) for v in values]))
        else:
            found.append((name, "", [(compact(v), v) for v in values if not isinstance(v, str)]))
    if any(e.reason for e in entries):
        found.append(words("valid", [e.reason or "yes" for e in entries]))
    if any(e.file for e in entries):
        found.append(("file", "left", [(file_link(e.file), e.file) for e in entries]))
    return found


def _thumb(rank: int, drawn: set[int]) -> str:
    if rank not in drawn:
        return ""
    return (
        f'<svg class="thumb" viewBox="0 0 {scene.WIDTH} {scene.HEIGHT}" aria-hidden="true">'
        f'<use href="#p{rank}"/></svg>'
    )


def overview(report: Report) -> str:
    """Energy by rank, and how volumes and cell lengths are distributed."""
    valid = [e for e in report.entries if e.cell and not e.reason]
    found = []
    for title, axis, values in (
        ("Energy", "energy (eV/atom)", [(e, e.energy_ev) for e in valid]),
        ("Energy above the hull", "E above hull (eV/atom)", [(e, e.e_hull_ev) for e in valid]),
        ("Similarity to the pattern", "XRD similarity", [(e, e.xrd_similarity) for e in valid]),
    ):
        points = [(float(e.rank), v, _label(e, v)) for e, v in values if v is not None]
        if len(points) > 1:
            chart = charts.scatter(points, title=f"{title} by rank", x_label="rank", y_label=axis)
            found.append((f"{title} by rank", chart))
    if len(valid) >= _FEW:
        volumes = charts.histogram(
            [e.cell[6] for e in valid], title="Volume per atom", x_label="volume per atom (Å³)"
        )
        found.append(("Volume per atom", volumes))
        axes = charts.lengths(
            {name: [e.cell[k] for e in valid] for k, name in enumerate("abc")},
            title="Cell lengths",
            x_label="length (Å), a dot at the median",
        )
        found.append(("Cell lengths", axes))
    if not found:
        return ""
    inner = "".join(f"<div><h3>{text(name)}</h3>{chart}</div>" for name, chart in found)
    return (
        '<section class="panel" id="overview"><h2>Overview</h2>'
        f'<div class="charts">{inner}</div></section>'
    )


def _label(entry: Entry, value: float) -> str:
    return f"rank {entry.rank}: {entry.formula} {entry.space_group}, {value:.4g}"


def gallery(
    report: Report,
    drawn: Mapping[int, tuple[Entry, scene.Scene | None]],
    patterns: Mapping[int, str],
) -> str:
    """A card for each drawn structure: picture, facts, powder pattern."""
    if not drawn:
        return ""
    cards = "".join(_card(report, *pair, patterns.get(rank, "")) for rank, pair in drawn.items())
    key = ""
    if report.measured is not None and patterns:
        key = (
            '<p class="key"><span><i class="m"></i>measured</span>'
            "<span><i></i>simulated, cell scaled to fit</span></p>"
        )
    left = sum(1 for e in report.entries if e.structure is not None and not e.reason) - len(drawn)
    more = f'<p class="hint">The first {len(drawn)} are drawn, {left} more are in the table.</p>'
    return (
        f'<section id="pictures"><h2>Structures</h2>{more if left > 0 else ""}{key}'
        f'<div class="gallery">{cards}</div></section>'
    )


def _card(report: Report, entry: Entry, one: scene.Scene | None, path: str) -> str:
    a, b, c, alpha, beta, gamma, volume = entry.cell
    pairs = [
        ("a, b, c (Å)", " ".join(number(x, 3) for x in (a, b, c))),
        ("α, β, γ (°)", " ".join(number(x, 1) for x in (alpha, beta, gamma))),
        ("volume (Å³/atom)", number(volume, 2)),
        ("density (g/cm³)", number(entry.density, 2)),
        ("atoms in the cell", str(len(entry.structure))),
    ]
    if entry.count is not None:
        pairs.append(("samples merged", str(entry.count)))
    if entry.xrd_similarity is not None:
        scale = "" if entry.xrd_scale is None else f" at cell × {number(entry.xrd_scale, 3)}"
        pairs.append(("XRD similarity", f"{number(entry.xrd_similarity, 3)}{scale}"))
    if entry.energy_ev is not None:
        pairs.append(("energy (eV/atom)", number(entry.energy_ev, 3)))
    if entry.e_hull_ev is not None:
        pairs.append(("above hull (eV/atom)", number(entry.e_hull_ev, 3)))
    if entry.group_before:
        pairs.append(("group before relaxing", space_group(entry.group_before)))
    if entry.moved_ang is not None:
        pairs.append(("moved (Å)", number(entry.moved_ang, 3)))
    if entry.file:
        pairs.append(("file", file_link(entry.file)))
    drawn = f'<p class="hint">{len(entry.structure)} atoms: not drawn.</p>'
    turn = ""
    if one is not None:
        size = f'viewBox="0 0 {scene.WIDTH} {scene.HEIGHT}"'
        label = f"{entry.formula} {entry.space_group}"
        drawn = (
            f'<svg class="picture" {size} role="img" aria-label="{text(label)}">'
            f"{scene.picture(one, f'p{entry.rank}')}</svg>"
        )
        turn = f'<button type="button" class="turn screen" data-rank="{entry.rank}">turn</button>'
    plot = ""
    if path:
        title = f"powder pattern of rank {entry.rank}"
        plot = charts.pattern(path, title=title, measured=report.measured is not None)
    name = f'<span class="dim">#{entry.rank}</span> {formula(entry.formula)}'
    group = space_group(entry.space_group, entry.space_group_number)
    return (
        f'<article class="card" id="card-{entry.rank}"><header><h3 class="title">{name} · {group}'
        f"</h3>{turn}</header>{drawn}{facts(pairs)}{plot}</article>"
    )


def aside(report: Report) -> str:
    """Why samples were set aside."""
    if not report.set_aside:
        return ""
    rows = "".join(
        f"<tr>{cell(text(reason), kind='left')}{cell(str(count))}</tr>"
        for reason, count in report.set_aside.items()
    )
    return (
        '<section class="panel" id="aside"><h2>Set aside</h2><p class="hint">Samples that '
        'cannot be structures; they are kept with the others.</p><table class="plain narrow">'
        f"<tbody>{rows}</tbody></table></section>"
    )


def footer(report: Report, patterns: bool) -> str:
    """What is shown and how it was computed."""
    parts = ["Cells are conventional ones where a space group was found. Elements in Jmol colours."]
    if patterns:
        value = report.measured.wavelength if report.measured else report.wavelength
        parts.append(
            f"Powder patterns: kinematic intensities (pymatgen), wavelength {value:.5f} Å, "
            "2θ in degrees, highest peak 1, without texture and thermal motion."
        )
    if report.measured is not None:
        parts.append(
            "XRD similarity: cross-correlation tolerant to peak shifts (de Gelder et al., J. "
            "Comput. Chem. 22, 273, 2001) on the axis ln q, at the best scale of the cell "
            "within ±5 %; 1 is equal. The measured curve is shown without its background."
        )
    return "".join(f"<p>{text(part)}</p>" for part in parts)
