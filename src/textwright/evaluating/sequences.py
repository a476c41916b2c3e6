"""Longest common subsequence and run, and edit distance, of sequences of anything hashable.

The first and the last keep a whole row of the table in the bits of one integer, so that a step of Python does the work
of 64 cells and more: texts of thousands of characters take milliseconds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence: the same items in the same order, with gaps (Hyyrö 2004)."""
    places = _places(first)
    everything = (1 << len(first)) - 1
    row = everything  # bit i is 0 where the length grows at first[i]
    for item in second:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(first) - row.bit_count()


def common_run(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common run: the same items in the same order, without gaps."""
    longest, row = 0, [0] * (len(second) + 1)
    for item in first:
        row = [0, *(row[place] + 1 if item == other else 0 for place, other in enumerate(second))]
        longest = max(longest, *row)
    return longest


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and replacements between two sequences (Myers 1999, as in Hyyrö 2003)."""
    if not first:
        return len(second)
    places = _places(first)
    everything, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = everything, 0, len(first)  # bit i: the column grows, falls by 1 from row i to i + 1
    for item in second:
        matches = places.get(item, 0) | down
        diagonal = (((matches & up) + up) ^ up) | matches  # bit i: no edit along the diagonal
        right_up = down | ~(diagonal | up) & everything
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        up = (right_down << 1 | ~(diagonal | right_up)) & everything
        down = right_up & diagonal & everything
    return distance


def _places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """For each distinct item, the bits of the places where it stands."""
    places: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        places[item] = places.get(item, 0) | 1 << place
    return places
