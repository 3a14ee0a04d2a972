"""Lattice reductions with the results of pymatgen's, in a fraction of their time, or none.

pymatgen reduces the metric of a lattice with tolerances, after an LLL reduction, then looks for
the Niggli cell among the vectors of the lattice as given: the first triple, in its order, with
about the lengths and angles found. Here the metric is six plain numbers. Rounding differs from
pymatgen's, so every comparison is watched. Where one is within rounding of its threshold, or where
a tie of the LLL reduction meets numbers that are equal to the tolerance but not to rounding (so
that the way there matters), there is no answer, and pymatgen itself has to be asked.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = list[list[float]]
Numbers = tuple[float, float, float, float, float, float]

_TOL = 1e-5
"""pymatgen's tolerance, times the cube root of the volume."""
_ANGLE_TOL_DEG = 1.0
_ROUNDING = 1e-11
"""Sums of squares that differ by less, relatively, may be equal."""
_CLOSE = 1e-9
"""Numbers that differ by less, relatively, may be equal."""
_ROUNDS = 100
_ORIGIN, _PERIODIC = np.zeros((1, 3)), np.ones(3, dtype=np.int64)


def niggli_cell(matrix: Array) -> Array | None:
    """``Lattice(matrix).get_niggli_reduced_lattice().matrix``, (3, 3) Å rows; None = not sure."""
    a, b, c = basis = matrix.tolist()
    size = abs(_dot(a, _cross(b, c)))
    if not 0 < size < math.inf:
        return None
    (a, b, c), _, tied = _lll(basis)
    twice = 2 * _dot(b, c), 2 * _dot(a, c), 2 * _dot(a, b)
    metric = _Metric((_dot(a, a), _dot(b, b), _dot(c, c), *twice), _TOL * size ** (1 / 3))
    if not metric.reduce() or metric.doubtful or (tied and metric.nearly):
        return None
    return _first_triple(matrix, metric)


class _Metric:
    """Squares of a, b, c and twice b·c, a·c, a·b: Å².

    ``doubtful``: a comparison was within rounding of its threshold. ``nearly``: two numbers were
    equal to the tolerance, but not to rounding. Ref: Grosse-Kunstleve et al., Acta Cryst. A 60, 1.
    """

    def __init__(self, numbers: Numbers, tolerance: float) -> None:
        self.numbers, self.tolerance = numbers, tolerance
        self.rounding = _ROUNDING * sum(numbers[:3])
        self.doubtful, self.nearly = 10 * self.rounding > tolerance, False

    def sign(self, number: float) -> int:
        """-1, 0 or 1; 0 within the tolerance."""
        size = abs(number)
        if size < self.rounding:
            return 0
        if abs(size - self.tolerance) < self.rounding:
            self.doubtful = True
        if size < self.tolerance:
            self.nearly = True
            return 0
        return 1 if number > 0 else -1

    def reduce(self) -> bool:
        """Niggli's conditions; False where they are not reached in pymatgen's number of rounds."""
        return any(self._ordered() and not self._shortened() for _ in range(_ROUNDS))

    def _ordered(self) -> bool:
        """Steps 1 to 4: a <= b <= c and signs; False where pymatgen begins again after step 2."""
        a, b, c, e, n, y = self.numbers
        first = self.sign(a - b)
        if first == 1 or (first == 0 and self.sign(abs(e) - abs(n)) == 1):
            a, b, e, n = b, a, n, e
        second = self.sign(b - c)
        if second == 1 or (second == 0 and self.sign(abs(n) - abs(y)) == 1):
            self.numbers = a, c, b, e, y, n
            return False
        signs = self.sign(e), self.sign(n), self.sign(y)
        if math.prod(signs) == 1:
            i, j, k = (-1 if one == -1 else 1 for one in signs)
        else:
            i, j, k = (-1 if one == 1 else 1 for one in signs)
            if i * j * k == -1:
                if signs[2] == 0:
                    k = -1
                elif signs[1] == 0:
                    j = -1
                elif signs[0] == 0:
                    i = -1
        self.numbers = a, b, c, e * j * k, n * i * k, y * i * j
        return True

    def _shortened(self) -> bool:
        """Steps 5 to 8: one vector made shorter by others; False where none is."""
        a, b, c, e, n, y = self.numbers
        if self._long(e, b, y, n):
            s = math.copysign(1, e)
            self.numbers = a, b, c + b - s * e, e - 2 * s * b, n - s * y, y
        elif self._long(n, a, y, e):
            s = math.copysign(1, n)
            self.numbers = a, b, c + a - s * n, e - s * y, n - 2 * s * a, y
        elif self._long(y, a, n, e):
            s = math.copysign(1, y)
            self.numbers = a, b + a - s * y, c, e - s * n, n, y - 2 * s * a
        else:
            total = self.sign(e + n + y + a + b)
            if not (total == -1 or (total == 0 and self.sign(y + 2 * (a + n)) == 1)):
                return False
            self.numbers = a, b, a + b + c + e + n + y, y + 2 * b + e, 2 * a + y + n, y
        return True

    def _long(self, twice: float, square: float, other: float, third: float) -> bool:
        """Whether a vector gets shorter, or no longer and better, by the one of this square."""
        return (
            self.sign(abs(twice) - square) == 1
            or (self.sign(twice - square) == 0 and self.sign(other - 2 * third) == 1)
            or (self.sign(twice + square) == 0 and self.sign(other) == -1)
        )


