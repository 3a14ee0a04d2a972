"""Lattice parameters one after the other, each a bin of a bin: exact likelihoods at 0.01 Å.

Ref: Sec. 4.2, arXiv:2505.10994. The order is a, b, c, alpha, beta, gamma; what the crystal family
fixes has probability 1. Each parameter falls into one of 100 bins of equal width, then into one of
the 100 bins of that bin, and its value is the middle. gamma is held to cells with a volume.

The logits depend on the group, the parameters before, and, where it is given, on what the cell
holds (``condition``), which the paper's do not.

Symbols: C crystals; the families are those of ``symmetry/groups.py``, in its order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.networks.layers import perceptron

N_BINS = 100
LOW = (0.0, 0.0, 0.0, 30.0, 30.0, 30.0)
HIGH = (100.0, 100.0, 100.0, 150.0, 150.0, 150.0)
"""Ranges of the lengths (Å) and angles (degrees); a longer axis counts as 100 Å in training."""
FREE = (
    (True, True, True, True, True, True),
    (True, True, True, False, True, False),
    (True, True, True, False, False, False),
    (True, False, True, False, False, False),
    (True, False, True, False, False, False),
    (True, False, False, False, False, False),
)
"""Which parameters a family leaves free: triclinic, monoclinic, orthorhombic, tetragonal,
hexagonal, cubic."""
HEXAGONAL = 4
JITTER = (0.3, 0.3, 0.3, 5.0, 5.0, 5.0)
"""Range of the uniform noise on the parameters before, in training (Å, degrees)."""
_WAVES = 16


class TelescopeNet(nn.Module):
    """``n_kind``: width of the features of a group; ``n_place``: of a Wyckoff position."""

    low: Tensor
    step: Tensor
    jitter: Tensor
    free_of: Tensor
    waves: Tensor
    n_values = N_BINS**2

    def __init__(self, hidden: int, n_kind: int, n_place: int) -> None:
        super().__init__()
        self.kind = nn.Linear(n_kind, hidden // 2)
        self.place = nn.Linear(n_place, hidden)
        self.element = nn.Embedding(MAX_Z + 1, hidden)
        self.orbit = perceptron(hidden, hidden, hidden)
        self.content = perceptron(hidden + 1, hidden, hidden // 2)
        width = 6 * (2 * _WAVES + 1) + 6 + hidden // 2
        self.trunk = perceptron(width, hidden, hidden)
        self.coarse = nn.Sequential(nn.SiLU(), nn.Linear(hidden, N_BINS))
        self.edge = nn.Linear(2 * _WAVES, hidden)
        self.fine = perceptron(hidden, hidden, N_BINS)
        low, high = torch.tensor(LOW), torch.tensor(HIGH)
        facts = {
            "low": low,
            "step": (high - low) / N_BINS**2,
            "jitter": torch.tensor(JITTER),
            "free_of": torch.tensor(FREE),
            "waves": 2.0 ** (torch.arange(_WAVES) / 2) * math.pi,
        }
        for name, tensor in facts.items():
            self.register_buffer(name, tensor, persistent=False)

    def condition(self, places: Tensor, species: Tensor, sizes: Tensor, layout: Layout) -> Tensor:
        """What cells hold, (C, hidden / 2).

        Per orbit ``places`` (O, n_place), ``species`` (O,) and ``sizes`` (O,), its atoms in the
        primitive cell; ``layout`` counts orbits.
        """
        orbit = self.orbit(nn.functional.silu(self.place(places) + self.element(species)))
        size = sizes.to(orbit.dtype)[:, None]
        rows = torch.cat([orbit * size, size], 1)
        sums = rows.new_zeros(layout.n_crystals, rows.shape[1])
        sums = sums.index_add(0, layout.crystal_idx, rows)
        total = sums[:, -1:]
        found: Tensor = self.content(torch.cat([sums[:, :-1] / total, total.log()], 1))
        return found

    def bins(self, parameters: Tensor) -> Tensor:
        """Number of the fine bin of each of (C, 6) parameters, 0 .. 9999, by the nearest."""
        number = torch.floor((parameters - self.low) / self.step).long()
        return number.clamp(0, N_BINS**2 - 1)

    def values(self, bins: Tensor) -> Tensor:
        """The middle of fine bins (C, 6)."""
        return self.low + (bins + 0.5) * self.step

    def log_probability(
        self,
        parameters: Tensor,
        family: Tensor,
        kind: Tensor,
        condition: Tensor | None,
        *,
        before: Tensor | None = None,
    ) -> Tensor:
        """log p of the bin of each parameter given those before, (C, 6), 0 where it is fixed.

        ``parameters`` (C, 6) in Å and degrees, ``family`` (C,) number, ``kind`` (C, n_kind),
        ``condition`` as of ``condition`` or None. ``before``: the parameters that are seen instead,
        for teacher forcing with noise.
        """
        bins = self.bins(parameters)
        seen = self.values(bins) if before is None else before
        coarse, within = bins // N_BINS, bins % N_BINS
        shared = self._shared(kind, condition)
        exact = self.values(bins)
        found = []
        for place in range(6):
            first, second = self._logits(place, seen, shared, coarse[:, place])
            one, two = first, second
            if place == 5:
                one, two = self._with_volume(one, two, coarse[:, 5], exact)
            rows = one.log_softmax(1).gather(1, coarse[:, place, None])
            rows = rows + two.log_softmax(1).gather(1, within[:, place, None])
            # Where no bin of gamma can be, there is nothing to share out.
            found.append(torch.where(rows.isnan(), -torch.inf, rows)[:, 0])
        return torch.stack(found, 1).masked_fill(~self.free_of[family], 0.0)

    def draw(
        self,
        uniform: Tensor,
        family: Tensor,
        kind: Tensor,
        condition: Tensor | None,
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """Parameters (C, 6) from numbers ``uniform`` (C, 12) in [0, 1)."""
        parameters = self.low + torch.zeros(len(kind), 6, device=kind.device)
        shared = self._shared(kind, condition)
        for place in range(6):
            hidden = self._hidden(place, parameters, shared)
            one = self.coarse(hidden)
            if place == 5:
                one = one.masked_fill(~self._possible(parameters).any(2), -torch.inf)
            coarse = pick(one / temperature, uniform[:, 2 * place])
            two = self._fine(hidden, coarse)
            if place == 5:
                rows = torch.arange(len(coarse), device=coarse.device)
                two = two.masked_fill(~self._possible(parameters)[rows, coarse], -torch.inf)
            fine = pick(two / temperature, uniform[:, 2 * place + 1])
            value = self.low[place] + (coarse * N_BINS + fine + 0.5) * self.step[place]
            parameters = parameters.clone()
            parameters[:, place] = torch.where(
                self.free_of[family, place], value, self._fixed(place, parameters, family)
            )
        return parameters

    def noised(self, parameters: Tensor, family: Tensor, uniform: Tensor) -> Tensor:
        """Parameters (C, 6) with the noise of teacher forcing; ``uniform`` (C, 6) in [0, 1)."""
        moved = parameters + (2 * uniform - 1) * self.jitter
        for place in range(6):
            fixed = self._fixed(place, moved, family)
            moved = moved.clone()
            moved[:, place] = torch.where(self.free_of[family, place], moved[:, place], fixed)
        return moved

    @staticmethod
    def _fixed(place: int, parameters: Tensor, family: Tensor) -> Tensor:
        """What a family says of a parameter that is not free."""
        if place < 3:
            return parameters[:, 0]
        right = torch.full_like(parameters[:, 0], 90.0)
        return torch.where(family == HEXAGONAL, 120.0, right) if place == 5 else right

    def _shared(self, kind: Tensor, condition: Tensor | None) -> Tensor:
        given: Tensor = self.kind(kind)
        return given if condition is None else given + condition

    def _hidden(self, place: int, seen: Tensor, shared: Tensor) -> Tensor:
        """State from which parameter ``place`` is drawn: it sees those before it."""
        known = torch.arange(6, device=seen.device) < place
        scaled = (seen - self.low) / (self.step * N_BINS**2)
        waves = scaled[..., None] * self.waves
        parts = torch.cat([scaled[..., None], waves.sin(), waves.cos()], 2)
        parts = torch.where(known[:, None], parts, 0.0).flatten(1)
        which = torch.zeros(len(seen), 6, device=seen.device)
        which[:, place] = 1
        hidden: Tensor = self.trunk(torch.cat([parts, which, shared], 1))
        return hidden

    def _fine(self, hidden: Tensor, coarse: Tensor) -> Tensor:
        """Logits of the bins within bin ``coarse`` (C,)."""
        waves = (coarse / N_BINS)[:, None] * self.waves
        edge = self.edge(torch.cat([waves.sin(), waves.cos()], 1))
        logits: Tensor = self.fine(hidden + edge)
        return logits

    def _logits(
        self, place: int, seen: Tensor, shared: Tensor, coarse: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(place, seen, shared)
        return self.coarse(hidden), self._fine(hidden, coarse)

    def _with_volume(
        self, one: Tensor, two: Tensor, coarse: Tensor, parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        possible = self._possible(parameters)
        here = possible[torch.arange(len(coarse), device=coarse.device), coarse]
        first = one.masked_fill(~possible.any(2), -torch.inf)
        return first, two.masked_fill(~here, -torch.inf)

    def _possible(self, parameters: Tensor) -> Tensor:
        """Fine bins of gamma whose middle gives the cell a volume: (C, 100, 100) bool."""
        number = torch.arange(N_BINS**2, device=parameters.device)
        gamma = torch.deg2rad(self.low[5] + (number + 0.5) * self.step[5])
        alpha, beta = torch.deg2rad(parameters[:, 3:5, None]).unbind(1)
        # Between the difference of alpha and beta and their sum, or what is left of the circle.
        widest = torch.minimum(alpha + beta, 2 * math.pi - alpha - beta)
        found = (gamma > (alpha - beta).abs()) & (gamma < widest)
        return found.view(-1, N_BINS, N_BINS)


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """One column for each row of ``logits`` (R, N), by numbers ``uniform`` (R,) in [0, 1)."""
    share = logits.double().softmax(-1).cumsum(-1)
    point = uniform.double()[:, None] * share[:, -1:]
    number = torch.searchsorted(share, point, right=True)[:, 0]
    # Rounding must not pick a column of probability 0 behind the last possible one.
    last = (logits > -torch.inf).long().cumsum(-1).argmax(-1)
    return torch.minimum(number, last)
