"""`textwright translate`, `summarize` and `convert`: one text for every source, as the run was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

VERBS = {
    "translate": "Translate a text, the lines of a file, or the lines of standard input.",
    "summarize": "Summarise a text, or the rows of a table.",
    "convert": "Turn texts into others, as the run was trained to: spellings into sounds, sentences into labels.",
}


def transform(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train --task …` wrote.")],
    text: Annotated[str | None, typer.Argument(help="One source; without it, --input or standard input.")] = None,
    input: Annotated[Path | None, typer.Option(help="A file: every line is a source, or every row of a table.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Standard input is one source, line ends and all.")] = False,
    strategy: Annotated[str, typer.Option(help="beam, greedy or sample.")] = "beam",
    n_best: Annotated[int, typer.Option(min=1, help="How many texts for each source.")] = 1,
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search (5).")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Ranked by log-probability ÷ length^this (1).")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where a text is cut.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of --strategy sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of --strategy sample.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a sample.")] = None,
    replace_unknown: Annotated[
        bool, typer.Option("--replace-unknown", help="Put the source word the model looked at for an unknown one.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Log-probability ÷ length^α behind each text.")] = False,
    alignments: Annotated[
        bool, typer.Option("--alignments", help="Where the model looked: source-target pairs of tokens, or weights.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw where it looked: a .svg or .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a source and nothing else.")] = False,
) -> None:
    from textwright.cli import sources
    from textwright.opening import load_pairs

    model = load_pairs(run, context.info_name)
    given = {"beams": beams, "length_penalty": length_penalty, "temperature": temperature, "top_p": top_p}
    given |= {"max_new_tokens": max_new_tokens, "seed": seed}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"strategy": strategy, "n_best": n_best, "replace_unknown": replace_unknown}
    read = sources.read(model, text, input, whole=whole)
    sources.write(model, run, read, sources.Printing(scores, alignments, picture, json), **options)