def _first_triple(matrix: Array, metric: _Metric) -> Array | None:
    """The first right-handed triple of lattice vectors with the lengths and angles of the metric.

    In pymatgen's order and by its floating-point operations; None where there is none or a length
    or an angle is within rounding of its tolerance.
    """
    lengths, within = np.sqrt(metric.numbers[:3]), 1 + metric.tolerance
    steps, dist = _points(matrix, float(lengths.max()) * within)
    ratio = dist / lengths[:, None]
    axes, at = np.nonzero(np.abs(ratio - 1) < 2 * metric.tolerance)
    cart = steps @ matrix
    near: tuple[list[int], ...] = ([], [], [])
    for axis, point, far in zip(axes.tolist(), at.tolist(), ratio[axes, at].tolist(), strict=True):
        if min(abs(far - within), abs(far * within - 1)) < _CLOSE:
            return None
        if 1 / within < far < within:
            near[axis].append(point)
    triple = _right_handed(near, steps.tolist(), cart.tolist(), metric)
    if triple is None or metric.doubtful:
        return None
    cell = cart[list(triple)]
    return np.asarray(cell if np.linalg.det(cell) > 0 else -cell)


def _right_handed(
    near: tuple[list[int], ...], steps: Rows, cart: Rows, metric: _Metric
) -> tuple[int, int, int] | None:
    a, b, c, *twice = metric.numbers
    products = b * c, a * c, a * b
    alpha, beta, gamma = (
        math.degrees(math.acos(x / 2 / math.sqrt(y))) for x, y in zip(twice, products, strict=True)
    )

    def fits(one: int, other: int, angle: float) -> bool:
        v, w = cart[one], cart[other]
        cosine = _dot(v, w) / math.sqrt(_dot(v, v) * _dot(w, w))
        off = abs(math.degrees(math.acos(max(-1.0, min(cosine, 1.0)))) - angle)
        metric.doubtful |= abs(off - _ANGLE_TOL_DEG) < _CLOSE
        return off <= _ANGLE_TOL_DEG

    for i in near[0]:
        for j in (j for j in near[1] if fits(i, j, gamma)):
            normal = _cross(steps[i], steps[j])
            for k in near[2]:
                if _dot(normal, steps[k]) > 0 and fits(i, k, beta) and fits(j, k, alpha):
                    return i, j, k
    return None


