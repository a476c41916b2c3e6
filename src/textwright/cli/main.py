"""The `textwright` command: one file a verb, errors as one or two lines, exit code 0 only for success."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from textwright.cli import (
    answer,
    chat,
    compare,
    detect,
    doctor,
    evaluate,
    export,
    finetune,
    generate,
    import_,
    recipes,
    selftest,
    train,
    transform,
    verify_resume,
)
from textwright.errors import TextwrightError


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, its exceptions turned into messages and exit codes; TEXTWRIGHT_TRACEBACK=1 shows tracebacks instead."""

    @functools.wraps(verb)
    def call(*arguments: Any, **options: Any) -> None:
        if os.environ.get("TEXTWRIGHT_TRACEBACK"):
            verb(*arguments, **options)
            return
        warnings.simplefilter("ignore")
        try:
            verb(*arguments, **options)
            sys.stdout.flush()
        except TextwrightError as error:
            _fail(str(error), 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:  # the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            where = f" {error.filename}" if error.filename else " a file"
            _fail(f"cannot use{where}: {error.strerror or error}", 1)
        except Exception as error:
            hint = "This is a defect of ours; TEXTWRIGHT_TRACEBACK=1 shows where"
            _fail(f"{type(error).__name__}: {error}\n{hint}", 70)

    return call


app = typer.Typer(
    name="textwright",
    help="Textwright (文匠): from a text file to a model that writes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (
    *(train, evaluate, generate, answer, chat, import_, finetune, export, compare),
    *(recipes, doctor, selftest, detect, verify_resume),
):
    name = module.__name__.rsplit(".", 1)[1]
    app.command(name.strip("_").replace("_", "-"))(guarded(getattr(module, name)))
for verb, purpose in transform.VERBS.items():
    app.command(verb, help=purpose)(guarded(transform.transform))


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        _encode_anything(stream)
    app()


def _fail(message: str, code: int) -> None:
    print(f"textwright: {message}", file=sys.stderr)
    sys.exit(code)


def _encode_anything(stream: Any) -> None:
    """Print UTF-8, or at least never fail, whatever the locale."""
    if stream.isatty():
        stream.reconfigure(errors="replace")
    else:  # a file or a pipe can hold every character
        stream.reconfigure(encoding="utf-8", errors="replace")
