"""What the verbs with a source share: where sources come from, what is told about them, how texts are printed."""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from textwright.pair_model import PairModel, Written

TOLD = 5  # lines to standard error about single sources


@dataclass(frozen=True)
class Printing:
    """How texts are shown."""

    scores: bool = False
    alignments: bool = False
    picture: Path | None = None
    json: bool = False

    @property
    def looks(self) -> bool:
        """Somebody wants to know where the model looked."""
        return self.alignments or self.picture is not None


def read(
    model: PairModel, text: str | None, file: Path | None, *, whole: bool = False, prefix: str | None = None
) -> list[tuple[str, str]]:
    """Sources as (text, where): the argument, the sources of a file, or standard input, its lines or the whole. A file
    is read as the training pairs of the task with this prefix; None: as the first ones."""
    from textwright.errors import ConfigError
    from textwright.text.pairs import read_sources

    if text is not None and file is not None:
        raise ConfigError("give a text or --input, not both")
    if whole and (text is not None or file is not None):
        raise ConfigError("--whole is about standard input: leave it out")
    if whole:
        return [(standard_input().strip(), "standard input")]
    if text is not None:
        return [(text, "the text")]
    if file is None:
        lines = standard_input().removesuffix("\n").split("\n")
        return [(line.rstrip("\r"), f"line {number}") for number, line in enumerate(lines, 1)]
    trained = model.config.pairs[0] if prefix is None else model.alike(prefix)[0]
    bare = trained.model_copy(update={"prefix": ""})  # the model puts it in front
    return [(source.text, source.where) for source in read_sources(str(file), bare)]


def standard_input() -> str:
    """The whole of it.

    Raises:
        DataError: it is in another encoding.
    """
    return heard(sys.stdin.read, "put it into a file, whose encoding is told by its bytes, and give it with --input")


def heard(read: Callable[[], str], instead: str) -> str:
    """What `read` finds on standard input; `instead` is told to somebody whose bytes are of another encoding."""
    from textwright.errors import DataError

    try:
        return read()
    except UnicodeDecodeError:
        raise DataError(f"standard input is not {sys.stdin.encoding}: {instead}") from None


def write(model: PairModel, run: Path, sources: Sequence[tuple[str, str]], printing: Printing, **options: Any) -> None:
    """Write for every source and print; a blank source gets a blank text, so that lines stay beside each other.

    Raises:
        DataError: all sources are blank, or one cannot be read.
    """
    from textwright.cli.watching import Watch
    from textwright.errors import ConfigError, DataError

    if printing.picture is not None and printing.picture.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"--picture {printing.picture}: expected a file that ends with .svg or .png")
    if printing.picture is not None:
        check_folder(printing.picture, "--picture")
    real = [place for place, (text, _) in enumerate(sources) if text.strip()]
    if not real:
        raise DataError(f"{sources[0][1] if sources else 'the input'} is empty: there is nothing to write from")
    check(model, run, [sources[place] for place in real], options.get("draft"))
    if len(real) < len(sources):
        blank = next(where for text, where in sources if not text.strip())
        tell(f"{len(sources) - len(real)} empty source(s) (first: {blank}): nothing is written for them")
    with Watch("writing, sources", len(real)) as watch:
        given = [sources[place][0] for place in real]
        texts = model.write(given, alignments=printing.looks, progress=watch, **options)
    written = dict(zip(real, texts, strict=True))
    if printing.picture is not None:
        draw(printing.picture, {place: group[0] for place, group in written.items()})
    groups = [written.get(place, []) for place in range(len(sources))]
    lines = records(sources, groups) if printing.json else plain(groups, printing)
    for line in lines:
        typer.echo(line)


def check_folder(file: Path, option: str) -> None:
    """Raise ConfigError where a file that is written at the end could not be."""
    from textwright.errors import ConfigError

    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise ConfigError(f"{option} {file} is a folder: name a file in it")


def records(sources: Sequence[tuple[str, str]], groups: Sequence[list[Written]]) -> Iterator[str]:
    """One JSON object a source."""
    for (source, _), group in zip(sources, groups, strict=True):
        outputs = [
            {
                "text": text.text,
                "score": text.score,
                "logprob": text.logprob,
                "tokens": list(text.tokens),
                "finish_reason": text.finish_reason,
                **({} if text.seed is None else {"seed": text.seed}),
                **({} if text.alignment is None else {"alignment": text.alignment._asdict()}),
            }
            for text in group
        ]
        yield jsons.dumps({"source": source, "outputs": outputs}, ensure_ascii=False)


def plain(groups: Sequence[list[Written]], printing: Printing) -> Iterator[str]:
    """One line a text, fields separated by tabs: the text, its score, and pairs of tokens (Pharaoh format)."""
    lines = max(map(len, groups), default=0)
    for group in groups:
        for text in group:
            fields = [text.text.replace("\n", " ").replace("\t", " ")]
            fields += [f"{text.score:.4f}"] if printing.scores else []
            if printing.alignments:
                rows = [row[: text.alignment.own] for row in text.alignment.weights] if text.alignment else []
                best = [max(range(len(row)), key=row.__getitem__) for row in rows]
                fields.append(" ".join(f"{source}-{target}" for target, source in enumerate(best)))
            yield "\t".join(fields)
        yield from [""] * (lines - len(group))


def check(model: PairModel, run: Path, sources: Sequence[tuple[str, str]], draft: PairModel | None = None) -> None:
    """Raise for sources that cannot be read, before anything is written; tell what looks wrong.

    Raises:
        DataError: one is longer than the model reads; it says where.
    """
    from textwright.errors import DataError
    from textwright.run import PairRun
    from textwright.text.sides import LOOK, looks_like_target, never_read, read_characters

    strange, begun = [], isinstance(model.config, PairRun) and model.config.base is None
    read = read_characters(run / "data") if begun else frozenset()  # what a base has read is not known
    for text, where in sources:
        try:
            model.fits(where, text, draft)
        except DataError as error:
            raise DataError(f"{error}. Nothing was written") from None
        unseen = model.source_tokenizer.unseen(text) or never_read(text, read)
        if unseen:
            all_of_it = not set("".join(text.split())) - set("".join(unseen))
            strange.append(
                f"{where}: {'nothing but' if all_of_it else 'has'} characters or words never seen in training: "
                f"{', '.join(map(repr, unseen[:5]))}"
            )
    for line in strange[:TOLD]:
        tell(line)
    if len(strange) > TOLD:
        tell(f"… and {len(strange) - TOLD} more such sources")
    if len(model.prefixes) == 1 and looks_like_target(run / "data", [text for text, _ in sources[:LOOK]]):
        tell("these sources look like what this model writes, not like what it reads: are the sides mixed up?")


def draw(path: Path, texts: Mapping[int, Written]) -> None:
    """Heat maps of where the model looked, as .svg or .png; of several texts, files with the numbers of their sources,
    counted from 1. The places in `texts` count from 0."""
    from textwright.reporting import save_alignment

    drawn = {place: text.alignment for place, text in texts.items() if text.alignment is not None}
    for place, seen in drawn.items():
        file = path if len(drawn) == 1 else path.with_name(f"{path.stem}-{place + 1}{path.suffix}")
        save_alignment(file, seen.weights, seen.target, seen.source)


def tell(text: str) -> None:
    """One line to standard error."""
    typer.echo(f"textwright: {text}", err=True)
