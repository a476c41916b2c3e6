"""BLEU, chrF and TER against sacrebleu's own figures; tokenizers by language."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
import sacrebleu.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from textwright.errors import ConfigError, MissingExtraError
from textwright.evaluating.chrf import ChrF
from textwright.evaluating.languages import guess_language, tokenizer_for
from textwright.evaluating.translation import BLEU, TER

words = st.sampled_from(["a", "b", "c", "Dog", "dog,", "(e)", "3.5", "&amp;", "x-y", "好的", "é!"])
sentences = st.lists(words, max_size=9).map(" ".join)
items = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5)
few = settings(max_examples=15, deadline=None)


def split(data: list[tuple[str, list[str]]]) -> tuple[list[str], list[list[str]]]:
    return [text for text, _ in data], [several for _, several in data]


def theirs(scorer: Any, hypotheses: list[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """sacrebleu's figure and signature; it wants the references by number first, then by item."""
    most = max(map(len, references))
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    return scorer.corpus_score(hypotheses, streams).score, scorer.get_signature().format()


@pytest.mark.parametrize(
    ("tokenizer", "lowercase"),
    [("13a", False), ("13a", True), ("zh", False), ("char", False), ("intl", True), ("none", False)],
)
@few
@given(data=items)
def test_bleu_is_sacrebleus(tokenizer: str, lowercase: bool, data: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = split(data)
    assume(any(hypotheses))  # where nothing was said to nothing, we say 100
    ours = BLEU(tokenizer=tokenizer, lowercase=lowercase).corpus(hypotheses, references)
    scorer = sacrebleu.metrics.BLEU(
        tokenize=tokenizer, lowercase=lowercase, effective_order="eff:yes" in ours.signature, force=True
    )
    value, signature = theirs(scorer, hypotheses, references)
    assert ours.value == pytest.approx(value, rel=1e-12)
    assert ours.signature == signature
    streams = [[several[0] for several in references]]
    oracle = scorer.corpus_score(hypotheses, streams)
    alone = BLEU(tokenizer=tokenizer, lowercase=lowercase).corpus(hypotheses, [several[:1] for several in references])
    assert alone.extras["brevity_penalty"] == pytest.approx(oracle.bp)
    assert [alone.extras[f"precision_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(oracle.precisions)
    assert (alone.extras["tokens"], alone.extras["reference_tokens"]) == (oracle.sys_len, oracle.ref_len)


@pytest.mark.parametrize(("plus", "lowercase"), [(False, False), (False, True), (True, False)])
@few
@given(data=items)
def test_chrf_is_sacrebleus(plus: bool, lowercase: bool, data: list[tuple[str, list[str]]]) -> None:
    assume(all(text or all(several) for text, several in data))  # where nothing was said to nothing, we say 100
    hypotheses, references = split(data)
    ours = ChrF(plus=plus, lowercase=lowercase).corpus(hypotheses, references)
    scorer = sacrebleu.metrics.CHRF(word_order=2 if plus else 0, lowercase=lowercase)
    value, signature = theirs(scorer, hypotheses, references)
    assert ours.value == pytest.approx(value, rel=1e-12)
    assert ours.signature == signature


@pytest.mark.parametrize(
    ("language", "asian", "lowercase"), [("en", False, False), ("en", False, True), ("zh", True, True)]
)
@few
@given(data=items)
def test_ter_is_sacrebleus(language: str, asian: bool, lowercase: bool, data: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = split(data)
    ours = TER(language, lowercase=lowercase).corpus(hypotheses, references)
    scorer = sacrebleu.metrics.TER(normalized=asian, asian_support=asian, case_sensitive=not lowercase)
    value, signature = theirs(scorer, hypotheses, references)
    assert ours.value == pytest.approx(value, rel=1e-12)
    assert ours.signature == signature


def test_short_references_are_scored_by_the_orders_they_have() -> None:
    """Plain BLEU would say 0; sacrebleu with effective order says the same as we do."""
    score = BLEU("en").corpus(["good dog", "yes"], [["good dog"], ["yes"]])
    assert score.value == 100 and "eff:yes" in score.signature
    worse = BLEU("en").corpus(["good cat", "yes"], [["good dog"], ["yes"]])
    assert 0 < worse.value < 100
    one_long = BLEU("en").corpus(["good dog", "yes we can do"], [["good dog"], ["yes we can do"]])
    assert one_long.value == 100 and "eff:no" in one_long.signature


def test_one_short_among_several_references_is_enough_for_a_perfect_score() -> None:
    assert BLEU("en").corpus(["yes"], [["yes", "yes of course I do"]]).value == 100


def test_languages_without_spaces_get_partial_credit() -> None:
    pairs = {"zh": ("我喜欢红色的苹果", "我喜欢绿色的苹果"), "ja": ("私はりんごが好き", "私はみかんが好き")}
    pairs |= {"th": ("ฉันชอบแมวดำ", "ฉันชอบแมวขาว"), "km": ("ខ្ញុំចូលចិត្តឆ្មា", "ខ្ញុំចូលចិត្តឆ្កែ")}
    for language, (hypothesis, reference) in pairs.items():
        assert 5 < BLEU(language).corpus([hypothesis], [[reference]]).value < 95, language
        assert 5 < TER(language).corpus([hypothesis], [[reference]]).value < 95, language


def test_ter_by_character_says_so() -> None:
    score = TER("ja").corpus(["ねこがいる"], [["いぬがいる"]])
    assert score.value == pytest.approx(40)  # two of five
    assert "tok:char" in score.signature


def test_tokenizers_by_language(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = ["zh", "zh-CN", "zh_Hant", "yue", "th", "my", "bo", "en", "pt-BR", "DE", "ar", "vi"]
    assert [tokenizer_for(code) for code in codes] == ["zh"] * 4 + ["char"] * 3 + ["13a"] * 5
    monkeypatch.setattr("textwright.evaluating.languages.find_spec", lambda module: None)
    assert [tokenizer_for("ja"), tokenizer_for("ko")] == ["char", "13a"]
    with pytest.raises(ConfigError, match=r"sacrebleu\[ja\]"):
        BLEU(tokenizer="ja-mecab")
    monkeypatch.setattr("textwright.evaluating.languages.find_spec", lambda module: module)
    assert [tokenizer_for("ja"), tokenizer_for("ko")] == ["ja-mecab", "ko-mecab"]


def test_guesses_go_by_script() -> None:
    examples = {
        "zh": ["今天天气很好。", "我用 Python 写程序", "日本の商店在上海有很多分店和办事处"],
        "ja": ["今日は天気がいい。", "カタカナ"],
        "ko": ["안녕하세요 world"],
        "th": ["สวัสดี"],
        "en": ["hello", "Привет", "مرحبا", "", "123 😀", "The word 猫 means cat"],
    }
    for language, several in examples.items():
        assert [guess_language([text]) for text in several] == [language] * len(several)
    assert guess_language(["猫", "ねこです"]) == "ja"
    assert guess_language([]) == "en"


@pytest.mark.parametrize(("code", "hint"), [("eng", "'en'"), ("xx", "Did you mean"), ("", "Known"), ("cn", "Did you")])
def test_unknown_languages_are_refused_with_a_hint(code: str, hint: str) -> None:
    for metric in (BLEU, TER):
        with pytest.raises(ConfigError, match=rf"(?s){hint}.*chrF needs no language"):
            metric(code)


def test_bleu_wants_a_language_or_a_tokenizer() -> None:
    for wrong in ({}, {"language": "en", "tokenizer": "13a"}):
        with pytest.raises(ConfigError, match="one of them"):
            BLEU(**wrong)
    with pytest.raises(ConfigError, match="Did you mean '13a'"):
        BLEU(tokenizer="13")


@pytest.mark.parametrize("make", [lambda: BLEU("en"), ChrF, lambda: TER("en")])
def test_without_sacrebleu_the_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingExtraError, match=r"textwright\[translate\]"):
        make()
