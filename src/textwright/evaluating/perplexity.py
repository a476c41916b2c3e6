"""How well a model predicts a text, in units that survive a change of tokenizer.

Sums are streamed, so memory does not depend on the size of the text. What a token may look back on is the context
policy, and it is part of the result: recurrent models carry their state through each document, windowed models see at
least window - stride tokens of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import torch
from pydantic import ConfigDict

from textwright.config import Config
from textwright.errors import ConfigError
from textwright.models.base import LanguageModel, renewed
from textwright.progress import Told, untold
from textwright.text.batching import IGNORE, Batch, Cursor, Streams, strided
from textwright.text.corpus import Corpus, Facts
from textwright.training.hardware import autocast
from textwright.training.objective import Objective

BATCH_TOKENS = 8192  # tokens scored at once
ROWS = 8  # stretches a text is read in at once when a state is carried: each begins without context
TIME = 128  # tokens a carried state is moved by at once
WIDE = 1024  # tokens of the widest window that a text is scored in, also by models that could see more


class Panel(Config):
    """Perplexities of one text.

    Attributes:
        tokens: targets scored: every token of the text, ends of documents included.
        loss: nats a token.
        token_perplexity: exp(loss); comparable only between models with the same tokens.
        word_perplexity: exp(summed loss ÷ words); a word is what stands between spaces, a character in scripts
            without them, or a line end, which is the convention behind word-level WikiText figures.
        bits_per_byte, bits_per_character: summed loss ÷ size of the raw text, in bits.
        unknown: share of tokens that stand for something outside the vocabulary. Where it is not 0 and a token stands
            for any unknown word, the figures above flatter the model: it need not spell the word.
        context: the context policy.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # a perplexity may pass the largest float

    tokens: int
    loss: float
    token_perplexity: float
    word_perplexity: float
    bits_per_byte: float
    bits_per_character: float
    unknown: float
    context: str


def panel(
    model: LanguageModel, corpus: Corpus, first: int, *, stride: int | None = None, progress: Told = untold
) -> Panel:
    """Measure a model on a whole corpus, in float32.

    Args:
        model: on its device; put into evaluation mode.
        first: the id that stands before a document.
        stride: tokens a window moves by; None: half of it. Recurrent models have none.
        progress: is told how many more tokens are done.
    """
    return panel_of(*score(model, corpus, first, stride=stride, progress=progress), corpus.facts)


def panel_of(total: float, tokens: int, context: str, facts: Facts) -> Panel:
    """From a summed loss in nats over so many targets."""
    return Panel(
        tokens=tokens,
        loss=total / tokens,
        token_perplexity=_exp(total / tokens),
        word_perplexity=_exp(total / max(facts.words, 1)),
        bits_per_byte=total / math.log(2) / max(facts.bytes, 1),
        bits_per_character=total / math.log(2) / max(facts.characters, 1),
        unknown=facts.unknown / tokens,
        context=context,
    )


@torch.no_grad()
def score(
    model: LanguageModel,
    corpus: Corpus,
    first: int,
    *,
    stride: int | None = None,
    precision: str = "float32",
    progress: Told = untold,
) -> tuple[float, int, str]:
    """Summed loss (nats), number of targets, and the context policy in words."""
    model.eval()
    objective = Objective(model)
    batches, context = batches_of(model, corpus, first, stride)
    total, tokens, state = 0.0, 0, None
    for batch in batches:
        batch = batch.to(model.device)
        if batch.fresh is not None:
            state = renewed(model, state, batch.fresh)
        with autocast(model.device, precision):
            _, plain, state = objective(batch, state)
        total += float(plain)
        done = int((batch.targets != IGNORE).sum())
        tokens += done
        progress(done)
    return total, tokens, context


def head(corpus: Corpus, tokens: int) -> Corpus:
    """The first tokens of a corpus, for a quick look; its facts still count the whole."""
    if len(corpus.tokens) <= tokens:
        return corpus
    ends = corpus.ends[corpus.ends < tokens]
    return replace(corpus, tokens=corpus.tokens[:tokens], ends=torch.cat([ends, torch.tensor([tokens])]))


def batches_of(model: LanguageModel, corpus: Corpus, first: int, stride: int | None) -> tuple[Iterator[Batch], str]:
    """What a text is scored in, and the context policy in words."""
    if model.window is None:
        streams = Streams(corpus, max(1, min(ROWS, len(corpus.tokens) // 1000)), TIME, first, None)
        epoch = takewhile(lambda item: item[1].epoch == 0, streams.batches(Cursor()))
        return (batch for batch, _ in epoch), f"carried state, {streams.rows} rows"
    window = min(model.window, WIDE)
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ConfigError(f"expected a stride between 1 and the window of {window}, got {stride}")
    context = f"window {window}, stride {stride}"
    return strided(corpus, window, stride, BATCH_TOKENS, first), context


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
