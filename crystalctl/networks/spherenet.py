"""Message passing on a periodic multigraph with distance, angle and torsion bases.

After SphereNet (Liu et al., arXiv:2102.05013). The sums over triplets (angles) and over pairs of
neighbours at both ends of a bond (torsions) are never formed one by one. With Y_lm normalised so
that sum_m Y_lm(u) Y_lm(v) = P_l(u . v) (the addition theorem), the density of an atom

    rho_lm = sum over its neighbours k of c_l(k) Y_lm(direction to k)

gives for an edge from i to j with direction u

    angles at i    sum_k c_l(k) P_l(cos angle(k, i, j)) = sum_m rho_lm(i) Y_lm(u)
    angles at j    the same with -u
    torsions       sum_k,q c_l(k) c_l(q) P_l(cos angle(ik, jq)) = sum_m rho_lm(i) rho_lm(j)

and cos angle(ik, jq) = cos a cos b + sin a sin b cos(torsion). The cost is linear in the number of
edges. All torsions count, where the original takes the nearest reference neighbour: in a symmetric
crystal there are several nearest ones, and picking one would not be invariant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z
from crystalctl.crystal.periodic import Neighbours


def harmonics(unit: Tensor, n_degrees: int) -> Tensor:
    """Real spherical harmonics of degrees 0 .. n - 1: (E, 3) unit vectors -> (E, n^2).

    Degree by degree, m from -l to l; sum_m Y_lm(u) Y_lm(v) = P_l(u . v).
    Ref: recursions of the associated Legendre functions, Abramowitz & Stegun 8.5.3.
    """
    x, y, z = unit.unbind(1)
    top = n_degrees - 1
    # sin^m(theta) cos(m phi) and sin(m phi), as polynomials of x and y.
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(top):
        c, s = cosine[-1], sine[-1]
        cosine.append(x * c - y * s)
        sine.append(x * s + y * c)
    found: dict[tuple[int, int], Tensor] = {}
    for m in range(n_degrees):
        legendre = [torch.full_like(z, float(math.prod(range(1, 2 * m, 2))))]
        for degree in range(m + 1, n_degrees):
            below = legendre[-2] if len(legendre) > 1 else torch.zeros_like(z)
            step = (2 * degree - 1) * z * legendre[-1] - (degree + m - 1) * below
            legendre.append(step / (degree - m))
        for degree, values in enumerate(legendre, start=m):
            fraction = math.factorial(degree - m) / math.factorial(degree + m)
            values = values * math.sqrt((2 if m else 1) * fraction)
            found[degree, m] = values * cosine[m]
            found[degree, -m] = values * sine[m] if m else found[degree, 0]
    return torch.stack([found[k, m] for k in range(n_degrees) for m in range(-k, k + 1)], 1)


def radial_basis(distance: Tensor, n: int, cutoff: float) -> Tensor:
    """sin(n pi d / c) / d times an envelope that goes to 0 at the cutoff c, (E, n); d in Å.

    Ref: Eq. 7, arXiv:2003.03123, without the factor sqrt(2 / c).
    """
    order = torch.arange(1, n + 1, device=distance.device, dtype=distance.dtype)
    # sinc has no pole at 0.
    waves = torch.sinc(distance[:, None] * order / cutoff) * order
    return waves * _envelope(distance, cutoff)[:, None]


def _envelope(distance: Tensor, cutoff: float) -> Tensor:
    return 0.5 * (torch.cos(math.pi * (distance / cutoff).clamp(max=1)) + 1)


class _Interaction(nn.Module):
    """One layer: densities from the edges, then every edge learns its angles and torsions."""

    def __init__(self, hidden: int, channels: int, n_radial: int, n_spherical: int) -> None:
        super().__init__()
        self.channels, self.n_spherical = channels, n_spherical
        self.down = nn.Linear(hidden, channels)
        self.radial = nn.Linear(n_radial, n_spherical * channels, bias=False)
        n_features = 3 * n_spherical * channels
        self.norm = nn.LayerNorm(n_features)
        self.update = nn.Sequential(
            nn.Linear(hidden + n_features, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(
        self, x: Tensor, radial: Tensor, angular: Tensor, edges: Neighbours, n_atoms: int
    ) -> Tensor:
        """(E, H) -> (E, H); ``radial`` (E, n_radial), ``angular`` (E, n_spherical^2)."""
        sizes = [2 * k + 1 for k in range(self.n_spherical)]
        weight = self.radial(radial).view(len(x), self.n_spherical, self.channels)
        weight = weight * self.down(x)[:, None]
        # split, not slices: the backward of a slice fills a tensor of the whole size with zeros.
        y = angular[:, :, None].split(sizes, 1)
        terms = [a * b for a, b in zip(y, weight.split(1, 1), strict=True)]
        rho = x.new_zeros(n_atoms, angular.shape[1], self.channels)
        rho = rho.index_add(0, edges.receiver, torch.cat(terms, 1).to(rho.dtype))
        here = rho.index_select(0, edges.receiver).split(sizes, 1)
        there = rho.index_select(0, edges.sender).split(sizes, 1)
        features = []
        for k in range(self.n_spherical):
            features += [
                (here[k] * y[k]).sum(1),
                (there[k] * y[k]).sum(1) * (-1) ** k,  # Y_l(-u) = (-1)^l Y_l(u)
                (here[k] * there[k]).sum(1),
            ]
        change: Tensor = self.update(torch.cat([x, self.norm(torch.cat(features, 1))], 1))
        return x + change


class SphereNet(nn.Module):
    """Invariant features of each edge, and of each atom.

    ``context`` is the width of a vector per atom that the edges see besides the species.
    """

    def __init__(
        self,
        *,
        hidden: int,
        n_layers: int,
        channels: int,
        n_radial: int,
        n_spherical: int,
        cutoff: float,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_radial, self.n_spherical = cutoff, n_radial, n_spherical
        self.embedding = nn.Embedding(MAX_Z, hidden)
        self.context = nn.Linear(context, hidden) if context else None
        self.ends = nn.Linear(hidden, 2 * hidden)
        self.radial = nn.Linear(n_radial, hidden)
        self.first = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden))
        self.layers = nn.ModuleList(
            _Interaction(hidden, channels, n_radial, n_spherical) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(
        self, species: Tensor, edges: Neighbours, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features of edges (E, H) and of atoms (A, H).

        ``species`` (A,) atomic numbers; ``context`` (A, context).
        """
        h = self.embedding(species - 1)
        if self.context is not None:
            h = h + self.context(context)
        to, of = self.ends(h).chunk(2, 1)
        radial = radial_basis(edges.distance, self.n_radial, self.cutoff)
        angular = harmonics(edges.direction, self.n_spherical)
        ends = to.index_select(0, edges.receiver) + of.index_select(0, edges.sender)
        x = self.first(ends + self.radial(radial))
        for layer in self.layers:
            x = layer(x, radial, angular, edges, len(species))
        x = self.norm(x)
        weight = _envelope(edges.distance, self.cutoff)[:, None]
        pooled = torch.zeros_like(h).index_add(0, edges.receiver, (x * weight).to(h.dtype))
        return x, h + pooled
