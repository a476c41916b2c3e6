"""Baselines that need no model."""

from __future__ import annotations

from textwright.evaluating.baselines import copied, leading, nearest


def test_leading_sentences_in_two_scripts() -> None:
    sentences = {
        "One. Two.": "One.",
        "Mr Smith said “no.” Then he left.": "Mr Smith said “no.”",
        "我们提出了一种方法。实验表明它有效。": "我们提出了一种方法。",
        "No end": "No end",
        "3.5 is a number. Yes.": "3.5 is a number.",
    }
    assert leading(list(sentences)) == list(sentences.values())


def test_the_nearest_known_source_answers() -> None:
    known = {
        "the red house by the sea": "house",
        "the blue car on the road": "car",
        "a dog sleeps on the road": "dog",
        "一只狗在睡觉": "狗",
        "一辆蓝色的车": "车",
    }
    sources, targets = list(known), list(known.values())
    assert nearest(sources, targets, sources) == targets  # every source is most similar to itself
    asked = ["my house", "blue cars and a blue car", "狗", "nothing in common"]
    assert nearest(sources, targets, asked) == ["house", "car", "狗", "house"]


def test_copying() -> None:
    assert copied(["a", "b"]) == ["a", "b"]
