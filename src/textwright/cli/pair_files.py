"""Pairs as a command line names them: two files, or one that holds both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from textwright.text.pairs import PairSource

Files = tuple[str, str]


def two_files(help: str, table: str) -> Any:
    """An option for two files of pairs.

    Args:
        table: how one file that holds both sides is given instead.
    """

    def named(files: Files | None) -> Files | None:
        if files is not None and files[1].startswith("--"):  # click takes what follows for the second file
            raise typer.BadParameter(
                f"expected two files, got {files[0]} and then {files[1]}; one that holds both sides is given {table}"
            )
        return files

    return typer.Option(help=help, callback=named)


ValidPairs = Annotated[Files | None, two_files("Two files to validate on.", "as --valid FILE")]
TestPairs = Annotated[Files | None, two_files("Two files to measure the finished model on.", "as --test FILE")]
MeasuredPairs = Annotated[Files | None, two_files("Two files: sources and references.", "as --data FILE")]
ALONE = "without an option"  # how `train` and `finetune` take one file


def pair_files(
    what: str, table: str | None, files: Files | None, fields: Files | None, prefix: str | None = None
) -> list[PairSource]:
    """One source of pairs, from a table or from two files, with what is put in front of every source."""
    from textwright.errors import ConfigError
    from textwright.text.pairs import PairSource

    if table is not None and files is not None:
        raise ConfigError(f"{what}: give one file that holds both sides or two files of pairs, not both")
    framed = {} if prefix is None else {"prefix": prefix}
    if files is not None:
        if fields is not None and what == "the training data":
            raise ConfigError("--fields names the columns of a table: leave it out with --pairs")
        return [PairSource.parse({"path": files[0], "target": files[1], **framed}, "pairs")]
    if table is None:
        return []
    return [PairSource.parse({"path": table, **({"fields": list(fields)} if fields else {}), **framed}, "pairs")]


def refuse(given: Mapping[str, object], message: str) -> None:
    from textwright.errors import ConfigError

    for name, value in given.items():
        if value is not None:
            raise ConfigError(message.format(name))
