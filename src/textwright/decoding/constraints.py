"""What a text must be, as automata: one integer a row says how far it has come, so samplers and beams only look up.

Automata run over the bytes that tokens contribute, so a constraint holds however its strings are cut into tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Set

import torch
from torch import Tensor

from textwright.errors import ConfigError

ENTRIES = 100_000_000  # of the largest table of states and tokens
NODES = 4_000  # of the largest automaton
FAR = 2**30  # tokens to a complete text, where there is no way
Node = tuple[int, bytes]


class Constraint(ABC):
    """Which tokens may come next. One object may serve many texts.

    Attributes:
        start: the state of a text that is still empty.
        least: tokens the shortest text has, its end not counted.
    """

    start: int = 0
    least: int

    @abstractmethod
    def move(self, state: int, token: int) -> int:
        """The state after a token that is allowed; the end keeps the state."""

    @abstractmethod
    def complete(self, state: int) -> bool:
        """The text is one that was asked for; only then may it end."""

    @abstractmethod
    def within(self, state: int, budget: int) -> Tensor:
        """(vocab,) bool: tokens after which the text can be complete with `budget` tokens in all, this one included."""


class Finite(Constraint):
    """A finite automaton over bytes, its moves over tokens tabulated.

    Args:
        begin: its first node.
        alphabet: the bytes it tells apart; all others are one to it.
        move: the node after a byte; None: no text goes on so.
        complete: whether a text may end in a node.
        pieces: the bytes of every token id; of those without bytes only `end` is ever allowed.
        end: the id that ends a text.
        what: what it is, for errors.

    Raises:
        ConfigError: no text of these pieces is complete, or the automaton is too large.
    """

    def __init__(
        self,
        begin: Node,
        alphabet: Set[int],
        move: Callable[[Node, int], Node | None],
        complete: Callable[[Node], bool],
        pieces: Sequence[bytes],
        end: int,
        what: str,
    ) -> None:
        self._end = end
        nodes, moves = _explored(begin, alphabet, move, min(NODES, ENTRIES // len(pieces)), what)
        dead = len(nodes)
        self._complete = torch.tensor([complete(node) for node in nodes])
        self._after = _over_tokens(moves, pieces, dead)
        self._distance = _distances(self._after, self._complete)
        self.least = int(self._distance[0])
        if self.least >= FAR:
            raise ConfigError(f"{what}: no text of this model's vocabulary fits")

    def move(self, state: int, token: int) -> int:
        return state if token == self._end else int(self._after[state, token])

    def complete(self, state: int) -> bool:
        return bool(self._complete[state])

    def within(self, state: int, budget: int) -> Tensor:
        mask = self._distance[self._after[state].long()] <= min(budget - 1, FAR - 1)
        mask[self._end] = self._complete[state]
        return mask


class Choices(Finite):
    """The text is exactly one of these strings."""

    def __init__(self, strings: Sequence[str], pieces: Sequence[bytes], end: int) -> None:
        whole = {string.encode() for string in strings}
        if not whole or b"" in whole:
            raise ConfigError("choices need at least one string, none of them empty")
        prefixes = {string[:length] for string in whole for length in range(len(string) + 1)}

        def move(node: Node, byte: int) -> Node | None:
            longer = node[1] + bytes([byte])
            return (0, longer) if longer in prefixes else None

        super().__init__((0, b""), set(b"".join(whole)), move, lambda node: node[1] in whole, pieces, end, "choices")


class Words(Finite):
    """The text holds all these strings, anywhere; `ordered`: one after the other.

    A node is which of them are there (a bit each; ordered, how many) and the longest end of the text that begins one.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes], end: int, *, ordered: bool = False) -> None:
        wanted = [word.encode() for word in dict.fromkeys(words)]
        if not wanted or b"" in wanted:
            raise ConfigError("words need at least one string, none of them empty")

        def move(node: Node, byte: int) -> Node | None:
            done, begun = node[0], node[1] + bytes([byte])
            if ordered:
                if done == len(wanted):
                    return node
                if begun.endswith(wanted[done]):
                    return (done + 1, b"")
                return (done, _begins(begun, wanted[done : done + 1]))
            for bit, word in enumerate(wanted):
                done |= (1 << bit) if begun.endswith(word) else 0
            return (done, _begins(begun, [word for bit, word in enumerate(wanted) if not done >> bit & 1]))

        everything = len(wanted) if ordered else 2 ** len(wanted) - 1
        super().__init__(
            (0, b""), set(b"".join(wanted)), move, lambda node: node[0] == everything, pieces, end, "words"
        )


def _begins(text: bytes, words: Sequence[bytes]) -> bytes:
    """The longest end of the text that begins one of the words."""
    starts = (text[start:] for start in range(len(text)))
    return next((begun for begun in starts if any(word.startswith(begun) for word in words)), b"")


def _explored(
    begin: Node, alphabet: Set[int], move: Callable[[Node, int], Node | None], most: int, what: str
) -> tuple[list[Node], list[list[int]]]:
    """All nodes that can be reached, and the number of the one after each byte; past the last one: none."""
    numbers: dict[Node | None, int] = {None: -1, begin: 0}
    nodes, after = [begin], []
    other = next((byte for byte in range(256) if byte not in alphabet), 0)
    for node in nodes:  # grows while it is walked
        known = {}
        for byte in {*alphabet, other}:
            reached = move(node, byte)
            if reached is not None and reached not in numbers:
                numbers[reached] = len(nodes)
                nodes.append(reached)
            known[byte] = numbers[reached]
        if len(nodes) > most:
            raise ConfigError(f"{what}: too many or too long for a vocabulary of this size; ask for fewer")
        after.append([known.get(byte, known[other]) for byte in range(256)])
    return nodes, [[len(nodes) if number < 0 else number for number in row] for row in after]


def _over_tokens(moves: list[list[int]], pieces: Sequence[bytes], dead: int) -> Tensor:
    """(states + 1, vocab) int32: the state after a token; the last state is that of texts that do not fit."""
    # Byte 256 is padding and does not move.
    table = torch.tensor([[*row, state] for state, row in enumerate(moves)] + [[dead] * 257], dtype=torch.int32)
    after = torch.arange(dead + 1, dtype=torch.int32)[:, None].repeat(1, len(pieces))
    longest = max(map(len, pieces))
    padded = torch.tensor([list(piece) + [256] * (longest - len(piece)) for piece in pieces])
    for column in padded.unbind(1):
        after = table[after.long(), column]
    after[:, [number for number, piece in enumerate(pieces) if not piece]] = dead
    return after


def _distances(after: Tensor, complete: Tensor) -> Tensor:
    """(states + 1,) the fewest tokens to a complete text."""
    distance = torch.where(torch.cat([complete, torch.tensor([False])]), 0, FAR)
    while True:
        nearer = torch.minimum(distance, distance[after.long()].amin(1) + 1).clamp(max=FAR)
        if torch.equal(nearer, distance):
            return distance
        distance = nearer
