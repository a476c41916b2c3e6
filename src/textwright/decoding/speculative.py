"""Speculative decoding: guess several tokens cheaply, check them with one call of the model (Leviathan et al. 2023).

What is written is what the engine writes, token for token, drawn or greedy: the model chooses every token itself, with
the noise that belongs to its place, and a guess that is not its choice ends the round. (The published rejection rule
keeps the distribution alone and accepts somewhat more.) A draft model guesses with the same noise, so the closer its
distribution is, the more often both choose alike.

Rows accept different numbers of guesses, and a memory must forget the rejected ones. One with places is cut there; a
recurrent one is fed the accepted tokens again, from the state before the guesses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textwright.decoding.engine import (
    check_requests,
    check_window,
    checked,
    feed,
    finished,
    padded,
    refuse,
    write,
)
from textwright.decoding.processors import ORDER, active
from textwright.decoding.rows import Event, Processor, Request, Rows, begin_rows
from textwright.decoding.rules import Rules
from textwright.decoding.sampling import choose_token
from textwright.errors import ConfigError
from textwright.models.base import LanguageModel, Source
from textwright.models.state import State


class Drafter(ABC):
    """Guesses how texts go on."""

    @abstractmethod
    def begin(self, requests: Sequence[Request], rows: Rows, processors: Sequence[Processor], rules: Rules) -> None:
        """Get to know new rows, which stand at the end of their prompts."""

    @abstractmethod
    def guess(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Tokens (R, k), and how many of each row's (R,) are guesses."""

    def select(self, rows: Tensor) -> None:  # noqa: B027 - a drafter without a memory has nothing to do
        """Only these rows go on."""


class Lookup(Drafter):
    """Guesses that the text goes on as it did after the last occurrence of its last tokens (Saxena 2023, "Prompt lookup
    decoding"): costs nothing, and is right where texts quote, list or correct.

    Args:
        length: tokens to guess.
        match: tokens that must be the same; where so many are not found, fewer, down to one.
    """

    def __init__(self, length: int = 8, match: int = 3) -> None:
        if length < 1 or match < 1:
            raise ConfigError(f"expected a length and a match of at least 1, got {length} and {match}")
        self.length, self.match = length, match

    def begin(self, requests: Sequence[Request], rows: Rows, processors: Sequence[Processor], rules: Rules) -> None:
        pass

    def guess(self, rows: Rows) -> tuple[Tensor, Tensor]:
        tokens, newest = rows.tokens, rows.lengths[:, None] - 1
        place = torch.arange(tokens.shape[1], device=tokens.device)
        going = (place < newest).expand_as(tokens)
        matched = torch.zeros_like(tokens)
        for back in range(self.match):
            behind, end = (place - back).clamp(min=0).expand_as(tokens), (newest - back).clamp(min=0)
            going = going & (tokens.gather(1, behind) == tokens.gather(1, end)) & (place >= back)
            matched += going
        # The longest match is the best one, and the latest of equal ones.
        best = (matched * tokens.shape[1] + place).masked_fill(matched == 0, -1).max(-1)
        after = best.indices[:, None] + 1 + torch.arange(self.length, device=tokens.device)
        count = (rows.lengths - best.indices - 1).clamp(max=self.length)
        return tokens.gather(1, after.clamp(max=tokens.shape[1] - 1)), torch.where(best.values >= 0, count, 0)


class Draft(Drafter):
    """A smaller model with the same vocabulary guesses.

    Args:
        model: any model of the contract, in evaluation mode.
        length: tokens to guess.
    """

    def __init__(self, model: LanguageModel, length: int = 4) -> None:
        if length < 1:
            raise ConfigError(f"expected a length of at least 1, got {length}")
        self.model, self.length = model, length

    def begin(self, requests: Sequence[Request], rows: Rows, processors: Sequence[Processor], rules: Rules) -> None:
        check_window(self.model, requests, "a draft model")
        self._state, self._held = read_ahead(self.model, requests)
        self._processors, self._rules = processors, rules

    def guess(self, rows: Rows) -> tuple[Tensor, Tensor]:
        wanted = (rows.limits[:, 1] - rows.written - 1).clamp(max=self.length)
        logits = self._catch_up(rows)
        state, work = self._state, keep(self._state)
        guesses: list[Tensor] = []
        for step in range(max(int(wanted.max()), 1)):
            if step:
                output = self.model(guesses[-1][:, None], (step < wanted).long(), work)
                logits, work = checked(output.logits[:, 0].float()), output.after
            tokens, logprobs = choose_token(logits, rows, self._processors)
            guesses.append(tokens)
            rows = write(rows, tokens, logprobs, self._rules)
        self._state = work.truncate(self._held) if work.has_places else state
        return torch.stack(guesses, 1), wanted

    def _catch_up(self, rows: Rows) -> Tensor:
        """Read what was written since the last time; gives the logits (R, vocab) after it."""
        missing = rows.lengths - self._held
        at = self._held[:, None] + torch.arange(int(missing.max()), device=missing.device)
        tokens = rows.tokens.gather(1, at.clamp(max=rows.tokens.shape[1] - 1))
        output = self.model(tokens, missing, self._state, last_only=True)
        self._state, self._held = output.after, rows.lengths
        return checked(output.logits[:, 0].float())

    def select(self, rows: Tensor) -> None:
        self._state, self._held = self._state.select(rows), self._held[rows]


