"""Numbers about a model with a source: scores with signatures and intervals, and two models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textwright.errors import ConfigError, DataError
from textwright.evaluating.baselines import copied, leading, nearest
from textwright.evaluating.bootstrap import Comparison, interval, paired_bootstrap
from textwright.evaluating.languages import guess_language
from textwright.evaluating.resampling import FEWEST, Interval
from textwright.evaluating.scores import Metric, Score
from textwright.evaluating.tasks import judge, judges, references_of
from textwright.pair_model import PairModel
from textwright.progress import Told, untold
from textwright.reporting import Table, table
from textwright.text.pairs import Pair, unframed
from textwright.text.sides import texts_of


@dataclass(frozen=True)
class PairScores:
    """What was written for every pair, and how good it is; intervals of 95 % where the metric has one."""

    texts: list[str]
    scores: list[Score]
    intervals: list[Interval | None]
    search: str

    def table(self) -> Table:
        """A row for each metric."""
        rows = [
            (
                score.name,
                round(score.value, 2),
                "" if one is None else f"{one.low:.2f} to {one.high:.2f}",
                score.signature,
            )
            for score, one in zip(self.scores, self.intervals, strict=True)
        ]
        return table(
            ["metric", "score", "95 % interval", f"computed as ({len(self.texts):,} pairs, {self.search})"], rows
        )

    def dump(self) -> dict[str, Any]:
        """Plain data."""
        scores = [
            {**score.dump(), "interval": None if one is None else [one.low, one.high]}
            for score, one in zip(self.scores, self.intervals, strict=True)
        ]
        return {"pairs": len(self.texts), "search": self.search, "scores": scores}


def evaluate_pairs(
    model: PairModel,
    pairs: Sequence[Pair],
    *,
    beams: int | None = None,
    length_penalty: float | None = None,
    language: str | None = None,
    lowercase: bool | None = None,
    progress: Told = untold,
) -> PairScores:
    """Write for every pair's source (as it was read, with its prefix) and score the texts against its targets.

    Args:
        progress: is told how many more sources are done.

    Raises:
        DataError, ConfigError: as `PairModel.write` and the metrics.
    """
    metrics = _judges(model, pairs, language, lowercase)
    beams = model.generation.beams if beams is None else beams
    penalty = model.generation.length_penalty if length_penalty is None else length_penalty
    ranked: dict[str, float] = {} if length_penalty is None else {"length_penalty": length_penalty}
    texts, references = _texts(model, pairs, beams=beams, progress=progress, **ranked), references_of(pairs)
    scores = judge(metrics, texts, references)
    intervals = [
        interval(metric, texts, references) if isinstance(metric, Metric) and len(pairs) >= FEWEST else None
        for metric in metrics
    ]
    search = "greedy" if beams == 1 and not ranked else f"beam {beams}, length penalty {penalty:g}"
    votes = f", {1 + len(model.voters)} models vote" if model.voters else ""
    return PairScores(texts, scores, intervals, search + votes)


def compare_pairs(
    first: PairModel,
    second: PairModel,
    pairs: Sequence[Pair],
    *,
    beams: int | None = None,
    length_penalty: float | None = None,
    language: str | None = None,
    lowercase: bool | None = None,
    progress: Told = untold,
) -> list[Comparison]:
    """Both models on the same pairs, one comparison for each metric with references.

    Args:
        beams, length_penalty: how both search; None: each as its own presets say.
        language, lowercase: how both are judged; None: as both runs say.
        progress: is told how many more sources are done, by one model and then the other.

    Raises:
        ConfigError: the models were trained for different tasks, or are judged in different ways and nothing is said.
        DataError: too few pairs, or a source that one of the models does not read.
    """
    if first.config.task != second.config.task:
        raise ConfigError(f"one run was trained to {first.config.task}, the other to {second.config.task}")
    prefixes = [{source.prefix for source in model.config.pairs} for model in (first, second)]
    if prefixes[0] != prefixes[1]:
        raise ConfigError(f"the runs put different words in front of a source: {prefixes[0]} and {prefixes[1]}")
    languages = {config.language for config in (first.config, second.config)} - {None}
    if language is None and len(languages) > 1:
        told = " and ".join(sorted(filter(None, languages)))
        raise ConfigError(f"the runs give different languages of their targets, {told}: say --language")
    if lowercase is None and first.config.lowercase != second.config.lowercase:
        raise ConfigError("one of the runs is judged without case, the other with it: say --lowercase or --case")
    if len(pairs) < FEWEST:
        raise DataError(
            f"expected at least {FEWEST} pairs to compare, got {len(pairs)}: fewer cannot tell chance apart"
        )
    for name, model in (("the first run", first), ("the second run", second)):
        bare = model.bare()
        for pair in pairs:
            try:
                bare.fits(pair.where, pair.source)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
    asked = {"beams": beams, "length_penalty": length_penalty}
    search = {name: value for name, value in asked.items() if value is not None}
    texts = [_texts(model, pairs, progress=progress, **search) for model in (first, second)]
    references = references_of(pairs)
    metrics = _judges(first, pairs, language or next(iter(languages), None), lowercase)
    return [paired_bootstrap(one, references, texts[0], texts[1]) for one in metrics if isinstance(one, Metric)]


def baseline_scores(
    model: PairModel,
    run: Path,
    pairs: Sequence[Pair],
    *,
    language: str | None = None,
    lowercase: bool | None = None,
    progress: Told = untold,
) -> dict[str, list[Score]]:
    """What copying, the first sentence and the nearest training source score on the pairs, by name.

    Args:
        progress: is told how many more sources have got their nearest one.
    """
    metrics = _judges(model, pairs, language, lowercase)
    framed = [pair.source for pair in pairs]
    sources = [unframed(source, model.prefixes) for source in framed]
    known, targets = (texts_of(run / "data", side) for side in ("source", "target"))
    texts = {
        "copying the source": copied(sources),
        "its first sentence": leading(sources),
        "nearest neighbour": nearest(known, targets, framed, progress),
    }
    return {name: judge(metrics, written, references_of(pairs)) for name, written in texts.items()}


def comparison_table(found: Sequence[Comparison], first: str, second: str) -> Table:
    """A row for each metric."""
    rows = [
        (
            one.first.name,
            round(one.first.value, 2),
            round(one.second.value, 2),
            f"{one.difference:+.2f} ({one.difference_interval.low:+.2f} to {one.difference_interval.high:+.2f})",
            round(one.p, 4),
            one.first.signature,
        )
        for one in found
    ]
    return table(["metric", first, second, "difference (95 %)", "p", "computed as"], rows)


def _texts(model: PairModel, pairs: Sequence[Pair], **how: Any) -> list[str]:
    return [group[0].text for group in model.bare().write([pair.source for pair in pairs], **how)]


def _judges(model: PairModel, pairs: Sequence[Pair], language: str | None, lowercase: bool | None) -> list[Any]:
    config = model.config
    told = language or config.language or guess_language(pair.target for pair in pairs[:500])
    return judges(config.task, told, lowercase=config.lowercase if lowercase is None else lowercase)
