"""The verbs as plain functions: what the command line and notebooks call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.after import check_wish, relaxed
from crystalctl.crystal.elements import Formula, parse_elements, parse_formula, reduced_key
from crystalctl.errors import InputError
from crystalctl.goals import check_goal, parse_goal, rank_by_goal, with_goal
from crystalctl.io.results import RunFolder, check_folder, default_folder, file_safe
from crystalctl.planning import (
    Sample,
    parse_atom_numbers,
    parse_units,
    plan_generate,
    plan_predict,
    plan_symmetric,
    plan_templates,
)
from crystalctl.selection import check_family, check_numbers, check_steps, choose_weights

if TYPE_CHECKING:
    from crystalctl.analysis.powder import Pattern
    from crystalctl.analysis.ranking import Candidate
    from crystalctl.checkpoint import LoadedModel
    from crystalctl.crystal.goal import Goal
    from crystalctl.data.statistics import Statistics
    from crystalctl.parallel import Processes
    from crystalctl.relaxing import Relaxation
    from crystalctl.templating import Symmetry

MAX_SAMPLES = 1_000_000
"""Samples in one run (for each formula); they are planned in memory."""
OnProgress = Callable[[str, int, int], None]
"""Called as ``on_progress(stage, done, total)``: sampling, comparing, diffraction, writing."""
Planner = Callable[["Statistics"], list[Sample]]


@dataclass(frozen=True)
class Result:
    """What a prediction or generation gave.

    ``candidates`` by rank, and their ``rows`` in the summary. ``set_aside``: reason -> number of
    impossible samples. ``n_samples``: all that were drawn. ``folder``: where it was written, None
    when it was not.
    """

    candidates: list[Candidate]
    rows: list[dict[str, Any]]
    set_aside: dict[str, int]
    n_samples: int
    folder: Path | None
    relaxed: Relaxation | None = None
    """The candidates relaxed and ranked by energy, where that was asked for."""


@dataclass(frozen=True)
class Options:
    """What predict and generate have in common; see ``predict``."""

    model: str | None = None
    weights: str | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    out: Path | str | None = None
    formats: Sequence[str] = ("cif",)
    resume: bool = False
    batch_size: int | None = None
    jobs: int | None = None
    """Processes that sample on the CPU, where there is enough to do; None: one for each core."""
    xrd: Path | str | None = None
    """A measured powder pattern: candidates are ranked by their similarity to it."""
    wavelength: str | float = "CuKa"
    """Of that pattern and of the simulated ones: Å, or a name pymatgen knows."""
    report: bool = True
    """Write ``report.html`` into the run folder."""
    relax: bool | None = False
    """Relax the candidates and rank them by energy, in the folder ``relaxed`` of the run folder;
    None: where a calculator is installed and there are few of them."""
    calculator: str | None = None
    """The one that relaxes, see ``relaxing.relax_all``; None: the one of the extra."""
    hull: Path | str | None = None
    """Reference energies: candidates are ranked by the energy above their hull."""
    rank_by: str = "score"
    """Order of the relaxed candidates: "score", energies raised by how unlikely the proposal was
    (``analysis/scoring.py``), or "energy"."""
    on_progress: OnProgress | None = None
    default_out: bool = False
    """Choose a folder under ``runs/`` when ``out`` is None (the command line does)."""
    on_folder: Callable[[Path], None] | None = None
    """Told the run folder once it exists, so that an interrupted user can be told too."""
    on_note: Callable[[str], None] | None = None
    """Told what the user should know before the sampling starts."""


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

    ``z``: "auto" or "1,2,4" reduced formula units; ``num_atoms``: atoms in the cell instead (of the
    primitive cell within a ``spacegroup``, which is given as for ``generate``). ``templates``: a
    prepared dataset whose structures propose templates. See ``Options`` for the others. Without
    ``out`` nothing is written. Raises ``InputError`` for a request that cannot be carried out.
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

    def plan(statistics: Statistics) -> list[Sample]:
        if symmetry is None and not statistics.templates:
            return plan_predict(wanted, n, statistics, units=units, num_atoms=num_atoms)
        from crystalctl.proposing import Mixture

        source = Mixture.shipped(templates)
        return plan_templates(
            wanted, n, statistics, symmetry, source=source, units=units, num_atoms=num_atoms
        )

    symmetric = symmetry is not None or templates is not None
    needs = {"composition"} | ({"space_group"} if symmetric else set())
    return _run(request, plan, name, chosen, needs=needs)


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
    **options: Any,
) -> Result:
    """Generate crystals from scratch: ``n`` samples, merged and ranked.

    ``num_atoms``: "8", "4,6,8" or "4-12"; ``elements``: the only ones allowed; ``exclude``: those
    left out. ``spacegroup``: numbers, Hermann-Mauguin symbols, a crystal system or "any"; then
    ``num_atoms`` counts the primitive cell. ``wyckoff``: the positions to occupy, "4a,4b".
    ``allow_supergroup`` keeps structures that came out with more symmetry. ``minimize``,
    ``maximize``: a property; ``target``: "band_gap=1.5"; ``strength``: how hard to pull there, 1 as
    the weights advise. See ``Options`` for the others.
    Raises ``InputError`` for an impossible request.
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
    request |= {} if symmetry is None else {"symmetry": symmetry.plain()}
    goal = parse_goal(minimize, maximize, target, strength)
    request |= {} if goal is None else {"goal": asdict(goal)}

    def plan(statistics: Statistics) -> list[Sample]:
        kept = allowed
        if excluded:
            kept = frozenset(statistics.elements if allowed is None else allowed) - excluded
            if not kept:
                raise InputError("--exclude leaves no element", "exclude fewer")
        if symmetry is not None or statistics.templates:
            return _plan_symmetric(symmetry, n, statistics, sizes, kept, chosen)
        plain = plan_generate(n, statistics, num_atoms=sizes, elements=kept, seed=chosen.seed)
        return with_goal(plain, goal)

    needs = {"elements"} if allowed is not None or excluded else set()
    needs |= {"n_atoms"} if sizes is not None else set()
    needs |= {"space_group"} if symmetry is not None else set()
    needs |= {"property"} if goal is not None else set()
    return _run(request, plan, "generated", chosen, needs=needs, goal=goal)


