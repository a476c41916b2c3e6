"""Where a model looked in its source while it wrote, and what the words that it does not know were written for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from textwright.decoding.engine import padded
from textwright.models.base import Source
from textwright.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from textwright.pair_model import PairModel, Written

END = "</s>"  # how the end of a text is shown


class Alignment(NamedTuple):
    """Where the model looked: weights[t][s] is the share of source token s while it chose target token t. The first
    `own` tokens are the source itself, its end included; after them stand its neighbours."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    own: int


def aligned(model: PairModel, source: str, texts: Sequence[Written], replace_unknown: bool) -> list[Written]:
    """The texts that a model with attention wrote for one source with their alignments; where it is asked for, with the
    source word that it looked at in place of every unknown one (Jean et al. 2015)."""
    ids = model.source_ids(source)
    names, own, unknown = model.names(source, ids), model.own(ids), model.tokenizer.unknown
    found = []
    for text, rows in zip(texts, _weights(model, ids, texts), strict=True):
        looked = rows[: len(text.tokens), : len(ids)]
        if replace_unknown and unknown in text.tokens:
            spelled = {
                place: names[int(looked[place, : own - 1].argmax())]
                for place, token in enumerate(text.tokens)
                if token == unknown and own > 1
            }
            text = replace(text, text=model.tokenizer.decode(model.shown(text.tokens), spelled))
        target = tuple(END if t == model.generation.end else model.tokenizer.decode([t]) for t in text.tokens)
        table = tuple(tuple(round(value, 4) for value in row) for row in looked.tolist())
        found.append(replace(text, alignment=Alignment(tuple(names), target, table, own)))
    return found


def source_names(source: Tokenizer, target: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What stands in a source, token by token; beside neighbours it may hold the target's tokens, too."""
    own = {token for token in ids if token < source.size}
    names = {token: END if token == source.end else source.decode([token]) for token in own}
    return [names[token] if token in own else target.decode([token - source.size]) for token in ids]


@torch.no_grad()
def _weights(model: PairModel, ids: Sequence[int], texts: Sequence[Written]) -> Tensor:
    """(texts, time, places)."""
    read = [(*model.generation.start, *text.tokens[:-1]) for text in texts]
    tokens, lengths = padded(read, model.model.device)
    looked = model.model.attention(tokens, lengths, Source(*padded([ids] * len(texts), model.model.device)))
    assert looked is not None  # `write` asks a model that looks
    return looked[:, len(model.generation.start) - 1 :].float()
