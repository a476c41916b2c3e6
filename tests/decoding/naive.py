"""Slow, plain-Python reference for the logits processors: one row in, a new row out."""

import math
from collections.abc import Callable, Collection

BANNED = float("-inf")


def _last(tokens: list[int], window: int) -> list[int]:
    """The last `window` tokens; a window of 0 takes all."""
    return tokens[max(len(tokens) - window, 0) :] if window > 0 else list(tokens)


def _keep(logits: list[float], kept: Callable[[int], bool]) -> list[float]:
    """Ban every token for which `kept` is false."""
    return [logit if kept(token) else BANNED for token, logit in enumerate(logits)]


def _descending(logits: list[float]) -> list[int]:
    """Token ids, the most likely first, ties by the lower id."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def _log_softmax(logits: list[float]) -> list[float]:
    """Log probabilities in nats; a row that is wholly banned stays wholly banned."""
    top = max(logits)
    if top == BANNED:
        return list(logits)
    log_total = math.log(math.fsum(math.exp(logit - top) for logit in logits))
    return [logit - top - log_total for logit in logits]


def softmax(logits: list[float]) -> list[float]:
    """Probabilities; all 0 where every token is banned."""
    top = max(logits)
    if top == BANNED:
        return [0.0] * len(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _entropy_terms(logits: list[float]) -> list[float]:
    """-p log p of each token, 0 where p is 0."""
    pairs = zip(softmax(logits), _log_softmax(logits), strict=True)
    return [-p * log_p if p > 0 else 0.0 for p, log_p in pairs]


def entropy(logits: list[float]) -> float:
    """Shannon entropy in nats."""
    return math.fsum(_entropy_terms(logits))


def repetition_penalty(logits: list[float], text: list[int], theta: float, window: int) -> list[float]:
    """Divide the positive logits of recent tokens by theta, multiply the others by it."""
    result = list(logits)
    for token in set(_last(text, window)):
        result[token] = logits[token] / theta if logits[token] > 0 else logits[token] * theta
    return result


def presence_and_frequency(
    logits: list[float], prompt: list[int], written: list[int], presence: float, frequency: float, window: int
) -> list[float]:
    """Subtract presence once and frequency per occurrence, for written tokens inside the window."""
    text = prompt + written
    start = max(len(text) - window, 0) if window > 0 else 0
    counts: dict[int, int] = {}
    for place, token in enumerate(text):
        if place >= len(prompt) and place >= start:
            counts[token] = counts.get(token, 0) + 1
    result = list(logits)
    for token, count in counts.items():
        result[token] = logits[token] - presence - frequency * count
    return result


def dry(
    logits: list[float],
    text: list[int],
    multiplier: float,
    base: float,
    allowed: int,
    window: int,
    breakers: Collection[int],
) -> list[float]:
    """Penalise each token that would lengthen a repetition of at least `allowed` tokens."""
    recent = _last(text, window)
    last = len(recent) - 1
    penalties: dict[int, float] = {}
    for i in range(last):
        n = 0
        while n < 50 and i - n >= 0 and recent[i - n] == recent[last - n] and recent[i - n] not in breakers:
            n += 1
        if n >= allowed:
            token = recent[i + 1]
            penalty = multiplier * base ** (n - allowed)
            penalties[token] = max(penalties.get(token, penalty), penalty)
    result = list(logits)
    for token, penalty in penalties.items():
        result[token] = logits[token] - penalty
    return result


def no_repeat_source_ngram(
    logits: list[float], text: list[int], source: list[int], n: int, exempt: Collection[int]
) -> list[float]:
    """Ban each token that, after the last n - 1 tokens of text, would complete an n-gram of source."""
    result = list(logits)
    if n <= 0 or len(text) < n - 1:
        return result
    tail = text[len(text) - (n - 1) :]
    for start in range(len(source) - n + 1):
        gram = source[start : start + n]
        if gram[:-1] == tail and not any(token in exempt for token in gram):
            result[gram[-1]] = BANNED
    return result


def no_repeat_ngram(logits: list[float], text: list[int], n: int, exempt: Collection[int]) -> list[float]:
    """Ban each token that would complete an n-gram already in text."""
    return no_repeat_source_ngram(logits, text, text, n, exempt)


def before_minimum(logits: list[float], end: int, written: list[int], minimum: int) -> list[float]:
    """Ban the end token while fewer than `minimum` tokens are written."""
    return _keep(logits, lambda token: token != end or len(written) >= minimum)


def end_growth(logits: list[float], end: int, written: list[int], factor: float, after: int) -> list[float]:
    """Raise the end token's logit exponentially once more than `after` tokens are written."""
    result = list(logits)
    if len(written) > after and math.isfinite(logits[end]):
        result[end] = logits[end] + abs(logits[end]) * (factor ** (len(written) - after) - 1)
    return result


