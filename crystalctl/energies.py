"""``data energies``: reference energies of many structures with one calculator, kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalctl.analysis.energy import DEFAULT, Potential, load_potential
from crystalctl.analysis.hull import KIND
from crystalctl.analysis.relaxation import Settings, relax, single_points
from crystalctl.errors import InputError
from crystalctl.io.collect import KINDS, Row, dataset_rows, find_sources, read_source
from crystalctl.io.structures import write_atomic

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Energies:
    """``file``; ``calculator`` with its version; how many were ``computed`` now, and ``failed``.

    ``elements``: energies of elements computed beside the structures, all in the file.
    """

    file: Path
    calculator: str
    total: int
    computed: int
    failed: int
    elements: int


def compute_energies(
    source: str | Path,
    *,
    calculator: str = DEFAULT,
    relaxed: bool = False,
    elements: bool = True,
    max_steps: int = 200,
    device: str = "cpu",
    out: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Energies:
    """eV/atom of every structure of ``source``, for ``--hull``.

    ``source``: a prepared dataset or any structures. As they are, or ``relaxed`` first. With
    ``elements`` each of their elements gets an energy beside them, in the lowest of its known
    lattices (``analysis/elemental.py``): a hull needs them all, and stable ones. The file
    (default: NAME-CALCULATOR.jsonl beside it) is a cache: what it holds is not computed again, so a
    stopped run continues. Raises ``InputError`` for an unknown calculator, a source without
    structures, a file of other structures or another calculator.
    """
    path = Path(source)
    rows = _rows(path)
    able = [i for i, row in enumerate(rows) if row.entry is not None]
    if not able:
        raise InputError(f"none of the structures of {path} can be read", f"give {KINDS}")
    potential = load_potential(calculator, device)
    stem = path.name.split(".")[0]
    label = calculator.replace(":", "-")
    target = Path(out) if out is not None else path.parent / f"{stem}-{label}.jsonl"
    header: dict[str, Any] = {"kind": KIND, "calculator": potential.name, "source": path.name}
    header |= {"structures": len(rows), "relaxed": relaxed}
    done, known = _done(target, header)
    todo = [i for i in able if i not in done]
    # Alike sizes make the best batches.
    todo.sort(key=lambda i: len(rows[i].entry.numbers))  # type: ignore[union-attr]
    lacking = sorted(_elements(rows) - known) if elements else []
    structures = _Structures(rows, todo)
    settings = Settings(max_steps=max_steps) if relaxed else None
    with target.open("a") as notes:
        if not notes.tell():
            notes.write(json.dumps(header) + "\n")
        found = _computed(potential, structures, settings)
        for count, (place, energy, reason) in enumerate(found, start=1):
            index = todo[place]
            line = {"index": index, "id": rows[index].id, "formula": structures.formula(place)}
            line |= {"energy_ev": energy, "reason": reason}
            done[index] = reason
            notes.write(json.dumps(line) + "\n")
            notes.flush()
            if on_progress is not None:
                on_progress("energies", count, len(todo))
        for count, symbol in enumerate(lacking, start=1):
            notes.write(json.dumps(_element_line(potential, symbol)) + "\n")
            notes.flush()
            if on_progress is not None:
                on_progress("elements", count, len(lacking))
        os.fsync(notes.fileno())
    failed = sum(map(bool, done.values())) + len(rows) - len(able)
    elemental = len(known) + len(lacking)
    return Energies(target, potential.name, len(rows), len(todo), failed, elemental)


def _computed(
    potential: Potential, structures: Sequence[Any], settings: Settings | None
) -> Iterator[tuple[int, float | None, str]]:
    """Place, eV/atom and reason of each: relaxed with ``settings``, without them as it is."""
    if settings is None:
        for place, value in single_points(potential, structures):
            yield (place, None, value) if isinstance(value, str) else (place, value, "")
    else:
        for place, result in relax(potential, structures, settings):
            yield place, result.energy, result.reason


def _elements(rows: Sequence[Row]) -> set[str]:
    """Symbols of all elements of the structures that could be read."""
    from crystalctl.crystal.elements import symbol_of

    numbers = {int(z) for row in rows if row.entry is not None for z in set(row.entry.numbers)}
    return {symbol_of(z) for z in numbers}


def _element_line(potential: Potential, symbol: str) -> dict[str, Any]:
    from crystalctl.analysis.elemental import elemental

    found = elemental(potential, symbol)
    return {
        "element": symbol,
        "id": found.lattice,
        "formula": symbol,
        "energy_ev": found.energy,
        "reason": found.reason,
    }


class _Structures(Sequence[Any]):
    """pymatgen structures made when asked for: a dataset may have many."""

    def __init__(self, rows: Sequence[Row], chosen: Sequence[int]) -> None:
        self._rows, self._chosen = rows, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: Any) -> Any:
        from pymatgen.core import Lattice, Structure

        entry = self._rows[self._chosen[place]].entry
        assert entry is not None
        return Structure(Lattice(entry.lattice), entry.numbers.tolist(), entry.frac)

    def formula(self, place: int) -> str:
        """Of the whole cell."""
        return str(self[place].composition.formula)

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))


def _rows(path: Path) -> list[Row]:
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"no file at {path}", f"give a prepared dataset, {KINDS}")
        return dataset_rows(path)
    return [row for source in find_sources([path]) for row in read_source(source)]


def _done(target: Path, header: dict[str, Any]) -> tuple[dict[int, str], set[str]]:
    """Index -> reason of what the file holds, and its elements; drops a line that a kill cut."""
    if not target.is_file():
        if not target.parent.is_dir():
            raise InputError(f"no folder {target.parent}", "choose another --out")
        return {}, set()
    kept: list[str] = []
    done: dict[int, str] = {}
    known: set[str] = set()
    for number, text in enumerate(target.read_text().splitlines()):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            if number == 0:
                raise InputError(f"{target} is no file of energies", "choose another -o") from None
            continue
        if number == 0:
            if line != header:
                raise InputError(
                    f"{target} has energies of other structures, settings or calculator",
                    "choose another -o, or remove it",
                )
        elif "element" in line:
            known.add(str(line["element"]))
        else:
            done[int(line["index"])] = str(line["reason"])
        kept.append(text)
    write_atomic(target, "".join(text + "\n" for text in kept))
    return done, known