def _plan_symmetric(
    symmetry: Symmetry | None,
    n: int,
    statistics: Statistics,
    sizes: Sequence[int] | None,
    elements: frozenset[int] | None,
    options: Options,
) -> list[Sample]:
    """Samples within groups; without a wish for a group, of all groups as in the training data."""
    from crystalctl.templating import Symmetry

    wish = symmetry
    if wish is None:
        groups = sorted({int(key.split(":")[0]) for key in statistics.templates})
        wish = Symmetry(tuple(groups), (tuple(groups),), allow_supergroup=True)
    samples, unknown = plan_symmetric(
        n, statistics, wish, num_atoms=sizes, elements=elements, seed=options.seed
    )
    if unknown and options.on_note is not None:
        shown = ", ".join(str(g) for g in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        options.on_note(
            f"no training structure fits in group {shown}: Wyckoff positions are combined freely"
        )
    return samples


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


def _measured(options: Options) -> Pattern | None:
    """The pattern to rank by; a wrong wavelength is refused even without one."""
    if options.xrd is None and options.wavelength == "CuKa":
        return None
    from crystalctl.analysis.powder import parse_wavelength, read_pattern

    wavelength = parse_wavelength(options.wavelength)
    return None if options.xrd is None else read_pattern(options.xrd, wavelength)


def _run(
    request: dict[str, Any],
    plan: Planner,
    name: str,
    options: Options,
    *,
    needs: set[str],
    goal: Goal | None = None,
) -> Result:
    """Check everything that can be checked cheaply, load the weights, sample, analyse, write."""
    from crystalctl.io.structures import parse_formats

    check_numbers(request["n"], options, MAX_SAMPLES)
    check_wish(options, request.get("formulas", []))
    parse_formats(",".join(options.formats))
    measured = _measured(options)
    if measured is not None:
        request["xrd"] = measured.plain()
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_folder(out, resume=options.resume)
    aim = None if goal is None else goal.property
    weights = choose_weights(request["task"], needs, options.model, options.weights, learnt=aim)

    from crystalctl.checkpoint import load_model as load
    from crystalctl.data.statistics import Statistics
    from crystalctl.models.device import pick_device
    from crystalctl.parallel import Processes

    device = pick_device(options.device)
    loaded = load(weights, task=request["task"], family=options.model, device=device)
    check_family(loaded.meta["family"], request["task"], needs)
    check_steps(options.steps, loaded.meta["config"])
    check_goal(goal, loaded.meta["family"], loaded.meta["config"])
    samples = plan(Statistics.from_dict(loaded.meta["statistics"]))
    request |= {
        "seed": options.seed,
        "steps": options.steps,
        "weights_sha256": loaded.sha256,
        "family": loaded.meta["family"],
        "device": device.type,
        "formats": parse_formats(",".join(options.formats)),
    }
    processes = Processes(options.jobs, str(weights), request["task"])
    draw_and_rank = partial(
        _draw_and_rank, loaded, samples, options, device, processes=processes, measured=measured
    )
    if out is None and options.default_out:
        out = default_folder(file_safe(name), request if options.resume else None)
    if out is None:
        return relaxed(draw_and_rank(), options)
    facts = {"command": sys.argv, "weights": loaded.name}
    run = RunFolder.open(out, request, facts=facts, resume=options.resume)
    if options.on_folder is not None:
        options.on_folder(out)
    if run.finished:
        return relaxed(_finished_result(run, samples), options)
    try:
        return relaxed(draw_and_rank(run=run), options)
    except BaseException:
        if not run.finished:
            run.interrupted()
        raise


def _draw_and_rank(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    options: Options,
    device: Any,
    *,
    processes: Processes,
    measured: Pattern | None,
    run: RunFolder | None = None,
) -> Result:
    """Sample, judge and rank; write everything where there is a run folder."""
    from crystalctl.analysis.diffraction import rank_by_pattern
    from crystalctl.analysis.powder import parse_wavelength
    from crystalctl.analysis.ranking import rank_samples
    from crystalctl.io.ranked import Page, write_ranking
    from crystalctl.io.structures import parse_formats
    from crystalctl.sampling import draw_exact

    report = options.on_progress or (lambda stage, done, total: None)
    crystals = draw_exact(
        loaded.model,
        samples,
        seed=options.seed,
        steps=options.steps,
        device=device,
        run=run,
        batch_size=options.batch_size,
        processes=processes,
        on_progress=report,
    )
    ranking = rank_samples(samples, crystals, on_progress=report)
    if measured is not None:
        ranking = rank_by_pattern(ranking, measured, on_progress=report)
    ranking = rank_by_goal(ranking, loaded.model)
    rows = [candidate.row() for candidate in ranking.candidates]
    if run is not None:
        formats = parse_formats(",".join(options.formats))
        page = Page(measured, parse_wavelength(options.wavelength)) if options.report else None
        rows = write_ranking(run, ranking, formats, page=page, on_progress=report)
    folder = None if run is None else run.path
    return Result(ranking.candidates, rows, ranking.set_aside(), len(samples), folder)


def _finished_result(run: RunFolder, samples: Sequence[Sample]) -> Result:
    """The result of a run that was already complete, from its files."""
    from crystalctl.io.ranked import read_candidates

    summary = run.read_summary()
    rows, aside = summary["structures"], summary["set_aside"]
    candidates = read_candidates(run, rows, samples)
    return Result(candidates, rows, aside, summary["n_samples"], run.path)
