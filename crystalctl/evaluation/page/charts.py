"""Numbers -> small SVG charts that take their colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crystalctl.evaluation.page.markup import compact, text

Array = NDArray[np.float64]

WIDTH, HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 42
PATTERN_WIDTH, PATTERN_HEIGHT = 400, 140


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within [low, high], close to ``about`` of them."""
    span = max(high - low, 1e-12)
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _frame(
    body: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str, str]
) -> str:
    """A chart with its axes; ``labels``: title for readers, x axis, y axis."""
    title, x_label, y_label = labels
    parts = []
    for value in ticks(*y, about=5) if y[1] > y[0] else ():
        place = _down(value, y)
        parts.append(f'<path class="grid" d="M{_LEFT} {place:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{place + 4:.1f}" class="end">{compact(value)}')
        parts.append("</text>")
    bottom = HEIGHT - _BOTTOM
    for value in ticks(*x, about=5):
        place = _across(value, x)
        parts.append(f'<path class="tick" d="M{place:.1f} {bottom}v5"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 18}" class="mid">{compact(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>{body}')
    middle, centre = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" class="mid label">{text(x_label)}</text>')
    parts.append(
        f'<text transform="translate(12 {centre}) rotate(-90)" class="mid label">{text(y_label)}'
        "</text>"
    )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _across(value: float, span: tuple[float, float]) -> float:
    return _LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - _LEFT - _RIGHT)


def _down(value: float, span: tuple[float, float]) -> float:
    bottom = HEIGHT - _BOTTOM
    return bottom - (value - span[0]) / (span[1] - span[0]) * (bottom - _TOP)


