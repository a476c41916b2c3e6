"""Answers against SQuAD's and CMRC 2018's rules, written down again, and by hand."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.evaluating.answers import AnswerF1, ExactMatch
from textwright.evaluating.sequences import common_run

english = st.lists(st.sampled_from(["The", "a", "an", "cat", "cat.", "U.S.", "theatre", "(", "1,000"]), max_size=6)
chinese = st.text("北京大学在中国，。《》", min_size=1, max_size=10)
few = settings(max_examples=50, deadline=None)


def exact(answer: str, *references: str) -> float:
    return ExactMatch().corpus([answer], [references]).value


def f1(answer: str, *references: str) -> float:
    return AnswerF1().corpus([answer], [references]).value


def squad(text: str) -> list[str]:
    kept = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


@few
@given(first=english.map(" ".join), second=english.map(" ".join))
def test_spaced_answers_follow_squad(first: str, second: str) -> None:
    ours, theirs = squad(first), squad(second)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        expected = float(ours == theirs)
    elif same == 0:
        expected = 0.0
    else:
        precision, recall = same / len(ours), same / len(theirs)
        expected = 2 * precision * recall / (precision + recall)
    assert f1(first, second) == pytest.approx(100 * expected)
    assert exact(first, second) == 100 * (" ".join(ours) == " ".join(theirs))


def longest_run(first: list[str], second: list[str]) -> int:
    runs = {tuple(first[i:j]) for i in range(len(first)) for j in range(i + 1, len(first) + 1)}
    return max(
        (len(run) for run in runs for i in range(len(second)) if tuple(second[i : i + len(run)]) == run), default=0
    )


@few
@given(first=st.text("abc", max_size=9), second=st.text("abc", max_size=9))
def test_runs_have_no_gaps(first: str, second: str) -> None:
    assert common_run(first, second) == longest_run(list(first), list(second))


@few
@given(first=chinese, second=chinese)
def test_chinese_answers_follow_cmrc(first: str, second: str) -> None:
    ours, theirs = ([sign for sign in text if sign not in "，。《》"] for text in (first, second))
    if not ours or not theirs:
        return
    shared = longest_run(ours, theirs)
    precision, recall = shared / len(ours), shared / len(theirs)
    expected = 2 * precision * recall / (precision + recall) if shared else 0.0
    assert f1(first, second) == pytest.approx(100 * expected)
    assert exact(first, second) == 100 * (ours == theirs)


def test_squad_by_hand() -> None:
    assert exact("The Eiffel Tower!", "eiffel tower") == 100
    assert exact("Eiffel Tower in Paris", "Eiffel Tower") == 0
    assert f1("Eiffel Tower in Paris", "the Eiffel Tower") == pytest.approx(100 * 2 * 0.5 * 1 / 1.5)
    assert f1("Denver Broncos", "Carolina Panthers") == 0
    assert f1("in 1999", "1999", "the year 1999") == pytest.approx(100 * 2 / 3)  # the better of two references
    assert exact("another", "other") == 0  # articles are whole words


def test_cmrc_by_hand() -> None:
    """With gaps the two would share four characters; without, two."""
    assert f1("北京的大学", "北京大学") == pytest.approx(100 * 2 * 2 / (5 + 4))
    assert f1("《红楼梦》。", "红楼梦") == 100
    assert exact("《红楼梦》", "红楼梦") == 100
    assert f1("1999年", "1999 年") == 100
    assert f1("iPhone手机", "IPHONE 手机") == 100
    assert f1("约3.5米", "3.5米") == pytest.approx(100 * 2 * 2 / (3 + 2))


def test_other_scripts_without_spaces_go_by_character() -> None:
    assert f1("東京タワー", "東京") == pytest.approx(100 * 2 * 2 / (5 + 2))
    assert 0 < f1("ภาษาไทย", "ภาษา") < 100


def test_nothing_equals_nothing_alone() -> None:
    assert exact("", "") == f1("", "") == f1("the", "a") == 100
    assert exact("", "x") == f1("", "x") == f1("x", "") == f1("", "好") == 0
    assert f1("", "", "x") == 100
