"""Which metrics a task is judged by. The first one is the task's own: what validation and comparisons look at."""

from __future__ import annotations

from collections.abc import Sequence

from textwright.evaluating.answers import AnswerF1, ExactMatch
from textwright.evaluating.chrf import ChrF
from textwright.evaluating.dialogue import Distinct, MeanLength, ResponseMetric
from textwright.evaluating.edits import ErrorRate, ExactStrings
from textwright.evaluating.scores import Metric, Score
from textwright.evaluating.summaries import Rouge
from textwright.evaluating.translation import BLEU, TER
from textwright.text.pairs import Pair

Judges = list[Metric | ResponseMetric]


def judges(task: str, language: str, *, lowercase: bool = False) -> Judges:
    """The metrics of a task.

    Args:
        task: translate, summarize, answer, chat or convert.
        language: of the targets, for the tokens of BLEU and TER.
        lowercase: translations are compared without regard to case.
    """
    made: dict[str, Judges] = {
        "summarize": [Rouge("L"), Rouge("1"), Rouge("2")],
        "answer": [AnswerF1(), ExactMatch()],
        "chat": [Rouge("1"), Distinct(1), Distinct(2), MeanLength()],
        "convert": [ExactStrings(), ErrorRate("phoneme")],
    }
    if task != "translate":
        return made[task]
    return [BLEU(language, lowercase=lowercase), ChrF(lowercase=lowercase), TER(language)]


def judge(metrics: Judges, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Score]:
    """The figure of every metric."""
    return [
        metric.corpus(hypotheses) if isinstance(metric, ResponseMetric) else metric.corpus(hypotheses, references)
        for metric in metrics
    ]


def references_of(pairs: Sequence[Pair]) -> list[list[str]]:
    """All acceptable targets of every pair."""
    return [[pair.target, *pair.others] for pair in pairs]


def items(task: str, pairs: Sequence[Pair]) -> list[Pair]:
    """What is judged one by one: the pairs; of a conversion the different sources, where any of their targets is right,
    because a word may be pronounced in two ways."""
    if task != "convert":
        return list(pairs)
    merged: dict[str, Pair] = {}
    for pair in pairs:
        first = merged.setdefault(pair.source, pair)
        others = dict.fromkeys((*first.others, pair.target, *pair.others))
        merged[pair.source] = first._replace(others=tuple(other for other in others if other != first.target))
    return list(merged.values())