class Speculation:
    """A batch of texts that one model writes and a drafter guesses.

    Args:
        model: any model of the contract, in evaluation mode.
        requests: they run together until all are finished; events number them in their order.
        end, banned, order: as for the engine.

    Raises:
        ConfigError: a text does not fit the model's window (or the draft's), or asks for what cannot be.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        end: int | None,
        drafter: Drafter,
        *,
        banned: Sequence[int] = (),
        order: Sequence[str] = ORDER,
    ) -> None:
        check_requests(model, requests, order)
        check_window(model, requests, "speculative decoding")
        refuse(requests, "speculative decoding", ("top_logprobs", "max_seconds"))
        self.model, self.end, self.drafter = model, end, drafter
        self.rules = Rules(model.head.out_features, model.device)
        self.rows = self.rules.place(begin_rows(requests, 0, model.device), requests)
        self.processors = active(self.rows, self.rules, end, banned, order)
        self.rounds = 0
        # The memory always lacks the newest token: it is fed together with the guesses that follow it.
        self._state, self._held = read_ahead(model, requests)
        drafter.begin(requests, self.rows, self.processors, self.rules)

    def __len__(self) -> int:
        """Number of texts being written."""
        return len(self.rows.lengths)

    @torch.no_grad()
    def step(self) -> list[Event]:
        """One round: guess, check, and write one token or more of every text."""
        guesses, count = self.drafter.guess(self.rows)
        count = torch.minimum(count, self.rows.limits[:, 1] - self.rows.written - 1)
        newest = self.rows.tokens.gather(1, self.rows.lengths[:, None] - 1)
        fed = torch.cat([newest, guesses[:, : int(count.max())]], 1)
        before = keep(self._state)
        output = self.model(fed, count + 1, self._state)
        events, right, ended = self._check(checked(output.logits.float()), fed, count)
        self.rounds += 1
        going = (~ended).nonzero().squeeze(1)
        self._held = self._held + right + 1
        if output.after.has_places:
            state = output.after.truncate(self._held)
        else:
            state = self.model(fed, right + 1, before).after if len(going) else before
        if len(going) < len(ended):
            self.rows, self._held = self.rows.select(going), self._held[going]
            state = state.select(going)
            self.drafter.select(going)
        self._state = state
        return events

    def _check(self, logits: Tensor, fed: Tensor, count: Tensor) -> tuple[list[Event], Tensor, Tensor]:
        """Let the model choose at every place until it chooses otherwise than guessed: the events, how many guesses
        were right (R,), and which rows are finished (R,)."""
        rows, places = self.rows, torch.arange(len(count), device=count.device)
        right, ended = torch.zeros_like(count), torch.zeros_like(count, dtype=torch.bool)
        left: list[tuple[Tensor, Rows]] = []
        events: list[Event] = []
        for step in range(fed.shape[1]):
            tokens, logprobs = choose_token(logits[places, step], rows, self.processors)
            rows = write(rows, tokens, logprobs, self.rules)
            reasons = finished(rows, tokens, self.end, self.rules)
            columns = (rows.request.tolist(), tokens.tolist(), logprobs.tolist(), reasons)
            events += [Event(*values) for values in zip(*columns, strict=True)]
            ended[places] = torch.tensor([reason is not None for reason in reasons], device=count.device)
            guessed = fed[places, min(step + 1, fed.shape[1] - 1)]
            going = (step < count[places]) & (tokens == guessed) & ~ended[places]
            right[places[going]] += 1
            left.append((places[~going], rows.select((~going).nonzero().squeeze(1))))
            places, rows = places[going], rows.select(going.nonzero().squeeze(1))
            if not len(places):
                break
        whole = left[0][1]
        for _, part in left[1:]:
            whole = whole.concat(part)
        self.rows = whole.select(torch.cat([part for part, _ in left]).argsort())
        return events, right, ended


def speculate(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    drafter: Drafter,
    *,
    banned: Sequence[int] = (),
    order: Sequence[str] = ORDER,
    max_rows: int = 64,
) -> Iterator[Event]:
    """Write all requests, at most `max_rows` at a time; the texts are those of `generate`."""
    for first in range(0, len(requests), max_rows):
        batch = requests[first : first + max_rows]
        running = Speculation(model, batch, end, drafter, banned=banned, order=order)
        while len(running):
            yield from (event._replace(request=event.request + first) for event in running.step())


def read_ahead(model: LanguageModel, requests: Sequence[Request]) -> tuple[State, Tensor]:
    """The state after all of each prompt but its last token, and how many tokens (R,) it holds."""
    tokens, lengths = padded([request.prompt[:-1] for request in requests], model.device)
    sources = [request.source for request in requests if request.source is not None]
    state = model.begin(len(requests), Source(*padded(sources, model.device)) if sources else None)
    return feed(model, tokens, lengths, state)[1] if tokens.shape[1] else state, lengths


def keep(state: State) -> State:
    """The state for a call that will be taken back: itself if it has places, which are cut afterwards; else a fork."""
    return state if state.has_places else state.fork()
