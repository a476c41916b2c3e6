"""`textwright finetune`: a run's model learns another text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def finetune(
    base: Annotated[Path, typer.Argument(help="A run that was trained on a text, or imported.")],
    source: Annotated[str, typer.Argument(help="A file, a folder, a glob, builtin:python-docs, or hf:NAME.")],
    method: Annotated[str, typer.Option(help="What learns: full (all weights), lora, rslora, dora or qlora.")] = "full",
    learn: Annotated[
        Literal["auto", "text", "answers", "preferences"],
        typer.Option(help="All of a text, the answers of examples alone, or rather one answer than another."),
    ] = "auto",
    fields: Annotated[
        tuple[str, str] | None, typer.Option(metavar="PROMPT ANSWER", help="Columns of a table with other names.")
    ] = None,
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
    """Train a model on, on another text. The same command goes on where an interrupted one stopped."""
    from textwright.api import asked_on
    from textwright.cli.console import ConsoleAudience
    from textwright.cli.sources import tell
    from textwright.expense import expense
    from textwright.fit import default_folder, fit
    from textwright.interop.memory import check_room

    request = asked_on(
        base, source, method, learn, fields, valid, test, minutes, steps, epochs, seed, tuple(set_ or ())
    )
    expected = expense(request)
    check_room(expected.memory, f"{method} fine-tuning of {base}")
    tell(str(expected))
    folder = out or default_folder(source, base.name if method == "full" else f"{base.name}-{method}")
    with ConsoleAudience(folder) as audience:
        fit(request, folder, audience)
