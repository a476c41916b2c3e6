"""Continuous batching: requests join and leave a running batch between steps.

One loop for independent rows. It knows `begin`, `forward`, `select` and `concat` and no model family; `generate` is an
engine to which everything is admitted, a server one that never empties. A request's text does not depend on what else
is in the batch, up to the rounding of matrix products of different sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textwright.decoding.processors import BANNED, Processor, active
from textwright.decoding.rows import Event, Request, Rows, begin_rows
from textwright.decoding.sampling import choose
from textwright.decoding.stops import StopTables
from textwright.errors import ConfigError, TextwrightError
from textwright.models.base import LanguageModel, Source
from textwright.models.state import State

ROOM = 64  # tokens by which the texts of a batch grow


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
    """

    def __init__(self, model: LanguageModel, end: int | None, banned: Sequence[int] = ()) -> None:
        self.model = model
        self.end = end
        self.banned = banned
        self.stops = StopTables(model.head.weight.shape[0], model.device)
        self._admitted = 0
        self._running: Running | None = None
        self._processors: list[Processor] = []

    def __len__(self) -> int:
        """Number of texts being written."""
        return 0 if self._running is None else len(self._running.logits)

    @torch.no_grad()
    def admit(self, requests: Sequence[Request]) -> list[int]:
        """Read the prompts of new requests in one batch and give the requests their numbers.

        A prompt longer than the model's window is read from its last `window` tokens; where there is a source, prompt
        and text must fit it. Equal prompts are read once.

        Raises:
            ConfigError: a text with a source does not fit the model's window.
        """
        check_window(
            self.model, [request for request in requests if request.source is not None], "a model with a source"
        )
        numbers = list(range(self._admitted, self._admitted + len(requests)))
        self._admitted += len(requests)
        starts = torch.tensor([self.stops.start(request.stop) for request in requests], device=self.model.device)
        keys = [(request.prompt, request.source) for request in requests]
        unique = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        seen = [prompt[-(self.model.window or len(prompt)) :] for prompt, _ in unique]
        logits, memory = read(self.model, seen, [source for _, source in unique])
        share = torch.tensor([unique[key] for key in keys], device=self.model.device)
        held = torch.tensor([len(prompt) for prompt in seen], device=self.model.device)[share]
        rows = replace(begin_rows(requests, numbers[0], self.model.device), automaton=starts, held=held)
        new = Running(rows, memory.select(share), logits[share])
        self._settle(new if self._running is None else self._running.concat(new))
        return numbers

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Choose one token for every text, retire the finished ones, and feed the rest to the model."""
        if self._running is None:
            return []
        tokens, logprobs = self._choose(self._running)
        rows = write(self._running.rows, tokens, logprobs, self.stops)
        reasons = finished(rows, tokens, self.end, self.stops)
        self._running = replace(self._running, rows=rows)
        self._keep([reason is None for reason in reasons])
        if self._running is not None:
            self._running = self._advance(self._running)
        columns = (rows.request.tolist(), tokens.tolist(), logprobs.tolist(), reasons)
        return [Event(*values) for values in zip(*columns, strict=True)]

    def retire(self, requests: Sequence[int]) -> None:
        """Drop requests before they are finished, for instance because their reader has left."""
        if self._running is not None:
            self._keep([number not in requests for number in self._running.rows.request.tolist()])

    def _choose(self, running: Running) -> tuple[Tensor, Tensor]:
        logits = running.logits
        for process in self._processors:
            logits = process(logits, running.rows)
        if bool((logits.amax(-1) == BANNED).any()):
            raise TextwrightError("every token is banned for at least one text: lower no_repeat_ngram or the minimum")
        tokens = choose(logits, running.rows)
        return tokens, running.logits.gather(1, tokens[:, None]).squeeze(1) - running.logits.logsumexp(-1)

    def _keep(self, kept: list[bool]) -> None:
        if not any(kept):
            self._running = None
        elif self._running is not None and not all(kept):
            self._settle(self._running.select(torch.tensor(kept, device=self.model.device).nonzero().squeeze(1)))

    def _settle(self, running: Running) -> None:
        self._running = running
        self._processors = active(running.rows, self.end, self.banned)

    def _advance(self, running: Running) -> Running:
        running, slid = self._slide(running)
        rows = running.rows
        newest = rows.tokens.gather(1, rows.lengths[:, None] - 1)
        output = self.model(newest, None if slid is None else (~slid).long(), running.memory)
        logits = output.logits[:, 0].float()
        if slid is None:
            return Running(replace(rows, held=rows.held + 1), output.after, checked(logits))
        logits = torch.where(slid[:, None], running.logits, logits)
        return Running(replace(rows, held=rows.held + (~slid).long()), output.after, checked(logits))

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
    state = model.begin(len(prompts), Source(*padded(given, model.device)) if given else None)
    output = model(tokens, lengths, state, last_only=True)
    return checked(output.logits[:, 0].float()), output.after


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (rows, time), zeros on the right, and lengths (rows,)."""
    tokens = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], batch_first=True).to(device)
    return tokens, torch.tensor([len(text) for text in texts], device=device)