def scatter(
    points: Sequence[tuple[float, float, str]], *, title: str, x_label: str, y_label: str
) -> str:
    """Dots (x, y, what the reader sees on hovering)."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x, y = _padded(min(xs), max(xs), 0.04), _padded(min(ys), max(ys), 0.08)
    size = 5.0 if len(points) <= 100 else 3.0
    dots = "".join(
        f'<circle class="dot" cx="{_across(a, x):.1f}" cy="{_down(b, y):.1f}" r="{size}">'
        f"<title>{text(label)}</title></circle>"
        for a, b, label in points
    )
    return _frame(dots, x, y, (title, x_label, y_label))


def histogram(values: Sequence[float], *, title: str, x_label: str) -> str:
    """Counts in even bins, one for each number that a reader could tell apart."""
    array = np.asarray(values, dtype=float)
    n_bins = int(min(30, max(6, 2 * math.sqrt(len(array)))))
    low, high = _padded(float(array.min()), float(array.max()), 0.02)
    counts, edges = np.histogram(array, bins=n_bins, range=(low, high))
    x, y = (low, high), (0.0, max(1.0, float(counts.max()) * 1.08))
    bars = []
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            left, right, top = _across(start, x) + 1, _across(end, x) - 1, _down(count, y)
            bars.append(
                f'<rect class="column" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{HEIGHT - _BOTTOM - top:.1f}" rx="2">'
                f"<title>{compact(start)} to {compact(end)}: {count}</title></rect>"
            )
    return _frame("".join(bars), x, y, (title, x_label, "structures"))


def lengths(values: dict[str, Sequence[float]], *, title: str, x_label: str) -> str:
    """One row of ticks per name (a, b, c): where every structure lies, and the median."""
    everything = [v for row in values.values() for v in row]
    x = _padded(min(everything), max(everything), 0.03)
    height = HEIGHT - _BOTTOM - _TOP
    parts = []
    for k, (name, row) in enumerate(values.items()):
        middle = _TOP + height * (k + 0.5) / len(values)
        half = height / len(values) * 0.3
        parts.append(f'<text x="{_LEFT - 12}" y="{middle + 4:.1f}" class="end label">{text(name)}')
        parts.append(f'</text><path class="grid" d="M{_LEFT} {middle:.1f}H{WIDTH - _RIGHT}"/>')
        strokes = "".join(
            f"M{_across(v, x):.1f} {middle - half:.1f}v{2 * half:.1f}" for v in sorted(set(row))
        )
        parts.append(f'<path class="strip" d="{strokes}"/>')
        median = float(np.median(np.asarray(row)))
        parts.append(
            f'<circle class="dot" cx="{_across(median, x):.1f}" cy="{middle:.1f}" r="5">'
            f"<title>median {compact(median)}</title></circle>"
        )
    return _frame("".join(parts), x, (0.0, 0.0), (title, x_label, ""))


def bars(rows: Sequence[tuple[str, float | None, bool]], *, title: str) -> str:
    """Horizontal bars with their values: (name, value, is it the best)."""
    shown = [abs(v) for _, v, _ in rows if v is not None and math.isfinite(v)]
    most = max([*shown, 1e-12])
    step, left, right = 26, 150, 330
    parts = []
    for k, (name, value, best) in enumerate(rows):
        y = 6 + k * step
        short = name if len(name) <= 20 else f"{name[:19]}…"
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" class="end"><title>{text(name)}</title>'
            f"{text(short)}</text>"
        )
        length = 0.0
        if value is not None and math.isfinite(value):
            length = abs(value) / most * (right - left)
            kind = "column best" if best else "column other"
            parts.append(
                f'<rect class="{kind}" x="{left}" y="{y}" width="{max(length, 1.5):.1f}" '
                'height="18" rx="2"/>'
            )
        parts.append(f'<text x="{left + length + 8:.1f}" y="{y + 14}">{compact(value)}</text>')
    height = 12 + step * len(rows)
    return (
        f'<svg class="chart bars" viewBox="0 0 400 {height}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>'
    )


def curve(two_theta: Array, values: Array, span: tuple[float, float]) -> str:
    """Path data of a pattern over ``span`` degrees, without points that lie on a line."""
    top, bottom = 6.0, PATTERN_HEIGHT - 34.0
    xs = np.round(8 + (two_theta - span[0]) / (span[1] - span[0]) * (PATTERN_WIDTH - 16), 1)
    ys = np.round(bottom - np.clip(values, -0.05, 1.05) * (bottom - top), 1)
    kept = [0]
    for k in range(1, len(xs) - 1):
        i = kept[-1]
        run = xs[k + 1] - xs[i]
        on_line = ys[i] + (ys[k + 1] - ys[i]) * (xs[k] - xs[i]) / run if run else ys[k]
        if abs(on_line - ys[k]) > 0.3 or (ys[k] != ys[i] and abs(ys[k] - ys[k - 1]) > 0.5):
            kept.append(k)
    kept.append(len(xs) - 1)
    return "M" + "L".join(f"{xs[k]:g} {ys[k]:g}" for k in kept)


def pattern_axis(span: tuple[float, float]) -> str:
    """The axis that all patterns of a page share (2θ in degrees)."""
    bottom = PATTERN_HEIGHT - 34
    parts = [f'<path class="axis" d="M8 {bottom}H{PATTERN_WIDTH - 8}"/>']
    for value in ticks(*span, about=6):
        place = 8 + (value - span[0]) / (span[1] - span[0]) * (PATTERN_WIDTH - 16)
        parts.append(f'<path class="tick" d="M{place:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 17}" class="mid">{compact(value)}</text>')
    parts.append(
        f'<text x="{PATTERN_WIDTH - 8}" y="{PATTERN_HEIGHT - 2}" class="end label">2θ (°)</text>'
    )
    return "".join(parts)


def pattern(path: str, *, title: str, measured: bool) -> str:
    """A simulated pattern above the shared axis, over the shared measured one."""
    under = '<use href="#measured"/>' if measured else ""
    return (
        f'<svg class="chart pattern" viewBox="0 0 {PATTERN_WIDTH} {PATTERN_HEIGHT}" role="img" '
        f'aria-label="{text(title)}"><use href="#angles"/>{under}'
        f'<path class="simulated" d="{path}"/></svg>'
    )


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    extra = (high - low) * share or max(abs(high) * 0.05, 0.5)
    return low - extra, high + extra
