"""The command ``crystalctl``: global flags, commands, and the one place that catches errors."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from crystalctl.cli import ui
from crystalctl.cli.data import app as data_app
from crystalctl.cli.evaluate import evaluate
from crystalctl.cli.generate import generate
from crystalctl.cli.models import models
from crystalctl.cli.predict import predict
from crystalctl.cli.rank import rank
from crystalctl.cli.relax import relax
from crystalctl.cli.score import score
from crystalctl.cli.train import train
from crystalctl.errors import CrystalctlError

app = typer.Typer(
    name="crystalctl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import crystalctl

        print(f"crystalctl {crystalctl.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")
    ] = False,
) -> None:
    """Crystal structure prediction and generation with diffusion models."""


app.command()(predict)
app.command()(generate)
app.command()(evaluate)
app.command()(relax)
app.command()(rank)
app.command()(score)
app.command()(train)
app.command()(models)
app.add_typer(data_app, name="data")


def _be_a_good_neighbour() -> None:
    """Threads of libgomp wait a little, then sleep; read by torch when it is first imported.

    Their default is to wait busily for as long as no more of them run than there are cores, which
    other programs on the same cores make 30 times slower (and it burns what those would need). To
    sleep at once costs up to twice the time on free cores; this is as fast there.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 fine, 1 unexpected, 2 a request that cannot be carried out."""
    _be_a_good_neighbour()
    # pymatgen sorts formulas by electronegativity, and remarks that some elements have none.
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Greek letters shows a ? in the table instead of losing the table.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(args=given, prog_name="crystalctl")
    except CrystalctlError as error:
        ui.show_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if "--debug" in given:
            raise
        place = f" ({error.filename})" if error.filename else ""
        what = f"{error.strerror or error}{place}"
        ui.show_error(CrystalctlError(what, "check the path, its permissions and the disk's space"))
        sys.exit(1)
    except Exception as error:
        if "--debug" in given:
            raise
        ui.show_error(
            CrystalctlError(
                f"unexpected {type(error).__name__}: {error}",
                "please report it with the output of `crystalctl --debug ...` (same arguments)",
            )
        )
        sys.exit(1)
