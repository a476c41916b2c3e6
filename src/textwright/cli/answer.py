"""`textwright answer`: a question about a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textwright.cli import ways


def answer(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train --task answer` wrote.")],
    question: Annotated[str | None, typer.Option(help="The question.")] = None,
    context: Annotated[str | None, typer.Option(help="The text that holds the answer; a file with @FILE.")] = None,
    input: Annotated[Path | None, typer.Option(help="Many: a SQuAD .json, or a .jsonl.")] = None,
    n_best: Annotated[int, typer.Option(min=1, help="How many answers.")] = 1,
    beams: ways.SearchBeams = None,
    scores: Annotated[bool, typer.Option("--scores", help="Log-probability ÷ length^α behind each answer.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a question and nothing else.")] = False,
    prefix: ways.Prefix = None,
    quantize: ways.Quantize = None,
) -> None:
    """Answer questions."""
    from textwright.cli import sources
    from textwright.errors import ConfigError
    from textwright.opening import as_pairs
    from textwright.text.sources import decoded

    if (input is None) == (question is None):
        raise ConfigError("ask one question, --question TEXT with --context TEXT, or give many with --input FILE")
    if input is not None and context is not None:
        raise ConfigError("--context belongs to --question: leave it out with --input")
    model = as_pairs(ways.opened(run, quantize), run, "answer")
    if question is None:
        task = model.task_prefix(prefix)
        read = sources.read(model, None, input, prefix=task)
        read = [(model.for_task(task, text), where) for text, where in read]
    else:
        text = (context or "").strip()
        if text.startswith("@"):
            text = "".join(decoded(Path(text[1:]), None)).strip()
        read = [(model.asked(question, text, prefix), "the question")]
    options = {} if beams is None else {"beams": beams}
    sources.write(model, run, read, sources.Printing(scores=scores, json=json), n_best=n_best, **options)
