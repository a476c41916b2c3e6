"""`textwright chat`: talk to a model that was trained on dialogues."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def chat(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train --task chat` wrote.")],
    strategy: Annotated[str, typer.Option(help="sample, greedy or beam.")] = "sample",
    temperature: Annotated[float | None, typer.Option(help="Of sampling (0.7).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of sampling (0.9).")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a conversation; otherwise one is drawn and told.")] = None,
) -> None:
    """Talk, line by line; an empty line or the end of the input ends the conversation."""
    from textwright.cli.sources import tell
    from textwright.opening import load_pairs

    model = load_pairs(run, "chat")
    drawn = strategy == "sample" and seed is None
    if drawn:
        seed = secrets.randbelow(2**31)
    given = {"temperature": temperature, "top_p": top_p}
    options = {name: value for name, value in given.items() if value is not None}
    turns: list[str] = []
    for line in _said():
        turns.append(line)
        reply = model.reply(turns, strategy=strategy, seed=None if seed is None else seed + len(turns), **options)
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
