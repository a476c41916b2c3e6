"""What texts have in common with a source that is far larger than they are, exactly.

The source is read once, as a stream, and never stored: memory depends on the size of the texts alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple


class Overlap(NamedTuple):
    """Attributes:
    share: of the units that lie in a span of at least `least` units which stands in the source, in percent.
    longest: units of the longest span that stands in the source, however short.
    """

    share: float
    longest: int


def overlap(copies: Sequence[Sequence[int]], least: int) -> Overlap:
    """Verbatim overlap of texts with their source, over all texts together.

    McCoy et al. 2023 count n-grams that are new (RAVEN); Lee et al. 2022 (section 6.2) count the tokens that lie in a
    copied span of at least 50, which is what is done here. No unit at all gives 0.

    Args:
        copies: of each text, from `copied`.
        least: units from which on a span counts.
    """
    inside = 0
    for lengths in copies:
        free = len(lengths)  # the first place that later spans have covered already
        for place in range(len(lengths) - 1, -1, -1):
            if lengths[place] >= least:
                inside += max(0, min(free, place + 1) - (place + 1 - lengths[place]))
                free = min(free, place + 1 - lengths[place])
    units = sum(map(len, copies))
    return Overlap(100 * inside / max(units, 1), max((length for lengths in copies for length in lengths), default=0))


def copied(texts: Sequence[Sequence[Hashable]], source: Iterable[Hashable]) -> list[list[int]]:
    """For each unit of each text: the length of the longest span that ends with it and stands verbatim in the source.

    A suffix automaton of the texts (Blumer et al. 1985) is moved over the source, a constant time for each unit.
    """
    automaton = _Automaton()
    places = []
    for number, text in enumerate(texts):
        places.append([automaton.add(unit) for unit in text])
        automaton.add(_Border(number))  # no span reaches from one text into the next
    found = automaton.longest(source)
    return [[found[state] for state in states] for states in places]


class _Border(NamedTuple):
    """What stands behind a text; equal to nothing in a source."""

    text: int


class _Automaton:
    """States are sets of spans of the texts that end at the same places; `_length` is that of the longest one.

    `_shorter` leads to the state of the longest span that is an end of this state's spans and ends at more places.
    """

    def __init__(self) -> None:
        self._next: list[dict[Hashable, int]] = [{}]
        self._shorter = [-1]
        self._length = [0]
        self._last = 0

    def add(self, unit: Hashable) -> int:
        """The state of everything that was added so far, with this unit."""
        state, before = self._state({}, -1, self._length[self._last] + 1), self._last
        while before >= 0 and unit not in self._next[before]:
            self._next[before][unit] = state
            before = self._shorter[before]
        self._shorter[state] = 0 if before < 0 else self._exact(before, unit)
        self._last = state
        return state

    def longest(self, source: Iterable[Hashable]) -> list[int]:
        """For each state: the length of its longest span, or end of a span, that stands in the source."""
        steps, shorter, lengths = self._next, self._shorter, self._length
        found = [0] * len(lengths)
        state = length = 0
        for unit in source:
            while state and unit not in steps[state]:
                state = shorter[state]
                length = lengths[state]
            if unit in steps[state]:
                state = steps[state][unit]
                length += 1
                found[state] = max(found[state], length)
        order = sorted(range(1, len(lengths)), key=lengths.__getitem__)
        for state in reversed(order):  # what is found holds its own ends
            if found[state]:
                found[shorter[state]] = lengths[shorter[state]]
        for state in order:
            found[state] = found[state] or found[shorter[state]]
        return found

    def _exact(self, before: int, unit: Hashable) -> int:
        """The state of the longest span of `before` with the unit; it is taken apart from longer spans."""
        after, length = self._next[before][unit], self._length[before] + 1
        if self._length[after] == length:
            return after
        state = self._state(dict(self._next[after]), self._shorter[after], length)
        self._shorter[after] = state
        while before >= 0 and self._next[before].get(unit) == after:
            self._next[before][unit] = state
            before = self._shorter[before]
        return state

    def _state(self, steps: dict[Hashable, int], shorter: int, length: int) -> int:
        self._next.append(steps)
        self._shorter.append(shorter)
        self._length.append(length)
        return len(self._length) - 1
