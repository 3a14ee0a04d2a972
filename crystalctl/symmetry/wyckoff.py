"""Wyckoff positions: look-ups by name, and orbits of whole batches gathered from the table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from crystalctl.errors import InputError
from crystalctl.symmetry.groups import check_number
from crystalctl.symmetry.tables import LETTERS, tables

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from crystalctl.crystal.orbits import Orbits

_LABEL = re.compile(r"(\d*)\s*([a-zA])")


@dataclass(frozen=True)
class Position:
    """One Wyckoff position; ``row`` is its place in the table of all 1731."""

    row: int
    group: int
    letter: str
    multiplicity: int
    freedom: int
    site_symmetry: str

    @property
    def label(self) -> str:
        """Multiplicity and letter, such as ``4a``."""
        return f"{self.multiplicity}{self.letter}"


@cache
def position(row: int) -> Position:
    """The position of a table row 0..1730."""
    table = tables()
    return Position(
        row,
        int(table.group[row]),
        LETTERS[int(table.letter[row])],
        int(table.multiplicity[row]),
        int(table.freedom[row]),
        table.site_symbols[int(table.site_symmetry[row])],
    )


def positions(group: int) -> list[Position]:
    """All positions of a group by letter, so the general one is last.

    Raises ``InputError`` unless the group is 1..230.
    """
    check_number(group)
    first = tables().first_position
    return [position(row) for row in range(int(first[group - 1]), int(first[group]))]


def position_row(group: int, letter: str) -> int:
    """Table row of a Wyckoff letter of a group.

    ``4a`` is accepted for ``a`` and must then be right. Raises ``InputError`` naming the positions
    that exist.
    """
    there = positions(group)
    match = _LABEL.fullmatch(letter.strip())
    found = [p for p in there if match and p.letter == match[2]]
    if not found or (match and match[1] and int(match[1]) != found[0].multiplicity):
        symbol = tables().symbols[group - 1]
        raise InputError(
            f"group {group} ({symbol}) has no Wyckoff position {letter!r}",
            f"it has {', '.join(p.label for p in there)}",
        )
    return found[0].row


def parse_wyckoff(group: int, text: str) -> list[int]:
    """Table rows of a list such as ``4a,4b,8c`` or ``a b c``; repetitions stay.

    Raises ``InputError`` for an empty place in the list, for a letter that the group does not have,
    and for a position without freedom asked for twice, which would put two atoms on one point.
    """
    if not text.strip():
        raise InputError("no Wyckoff positions given", "write them like 4a,4b,8c")
    words = re.split(r"\s*[,;]\s*|\s+", text.strip())
    if not all(words):
        raise InputError(f"'{text}' has an empty place", "write positions like 4a,4b,8c")
    rows = [position_row(group, word) for word in words]
    for row in dict.fromkeys(rows):
        here = position(row)
        if here.freedom == 0 and rows.count(row) > 1:
            raise InputError(
                f"position {here.label} of group {group} is asked for {rows.count(row)} times, "
                "but it is one set of fixed points",
                "name it once; only positions with a free coordinate can be repeated",
            )
    return rows


def orbits_of(rows: Tensor, n_orbits: Tensor) -> Orbits:
    """The orbits of a batch: ``rows`` (O,) int64 table rows, ``n_orbits`` (C,) int64 per crystal.

    One gather from the table; the result is on the device of ``rows``.
    """
    import torch

    from crystalctl.crystal.orbits import Orbits

    table = _torch_table(rows.device)
    multiplicity = table["multiplicity"][rows]
    first = torch.cumsum(multiplicity, 0) - multiplicity
    total = int(multiplicity.sum())
    shift = torch.repeat_interleave(
        table["first_operation"][rows] - first, multiplicity, output_size=total
    )
    operation = torch.arange(total, device=rows.device) + shift
    return Orbits(
        n_orbits,
        multiplicity,
        table["rotation"][operation],
        table["translation"][operation],
        table["pull"][operation],
        rows,
    )


@cache
def _torch_table(device: torch.device) -> dict[str, Tensor]:
    import torch

    table = tables()
    arrays = {
        "multiplicity": table.multiplicity,
        "first_operation": table.first_operation[:-1],
        "rotation": table.rotation.astype("float64"),
        "translation": table.translation,
        "pull": table.pull,
    }
    return {k: torch.tensor(v, device=device) for k, v in arrays.items()}