def temperature(logits: list[float], value: float, spread: float, exponent: float) -> list[float]:
    """Divide by a temperature, which follows the entropy where spread is not 0."""
    if value == 0:
        return list(logits)
    if spread == 0:
        return [logit / value for logit in logits]
    low, high = max(value - spread, 0.01), value + spread
    open_tokens = sum(logit != BANNED for logit in logits)
    highest = max(math.log(max(open_tokens, 1)), 1e-6)
    share = min(max(entropy(logits) / highest, 0.0), 1.0)
    chosen = low + (high - low) * share**exponent
    return [logit / chosen for logit in logits]


def top_k(logits: list[float], k: int) -> list[float]:
    """Keep the k largest logits and whatever is tied with the k-th."""
    if k <= 0 or k >= len(logits):
        return list(logits)
    least = sorted(logits, reverse=True)[k - 1]
    return _keep(logits, lambda token: logits[token] >= least)


def _keep_mass(logits: list[float], order: list[int], mass: float) -> list[float]:
    """Keep each token, in the given order, while the mass of those before it is below `mass`."""
    probabilities = softmax(logits)
    kept: set[int] = set()
    before = 0.0
    for token in order:
        if before < mass:
            kept.add(token)
        before += probabilities[token]
    return _keep(logits, lambda token: token in kept)


def top_p(logits: list[float], p: float) -> list[float]:
    """Nucleus: keep the most likely tokens while the mass before them is below p."""
    return list(logits) if p >= 1 else _keep_mass(logits, _descending(logits), p)


def min_p(logits: list[float], p: float) -> list[float]:
    """Keep the tokens at least p times as likely as the likeliest."""
    if p <= 0:
        return list(logits)
    least = max(logits) + math.log(p)
    return _keep(logits, lambda token: logits[token] >= least)


def typical_p(logits: list[float], mass: float) -> list[float]:
    """Keep the tokens whose surprise is nearest the entropy, up to `mass`."""
    if mass >= 1:
        return list(logits)
    expected = entropy(logits)
    distance = [abs(-log_p - expected) for log_p in _log_softmax(logits)]
    return _keep_mass(logits, sorted(range(len(logits)), key=lambda token: (distance[token], token)), mass)


def _cut(logits: list[float], threshold: float) -> list[float]:
    """Ban the probabilities below the threshold, never the maximum."""
    probabilities, top = softmax(logits), max(logits)
    return _keep(logits, lambda token: probabilities[token] >= threshold or logits[token] == top)


def epsilon_cutoff(logits: list[float], eps: float) -> list[float]:
    """Ban the probabilities below eps."""
    return list(logits) if eps <= 0 else _cut(logits, eps)


def eta_cutoff(logits: list[float], eps: float) -> list[float]:
    """Ban the probabilities below a threshold that falls with the entropy."""
    return list(logits) if eps <= 0 else _cut(logits, min(eps, math.sqrt(eps) * math.exp(-entropy(logits))))


def top_h(logits: list[float], share: float) -> list[float]:
    """Keep the likeliest tokens while their part of the entropy is at most `share` of it."""
    if share >= 1:
        return list(logits)
    terms = _entropy_terms(logits)
    budget = share * entropy(logits)
    order = _descending(logits)
    kept = {order[0]}
    running = 0.0
    for token in order:
        running += terms[token]
        if running > budget:
            break
        kept.add(token)
    return _keep(logits, lambda token: token in kept)