def _points(matrix: Array, radius: float) -> tuple[Array, Array]:
    """Lattice points (N, 3) in steps of the basis, and distances (N,), in pymatgen's order."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    _, _, steps, dist = find_points_in_spheres(
        all_coords=_ORIGIN,
        center_coords=_ORIGIN,
        r=radius,
        pbc=_PERIODIC,
        lattice=np.ascontiguousarray(matrix),
        tol=1e-8,
    )
    return steps, dist


def is_lll_reduced(cells: Array) -> NDArray[np.bool_]:
    """Whether the LLL reduction (delta 3/4) surely leaves each of the cells (M, 3, 3) as it is."""
    a, b, c = cells.transpose(1, 0, 2)
    aa = (a * a).sum(1)
    ab, ac = (a * b).sum(1) / aa, (a * c).sum(1) / aa
    b = b - ab[:, None] * a
    bb = (b * b).sum(1)
    bc = (b * c).sum(1) / bb
    c = c - ac[:, None] * a - bc[:, None] * b
    small = (np.abs(np.stack([ab, ac, bc])) < 0.5 - _CLOSE).all(axis=0)
    second = bb > (0.75 - ab**2 + _CLOSE) * aa
    return np.asarray(small & second & ((c * c).sum(1) > (0.75 - bc**2 + _CLOSE) * bb))


@lru_cache(maxsize=4096)
def lll_steps(raw: bytes) -> tuple[Array, Array] | None:
    """LLL reduction (delta 3/4) of the cell (3, 3) with these bytes, None where it is not sure.

    The reduced basis in multiples of the given one (3, 3), and the inverse. Not sure: a decision
    compares numbers that are equal to rounding.
    """
    _, steps, tied = _lll(np.frombuffer(raw).reshape(3, 3).tolist())
    if tied:
        return None
    found = np.array(steps, dtype=float)
    return found, np.linalg.inv(found)


def _lll(basis: Rows) -> tuple[Rows, list[list[int]], bool]:
    """LLL reduction: basis, the same in multiples of the given one, whether two ways were equal."""
    steps = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    k, tied = 1, False
    while k < 3:
        ratios, squares = _gram_schmidt(basis, k)
        for i in range(k - 1, -1, -1):
            times = round(ratios[i])
            tied |= abs(abs(ratios[i] - times) - 0.5) < _CLOSE
            if times:
                basis[k] = [x - times * y for x, y in zip(basis[k], basis[i], strict=True)]
                steps[k] = [x - times * y for x, y in zip(steps[k], steps[i], strict=True)]
                ratios, squares = _gram_schmidt(basis, k)
        least = (0.75 - ratios[k - 1] ** 2) * squares[k - 1]
        tied |= abs(squares[k] - least) < _CLOSE * squares[k - 1]
        if squares[k] >= least:
            k += 1
        else:
            basis[k - 1], basis[k] = basis[k], basis[k - 1]
            steps[k - 1], steps[k] = steps[k], steps[k - 1]
            k = max(k - 1, 1)
    return basis, steps, tied


def _gram_schmidt(basis: Rows, k: int) -> tuple[list[float], list[float]]:
    """Coefficients of vector k on the orthogonalised ones before it; squares of 0..k of these."""
    orthogonal: Rows = []
    squares: list[float] = []
    ratios: list[float] = []
    for x, y, z in basis[: k + 1]:
        ratios = []
        rest = [x, y, z]
        for (u, v, w), square in zip(orthogonal, squares, strict=True):
            ratio = (x * u + y * v + z * w) / square
            ratios.append(ratio)
            rest = [rest[0] - ratio * u, rest[1] - ratio * v, rest[2] - ratio * w]
        orthogonal.append(rest)
        squares.append(rest[0] ** 2 + rest[1] ** 2 + rest[2] ** 2)
    return ratios, squares


def _dot(one: list[float], other: list[float]) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def _cross(one: list[float], other: list[float]) -> list[float]:
    (a, b, c), (x, y, z) = one, other
    return [b * z - c * y, c * x - a * z, a * y - b * x]
