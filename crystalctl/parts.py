"""The samples of a run shared out to models: most within symmetry, a few free of it.

Templates reach only what somebody proposes; a model without them misses more, but other things. To
generate, one model composes (groups, positions, elements), and the one that predicts best within
templates draws the structures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.crystal.elements import Formula
from crystalctl.errors import InputError
from crystalctl.planning import Sample, plan_predict, plan_templates
from crystalctl.selection import choose_beside, choose_weights

if TYPE_CHECKING:
    from crystalctl.checkpoint import LoadedModel
    from crystalctl.composing import Likely
    from crystalctl.data.statistics import Statistics
    from crystalctl.templating import Symmetry, TemplateSource

ONE_IN = 10
"""Of so many samples of a formula one is drawn free of symmetry, where nobody named a model."""
FREE_VOTES = 0.02
"""Votes of all free samples of a formula together, as a part of those for its templates. Assumed,
not fitted: 22 % of free samples are the true structure (weights/README.md), but none of 300
formulas was found by them alone (docs/guide/predict.md), so they must not displace others."""
WITHIN = {"composition", "space_group"}
"""What a model must accept to predict within templates."""
Load = Callable[..., "LoadedModel"]
"""Weights by name -> their model, on the device of the run and for its task, unless ``task`` says
another."""


@dataclass(frozen=True)
class Part:
    """What one model draws; ``composer``: another model, whose templates they are, and ``likely``:
    how these were chosen."""

    loaded: LoadedModel
    samples: list[Sample]
    composer: LoadedModel | None = None
    likely: Likely | None = None

    @property
    def family(self) -> str:
        """Of the model."""
        return family_of(self.loaded)

    @property
    def models(self) -> list[LoadedModel]:
        """All that take part."""
        return [self.loaded] if self.composer is None else [self.loaded, self.composer]


def family_of(loaded: LoadedModel) -> str:
    """The family of a model."""
    return str(loaded.meta["family"])


def statistics_of(loaded: LoadedModel) -> Statistics:
    """What the weights know of their training data."""
    from crystalctl.data.statistics import Statistics

    return Statistics.from_dict(loaded.meta["statistics"])


def plan_formulas(
    loaded: LoadedModel,
    load: Load,
    *,
    formulas: Sequence[Formula],
    n: int,
    n_free: int,
    symmetry: Symmetry | None,
    templates: Path | str | None,
    **cells: Any,
) -> list[Part]:
    """The parts of a prediction, ``n`` samples for each formula.

    Where the chosen weights draw within templates, ``n_free`` of them are drawn by the shipped ones
    that need none, for formulas these know. ``cells``: ``units``, ``num_atoms`` of ``planning``.
    """
    statistics = statistics_of(loaded)
    if symmetry is None and not statistics.templates:
        return [Part(loaded, plan_predict(formulas, n, statistics, **cells))]
    source = _template_source(loaded.model, templates)
    free = _free_part(load, formulas, n_free, **cells)
    taken = Counter(sample.label for part in free for sample in part.samples)
    samples: list[Sample] = []
    for formula in formulas:
        left = n - taken[formula.reduced]
        samples += plan_templates([formula], left, statistics, symmetry, source=source, **cells)
    return [Part(loaded, samples), *(replace(p, samples=_voted(p, samples)) for p in free)]


def plan_composed_parts(
    loaded: LoadedModel, load: Load | None, samples: list[Sample], likely: Likely | None
) -> list[Part]:
    """The parts of a generation whose templates ``loaded`` composed, if it does.

    The default weights that predict within templates draw the structures, from prototypes where
    there are; what lacks its elements, or has some that they do not know, stays with ``loaded``,
    and everything without ``load``.
    """
    from crystalctl.composing import knows_templates

    if load is None or not knows_templates(loaded.model):
        return [Part(loaded, samples, likely=likely)]
    drawing = load(choose_weights("predict", WITHIN, None, None), task="predict")
    known = frozenset(statistics_of(drawing).elements)
    given: list[Sample] = []
    others: list[Sample] = []
    for sample in samples:
        template = sample.template
        if template is not None and template.species and known.issuperset(template.species):
            named = replace(template.likeliest, source=family_of(loaded))
            given.append(replace(sample, template=named))
        else:
            others.append(sample)
    parts = [Part(drawing, given, loaded, likely), Part(loaded, others, likely=likely)]
    return [part for part in parts if part.samples]


def _template_source(model: Any, templates: Path | str | None) -> TemplateSource:
    from crystalctl.composing import Own, knows_templates
    from crystalctl.proposing import Mixture

    if templates is None and knows_templates(model):
        return Own(model)
    return Mixture.shipped(templates)


def _free_part(load: Load, formulas: Sequence[Formula], n: int, **cells: Any) -> list[Part]:
    """One part with ``n`` free samples of each formula that its weights know, or none."""
    name = choose_beside() if n else None
    if name is None:
        return []
    loaded = load(name)
    statistics = statistics_of(loaded)
    samples: list[Sample] = []
    for formula in formulas:
        with suppress(InputError):  # unknown elements, too many atoms
            samples += plan_predict([formula], n, statistics, **cells)
    return [Part(loaded, samples)] if samples else []


def _voted(free: Part, others: Sequence[Sample]) -> list[Sample]:
    """The free samples with their part of the votes, see ``FREE_VOTES``."""
    votes: dict[str, float] = defaultdict(float)
    for sample in others:
        votes[sample.label] += sample.votes
    count = Counter(sample.label for sample in free.samples)
    return [replace(s, votes=FREE_VOTES * votes[s.label] / count[s.label]) for s in free.samples]


def numbered(parts: Sequence[Part]) -> list[Part]:
    """The parts with their samples numbered on through all of them, each with its ``source``."""
    found, first = [], 1
    for part in parts:
        samples = [
            replace(sample, number=number, source=_source(part.family, sample))
            for number, sample in enumerate(part.samples, start=first)
        ]
        found.append(replace(part, samples=samples))
        first += len(samples)
    return found


def _source(family: str, sample: Sample) -> str:
    proposed = "" if sample.template is None else sample.template.source
    return f"{family}:{proposed}" if proposed else family
