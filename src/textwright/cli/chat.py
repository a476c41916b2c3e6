"""`textwright chat`: talk to a model that was trained on dialogues."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from textwright.cli import ways


def chat(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train --task chat` wrote.")],
    strategy: ways.Strategy = None,
    preset: ways.Preset = "chat",
    temperature: ways.Temperature = None,
    top_p: ways.TopP = None,
    seed: ways.Seed = None,
    avoid: ways.Avoid = None,
    bias: ways.Bias = None,
    set: ways.Set = None,
    quantize: ways.Quantize = None,
) -> None:
    """Talk, line by line; an empty line or the end of the input ends the conversation."""
    from textwright.cli.sources import tell
    from textwright.opening import as_pairs

    model = as_pairs(ways.opened(run, quantize), run, "chat")
    ways.tell_preset(preset, model.tokenizer)
    drawn = strategy in (None, "sample") and preset != "translate" and seed is None
    if drawn:
        seed = secrets.randbelow(2**31)
    options = ways.options(set, avoid, bias, temperature=temperature, top_p=top_p)
    options |= {"strategy": strategy, "preset": preset}
    turns: list[str] = []
    for line in _said():
        turns.append(line)
        reply = model.reply(turns, seed=None if seed is None else seed + len(turns), **options)
        turns.append(reply.text)
        typer.echo(reply.text)
    if drawn:
        tell(f"seed {seed}: add --seed {seed} to get the same again")


def _said() -> Iterator[str]:
    """What a person types, until nothing."""
    while True:
        if sys.stdin.isatty():
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
