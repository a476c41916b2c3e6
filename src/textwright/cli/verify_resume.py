"""`textwright verify-resume`: kill -9, type the same command, compare bits."""

from __future__ import annotations

from typing import Annotated

import typer


def verify_resume(
    kills: Annotated[int, typer.Option(min=1, help="How many times to kill.")] = 5,
    model: Annotated[str, typer.Option(help="rnn, gru, lstm or transformer.")] = "transformer",
    steps: Annotated[int, typer.Option(min=1, help="Length of the run.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Prove on a small run that training killed at random moments continues with bit-equal losses and weights."""
    from textwright.verify import verify_resume as verify

    verify(model, kills, steps, seed, typer.echo)
    typer.echo(f"ok: {kills} kills, every resumed run ended bit-equal to the undisturbed one")
