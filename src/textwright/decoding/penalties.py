"""Processors that look back: at the text, at the source, at how long the text is by now.

Each is a function (logits (rows, vocab) float32, Rows) -> logits; a row whose setting is off comes out as it went in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textwright.decoding.rows import BANNED, Processor, Rows
from textwright.errors import ConfigError

LONGEST = 50  # repeated tokens after which DRY's penalty grows no further


def repetition_penalty(logits: Tensor, rows: Rows) -> Tensor:
    """Divide positive logits of tokens in the text by θ, multiply negative ones (Keskar et al. 2019, sec. 4.1)."""
    penalty = rows.setting("repetition_penalty").float()
    seen = counts(rows, logits.shape[1], include_prompt=True) > 0
    penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, penalised, logits)


def presence_and_frequency(logits: Tensor, rows: Rows) -> Tensor:
    """Subtract presence once and frequency for every time a token was written; the prompt does not count."""
    written = counts(rows, logits.shape[1], include_prompt=False)
    presence = rows.setting("presence_penalty").float() * (written > 0)
    return logits - presence - rows.setting("frequency_penalty").float() * written


def counts(rows: Rows, vocab: int, *, include_prompt: bool) -> Tensor:
    """(rows, vocab): how often each token stands in the text, or in what was written after the prompt; of rows with a
    `penalty_window`, among so many last tokens."""
    counted = _inside(rows, "penalty_window")
    if not include_prompt:
        counted &= torch.arange(rows.tokens.shape[1], device=rows.tokens.device) >= rows.prompts[:, None]
    zeros = torch.zeros(rows.tokens.shape[0], vocab, device=rows.tokens.device)
    return zeros.scatter_add(1, rows.tokens, counted.float())


def _inside(rows: Rows, window: str) -> Tensor:
    """(rows, room) bool: the places of the text, of rows with a window the last ones."""
    place = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    size, lengths = rows.setting(window).long(), rows.lengths[:, None]
    return (place < lengths) & ((size == 0) | (place >= lengths - size))


def dry(breakers: Tensor) -> Processor:
    """Do not repeat yourself: penalise tokens that would go on as an earlier passage did.

    A token that followed an earlier occurrence of the last n tokens of the text loses multiplier · base^(n - allowed),
    if n reaches the allowed length (p-e-w 2024, github.com/oobabooga/text-generation-webui/pull/5677).

    Args:
        breakers: (sets, vocab) bool, the tokens over which no match goes; a row's set is `Rows.steering`.
    """

    def process(logits: Tensor, rows: Rows) -> Tensor:
        multiplier, base = (rows.setting(f"dry_{name}").float() for name in ("multiplier", "base"))
        matched = _matches(rows, breakers[rows.steering].gather(1, rows.tokens))
        allowed = rows.setting("dry_allowed")
        penalty = multiplier * base ** (matched - allowed).float()
        penalty = torch.where(matched >= allowed, penalty, 0.0)
        # What stands after place i is the candidate that place i speaks against.
        worst = torch.zeros_like(logits).scatter_reduce(1, rows.tokens[:, 1:], penalty[:, :-1], "amax")
        return logits - worst

    return process


def _matches(rows: Rows, breaking: Tensor) -> Tensor:
    """(rows, room): how many tokens up to and with this place equal the last ones of the text; 0 for its last place."""
    tokens, newest = rows.tokens, rows.lengths[:, None] - 1
    place = torch.arange(tokens.shape[1], device=tokens.device)
    inside = _inside(rows, "dry_window")
    going = inside & (place < newest)
    matched = torch.zeros_like(tokens)
    for back in range(LONGEST):
        behind, end = (place - back).clamp(min=0).expand_as(tokens), (newest - back).clamp(min=0)
        same = tokens.gather(1, behind) == tokens.gather(1, end)
        going = going & same & (place >= back) & inside.gather(1, behind) & ~breaking.gather(1, end)
        if not bool(going.any()):
            break
        matched += going
    return matched


def no_repeat_ngram(exempt: Tensor) -> Processor:
    """Ban tokens that would complete an n-gram that already stands in the text (Paulus et al. 2017, sec. 2.5).

    Args:
        exempt: (sets, vocab) bool, tokens whose n-grams may come again; a row's set is `Rows.steering`.
    """

    def process(logits: Tensor, rows: Rows) -> Tensor:
        return _without(logits, rows, "no_repeat_ngram", rows.tokens, rows.lengths, exempt)

    return process


def no_repeat_source_ngram(exempt: Tensor) -> Processor:
    """Ban tokens that would complete an n-gram of the source; for models whose source has the same ids."""

    def process(logits: Tensor, rows: Rows) -> Tensor:
        return _without(logits, rows, "no_repeat_source_ngram", rows.source, rows.source_texts, exempt)

    return process


def _without(logits: Tensor, rows: Rows, setting: str, texts: Tensor, lengths: Tensor, exempt: Tensor) -> Tensor:
    sizes = rows.setting(setting).long()
    for n in set(sizes.flatten().tolist()) - {0}:
        completing = _completing(rows, n, texts, lengths, exempt, logits.shape[1])
        logits = logits.masked_fill(completing & (sizes == n), BANNED)
    return logits


def _completing(rows: Rows, n: int, texts: Tensor, lengths: Tensor, exempt: Tensor, vocab: int) -> Tensor:
    """(rows, vocab) bool: after the last n - 1 tokens of the row this token would make an n-gram of its text in
    `texts` (rows, room), of these lengths."""
    banned = torch.zeros(len(rows.lengths), vocab, dtype=torch.bool, device=texts.device)
    if texts.shape[1] < n or rows.tokens.shape[1] < n - 1:
        return banned
    grams = texts.unfold(1, n, 1)  # (rows, windows, n)
    tail_at = rows.lengths[:, None] - (n - 1) + torch.arange(n - 1, device=texts.device)
    tail = rows.tokens.gather(1, tail_at.clamp(min=0))
    ends = torch.arange(n, texts.shape[1] + 1, device=texts.device)
    # A window counts when it lies inside the text; a text shorter than n - 1 has no tail to compare.
    repeats = (grams[..., :-1] == tail[:, None]).all(-1) & (ends <= lengths[:, None])
    repeats &= (rows.lengths >= n - 1)[:, None]
    repeats &= ~exempt[rows.steering].gather(1, texts).unfold(1, n, 1).any(-1)
    # Bytes: on a GPU there is no maximum of truth values.
    return banned.byte().scatter_reduce(1, grams[..., -1], repeats.byte(), "amax").bool()


def before_minimum(end: int) -> Processor:
    """Ban the end until a row has its minimum of new tokens."""

    def process(logits: Tensor, rows: Rows) -> Tensor:
        early = rows.written < rows.limits[:, 0]
        return torch.where(_only(end, logits) & early[:, None], BANNED, logits)

    return process


def end_growth(end: int | None) -> Processor:
    """Raise the logit of the end by |logit| · (factor^n - 1), n tokens after the given length.

    Raises:
        ConfigError: no token ends this model's texts.
    """
    if end is None:
        raise ConfigError("no token ends this model's texts: leave out end_growth")

    def process(logits: Tensor, rows: Rows) -> Tensor:
        late = (rows.written[:, None] - rows.setting("end_growth_after")).clamp(min=0)
        growth = (rows.setting("end_growth") ** late - 1).float().clamp(max=1e9)
        raised = logits + torch.where(logits.isfinite(), logits.abs(), 0.0) * growth
        return torch.where(_only(end, logits), raised, logits)

    return process


def _only(token: int, logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == token
