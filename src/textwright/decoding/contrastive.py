"""Contrastive search (Su et al. 2022, "A Contrastive Framework for Neural Text Generation", eq. 5).

    next = argmax over the k likeliest v of (1 - α) p(v) - α max_j cos(h_v, h_j)

h_v is the hidden state that v would give, h_j those of the text so far: a token that says the same again looks like
what was said. Drives any model through `hidden` and `select`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from textwright.config import Config
from textwright.decoding.engine import check_requests, check_window, checked, finished, padded, refuse, write
from textwright.decoding.processors import ORDER, active
from textwright.decoding.rows import BANNED, Event, Request, Rows, begin_rows
from textwright.decoding.rules import Rules
from textwright.errors import TextwrightError
from textwright.models.base import Hidden, LanguageModel, Source
from textwright.models.state import State


class Contrastive(Config):
    """k `candidates`, and the weight α of the penalty, `contrast`; 0 is greedy."""

    candidates: int = Field(4, ge=2)
    contrast: float = Field(0.6, ge=0, le=1)


@dataclass(frozen=True)
class Searched(State):
    """All that moves with a row: the search, the model's memory, the hidden states of the text (R, room, W) of length
    1 (zero behind the text), and the logits (R, vocab) of the token to be chosen next."""

    rows: Rows
    memory: State
    past: Tensor
    logits: Tensor


@torch.no_grad()
def contrastive_search(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    how: Contrastive,
    *,
    banned: Sequence[int] = (),
    order: Sequence[str] = ORDER,
) -> Iterator[Event]:
    """Write all requests together; events number them in their order.

    Raises:
        ConfigError: a text does not fit the model's window, or asks for what cannot be.
    """
    check_requests(model, requests, order)
    check_window(model, requests, "contrastive search", last=0)
    refuse(requests, "contrastive search", ("top_logprobs", "max_seconds", "mirostat", "xtc_probability"))
    rules = Rules(model.head.out_features, model.device)
    rows = rules.place(begin_rows(requests, 0, model.device), requests)
    processors = active(rows, rules, end, banned, order)
    tokens, lengths = padded([request.prompt for request in requests], model.device)
    sources = [request.source for request in requests if request.source is not None]
    begun = model.begin(len(requests), Source(*padded(sources, model.device)) if sources else None)
    hidden, memory = model.hidden(tokens, lengths, begun, None)
    assert memory is not None
    inside = torch.arange(tokens.shape[1], device=lengths.device) < lengths[:, None]
    past = _unit(hidden.values) * inside[..., None]
    now = Searched(rows, memory, past, checked(model.logits(hidden.last(lengths))[:, 0].float()))
    count = min(how.candidates, now.logits.shape[1])
    while len(now.logits):
        logits = now.logits
        for process in processors:
            logits = process(logits, now.rows)
        best = logits.softmax(-1).topk(count, -1)
        if bool((logits.amax(-1) == BANNED).any()):
            raise TextwrightError("every token is banned for at least one text: lower no_repeat_ngram or the minimum")
        each = torch.arange(len(logits), device=logits.device).repeat_interleave(count)
        hidden, memory = model.hidden(best.indices.view(-1, 1), None, now.memory.select(each), None)
        assert memory is not None
        fresh = _unit(hidden.values).view(len(logits), count, -1)
        alike = _likeness(fresh, now.past, now.rows.lengths)
        scores = ((1 - how.contrast) * best.values - how.contrast * alike).masked_fill(best.values == 0, BANNED)
        pick = scores.argmax(-1)
        tokens = best.indices.gather(1, pick[:, None]).squeeze(1)
        logprobs = now.logits.gather(1, tokens[:, None]).squeeze(1) - now.logits.logsumexp(-1)
        kept = torch.arange(len(logits), device=logits.device) * count + pick
        past = _grown(now.past, fresh[torch.arange(len(pick)), pick], now.rows.lengths)
        rows = write(now.rows, tokens, logprobs, rules)
        reasons = finished(rows, tokens, end, rules)
        columns = (rows.request.tolist(), tokens.tolist(), logprobs.tolist(), reasons)
        yield from (Event(*values) for values in zip(*columns, strict=True))
        going = torch.tensor([reason is None for reason in reasons], device=logits.device).nonzero().squeeze(1)
        logits = model.logits(_rows(hidden, kept))[:, 0].float()
        now = Searched(rows, memory.select(kept), past, logits).select(going)
        checked(now.logits)


def _rows(hidden: Hidden, rows: Tensor) -> Hidden:
    copied, ids = (None if leaf is None else leaf[rows] for leaf in (hidden.copied, hidden.ids))
    return Hidden(hidden.values[rows], copied, ids)


def _unit(values: Tensor) -> Tensor:
    return F.normalize(values.float(), dim=-1)


def _likeness(fresh: Tensor, past: Tensor, lengths: Tensor) -> Tensor:
    """(R, k): the largest cosine of each candidate (R, k, W) with the text so far (R, room, W)."""
    cosines = fresh @ past.transpose(1, 2)
    outside = torch.arange(past.shape[1], device=lengths.device) >= lengths[:, None]
    return cosines.masked_fill(outside[:, None], BANNED).amax(-1)


def _grown(past: Tensor, fresh: Tensor, lengths: Tensor) -> Tensor:
    """The hidden states with one more (R, W) at the end of each text."""
    past = past if int(lengths.max()) < past.shape[1] else F.pad(past, (0, 0, 0, past.shape[1] // 2 + 8))
    at = lengths[:, None, None].expand(-1, 1, past.shape[2])
    return past.scatter(1, at, fresh[:, None])
