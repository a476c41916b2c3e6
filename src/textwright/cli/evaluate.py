"""`textwright evaluate`: perplexities of a run on a text, how its texts degenerate, or the metrics of its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textwright.cli import ways
from textwright.cli.pair_files import MeasuredPairs

if TYPE_CHECKING:
    from textwright.evaluating.scores import Score
    from textwright.pair_model import PairModel
    from textwright.text.pairs import Pair
    from textwright.writer import TextModel


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` wrote.")],
    data: Annotated[
        str | None, typer.Option(help="A text, or a table of pairs; by default the run's own test data.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="Column of a table that holds the text.")] = None,
    pairs: MeasuredPairs = None,
    fields: Annotated[tuple[str, str] | None, typer.Option(help="Columns of a table of pairs or answers.")] = None,
    prefix: ways.Prefix = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="--data holds examples or conversations: measure the answers in it alone.")
    ] = False,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens a window moves by; by default half of it.")] = None,
    cache: Annotated[
        int | None,
        typer.Option(min=1, help="Words of a continuous cache, for recurrent runs; tuned on the validation text."),
    ] = None,
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Learn on from the text, for recurrent runs; tuned on the validation text."),
    ] = False,
    beams: ways.SearchBeams = None,
    length_penalty: ways.SearchPenalty = None,
    language: ways.Language = None,
    lowercase: ways.Lowercase = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Write the texts into this file, a line for each source that is judged.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Score what needs no model, too: copying, first sentence, neighbour.")
    ] = False,
    degeneration: Annotated[
        bool, typer.Option("--degeneration", help="How much its texts repeat themselves and the training text.")
    ] = False,
    with_: ways.With = None,
    fuse: ways.Fuse = None,
    quantize: ways.Quantize = None,
    seed: Annotated[int | None, typer.Option(help="Of the texts that --degeneration draws (0).")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Measure a run: perplexities in float32 and constant memory, or scores with their signatures and intervals."""
    from textwright.errors import ConfigError
    from textwright.opening import load_pairs
    from textwright.writer import TextModel

    if seed is not None and not degeneration:
        raise ConfigError("--seed draws the texts of --degeneration, and nothing else is drawn: leave it out")
    if dynamic and quantize is not None:
        raise ConfigError("--dynamic changes the weights, and packed weights stay as they are: leave out --quantize")
    model = ways.opened(run, quantize)
    if isinstance(model, TextModel):
        options: dict[str, Any] = {
            "--pairs": pairs,
            "--fields": None if answers else fields,
            "--prefix": prefix,
            "--beams": beams,
            "--length-penalty": length_penalty,
        }
        options |= {"--language": language, "--lowercase/--case": lowercase, "--outputs": outputs}
        options |= {"--baselines": baselines or None, "--with": with_, "--fuse": fuse}
        if given := [name for name, value in options.items() if value is not None]:
            raise ConfigError(f"{run} goes on writing a text: {given[0]} is for runs with a source")
        texts = {"--data": data, "--field": field, "--stride": stride, "--cache": cache, "--dynamic": dynamic or None}
        own = model.config.task == "write" and model.config.examples is not None
        if answers or (own and not degeneration and not any(texts.values())):
            if degeneration or cache is not None or dynamic or stride is not None or field is not None:
                raise ConfigError("--answers measures examples as they are: leave out the options for texts")
            _answers(model, run, data, fields, json)
        elif degeneration:
            _degeneration(model, run, texts, seed or 0, json)
        else:
            _text(model, run, data, field, stride, cache, dynamic, json)
        return
    if answers:
        raise ConfigError(f"{run} was trained to {model.config.task}: --answers is for runs that go on writing a text")
    if degeneration:
        raise ConfigError(
            f"{run} was trained to {model.config.task}: --degeneration is for runs that go on writing a text"
        )
    texts = {"--field": field, "--stride": stride, "--cache": cache, "--dynamic": dynamic or None}
    if given := [name for name, value in texts.items() if value is not None]:
        raise ConfigError(f"{given[0]} is for runs on a text: leave it out")
    model = ways.voting(model, load_pairs, with_, fuse)
    if (language is not None or lowercase is not None) and model.config.task != "translate":
        raise ConfigError(f"{run} was trained to {model.config.task}: --language and --lowercase are for translations")
    if outputs is not None:
        from textwright.cli.sources import check_folder

        check_folder(outputs, "--outputs")
    chosen = read_test(model, run, data, pairs, fields, prefix)
    _pairs(model, run, chosen, (beams, length_penalty), (language, lowercase), outputs, baselines, json)


