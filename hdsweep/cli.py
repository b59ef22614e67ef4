"""The front door: the only module that knows every other.

Imports stand inside the commands where they are slow: ``hdsweep plan`` must answer before pandas,
Ray or torch would have been loaded.
"""

from __future__ import annotations

import gc
import io
import os
import sys

import typer
from rich.text import Text

from hdsweep import views
from hdsweep.cli_cache import cache_app
from hdsweep.cli_claims import claims
from hdsweep.cli_data import data_app
from hdsweep.cli_diff import diff
from hdsweep.cli_import import import_
from hdsweep.cli_methods import methods
from hdsweep.cli_plan import check, plan
from hdsweep.cli_report import report, show, status
from hdsweep.cli_run import run
from hdsweep.cli_search import export_app, replay
from hdsweep.cli_store import doctor, export_archive
from hdsweep.cli_watch import watch
from hdsweep.errors import HdsweepError
from hdsweep.execute import thread_environment
from hdsweep.terminal import Console

app = typer.Typer(
    help="Sweeps of anomaly-detection research: plan, run on GPUs, report.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
app.add_typer(export_app, name="export")
export_app.command("archive")(export_archive)
for command in (run, plan, check, status, show, report, watch, replay, methods, diff, claims):
    app.command()(command)
app.command("import")(import_)
app.command()(doctor)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit status 2."""
    for key, value in thread_environment(1).items():
        if key == "OMP_WAIT_POLICY" or key.startswith("CUBLAS"):
            os.environ.setdefault(key, value)  # read by libraries that are not loaded yet
    gc.set_threshold(200_000, 50, 100)  # a plan of 100,000 trials is many small objects, all kept
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± still gets its table
    try:
        app()
    except HdsweepError as error:
        _complain(str(error))
    except OSError as error:
        # What no module foresaw about a file; its name is in the error, our code is not of use.
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}")


def _complain(message: str) -> None:
    line = Text.assemble(("error: ", "red"), message)
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
    sys.exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, the knobs of every method included."""
    from hdsweep.schema import sweep_schema

    views.print_json(sweep_schema())


if __name__ == "__main__":
    main()
