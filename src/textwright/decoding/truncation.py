"""Processors that bend a distribution or cut its tail: none of them knows which token is which.

Each is a function (logits (rows, vocab) float32, Rows) -> logits and keeps at least the likeliest token of every row.
A row whose setting is off comes out as it went in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textwright.decoding.combined import NEVER
from textwright.decoding.largest import largest
from textwright.decoding.rows import BANNED, COLD, Rows
from textwright.noise import mix, uniform

HEADS = (128, 2048)  # so many tokens are tried for the mass top_p asks for, before all are sorted
XTC = 0x587463  # XTC's noise must not be the noise the token is drawn with
MILD = 1000.0  # no temperature is larger
ZIPF = 100  # of the likeliest tokens, from which mirostat 1 estimates the exponent


def temperature(logits: Tensor, rows: Rows) -> Tensor:
    """Divide by the temperature; a temperature of 0 leaves the order, which is all a greedy row needs.

    A dynamic one lies between T - δ and T + δ: at the lower end where the distribution is certain, at the upper end
    where it is flat, by (entropy ÷ largest possible entropy) ^ exponent in between.
    """
    value, spread = rows.setting("temperature").float(), rows.setting("dynamic_temperature").float()
    if bool((spread > 0).any()):
        low, high = (value - spread).clamp(min=0.01), value + spread
        share = (entropy(logits) / (logits > BANNED).sum(-1, keepdim=True).log().clamp(min=1e-6)).clamp(0, 1)
        moved = low + (high - low) * share ** rows.setting("dynamic_exponent").float()
        value = torch.where((spread > 0) & (value > 0), moved, value)
    return logits / torch.where(rows.setting("temperature") < COLD, 1.0, value)


def top_k(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the k largest logits; what ties with the last of them stays (Fan et al. 2018)."""
    k = rows.setting("top_k").long()
    k = torch.where(k > 0, k, logits.shape[1]).clamp(max=logits.shape[1])
    limited = torch.where(k < logits.shape[1], k, 1)
    best, _ = largest(logits, int(limited.max()))
    smallest = torch.where(k < logits.shape[1], best.gather(1, limited - 1), BANNED)
    return logits.masked_fill(logits < smallest, BANNED)


