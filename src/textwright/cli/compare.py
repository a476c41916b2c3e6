"""`textwright compare`: two runs on the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from textwright.cli import ways
from textwright.cli.pair_files import MeasuredPairs


def compare(
    first: Annotated[Path, typer.Argument(help="A run.")],
    second: Annotated[Path, typer.Argument(help="Another one, trained for the same task.")],
    pairs: MeasuredPairs = None,
    data: Annotated[str | None, typer.Option(help="A table of pairs; by default the first run's test data.")] = None,
    fields: Annotated[tuple[str, str] | None, typer.Option(help="Columns of a table of pairs.")] = None,
    prefix: ways.Prefix = None,
    beams: ways.SearchBeams = None,
    length_penalty: ways.SearchPenalty = None,
    language: ways.Language = None,
    lowercase: ways.Lowercase = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Compare two runs by paired bootstrap resampling (Koehn 2004): is the difference more than chance?"""
    import json as jsons

    from textwright.cli.evaluate import read_test
    from textwright.cli.watching import Watch
    from textwright.errors import ConfigError
    from textwright.opening import load_pairs
    from textwright.pair_scores import compare_pairs, comparison_table

    models = load_pairs(first), load_pairs(second)
    if (language is not None or lowercase is not None) and models[0].config.task != "translate":
        raise ConfigError(
            f"{first} was trained to {models[0].config.task}: --language and --lowercase are for translations"
        )
    tested = read_test(models[0], first, data, pairs, fields, prefix)
    with Watch("writing, sources", 2 * len(tested)) as watch:
        found = compare_pairs(
            *models,
            tested,
            beams=beams,
            length_penalty=length_penalty,
            language=language,
            lowercase=lowercase,
            progress=watch,
        )
    if json:
        typer.echo(jsons.dumps([one.dump() for one in found], ensure_ascii=False, indent=2))
        return
    typer.echo(comparison_table(found, str(first), str(second)).text())
    for one in found:
        typer.echo(one.sentence)
