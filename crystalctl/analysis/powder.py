"""A measured powder pattern: two columns of a text file -> peaks without background.

Angles are 2θ in degrees, wavelengths Å, intensities in counts (any unit: only shape is used).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalctl.errors import InputError

Array = NDArray[np.float64]

CU_K_ALPHA = 1.54184
"""Wavelength in Å of copper, the mean of its two lines."""
MIN_POINTS = 10
MAX_STEP_DEG = 0.5
"""A scan with wider steps than a peak is wide has lost its peaks (or is a list of peaks)."""
BACKGROUND_DEG = 2.0
"""Half-width of the widest structure that counts as a peak and not as background."""
SMOOTHING_DEG = 0.3
"""Running mean before the background is looked for, which noise would pull down."""
_LARGEST_SHIFT = 0.03
"""Part of the highest peak by which the background may be lifted into the middle of the noise."""
_MAX_POINTS = 20_000
_COMMENT = ("#", "!", "%", "//", "'", '"', "*")
_FORMAT = "give two columns, 2θ in degrees and counts; lines with # are comments"


@dataclass(frozen=True)
class Pattern:
    """A measured pattern. ``two_theta`` (n,) degrees, increasing; ``counts`` (n,) as measured."""

    two_theta: Array
    counts: Array
    wavelength: float
    name: str = "measured"

    def plain(self) -> dict[str, Any]:
        """What identifies it: two runs with the same are ranked alike."""
        digest = hashlib.sha256(self.two_theta.tobytes() + self.counts.tobytes()).hexdigest()
        return {"sha256": digest, "wavelength": self.wavelength}

    def peaks(self) -> tuple[Array, Array]:
        """2θ on an even grid (m,) and the intensity above the background, 1 at the highest peak."""
        return above_background(self.two_theta, self.counts)


def parse_wavelength(text: str | float) -> float:
    """Wavelength in Å from a number or a name of pymatgen's table (CuKa, MoKa1, ...).

    Raises ``InputError`` for an unknown name and for what no diffractometer has.
    """
    try:
        value = float(text)
    except ValueError:
        if str(text).strip().lower() == "cuka":
            return CU_K_ALPHA  # without the table, whose module loads a plotting library
        from pymatgen.analysis.diffraction.xrd import WAVELENGTHS

        named = {name.lower(): float(x) for name, x in WAVELENGTHS.items()}
        key = str(text).strip().lower()
        if key not in named:
            allowed = ", ".join(WAVELENGTHS)
            raise InputError(
                f"unknown wavelength '{text}'", f"allowed: a number in Å, or {allowed}"
            ) from None
        return named[key]
    if not 0.1 <= value <= 5.0:
        raise InputError(f"--wavelength is {text}", "allowed: 0.1 to 5 Å, or a name like CuKa")
    return value


def read_pattern(path: Path | str, wavelength: str | float = "CuKa") -> Pattern:
    """Read a measured pattern from a text file of two columns, 2θ and counts.

    Columns may be separated by spaces, tabs, commas or semicolons, with decimal commas where the
    separator is no comma; further columns (errors) are ignored. Lines before the first pair of
    numbers are a header. Points are sorted by angle, equal angles averaged. Raises ``InputError``
    for anything that is no such file.
    """
    path = Path(path)
    value = parse_wavelength(wavelength)
    pairs = _pairs(_text(path), path)
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) and not (points[:, 0].min() >= 0 and points[:, 0].max() < 180):
        low, high = points[:, 0].min(), points[:, 0].max()
        raise InputError(f"{path}: 2θ runs from {low:g} to {high:g}°", "allowed: 0 to 180°")
    angles, where = np.unique(points[:, 0], return_inverse=True)
    if len(angles) < MIN_POINTS:
        raise InputError(
            f"{path} has {len(angles)} points, at least {MIN_POINTS} are needed", _FORMAT
        )
    counts = np.bincount(where, points[:, 1]) / np.bincount(where)
    step = float(np.median(np.diff(angles)))
    if step > MAX_STEP_DEG:
        raise InputError(
            f"{path} has a point every {step:.2g}°, too few to see peaks",
            f"give the scan itself, not a list of peaks; steps up to {MAX_STEP_DEG}°",
        )
    if np.ptp(counts) <= 0:
        raise InputError(f"{path} has the same counts everywhere", _FORMAT)
    # Some are negative where a background was subtracted; not all.
    if counts.max() <= 0:
        raise InputError(f"{path} has no positive counts (highest {counts.max():g})", _FORMAT)
    pattern = Pattern(angles, counts, value, path.name)
    if not pattern.peaks()[1].max() > 0:
        raise InputError(f"{path} has no peak above its background", _FORMAT)
    return pattern


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})", _FORMAT) from error
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw:
        raise InputError(
            f"{path} is a binary file", "export it as text: two columns, 2θ in degrees and counts"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")  # ° and Å in the headers of older programs


def _pairs(text: str, path: Path) -> list[tuple[float, float]]:
    pairs: list[tuple[float, float]] = []
    single = False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith(_COMMENT):
            continue
        numbers = _numbers(line)
        if numbers is not None and len(numbers) >= 2:
            pairs.append((numbers[0], numbers[1]))
        elif pairs:
            what = "is not two numbers" if numbers is None else "has one number"
            shown = line if len(line) <= 40 else f"{line[:37]}..."
            raise InputError(f"{path}, line {number} {what}: '{shown}'", _FORMAT)
        else:
            single = single or numbers is not None
    if not pairs:
        what = "has one column, not two" if single else "holds no numbers"
        raise InputError(f"{path} {what}", _FORMAT)
    return pairs


def _numbers(line: str) -> list[float] | None:
    """The leading numbers of a line; None when it does not start with one."""
    for comment in ("#", "!"):
        line = line.split(comment)[0]
    if ";" in line or "\t" in line:
        fields = [f for f in re.split(r"[;\t]\s*", line.strip()) if f]
        if len(fields) == 1:
            fields = fields[0].split()
        fields = [f.replace(",", ".") if f.count(",") == 1 else f for f in fields]
    elif re.fullmatch(r"\s*[-+]?\d+,\d+(\s+[-+]?\d+(,\d+)?)+\s*", line):
        fields = line.replace(",", ".").split()  # decimal commas between spaces
    else:
        fields = [f for f in re.split(r"[,\s]+", line.strip()) if f]
    found: list[float] = []
    for field in fields:
        try:
            found.append(float(field))
        except ValueError:
            break
    return found or None


def above_background(two_theta: Array, counts: Array) -> tuple[Array, Array]:
    """Even 2θ grid (m,) and the intensity above the background there, 1 at the highest point.

    The background is what SNIP clipping leaves: each value is replaced by the mean of its two
    neighbours at a distance growing to ``BACKGROUND_DEG`` where that is lower, on the scale
    log(log(sqrt(y + 1) + 1) + 1) that evens out large and small peaks. It is looked for in a
    running mean, then lifted to the middle of the noise, which is kept with both signs so that it
    cancels in an overlap.
    Ref: C. G. Ryan et al., Nucl. Instrum. Methods B 34, 396 (1988).
    """
    step = max(float(np.median(np.diff(two_theta))), float(np.ptp(two_theta)) / _MAX_POINTS)
    grid = np.arange(two_theta[0], two_theta[-1] + step / 2, step)
    values = np.interp(grid, two_theta, counts)
    smooth = _running_mean(values, round(SMOOTHING_DEG / step))
    floor = min(0.0, float(smooth.min()))
    level = np.log(np.log(np.sqrt(smooth - floor + 1) + 1) + 1)
    for width in range(min(round(BACKGROUND_DEG / step), (len(grid) - 1) // 2), 0, -1):
        around = (level[2 * width :] + level[: -2 * width]) / 2
        level[width:-width] = np.minimum(level[width:-width], around)
    background = (np.exp(np.exp(level) - 1) - 1) ** 2 - 1 + floor
    peaks = values - background
    peaks -= min(max(_middle(peaks), 0.0), _LARGEST_SHIFT * max(float(peaks.max()), 0.0))
    highest = float(peaks.max())
    return grid, peaks / highest if highest > 0 else peaks * 0.0


def _middle(values: Array) -> float:
    """Median of what is left when the peaks are clipped away."""
    kept = values
    for _ in range(8):
        centre = float(np.median(kept))
        spread = 1.4826 * float(np.median(np.abs(kept - centre)))
        inside = kept[np.abs(kept - centre) <= 2.5 * spread]
        if len(inside) == len(kept) or not len(inside):
            break
        kept = inside
    return float(np.median(kept))


def _running_mean(values: Array, width: int) -> Array:
    """Mean over ``width`` points (made odd) around each; the ends are continued as they are."""
    half = max(0, min(width, len(values)) // 2)
    if half == 0:
        return values.copy()
    padded = np.concatenate([np.full(half, values[0]), values, np.full(half, values[-1])])
    window: Any = np.full(2 * half + 1, 1 / (2 * half + 1))
    return np.asarray(np.convolve(padded, window, mode="valid"), dtype=float)
