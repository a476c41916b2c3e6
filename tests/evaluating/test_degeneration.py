"""Every figure of degeneration beside a naive version of it, and by hand."""

from __future__ import annotations

import pytest
import sacrebleu.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.degeneration_report import advise
from textwright.errors import DataError
from textwright.evaluating.degeneration import LONGEST, Loop, loop, measure, repeated, self_bleu, stream, unit_of, units
from textwright.evaluating.dialogue import Distinct
from textwright.evaluating.verbatim import Overlap, copied, overlap
from textwright.evaluating.words import tokens

few = st.lists(st.sampled_from("abc"), max_size=14)
several = st.lists(few, min_size=1, max_size=4)
mixed = st.text("ab 你好กำ\u0301\n\u200d。", max_size=30)


# Units -----------------------------------------------------------------------------------------------------------


def test_units_by_hand() -> None:
    assert units("Hello, world!\n你好。") == ["Hello,", "world!", "你", "好", "。"]
    assert units(" \n") == []
    assert unit_of(["The cat sat."]) == "words"
    assert unit_of(["床前明月光"]) == unit_of(["สวัสดี"]) == "characters"


def test_an_endless_word_is_a_loop_not_a_word() -> None:
    assert units("a" * LONGEST) == ["a" * LONGEST]
    assert units("a" * (LONGEST + 1)) == ["a"] * (LONGEST + 1)
    assert measure(["ah " + "a" * 100]).loop == 100


@given(mixed)
def test_units_are_tokens(text: str) -> None:
    assert units(text) == tokens(text)


@given(st.lists(mixed | st.just("a" * 30), max_size=6))
def test_a_stream_may_be_cut_anywhere(parts: list[str]) -> None:
    assert list(stream(parts)) == units("".join(parts))


# Repetition ------------------------------------------------------------------------------------------------------


@given(several, st.integers(1, 4))
def test_repeated_counts_ngrams_that_stood_before(texts: list[list[str]], order: int) -> None:
    shares = []
    for text in texts:
        ngrams = [text[i : i + order] for i in range(len(text) - order + 1)]
        if ngrams:
            shares.append(sum(ngram in ngrams[:i] for i, ngram in enumerate(ngrams)) / len(ngrams))
    assert repeated(texts, order) == pytest.approx(100 * sum(shares) / len(shares) if shares else 0)


def test_repetition_by_hand() -> None:
    assert repeated(["abababab"], 2) == pytest.approx(100 * 5 / 7)
    assert repeated(["abab", "abcd", "a"], 2) == pytest.approx(100 * (1 / 3 + 0) / 2)  # one letter holds no pair


def naive_loop(text: list[str]) -> Loop:
    found = Loop(0, 0)
    for period in range(1, len(text) + 1):
        for start in range(len(text)):
            times = 1
            while text[start : start + period] == text[start + times * period : start + (times + 1) * period]:
                times += 1
                if start + times * period >= len(text):
                    break
            if times > 1 and start + times * period <= len(text) and times * period > found.units:
                found = Loop(times * period, times)
    return found


@given(few)
def test_loop_is_the_naive_one(text: list[str]) -> None:
    assert loop(text) == naive_loop(text)


@given(few, st.integers(2, 5), few)
def test_a_loop_is_found_wherever_it_stands(sequence: list[str], times: int, rest: list[str]) -> None:
    assert loop([*rest, *sequence * times]).units >= times * len(sequence)
    assert loop([*sequence * times, *rest]).units >= times * len(sequence)


def test_loops_by_hand() -> None:
    assert loop("xabcabcab") == Loop(6, 2)  # whole repetitions only
    assert loop("abababab") == Loop(8, 4)  # not abab twice
    assert loop("abcd") == loop("") == Loop(0, 0)


# Likeness --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), min_size=4, max_size=12), min_size=2, max_size=4))
def test_self_bleu_is_sacrebleu_of_each_text_against_the_others(texts: list[list[str]]) -> None:
    lines = [" ".join(text) for text in texts]
    scorer = sacrebleu.metrics.BLEU(tokenize="none")
    scores = [
        scorer.corpus_score([line], [[other] for j, other in enumerate(lines) if j != i]).score
        for i, line in enumerate(lines)
    ]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores))


