"""`textwright recipes`: what is published, and what it reached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipes(
    folder: Annotated[
        Path, typer.Argument(help="A folder of recipes; or list, for those of the folder recipes.")
    ] = Path("recipes"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """List recipes with their results; `textwright train recipes/NAME.yaml` repeats one."""
    import json as jsons

    from textwright.errors import DataError
    from textwright.recipes import list_recipes
    from textwright.reporting import table

    if folder == Path("list") and not folder.exists():
        folder = Path("recipes")
    found, faults = list_recipes(folder)
    for fault in faults:
        typer.echo(f"textwright: left out: {fault.splitlines()[0]}", err=True)
    if not found:
        raise DataError(f"{folder} holds no recipes: expected .yaml files, as in the repository's folder recipes/")
    if json:
        typer.echo(jsons.dumps({name: recipe.dump() for name, recipe in found}, ensure_ascii=False, indent=2))
        return
    rows = [
        (name, result.text, result.metric, result.ranged, result.seed, round(result.minutes, 1), result.machine)
        for name, recipe in found
        for result in recipe.results or ()
    ]
    typer.echo(table(["recipe", "measured on", "metric", "value", "seed", "minutes", "machine"], rows).text())
    for name, recipe in found:
        typer.echo(f"{name}: {recipe.about}")
