"""Energy above the convex hull, from reference energies in a file.

Two kinds of file: what ``crystalctl data energies`` writes (JSON lines that name the calculator),
and pymatgen entries (JSON). Energies of different origin do not compare: a file of another
calculator than the candidates' is refused, one of unknown origin is named in every result.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from crystalctl.crystal.elements import ATOMIC_NUMBER
from crystalctl.errors import InputError

KIND = "crystalctl energies"
_UNKNOWN = "energies of unknown origin"
_ELEMENT = re.compile("[A-Z][a-z]?")
_PLAIN = re.compile("(?:[A-Z][a-z]?(?:[1-9][0-9]*)? ?)+")
_KEPT = 100
"""Phase diagrams in memory: each takes 60 kB and a few ms to make, and a run may have thousands."""
_HINT = "give mp, a file of `crystalctl data energies`, or pymatgen entries as JSON"


@dataclass(frozen=True)
class Hull:
    """``name``: of the file; ``calculator``: that its energies are from, None where it does not
    say; ``systems``: elements -> the formulas of just these, each with eV/atom.
    """

    name: str
    calculator: str | None
    systems: Mapping[frozenset[str], list[tuple[str, float]]]
    _diagrams: dict[frozenset[str], Any] = field(default_factory=dict)

    @staticmethod
    def of(name: str, calculator: str | None, energies: Iterable[tuple[str, float]]) -> Hull:
        """From (formula, eV/atom) pairs."""
        systems: dict[frozenset[str], list[tuple[str, float]]] = defaultdict(list)
        for formula, energy in energies:
            if math.isfinite(energy):  # one that is not would be the whole hull
                systems[_elements(formula)].append((formula, energy))
        return Hull(name, calculator, dict(systems))

    @staticmethod
    def load(path: Path | str, *, calculator: str | None = None) -> Hull:
        """Read a file. Raises ``InputError`` when it holds no energies, or those of another
        ``calculator``."""
        path = Path(path)
        try:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        except (OSError, UnicodeDecodeError, gzip.BadGzipFile) as error:
            raise InputError(f"cannot read the hull {path} ({error})", _HINT) from error
        try:
            origin, energies = _lines(text) if KIND in text[:200] else _entries(json.loads(text))
            hull = Hull.of(path.name, origin, energies)
        except Exception as error:  # pymatgen raises anything for JSON that is something else
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{path} holds no energies ({what})", _HINT) from error
        if not hull.systems:
            raise InputError(f"{path} holds no energies", _HINT)
        if calculator and origin and origin.split()[0] != calculator.split()[0]:
            raise InputError(
                f"{path} has energies of {origin}, not of {calculator}",
                f"add --calculator {origin.split()[0]}, or make one with `crystalctl data energies`"
                f" --calculator {calculator.split()[0]}",
            )
        return hull

    @property
    def reference(self) -> str:
        """Which energies the hull is made of, for people."""
        return f"{self.name} ({self.calculator or _UNKNOWN})"

    def above(self, formula: str, energy: float) -> tuple[float | None, str]:
        """eV/atom above the hull of a ``formula`` with ``energy`` eV/atom; or None and why.

        Below the hull it is negative. The hull is that of the reference alone.
        """
        from pymatgen.core import Composition

        if missing := self.missing([formula]):
            return None, f"no energy of elemental {', '.join(missing)} in {self.name}"
        diagram = self._diagram(_elements(formula))
        return float(energy - diagram.get_hull_energy_per_atom(Composition(formula))), ""

    def phases(self, formula: str) -> str:
        """What the hull is made of at a ``formula`` that has a place in it: ``0.67 A + 0.33 B``.

        Parts by atoms. One phase is the reference's own structure of that formula.
        """
        from pymatgen.core import Composition

        parts = self._diagram(_elements(formula)).get_decomposition(Composition(formula))
        named = sorted(((part, entry.composition.reduced_formula) for entry, part in parts.items()))
        return " + ".join(f"{part:.2f} {name}" for part, name in reversed(named))

    def missing(self, formulas: Sequence[str]) -> list[str]:
        """Elements of ``formulas`` for which there is no reference."""
        wanted = {element for formula in formulas for element in _elements(formula)}
        return sorted(e for e in wanted if frozenset([e]) not in self.systems)

    def check(self, formulas: Sequence[str]) -> None:
        """Raise ``InputError`` where the hull says nothing of any of the ``formulas``."""
        missing = {formula: self.missing([formula]) for formula in sorted(formulas)}
        if formulas and all(missing.values()):
            elements = ", ".join(sorted({e for lacking in missing.values() for e in lacking}))
            raise InputError(
                f"{self.name} has no energy of elemental {elements}",
                "a hull needs each element of a structure: add structures with them to the"
                " reference, then `crystalctl data energies`",
            )

    def _diagram(self, elements: frozenset[str]) -> Any:
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition

        if elements in self._diagrams:
            return self._diagrams[elements]
        parts = (
            frozenset(part)
            for size in range(1, len(elements) + 1)
            for part in combinations(sorted(elements), size)
        )
        entries = [
            PDEntry(composition, energy * composition.num_atoms)
            for part in parts
            for formula, energy in self.systems.get(part, [])
            for composition in [Composition(formula)]
        ]
        if len(self._diagrams) >= _KEPT:
            del self._diagrams[next(iter(self._diagrams))]  # the oldest
        return self._diagrams.setdefault(elements, PhaseDiagram(entries))


def _elements(formula: str) -> frozenset[str]:
    """Symbols of a formula."""
    symbols = frozenset(_ELEMENT.findall(formula))
    if _PLAIN.fullmatch(formula) and symbols <= ATOMIC_NUMBER.keys():
        return symbols
    from pymatgen.core import Composition  # knows more, and takes a second for 20 thousand

    return frozenset(e.symbol for e in Composition(formula).elements)


def _lines(text: str) -> tuple[str, list[tuple[str, float]]]:
    header, *lines = (json.loads(line) for line in text.splitlines() if line.strip())
    energies = [(line["formula"], line["energy_ev"]) for line in lines if not line["reason"]]
    return str(header["calculator"]), energies


def _entries(data: Any) -> tuple[None, list[tuple[str, float]]]:
    """Entries as ``ComputedEntry.as_dict`` writes them: the energy is that of the composition."""
    from pymatgen.entries.computed_entries import ComputedEntry

    rows = data["entries"] if isinstance(data, dict) else data
    entries = [ComputedEntry.from_dict(_plain(row)) for row in rows]
    return None, [(entry.composition.formula, entry.energy_per_atom) for entry in entries]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ComputedStructureEntry that the hull needs."""
    kept = ("composition", "energy", "correction", "energy_adjustments", "parameters")
    return {key: row[key] for key in kept if row.get(key) is not None}
