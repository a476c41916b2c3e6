"""The panel against sums by hand; context policies; constant memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from textwright.evaluating.perplexity import head, panel, score
from textwright.models import LanguageModel, LSTMConfig, TransformerConfig
from textwright.text.corpus import Corpus, write
from textwright.text.sources import Piece
from textwright.text.tokenizers import TokenizerConfig, train

TEXTS = ["To be, or not to be: that is the question.\nWhether 'tis nobler\n", "床前明月光，疑是地上霜。\n", "x"]


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Corpus, int, int]:
    tokenizer = train(TokenizerConfig(kind="char"), lambda: iter(TEXTS))
    pieces = [Piece(text, True) for text in TEXTS]
    return write(tmp_path / "corpus", pieces, tokenizer), tokenizer.end, tokenizer.size


def models(vocab: int) -> list[LanguageModel]:
    torch.manual_seed(0)
    lstm = LSTMConfig(vocab=vocab, width=16).build()
    transformer = TransformerConfig(vocab=vocab, width=16, heads=2, window=8).build()
    for model in (lstm, transformer):
        torch.nn.init.normal_(model.embed.weight, std=0.5)
    return [lstm, transformer]


def by_hand(model: LanguageModel, corpus: Corpus, end: int, stride: int) -> float:
    """One token at a time, each with its own window as context."""
    model.eval()
    total, start = 0.0, 0
    for stop in corpus.ends.tolist():
        document = corpus.tokens[start:stop].long().tolist()
        inputs = [end, *document[:-1]]
        for place, target in enumerate(document):
            first = 0
            if model.window is not None and place >= model.window:
                turn = (place - model.window) // stride + 1
                first = min(model.window + turn * stride, len(document)) - model.window
            with torch.no_grad():
                logits = model(torch.tensor([inputs[first : place + 1]])).logits[0, -1]
            total -= float(logits.log_softmax(-1)[target])
        start = stop
    return total


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_scores_by_hand(corpus: tuple[Corpus, int, int], stride: int) -> None:
    data, end, vocab = corpus
    for model in models(vocab):
        total, tokens, context = score(model, data, end, stride=stride)
        assert tokens == data.facts.tokens
        assert total == pytest.approx(by_hand(model, data, end, stride), rel=1e-4)
        assert context == (f"window 8, stride {stride}" if model.window else "carried state, 1 rows")


def test_units(corpus: tuple[Corpus, int, int]) -> None:
    """A model that knows nothing: every figure follows from log(vocabulary)."""
    data, end, vocab = corpus
    model = LSTMConfig(vocab=vocab, width=4, tied=False).build()
    torch.nn.init.zeros_(model.head.weight)
    result = panel(model, data, end)
    text = "".join(TEXTS)
    tokens = len(text) + 3
    assert result.tokens == tokens
    assert result.loss == pytest.approx(math.log(vocab))
    assert result.token_perplexity == pytest.approx(vocab)
    assert result.bits_per_byte == pytest.approx(tokens * math.log2(vocab) / len(text.encode()))
    assert result.bits_per_character == pytest.approx(tokens * math.log2(vocab) / len(text))
    words = 13 + 2 + 10 + 2 + 1 + 1  # words and line ends; twelve signs of the poem, two of them punctuation
    assert result.word_perplexity == pytest.approx(math.exp(tokens * math.log(vocab) / data.facts.words), rel=1e-4)
    assert abs(data.facts.words - words) <= 2


def test_a_longer_context_never_changes_the_count(corpus: tuple[Corpus, int, int]) -> None:
    data, end, vocab = corpus
    _, transformer = models(vocab)
    assert {panel(transformer, data, end, stride=s).tokens for s in (1, 2, 5, 8)} == {data.facts.tokens}


def test_head_takes_the_first_tokens(corpus: tuple[Corpus, int, int]) -> None:
    data, end, vocab = corpus
    lstm, _ = models(vocab)
    part = head(data, 70)
    assert len(part.tokens) == 70
    assert part.ends.tolist()[-1] == 70
    assert score(lstm, part, end)[1] == 70
    assert head(data, 10_000) is data


def test_evaluation_puts_the_model_into_evaluation_mode(corpus: tuple[Corpus, int, int]) -> None:
    data, end, vocab = corpus
    model = LSTMConfig(vocab=vocab, width=16, dropout=0.5).build().train()
    assert score(model, data, end) == score(model, data, end)
