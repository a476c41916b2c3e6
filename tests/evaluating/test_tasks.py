"""What is judged one by one."""

from __future__ import annotations

import pytest

from textwright.evaluating.tasks import items, judge, judges
from textwright.text.pairs import Pair

READ = [
    Pair("read", "R IY1 D", "a:1"),
    Pair("cat", "K AE1 T", "a:2"),
    Pair("read", "R EH1 D", "a:3", ("R EH0 D",)),
    Pair("read", "R IY1 D", "a:4"),
]


def test_a_word_with_two_pronunciations_is_one_item() -> None:
    """Either is right, and the word counts once."""
    assert items("convert", READ) == [
        Pair("read", "R IY1 D", "a:1", ("R EH1 D", "R EH0 D")),
        Pair("cat", "K AE1 T", "a:2"),
    ]
    references = [[pair.target, *pair.others] for pair in items("convert", READ)]
    exact, _ = judge(judges("convert", "en"), ["R EH1 D", "K AH0 T"], references)
    assert exact.value == 50


@pytest.mark.parametrize("task", ["translate", "summarize", "answer", "chat"])
def test_other_pairs_are_judged_one_by_one(task: str) -> None:
    assert items(task, READ) == READ
