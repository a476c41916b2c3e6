"""Functions that change the next token's logits: (logits (rows, vocab) float32, Rows) -> logits.

Each reads its parameter per row, so requests with different settings share a batch without a loop over rows. A value
that switches a processor off leaves that row's logits untouched. The order below is the order they are applied in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from textwright.decoding.rows import Rows

Processor = Callable[[Tensor, Rows], Tensor]
BANNED = float("-inf")


def repetition_penalty(logits: Tensor, rows: Rows) -> Tensor:
    """Divide positive logits of tokens in the text by θ, multiply negative ones (Keskar et al. 2019, sec. 4.1)."""
    penalty = rows.setting("repetition_penalty").float()
    seen = counts(rows, logits.shape[1], include_prompt=True) > 0
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def presence_and_frequency(logits: Tensor, rows: Rows) -> Tensor:
    """Subtract presence once and frequency for every time a token was written; the prompt does not count."""
    written = counts(rows, logits.shape[1], include_prompt=False)
    presence = rows.setting("presence_penalty").float() * (written > 0)
    return logits - presence - rows.setting("frequency_penalty").float() * written


def no_repeat_ngram(logits: Tensor, rows: Rows) -> Tensor:
    """Ban tokens that would complete an n-gram that already stands in the text (Paulus et al. 2017, sec. 2.5)."""
    sizes = rows.setting("no_repeat_ngram").long()
    for n in set(sizes.flatten().tolist()):
        if n > 0:
            logits = logits.masked_fill(_completing(rows, n, logits.shape[1]) & (sizes == n), BANNED)
    return logits


def temperature(logits: Tensor, rows: Rows) -> Tensor:
    """Divide by the temperature; a temperature of 0 leaves the order, which is all a greedy row needs."""
    value = rows.setting("temperature").float()
    return logits / torch.where(value > 1e-6, value, 1.0)


def top_k(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the k largest logits; what ties with the last of them stays (Fan et al. 2018)."""
    k = rows.setting("top_k").long()
    k = torch.where(k > 0, k, logits.shape[1]).clamp(max=logits.shape[1])
    limited = torch.where(k < logits.shape[1], k, 1)
    best = logits.topk(int(limited.max()), -1).values
    smallest = torch.where(k < logits.shape[1], best.gather(1, limited - 1), BANNED)
    return logits.masked_fill(logits < smallest, BANNED)


def top_p(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the fewest tokens, most likely first, whose probabilities sum to at least p (Holtzman et al. 2020)."""
    p = rows.setting("top_p")
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.double().softmax(-1)
    before = probability.cumsum(-1) - probability  # mass of the tokens in front: the first is always kept
    dropped = (before >= p) & (p < 1)
    return logits.masked_fill(dropped.scatter(1, order, dropped), BANNED)


def min_p(logits: Tensor, rows: Rows) -> Tensor:
    """Keep tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""
    threshold = logits.amax(-1, keepdim=True) + rows.setting("min_p").float().log()
    return logits.masked_fill(logits < threshold, BANNED)


def before_minimum(end: int) -> Processor:
    """Ban the end until a row has its minimum of new tokens."""

    def process(logits: Tensor, rows: Rows) -> Tensor:
        early = (rows.written < rows.limits[:, 0])[:, None]
        ended = torch.arange(logits.shape[1], device=logits.device) == end
        return logits.masked_fill(early & ended, BANNED)

    return process


def ban(tokens: Tensor) -> Processor:
    """Ban tokens (n,) from every text."""
    return lambda logits, rows: logits.index_fill(1, tokens, BANNED)


# name of the setting that switches it on -> (value that switches it off, processor)
SWITCHES: dict[str, tuple[float, Processor]] = {
    "repetition_penalty": (1.0, repetition_penalty),
    "presence_penalty": (0.0, presence_and_frequency),
    "frequency_penalty": (0.0, presence_and_frequency),
    "no_repeat_ngram": (0.0, no_repeat_ngram),
    "temperature": (1.0, temperature),
    "top_k": (0.0, top_k),
    "top_p": (1.0, top_p),
    "min_p": (0.0, min_p),
}


def active(rows: Rows, end: int | None, banned: Sequence[int] = ()) -> list[Processor]:
    """The processors that at least one row needs, in order. Changes only when rows join or leave."""
    chosen = [process for name, (off, process) in SWITCHES.items() if bool((rows.setting(name) != off).any())]
    processors = list(dict.fromkeys(chosen))
    if end is not None and bool((rows.limits[:, 0] > 0).any()):
        processors.insert(0, before_minimum(end))
    if banned:
        processors.insert(0, ban(torch.tensor(banned, device=rows.tokens.device)))
    return processors


def counts(rows: Rows, vocab: int, *, include_prompt: bool) -> Tensor:
    """(rows, vocab): how often each token stands in the text, or in what was written after the prompt."""
    place = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
    counted = place < rows.lengths[:, None]
    if not include_prompt:
        counted &= place >= rows.prompts[:, None]
    zeros = torch.zeros(rows.tokens.shape[0], vocab, device=rows.tokens.device)
    return zeros.scatter_add(1, rows.tokens, counted.float())


def _completing(rows: Rows, n: int, vocab: int) -> Tensor:
    """(rows, vocab) bool: the token would repeat an n-gram of the row's text."""
    banned = torch.zeros(rows.tokens.shape[0], vocab, dtype=torch.bool, device=rows.tokens.device)
    if rows.tokens.shape[1] < n:
        return banned
    grams = rows.tokens.unfold(1, n, 1)  # (rows, windows, n)
    tail_at = rows.lengths[:, None] - (n - 1) + torch.arange(n - 1, device=rows.tokens.device)
    tail = rows.tokens.gather(1, tail_at.clamp(min=0))
    ends = torch.arange(n, rows.tokens.shape[1] + 1, device=rows.tokens.device)
    # A window counts when it lies inside the text; a text shorter than n - 1 has no window, so its tail never matches.
    repeats = (grams[..., :-1] == tail[:, None]).all(-1) & (ends <= rows.lengths[:, None])
    return banned.scatter_reduce(1, grams[..., -1], repeats, "amax")
