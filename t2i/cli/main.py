"""The command line: `t2i generate | variations | interpolate | text-diff | upsample | train | configs | calibrate |
assemble | convert | data | caption | eval | info`.

Nothing heavy is imported before a command runs.

Exit codes: 0 done · 2 wrong usage · 3 bad data or disk · 4 values that are not finite · 5 out of memory ·
75 stopped by a signal, saved · 130 interrupted.
"""

import atexit
import gc
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from t2i.cli import data, evals
from t2i.cli.caption import caption
from t2i.cli.convert import convert
from t2i.cli.generate import generate
from t2i.cli.info import info
from t2i.cli.manipulate import interpolate, text_diff, upsample, variations
from t2i.cli.train import assemble, calibrate, configs, train
from t2i.core.errors import MAX_LINE, DataError, OutOfMemoryError, Stopped, T2IError, UsageError, lacks_memory, shown
from t2i.core.threads import wait_quietly
from t2i.pipeline.habits import OPTIONS

INTERRUPTED = 130  # what typer makes of Ctrl-C
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        from t2i.version import __version__

        typer.echo(f"t2i {__version__}")
        raise typer.Exit


@app.callback()
def _t2i(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Text to picture: DDPM to DALL-E 3, every stage trainable on its own."""


for command in (generate, variations, interpolate, text_diff, upsample):
    app.command()(command)
app.command(add_help_option=False)(train)  # which has one of its own, for the keys of a config
for other in (configs, calibrate, assemble, convert, caption, info):
    app.command()(other)
app.add_typer(data.app, name="data")
app.add_typer(evals.app, name="eval")


def main() -> None:
    """Run a command; every expected error is one line on stderr and an exit code, an interrupt is exit code 130."""
    wait_quietly()
    atexit.register(gc.freeze)  # or the interpreter, before it ends, looks for cycles in all of torch: a second or more
    warnings.showwarning = lambda message, category, *_: _tell(f"warning: {message}")  # type: ignore[assignment]
    try:
        if (code := app(standalone_mode=False)) == INTERRUPTED:
            typer.echo("interrupted", err=True)
        sys.exit(code)
    except Stopped as error:  # as it was asked to
        _tell(str(error))
        sys.exit(error.exit_code)
    except T2IError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", DataError.exit_code)
    except Exception as error:
        if lacks_memory(error):
            asked = " ".join(str(error).split())
            _end(f"out of memory{f': {asked}' if asked else ''}", OutOfMemoryError.exit_code)
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # of the option parser; several lines are the help that was asked for
        if "\n" in message:
            typer.echo(message, err=True)
            sys.exit(UsageError.exit_code)
        word = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
        _end(
            f"no such option --{word}; here it is {OPTIONS[word]}" if word in OPTIONS else message, UsageError.exit_code
        )


def _tell(line: str) -> None:
    """One line on stderr, whatever text of others is in it."""
    typer.echo(shown(line, MAX_LINE), err=True)


def _end(message: str, exit_code: int) -> NoReturn:
    """One line on stderr, and the end."""
    _tell(f"error: {message}")
    sys.exit(exit_code)