def _text(
    model: TextModel,
    run: Path,
    data: str | None,
    field: str | None,
    stride: int | None,
    cache: int | None,
    dynamic: bool,
    json: bool,
) -> None:
    from textwright.cli.watching import Watch
    from textwright.errors import ConfigError
    from textwright.evaluating.cache import choose_cache
    from textwright.evaluating.dynamic import TRIAL, TRIALS, choose_dynamic
    from textwright.report import panel_table
    from textwright.run import ImportedRun
    from textwright.text.corpus import open_prepared
    from textwright.text.sources import SourceConfig, alike

    if stride is not None and model.model.window is None:
        raise ConfigError("a recurrent model carries its state and has no window: leave out --stride")
    if cache is not None and dynamic:
        raise ConfigError("--cache and --dynamic measure in two ways: give one of them")
    if field is not None and data is None:
        raise ConfigError("--field names a column of a table: give it with --data")
    network, first, folder = model.model, model.generation.first, run / "data"
    imported = isinstance(model.config, ImportedRun)
    if imported and (data is None or cache is not None or dynamic):
        raise ConfigError(f"{run} was imported and has no texts of its own: textwright evaluate {run} --data FILE")
    how: dict[str, Any] = {"stride": stride}
    if cache is not None:
        valid = open_prepared(folder).valid
        with Watch("choosing θ and λ, validation tokens", valid.facts.tokens) as watch:
            how["cache"] = choose_cache(network, valid, first, cache, watch)
    if dynamic:
        valid = open_prepared(folder).valid
        with Watch("choosing η and λ, validation tokens", TRIALS * min(TRIAL, valid.facts.tokens)) as watch:
            how["dynamic"] = choose_dynamic(network, valid, first, watch)
    if data is not None:
        trained = SourceConfig(path=data) if isinstance(model.config, ImportedRun) else model.config.source
        with Watch("measuring, tokens") as watch:
            name, result = data, model.evaluate(alike(data, trained, field), progress=watch, **how)
    else:
        prepared = open_prepared(folder)
        name, corpus = ("test", prepared.test) if prepared.test.facts.tokens else ("validation", prepared.valid)
        with Watch("measuring, tokens", corpus.facts.tokens) as watch:
            result = model.measure(corpus, progress=watch, **how)
    if json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        typer.echo(panel_table({name: result}).text())


def _answers(model: TextModel, run: Path, data: str | None, fields: tuple[str, str] | None, json: bool) -> None:
    import json as jsons

    from textwright.cli.sources import tell
    from textwright.cli.watching import Watch
    from textwright.errors import ConfigError
    from textwright.example_job import answer_table, measure_answers

    if data is None and (fields is not None or model.config.task == "imported" or model.config.examples is None):
        raise ConfigError(f"{run} has no examples of its own: textwright evaluate {run} --answers --data FILE")
    with Watch("measuring, tokens of answers") as watch:
        name, found, left_out = measure_answers(model, run, data, fields, watch)
    if left_out:
        tell(left_out)
    if json:
        typer.echo(jsons.dumps({"data": name, "loss": found[0], "tokens": found[1]}))
    else:
        typer.echo(answer_table({name: found}).text())


def _degeneration(model: TextModel, run: Path, useless: Mapping[str, Any], seed: int, json: bool) -> None:
    import json as jsons

    from textwright.cli.watching import Watch
    from textwright.degeneration_report import LENGTH, TEXTS, degeneration_report
    from textwright.errors import ConfigError

    if given := [name for name, value in useless.items() if value is not None]:
        raise ConfigError(f"--degeneration measures texts that the run writes itself: leave out {given[0]}")
    with Watch("writing, tokens") as watch:
        report = degeneration_report(model, run, n=TEXTS, length=LENGTH, seed=seed, progress=watch)
    if json:
        typer.echo(jsons.dumps(report.dump(), ensure_ascii=False, indent=2))
        return
    typer.echo(report.table().text())
    for line in [*report.notes, *report.advice]:
        typer.echo(line)