def test_equal_texts_have_a_self_bleu_of_100_and_different_ones_of_0() -> None:
    assert self_bleu([list("abcde")] * 3) == pytest.approx(100)
    assert self_bleu([list("abcde"), list("fghij")]) == 0
    assert self_bleu([[], []]) == 100


# Overlap ---------------------------------------------------------------------------------------------------------


def stands_in(span: list[str], source: list[str]) -> bool:
    return any(source[i : i + len(span)] == span for i in range(len(source) - len(span) + 1))


@settings(deadline=None)
@given(several, st.lists(st.sampled_from("abcd"), max_size=30))
def test_copied_is_the_longest_span_that_ends_there(texts: list[list[str]], source: list[str]) -> None:
    naive = [
        [
            max(length for length in range(end + 2) if stands_in(text[end + 1 - length : end + 1], source))
            for end in range(len(text))
        ]
        for text in texts
    ]
    assert copied(texts, iter(source)) == naive


@settings(deadline=None)
@given(several, st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_overlap_counts_units_in_copied_spans(texts: list[list[str]], source: list[str], least: int) -> None:
    inside = longest = 0
    for text in texts:
        covered: set[int] = set()
        for start in range(len(text)):
            for stop in range(start + 1, len(text) + 1):
                if stands_in(text[start:stop], source):
                    longest = max(longest, stop - start)
                    if stop - start >= least:
                        covered |= set(range(start, stop))
        inside += len(covered)
    found = overlap(copied(texts, source), least)
    assert found == (pytest.approx(100 * inside / max(sum(map(len, texts)), 1)), longest)


def test_overlap_by_hand() -> None:
    copies = copied(["xabcx", "bcab"], "..abc..cab..")
    assert copies == [[0, 1, 2, 3, 0], [1, 2, 2, 3]]
    assert overlap(copies, 3) == Overlap(pytest.approx(100 * (3 + 3) / 9), 3)
    assert overlap(copies, 4) == Overlap(0, 3)
    assert overlap(copied([], "abc"), 1) == Overlap(0, 0)


def test_no_span_reaches_from_one_text_into_the_next() -> None:
    assert overlap(copied(["ab", "cd"], "abcd"), 1).longest == 2


# All of it -------------------------------------------------------------------------------------------------------


def test_the_panel_holds_the_figures() -> None:
    texts = ["the cat saw the cat saw the cat", "a dog and a cat"]
    copies = copied([units(text) for text in texts], units("I saw the cat saw the cat saw the cat again"))
    panel = measure(texts, "words", copies)
    split = [units(text) for text in texts]
    assert (panel.texts, panel.units) == (2, 6.5)
    assert (panel.loop, panel.loop_times) == (6, 2)
    assert (panel.rep_2, panel.rep_4) == (repeated(split, 2), repeated(split, 4))
    assert panel.distinct_2 == Distinct(2).corpus(texts).value
    assert panel.self_bleu == pytest.approx(self_bleu(split))
    assert (panel.overlap, panel.longest_copy) == (pytest.approx(100 * 8 / 13), 8)


def test_what_cannot_be_said_is_left_out() -> None:
    panel = measure(["one text"])
    assert (panel.self_bleu, panel.overlap, panel.longest_copy) == (None, None, None)
    assert measure(["", " \n"]).rep_2 == measure([""]).loop == 0
    with pytest.raises(DataError, match="empty list of texts"):
        measure([])


def test_advice_is_given_for_what_is_far_worse_than_real_text_and_only_then() -> None:
    real = measure(["one two three four five", "six seven eight nine ten"], "words", [[0] * 5] * 2)
    assert advise({"preset": real, "held-out text": real}, "held-out text", 6) == []
    worse = real._replace(rep_4=80.0, self_bleu=90.0, overlap=50.0)
    repeats, alike, copies = advise({"greedy": worse, "held-out text": real}, "held-out text", 6)
    assert repeats.startswith("greedy: rep-4 is 80.0 %") and "--set dry_multiplier=0.8" in repeats
    assert "--strategy sample" in alike
    assert "50.0 % stand verbatim" in copies and "dropout" in copies
    (one,) = advise({"preset": real._replace(self_bleu=90.0), "held-out text": real}, "held-out text", 6)
    assert "--temperature" in one
