"""The published cut-offs of each benchmark and the scale of the composition fingerprint."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from crystalctl.analysis.fingerprints import Array
from crystalctl.errors import InputError


@dataclass(frozen=True)
class Benchmark:
    """Cut-offs of coverage: distance of site fingerprints, and of scaled composition ones."""

    name: str
    site_cutoff: float
    composition_cutoff: float
    note: str = ""


BENCHMARKS = {
    "mp_20": Benchmark("mp_20", 0.4, 10.0),
    "perov_5": Benchmark("perov_5", 0.2, 4.0),
    "carbon_24": Benchmark("carbon_24", 0.2, 4.0),
    "mpts_52": Benchmark("mpts_52", 0.4, 10.0, "no cut-offs were published; those of MP-20"),
}
"""Ref: compute_metrics.py of CDVAE (arXiv:2110.06197)."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name (``mp-20`` and ``MP20`` too), or ``InputError``."""
    plain = {key.replace("_", ""): value for key, value in BENCHMARKS.items()}
    found = plain.get(name.lower().replace("_", "").replace("-", ""))
    if found is None:
        raise InputError(f"unknown benchmark '{name}'", f"allowed: {', '.join(BENCHMARKS)}")
    return found


@lru_cache(maxsize=1)
def _scale() -> tuple[Array, Array]:
    text = resources.files("crystalctl.evaluation").joinpath("magpie_scale.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return np.array([float(r["mean"]) for r in rows]), np.array([float(r["std"]) for r in rows])


def scaled(compositions: Array) -> Array:
    """Composition fingerprints (n, 132) in CDVAE's published units; unknown values become 0."""
    mean, std = _scale()
    values = (np.asarray(compositions, dtype=float) - mean) / std
    return np.asarray(np.where(np.isnan(values), 0.0, values))
