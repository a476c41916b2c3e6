"""`textwright train`: a model from a text, or from pairs of a source and a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from textwright.cli.pair_files import ALONE, Files, TestPairs, ValidPairs, pair_files, refuse, two_files

SOURCE = (
    "A file, a folder, a glob, builtin:python-docs, or hf:NAME. For tasks with a source: a .tsv, .csv, .jsonl or SQuAD "
    ".json that holds both sides. Or a recipe, a .yaml."
)
SETTING = "Any setting by its path, e.g. training.optimizer.learning_rate=3e-4; repeat for several."
FAMILIES = ("rnn", "gru", "lstm", "transformer")


def train(
    source: Annotated[str | None, typer.Argument(help=SOURCE, show_default="builtin:python-docs")] = None,
    task: Annotated[
        str | None, typer.Option(help="write, or with a source: translate, summarize, answer, chat, convert.")
    ] = None,
    pairs: Annotated[Files | None, two_files("Two files, line by line: the sources and the targets.", ALONE)] = None,
    valid: Annotated[
        str | None, typer.Option(help="A validation text or table; otherwise part of the source is held back.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="A text or table to measure the finished model on.")] = None,
    valid_pairs: ValidPairs = None,
    test_pairs: TestPairs = None,
    fields: Annotated[Files | None, typer.Option(help="Columns of source and target in a table.")] = None,
    prefix: Annotated[
        str | None, typer.Option(help='Put in front of every source, such as "summarize: "; in use it is added again.')
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="rnn, gru, lstm or transformer.", show_default="transformer")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="auto, char, byte, word, bpe, spacy:LANG, jieba, or a tokenizer.json.", show_default="auto"),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes (3 if no budget is given).")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the text.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and dropout.", show_default="0")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; by default runs/NAME-MODEL, runs/NAME-TASK-MODEL or runs/RECIPE."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SETTING)] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard logs, too.")] = False,
) -> None:
    """Train a model on a text, or on pairs. The same command goes on where an interrupted one stopped."""
    from textwright.api import asked, asked_pairs
    from textwright.cli.console import ConsoleAudience
    from textwright.errors import ConfigError, nearest
    from textwright.fit import default_folder, fit
    from textwright.recipes import is_recipe

    if model is not None and model not in FAMILIES:
        raise ConfigError(f"--model {model}: unknown family.{nearest(model, FAMILIES)}")
    settings, budget = tuple(set_ or ()), (minutes, steps, epochs)
    files: dict[str, Any] = {
        "--pairs": pairs,
        "--valid-pairs": valid_pairs,
        "--test-pairs": test_pairs,
        "--fields": fields,
    }
    files |= {"--prefix": prefix}
    request: dict[str, Any]
    if source is not None and is_recipe(source):
        others = {"--task": task, "--valid": valid, "--test": test, "--model": model, "--tokenizer": tokenizer, **files}
        refuse(others, "a recipe says so itself: leave out {}, or --set")
        request = _recipe(Path(source), budget, seed, settings)
        folder = out or Path("runs") / Path(source).stem
    elif task in (None, "write"):
        refuse(files, "{} is for tasks with a source: add --task translate (or summarize, answer, …)")
        name, family = source or "builtin:python-docs", model or "transformer"
        request = asked(name, family, tokenizer or "auto", valid, test, *budget, seed or 0, settings)
        folder = out or default_folder(name, family)
    else:
        train_on = pair_files("the training data", source, pairs, fields, prefix)
        if not train_on:
            raise ConfigError(f"--task {task} needs pairs: --pairs SOURCES TARGETS, or one file that holds both sides")
        validate_on = pair_files("--valid", valid, valid_pairs, fields)
        test_on = pair_files("--test", test, test_pairs, fields)
        family = model or "transformer"
        sides = (train_on, validate_on, test_on)
        request = asked_pairs(str(task), *sides, family, tokenizer or "auto", *budget, seed or 0, settings)
        folder = out or default_folder(train_on[0].path, f"{task}-{family}")
    with ConsoleAudience(folder) as audience:
        fit(request, folder, audience, tensorboard=tensorboard)


def _recipe(
    path: Path, budget: tuple[float | None, int | None, float | None], seed: int | None, settings: tuple[str, ...]
) -> dict[str, Any]:
    """A recipe's request, with another budget or seed if they were given."""
    from textwright.cli.sources import tell
    from textwright.config import override
    from textwright.recipes import changed, read_recipe
    from textwright.run import merge

    recipe = read_recipe(path)
    for file in changed(recipe):
        tell(f"{file} is not the file that the results in {path} were measured with: expect other figures")
    request = dict(recipe.run)
    names = ("minutes", "steps", "epochs")
    given = {name: value for name, value in zip(names, budget, strict=True) if value is not None}
    if given:
        request = merge(request, {"training": {"budget": {}}})
        request["training"]["budget"] = given
    return override(merge(request, {"training": {"seed": seed}} if seed is not None else {}), settings)
