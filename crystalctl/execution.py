"""A planned request carried out: weights chosen, structures drawn, ranked and written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.after import check_wish, relaxed
from crystalctl.goals import check_goal, rank_by_goal
from crystalctl.io.results import RunFolder, check_folder, default_folder, file_safe
from crystalctl.parts import Load, Part, family_of, numbered
from crystalctl.planning import Sample
from crystalctl.selection import (
    FAST,
    check_family,
    check_numbers,
    check_sampler,
    check_steps,
    choose_weights,
    steps_of,
)

if TYPE_CHECKING:
    import torch

    from crystalctl.analysis.powder import Pattern
    from crystalctl.analysis.ranking import Candidate
    from crystalctl.checkpoint import LoadedModel
    from crystalctl.cluster import Cluster
    from crystalctl.crystal.goal import Goal
    from crystalctl.drawn import Drawn
    from crystalctl.relaxing import Relaxation

MAX_SAMPLES = 1_000_000
"""Samples in one run (for each formula); they are planned in memory."""
OnProgress = Callable[[str, int, int], None]
"""Called as ``on_progress(stage, done, total)``: sampling, comparing, diffraction, writing."""
Planner = Callable[["LoadedModel", Load], list[Part]]
"""(the chosen model, how to load others) -> the samples that each model draws."""
AUTO = "auto"
"""The model of whoever does not name one."""


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
    """A family; None or "auto": the best there are, of which several may share the work."""
    weights: str | None = None
    steps: int | None = None
    sampler: str = FAST
    """"reference": all time steps of the published sampler; "fast": those the weights advise."""
    seed: int = 0
    device: str = "auto"
    out: Path | str | None = None
    formats: Sequence[str] = ("cif",)
    resume: bool = False
    batch_size: int | None = None
    jobs: int | None = None
    """Processes that sample on the CPU, where there is enough to do; None: one for each core."""
    cluster: str | None = None
    """Draw and relax as tasks of Ray: "local" (``jobs`` workers here), or a cluster's address."""
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

    @property
    def family(self) -> str | None:
        """The one asked for, if any."""
        return None if self.model == AUTO else self.model

    @property
    def automatic(self) -> bool:
        """Whether neither a family nor weights are asked for."""
        return self.family is None and self.weights is None

    def tell(self, note: str) -> None:
        """Pass a note on to the user; an empty one says nothing."""
        if note and self.on_note is not None:
            self.on_note(note)


def _measured(options: Options) -> Pattern | None:
    """The pattern to rank by; a wrong wavelength is refused even without one."""
    if options.xrd is None and options.wavelength == "CuKa":
        return None
    from crystalctl.analysis.powder import parse_wavelength, read_pattern

    wavelength = parse_wavelength(options.wavelength)
    return None if options.xrd is None else read_pattern(options.xrd, wavelength)


def run_request(
    request: dict[str, Any],
    plan: Planner,
    name: str,
    options: Options,
    *,
    needs: set[str],
    goal: Goal | None = None,
) -> Result:
    """Check everything that can be checked cheaply, load the weights, sample, analyse, write."""
    from crystalctl.cluster import cluster_of

    with cluster_of(options.cluster, options.jobs) as cluster:
        return _carry_out(request, plan, name, options, needs=needs, goal=goal, cluster=cluster)


def _carry_out(
    request: dict[str, Any],
    plan: Planner,
    name: str,
    options: Options,
    *,
    needs: set[str],
    goal: Goal | None,
    cluster: Cluster | None,
) -> Result:
    from crystalctl.io.structures import parse_formats

    check_numbers(request["n"], options, MAX_SAMPLES)
    check_sampler(options)
    check_wish(options, request.get("formulas", []))
    parse_formats(",".join(options.formats))
    measured = _measured(options)
    request |= {} if measured is None else {"xrd": measured.plain()}
    request |= {} if options.sampler == FAST else {"sampler": options.sampler}
    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_folder(out, resume=options.resume)
    parts, device = _parts(request["task"], plan, options, needs=needs, goal=goal)
    request |= {
        "seed": options.seed,
        "steps": options.steps,
        "weights_sha256": {family_of(model): model.sha256 for model in _models(parts)},
        "device": device.type,
        "formats": parse_formats(",".join(options.formats)),
    }
    draw_and_rank = partial(
        _draw_and_rank,
        *(parts, options, device),
        measured=measured,
        cluster=cluster,
    )
    if cluster is not None:
        cluster.connect()
    if out is None and options.default_out:
        out = default_folder(file_safe(name), request if options.resume else None)
    if out is None:
        return draw_and_rank()
    facts = {"command": sys.argv, "weights": [model.name for model in _models(parts)]}
    run = RunFolder.open(out, request, facts=facts, resume=options.resume)
    return relaxed(_into_folder(run, options, parts, draw_and_rank), options, cluster)


