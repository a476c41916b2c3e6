"""Stop strings as an automaton over tokens, so that samplers and beams only look up integers.

Aho and Corasick 1975: the state is the longest suffix of the text that begins a stop string. It runs over bytes, and
its moves over whole tokens are tabulated, because a token may hold several characters and a string may end inside one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class StopStrings:
    """Strings, and tokens, that end a text.

    Args:
        strings: non-empty, as bytes.
        pieces: the bytes every token id contributes to the text.
        ids: tokens that end it by themselves.

    State 0 is "nothing matched"; `accept` is reached when any string was completed, and never left.
    """

    def __init__(self, strings: Sequence[bytes], pieces: Sequence[bytes], ids: Sequence[int] = ()) -> None:
        if not all(strings):
            raise ValueError("a stop string must not be empty")
        self.strings, self.ids = tuple(strings), tuple(ids)
        self._pieces = pieces
        prefixes = {b""} | {string[:length] for string in strings for length in range(len(string))}
        self._prefixes = sorted(prefixes, key=len)  # the empty one first: state 0

    @property
    def accept(self) -> int:
        return len(self._prefixes)

    @cached_property
    def table(self) -> Tensor:
        """(states, vocab) int64: the state after a token."""
        moves = self._byte_moves()
        states = torch.arange(self.accept + 1)[:, None].repeat(1, len(self._pieces))
        longest = max(map(len, self._pieces))
        padded = torch.tensor([list(piece) + [256] * (longest - len(piece)) for piece in self._pieces])
        for column in padded.unbind(1):
            states = moves[states, column]
        states[:, list(self.ids)] = self.accept
        return states

    def _byte_moves(self) -> Tensor:
        """(states, 257): the state after a byte; byte 256 is padding and does not move."""
        number = {prefix: state for state, prefix in enumerate(self._prefixes)}
        moves = torch.full((self.accept + 1, 257), self.accept)
        for prefix, state in number.items():
            moves[state] = torch.tensor([self._after(prefix + bytes([byte]), number) for byte in range(256)] + [state])
        return moves

    def _after(self, text: bytes, number: dict[bytes, int]) -> int:
        if any(text.endswith(string) for string in self.strings):
            return self.accept
        return next(number[text[start:]] for start in range(len(text) + 1) if text[start:] in number)


class StopTables:
    """The stop strings of all requests in one batch: one table, each automaton at an offset of its own."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        # State 0 belongs to requests without stop strings: it never moves.
        self._table = torch.zeros(1, vocab, dtype=torch.long, device=device)
        self._accepting = torch.zeros(1, dtype=torch.bool, device=device)
        self._starts = torch.zeros(1, dtype=torch.long, device=device)
        self._offsets: dict[tuple[tuple[bytes, ...], tuple[int, ...]], int] = {}

    def __len__(self) -> int:
        """Number of different sets of strings."""
        return len(self._offsets)

    def start(self, stop: StopStrings | None) -> int:
        """The first state of these stop strings; equal ones share their part of the table."""
        if stop is None:
            return 0
        key = stop.strings, stop.ids
        if key not in self._offsets:
            offset = self._offsets[key] = self._table.shape[0]
            table = (stop.table + offset).to(self._table.device)
            self._table = torch.cat([self._table, table])
            accepting = torch.arange(table.shape[0], device=table.device) == stop.accept
            self._accepting = torch.cat([self._accepting, accepting])
            self._starts = torch.cat([self._starts, torch.full_like(table[:, 0], offset)])
        return self._offsets[key]

    def move(self, states: Tensor, tokens: Tensor) -> Tensor:
        """States (R,) after tokens (R,)."""
        return self._table[states, tokens]

    def begun(self, states: Tensor) -> Tensor:
        """(R,) the first states of the same stop strings."""
        return self._starts[states]

    def accepts(self, states: Tensor) -> Tensor:
        """(R, vocab) bool: this token would complete a stop string."""
        return self._accepting[self._table[states]]

    def accepted(self, states: Tensor) -> Tensor:
        """(R,) bool: a stop string was completed."""
        return self._accepting[states]
