"""Text -> HTML: everything from outside is escaped here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

DASH = "–"


def text(value: object) -> str:
    """Any value as text for an element or a quoted attribute."""
    return escape(str(value), quote=True)


def number(value: float | None, digits: int) -> str:
    """A number with ``digits`` decimals and a true minus sign; a dash for None and not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    shown = f"{value:.{digits}f}"
    if float(shown) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", "−")


def compact(value: float | None) -> str:
    """A number of unknown size with four figures."""
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def formula(value: str) -> str:
    """A formula with its numbers as subscripts, ones left out."""
    value = re.sub(r"(?<=[A-Za-z\)\]])1(?![\d.])", "", value)
    return re.sub(r"(?<=[A-Za-z\)\]])(\d+(?:\.\d+)?)", r"<sub>\1</sub>", text(value))


def space_group(symbol: str, group_number: int | None = None) -> str:
    """A Hermann-Mauguin symbol with bars above and screw axes below, and its number."""
    if not symbol:
        return DASH
    symbol = _with_screws(symbol, group_number)
    html = re.sub(r"-(\d)", r'<span class="bar">\1</span>', text(symbol))
    html = re.sub(r"_(\d)", r"<sub>\1</sub>", html)
    return html + (f' <span class="dim">{group_number}</span>' if group_number else "")


def _with_screws(symbol: str, group_number: int | None) -> str:
    """P42/mnm -> P4_2/mnm: only the number tells P321 (3 2 1) from a screw axis."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    if "_" in symbol or group_number is None or not 1 <= group_number <= 230:
        return symbol
    standard = str(sg_symbol_from_int_number(group_number))
    return standard if standard.replace("_", "") == symbol else symbol


def file_link(name: str) -> str:
    """A link to a file beside the page; never another scheme, whatever the name is."""
    return f'<a href="./{text(quote(name))}">{text(name)}</a>' if name else DASH


def cell(html: str, *, sort: float | str | None = None, kind: str = "") -> str:
    """A table cell; ``sort`` is what the column is sorted by (nothing goes last)."""
    key = "" if sort is None or (isinstance(sort, float) and not math.isfinite(sort)) else sort
    style = f' class="{kind}"' if kind else ""
    return f'<td{style} data-v="{text(key)}">{html}</td>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names (plain) and values (HTML)."""
    return f'<dl class="facts">{"".join(_fact(name, html) for name, html in pairs)}</dl>'


def _fact(name: str, html: str) -> str:
    return f"<div><dt>{text(name)}</dt><dd>{html}</dd></div>"
