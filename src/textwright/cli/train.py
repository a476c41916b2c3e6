"""`textwright train`: a model from a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCE = "A file, a folder, a glob, builtin:python-docs, or hf:NAME."
SETTING = "Any setting by its path, e.g. training.optimizer.learning_rate=3e-4; repeat for several."


def train(
    source: Annotated[str, typer.Argument(help=SOURCE)] = "builtin:python-docs",
    valid: Annotated[
        str | None, typer.Option(help="A validation text; otherwise part of the source is held back.")
    ] = None,
    model: Annotated[str, typer.Option(help="rnn, gru, lstm or transformer.")] = "transformer",
    tokenizer: Annotated[
        str, typer.Option(help="auto, char, byte, word, bpe, spacy:LANG, jieba, or a tokenizer.json.")
    ] = "auto",
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes (3 if no budget is given).")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the text.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME-MODEL.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SETTING)] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs, too.")] = False,
) -> None:
    """Train a model on a text. The same command goes on where an interrupted one stopped."""
    from textwright.api import asked
    from textwright.cli.console import ConsoleAudience
    from textwright.errors import ConfigError, nearest
    from textwright.fit import default_folder, fit

    families = ("rnn", "gru", "lstm", "transformer")
    if model not in families:
        raise ConfigError(f"--model {model}: unknown family.{nearest(model, families)}")
    request = asked(source, model, tokenizer, valid, minutes, steps, epochs, seed, tuple(set_ or ()))
    folder = out or default_folder(source, model)
    with ConsoleAudience(folder) as audience:
        fit(request, folder, audience, tensorboard=tensorboard)
