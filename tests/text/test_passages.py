"""Passages of a corpus: where they begin, that they stay apart, and the whole text as a stream."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textwright.evaluating.degeneration import units
from textwright.text import passages as module
from textwright.text.corpus import Corpus, write
from textwright.text.passages import passages, text_of
from textwright.text.sources import Piece
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train

LINES = "".join(f"line {number} says that all is well and goes on\n" for number in range(200))


def made(folder: Path, documents: list[str], kind: str = "char") -> tuple[Corpus, Tokenizer]:
    tokenizer = train(TokenizerConfig(kind=kind), lambda: iter(documents))
    return write(folder, (Piece(text, True) for text in documents), tokenizer), tokenizer


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "word"])
def test_passages_begin_at_lines_and_stay_apart(tmp_path: Path, kind: str) -> None:
    corpus, tokenizer = made(tmp_path / "corpus", [LINES], kind)
    found = passages(corpus, tokenizer, 5, 200, 4, units)
    assert len(found) == 5
    assert len({passage.prompt for passage in found}) == 5
    places = []
    for prompt, rest in found:
        assert prompt.startswith("line ") and len(units(prompt)) == 4
        assert len(tokenizer.encode(rest)) <= 200
        assert " ".join(units(prompt + " " + rest)) in " ".join(units(LINES))
        places.append(LINES.index(prompt))
    assert places == sorted(places)
    assert all(b - a >= 200 for a, b in pairwise(places))


def test_passages_are_documents_where_there_are_enough(tmp_path: Path) -> None:
    documents = [f"poem {number} is a rather short one" for number in range(40)]
    corpus, tokenizer = made(tmp_path / "corpus", documents)
    found = passages(corpus, tokenizer, 10, 50, 4, units)
    assert [prompt + rest for prompt, rest in found] == documents[::4]
    assert found[1].prompt == "poem 4 is"  # half of its seven words
    assert passages(corpus, tokenizer, 10, 18, 4, units)[1].rest == " a rather short on"


def test_a_short_text_gives_fewer(tmp_path: Path) -> None:
    corpus, tokenizer = made(tmp_path / "corpus", [LINES[:400]])
    assert len(passages(corpus, tokenizer, 20, 100, 4, units)) == 2
    assert len(passages(corpus, tokenizer, 20, 1000, 4, units)) == 1
    empty, _ = made(tmp_path / "empty", [])
    assert passages(empty, tokenizer, 20, 100, 4, units) == []


def test_chinese_prompts_are_characters(tmp_path: Path) -> None:
    corpus, tokenizer = made(tmp_path / "corpus", ["床前明月光，疑是地上霜。" * 30])
    found = passages(corpus, tokenizer, 3, 20, 4, units)
    assert all(len(prompt) == 4 and len(rest) == 20 for prompt, rest in found)


def test_the_text_of_a_corpus_comes_back_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 7)
    corpus, tokenizer = made(tmp_path / "corpus", ["床前明月光 and more", "第二"], "byte")
    assert "".join(text_of(corpus, tokenizer)) == "床前明月光 and more\n第二\n"


@given(st.text("ab 中。\n", max_size=40))
def test_prompt_and_rest_are_the_text(text: str) -> None:
    prompt, rest = module._passage(text, 4, units)
    assert prompt + rest == text.lstrip()
    assert len(units(prompt)) == min(4, len(units(text)) // 2)