def read_test(
    model: PairModel,
    run: Path,
    data: str | None,
    pairs: tuple[str, str] | None,
    fields: tuple[str, str] | None,
    prefix: str | None = None,
) -> list[Pair]:
    """The pairs to measure on: files, a table, or what the run was tested on.

    Raises:
        ConfigError: options that exclude each other, or several tasks and none named.
        DataError: a file cannot be read, or a source of it is longer than the model reads.
    """
    from textwright.cli.sources import check, tell
    from textwright.errors import ConfigError
    from textwright.run import ImportedPairs
    from textwright.text.bitext import raw_pairs
    from textwright.text.pair_source import files_of, told_kind
    from textwright.text.pairs import PairSource, read_pairs

    if data is not None and pairs is not None:
        raise ConfigError("give --data or --pairs, not both")
    if fields is not None and data is None:
        raise ConfigError("--fields names the columns of a table: give it with --data")
    if prefix is not None and data is None and pairs is None:
        raise ConfigError("--prefix says what --data or --pairs are for: give it with one of them")
    if data is None and pairs is None and isinstance(model.config, ImportedPairs):
        raise ConfigError(
            f"{run} was imported and has no pairs of its own: give --pairs SOURCES TARGETS, or --data FILE"
        )
    if data is None and pairs is None:
        held = raw_pairs(run / "data" / "test")
        if not held:
            tell("the run has no test pairs: these are its validation pairs, which chose the weights that are kept")
        return _items(model, held or raw_pairs(run / "data" / "valid"))
    if pairs is not None:
        asked: dict[str, Any] = {"path": pairs[0], "target": pairs[1]}
    else:
        assert data is not None
        asked = {"path": data, "fields": fields}
        if fields is None:  # what was said of the training pairs holds
            trained = model.alike(model.task_prefix(prefix))[0]
            told = told_kind(files_of(data)[0], None)
            untold = told == "lines" and trained.kind != "lines"  # the file's name does not say what is in it
            asked |= {"kind": trained.kind if untold else "auto", "fields": trained.fields, "turns": trained.turns}
    source = PairSource.parse({name: value for name, value in asked.items() if value is not None}, "--pairs")
    found = list(read_pairs(source.model_copy(update={"prefix": model.task_prefix(prefix)})))
    real = [pair for pair in found if pair.source.strip() and pair.target.strip()]
    if len(real) < len(found):
        first = next(pair.where for pair in found if not (pair.source.strip() and pair.target.strip()))
        tell(f"left out {len(found) - len(real)} of {len(found)} pairs that are empty on a side (first: {first})")
    own = model.prefixes[0] if len(model.prefixes) == 1 else ""  # a single one is put in front of every source anyway
    check(model, run, [(pair.source.removeprefix(own), pair.where) for pair in real])
    return _items(model, real)


def _items(model: PairModel, pairs: list[Pair]) -> list[Pair]:
    """What is judged one by one; it is told where that is not every pair."""
    from textwright.cli.sources import tell
    from textwright.evaluating.tasks import items

    judged = items(model.config.task, pairs)
    if len(judged) < len(pairs):
        tell(f"{len(pairs):,} pairs of {len(judged):,} different sources: each is judged once, any target is right")
    return judged


def _pairs(
    model: PairModel,
    run: Path,
    pairs: list[Pair],
    search: tuple[int | None, float | None],
    compared: tuple[str | None, bool | None],
    outputs: Path | None,
    baselines: bool,
    json: bool,
) -> None:
    import json as jsons

    from textwright.cli.watching import Watch
    from textwright.pair_scores import baseline_scores, evaluate_pairs

    told: dict[str, Any] = {"language": compared[0], "lowercase": compared[1]}
    simple: dict[str, list[Score]] = {}
    if baselines:
        with Watch("looking for the nearest, sources", len(pairs)) as watch:
            simple = baseline_scores(model, run, pairs, progress=watch, **told)
    with Watch("writing, sources", len(pairs)) as watch:
        result = evaluate_pairs(model, pairs, beams=search[0], length_penalty=search[1], progress=watch, **told)
    if outputs is not None:
        outputs.write_text("".join(text.replace("\n", " ") + "\n" for text in result.texts), encoding="utf-8")
    if json:
        plain = {name: [score.dump() for score in scores] for name, scores in simple.items()}
        typer.echo(
            jsons.dumps({**result.dump(), **({"baselines": plain} if plain else {})}, ensure_ascii=False, indent=2)
        )
        return
    typer.echo(result.table().text())
    for name, scores in simple.items():
        typer.echo(f"{name}: {', '.join(f'{score.name} {score.value:.2f}' for score in scores)}")
