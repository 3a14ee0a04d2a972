"""Simulated powder patterns, their similarity to a measured one, and candidates ranked by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from crystalctl.analysis.powder import Array, Pattern

if TYPE_CHECKING:
    from crystalctl.analysis.ranking import Ranking

SCALE_RANGE = 0.05
"""The cell may be scaled by up to this much, either way, to fit a measured pattern."""
TOLERANCE = 0.02
"""Relative mismatch of a lattice spacing at which two peaks no longer count as the same."""
FWHM_DEG = 0.15
"""Full width of a simulated peak at half maximum, as a laboratory diffractometer shows it."""
_STEP = 5e-4
"""Grid of ln q; the tolerance is 40 steps."""
_SCALE_STEPS = 4
_SAME_DEG = 1e-5
_FAINT = 1e-3
_MIN_ANGLE_DEG = 3.0
_MAX_ANGLE_DEG = 175.0


@dataclass(frozen=True)
class Sticks:
    """Peaks of a simulated pattern: ``two_theta`` (n,) degrees, ``intensity`` (n,), highest 100."""

    two_theta: Array
    intensity: Array


@dataclass(frozen=True)
class Likeness:
    """How well a structure explains a measured pattern.

    ``similarity``: 0 to 1, see ``similarity``; ``scale``: the factor on its cell lengths there.
    """

    similarity: float
    scale: float


def simulate(structure: Any, wavelength: float, *, upto_deg: float = 90.0) -> Sticks:
    """Kinematic powder pattern of a pymatgen structure, up to ``upto_deg`` 2θ.

    The sum of pymatgen's ``XRDCalculator`` with its scattering factors, which are
    Z - 41.78214 s² Σ a exp(-b s²), s = sin(θ) / λ: I = |Σ f exp(2πi h·x)|² (1 + cos² 2θ) /
    (sin² θ cos θ), without thermal motion, texture or absorption. Written out here since importing
    that class loads a plotting library, which takes longer than the sum. Empty for an element
    without scattering factors and where no reflection lies in the range.
    """
    matrix = np.asarray(structure.lattice.matrix, dtype=float)
    hkl, q = _reflections(matrix, 2 * np.sin(np.radians(min(upto_deg, 179.0) / 2)) / wavelength)
    theta = np.arcsin(np.clip(wavelength * q / 2, 0, 1))
    square = (q / 2) ** 2
    frac = np.asarray(structure.frac_coords, dtype=float)
    occupancy: dict[str, Array] = {}
    for site, place in enumerate(structure):
        for species, share in place.species.items():
            occupancy.setdefault(species.symbol, np.zeros(len(frac)))[site] += share
    table = _scattering_factors()
    total = np.zeros(len(hkl), dtype=complex)
    for symbol, shares in occupancy.items():
        if symbol not in table:
            return Sticks(np.zeros(0), np.zeros(0))
        z, terms = table[symbol]
        gauss = (terms[:, 0] * np.exp(-terms[:, 1] * square[:, None])).sum(axis=1)
        here = shares > 0
        for part in np.array_split(np.arange(len(hkl)), 1 + len(hkl) * int(here.sum()) // 2**21):
            phases = np.exp(2j * np.pi * (hkl[part] @ frac[here].T)) @ shares[here]
            total[part] += (z - 41.78214 * square[part] * gauss[part]) * phases
    lorentz = (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta))
    return _merged(np.degrees(2 * theta), np.abs(total) ** 2 * lorentz)


def _reflections(matrix: Array, most: float) -> tuple[Array, Array]:
    """Indices (m, 3), one of each pair ±hkl, and q = 1/d (m,) up to ``most``, by rising q."""
    inverse = np.linalg.inv(matrix)
    reach = [int(most * np.linalg.norm(row)) for row in matrix]
    axes = [np.arange(-r, r + 1, dtype=float) for r in reach]
    h, k, m = (x.ravel() for x in np.meshgrid(*axes, indexing="ij"))
    half = (h > 0) | ((h == 0) & (k > 0)) | ((h == 0) & (k == 0) & (m > 0))
    hkl = np.stack([h, k, m], axis=1)[half]
    q = np.linalg.norm(hkl @ inverse.T, axis=1)
    order = np.argsort(q, kind="stable")
    order = order[q[order] <= most]
    return hkl[order], q[order]


def _merged(angles: Array, heights: Array) -> Sticks:
    """Peaks at one angle added up, the highest 100, those below a hundred-thousandth left out."""
    if not len(angles) or not heights.max() > 0:
        return Sticks(np.zeros(0), np.zeros(0))
    which = np.concatenate([[0], np.cumsum(np.diff(angles) > _SAME_DEG)])
    sums = np.bincount(which, heights)
    places = angles[np.concatenate([[0], np.flatnonzero(np.diff(which)) + 1])]
    scaled = 100 * sums / sums.max()
    kept = scaled > _FAINT
    return Sticks(places[kept], scaled[kept])


@lru_cache(maxsize=1)
def _scattering_factors() -> dict[str, tuple[int, Array]]:
    """Symbol -> Z and the terms (n, 2) of its scattering factor, from pymatgen's table."""
    from pymatgen.core import Element

    try:
        source = resources.files("pymatgen.analysis.diffraction") / "atomic_scattering_params.json"
        rows = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file moved: the module knows where to
        from pymatgen.analysis.diffraction.xrd import ATOMIC_SCATTERING_PARAMS

        rows = ATOMIC_SCATTERING_PARAMS
    return {symbol: (int(Element(symbol).Z), np.asarray(terms)) for symbol, terms in rows.items()}