def top_n_sigma(logits: list[float], n: float) -> list[float]:
    """Keep the logits within n standard deviations of the maximum."""
    values = [logit for logit in logits if logit != BANNED]
    if n <= 0 or not values:
        return list(logits)
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    least = max(values) - n * sigma
    return _keep(logits, lambda token: logits[token] >= least)


def xtc(logits: list[float], threshold: float, struck: bool) -> list[float]:
    """If struck, ban the tokens at or above the threshold, except the least likely of them."""
    probabilities = softmax(logits)
    above = {token for token, p in enumerate(probabilities) if p >= threshold and logits[token] != BANNED}
    if not struck or not above:
        return list(logits)
    least = min(logits[token] for token in above)
    return _keep(logits, lambda token: token not in above or logits[token] == least)


def mirostat2(logits: list[float], mu: float) -> list[float]:
    """Ban the tokens whose surprise in bits exceeds mu, never the maximum."""
    surprise, top = [-log_p / math.log(2) for log_p in _log_softmax(logits)], max(logits)
    return _keep(logits, lambda token: surprise[token] <= mu or logits[token] == top)


def _mirostat_k(logits: list[float], mu: float) -> int:
    """k of Algorithm 1: the Zipf exponent by least squares, then the k that gives a surprise of mu."""
    vocabulary = len(logits)
    ranked = sorted(logits, reverse=True)[:100]
    numerator = denominator = 0.0
    for i in range(1, len(ranked)):
        if ranked[i] == BANNED:
            break
        t = math.log2((i + 1) / i)
        b = (ranked[i - 1] - ranked[i]) / math.log(2)
        numerator += t * b
        denominator += t * t
    if denominator == 0:
        return 1
    s = numerator / denominator
    eps = s - 1 if abs(s - 1) >= 1e-6 else 1e-6
    try:
        inner = eps * math.pow(2, mu) / (1 - math.pow(vocabulary, -eps))
        k = math.pow(inner, 1 / s if s > 0 else math.inf)
    except OverflowError:
        return vocabulary
    if math.isnan(k):
        return 1
    return vocabulary if math.isinf(k) else min(max(round(k), 1), vocabulary)


def mirostat1(logits: list[float], mu: float) -> list[float]:
    """Top-k with the k of Mirostat's Algorithm 1 (Basu et al. 2021)."""
    least = sorted(logits, reverse=True)[_mirostat_k(logits, mu) - 1]
    return _keep(logits, lambda token: logits[token] >= least)


def next_mu(mu: float, logprob_nats: float, target: float, rate: float) -> float:
    """Mirostat's update of mu after a token was drawn."""
    surprise_bits = -logprob_nats / math.log(2)
    return mu - rate * (surprise_bits - target)


def sequence_bias(logits: list[float], text: list[int], sequences: list[tuple[list[int], float]]) -> list[float]:
    """Add each sequence's value to its last token where text ends with the rest of it."""
    result = list(logits)
    for ids, value in sequences:
        if not ids:
            continue
        beginning, token = ids[:-1], ids[-1]
        if len(text) >= len(beginning) and text[len(text) - len(beginning) :] == beginning:
            result[token] += value
    return result


def forced(logits: list[float], written: list[int], forced: dict[int, int]) -> list[float]:
    """Ban everything but the token that is forced at this place, if one is."""
    place = len(written)
    return _keep(logits, lambda token: place not in forced or token == forced[place])


def soft_prefix(logits: list[float], written: list[int], prefix: list[int], share: float) -> list[float]:
    """Mix the distribution with the next prefix token while the prefix is being followed."""
    place = len(written)
    if place >= len(prefix) or written != prefix[:place]:
        return list(logits)
    mixed = [(1 - share) * p + share * (token == prefix[place]) for token, p in enumerate(softmax(logits))]
    return [math.log(p) if p > 0 else BANNED for p in mixed]


def loops(written: list[int], limit: int, unit: int = 64, least: int = 16) -> bool:
    """Whether the end of written repeats a unit of at most `unit` tokens often enough."""
    if limit <= 0:
        return False
    for u in range(1, unit + 1):
        for r in range(max(limit * u, least), len(written) + 1):
            tail = written[len(written) - r :]
            if all(tail[i] == tail[i - u] for i in range(u, r)):
                return True
    return False
