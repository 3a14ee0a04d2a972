"""What training, the API and the tests know of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from crystalctl.crystal.batch import Crystals, Target
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.sampling import OnStep


@dataclass(frozen=True)
class LossTerm:
    """One part of a loss: ``total`` is summed over ``n_rows`` rows (crystals or atoms).

    A sum, so that a batch cut into pieces, on one device or several, gives the loss of the whole.
    """

    total: Tensor
    n_rows: int
    weight: float


LossTerms = Mapping[str, LossTerm]


def row_loss(prediction: Tensor, target: Tensor, weight: float) -> LossTerm:
    """Squared error averaged over columns and summed over rows, (rows, width) each."""
    return mean_loss((prediction.float() - target).square(), weight)


def mean_loss(errors: Tensor, weight: float) -> LossTerm:
    """``errors`` (rows, width) averaged over columns and summed over rows."""
    return LossTerm(errors.mean(1).sum(), len(errors), weight)


def total_loss(terms: LossTerms, n_rows: Mapping[str, int] | None = None) -> Tensor:
    """Weighted sum of the mean of each part; ``n_rows`` are those of the whole batch."""
    counts = n_rows or {name: term.n_rows for name, term in terms.items()}
    parts = [term.weight * term.total / counts[name] for name, term in terms.items()]
    return sum(parts[1:], parts[0])


class CrystalModel(Protocol):
    """A family. ``loss`` and ``sample`` leave their arguments alone."""

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Loss at one random time step per crystal."""
        ...

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """How many rows each loss part has for a batch of that size."""
        ...

    def sample(
        self,
        targets: Sequence[Target],
        noise: NoiseSource,
        *,
        steps: int | None = None,
        on_step: OnStep | None = None,
    ) -> Crystals:
        """One crystal for each target."""
        ...
