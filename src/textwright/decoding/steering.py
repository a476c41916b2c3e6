"""Tokens and sequences of tokens that a request favours, forbids, forces or exempts, tabulated for a whole batch.

Sequences are watched by an automaton over tokens (Aho and Corasick 1975), so that one integer a row says which of them
the text has begun, and a step only looks up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Steering:
    """What one request asks about single tokens.

    Attributes:
        sequences: (ids, value) pairs: where the text ends with all ids but the last, the value is added to the last
            one's logit; minus infinity forbids it. A sequence of one id is a bias that always holds.
        forced: (place, id) pairs: the token to write at this place, counted from 0 after the prompt.
        breakers: ids over which no repetition is followed (`dry_multiplier`).
        exempt: ids whose n-grams may repeat (`no_repeat_ngram`).
        late: ids that are not written before the minimum of new tokens: further ends, beside the model's own.
        prefix: a text that is made likelier, as long as it was followed so far.
        prefix_share: the probability that is given to the prefix's next token, beside what it has.
    """

    sequences: tuple[tuple[tuple[int, ...], float], ...] = ()
    forced: tuple[tuple[int, int], ...] = ()
    breakers: tuple[int, ...] = ()
    exempt: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    prefix_share: float = 0.0

    def __post_init__(self) -> None:
        if not all(ids for ids, _ in self.sequences):
            raise ValueError("a sequence needs at least one token")
        if any(value != value or value == float("inf") for _, value in self.sequences):
            raise ValueError("a bias is a number or minus infinity: to force a token, use forced")
        if len(dict(self.forced)) < len(self.forced) or any(place < 0 for place, _ in self.forced):
            raise ValueError("forced places must be different and not negative")
        if not 0 <= self.prefix_share < 1 or bool(self.prefix) != (self.prefix_share > 0):
            raise ValueError("a prefix and a share between 0 and 1 belong together")

    def check(self, vocab: int) -> None:
        """Raise ValueError for ids the model does not know."""
        for token in self._tokens():
            if not 0 <= token < vocab:
                raise ValueError(f"token {token} is not in the vocabulary of {vocab}")

    def _tokens(self) -> Iterable[int]:
        for ids, _ in self.sequences:
            yield from ids
        yield from (token for _, token in self.forced)
        for ids in (self.breakers, self.exempt, self.late, self.prefix):
            yield from ids


PLAIN = Steering()


class Tables(NamedTuple):
    """What steerings wish, one row each: breakers, exempt and late (sets, vocab) bool, forced and prefixes (sets,
    places) with -1 where nothing is asked, and shares (sets,)."""

    breakers: Tensor
    exempt: Tensor
    late: Tensor
    forced: Tensor
    prefixes: Tensor
    shares: Tensor


class SteeringTables:
    """The wishes of all requests in a batch; equal ones share their part of the tables. Number 0 wishes nothing."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.vocab, self.device = vocab, device
        self._numbers: dict[Steering, int] = {}
        self._starts: dict[tuple[tuple[tuple[int, ...], float], ...], int] = {}  # of the automaton of these sequences
        self._tables: Tables | None = None
        self.moves = torch.zeros(0, vocab, dtype=torch.long, device=device)  # (states, vocab)
        self.biases = torch.zeros(0, vocab, device=device)  # (states, vocab)
        self.number(PLAIN)

    def number(self, steering: Steering) -> int:
        """The number under which these wishes are kept."""
        if steering not in self._numbers:
            steering.check(self.vocab)
            self._numbers[steering] = len(self._numbers)
            self._tables = None
            if steering.sequences not in self._starts:
                self._starts[steering.sequences] = len(self.moves)
                moves, biases = _automaton(steering.sequences, self.vocab)
                self.moves = torch.cat([self.moves, moves.to(self.device) + len(self.moves)])
                self.biases = torch.cat([self.biases, biases.to(self.device)])
        return self._numbers[steering]

    def start(self, steering: Steering, prompt: Sequence[int]) -> int:
        """State of the automaton after a prompt."""
        self.number(steering)
        state = self._starts[steering.sequences]
        if steering.sequences:
            for token in prompt:
                state = int(self.moves[state, token])
        return state

    @property
    def tables(self) -> Tables:
        """One row for every number."""
        if self._tables is None:  # many steerings may come at once, so their rows are put together when they are read
            every = list(self._numbers)
            forced = [dict(one.forced) for one in every]
            places = [[wish.get(n, -1) for n in range(max(wish, default=-1) + 1)] for wish in forced]
            self._tables = Tables(
                self._sets([one.breakers for one in every]),
                self._sets([one.exempt for one in every]),
                self._sets([one.late for one in every]),
                self._rows(places),
                self._rows([one.prefix for one in every]),
                torch.tensor([one.prefix_share for one in every], device=self.device),
            )
        return self._tables

    def _sets(self, members: Sequence[Sequence[int]]) -> Tensor:
        table = torch.zeros(len(members), self.vocab, dtype=torch.bool)
        for row, tokens in enumerate(members):
            table[row, list(tokens)] = True
        return table.to(self.device)

    def _rows(self, values: Sequence[Sequence[int]]) -> Tensor:
        rows = [torch.tensor(row, dtype=torch.long) for row in values]
        return pad_sequence(rows, batch_first=True, padding_value=-1).to(self.device)


def _automaton(sequences: Sequence[tuple[tuple[int, ...], float]], vocab: int) -> tuple[Tensor, Tensor]:
    """(states, vocab) the state after each token, and what is added to its logit. A state is a beginning of a sequence,
    the longest one that the text ends with; state 0 is the empty one."""
    prefixes = {ids[:length] for ids, _ in sequences for length in range(len(ids))} | {()}
    order = sorted(prefixes, key=len)  # what a state falls back on is shorter, so it comes before
    number = {prefix: state for state, prefix in enumerate(order)}
    moves = torch.zeros(len(order), vocab, dtype=torch.long)
    biases = torch.zeros(len(order), vocab)
    for state, prefix in enumerate(order):
        if prefix:
            shorter = next(number[prefix[cut:]] for cut in range(1, len(prefix) + 1) if prefix[cut:] in number)
            moves[state], biases[state] = moves[shorter], biases[shorter]
        for child in order:
            if child and child[:-1] == prefix:
                moves[state, child[-1]] = number[child]
        for ids, value in sequences:
            if ids[:-1] == prefix:
                biases[state, ids[-1]] += value
    return moves, biases
