"""The law of centre-free periodic noise, and the von Mises law that stands for it.

n angles theta_i ~ N(0, s^2), s = 2 pi sigma, have the resultant S = sum exp(i theta_i) and the
circular mean arg S; the noise left of each is d = theta - arg S. Its cosine moments follow without
simulation from the Fourier transform of (S / |S|)^m, m / (2 pi k^2) (-i)^m exp(-i m phi):

    A_m = E cos(m d) = m (-i)^m / 2 pi  int dk / k  sum_j  i^(j-m) J_(j-m)(k) rho_j G_j(k)
    G_j(k) = int dphi exp(-i j phi) chi(k, phi)^(n-1)
    chi(k, phi) = E exp(i k cos(theta - phi)) = sum_j i^j J_j(k) rho_j exp(-i j phi)

with rho_j = exp(-j^2 s^2 / 2). Narrow noise, where that integral is slow, has a series in s; two
angles have a closed form. Concentration: A(kappa) = I_1 / I_0 = A_1, which is the maximum of the
likelihood. Ref: arXiv:2512.07289, App. C.2 (the paper simulates, for n up to 52).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

MOST_ATOMS = 200
"""Largest crystal the tables hold."""
NODES_N = np.array([3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40, 54, 74, 102, 142, 200])
"""Numbers of atoms the integral is computed for; the others are interpolated."""
N_WIDTHS = 18
WIDEST = 4.0
"""Width in radians from which on the noise counts as uniform: rho_1 = 3e-4."""
_RADII, _TURNS = 160, 160
"""Points of the integrals over k and phi."""


def moments(n: int, s: float) -> Array:
    """(A_1, 1 - A_2, E d^2 in rad^2) of ``n`` >= 3 angles of width ``s``, by quadrature.

    Meant for s above ``narrow(n)``; the error there is below 2e-3 for n = 3, 1e-4 from n = 4 on.
    """
    spread = (1 + math.exp(-2 * s * s)) / 2 - math.exp(-s * s)
    farthest = 60.0 if n < 9 else min(60.0, 8 / math.sqrt(n * spread))
    x, weight = np.polynomial.legendre.leggauss(_RADII)
    k = farthest * (x + 1) / 2
    weight = weight * farthest / 2 / k
    j = np.arange(-math.ceil(6.5 / s), math.ceil(6.5 / s) + 1)
    m = np.arange(1, j[-1] + 20)
    # i^l J_l(k) are the Fourier coefficients of exp(i k cos theta).
    size = 2 ** math.ceil(math.log2(farthest + 2 * (j[-1] + m[-1])) + 0.5)
    turn = 2 * np.pi * np.arange(size) / size
    bessel = np.fft.fft(np.exp(1j * k[:, None] * np.cos(turn)), axis=1) / size
    rho = np.exp(-(j**2) * s * s / 2)
    phi = 2 * np.pi * np.arange(_TURNS) / _TURNS
    chi = (bessel[:, j] * rho) @ np.exp(-1j * np.outer(j, phi))
    others = np.fft.fft(chi ** (n - 1), axis=1)[:, j % _TURNS] * (2 * np.pi / _TURNS)
    others = others * rho * weight[:, None]
    sums = np.array([(bessel[:, j - one] * others).sum() for one in m])
    a = (m * (-1j) ** m / (2 * np.pi) * sums).real
    return np.array([a[0], 1 - a[1], _mean_square(a, m)])


def _mean_square(a: Array, m: NDArray[np.int64]) -> float:
    """E d^2 from the moments, by the Fourier series of the square on (-pi, pi]."""
    return float(np.pi**2 / 3 + 4 * ((-1.0) ** m * a / m**2).sum())


def narrow(n: Array) -> Array:
    """Width in radians up to which the series serves: its error falls with n."""
    limit: Array = 0.35 * (n / 3) ** (1 / 6)
    return limit


def series(n: Array, s: Array) -> Array:
    """What ``moments`` gives, for small ``s``: (3, ...) for shapes that broadcast.

    d_i = delta_i + (mean of delta^3) / 6 to third order, delta the deviation from the ordinary
    mean, normal with variance s^2 (1 - 1/n); the leading correction of A_1 is half the mean square
    of that shift.
    """
    q = 1 - 1 / n
    variance = s * s * q
    first = np.exp(-variance / 2) + s**6 * q * (q * q - 1 / n**2) / (12 * n)
    return np.stack(np.broadcast_arrays(first, -np.expm1(-2 * variance), variance))


def two_angles(s: Array) -> Array:
    """What ``moments`` gives, for n = 2, (3, S): the circular mean is the bisector."""
    m = np.arange(1, 60)[:, None]
    rho = np.exp(-((m * s) ** 2))
    first = (2 + ((-1.0) ** m * rho / (0.25 - m**2)).sum(0)) / np.pi
    square = (np.pi**2 / 3 + 4 * ((-1.0) ** m * rho / m**2).sum(0)) / 4
    wide = np.stack([first, -np.expm1(-(s**2)), square])
    return np.where(s < 0.3, series(np.array(2.0), s), wide)


@lru_cache(maxsize=1)
def moment_nodes() -> Tensor:
    """Logarithms of ``moments`` on a grid, (3, N, S) float64: what takes time, two seconds."""
    rows = [
        [np.log(moments(int(n), s)) for s in np.geomspace(narrow(n), WIDEST, N_WIDTHS)]
        for n in NODES_N
    ]
    return torch.from_numpy(np.array(rows).transpose(2, 0, 1).copy())


def cubic_weights(nodes: Array, at: Array) -> Array:
    """Cubic Lagrange interpolation as a matrix, (len(at), len(nodes)); ``nodes`` ascending."""
    first = np.clip(np.searchsorted(nodes, at) - 2, 0, len(nodes) - 4)
    index = first[:, None] + np.arange(4)
    near = nodes[index]
    out = np.zeros((len(at), len(nodes)))
    for k in range(4):
        others = [j for j in range(4) if j != k]
        top = np.prod([at - near[:, j] for j in others], axis=0)
        out[np.arange(len(at)), index[:, k]] = top / np.prod(
            [near[:, k] - near[:, j] for j in others], axis=0
        )
    return out


def moments_of_all(nodes: Tensor, sigma: Tensor) -> Array:
    """``moments`` for n = 0..200 atoms and widths ``sigma`` (T,) > 0 in periods: (3, 201, T).

    Rows 0 and 1 (a single atom has no noise left) hold 1.
    """
    s = np.minimum(2 * np.pi * sigma.double().cpu().numpy(), WIDEST)
    grid = nodes.double().cpu().numpy()
    curves = []
    for row, n in enumerate(NODES_N.astype(float)):
        at = np.log(np.geomspace(narrow(n), WIDEST, N_WIDTHS))
        wide = cubic_weights(at, np.log(s)) @ grid[:, row].T
        curves.append(np.where(s < narrow(n), np.log(series(n, s)), wide.T))
    counts = np.log(np.arange(3, MOST_ATOMS + 1))
    every = np.exp(np.einsum("nk,kmt->mnt", cubic_weights(np.log(NODES_N), counts), curves))
    ones = np.ones((3, 2, len(s)))
    return np.concatenate([ones, two_angles(s)[:, None], every], 1)


def concentration(resultant: Tensor) -> Tensor:
    """kappa with I_1(kappa) / I_0(kappa) = ``resultant`` in (0, 1), float64, by Newton's method.

    The start is within 2 % (Best & Fisher 1981).
    """
    a = resultant
    low = 2 * a + a**3 + 5 * a**5 / 6
    middle = -0.4 + 1.39 * a + 0.43 / (1 - a)
    high = 1 / (a**3 - 4 * a**2 + 3 * a)
    kappa = torch.where(a < 0.53, low, torch.where(a < 0.85, middle, high))
    for _ in range(5):
        ratio = torch.special.i1e(kappa) / torch.special.i0e(kappa)
        slope = 1 - ratio / kappa - ratio**2
        kappa = kappa - (ratio - a) / slope
    return kappa


def law_tables(nodes: Tensor, sigma: Tensor) -> Tensor:
    """kappa, the mean square of the score and of the noise: (3, 201, T) float64, in periods.

    The score is -2 pi kappa sin(2 pi d), its mean square (2 pi kappa)^2 (1 - A_2) / 2. A single
    atom has kappa 0 and norms 1.
    """
    first, loss, square = torch.from_numpy(moments_of_all(nodes, sigma)).unbind(0)
    kappa = torch.zeros_like(first)
    kappa[2:] = concentration(first[2:])
    norm = (2 * math.pi * kappa) ** 2 * loss / 2
    norm[:2] = 1
    square = square / (2 * math.pi) ** 2
    square[:2] = 1
    return torch.stack([kappa, norm, square])
