"""Error rates against the table of Levenshtein distances, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.evaluating.edits import ErrorRate, ExactStrings
from textwright.evaluating.sequences import edit_distance

sequences = st.text("abc", max_size=70)


def naive_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(first=sequences, second=sequences)
def test_distances_against_the_table(first: str, second: str) -> None:
    assert edit_distance(first, second) == naive_distance(first, second)


def test_distances_by_hand() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


def test_edits_are_summed_before_the_division() -> None:
    """1 edit of 1 word and none of 9: 10 %, not the mean of 100 % and 0 %."""
    score = ErrorRate("word").corpus(["yes", "a b c d e f g h i"], [["no"], ["a b c d e f g h i"]])
    assert score.value == pytest.approx(10)
    assert score.extras == {"edits": 1.0, "reference_tokens": 10.0}
    assert not score.higher_is_better


def test_words_by_hand() -> None:
    assert ErrorRate("word").corpus(["the cat sat on mat"], [["the cat sat on the mat"]]).value == pytest.approx(
        100 / 6
    )
    assert ErrorRate("word").corpus(["a b c d"], [["x"]]).value == 400  # it may pass 100
    assert ErrorRate("word").corpus(["今天很好"], [["今天不好"]]).value == 25  # characters of a script without spaces
    assert ErrorRate("word").corpus(["用 python 写"], [["用python写"]]).value == 0  # spaces around Han say nothing


def test_phonemes_by_hand() -> None:
    score = ErrorRate("phoneme").corpus(["HH AH0 L OW1", "K AE1 T"], [["HH EH0 L OW1"], ["K AE1 T S"]])
    assert score.value == pytest.approx(100 * 2 / 8)
    assert ErrorRate("phoneme").corpus(["好"], [["好好"]]).value == 50  # one of two characters is missing


def test_the_reference_with_the_fewest_edits_counts_and_its_length() -> None:
    references = [["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2 Z Z"]]
    score = ErrorRate("phoneme").corpus(["T AH0 M AA1 T OW2"], references)
    assert score.extras == {"edits": 1.0, "reference_tokens": 6.0}


def test_exact_strings_differ_in_space_alone() -> None:
    references = [["HH AH0", "HH EH0"], ["K  AE1 T"], ["x"]]
    assert ExactStrings().corpus(["HH EH0", "K AE1 T\n", "X"], references).value == pytest.approx(200 / 3)


def test_long_texts_are_quick() -> None:
    text = "天地玄黄宇宙洪荒" * 500
    assert ErrorRate("word").corpus([text[1:]], [[text]]).value == pytest.approx(100 / 4000)
