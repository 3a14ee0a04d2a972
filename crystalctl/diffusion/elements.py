"""Diffusion of elements as one-hot vectors, and what a network says of them.

Of a noisy row the network can say the noise, as the published models do (``says = "noise"``), or
how likely each element is (``says = "element"``). Then it need not learn what the row itself
says: x_t is normal about scale √ᾱ e_z with variance 1 - ᾱ, so that by Bayes' rule

    p(z | x_t, the others) ∝ exp(logit_z + scale √ᾱ x_z / (1 - ᾱ))

with logits that only the others need to explain; the second term alone is what the network reads
of a row. Cross-entropy instead of the error of the noise: arXiv:2211.15089, Sec. 3. A larger
``scale`` fixes the elements earlier along the path.

Symbols: alpha_bar of the schedule, e_z the one-hot vector of element z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crystalctl.crystal.batch import MAX_Z, Layout
from crystalctl.diffusion.gaussian import GaussianProcess
from crystalctl.diffusion.schedules import CosineSchedule

SAYS = ("noise", "element")
LIMIT = 2.0
"""Bound on the norm of a predicted one-hot vector, in units of the scale."""


class ElementProcess(GaussianProcess):
    """``scale`` times one-hot vectors of 100 for every row (atom, or orbit)."""

    def __init__(self, schedule: CosineSchedule, *, says: str, scale: float) -> None:
        super().__init__(schedule, width=MAX_Z, per_atom=True, limit=LIMIT * scale)
        self.by_element = says == "element"
        self.scale = scale

    def clean(self, species: Tensor) -> Tensor:
        """Rows without noise, (A, 100), of atomic numbers (A,)."""
        return self.scale * F.one_hot(species - 1, MAX_Z).float()

    def without(self, x: Tensor, excluded: Tensor) -> Tensor:
        """``x`` as a network that says elements must see it, to know which a row cannot be."""
        return x.masked_fill(excluded, -torch.inf) if self.by_element else x

    def seen(self, x: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """What the network reads of noisy rows ``x`` at steps ``t`` (C,): (A, 100)."""
        return self._evidence(x, t, layout).softmax(1) if self.by_element else x

    def outputs(self, raw: Tensor, x: Tensor, t: Tensor, layout: Layout) -> dict[str, Tensor]:
        """The noise ("species") in what the network says, ``raw`` (A, 100), of rows ``x``.

        And, of a network that says elements, the logarithms of their probabilities ("element").
        """
        if not self.by_element:
            return {"species": raw}
        log_p = (raw + self._evidence(x, t, layout)).log_softmax(1)
        keep = self._keep(t, layout)
        noise = (x - keep.sqrt() * self.scale * log_p.exp()) / (1 - keep).sqrt()
        return {"species": noise, "element": log_p}

    def errors(self, out: dict[str, Tensor], noise: Tensor, species: Tensor) -> Tensor:
        """What training makes small, averaged over columns: (A, 100), or (A, 1) for elements.

        ``out`` as from ``outputs``, ``noise`` the true one, ``species`` (A,) atomic numbers.
        """
        if not self.by_element:
            return (out["species"] - noise).square()
        return -out["element"].gather(1, species[:, None] - 1)

    def _keep(self, t: Tensor, layout: Layout) -> Tensor:
        return self.schedule.alpha_bar[t][layout.crystal_idx][:, None]

    def _evidence(self, x: Tensor, t: Tensor, layout: Layout) -> Tensor:
        keep = self._keep(t, layout)
        return x * (self.scale * keep.sqrt() / (1 - keep))
