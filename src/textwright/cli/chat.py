"""`textwright chat`: talk to a model that was trained on dialogues, here or elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textwright.cli import ways

if TYPE_CHECKING:
    from textwright.pair_model import PairModel
    from textwright.writer import TextModel


def chat(
    run: Annotated[Path, typer.Argument(help="A run that was trained on dialogues, or imported with a template.")],
    system: Annotated[str | None, typer.Option(help="What the model is told before; with a template only.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where a reply is cut.")] = None,
    strategy: ways.Strategy = None,
    preset: ways.Preset = None,
    temperature: ways.Temperature = None,
    top_p: ways.TopP = None,
    seed: ways.Seed = None,
    avoid: ways.Avoid = None,
    bias: ways.Bias = None,
    set: ways.Set = None,
    prefix: ways.Prefix = None,
    quantize: ways.Quantize = None,
) -> None:
    """Talk, line by line; an empty line or the end of the input ends the conversation."""
    from textwright.cli.sources import tell
    from textwright.errors import ConfigError, DataError
    from textwright.opening import as_pairs
    from textwright.wishes import check_reply
    from textwright.writer import TextModel

    opened = ways.opened(run, quantize)
    model = opened if isinstance(opened, TextModel) and opened.template else as_pairs(opened, run, "chat")
    if isinstance(model, TextModel):
        if prefix is not None:
            raise ConfigError(f"{run} puts nothing in front of what is said: leave out --prefix")
        told: dict[str, Any] = {"system": system, "max_new_tokens": max_new_tokens}
    elif system is not None:
        raise ConfigError(f"{run} was trained on dialogues alone: leave out --system")
    else:
        task = model.task_prefix(prefix)
        told, preset = {"max_new_tokens": max_new_tokens, "task_prefix": task}, preset or "chat"
    ways.tell_preset(preset, model.tokenizer)
    options = ways.options(set, avoid, bias, temperature=temperature, top_p=top_p, seed=seed)
    options = ways.joined(options, {"strategy": strategy, "preset": preset, **told})
    seed = options.pop("seed", None)
    drawn = ways.luck(seed, options, "sample", model.tokenizer)
    seed = seed if drawn is None else drawn
    check_reply(options)
    turns: list[str] = []
    for line in _said():
        turns.append(line)
        try:
            parts = _reply(model, turns, {**options, "seed": None if seed is None else seed + len(turns)})
        except (DataError, ConfigError) as error:  # too long, for one
            if len(turns) == 1:  # nothing was said before that could be lost, and any option may be at fault
                raise
            tell(f"{error}. It was not said")
            del turns[-1]
            continue
        turns.append("")
        for part in parts:
            turns[-1] += part
            typer.echo(part, nl=False)
        typer.echo()
    if drawn is not None:
        ways.tell_seed(drawn)


def _reply(model: TextModel | PairModel, turns: list[str], options: dict[str, Any]) -> Iterator[str]:
    """The next turn, part by part as it is written where that is known before its end."""
    from textwright.writer import TextModel

    if not isinstance(model, TextModel) or options["strategy"] in ("beam", "mbr") or options["preset"] == "translate":
        return iter([model.reply(turns, **options).text])
    chunks = model.stream_reply(turns, **options)
    begun = list(islice(chunks, 1))  # what does not fit is told now, while the line can be taken back
    return (chunk.text for chunk in chain(begun, chunks))


def _said() -> Iterator[str]:
    """What a person types, until nothing."""
    from textwright.cli.sources import heard

    while True:
        if sys.stdin.isatty():
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = heard(sys.stdin.readline, "type or pipe it in that encoding").strip()
        if not line:
            return
        yield line
