"""The `textwright` command: one file a verb, errors as one or two lines, exit code 0 only for success."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from textwright.cli import doctor, evaluate, generate, selftest, train, verify_resume
from textwright.errors import TextwrightError

app = typer.Typer(
    name="textwright",
    help="Textwright (文匠): from a text file to a model that writes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("doctor")(doctor.doctor)
app.command("selftest")(selftest.selftest)
app.command("verify-resume")(verify_resume.verify_resume)


def main() -> None:
    """Run the command line; `TEXTWRIGHT_TRACEBACK=1` shows tracebacks instead of messages."""
    for stream in (sys.stdout, sys.stderr):
        _encode_anything(stream)
    if os.environ.get("TEXTWRIGHT_TRACEBACK"):
        app()
    warnings.simplefilter("ignore")
    try:
        app()
    except TextwrightError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(f"cannot use{where or ' a file'}: {error.strerror or error}", 1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}\nThis is a defect of ours; TEXTWRIGHT_TRACEBACK=1 shows where", 70)


def _fail(message: str, code: int) -> None:
    print(f"textwright: {message}", file=sys.stderr)
    sys.exit(code)


def _encode_anything(stream: Any) -> None:
    """Print UTF-8, or at least never fail, whatever the locale."""
    if (stream.encoding or "").lower() in ("ascii", "us-ascii", "ansi_x3.4-1968"):
        stream.reconfigure(encoding="utf-8", errors="replace")
    else:
        stream.reconfigure(errors="replace")