def _into_folder(
    run: RunFolder,
    options: Options,
    parts: Sequence[Part],
    draw_and_rank: Callable[..., Result],
) -> Result:
    """What ``draw_and_rank`` gives, kept in the run's folder; a finished run is read back."""
    if options.on_folder is not None:
        options.on_folder(run.path)
    if run.finished:
        return _finished_result(run, _samples(parts))
    try:
        return draw_and_rank(run=run)
    except BaseException:
        if not run.finished:
            run.interrupted()
        raise


def _parts(
    task: str, plan: Planner, options: Options, *, needs: set[str], goal: Goal | None
) -> tuple[list[Part], torch.device]:
    """The models that serve the request and what each draws, and on which device."""
    learnt = None if goal is None else goal.property
    weights = choose_weights(task, needs, options.family, options.weights, learnt=learnt)

    from crystalctl.checkpoint import load_model
    from crystalctl.models.device import pick_device

    elsewhere = options.cluster is not None
    device = pick_device(options.device, elsewhere=elsewhere)
    load = partial(load_model, task=task, device="cpu" if elsewhere else device)
    loaded = load(weights, family=options.family)
    check_family(loaded.meta["family"], task, needs)
    check_steps(options.steps, loaded.meta["config"])
    check_goal(goal, loaded.meta["family"], loaded.meta["config"])
    parts = numbered(plan(loaded, load))
    for part in parts:
        check_steps(options.steps, part.loaded.meta["config"])
    return parts, device


def _draw_and_rank(
    parts: Sequence[Part],
    options: Options,
    device: torch.device,
    *,
    measured: Pattern | None,
    cluster: Cluster | None,
    run: RunFolder | None = None,
) -> Result:
    """Sample, judge and rank; write everything where there is a run folder."""
    from crystalctl.analysis.diffraction import rank_by_pattern
    from crystalctl.analysis.powder import parse_wavelength
    from crystalctl.analysis.ranking import rank_samples
    from crystalctl.io.ranked import Page, write_ranking
    from crystalctl.io.structures import parse_formats
    from crystalctl.known import with_known

    report = options.on_progress or (lambda stage, done, total: None)
    samples = _samples(parts)
    crystals = _draw(parts, options, device, run=run, cluster=cluster, report=report)
    ranking = rank_samples(samples, crystals, on_progress=report)
    if measured is not None:
        ranking = rank_by_pattern(ranking, measured, on_progress=report)
    ranking = with_known(rank_by_goal(ranking, parts[0].loaded.model))
    rows = [candidate.row() for candidate in ranking.candidates]
    if run is not None:
        formats = parse_formats(",".join(options.formats))
        page = Page(measured, parse_wavelength(options.wavelength)) if options.report else None
        rows = write_ranking(run, ranking, formats, page=page, on_progress=report)
    folder = None if run is None else run.path
    return Result(ranking.candidates, rows, ranking.set_aside(), len(samples), folder)


def _draw(
    parts: Sequence[Part],
    options: Options,
    device: torch.device,
    *,
    run: RunFolder | None,
    cluster: Cluster | None,
    report: OnProgress,
) -> Drawn:
    """Crystals of all samples by number, drawn part after part."""
    from crystalctl.drawn import Drawn
    from crystalctl.parallel import Processes
    from crystalctl.sampling import draw_exact, most_tiles

    total = len(_samples(parts))
    crystals = Drawn()
    first_tile = 0
    for part in parts:
        share = len(part.samples)

        def on_progress(stage: str, done: int, of: int, share: int = share) -> None:
            unit = of // share
            report(stage, len(crystals) * unit + done, total * unit)

        drawn = draw_exact(
            part.loaded.model,
            part.samples,
            seed=options.seed,
            steps=steps_of(options, part.loaded.meta["config"]),
            device=device,
            run=run,
            batch_size=options.batch_size,
            first_tile=first_tile,
            composer=None if part.composer is None else part.composer.model,
            likely=part.likely,
            processes=Processes(options.jobs, part.loaded.name, part.loaded.meta["task"], cluster),
            on_progress=on_progress,
        )
        crystals.update(drawn)
        first_tile += most_tiles(part.samples, device)
    return crystals


def _models(parts: Sequence[Part]) -> list[LoadedModel]:
    """All models that take part, each once."""
    return list({model.name: model for part in parts for model in part.models}.values())


def _samples(parts: Sequence[Part]) -> list[Sample]:
    return [sample for part in parts for sample in part.samples]


def _finished_result(run: RunFolder, samples: Sequence[Sample]) -> Result:
    """The result of a run that was already complete, from its files."""
    from crystalctl.io.ranked import read_candidates

    summary = run.read_summary()
    rows, aside = summary["structures"], summary["set_aside"]
    candidates = read_candidates(run, rows, samples)
    return Result(candidates, rows, aside, summary["n_samples"], run.path)
