"""`textwright export`: a run leaves for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` or `textwright import` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; for gguf the file.")],
    to: Annotated[
        Literal["huggingface", "peft", "gguf", "onnx"],
        typer.Option(
            help="huggingface; gguf for llama.cpp; onnx for recurrent models without a source; peft for adapters."
        ),
    ] = "huggingface",
    packing: Annotated[
        Literal["f32", "f16", "q8_0", "q4_0"] | None, typer.Option(help="Of the weights in a gguf (f16).")
    ] = None,
    licence: Annotated[str | None, typer.Option("--license", help="For the model card, as in apache-2.0.")] = None,
) -> None:
    """Write a run for another engine, open it there, and compare: ids, logits and greedy texts must be the same."""
    from textwright.cli.sources import tell
    from textwright.errors import ConfigError
    from textwright.exporting import export_gguf, export_huggingface, export_onnx, export_peft

    if to != "huggingface" and licence is not None:
        raise ConfigError(f"there is no model card for {to}: leave out --license")
    if to != "gguf" and packing is not None:
        raise ConfigError("--packing is for --to gguf: leave it out")
    if to == "gguf":
        tell(f"{out}: {export_gguf(run, out, packing or 'f16')}")
        return
    if to == "huggingface":
        parity = export_huggingface(run, out, licence)
    else:
        parity = (export_peft if to == "peft" else export_onnx)(run, out)
    tell(
        f"{out} holds the same model: {parity.texts} texts, {parity.tokens:,} tokens, "
        f"logits within {parity.difference:.1g}"
    )
