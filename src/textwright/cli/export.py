"""`textwright export`: a run leaves for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` or `textwright import` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[
        Literal["huggingface", "peft"],
        typer.Option(help="For whom: huggingface, or peft for the adapter of a fine-tuned run alone."),
    ] = "huggingface",
    licence: Annotated[str | None, typer.Option("--license", help="For the model card, as in apache-2.0.")] = None,
) -> None:
    """Write a run for another engine, open it there, and compare: ids, logits and greedy texts must be the same."""
    from textwright.cli.sources import tell
    from textwright.errors import ConfigError
    from textwright.exporting import export_huggingface, export_peft

    if to == "peft" and licence is not None:
        raise ConfigError("an adapter has no model card: leave out --license")
    parity = export_peft(run, out) if to == "peft" else export_huggingface(run, out, licence)
    tell(
        f"{out} holds the same model: {parity.texts} texts, {parity.tokens:,} tokens, "
        f"logits within {parity.difference:.1g}"
    )
