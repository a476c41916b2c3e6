"""`textwright finetune`: a run's model learns another text, or other pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from textwright.cli.pair_files import ALONE, Files, TestPairs, ValidPairs, pair_files, refuse, two_files


def finetune(
    base: Annotated[Path, typer.Argument(help="A run that was trained here, or imported.")],
    source: Annotated[
        str | None,
        typer.Argument(
            help="A file, a folder, a glob, builtin:python-docs, or hf:NAME. For a base with a source: a .tsv, .csv, "
            ".jsonl or SQuAD .json that holds both sides."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="What learns: full (all weights), lora, rslora, dora, qlora or prompt.")
    ] = "full",
    learn: Annotated[
        Literal["auto", "text", "answers", "preferences"],
        typer.Option(help="All of a text, the answers of examples alone, or rather one answer than another."),
    ] = "auto",
    fields: Annotated[
        Files | None, typer.Option(metavar="PROMPT ANSWER", help="Columns of a table with other names.")
    ] = None,
    pairs: Annotated[
        Files | None, two_files("For a base with a source: two files, the sources and the targets.", ALONE)
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Put in front of every source; by default what the base was trained with.")
    ] = None,
    valid: Annotated[
        str | None, typer.Option(help="A validation text or table; otherwise part of the source is held back.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="A text or table to measure the finished model on.")] = None,
    valid_pairs: ValidPairs = None,
    test_pairs: TestPairs = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes (3 if no budget is given).")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the text.")] = None,
    seed: Annotated[int, typer.Option(help="Of order and dropout.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/NAME-BASE, or runs/NAME-BASE-METHOD.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path; repeat for several."),
    ] = None,
) -> None:
    """Train a model on, on another text or other pairs. The same command goes on where an interrupted one stopped."""
    from textwright.api import asked_on, asked_on_pairs, tuned_folder
    from textwright.cli.console import ConsoleAudience
    from textwright.cli.sources import tell
    from textwright.errors import ConfigError
    from textwright.expense import expense
    from textwright.fit import fit
    from textwright.interop.memory import check_room
    from textwright.run import WithSource, read_run

    budget, settings = (minutes, steps, epochs), tuple(set_ or ())
    request: dict[str, Any]
    if isinstance(read_run(base), WithSource):
        if learn != "auto":
            raise ConfigError(f"--learn {learn}: {base} writes with a source and learns its targets: leave it out")
        train_on = pair_files("the training data", source, pairs, fields)
        if not train_on:
            raise ConfigError(
                f"{base} writes with a source: --pairs SOURCES TARGETS, or one file that holds both sides"
            )
        validate_on = pair_files("--valid", valid, valid_pairs, fields)
        test_on = pair_files("--test", test, test_pairs, fields)
        request = asked_on_pairs(base, train_on, validate_on, test_on, method, prefix, *budget, seed, settings)
        name = train_on[0].path
    else:
        files = {"--pairs": pairs, "--valid-pairs": valid_pairs, "--test-pairs": test_pairs, "--prefix": prefix}
        refuse(files, f"{{}} is for a base with a source, and {base} has none: leave it out")
        if source is None:
            raise ConfigError(f"say what {base} should learn: textwright finetune {base} TEXT")
        request, name = asked_on(base, source, method, learn, fields, valid, test, *budget, seed, settings), source
    expected = expense(request)
    check_room(expected.memory, f"{method} fine-tuning of {base}")
    tell(str(expected))
    folder = out or tuned_folder(name, base, method)
    with ConsoleAudience(folder) as audience:
        fit(request, folder, audience)
