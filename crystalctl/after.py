"""What follows the ranking of a run: candidates relaxed, ranked by energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from crystalctl.analysis.scoring import check_order
from crystalctl.errors import InputError

if TYPE_CHECKING:
    from crystalctl.cluster import Cluster
    from crystalctl.execution import Options, Result

MOST = 100
"""Structures that are relaxed without being asked to."""
FOLDER = "relaxed"


def check_wish(options: Options, formulas: Sequence[str]) -> None:
    """Refuse, before anything is sampled, what could not be carried out after it.

    ``formulas``: those to be predicted, none for a generation.
    """
    check_order(options.rank_by)
    named = {"--calculator": options.calculator, "--hull": options.hull}
    idle = [name for name, value in named.items() if value is not None]
    if options.relax is False and idle:
        raise InputError(f"--no-relax leaves {' and '.join(idle)} without use", "leave one out")
    if not _asked(options):
        return
    if options.out is None and not options.default_out:
        raise InputError("relaxed structures need a folder", "give out=")
    from crystalctl.analysis.energy import DEFAULT, load_potential
    from crystalctl.analysis.hull import Hull
    from crystalctl.checkpoint import hull_file

    potential = load_potential(options.calculator or DEFAULT)
    if options.hull is not None and (file := hull_file(options.hull, potential.name)):
        Hull.load(file, calculator=potential.name).check(formulas)


def relaxed(result: Result, options: Options, cluster: Cluster | None = None) -> Result:
    """The result with its candidates relaxed, where that is asked for, or is the default."""
    from crystalctl.analysis.energy import DEFAULT, default_calculator
    from crystalctl.relaxing import relax_all

    n = len(result.candidates)
    if result.folder is None or not n:
        return result
    if not _asked(options):
        note = _why_not(n, options, default_calculator())
        options.tell(note)
        if options.relax is False or note or options.xrd is not None:
            return result
    calculator = options.calculator or DEFAULT
    if options.relax is None:
        options.tell(f"relaxing {n} structures with {calculator}; --no-relax leaves it out")
    found = relax_all(
        result.folder,
        calculator=calculator,
        device="cpu" if options.device == "auto" else options.device,
        hull=options.hull,
        by=options.rank_by,
        out=result.folder / FOLDER,
        resume=True,
        cluster=cluster,
        on_progress=options.on_progress,
    )
    return replace(result, relaxed=found)


def _asked(options: Options) -> bool:
    named = options.calculator is not None or options.hull is not None
    return bool(options.relax) or (options.relax is None and named)


def _why_not(n: int, options: Options, calculator: str | None) -> str:
    """What to tell a user whose structures are not relaxed without being asked; or nothing."""
    from crystalctl.analysis.energy import INSTALL

    if options.relax is False or options.xrd is not None:
        return ""
    if calculator is None:
        return f"not relaxed: {INSTALL} ranks structures by energy"
    if n > MOST:
        return f"{n} structures are not relaxed unless you add --relax"
    return ""
