"""The verbs as plain functions: what the command line and notebooks call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.crystal.elements import Formula, parse_elements, parse_formula, reduced_key
from crystalctl.errors import InputError
from crystalctl.execution import Options, Result, run_request
from crystalctl.goals import parse_goal, with_goal
from crystalctl.parts import ONE_IN, Load, Part, plan_composed_parts, plan_formulas, statistics_of
from crystalctl.planning import parse_atom_numbers, parse_units, plan_generate
from crystalctl.selection import check_composing

if TYPE_CHECKING:
    from crystalctl.checkpoint import LoadedModel
    from crystalctl.composing import Likely
    from crystalctl.data.statistics import Statistics
    from crystalctl.templating import Symmetry


def predict(
    formulas: str | Sequence[str],
    *,
    n: int = 20,
    z: str = "auto",
    num_atoms: int | None = None,
    spacegroup: str | int | Sequence[str | int] | None = None,
    wyckoff: str | None = None,
    allow_supergroup: bool = False,
    templates: Path | str | None = None,
    **options: Any,
) -> Result:
    """Predict structures of one or several formulas: ``n`` samples for each, merged and ranked.

    Without a model, weights or wish for symmetry, one sample in ten is drawn by a model that needs
    no template. ``z``: "auto" or "1,2,4" reduced formula units; ``num_atoms``: atoms in the cell
    instead (of the primitive cell within a ``spacegroup``, which is given as for ``generate``).
    ``templates``: a prepared dataset whose structures propose templates. See ``Options`` for the
    others. Without ``out`` nothing is written. Raises ``InputError`` for a request that cannot be
    carried out.
    """
    chosen = Options(**options)
    wanted = _parse_formulas([formulas] if isinstance(formulas, str) else list(formulas))
    units = parse_units(z)
    if num_atoms is not None and units is not None:
        raise InputError("--z and --num-atoms exclude each other", "give one of them")
    if num_atoms is not None and num_atoms < 1:
        raise InputError(f"--num-atoms is {num_atoms}", "allowed: 1 or more")
    request = {
        "task": "predict",
        "formulas": [f.reduced for f in wanted],
        "n": n,
        "z": "auto" if units is None else units,
        "num_atoms": num_atoms,
        # Only the automatic choice of z depends on how the formula was written.
        "written_units": [f.factor for f in wanted] if units is None else None,
    }
    symmetry = _symmetry(spacegroup, wyckoff, allow_supergroup)
    request |= {} if symmetry is None else {"symmetry": symmetry.plain()}
    name = wanted[0].reduced + (f"-and-{len(wanted) - 1}-more" if len(wanted) > 1 else "")
    symmetric = symmetry is not None or templates is not None
    plan = partial(
        plan_formulas,
        formulas=wanted,
        n=n,
        n_free=n // ONE_IN if chosen.automatic and not symmetric else 0,
        symmetry=symmetry,
        templates=templates,
        units=units,
        num_atoms=num_atoms,
    )
    needs = {"composition"} | ({"space_group"} if symmetric else set())
    return run_request(request, plan, name, chosen, needs=needs)


def generate(
    *,
    n: int = 20,
    num_atoms: str | int | None = None,
    elements: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    spacegroup: str | int | Sequence[str | int] | None = None,
    wyckoff: str | None = None,
    allow_supergroup: bool = False,
    minimize: str | None = None,
    maximize: str | None = None,
    target: str | None = None,
    strength: float | None = None,
    temperature: float = 1.0,
    likeness: float | None = None,
    **options: Any,
) -> Result:
    """Generate crystals from scratch: ``n`` samples, merged and ranked.

    ``num_atoms``: "8", "4,6,8" or "4-12"; ``elements``: the only ones allowed; ``exclude``: those
    left out. ``spacegroup``: numbers, Hermann-Mauguin symbols, a crystal system or "any"; then
    ``num_atoms`` counts the primitive cell. ``wyckoff``: the positions to occupy, "4a,4b".
    ``allow_supergroup`` keeps structures that came out with more symmetry. ``minimize``,
    ``maximize``: a property; ``target``: "band_gap=1.5"; ``strength``: how hard to pull there, 1 as
    the weights advise. ``temperature``: above 1 groups, lattices, positions and elements are drawn
    more evenly. ``likeness``: how like a known compound a composition in its template must be, as
    ``composing.Likely`` says, 0 for any; None: ``LIKENESS``, or 0 where a model or weights are
    named. ``options``: see ``Options``. Raises ``InputError`` for an impossible request.
    """
    chosen = Options(**options)
    sizes = None if num_atoms is None else parse_atom_numbers(str(num_atoms))
    allowed = None if elements is None else parse_elements(elements)
    excluded = frozenset() if exclude is None else parse_elements(exclude)
    if allowed is not None and not allowed - excluded:
        raise InputError("--exclude leaves none of the --elements", "exclude fewer")
    request = {
        "task": "generate",
        "n": n,
        "num_atoms": sizes,
        "elements": None if allowed is None else sorted(allowed),
        "exclude": sorted(excluded),
    }
    symmetry = _symmetry(spacegroup, wyckoff, allow_supergroup)
    goal = parse_goal(minimize, maximize, target, strength)
    check_composing(temperature, likeness)
    request |= {} if symmetry is None else {"symmetry": symmetry.plain()}
    request |= {} if goal is None else {"goal": asdict(goal)}
    request |= {} if temperature == 1 else {"temperature": temperature}
    request |= {} if likeness is None else {"likeness": likeness}

    def plan(loaded: LoadedModel, load: Load) -> list[Part]:
        statistics = statistics_of(loaded)
        kept = _kept_elements(allowed, excluded, statistics)
        if symmetry is None and not statistics.templates:
            plain = plan_generate(n, statistics, num_atoms=sizes, elements=kept, seed=chosen.seed)
            return [Part(loaded, with_goal(plain, goal))]
        within = partial(_plan_within, num_atoms=sizes, elements=kept, temperature=temperature)
        return within(loaded, load, n, symmetry, likeness, chosen)

    return run_request(request, plan, "generated", chosen, needs=_needed(request), goal=goal)


def _plan_within(
    loaded: LoadedModel,
    load: Load,
    n: int,
    symmetry: Symmetry | None,
    likeness: float | None,
    options: Options,
    **wish: Any,
) -> list[Part]:
    """The parts of a generation within templates; ``wish``: of ``plan_within``."""
    from crystalctl.composing import knows_templates, plan_within

    likely = _likely(likeness, options.automatic) if knows_templates(loaded.model) else None
    statistics = statistics_of(loaded)
    if likely is not None and options.on_progress is not None:
        wish["on_progress"] = options.on_progress
    samples, note = plan_within(
        loaded.model, n, statistics, symmetry, seed=options.seed, likely=likely, **wish
    )
    options.tell(note)
    return plan_composed_parts(loaded, load if options.automatic else None, samples, likely)


def _likely(wanted: float | None, automatic: bool) -> Likely | None:
    """How composed templates are chosen, by the shipped ones; None: the model alone decides."""
    if wanted is None and not automatic:
        return None
    from crystalctl.checkpoint import shipped_templates
    from crystalctl.composing import LIKENESS, Likely
    from crystalctl.precedents import Precedents
    from crystalctl.retrieval import Memory

    memory = Memory.load(shipped_templates())
    return Likely(Precedents(memory), LIKENESS if wanted is None else wanted)


def _needed(request: Mapping[str, Any]) -> set[str]:
    """What a family must accept to generate what is asked for."""
    fields = {"symmetry": "space_group", "goal": "property"}
    fields |= {"temperature": "temperature", "likeness": "likeness"}
    needs = {need for name, need in fields.items() if name in request}
    needs |= {"elements"} if request["elements"] is not None or request["exclude"] else set()
    return needs | ({"n_atoms"} if request["num_atoms"] is not None else set())


def _kept_elements(
    allowed: frozenset[int] | None, excluded: frozenset[int], statistics: Statistics
) -> frozenset[int] | None:
    """Elements that remain of those allowed, None for all."""
    if not excluded:
        return allowed
    kept = frozenset(statistics.elements if allowed is None else allowed) - excluded
    if not kept:
        raise InputError("--exclude leaves no element", "exclude fewer")
    return kept


def _symmetry(
    spacegroup: str | int | Sequence[str | int] | None, wyckoff: str | None, allow: bool
) -> Symmetry | None:
    """What is asked of the group; None when nothing is."""
    if wyckoff is None and (spacegroup is None or spacegroup in ("", [], ())):
        return None
    from crystalctl.templating import parse_symmetry

    groups = [spacegroup] if isinstance(spacegroup, str | int) else list(spacegroup or [])
    return parse_symmetry(groups, wyckoff, allow_supergroup=allow)


def load_model(name_or_path: str, *, task: str, device: str = "auto") -> LoadedModel:
    """Load weights by name or path for ``task`` ("predict" or "generate")."""
    from crystalctl.checkpoint import load_model as load
    from crystalctl.models.device import pick_device

    return load(name_or_path, task=task, device=pick_device(device))


def _parse_formulas(texts: Sequence[str]) -> list[Formula]:
    if not texts:
        raise InputError("no formula given", "use --formula SrTiO3 or --formulas FILE")
    formulas = [parse_formula(text) for text in texts]
    seen: dict[str, str] = {}
    for formula in formulas:
        key = reduced_key(formula.unit)
        if key in seen:
            raise InputError(
                f"{formula.text} is asked for twice (also as {seen[key]})",
                "raise --n for more samples of one formula",
            )
        seen[key] = formula.text
    return formulas
