"""Continuous batching: requests join and leave a running batch between steps.

One loop for independent rows. It knows `begin`, `forward`, `select` and `concat` and no model family; `generate` is an
engine to which everything is admitted, a server one that never empties. A request's text does not depend on what else
is in the batch, up to the rounding of matrix products of different sizes.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.decoding.processors import ORDER, active, check_order
from textwright.decoding.rows import Event, Processor, Request, Rows, begin_rows
from textwright.decoding.rules import Rules
from textwright.decoding.sampling import choose_token
from textwright.decoding.truncation import next_surprise
from textwright.errors import ConfigError, TextwrightError
from textwright.models.base import LanguageModel, Source
from textwright.models.damage import damaged
from textwright.models.state import State

ROOM = 64  # tokens by which the texts of a batch grow
UNIT = 64  # the longest unit whose repetition is noticed
AT_ONCE = 4096  # tokens of prompts that are read together
LEAST = 16  # tokens that a loop has at least
BROKEN = "the model gave a logit that is not a finite number"


@dataclass(frozen=True)
class Running(State):
    """Everything that moves together when texts join, leave or change places."""

    rows: Rows
    memory: State
    logits: Tensor  # (rows, vocab) float32, of the token to be chosen next


class Engine:
    """A batch of texts being written by one model.

    Args:
        model: any model of the contract, in evaluation mode.
        end: id of the token that ends a text; None: texts end by length or stop string alone.
        banned: ids that are never written.
        order: steps of `processors.ORDER` in the order they are applied in.

    Raises:
        ConfigError: an unknown step, or one that stands twice.
    """

    def __init__(
        self, model: LanguageModel, end: int | None, banned: Sequence[int] = (), order: Sequence[str] = ORDER
    ) -> None:
        check_order(order)
        self.model = model
        self.end = end
        self.banned = banned
        self.order = order
        self.rules = Rules(model.head.out_features, model.device)
        self._admitted = 0
        self._running: Running | None = None
        self._processors: list[Processor] = []
        self._tops: dict[int, int] = {}  # how many likeliest tokens requests want to see
        self._deadlines: dict[int, float] = {}

    def __len__(self) -> int:
        """Number of texts being written."""
        return 0 if self._running is None else len(self._running.logits)

    @torch.no_grad()
    def admit(self, requests: Sequence[Request]) -> list[int]:
        """Read the prompts of new requests in one batch and give the requests their numbers.

        A prompt longer than the model's window is read from its last `window` tokens; where there is a source, prompt
        and text must fit it. Equal prompts are read once.

        Raises:
            ConfigError: a text with a source does not fit the model's window, or a request asks for what cannot be.
        """
        check_requests(self.model, requests, self.order)
        fixed = requests if not self.model.slides else [one for one in requests if one.source is not None]
        check_window(self.model, fixed, "guidance" if not self.model.slides else "a model with a source")
        numbers = list(range(self._admitted, self._admitted + len(requests)))
        self._admitted += len(requests)
        self._tops |= {n: r.top_logprobs for n, r in zip(numbers, requests, strict=True) if r.top_logprobs}
        begun = time.monotonic()
        limits = zip(numbers, requests, strict=True)
        self._deadlines |= {n: begun + r.max_seconds for n, r in limits if r.max_seconds is not None}
        keys = [(request.prompt, request.source) for request in requests]
        unique = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        seen = [prompt[-(self.model.window or len(prompt)) :] for prompt, _ in unique]
        logits, memory = read(self.model, seen, [source for _, source in unique])
        share = torch.tensor([unique[key] for key in keys], device=self.model.device)
        held = torch.tensor([len(prompt) for prompt in seen], device=self.model.device)[share]
        rows = replace(self.rules.place(begin_rows(requests, numbers[0], self.model.device), requests), held=held)
        new = Running(rows, memory.select(share), logits[share])
        self._settle(new if self._running is None else self._running.concat(new))
        return numbers

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Choose one token for every text, retire the finished ones, and feed the rest to the model."""
        if self._running is None:
            return []
        tokens, logprobs = choose_token(self._running.logits, self._running.rows, self._processors)
        if bool(logprobs.isnan().any()):  # as they are if any logit is not a number
            raise damage(self.model, *text_of(self._running.rows, int(logprobs.isnan().nonzero()[0])))
        rows = write(self._running.rows, tokens, logprobs, self.rules)
        reasons = self._late(rows, finished(rows, tokens, self.end, self.rules))
        tops = self._likeliest(self._running)
        self._running = replace(self._running, rows=rows)
        self._keep([reason is None for reason in reasons])
        if self._running is not None:
            self._running = self._advance(self._running)
        columns = (rows.request.tolist(), tokens.tolist(), logprobs.tolist(), reasons, tops)
        return [Event(*values) for values in zip(*columns, strict=True)]

    def retire(self, requests: Sequence[int]) -> None:
        """Drop requests before they are finished, for instance because their reader has left."""
        if self._running is not None:
            self._keep([number not in requests for number in self._running.rows.request.tolist()])

    def _late(self, rows: Rows, reasons: list[str | None]) -> list[str | None]:
        """The reasons, "time" where a request has had its time."""
        if not self._deadlines:
            return reasons
        now = time.monotonic()
        late = [self._deadlines.get(number, math.inf) <= now for number in rows.request.tolist()]
        return [reason or ("time" if over else None) for reason, over in zip(reasons, late, strict=True)]

    def _likeliest(self, running: Running) -> list[tuple[tuple[int, float], ...]]:
        """For each row the tokens its request wants to see, from the model's own distribution."""
        wanted = [self._tops.get(number, 0) for number in running.rows.request.tolist()] if self._tops else []
        if not any(wanted):
            return [()] * len(running.logits)
        best = running.logits.log_softmax(-1).topk(max(wanted), -1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), wanted, strict=True)
        return [tuple(zip(ids[:count], values[:count], strict=True)) for ids, values, count in pairs]

    def _keep(self, kept: list[bool]) -> None:
        if not any(kept):
            self._running = None
        elif self._running is not None and not all(kept):
            self._settle(self._running.select(torch.tensor(kept, device=self.model.device).nonzero().squeeze(1)))

    def _settle(self, running: Running) -> None:
        self._running = running
        self._processors = active(running.rows, self.rules, self.end, self.banned, self.order)

    def _advance(self, running: Running) -> Running:
        running, slid = self._slide(running)
        rows = running.rows
        newest = rows.tokens.gather(1, rows.lengths[:, None] - 1)
        output = self.model(newest, None if slid is None else (~slid).long(), running.memory)
        logits = output.logits[:, 0].float()
        if slid is None:
            return Running(replace(rows, held=rows.held + 1), output.after, logits)
        logits = torch.where(slid[:, None], running.logits, logits)
        return Running(replace(rows, held=rows.held + (~slid).long()), output.after, logits)

    def _slide(self, running: Running) -> tuple[Running, Tensor | None]:
        """Where a row has filled the window, read the last half of its text again into a fresh state.

        Returns:
            the batch, and (rows,) bool, True for rows that were read to their newest token by this; None: no row was.
        """
        window, rows = self.model.window, running.rows
        if window is None or int(rows.held.max()) < window:
            return running, None
        full = rows.held >= window
        stay, move = (~full).nonzero().squeeze(1), full.nonzero().squeeze(1)
        kept = max(window // 2, 1)
        ends = rows.lengths[move].tolist()
        texts = [rows.tokens[row, end - kept : end].tolist() for row, end in zip(move.tolist(), ends, strict=True)]
        logits, memory = read(self.model, texts, [None] * len(texts))
        moved = Running(replace(rows.select(move), held=torch.full_like(move, kept)), memory, logits)
        places = torch.cat([stay, move]).argsort()  # rows keep their order
        return running.select(stay).concat(moved).select(places), full


@torch.no_grad()
def read(
    model: LanguageModel, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int] | None]
) -> tuple[Tensor, State]:
    """Prefill: logits (prompts, vocab) float32 after each prompt, and the state that holds them.

    Raises:
        ValueError: some have a source and some have none, or the model does not read one.
    """
    tokens, lengths = padded(prompts, model.device)
    given = [source for source in sources if source is not None]
    if given and len(given) < len(sources):
        raise ValueError("either every request has a source or none has")
    source = Source(*padded(given, model.device)) if given else None
    logits, state = feed(model, tokens, lengths, model.begin(len(prompts), source, capacity=tokens.shape[1]))
    if not _finite(logits):
        raise damage(model, tokens, source)
    return logits, state


