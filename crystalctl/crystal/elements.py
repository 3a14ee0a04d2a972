"""Element symbols, and formulas as people write them -> whole numbers of atoms.

No chemistry library: this stands on the path of every error message about a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd

from crystalctl.errors import InputError

_TABLE = """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br
    Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho
    Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es
    Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS: tuple[str, ...] = tuple(_TABLE.split())
"""Symbol of atomic number ``Z`` at index ``Z - 1``."""

ATOMIC_NUMBER: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}

MENDELEEV: tuple[int, ...] = (
    103, 1, 12, 77, 86, 95, 100, 101, 102, 2, 11, 73, 80, 85, 90, 94, 99, 3, 10, 16, 19, 51, 54, 57,
    60, 61, 64, 67, 72, 76, 81, 84, 89, 93, 98, 4, 9, 15, 25, 49, 53, 56, 59, 62, 65, 69, 71, 75,
    79, 83, 88, 92, 97, 5, 8, 14, 33, 32, 31, 30, 29, 28, 18, 27, 26, 24, 23, 22, 21, 17, 20, 50,
    52, 55, 58, 63, 66, 68, 70, 74, 78, 82, 87, 91, 96, 6, 7, 13, 48, 47, 46, 45, 44, 43, 42, 41,
    40, 39, 38, 37,
)  # fmt: skip
"""Mendeleev number of atomic number ``Z`` at index ``Z - 1``, up to fermium: neighbours in this
order replace each other in structures. Ref: Pettifor, Solid State Commun. 51, 31 (1984)."""

_DOTS = "·•∙⋅*"
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
# A full stop is a decimal point, except where it attaches water or ammonia (CaSO4.2H2O).
_STOP_AS_DOT = re.compile(r"([A-Za-z)\]}](?:[1-9]\d*)?)\.(?=(?:[1-9]\d*)?(?:H2O|NH3)$)")
_TOKEN = re.compile(r"[A-Z][a-z]*|\d*\.\d+|\d+\.?|[()\[\]{}]|.")
_EXAMPLES = "write it like SrTiO3, Ca3(PO4)2 or CaSO4·2H2O"
_MAX_AMOUNT = 10_000
_MAX_LENGTH = 500


