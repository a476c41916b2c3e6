"""What every metric promises: equal texts are perfect, sums are enough, order is nothing, bad input is explained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from textwright.errors import DataError
from textwright.evaluating.answers import AnswerF1, ExactMatch
from textwright.evaluating.chrf import ChrF
from textwright.evaluating.edits import ErrorRate, ExactStrings
from textwright.evaluating.scores import Metric, Score
from textwright.evaluating.summaries import Rouge
from textwright.evaluating.translation import BLEU, TER

METRICS: list[Metric] = [
    BLEU("en"),
    BLEU("th", lowercase=True),
    BLEU(tokenizer="none"),
    ChrF(),
    ChrF(plus=True, lowercase=True),
    TER("zh"),
    TER("ja", lowercase=False),
    Rouge("1"),
    Rouge("2"),
    Rouge("L"),
    ExactMatch(),
    AnswerF1(),
    ErrorRate("word"),
    ErrorRate("phoneme"),
    ExactStrings(),
]
TEXTS = {
    "en": "The quick brown fox doesn't jump over the lazy dog.",
    "zh": "床前明月光，疑是地上霜。",
    "ja": "吾輩は猫である。名前はまだ無い。",
    "th": "ที่นี่มีน้ำ",
    "ru": "Не имей сто рублей, а имей сто друзей!",
    "ar": "العلم نور",
    "hi": "सत्यमेव जयते",
    "emoji": "😀👍🏽 👩‍👩‍👧 ❤️",
    "letter": "a",
    "article": "the",
    "han": "好",
    "signs": "?!... —",
    "space": " \n",
    "empty": "",
}


def name_of(metric: Metric) -> str:
    return str(metric) if isinstance(metric, BLEU | ChrF | TER) else metric.name


each_metric = pytest.mark.parametrize("metric", METRICS, ids=name_of)
texts = st.one_of(
    st.lists(st.sampled_from(["a", "the", "cat", "sat", "Mat.", "(x)", "don't", "2,5"]), max_size=7).map(" ".join),
    st.text("好吗你a。é ", max_size=8),
    st.sampled_from(list(TEXTS.values())),
)
items = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5)
few = settings(max_examples=6, deadline=None)


def best(metric: Metric) -> float:
    return 100.0 if metric.higher_is_better else 0.0


@each_metric
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_equal_texts_are_perfect(metric: Metric, text: str) -> None:
    assert metric.corpus([text], [[text]]).value == best(metric)
    assert metric.corpus([text] * 3, [[text]] * 3).value == best(metric)


@each_metric
@few
@given(data=items, place=st.integers(0, 2))
def test_texts_equal_to_any_reference_are_perfect(
    metric: Metric, data: list[tuple[str, list[str]]], place: int
) -> None:
    references = [several for _, several in data]
    hypotheses = [several[place % len(several)] for several in references]
    assert metric.corpus(hypotheses, references).value == pytest.approx(best(metric), abs=1e-9)


@each_metric
@few
@given(data=items, draws=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_sums_are_enough(metric: Metric, data: list[tuple[str, list[str]]], draws: list[int]) -> None:
    """Of all items, of any resample, in any order, and of many at once."""
    hypotheses, references = [text for text, _ in data], [several for _, several in data]
    statistics = metric.statistics(hypotheses, references)
    assert statistics.shape[0] == len(data) and statistics.dtype == torch.float64
    drawn = [draw % len(data) for draw in draws]
    resampled = metric.corpus([hypotheses[i] for i in drawn], [references[i] for i in drawn])
    whole = metric.corpus(hypotheses, references)
    turned = metric.corpus(hypotheses[::-1], references[::-1])
    several = metric.aggregate(torch.stack([statistics.sum(0), statistics[drawn].sum(0)]))
    assert several.tolist() == pytest.approx([whole.value, resampled.value], rel=1e-12)
    assert turned.value == pytest.approx(whole.value, rel=1e-12)
    assert turned.signature == whole.signature


@each_metric
@few
@given(data=items)
def test_figures_stay_in_their_range(metric: Metric, data: list[tuple[str, list[str]]]) -> None:
    score = metric.corpus([text for text, _ in data], [several for _, several in data])
    assert 0 <= score.value <= (100 + 1e-9 if metric.higher_is_better else float("inf"))
    assert all(value >= 0 for value in score.extras.values())


@each_metric
def test_saying_nothing_earns_nothing(metric: Metric) -> None:
    value = metric.corpus(["", ""], [["some words stand here"], ["好好学习"]]).value
    assert value == (0 if metric.higher_is_better else 100)


@each_metric
def test_scores_are_plain_data(metric: Metric) -> None:
    score = metric.corpus(["a cat"], [["the cat"]])
    assert Score.parse(score.dump()) == score
    assert "version:" in score.signature and "nrefs:1" in score.signature
    assert score.name == metric.name and score.unit == "percent"


@each_metric
def test_one_number_of_references_or_several(metric: Metric) -> None:
    assert "nrefs:2" in metric.corpus(["a"], [["a", "b"]]).signature
    assert "nrefs:var" in metric.corpus(["a", "b"], [["a", "b"], ["b"]]).signature


@each_metric
def test_bad_input_is_explained(metric: Metric) -> None:
    with pytest.raises(DataError, match=r"got 1 for 2 hypotheses.*references\[i\] holds"):
        metric.corpus(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="empty list of hypotheses"):
        metric.corpus([], [])
    with pytest.raises(DataError, match="item 1 has no reference"):
        metric.corpus(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match=r"references\[0\] is a text.*\[\[text\] for text in references\]"):
        metric.corpus(["a", "b"], ["a", "b"])
    with pytest.raises(DataError, match="put it into a list"):
        metric.corpus("a", [["a"]])


@few
@given(text=texts, other=texts)
def test_a_second_reference_never_hurts_metrics_of_pairs(text: str, other: str) -> None:
    assume(text.strip() or other.strip())
    for metric in (ChrF(), Rouge("1"), Rouge("L"), AnswerF1(), ExactMatch(), ExactStrings()):
        alone = metric.corpus(["the cat sat"], [[text]]).value
        assert metric.corpus(["the cat sat"], [[text, other]]).value >= alone
