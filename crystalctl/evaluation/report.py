"""``report.html``: ranked structures, pictures, patterns and metrics on one page, without network.

The page carries its style, script and data; text from outside is escaped. Only the first
``pictures`` structures are drawn and get a pattern; the table goes to ``MAX_ROWS``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalctl.analysis.packed import Packed
from crystalctl.analysis.validity import lengths_angles
from crystalctl.evaluation.page import charts, scene, sections
from crystalctl.evaluation.page.markup import text

if TYPE_CHECKING:
    from crystalctl.analysis.powder import Pattern

MAX_PICTURES = 50
MAX_ROWS = 1000


@dataclass(frozen=True)
class Entry:
    """One structure of a report; what is not known stays None or empty, and is not shown.

    ``rank``: unique in the report. ``structure``: pymatgen Structure, ``Packed`` or None.
    ``reason``: why it is not a valid structure, empty for a valid one. Energies in eV per atom;
    ``moved_ang``: RMSD of relaxation in Å; ``group_before``: space group before it. ``extra``:
    further columns, name -> number or text.
    """

    rank: int
    structure: Any
    formula: str
    space_group: str = ""
    space_group_number: int | None = None
    file: str = ""
    count: int | None = None
    reason: str = ""
    energy_ev: float | None = None
    e_hull_ev: float | None = None
    group_before: str = ""
    moved_ang: float | None = None
    xrd_similarity: float | None = None
    xrd_scale: float | None = None
    extra: Mapping[str, float | str | None] = field(default_factory=dict)

    @cached_property
    def cell(self) -> tuple[float, ...]:
        """a, b, c (Å), α, β, γ (degrees), volume per atom (Å³); empty without a structure."""
        if self.structure is None:
            return ()
        matrix = np.asarray(getattr(self.structure.lattice, "matrix", self.structure.lattice))
        volume = abs(float(np.linalg.det(matrix)))
        return (*lengths_angles(matrix), volume / len(self.structure))

    @property
    def opened(self) -> Any:
        """The pymatgen Structure."""
        return self.structure.structure if isinstance(self.structure, Packed) else self.structure

    @property
    def density(self) -> float | None:
        """In g/cm³."""
        return None if self.structure is None else float(self.opened.density)


@dataclass(frozen=True)
class Metric:
    """A row of the comparison; ``better``: "higher", "lower" or "" where neither is."""

    name: str
    better: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Run:
    """A column of the comparison: metric name -> value, None where it could not be computed."""

    name: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Report:
    """All that a page shows. ``notes``: sentences under the title; ``wavelength`` in Å.

    ``set_aside``: reason -> number of impossible samples. ``order``: what the rank goes by.
    """

    title: str
    entries: Sequence[Entry] = ()
    command: str = ""
    notes: Sequence[str] = ()
    order: str = ""
    set_aside: Mapping[str, int] = field(default_factory=dict)
    n_samples: int | None = None
    measured: Pattern | None = None
    wavelength: float = 1.54184
    metrics: Sequence[Metric] = ()
    runs: Sequence[Run] = ()
    pictures: int = MAX_PICTURES
    files: str = "summary.csv"
    """Where all rows are, for those the table leaves out."""


def write_report(path: Path | str, report: Report) -> None:
    """Write the page to a file, whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(page_html(report), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def page_html(report: Report) -> str:
    """The page as one string."""
    shown = [e for e in report.entries if e.structure is not None and not e.reason]
    drawn = _drawn(shown[: report.pictures])
    span = _span(report)
    patterns = {rank: _pattern(report, entry, span) for rank, (entry, _) in drawn.items()}
    patterns = {rank: path for rank, path in patterns.items() if path}
    elements = sorted({z for _, one in drawn.values() if one for z in one.species})
    parts = {
        "title": text(report.title),
        "heading": text(report.title),
        "style": _asset("page.css") + scene.bond_styles(elements),
        "script": _asset("page.js"),
        "defs": scene.gradients(elements) + _shared(report, span, bool(patterns)),
        "intro": sections.intro(report),
        "sections": "\n".join(
            [
                sections.comparison(report),
                sections.viewer(report, [r for r, (_, one) in drawn.items() if one]),
                sections.table(report, {r for r, (_, one) in drawn.items() if one}, MAX_ROWS),
                sections.overview(report),
                sections.gallery(report, drawn, patterns),
                sections.aside(report),
            ]
        ),
        "footer": sections.footer(report, bool(patterns)),
        "data": _data(drawn, elements),
    }
    # In one pass, so that braces in the texts of users are never taken for places.
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m.group(1)], _asset("page.html"))


def _drawn(entries: Sequence[Entry]) -> dict[int, tuple[Entry, scene.Scene | None]]:
    return {entry.rank: (entry, scene.scene_of(entry.opened)) for entry in entries}


def _span(report: Report) -> tuple[float, float]:
    if report.measured is not None:
        angles = report.measured.two_theta
        return float(angles[0]), float(angles[-1])
    # About the same lattice spacings whatever the wavelength.
    return 5.0, float(np.degrees(2 * np.arcsin(min(0.99, report.wavelength / 1.54184 * 0.6428))))


def _pattern(report: Report, entry: Entry, span: tuple[float, float]) -> str:
    """Path of the simulated pattern, of the cell scaled to the measured one; empty without."""
    from crystalctl.analysis.diffraction import profile, simulate

    structure = entry.opened
    if report.measured is not None and entry.xrd_scale is not None:
        structure = structure.copy()
        structure.scale_lattice(structure.volume * entry.xrd_scale**3)
    wavelength = report.measured.wavelength if report.measured else report.wavelength
    sticks = simulate(structure, wavelength, upto_deg=span[1])
    if not len(sticks.two_theta):
        return ""
    grid = np.linspace(*span, 3 * charts.PATTERN_WIDTH)
    width = max(0.2, (span[1] - span[0]) / 250)
    return charts.curve(grid, profile(sticks, grid, fwhm_deg=width), span)


def _shared(report: Report, span: tuple[float, float], patterns: bool) -> str:
    """What every pattern of the page uses: the axis and the measured curve."""
    if not patterns:
        return ""
    inner = f'<g id="angles" class="chart">{charts.pattern_axis(span)}</g>'
    if report.measured is not None:
        grid, peaks = report.measured.peaks()
        even = np.linspace(grid[0], grid[-1], 2 * charts.PATTERN_WIDTH)
        near = np.clip(np.searchsorted(grid, even), 0, len(grid) - 1)
        inner += f'<path id="measured" d="{charts.curve(even, peaks[near], span)}"/>'
    return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{inner}</defs></svg>'


def _data(drawn: Mapping[int, tuple[Entry, scene.Scene | None]], elements: Sequence[int]) -> str:
    from pymatgen.core import Element

    value = {
        "elements": {
            str(z): {
                "symbol": Element.from_Z(z).symbol if z else "?",
                "colour": scene.colour(z),
                "radius": round(scene.radius(z), 3),
            }
            for z in elements
        },
        "scenes": [{"rank": rank, **one.plain()} for rank, (_, one) in drawn.items() if one],
    }
    # A script element ends at the first "</", also within a string.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (resources.files("crystalctl.evaluation.page") / name).read_text(encoding="utf-8")
