"""`textwright detect`: was a text written with a watermark?"""

from __future__ import annotations

import json as jsons
from pathlib import Path
from typing import Annotated

import typer

CERTAIN = 1e-4  # a text without the watermark is called one with it so rarely


def detect(
    run: Annotated[Path, typer.Argument(help="The run that may have written it: its tokens are counted.")],
    text: Annotated[str | None, typer.Argument(help="The text; without it, --input or standard input.")] = None,
    input: Annotated[Path | None, typer.Option(help="A file that holds the text.")] = None,
    key: Annotated[
        int | None, typer.Option(help="The watermark_key it would have been written with.", min=0, max=2**53 - 1)
    ] = None,
    share: Annotated[float | None, typer.Option(help="The watermark_share (0.25).", min=0.01, max=0.99)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Say whether a text carries the watermark of `generate --set watermark=2`."""
    from textwright.cli.sources import standard_input
    from textwright.decoding.watermark import detect as count
    from textwright.errors import ConfigError
    from textwright.opening import load
    from textwright.text.sources import decoded

    if text is not None and input is not None:
        raise ConfigError("give a text or --input, not both")
    if input is not None:
        text = "".join(decoded(input, None))
    tokens = load(run).tokenizer.encode(standard_input() if text is None else text)
    if len(tokens) < 2:
        raise ConfigError("a watermark needs at least two tokens to be seen: give a longer text")
    given = {"key": key, "share": share}
    found = count(tokens, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if json:
        typer.echo(jsons.dumps({**found._asdict(), "watermark": found.p < CERTAIN}))
        return
    verdict = "a watermark" if found.p < CERTAIN else "no watermark"
    counts = f"{found.green} of {found.counted} pairs of tokens are green, {found.expected:.1f} without a watermark"
    typer.echo(f"{verdict}: {counts} (z {found.z:.1f}, p {found.p:.1e})")
