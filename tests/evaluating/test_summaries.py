"""ROUGE against a naive version of its own, against published examples, and in every script."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.errors import ConfigError
from textwright.evaluating.sequences import common_subsequence
from textwright.evaluating.summaries import Rouge
from textwright.evaluating.words import has_unspaced, tokens, words
from textwright.text.segmenters import count_words

sequences = st.lists(st.sampled_from("abcd"), max_size=80)
ascii_texts = st.lists(st.sampled_from(["The", "cat", "sat.", "don't", "x_y", "--", "3.5%", "mat"]), max_size=12)


def naive_lcs(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def naive_rouge(kind: str, hypothesis: str, reference: str) -> float:
    """The rules of the rouge_score package, written down again."""
    ours, theirs = (re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (hypothesis, reference))
    if kind == "L":
        shared, mine, other = naive_lcs(ours, theirs), len(ours), len(theirs)
    else:
        n = int(kind)
        a, b = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (ours, theirs))
        shared, mine, other = sum(min(a[x], b[x]) for x in a), sum(a.values()), sum(b.values())
    precision, recall = shared / max(mine, 1), shared / max(other, 1)
    return 200 * precision * recall / (precision + recall) if shared else 0.0


def rouge(kind: str, hypothesis: str, *references: str) -> float:
    return Rouge(kind).corpus([hypothesis], [list(references)]).value  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(first=sequences, second=sequences)
def test_subsequences_against_the_table(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == naive_lcs(first, second)


@pytest.mark.parametrize("kind", ["1", "2", "L"])
@settings(max_examples=25, deadline=None)
@given(first=ascii_texts, second=ascii_texts)
def test_english_figures_are_those_of_rouge_score(kind: str, first: list[str], second: list[str]) -> None:
    hypothesis, reference = " ".join(first), " ".join(second)
    if words(hypothesis) != words(reference) and re.search("[A-z]", hypothesis) and re.search("[A-z]", reference):
        assert rouge(kind, hypothesis, reference) == pytest.approx(naive_rouge(kind, hypothesis, reference))


def test_the_example_of_the_rouge_score_package() -> None:
    """From its README: precision 6/8 and 5/8, recall 6/9 and 5/9."""
    reference, hypothesis = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    one, longest = (Rouge(kind).corpus([hypothesis], [[reference]]) for kind in ("1", "L"))
    assert one.value == pytest.approx(70.58823529411765)
    assert one.extras == pytest.approx({"precision": 75.0, "recall": 66.66666666666666})
    assert longest.value == pytest.approx(58.82352941176471)
    assert longest.extras == pytest.approx({"precision": 62.5, "recall": 55.55555555555556})


def test_the_example_of_lin_2004() -> None:
    """Section 3.1: two candidates with the same pairs of words, told apart by their longest common subsequence."""
    reference = "police killed the gunman"
    assert rouge("L", "police kill the gunman", reference) == pytest.approx(75)
    assert rouge("L", "the gunman kill police", reference) == pytest.approx(50)
    assert rouge("2", "police kill the gunman", reference) == rouge("2", "the gunman kill police", reference)


def test_characters_are_the_words_of_chinese() -> None:
    assert rouge("1", "今天天气好", "今天下雨") == pytest.approx(100 * 2 * 2 / (5 + 4))
    assert rouge("L", "今天，天气好！", "今天天气好") == 100
    assert rouge("2", "好", "好") == 100
    assert rouge("2", "好", "坏") == 0


def test_accents_and_other_scripts_survive() -> None:
    assert words("Café NAÏVE İstanbul") == ["café", "naïve", "i̇stanbul"]
    assert words("नमस्ते दुनिया! می‌خواهم") == ["नमस्ते", "दुनिया", "می‌خواهم"]
    assert words("ที่ดี 中文abc日本語") == ["ที่", "ดี", "中", "文", "abc", "日", "本", "語"]
    assert words("a_b—c… 1️⃣ ❤️") == ["a", "b", "c", "1\ufe0f\u20e3"]
    assert rouge("1", "Москва", "Лондон") == 0


def test_signs_alone_are_words() -> None:
    assert words("?! …") == ["?!", "…"] and words("😀") == ["😀"] and words(" ") == []
    assert rouge("1", "😀", "👍") == 0
    assert rouge("1", "!!!", "hello") == 0


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("aB 中。の,ที่\u0301ß"))
def test_tokens_lose_nothing_but_spaces(text: str) -> None:
    assert "".join(tokens(text)) == "".join(text.split())
    assert all(words(text)) and bool(words(text)) == bool(text.strip())


@settings(max_examples=25, deadline=None)
@given(text=st.text("ab 中文。のア"))
def test_tokens_are_those_that_the_panel_counts(text: str) -> None:
    assert len(tokens(text)) == count_words(text)


def test_scripts_without_spaces_are_recognised() -> None:
    assert all(map(has_unspaced, ["中文", "ひらがな", "ภาษาไทย", "ភាសាខ្មែរ", "ລາວ", "မြန်မာ", "1999年", "iPhone手机"]))
    assert not any(map(has_unspaced, ["", "abc", "한국어", "1999", "。", "«да»", "😀"]))


def test_the_best_reference_counts() -> None:
    assert rouge("1", "a cat", "a dog", "a cat") == 100
    score = Rouge("1").corpus(["a b"], [["a b c d", "a"]])
    assert score.value == pytest.approx(200 / 3)
    assert score.extras["recall"] == 50  # of the first of two equally good references


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected ROUGE of kind"):
        Rouge("W")  # type: ignore[arg-type]
