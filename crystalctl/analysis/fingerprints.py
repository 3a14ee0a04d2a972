"""Fingerprints of a structure for coverage: its sites (CrystalNN) and its composition (Magpie).

Both are the published features, computed with pymatgen alone, so that numbers do not move with the
versions of a feature library. ``magpie.csv`` holds Magpie's elemental properties, empty = unknown.
"""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

VERSION = 1
"""Raised when the numbers change, so that cached ones are not used any more."""
MAX_COORDINATION = 24
_MOTIFS: dict[int, tuple[str, ...]] = {
    1: ("sgl_bd",),
    2: ("L-shaped", "water-like", "bent 120 degrees", "bent 150 degrees", "linear"),
    3: ("trigonal planar", "trigonal non-coplanar", "T-shaped"),
    4: (
        "square co-planar",
        "tetrahedral",
        "rectangular see-saw-like",
        "see-saw-like",
        "trigonal pyramidal",
    ),
    5: ("pentagonal planar", "square pyramidal", "trigonal bipyramidal"),
    6: ("hexagonal planar", "octahedral", "pentagonal pyramidal"),
    7: ("hexagonal pyramidal", "pentagonal bipyramidal"),
    8: ("body-centered cubic", "hexagonal bipyramidal"),
    9: ("q2", "q4", "q6"),
    10: ("q2", "q4", "q6"),
    11: ("q2", "q4", "q6"),
    12: ("cuboctahedral", "q2", "q4", "q6"),
}
"""Order parameters for each coordination number. Ref: Zimmermann & Jain, RSC Adv. 10, 6063."""
_SOUTH_POLE = {"tri_bipyr", "sq_bipyr", "pent_bipyr", "hex_bipyr", "oct_max", "sq_plan_max"} | {
    "hex_plan_max",
    "see_saw_rect",
}
"""Order parameters for which a neighbour opposite to another counts differently."""
SITE_LENGTH = MAX_COORDINATION + sum(len(names) for names in _MOTIFS.values())
_MIN_VOLUME_PER_ATOM = 0.1
"""Å³; looking for neighbours in denser cells takes minutes and gigabytes."""


def site_fingerprint(structure: Any) -> Array | None:
    """Mean over the sites of the CrystalNN fingerprint with order parameters, (61,).

    For each coordination number 1..24 its weight, then that weight times each order parameter.
    None where it cannot be made (CDVAE then counts the structure as invalid): the search for
    neighbours fails, or there are less than 0.1 Å³ for each atom.
    """
    if not structure.volume / len(structure) >= _MIN_VOLUME_PER_ATOM:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = [_site(structure, index) for index in range(len(structure))]
    except Exception:  # the neighbour search raises anything at all for strange cells
        return None
    return np.asarray(np.array(rows).mean(axis=0))


def _site(structure: Any, index: int) -> list[float]:
    finder, motifs = _crystal_nn()
    data = finder.get_nn_data(structure, index)
    values: list[float] = []
    for number in range(1, MAX_COORDINATION + 1):
        weight = float(data.cn_weights.get(number, 0))
        found = dict.fromkeys(_MOTIFS.get(number, ()), 0.0)
        if weight != 0 and found:
            around = [neighbour["site"] for neighbour in data.cn_nninfo[number]]
            for names, order in motifs[number]:
                orders = order.get_order_parameters(
                    [structure[index], *around], 0, indices_neighs=list(range(1, len(around) + 1))
                )
                found.update(zip(names, orders, strict=True))
        values += [weight, *(weight * (one or 0.0) for one in found.values())]
    return values


@lru_cache(maxsize=1)
def _crystal_nn() -> tuple[Any, Mapping[int, list[tuple[list[str], Any]]]]:
    """pymatgen's neighbour search; for each coordination number, motifs and their order parameters.

    One object goes through the angles once for all its motifs. It looks at the south pole for the
    last of them only, so those with one there cannot share an object.
    """
    from pymatgen.analysis.local_env import CN_OPT_PARAMS, CrystalNN, LocalStructOrderParams

    finders: dict[int, list[tuple[list[str], Any]]] = {}
    for number, names in _MOTIFS.items():
        # A motif of pymatgen is a kind of order parameter, often with parameters of its own.
        known = {name: CN_OPT_PARAMS.get(number, {}).get(name, [name]) for name in names}
        polar = [name for name in names if known[name][0] in _SOUTH_POLE]
        others = [name for name in names if name not in polar]
        finders[number] = [
            (
                group,
                LocalStructOrderParams(
                    [known[name][0] for name in group],
                    parameters=[known[name][1] if known[name][1:] else None for name in group],
                ),
            )
            for group in ([*others, *polar[:1]], *([name] for name in polar[1:]))
        ]
    return CrystalNN(), finders


@lru_cache(maxsize=1)
def _magpie() -> dict[str, Array]:
    text = resources.files("crystalctl.analysis").joinpath("magpie.csv").read_text("utf-8")
    _, *rows = csv.reader(text.splitlines())
    return {row[0]: np.array([float(x) if x else np.nan for x in row[1:]]) for row in rows}


def composition_fingerprint(counts: Mapping[str, float]) -> Array:
    """Magpie features of a composition, (132,); NaN where an element's property is unknown.

    ``counts``: symbol -> amount. For each of 22 elemental properties: minimum, maximum, range,
    mean, mean absolute deviation, and the value of the most frequent element (the smallest of
    several). Ref: Ward et al., npj Comput. Mater. 2, 16028.
    """
    unknown = np.full(22, np.nan)
    values = np.array([_magpie().get(symbol, unknown) for symbol in counts])
    amounts = np.array(list(counts.values()), dtype=float)
    share = (amounts / amounts.sum())[:, None]
    mean = (values * share).sum(axis=0)
    low, high = values.min(axis=0), values.max(axis=0)
    deviation = (np.abs(values - mean) * share).sum(axis=0)
    mode = values[np.isclose(amounts, amounts.max())].min(axis=0)
    return np.stack([low, high, high - low, mean, deviation, mode], axis=1).ravel()


def structure_key(lattice: Array, frac: Array, numbers: Any) -> str:
    """Hash of exactly these numbers, for caches of what was computed from them."""
    digest = hashlib.sha256()
    for part in (lattice, frac):
        digest.update(np.ascontiguousarray(part, dtype=np.float64).tobytes())
    digest.update(np.ascontiguousarray(numbers, dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def default_cache() -> Path:
    """Where fingerprints are kept between runs unless told otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "crystalctl" / "fingerprints"


def cached_site_fingerprint(structure: Any, key: str, cache: Path | None) -> Array | None:
    """``site_fingerprint`` through a folder of one small file for each structure."""
    path = None if cache is None else cache / key[:2] / f"{key}.v{VERSION}"
    if path is not None:
        found = _read(path)
        if found is not None:
            return found if len(found) else None
    made = site_fingerprint(structure)
    if path is not None:
        _write(path, np.zeros(0) if made is None else made)
    return made


def _read(path: Path) -> Array | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    # Empty = known to be impossible; any other length was torn by a full disk.
    return np.frombuffer(raw, dtype="<f8") if len(raw) in (0, 8 * SITE_LENGTH) else None


def _write(path: Path, values: Array) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(values.astype("<f8").tobytes())
        part.replace(path)
    except OSError:  # a cache that cannot be written costs time, not results
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
