"""`textwright import`: somebody else's model becomes a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    model: Annotated[
        str, typer.Argument(help="A folder as on the Hugging Face hub, OWNER/NAME there, or a .gguf file.")
    ],
    out: Annotated[Path | None, typer.Option(help="The run's folder (runs/NAME).")] = None,
    way: Annotated[
        Literal["auto", "native", "transformers"],
        typer.Option(
            "--as", help="native: as our own Transformer; transformers: as that library's; auto: ours if it can."
        ),
    ] = "auto",
    task: Annotated[
        Literal["translate", "summarize", "answer", "chat", "convert"] | None,
        typer.Option(help="What a model with a source does (T5, BART, Marian, NLLB, …)."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="What such a model wants in front of every source.")] = "",
    languages: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="SOURCE TARGET", help="Of a model for many languages: their tokens, as in deu_Latn eng_Latn."
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of the weights, here and in memory: bfloat16 takes half the room."),
    ] = "float32",
    base: Annotated[
        Path | None, typer.Option(help="MODEL is an adapter as peft writes it, for the model of this run.")
    ] = None,
) -> None:
    """Turn a pretrained model into a run, which all other commands take."""
    from textwright.cli.sources import tell
    from textwright.errors import ConfigError
    from textwright.importing import import_adapter, import_model
    from textwright.training import hardware

    if out is None:
        name = Path(model).name
        out = Path("runs") / (name if name.strip(".") else Path(model).resolve().name)
    if base is None:
        network = import_model(model, out, way, task, prefix, languages, precision)
        tell(f"{type(network).__name__}: {network.count_parameters():,} parameters")
    elif way != "auto" or task is not None or prefix or languages or precision != "float32":
        raise ConfigError("an adapter is for the model of its base, however that was imported: leave out the rest")
    else:
        import_adapter(Path(model), base, out)
    given = {None: "--prompt TEXT", "answer": "--question TEXT --context TEXT", "chat": ""}.get(task, "TEXT")
    if precision == "bfloat16" and not hardware.has_bfloat16(hardware.pick_device("auto")):
        tell(f"note: {hardware.WITHOUT_BFLOAT16}: writing will be slow. Float32 is not, nor is --quantize int8")
    tell(f"to write: textwright {task or 'generate'} {shlex.quote(str(out))} {given}".rstrip())