def profile(sticks: Sticks, two_theta: Array, *, fwhm_deg: float = FWHM_DEG) -> Array:
    """Gaussian peaks of equal width at the angles ``two_theta`` (m,), 1 at the highest point."""
    if not len(sticks.two_theta):
        return np.zeros(len(two_theta))
    sigma = fwhm_deg / 2.3548
    offsets = two_theta[:, None] - sticks.two_theta[None, :]
    heights = np.exp(-0.5 * (offsets / sigma) ** 2) @ sticks.intensity
    return np.asarray(heights / max(float(heights.max()), 1e-12), dtype=float)


def similarity(measured: Pattern, structure: Any) -> Likeness:
    """Similarity of a measured pattern to that of a structure, at the best scale of its cell.

    On the axis x = ln q, q = 2 sin(θ) / λ, a scale of the cell is a shift. With f the simulated
    and g the measured intensity (per dx, so that peaks keep their area) and the triangle
    w(r) = max(0, 1 - |r| / ``TOLERANCE``),

        <f, g> = ∫∫ f(x) w(y - x) g(y) dx dy,    S = <f, g> / sqrt(<f, f> <g, g>),

    the peak-shift tolerant cross-correlation of R. de Gelder, R. Wehrens and J. A. Hageman,
    J. Comput. Chem. 22, 273 (2001), there on 2θ. The best S over scales 1 ± ``SCALE_RANGE`` is
    taken: 1 for equal patterns, never more, since w is positive definite.
    """
    sticks = simulate(structure, measured.wavelength, upto_deg=_upper(measured))
    if not len(sticks.two_theta):
        return Likeness(0.0, 1.0)
    return _best(_Measured.of(measured), sticks, measured.wavelength)


@dataclass(frozen=True)
class _Measured:
    """The measured side of the overlap, the same for all candidates."""

    x: Array
    smoothed: Array
    norm: float

    @staticmethod
    def of(pattern: Pattern) -> _Measured:
        return _prepare(pattern.two_theta.tobytes(), pattern.counts.tobytes(), pattern.wavelength)


@lru_cache(maxsize=4)
def _prepare(angles: bytes, counts: bytes, wavelength: float) -> _Measured:
    grid, peaks = Pattern(np.frombuffer(angles), np.frombuffer(counts), wavelength).peaks()
    low, high = max(grid[0], _MIN_ANGLE_DEG), min(grid[-1], _MAX_ANGLE_DEG)
    x = np.arange(_log_q(low, wavelength), _log_q(high, wavelength), _STEP)
    theta = np.arcsin(np.exp(x) * wavelength / 2)
    # d(2θ)/dx = 2 tan θ: a peak keeps its area when the axis changes.
    values = np.interp(np.degrees(2 * theta), grid, peaks) * 2 * np.tan(theta)
    smoothed = _smear(values[None])[0]
    return _Measured(x, smoothed, float(np.sqrt(max(values @ smoothed, 0.0))))


