"""Figures of responses by hand, and why they cannot be resampled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textwright.errors import ConfigError, DataError
from textwright.evaluating.bootstrap import interval, paired_bootstrap
from textwright.evaluating.dialogue import Distinct, MeanLength
from textwright.evaluating.scores import Score

RESPONSES = ["I don't know.", "I know!", "yes"]  # i don t know | i know | yes


def test_distinct_by_hand() -> None:
    one, two = Distinct(1).corpus(RESPONSES), Distinct(2).corpus(RESPONSES)
    assert one.value == pytest.approx(100 * 5 / 7)
    assert one.extras == {"distinct": 5.0, "ngrams": 7.0, "words": 7.0}
    assert two.value == pytest.approx(100 * 4 / 7)  # divided by words, as in the paper
    assert two.extras == {"distinct": 4.0, "ngrams": 4.0, "words": 7.0}
    assert one.name == "distinct-1" and one.higher_is_better is True


def test_pairs_do_not_reach_across_responses() -> None:
    assert Distinct(2).corpus(["a", "b", "c"]).extras["ngrams"] == 0


def test_repeating_oneself_costs() -> None:
    assert Distinct(1).corpus(["我不知道"] * 4).value == 25
    assert Distinct(1).corpus(["我不知道"]).value == 100


def test_length_by_hand() -> None:
    score = MeanLength().corpus([*RESPONSES, "好的。", ""])
    assert score.value == pytest.approx((4 + 2 + 1 + 2 + 0) / 5)
    assert (score.unit, score.higher_is_better) == ("words", None)
    assert score.extras == {"shortest": 0.0, "longest": 4.0}


def test_saying_nothing_is_not_varied() -> None:
    assert Distinct(1).corpus(["", " "]).value == Distinct(2).corpus([""]).value == MeanLength().corpus([""]).value == 0


@given(responses=st.lists(st.text("ab 中。", max_size=9), min_size=1, max_size=6), order=st.integers(1, 3))
def test_figures_do_not_depend_on_the_order(responses: list[str], order: int) -> None:
    for metric in (Distinct(order), MeanLength()):
        score = metric.corpus(responses)
        assert metric.corpus(responses[::-1]) == score
        assert Score.parse(score.dump()) == score
    assert 0 <= Distinct(order).corpus(responses).value <= 100


def test_bad_input_is_explained() -> None:
    for metric in (Distinct(1), MeanLength()):
        with pytest.raises(DataError, match="empty list of responses"):
            metric.corpus([])
        with pytest.raises(DataError, match="put it into a list"):
            metric.corpus("hello")
    with pytest.raises(ConfigError, match="at least 1 word"):
        Distinct(0)


def test_the_bootstrap_refuses_figures_without_references() -> None:
    references = [["x"]] * 10
    with pytest.raises(ConfigError, match="distinct-2 has no references and cannot be resampled"):
        paired_bootstrap(Distinct(2), references, ["a"] * 10, ["b"] * 10)
    with pytest.raises(ConfigError, match="mean length has no references"):
        interval(MeanLength(), ["a"] * 10, references)
