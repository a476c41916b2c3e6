"""`textwright export`: a run leaves for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` or `textwright import` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Literal["huggingface"], typer.Option(help="For whom: huggingface.")] = "huggingface",
    licence: Annotated[str | None, typer.Option("--license", help="For the model card, as in apache-2.0.")] = None,
) -> None:
    """Write a run for another engine, open it there, and compare: ids, logits and greedy texts must be the same."""
    from textwright.cli.sources import tell
    from textwright.exporting import export_huggingface

    parity = export_huggingface(run, out, licence)
    tell(
        f"{out} holds the same model: {parity.texts} texts, {parity.tokens:,} tokens, "
        f"logits within {parity.difference:.1g}"
    )
