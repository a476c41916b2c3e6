"""Every processor against an independent, naive version written per row and token."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textwright.decoding.processors import active
from textwright.decoding.rows import Request, Rows, Sampling, begin_rows

VOCAB = 6
INF = float("inf")

texts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)
floats = st.floats(-4, 4, width=32)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.integers(0, VOCAB + 2),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.6]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    no_repeat_ngram=st.integers(0, 3),
)
cases = st.tuples(texts, texts, samplings, st.lists(floats, min_size=VOCAB, max_size=VOCAB), st.integers(0, 4))


@given(st.lists(cases, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_processors_equal_the_naive_version(batch: list) -> None:
    """Rows with different settings share a batch; each must come out as if it were alone and written by hand."""
    rows = written_rows([(prompt, text, sampling, minimum) for prompt, text, sampling, _, minimum in batch])
    logits = torch.tensor([values for *_, values, _ in batch], dtype=torch.float32)
    got = logits
    for process in active(rows, end=0):
        got = process(got, rows)
    for row, (prompt, text, sampling, values, minimum) in enumerate(batch):
        want = naive(values, prompt, text, sampling, minimum)
        assert_same(got[row], want)


def written_rows(cases: list) -> Rows:
    requests = [Request(tuple(p + t), s, max_new_tokens=99, min_new_tokens=m) for p, t, s, m in cases]
    rows = begin_rows(requests, 0, torch.device("cpu"))
    return replace(rows, prompts=torch.tensor([len(p) for p, *_ in cases]))


def naive(values: list[float], prompt: list[int], text: list[int], s: Sampling, minimum: int) -> list[float]:
    logits = [float(torch.tensor(v)) for v in values]
    everything, written = prompt + text, Counter(text)
    if len(text) < minimum:
        logits[0] = -INF
    for token in set(everything):
        logits[token] *= 1 / s.repetition_penalty if logits[token] > 0 else s.repetition_penalty
    for token, count in written.items():
        logits[token] -= s.presence_penalty + s.frequency_penalty * count
    n = s.no_repeat_ngram
    for start in range(len(everything) - n + 1) if n else ():
        if everything[start : start + n - 1] == everything[len(everything) - n + 1 :] and len(everything) >= n - 1:
            logits[everything[start + n - 1]] = -INF
    if s.temperature:
        logits = [v / s.temperature for v in logits]
    if 0 < s.top_k < VOCAB:
        limit = sorted(logits, reverse=True)[s.top_k - 1]
        logits = [v if v >= limit else -INF for v in logits]
    logits = naive_top_p(logits, s.top_p)
    if s.min_p and max(logits) > -INF:
        limit = max(logits) + math.log(s.min_p)
        logits = [v if v >= limit else -INF for v in logits]
    return logits


def naive_top_p(logits: list[float], p: float) -> list[float]:
    if p >= 1 or max(logits) == -INF:
        return logits
    top = max(logits)
    weights = [math.exp(v - top) for v in logits]
    order = sorted(range(VOCAB), key=lambda i: (-logits[i], i))
    kept, mass = [], 0.0
    for i in order:
        if mass >= p * sum(weights):
            break
        kept.append(i)
        mass += weights[i]
    return [v if i in kept else -INF for i, v in enumerate(logits)]


def assert_same(got: Tensor, want: list[float]) -> None:
    """Equal up to float32; at a cut, two tokens that are equal to float32 may be told apart either way."""
    expected = torch.tensor(want)
    if bool(torch.isclose(got, expected, rtol=1e-4, atol=1e-4).all()) or bool(got.isnan().all()):
        return
    different = (got > -INF) != (expected > -INF)
    border = min(float(x[different].max()) for x in (torch.where(got > -INF, got, expected),))
    kept = torch.maximum(got, expected)
    assert int(((kept - border).abs() < 1e-3).sum()) > 1, f"{got} is not {expected}"


def test_at_least_one_token_is_always_kept() -> None:
    sampling = Sampling(top_k=1, top_p=1e-9, min_p=0.999)
    rows = written_rows([([1], [2], sampling, 0)])
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0, -1.0, 2.0]])
    for process in active(rows, end=None):
        logits = process(logits, rows)
    assert int((logits > -INF).sum()) >= 1


def test_nothing_is_switched_on_by_default() -> None:
    assert active(written_rows([([1], [2], Sampling(), 0)]), end=0) == []


def test_processors_agree_with_hugging_face() -> None:
    theirs = pytest.importorskip("transformers").generation.logits_process
    tokens, logits = torch.tensor([[1, 2, 3, 1, 2]]), torch.randn(1, VOCAB)
    pairs = [
        (Sampling(repetition_penalty=1.4), theirs.RepetitionPenaltyLogitsProcessor(1.4)),
        (Sampling(no_repeat_ngram=3), theirs.NoRepeatNGramLogitsProcessor(3)),
        (Sampling(temperature=0.6), theirs.TemperatureLogitsWarper(0.6)),
        (Sampling(top_k=2), theirs.TopKLogitsWarper(2)),
        (Sampling(top_p=0.6), theirs.TopPLogitsWarper(0.6)),
        (Sampling(min_p=0.2), theirs.MinPLogitsWarper(0.2)),
    ]
    for sampling, processor in pairs:
        rows = written_rows([(tokens[0].tolist(), [], sampling, 0)])
        (process,) = active(rows, end=None)
        torch.testing.assert_close(process(logits, rows), processor(tokens, logits.clone()))
