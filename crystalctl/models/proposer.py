"""Templates for a bare formula, learnt: p(group | formula) times p(position | all before it).

The orbits of a template are written element by element (ascending Mendeleev number), positions
ascending within an element, in the form that all settings share (``symmetry/normaliser.py``). Each
template is one sequence, and each sequence whose multiplicities add up to the formula is a
template, whether or not a known structure has it. Wyckoff positions written one after another by a
transformer: Kazeev et al., arXiv:2503.02407; Cao et al., arXiv:2403.15734.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor, nn

from crystalctl.crystal.batch import Crystals
from crystalctl.crystal.elements import MENDELEEV
from crystalctl.data.statistics import Statistics
from crystalctl.diffusion.noise import NoiseSource, seeded
from crystalctl.models.contract import LossTerm, LossTerms
from crystalctl.models.search import Partial, best_first
from crystalctl.networks.template_net import Positions, Sequences, TemplateNet
from crystalctl.symmetry.assignments import lattice_points, may_hold
from crystalctl.symmetry.normaliser import Orbits, canonical, canonical_orbits
from crystalctl.symmetry.tables import N_GROUPS, tables

Known = tuple[tuple[int, int], ...]
"""(Atomic number, atoms of the primitive cell) of each element, in the order of the sequence."""


@dataclass(frozen=True)
class ProposerConfig:
    """Sizes of the network.

    ``exchange``: how far, in places of the Mendeleev order, elements are moved in training
    (standard deviation): templates hold for neighbouring elements too.
    """

    task: str = "propose"
    hidden: int = 128
    n_layers: int = 3
    n_heads: int = 4
    dropout: float = 0.2
    exchange: float = 1.0
    weight_group: float = 1.0
    weight_position: float = 1.0


@dataclass(frozen=True)
class Written:
    """One template as a sequence: ``rows``, the element each holds, and what was left to place."""

    elements: Known
    group: int
    rows: tuple[int, ...]
    kinds: tuple[int, ...]
    left: tuple[int, ...]


@lru_cache(maxsize=1 << 18)
def sequence_of(orbits: Orbits) -> Written:
    """The sequence of a template, in the form that all its settings share."""
    held: dict[int, list[int]] = {}
    for row, z in orbits:
        held.setdefault(z, []).append(row)
    order = sorted(held, key=_place)
    kinds = canonical(tuple(tuple(sorted(held[z])) for z in order))
    sizes = [[_size(row) for row in rows] for rows in kinds]
    return Written(
        tuple((z, sum(of)) for z, of in zip(order, sizes, strict=True)),
        int(tables().group[orbits[0][0]]),
        tuple(row for rows in kinds for row in rows),
        tuple(kind for kind, rows in enumerate(kinds) for _ in rows),
        tuple(sum(of[i:]) for of in sizes for i in range(len(of))),
    )


def sequences_of(crystals: Crystals) -> list[Written]:
    """The sequences of conventional cells."""
    layout = crystals.layout
    assert layout.orbits is not None
    rows = layout.orbits.position.tolist()
    species = layout.orbits.at_anchors(crystals.species).tolist()
    found, start = [], 0
    for n in layout.orbits.n_orbits.tolist():
        end = start + n
        pairs = zip(rows[start:end], species[start:end], strict=True)
        found.append(sequence_of(tuple(sorted(pairs))))
        start = end
    return found


def pack(sequences: Sequence[Written], device: torch.device) -> Sequences:
    """One padded batch."""
    width = max(len(s.elements) for s in sequences)
    length = max(1, max(len(s.rows) for s in sequences))

    def padded(values: Iterator[Sequence[int]], size: int) -> Tensor:
        return torch.tensor([[*v, *[0] * (size - len(v))] for v in values], device=device)

    return Sequences(
        elements=padded(([z for z, _ in s.elements] for s in sequences), width),
        counts=padded(([n for _, n in s.elements] for s in sequences), width),
        group=torch.tensor([s.group for s in sequences], device=device),
        rows=padded((s.rows for s in sequences), length),
        kinds=padded((s.kinds for s in sequences), length),
        left=padded((s.left for s in sequences), length),
        valid=padded(([1] * len(s.rows) for s in sequences), length).bool(),
    )


class Proposer(nn.Module):
    """The learnt distribution over templates."""

    Config = ProposerConfig

    def __init__(self, config: ProposerConfig, statistics: Statistics) -> None:
        super().__init__()
        self.config, self.statistics = config, statistics
        self.network = TemplateNet(
            position_facts(),
            hidden=config.hidden,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            dropout=config.dropout,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.fixed.device

    def loss(self, crystals: Crystals, noise: NoiseSource) -> LossTerms:
        """Negative log probability of the group, and of the positions given it.

        Without gradients (validation) there is neither dropout nor exchange of elements.
        """
        batch = pack(sequences_of(crystals), crystals.frac.device)
        learning = torch.is_grad_enabled()
        self.train(learning)
        if learning:
            batch = self._exchanged(batch, crystals, noise)
        with seeded(noise, crystals.layout):
            # Dropout follows the noise of the step, as all else does: a resumed run is the same.
            group, position = self.log_probability(batch)
        return {
            "group": LossTerm(-group.sum(), len(crystals), self.config.weight_group),
            "position": LossTerm(-position.sum(), len(crystals), self.config.weight_position),
        }

    def loss_rows(self, n_crystals: int, n_atoms: int) -> dict[str, int]:
        """Both parts count crystals."""
        del n_atoms
        return {"group": n_crystals, "position": n_crystals}

    def _exchanged(self, batch: Sequences, crystals: Crystals, noise: NoiseSource) -> Sequences:
        """Elements moved to neighbours in the Mendeleev order, which may now be out of order."""
        order = torch.tensor(sorted(range(1, len(MENDELEEV) + 1), key=_place), device=self.device)
        place = torch.zeros(len(order) + 1, dtype=torch.int64, device=self.device)
        place[order] = torch.arange(len(order), device=self.device)
        by = noise.normal(crystals.layout, batch.elements.shape[1], per_atom=False)
        moved = place[batch.elements] + (by * self.config.exchange).round().long()
        new = order[moved.clamp(0, len(order) - 1)]
        return replace(batch, elements=torch.where(batch.elements > 0, new, 0))

    def log_probability(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """log p of the group and of all positions given it, (B,) each."""
        group, position = self.network(batch)
        of_group = group.float().log_softmax(1).gather(1, batch.group[:, None])[:, 0]
        chosen = (batch.rows - self.network.first_of[batch.group][:, None])[batch.valid]
        each = position[batch.valid].float().log_softmax(1).gather(1, chosen[:, None])[:, 0]
        owner = batch.valid.nonzero()[:, 0]
        return of_group, torch.zeros_like(of_group).index_add(0, owner, each)

    @torch.no_grad()
    def probabilities(
        self,
        composition: Mapping[int, int],
        templates: Sequence[Orbits],
        *,
        groups: Collection[int] | None = None,
    ) -> list[float]:
        """The probability of each template of a composition, as ``propose`` gives it."""
        if not templates:
            return []
        costs = {group: cost for cost, group in self._groups(_known(composition), groups)}
        sequences = list(map(sequence_of, templates))
        _, position = self.log_probability(pack(sequences, self.device))
        return [
            math.exp(log_p - costs[one.group])
            for log_p, one in zip(position.tolist(), sequences, strict=True)
        ]

    @torch.no_grad()
    def propose(
        self, composition: Mapping[int, int], n: int, *, groups: Collection[int] | None = None
    ) -> list[tuple[Orbits, float]]:
        """Up to ``n`` different templates and their probabilities, the likeliest first.

        ``composition``: Z -> atoms of the primitive cell. Best first search: a partial template is
        at least as probable as all that it can become, so the first complete ones are the best.
        """
        known = _known(composition)
        start = (Partial(cost, group, ()) for cost, group in self._groups(known, groups))
        found = best_first(start, lambda batch: self._continued(batch, known), n)
        return [(one.name, one.probability) for one in found]

    def _groups(self, known: Known, groups: Collection[int] | None) -> Iterator[tuple[float, int]]:
        """-log p and number of those that may hold the composition."""
        wanted = range(1, N_GROUPS + 1) if groups is None else groups
        able = [g for g in wanted if all(may_hold(g, n) for _, n in known)]
        if able:
            logits, _ = self.network(pack([_opened(known, 1, ())], self.device))
            # Of those that can be: what is known of the composition here rules the others out.
            cost = -logits[0, able].float().log_softmax(0)
            yield from zip(cost.tolist(), able, strict=True)

    def _continued(self, partial: Sequence[Partial], known: Known) -> Iterator[Partial]:
        """Each partial template with every possible next position."""
        written = [tuple(row for row, _ in one.orbits) for one in partial]
        opened = [
            _opened(known, one.group, rows) for one, rows in zip(partial, written, strict=True)
        ]
        _, logits = self.network(pack(opened, self.device))
        last = torch.tensor([len(one.rows) - 1 for one in opened], device=self.device)
        here = logits[torch.arange(len(opened), device=self.device), last].float()
        for old, rows, one, log_p in zip(
            partial, written, opened, here.log_softmax(1).tolist(), strict=True
        ):
            first = int(tables().first_position[old.group - 1])
            for row, value in enumerate(log_p, start=first):
                # A dead end, where no position is possible, has nan.
                if not value > -math.inf:
                    continue
                rest = one.left[-1] - _size(row)
                if rest > 0 and not may_hold(old.group, rest):
                    continue
                orbits = (*old.orbits, (row, known[one.kinds[-1]][0]))
                name = None
                if rest == 0 and one.kinds[-1] == len(known) - 1:
                    name = canonical_orbits(orbits)
                    # Another setting of a template is a sequence that no training data has.
                    if sequence_of(name).rows != (*rows, row):
                        continue
                yield Partial(old.cost - value, old.group, orbits, name)


def _known(composition: Mapping[int, int]) -> Known:
    return tuple((z, composition[z]) for z in sorted(composition, key=_place))


def _place(z: int) -> int:
    return MENDELEEV[z - 1]


@cache
def _size(row: int) -> int:
    """Atoms of a position in the primitive cell."""
    table = tables()
    return int(table.multiplicity[row]) // lattice_points(int(table.group[row]))


@cache
def position_facts() -> Positions:
    """What the networks know of all positions, by table row."""
    table = tables()
    first = torch.tensor([0, *table.first_position.tolist()])
    return Positions(
        size=torch.tensor([_size(row) for row in range(len(table.group))]),
        site=torch.tensor(table.site_symmetry.tolist()),
        n_sites=len(table.site_symbols),
        fixed=torch.tensor((table.freedom == 0).tolist()),
        first=first,
    )


def _opened(known: Known, group: int, rows: tuple[int, ...]) -> Written:
    """A partial template with its next orbit, whose position is not known yet."""
    left, kinds, kind, rest = [], [], 0, known[0][1]
    for row in rows:
        kinds.append(kind)
        left.append(rest)
        rest -= _size(row)
        if rest == 0 and kind + 1 < len(known):
            kind += 1
            rest = known[kind][1]
    return Written(known, group, (*rows, 0), (*kinds, kind), (*left, rest))
