"""`textwright evaluate`: perplexities of a run on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` wrote.")],
    data: Annotated[
        str | None, typer.Option(help="A text; by default the run's own test (or validation) text.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens a window moves by; by default half of it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Measure a run: perplexity by token and word, bits by byte and character, in float32 and constant memory."""
    from textwright.errors import ConfigError
    from textwright.evaluating.perplexity import panel
    from textwright.report import panel_table
    from textwright.text.corpus import open_prepared
    from textwright.text.sources import TABLES, SourceConfig
    from textwright.writer import load

    model = load(run)
    if stride is not None and model.model.window is None:
        raise ConfigError("a recurrent model carries its state and has no window: leave out --stride")
    if data is not None:
        trained = model.config.source  # documents are told apart as they were there; encodings may differ
        table = Path(data).suffix.lower() in TABLES
        options = {"field": trained.field} if table else {"documents": trained.documents}
        source = SourceConfig.parse({"path": data, **options})
        name, result = data, model.evaluate(source, stride=stride)
    else:
        prepared = open_prepared(run / "data")
        name, corpus = ("test", prepared.test) if prepared.test.facts.tokens else ("validation", prepared.valid)
        result = panel(model.model, corpus, model.tokenizer.end, stride=stride)
    if json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        typer.echo(panel_table({name: result}).text())
