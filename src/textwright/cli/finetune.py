"""`textwright finetune`: a run's model learns another text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GIB = 2**30


def finetune(
    base: Annotated[Path, typer.Argument(help="A run that was trained on a text, or imported.")],
    source: Annotated[str, typer.Argument(help="A file, a folder, a glob, builtin:python-docs, or hf:NAME.")],
    valid: Annotated[
        str | None, typer.Option(help="A validation text; otherwise part of the source is held back.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="A text to measure the finished model on.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes (3 if no budget is given).")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the text.")] = None,
    seed: Annotated[int, typer.Option(help="Of order and dropout.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME-BASE.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path; repeat for several."),
    ] = None,
) -> None:
    """Train all weights of a model on, on another text. The same command goes on where an interrupted one stopped."""
    from textwright.api import asked_on
    from textwright.cli.console import ConsoleAudience
    from textwright.cli.sources import tell
    from textwright.fit import default_folder, fit
    from textwright.interop.memory import check_room, need
    from textwright.run import read_run

    request = asked_on(base, source, valid, test, minutes, steps, epochs, seed, tuple(set_ or ()))
    model = read_run(base).model
    check_room(model, str(base), copies=4)
    tell(
        f"full fine-tuning: {need(model) // 4:,} parameters, at least {4 * need(model) / GIB:.1f} GiB "
        "(weights, gradients, two moments)"
    )
    folder = out or default_folder(source, base.name)
    with ConsoleAudience(folder) as audience:
        fit(request, folder, audience)
