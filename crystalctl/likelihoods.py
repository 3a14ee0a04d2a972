"""``score``: how probable a model finds structures of anybody, factor by factor."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.errors import InputError
from crystalctl.io.collect import KINDS, Row, dataset_rows, find_sources, read_source
from crystalctl.io.structures import write_atomic
from crystalctl.planning import stable_hash

if TYPE_CHECKING:
    from crystalctl.symmetry.detect import Detected

FAMILY = "sgequidiff"
FACTORS = ("group", "lattice", "occupation", "coordinates")
_AT_ONCE = 64
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scores:
    """``rows`` of the table, the most probable first, then those without a number; ``folder``."""

    rows: list[dict[str, Any]]
    folder: Path | None


def score(
    paths: str | Path | Sequence[str | Path],
    *,
    weights: str | None = None,
    levels: int = 50,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    jobs: int | None = None,
    on_progress: OnProgress | None = None,
) -> Scores:
    """log p of every structure under SGEquiDiff, split into its factors (natural logarithms).

    Group, lattice (its bin) and occupation (positions and elements) are exact; the coordinates' is
    a lower bound on a density, a mean over noise of ``levels`` widths (``models/likelihood.py``).
    ``paths`` as for ``evaluate``, or prepared datasets. With ``out`` a table ``scores.csv`` is
    written there. Raises ``InputError`` for input without a structure.
    """
    if levels < 1:
        raise InputError(f"--levels is {levels}", "allowed: 1 or more")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    rows = _read(given)
    if not any(row.entry for row in rows):
        hint = f"give {KINDS}, or a prepared dataset"
        raise InputError("none of the structures can be read", hint)
    folder = None if out is None else Path(out)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", "name a folder with --out")
    from crystalctl.checkpoint import default_weights, load_model
    from crystalctl.models.device import pick_device

    name = weights or default_weights("generate", FAMILY)
    place = pick_device(device)
    model = load_model(name, task="generate", family=FAMILY, device=place).model
    tell = on_progress or (lambda stage, done, total: None)
    readable = [row for row in rows if row.entry is not None and not _unknown(row)]
    detected = _detected(readable, jobs, tell)
    values = {}
    if len(detected.crystals):
        values = _values(model, readable, detected, levels=levels, seed=seed, tell=tell)
    reasons = {
        **{id(row): row.reason or "cannot be read" for row in rows if row.entry is None},
        **{id(row): _unknown(row) for row in rows if row.entry is not None and _unknown(row)},
        **{id(readable[number]): why for number, why in detected.failures},
    }
    table = [_line(row, values.get(id(row)), reasons.get(id(row), ""), model) for row in rows]
    table.sort(key=lambda line: -math.inf if line["log_p"] is None else line["log_p"], reverse=True)
    result = Scores(table, folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "scores.csv", _csv(table))
    return result


def _read(paths: Sequence[str | Path]) -> list[Row]:
    datasets = [Path(path) for path in paths if Path(path).suffix == ".safetensors"]
    others = [path for path in paths if Path(path) not in datasets]
    rows = [row for path in datasets for row in dataset_rows(path)]
    if others:
        rows += [row for source in find_sources(others) for row in read_source(source)]
    return rows


def _unknown(row: Row) -> str:
    """Why no model can take a structure, or nothing."""
    from crystalctl.analysis.validity import invalid_cell
    from crystalctl.crystal.elements import symbol_of

    entry = row.entry
    assert entry is not None
    heaviest = int(entry.numbers.max(initial=0))
    if heaviest > 100:
        return f"element {symbol_of(heaviest)} is beyond Z = 100"
    return invalid_cell(entry.lattice, entry.frac)


def _detected(rows: Sequence[Row], jobs: int | None, tell: OnProgress) -> Detected:
    """Groups and orbits of structures."""
    from crystalctl.crystal.convert import from_structures
    from crystalctl.ordering import structure_of
    from crystalctl.symmetry.detect import detect, pack

    if not rows:
        import torch

        return pack([], torch.float64)
    crystals = from_structures([structure_of(row) for row in rows])
    return detect(crystals, jobs=jobs, progress=lambda done, total: tell("symmetry", done, total))


def _values(
    model: Any,
    rows: Sequence[Row],
    detected: Detected,
    *,
    levels: int,
    seed: int,
    tell: OnProgress,
) -> dict[int, dict[str, Any]]:
    """By the identity of the row: its factors, and its group.

    The noise of a structure follows from its numbers, not from its place in the input.
    """
    import torch

    from crystalctl.diffusion.noise import NoiseSource
    from crystalctl.models.likelihood import log_likelihood

    place = model.strength.device
    order = torch.argsort(detected.crystals.layout.pair_counts)
    found: dict[int, dict[str, Any]] = {}
    done = 0
    for part in order.split(_AT_ONCE):
        here = [rows[int(number)] for number in detected.source[part]]
        stream = torch.tensor([_stream(row) for row in here], device=place)
        crystals = detected.crystals.index(part).to(place)
        factors = log_likelihood(model, crystals, NoiseSource(seed, stream), levels=levels)
        columns = {name: tensor.tolist() for name, tensor in factors.items()}
        groups = detected.space_group[part].tolist()
        for i, row in enumerate(here):
            numbers = {name: column[i] for name, column in columns.items()}
            found[id(row)] = {"space_group": groups[i], **numbers}
        done += len(here)
        tell("scoring", done, len(order))
    return found


def _stream(row: Row) -> int:
    entry = row.entry
    assert entry is not None
    numbers = [entry.lattice.round(6), entry.frac.round(6), entry.numbers]
    return stable_hash("|".join(str(part.tolist()) for part in numbers))


def _line(row: Row, values: dict[str, Any] | None, reason: str, model: Any) -> dict[str, Any]:
    """One row of the table; a structure the model cannot give has a reason."""
    from crystalctl.symmetry.tables import tables

    line: dict[str, Any] = {"id": row.id, "source": row.source, "number": row.number}
    line |= {"formula": _formula(row), "group_symbol": "", "log_p": None, "per_atom": None}
    line |= dict.fromkeys(FACTORS)
    if values is not None:
        line["group_symbol"] = tables().symbols[values["space_group"] - 1].replace("_", "")
        finite = {name: values[name] for name in FACTORS if math.isfinite(values[name])}
        line |= finite
        if len(finite) == len(FACTORS):
            assert row.entry is not None
            line["log_p"] = sum(finite.values())
            line["per_atom"] = line["log_p"] / len(row.entry.numbers)
        elif "lattice" not in finite:
            reason = "its lattice is outside the bins of the model"
        else:
            reason = f"more than {model.occupation.max_atoms} atoms in the primitive cell"
    return {**line, "reason": reason}


def _formula(row: Row) -> str:
    if row.entry is None:
        return ""
    from crystalctl.ordering import structure_of

    return str(structure_of(row).composition.reduced_formula)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def ranked(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows that have a number, the most probable first."""
    yield from (row for row in rows if row["log_p"] is not None)