def _best(measured: _Measured, sticks: Sticks, wavelength: float) -> Likeness:
    margin = round(SCALE_RANGE / _STEP)
    x0 = measured.x[0] - margin * _STEP
    simulated = _on_grid(sticks, wavelength, x0, len(measured.x) + 2 * margin)
    shifts = np.arange(-margin, margin + 1, _SCALE_STEPS)
    windows = np.stack([simulated[margin + s : margin + s + len(measured.x)] for s in shifts])
    norms = np.sqrt(np.clip((windows * _smear(windows)).sum(axis=1), 0.0, None)) * measured.norm
    scores = np.where(norms > 0, windows @ measured.smoothed / np.where(norms > 0, norms, 1), 0)
    best = int(np.argmax(scores))
    scale = float(np.exp(shifts[best] * _STEP))
    return Likeness(min(1.0, max(0.0, float(scores[best]))), scale)


def _on_grid(sticks: Sticks, wavelength: float, x0: float, size: int) -> Array:
    """Peaks of ``FWHM_DEG`` and equal area on the grid x0 + k * step of ln q."""
    theta = np.radians(sticks.two_theta / 2)
    centre = (np.log(2 * np.sin(theta) / wavelength) - x0) / _STEP
    sigma = np.maximum(np.radians(FWHM_DEG / 2.3548 / 2) / np.tan(theta) / _STEP, 1.0)
    values = np.zeros(size)
    for middle, width, height in zip(centre, sigma, sticks.intensity, strict=True):
        first, last = max(0, int(middle - 5 * width)), min(size, int(middle + 5 * width) + 2)
        if first < last:
            offset = (np.arange(first, last) - middle) / width
            values[first:last] += height / width * np.exp(-0.5 * offset**2)
    return values


def _smear(rows: Array) -> Array:
    """Each row (m, n) convolved with the triangle w, in units of the grid."""
    half = round(TOLERANCE / _STEP)
    kernel = 1 - np.abs(np.arange(-half, half + 1)) / half
    size = rows.shape[1] + 2 * half
    spectrum = np.fft.rfft(rows, size) * np.fft.rfft(kernel, size)
    return np.asarray(np.fft.irfft(spectrum, size)[:, half : half + rows.shape[1]], dtype=float)


def _log_q(two_theta: float, wavelength: float) -> float:
    return float(np.log(2 * np.sin(np.radians(two_theta / 2)) / wavelength))


def _upper(measured: Pattern) -> float:
    """2θ up to which peaks matter: a larger scale brings some from beyond the measured range."""
    highest = np.sin(np.radians(min(measured.two_theta[-1], _MAX_ANGLE_DEG) / 2))
    return float(np.degrees(2 * np.arcsin(min(0.999, highest * (1 + SCALE_RANGE + 0.01)))))


def rank_by_pattern(
    ranking: Ranking,
    measured: Pattern,
    *,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Ranking:
    """The same candidates, the most similar to a measured pattern first (ties: as they were).

    All formulas together: the pattern decides between them too. Each candidate is scored by its
    symmetrised cell and gets ``xrd_similarity`` and ``xrd_scale``.
    """
    scored = []
    for done, candidate in enumerate(ranking.candidates, start=1):
        found = similarity(measured, candidate.symmetric.structure)
        facts = {"xrd_similarity": round(found.similarity, 4), "xrd_scale": round(found.scale, 4)}
        scored.append(replace(candidate, scores={**candidate.scores, **facts}))
        on_progress("diffraction", done, len(ranking.candidates))
    scored.sort(key=lambda c: -c.scores["xrd_similarity"])
    ranked = [replace(candidate, rank=rank) for rank, candidate in enumerate(scored, start=1)]
    return replace(ranking, candidates=ranked)
