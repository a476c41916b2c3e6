"""`textwright selftest`: is this very model what its cache says?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def selftest(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` wrote.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Check on this model: cached == uncached == brute force, batched == single, guessed == plain, stream == text."""
    from textwright.opening import load
    from textwright.selftest import selftest as run_checks

    checks = run_checks(load(run))
    if json:
        import json as jsons

        typer.echo(jsons.dumps([check._asdict() for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check.holds else 'FAIL'}  {check.name}  ({check.detail})")
    if not all(check.holds for check in checks):
        sys.exit(1)
