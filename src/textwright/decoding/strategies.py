"""Strategies, and which options each of them uses: one table, which the front door obeys and the documents are made of.

An option that a strategy would ignore is refused, with the strategies that do use it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from textwright.decoding.alternatives import branches
from textwright.decoding.beam import Beam, beam_search
from textwright.decoding.contrastive import Contrastive, contrastive_search
from textwright.decoding.engine import Result, collect, generate
from textwright.decoding.processors import ORDER
from textwright.decoding.rows import Event, Request
from textwright.decoding.settings import CUTS, Sampling
from textwright.decoding.speculative import Draft, Drafter, Lookup, speculate
from textwright.errors import ConfigError, nearest
from textwright.models.base import LanguageModel

DRAWING = frozenset(
    {"temperature", "dynamic_temperature", "dynamic_exponent", "xtc_probability", "xtc_threshold"}
    | {"mirostat", "mirostat_target", "mirostat_rate", "seed", *CUTS}
)
STEERING = frozenset(Sampling.model_fields) - DRAWING - {"loop_limit"} | {"order"}
RUNNING = frozenset({"loop_limit", "max_seconds", "top_logprobs"})
BRANCHING = frozenset({"alternatives"})
GUESSING = frozenset({"lookup", "draft", "draft_length"})
SEARCHING = frozenset(Beam.model_fields) | {"seed"}
CONTRASTING = frozenset(Contrastive.model_fields) | {"loop_limit"}
RISKING = frozenset({"samples", "loop_limit"})
SAMPLES = 16  # that minimum Bayes risk chooses among


class Strategy(NamedTuple):
    """What it does, and the options it uses."""

    about: str
    options: frozenset[str]


STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy("the likeliest token, again and again", STEERING | RUNNING | GUESSING | BRANCHING),
    "sample": Strategy("a token drawn from the distribution", STEERING | DRAWING | RUNNING | GUESSING),
    "beam": Strategy("the likeliest texts of a beam search", STEERING | SEARCHING),
    "contrastive": Strategy("likely tokens that do not look like the text so far", STEERING | CONTRASTING),
    "mbr": Strategy("the sample that is most like all the others", STEERING | DRAWING | RISKING),
}
OPTIONS = frozenset().union(*(strategy.options for strategy in STRATEGIES.values()))


@dataclass(frozen=True)
class Decoding:
    """How texts are written: a strategy with what it was told."""

    strategy: str
    sampling: Sampling
    beam: Beam
    contrastive: Contrastive
    samples: int
    alternatives: int
    drafter: Drafter | None
    order: tuple[str, ...]

    def room(self, window: int, prompt: int) -> int:
        """New tokens that a window has room for behind a prompt: the last one is not read again, except by contrastive
        search, which reads what it chooses among."""
        return window - prompt + (self.strategy != "contrastive")


def check_options(strategy: str, asked: Iterable[str], strategies: Collection[str] = tuple(STRATEGIES)) -> None:
    """Raise ConfigError for an unknown strategy, an unknown option, or one that this strategy does not use."""
    if strategy not in strategies:
        raise ConfigError(
            f"unknown strategy {strategy!r}.{nearest(strategy, strategies)} There are: {', '.join(strategies)}"
        )
    for option in asked:
        if option not in OPTIONS:
            raise ConfigError(f"unknown option {option!r}.{nearest(option, sorted(OPTIONS))}")
        if option not in STRATEGIES[strategy].options:
            users = [name for name in strategies if option in STRATEGIES[name].options]
            advice = f"; it belongs to --strategy {' or '.join(users)}" if users else ""
            raise ConfigError(f"strategy {strategy} does not use {option}: leave it out{advice}")


def decoding(
    strategy: str, asked: Mapping[str, Any], preset: Mapping[str, Any], draft: LanguageModel | None = None
) -> Decoding:
    """A strategy with the options it was given (over a preset's, of which it takes those it uses).

    Raises:
        ConfigError: an option that does not exist, does not belong to the strategy, or contradicts another.
    """
    check_options(strategy, asked)
    used = STRATEGIES[strategy].options
    if asked.get("mirostat"):
        preset = {name: value for name, value in preset.items() if name not in CUTS}  # it cuts by itself
    options = {**{name: value for name, value in preset.items() if name in used}, **asked}

    def some(names: Iterable[str]) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    sampling = some(Sampling.model_fields)
    if strategy == "greedy":
        sampling["temperature"] = 0.0
    beam = Beam.parse(some(Beam.model_fields), "beam search")
    if strategy == "beam" and "seed" in asked and not beam.draw:
        raise ConfigError("a beam search draws nothing, so it does not use seed: leave it out, or add draw=true")
    if not isinstance(options.get("max_seconds", 0.0) or 0.0, int | float):
        raise ConfigError(f"expected a number of max_seconds, got {options['max_seconds']!r}")
    samples = options.get("samples", SAMPLES)
    if not isinstance(samples, int) or samples < 2:
        raise ConfigError(f"expected samples of at least 2, got {samples!r}")
    alternatives = options.get("alternatives", 0)
    if not isinstance(alternatives, int) or ("alternatives" in options and alternatives < 2):
        raise ConfigError(f"expected alternatives of at least 2, got {alternatives!r}")
    return Decoding(
        strategy,
        Sampling.parse(sampling, "sampling"),
        beam,
        Contrastive.parse(some(Contrastive.model_fields), "contrastive search"),
        samples,
        alternatives,
        _drafter(options, draft),
        tuple(options.get("order", ORDER)),
    )


def _drafter(options: Mapping[str, Any], draft: LanguageModel | None) -> Drafter | None:
    lookup, length = options.get("lookup", False), options.get("draft_length")
    if draft is not None and lookup:
        raise ConfigError("lookup and draft both guess: leave out one of them")
    if length is not None and draft is None and not lookup:
        raise ConfigError("draft_length does nothing without draft or lookup: set one of them, too")
    if draft is not None:
        return Draft(draft, 4 if length is None else length)
    return Lookup(8 if length is None else length) if lookup else None


def stream(
    model: LanguageModel, requests: Sequence[Request], end: int | None, how: Decoding, banned: Sequence[int], rows: int
) -> Iterator[Event]:
    """The events of a strategy that writes token by token, `rows` texts at a time."""
    if how.strategy == "contrastive":
        for first in range(0, len(requests), rows):
            batch = requests[first : first + rows]
            events = contrastive_search(model, batch, end, how.contrastive, banned=banned, order=how.order)
            yield from (event._replace(request=event.request + first) for event in events)
    elif how.drafter is not None:
        yield from speculate(model, requests, end, how.drafter, banned=banned, order=how.order, max_rows=rows)
    else:
        yield from generate(model, requests, end, banned=banned, order=how.order, max_rows=rows)


def decode(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    how: Decoding,
    *,
    banned: Sequence[int] = (),
    rows: int = 64,
) -> list[list[Result]]:
    """The texts of every request, best first: one, as many as there are beams, or as alternatives were asked for (the
    one that begins with the likeliest token first)."""
    if how.alternatives:
        several = branches(model, requests, end, how.alternatives, banned=banned, order=how.order, rows=rows)
        results = iter(collect(stream(model, [one for some in several for one in some], end, how, banned, rows)))
        return [[next(results) for _ in some] for some in several]
    if how.strategy != "beam":
        return [[result] for result in collect(stream(model, requests, end, how, banned, rows))]
    found: list[list[Result]] = []
    size = max(1, rows // how.beam.beams)
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        found += beam_search(model, batch, end, how.beam, banned=banned, order=how.order)
    return found