def check_window(model: LanguageModel, requests: Sequence[Request], who: str) -> None:
    """Raise ConfigError for texts that would have to slide out of the window where that cannot be."""
    for request in requests:
        fits = None if model.window is None else max(model.window - len(request.prompt) + 1, 0)
        if fits is not None and request.max_new_tokens > fits:
            raise ConfigError(
                f"{who} cannot go past the window of {model.window} tokens: the prompt has {len(request.prompt)}, so "
                f"ask for at most {fits} new tokens (--max-new-tokens)"
            )


def write(rows: Rows, tokens: Tensor, logprobs: Tensor, stops: StopTables) -> Rows:
    """Append one token (R,) with its log-probability to every row."""
    texts = rows.tokens if int(rows.lengths.max()) < rows.tokens.shape[1] else F.pad(rows.tokens, (0, ROOM))
    moved = stops.move(rows.automaton, tokens)
    return replace(
        rows,
        tokens=texts.scatter(1, rows.lengths[:, None], tokens[:, None]),
        lengths=rows.lengths + 1,
        score=rows.score + logprobs,
        # Stop strings are watched from the minimum length on: one that came earlier must not end the text later.
        automaton=torch.where(rows.written < rows.limits[:, 0], rows.automaton, moved),
    )


def finished(rows: Rows, tokens: Tensor, end: int | None, stops: StopTables) -> list[str | None]:
    """Why each row ends after the token it was just given, or None."""
    reasons = torch.zeros_like(tokens)
    reasons[rows.written >= rows.limits[:, 1]] = 3
    reasons[stops.accepted(rows.automaton)] = 2
    if end is not None:
        reasons[tokens == end] = 1
    return [(None, "end", "stop", "length")[reason] for reason in reasons.tolist()]


def checked(logits: Tensor) -> Tensor:
    """The logits, if they are finite."""
    # What is not finite makes the sum so, and a sum is one pass; finite numbers may overflow it, so then each is seen.
    if not bool(logits.sum().isfinite()) and not bool(logits.isfinite().all()):
        raise TextwrightError(
            "the model gave a logit that is not a finite number: its weights are damaged or were trained to overflow; "
            "`textwright selftest RUN` names the layer"
        )
    return logits


@dataclass(frozen=True)
class Result:
    """A finished text: written ids (the end token included), the sum of their log-probabilities, and why it ended."""

    tokens: tuple[int, ...]
    logprob: float
    finish: str


def generate(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    *,
    banned: Sequence[int] = (),
    max_rows: int = 64,
) -> Iterator[Event]:
    """Write all requests, at most `max_rows` at a time; requests are numbered from 0 in their order."""
    engine = Engine(model, end, banned)
    waiting = list(requests)
    while waiting or len(engine):
        free = max_rows - len(engine)
        if waiting and free:
            engine.admit(waiting[:free])
            del waiting[:free]
        yield from engine.step()


def collect(events: Iterable[Event]) -> list[Result]:
    """The results of finished requests, in the order of their numbers."""
    tokens: dict[int, list[int]] = defaultdict(list)
    logprobs: dict[int, float] = defaultdict(float)
    finish: dict[int, str] = {}
    for event in events:
        tokens[event.request].append(event.token)
        logprobs[event.request] += event.logprob
        if event.finish:
            finish[event.request] = event.finish
    return [Result(tuple(tokens[number]), logprobs[number], finish[number]) for number in sorted(finish)]