@dataclass(frozen=True)
class Formula:
    """A formula as written: ``counts`` maps atomic number to atoms, in the order of the text."""

    text: str
    counts: Mapping[int, int]

    @cached_property
    def factor(self) -> int:
        """Greatest common divisor of the amounts: 2 for ``Sr2Ti2O6``."""
        return gcd(*self.counts.values())

    @cached_property
    def unit(self) -> dict[int, int]:
        """Atoms of one reduced formula unit, in the order written."""
        return {z: count // self.factor for z, count in self.counts.items()}

    @cached_property
    def reduced(self) -> str:
        """The reduced formula in the order written, safe in a file name: ``SrTiO3``."""
        return name_of(self.unit)

    @cached_property
    def unit_atoms(self) -> int:
        """Number of atoms of one reduced formula unit."""
        return sum(self.unit.values())


def name_of(counts: Mapping[int, int]) -> str:
    """Formula of the amounts in their given order, ones left out."""
    return "".join(f"{symbol_of(z)}{'' if n == 1 else n}" for z, n in counts.items())


def reduced_key(counts: Mapping[int, int]) -> str:
    """A name that is the same for every way of writing one composition (sorted, reduced)."""
    divisor = gcd(*counts.values())
    return name_of({z: counts[z] // divisor for z in sorted(counts)})


def symbol_of(z: int) -> str:
    """Symbol of atomic number ``z`` (1..118).

    Raises ``InputError`` outside that range.
    """
    if not 1 <= z <= len(SYMBOLS):
        raise InputError(f"no element has atomic number {z}", f"allowed: 1 to {len(SYMBOLS)}")
    return SYMBOLS[z - 1]


def atomic_number(symbol: str) -> int:
    """Atomic number of a symbol.

    Raises ``InputError`` for an unknown one, with the spelling that would be right.
    """
    if symbol in ATOMIC_NUMBER:
        return ATOMIC_NUMBER[symbol]
    known = symbol.strip().capitalize()
    hint = f"did you mean {known}?" if known in ATOMIC_NUMBER else "symbols look like H, Ti, O"
    raise InputError(f"unknown element '{symbol}'", hint)


def parse_elements(text: str | Iterable[str]) -> frozenset[int]:
    """Atomic numbers of a list such as ``Sr,Ti,O`` or ``Sr Ti O`` or ``Sr-Ti-O``.

    Raises ``InputError`` for an unknown symbol or an empty list.
    """
    joined = text if isinstance(text, str) else ",".join(text)
    numbers = frozenset(atomic_number(part) for part in re.split(r"[\s,;-]+", joined) if part)
    if not numbers:
        raise InputError("the list of elements is empty", "give symbols, like Sr,Ti,O")
    return numbers


def parse_formula(text: str) -> Formula:
    """Read a chemical formula: brackets, hydrates, unicode subscripts and spaces are understood.

    Raises ``InputError`` for anything that is not whole numbers of known, uncharged elements.
    """
    clean = re.sub(r"\s+", "", text).translate(_SUBSCRIPTS)
    if not clean:
        raise InputError("the formula is empty", _EXAMPLES)
    if len(clean) > _MAX_LENGTH:
        raise InputError(f"'{clean[:40]}...' has {len(clean)} characters", _EXAMPLES)
    if re.search(r"[+^−–⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]|-", clean):
        raise InputError(
            f"'{text}' has a charge or an open amount (a + or - sign or a superscript)",
            "give the neutral formula with whole numbers, like Fe2O3",
        )
    clean = _STOP_AS_DOT.sub(r"\1·", clean)
    counts: dict[int, int] = {}
    for part in re.split(f"[{re.escape(_DOTS)}]", clean):
        if not part:
            raise InputError(f"'{text}' has a dot with nothing beside it", _EXAMPLES)
        for z, amount in _Reader(text, clean, part).read().items():
            counts[z] = counts.get(z, 0) + amount
    return Formula(text.strip(), counts)


class _Reader:
    """Reads one part of a formula (the whole, or what stands between two dots)."""

    def __init__(self, text: str, clean: str, part: str) -> None:
        self.text, self.clean = text, clean
        self.tokens: list[str] = _TOKEN.findall(part)
        self.at = 0

    def read(self) -> dict[int, int]:
        factor = self._amount()
        counts = self._group(None)
        if not counts:
            raise InputError(f"'{self.text}' names no element", _EXAMPLES)
        return {z: factor * n for z, n in counts.items()}

    def _group(self, closing: str | None) -> dict[int, int]:
        counts: dict[int, int] = {}
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            if token == closing:
                return counts
            if token in _CLOSING:
                inside = self._group(_CLOSING[token])
                if not inside:
                    raise InputError(f"'{self.text}' has empty brackets", _EXAMPLES)
            elif token in ATOMIC_NUMBER:
                inside = {ATOMIC_NUMBER[token]: 1}
            else:
                raise self._unreadable(token)
            factor = self._amount()
            for z, n in inside.items():
                counts[z] = counts.get(z, 0) + factor * n
        if closing is not None:
            raise InputError(f"'{self.text}' lacks a closing '{closing}'", _EXAMPLES)
        return counts

    def _amount(self) -> int:
        """The number at the current place; 1 when there is none."""
        if self.at == len(self.tokens) or self.tokens[self.at][0] not in "0123456789.":
            return 1
        token = self.tokens[self.at]
        self.at += 1
        whole, point, rest = token.partition(".")
        if point and (not (whole and rest) or rest.strip("0")):
            raise self._fractional(token)
        token = whole
        if len(token) > 9 or not 1 <= int(token) <= _MAX_AMOUNT:
            raise InputError(
                f"'{self.text}' has the amount {token}",
                f"amounts are whole numbers from 1 to {_MAX_AMOUNT}",
            )
        return int(token)

    def _fractional(self, amount: str) -> InputError:
        return InputError(
            f"'{self.text}' has the fractional amount {amount}: "
            "disordered structures are not supported",
            "give an ordered cell with whole numbers, such as FeNi for Fe0.5Ni0.5",
        )

    def _unreadable(self, token: str) -> InputError:
        if token in ")]}":
            return InputError(f"'{self.text}' has a '{token}' that nothing opened", _EXAMPLES)
        if not token[0].isalpha():
            return InputError(f"'{self.text}' has an unexpected '{token}'", _EXAMPLES)
        guess = recase(self.clean)
        hint = f"did you mean {guess}?" if guess and guess != self.clean else _EXAMPLES
        if token in ("D", "T"):
            hint = "write hydrogen isotopes as H"
        return InputError(f"unknown element '{token}' in '{self.text}'", hint)


def recase(text: str) -> str | None:
    """The formula meant by one in wrong case (``srtio3`` -> ``SrTiO3``), or None."""
    pieces = re.findall(r"[A-Za-z]+|[^A-Za-z]+", text)
    spelled = [_spell(p.lower()) if p.isalpha() else p for p in pieces]
    return None if None in spelled else "".join(s for s in spelled if s)


def _spell(letters: str) -> str | None:
    """Split lower-case letters into symbols, two letters before one."""
    best: list[str | None] = [None] * len(letters) + [""]
    for i in range(len(letters) - 1, -1, -1):
        for width in (2, 1):
            symbol, rest = letters[i : i + width].capitalize(), best[min(i + width, len(letters))]
            if symbol in ATOMIC_NUMBER and len(symbol) == width and rest is not None:
                best[i] = symbol + rest
                break
    return best[0]