def feed(model: LanguageModel, tokens: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
    """Read tokens (rows, time), of which the first `lengths` are real, so many at once that memory stays bounded.

    Returns:
        logits (rows, vocab) float32 after the last real token of each row, and the state after it.
    """
    size = max(1, AT_ONCE // max(len(tokens), 1))
    logits: Tensor | None = None
    for start in range(0, max(tokens.shape[1], 1), size):
        part = tokens[:, start : start + size]
        count = (lengths - start).clamp(min=0, max=part.shape[1])
        output = model(part, count, state, last_only=True)
        state, fresh = output.after, output.logits[:, 0].float()
        logits = fresh if logits is None else torch.where((count > 0)[:, None], fresh, logits)
    assert logits is not None
    return logits, state


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, time), zeros on the right, and lengths (rows,)."""
    tokens = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], batch_first=True).to(device)
    return tokens, torch.tensor([len(text) for text in texts], device=device)


def check_window(model: LanguageModel, requests: Sequence[Request], who: str, *, last: int = 1) -> None:
    """Raise ConfigError for texts that would have to slide out of the window where that cannot be.

    Args:
        last: tokens at the end of a text that the model does not read.
    """
    for request in requests:
        fits = None if model.window is None else max(model.window - len(request.prompt) + last, 0)
        if fits is not None and request.max_new_tokens > fits:
            raise ConfigError(
                f"{who} cannot go past the window of {model.window} tokens: the prompt has {len(request.prompt)}, so "
                f"ask for at most {fits} new tokens (--max-new-tokens)"
            )


def check_requests(model: LanguageModel, requests: Sequence[Request], order: Sequence[str]) -> None:
    """Raise ConfigError for settings that this model or this order cannot serve."""
    vocab = model.head.out_features
    for sampling in {request.sampling for request in requests}:
        check_order(order, sampling.asked())
        if sampling.top_k > vocab:
            raise ConfigError(
                f"top_k {sampling.top_k} is more than the {vocab} tokens there are: lower it, or leave it out"
            )
    for request in requests:
        if request.sampling.no_repeat_source_ngram and request.source is None:
            raise ConfigError("no_repeat_source_ngram needs a model that reads a source: leave it out")
        ends = {"stop": request.stop, "loop_limit": request.sampling.loop_limit, "max_seconds": request.max_seconds}
        if request.constraint is not None and (early := [name for name, asked in ends.items() if asked]):
            raise ConfigError(
                f"{', '.join(early)} would end a text before it is what was asked for: leave it out, or the constraint"
            )
        least = 0 if request.constraint is None else request.constraint.least
        if least > request.max_new_tokens:
            raise ConfigError(
                f"the shortest text that was asked for has {least} tokens, {request.max_new_tokens} are allowed: "
                f"--max-new-tokens {least + 1} or more"
            )
        if request.top_logprobs > vocab:
            raise ConfigError(f"top_logprobs {request.top_logprobs} is more than the {vocab} tokens there are")


def refuse(requests: Sequence[Request], who: str, options: Sequence[str]) -> None:
    """Raise ConfigError for options of a request or of its sampling that this way of writing would ignore."""
    for request in requests:
        asked = request.sampling.asked() | {"top_logprobs": request.top_logprobs, "max_seconds": request.max_seconds}
        useless = [name for name in options if asked.get(name)]
        if useless:
            raise ConfigError(f"{who} does not use {', '.join(useless)}: leave it out, or sample")


def write(rows: Rows, tokens: Tensor, logprobs: Tensor, rules: Rules) -> Rows:
    """Append one token (R,) with its log-probability to every row."""
    texts = rows.tokens if int(rows.lengths.max()) < rows.tokens.shape[1] else F.pad(rows.tokens, (0, ROOM))
    return replace(
        rules.move(rows, tokens),
        tokens=texts.scatter(1, rows.lengths[:, None], tokens[:, None]),
        lengths=rows.lengths + 1,
        score=rows.score + logprobs,
        surprise=next_surprise(rows, logprobs) if rules.surprises else rows.surprise,
    )


def finished(rows: Rows, tokens: Tensor, end: int | None, rules: Rules) -> list[str | None]:
    """Why each row ends after the token it was just given, or None."""
    reasons = torch.zeros_like(tokens)
    if rules.loops:
        reasons[looping(rows)] = 4
    reasons[rows.written >= rows.limits[:, 1]] = 3
    if len(rules.stops):
        reasons[rules.stops.accepted(rows.automaton)] = 2
    if end is not None:
        reasons[tokens == end] = 1
    return [(None, "end", "stop", "length", "loop")[reason] for reason in reasons.tolist()]


def looping(rows: Rows) -> Tensor:
    """(R,) bool: what was written ends in so many repetitions of one unit as `loop_limit` says.

    A unit has up to `UNIT` tokens, and the repetitions have at least `LEAST` together: "no, no, no" is no loop.
    """
    limit = rows.setting("loop_limit").squeeze(1).long()
    result = torch.zeros_like(limit, dtype=torch.bool)
    if not bool((limit > 0).any()):
        return result
    span = int(limit.max()) * UNIT
    at = rows.lengths[:, None] - 1 - torch.arange(min(span + UNIT, rows.tokens.shape[1]), device=limit.device)
    tail = torch.where(at >= rows.prompts[:, None], rows.tokens.gather(1, at.clamp(min=0)), -1)  # newest first
    for unit in range(1, min(UNIT, tail.shape[1] - 1) + 1):
        same = (tail[:, :-unit] == tail[:, unit:]) & (tail[:, unit:] >= 0)
        run = same.long().cumprod(1).sum(1) + unit  # tokens that one unit repeats over
        result |= (limit > 0) & (run >= limit * unit) & (run >= LEAST)
    return result


def checked(logits: Tensor) -> Tensor:
    """The logits, if they are finite."""
    if not _finite(logits):
        raise TextwrightError(f"{BROKEN}; `textwright selftest RUN` names the layer")
    return logits


def damage(model: LanguageModel, tokens: Tensor, source: Source | None) -> TextwrightError:
    """The error for logits that are not finite, the layer named."""
    return TextwrightError(f"{BROKEN}: {damaged(model, tokens, source)}")


def text_of(rows: Rows, row: int) -> tuple[Tensor, Source | None]:
    """The tokens (1, time) that the model has read of one row, and its source."""
    end, source = int(rows.lengths[row]), rows.source[row : row + 1]
    lengths = rows.source_lengths[row : row + 1]
    read = rows.tokens[row : row + 1, end - int(rows.held[row]) : end]
    return read, Source(source[:, : int(lengths)], lengths) if int(lengths) else None


def _finite(logits: Tensor) -> bool:
    # What is not finite makes the sum so, and a sum is one pass; finite numbers may overflow it, so then each is seen.
    return bool(logits.sum().isfinite()) or bool(logits.isfinite().all())


@dataclass(frozen=True)
class Result:
    """A finished text.

    Attributes:
        tokens: written ids, the end token included.
        logprob: the sum of their log-probabilities.
        finish: why it ended.
        logprobs: of each token; empty where the strategy does not keep them.
        tops: for each token the likeliest ones at its place, as many as the request asked for.
    """

    tokens: tuple[int, ...]
    logprob: float
    finish: str
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    *,
    banned: Sequence[int] = (),
    order: Sequence[str] = ORDER,
    max_rows: int = 64,
) -> Iterator[Event]:
    """Write all requests, at most `max_rows` at a time; requests are numbered from 0 in their order."""
    engine = Engine(model, end, banned, order)
    waiting = list(requests)
    while waiting or len(engine):
        free = max_rows - len(engine)
        if waiting and free:
            engine.admit(waiting[:free])
            del waiting[:free]
        yield from engine.step()


def collect(events: Iterable[Event]) -> list[Result]:
    """The results of finished requests, in the order of their numbers."""
    texts: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        texts[event.request].append(event)
    return [_result(texts[number]) for number in sorted(texts) if texts[number][-1].finish]


def _result(events: list[Event]) -> Result:
    logprobs = tuple(event.logprob for event in events)
    tokens, tops = tuple(event.token for event in events), tuple(event.top for event in events)
    return Result(tokens, sum(logprobs), str(events[-1].finish), logprobs, tops)