def top_p(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the fewest tokens, most likely first, whose probabilities sum to at least p (Holtzman et al. 2020)."""
    p = rows.setting("top_p")
    # Relative to the likeliest token and in double precision where it counts: equal ones stay exactly equal.
    weight = (logits - logits.amax(-1, keepdim=True)).exp()
    order = _head(logits, weight, p)
    probability = weight.gather(1, order).double() / weight.sum(-1, keepdim=True, dtype=torch.float64)
    before = probability.cumsum(-1) - probability  # mass of the tokens in front: the first is always kept
    dropped = (before >= p) & (p < 1)
    # What is not among the likeliest lies behind all of them.
    rest = (p < 1).expand_as(logits) if order.shape[1] < logits.shape[1] else torch.zeros_like(logits).bool()
    return logits.masked_fill(rest.scatter(1, order, dropped), BANNED)


def _head(logits: Tensor, weight: Tensor, p: Tensor) -> Tensor:
    """The likeliest tokens in order, ties by number: some that hold the mass p before the last of them, or all."""
    wanted = p * weight.sum(-1, keepdim=True, dtype=torch.float64)
    for count in HEADS:
        if logits.shape[1] <= 2 * count:
            break
        places = largest(logits, count)[1].sort(-1).values
        ordered, order = logits.gather(1, places).sort(dim=-1, descending=True, stable=True)
        order = places.gather(1, order)
        mass = weight.gather(1, order[:, :-1]).sum(-1, keepdim=True, dtype=torch.float64)
        # The last one is dropped and smaller than the others, so what is outside ties with none that is kept.
        if bool(((p >= 1) | ((mass >= wanted) & (ordered[:, -1:] < ordered[:, -2:-1]))).all()):
            return order
    return logits.sort(dim=-1, descending=True, stable=True).indices


def min_p(logits: Tensor, rows: Rows) -> Tensor:
    """Keep tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""
    threshold = logits.amax(-1, keepdim=True) + rows.setting("min_p").float().log()
    return logits.masked_fill(logits < threshold, BANNED)


def typical_p(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the tokens whose surprise is closest to the entropy, until they hold the mass (Meister et al. 2022)."""
    mass = rows.setting("typical_p")
    logprobs = logits.double().log_softmax(-1)
    distance = (-logprobs - entropy(logits).double()).abs()
    order = distance.sort(dim=-1, stable=True).indices
    probability = logprobs.exp().gather(1, order)
    dropped = ((probability.cumsum(-1) - probability) >= mass) & (mass < 1)
    return logits.masked_fill(dropped.scatter(1, order, dropped), BANNED)


def epsilon_cutoff(logits: Tensor, rows: Rows) -> Tensor:
    """Keep tokens with a probability of at least ε (Hewitt et al. 2022, sec. 3)."""
    return _floor(logits, rows.setting("epsilon_cutoff"))


def eta_cutoff(logits: Tensor, rows: Rows) -> Tensor:
    """Keep tokens with a probability of at least min(ε, √ε · exp(-entropy)) (Hewitt et al. 2022, eq. 5)."""
    epsilon = rows.setting("eta_cutoff")
    return _floor(logits, torch.minimum(epsilon, epsilon.sqrt() * (-entropy(logits).double()).exp()))


def _floor(logits: Tensor, least: Tensor) -> Tensor:
    low = logits.double().softmax(-1) < least
    return logits.masked_fill(low & (logits < logits.amax(-1, keepdim=True)), BANNED)


def top_h(logits: Tensor, rows: Rows) -> Tensor:
    """Keep the likeliest tokens as long as their terms -p · log p sum to at most a share of the entropy (Baghaei
    Potraghloo et al. 2025, "Top-H decoding"); the likeliest always."""
    share = rows.setting("top_h")
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    logprobs = ordered.double().log_softmax(-1)
    terms = -torch.where(ordered > BANNED, logprobs * logprobs.exp(), 0.0)
    dropped = (terms.cumsum(-1) > share * terms.sum(-1, keepdim=True)) & (share < 1)
    dropped[:, 0] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), BANNED)


def top_n_sigma(logits: Tensor, rows: Rows) -> Tensor:
    """Keep logits within n standard deviations of the largest (Tang et al. 2024, "Top-nσ"); banned ones, and
    those that a contrast of models leaves no chance, count not."""
    n = rows.setting("top_n_sigma").float()
    possible = logits > NEVER / MILD
    count = possible.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(possible, logits, 0.0).sum(-1, keepdim=True) / count
    deviation = (torch.where(possible, logits - mean, 0.0).square().sum(-1, keepdim=True) / count).sqrt()
    return logits.masked_fill((n > 0) & (logits < logits.amax(-1, keepdim=True) - n * deviation), BANNED)


def xtc(logits: Tensor, rows: Rows) -> Tensor:
    """Exclude top choices: with a given probability, leave out every token above the threshold but the least likely of
    them (p-e-w 2024, github.com/oobabooga/text-generation-webui/pull/6335)."""
    struck = uniform(mix(rows.seed + XTC), rows.written)[:, None] < rows.setting("xtc_probability")
    likely = logits.double().softmax(-1) >= rows.setting("xtc_threshold")
    least = torch.where(likely, logits, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(struck & likely & (logits > least), BANNED)


def mirostat(logits: Tensor, rows: Rows) -> Tensor:
    """Cut so that the surprise of what is drawn stays near a target (Basu et al. 2021, alg. 1 and 2).

    `Rows.surprise` holds μ, the most bits a token may surprise by; `next_surprise` moves it after each token. Version 2
    drops every token more surprising than μ; version 1 estimates from a Zipf law how many that leaves.
    """
    version, most = rows.setting("mirostat"), rows.surprise[:, None]
    bits = -logits.double().log_softmax(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    first = logits.amax(-1, keepdim=True)
    if bool((version == 2).any()):
        logits = logits.masked_fill((version == 2) & (bits > most) & (logits < first), BANNED)
    if bool((version == 1).any()):
        smallest = logits.sort(dim=-1, descending=True).values.gather(1, _zipf_count(bits, most) - 1)
        logits = logits.masked_fill((version == 1) & (logits < smallest), BANNED)
    return logits


def _zipf_count(bits: Tensor, most: Tensor) -> Tensor:
    """(rows, 1): the number of tokens whose smallest probability is about 2^-most, if they follow a Zipf law."""
    vocab = bits.shape[1]
    head = bits.topk(min(ZIPF, vocab), -1, largest=False).values
    rank = torch.arange(1, head.shape[1], dtype=torch.float64, device=bits.device)
    t = ((rank + 1) / rank).log2()
    fall = head.diff(dim=-1)
    known = fall.isfinite()
    slope = torch.where(known, t * fall, 0.0).sum(-1, keepdim=True)
    exponent = slope / torch.where(known, t.square(), 0.0).sum(-1, keepdim=True).clamp(min=1e-9)
    beyond = exponent - 1
    beyond = torch.where(beyond.abs() < 1e-6, 1e-6, beyond)
    # eq. 7 of the paper, in logarithms where it would overflow
    inside = beyond * 2**most / (1 - vocab ** (-beyond))
    count = inside.clamp(min=1e-9) ** (1 / exponent.clamp(min=1e-3))
    return count.nan_to_num(nan=1.0, posinf=float(vocab)).round().clamp(1, vocab).long()


def next_surprise(rows: Rows, logprobs: Tensor) -> Tensor:
    """(R,) μ after tokens of these log-probabilities (nats, of the model's own distribution)."""
    target, rate = (rows.setting(f"mirostat_{name}").squeeze(1) for name in ("target", "rate"))
    bits = -logprobs.double() / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return rows.surprise - rate * (bits - target)


def entropy(logits: Tensor) -> Tensor:
    """(rows, 1), in nats."""
    logprobs = logits.double().log_softmax(-1)
    terms = torch.where(logits > BANNED, logprobs * logprobs.exp(), 0.0)
    return -terms.sum(-1, keepdim=True).to(logits.dtype)
