"""The contract of the model, checked on one trained model: a check that ships, because a cache that is silently wrong
looks like a model that is merely bad.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textwright.decoding import Beam, Request, Sampling, beam_search, collect, generate
from textwright.decoding.speculative import Draft, Lookup, speculate
from textwright.decoding.strategies import STRATEGIES, decode, decoding
from textwright.models.base import BaseConfig, EncoderDecoder, Hidden, LanguageModel, Source
from textwright.models.state import State
from textwright.pair_model import PairModel
from textwright.training.forensics import finite
from textwright.writer import TextModel

TOLERANCE = 1e-4  # of logits, relative to their largest value
COARSE = 5e-2  # of weights in bfloat16
NARROW = 5  # tokens of the brute-force vocabulary
LENGTH = 3  # tokens of a brute-force text


class Check(NamedTuple):
    """One property: whether it holds, and the largest difference seen (logits), or what was compared."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Case:
    """Prompts of several lengths for one model: tokens (rows, time) and lengths (rows,)."""

    model: LanguageModel
    tokens: Tensor
    lengths: Tensor
    source: Source | None  # of the rows, for models that read one
    tolerance: float

    @classmethod
    def of(cls, model: LanguageModel, tolerance: float) -> Case:
        longest = min(12, (model.window or 24) // 2)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.head.out_features, (4, longest), generator=generator)
        lengths = torch.tensor([longest, 1, max(1, longest // 2), max(1, longest - 1)])
        source = None
        if isinstance(model, EncoderDecoder):
            places = torch.randint(0, model.source_vocab, (4, 7), generator=generator).to(model.device)
            source = Source(places, torch.tensor([7, 2, 1, 5], device=model.device))
        return cls(model, tokens.to(model.device), lengths.to(model.device), source, tolerance)

    def begin(self, rows: Sequence[int] | None = None) -> State:
        """A fresh state for some rows."""
        rows = range(len(self.tokens)) if rows is None else rows
        return self.model.begin(len(rows), self.sources(rows))

    def sources(self, rows: Sequence[int]) -> Source | None:
        """The sources of some rows, as one ragged batch."""
        if self.source is None:
            return None
        lengths = self.source.lengths[list(rows)]
        return Source(self.source.values[list(rows), : int(lengths.max())], lengths)

    def request(self, row: int, sampling: Sampling, **more: Any) -> Request:
        """The row's tokens as a prompt."""
        source = self.sources([row])
        ids = None if source is None else tuple(source.values[0].tolist())
        return Request(tuple(self.tokens[row, : self.lengths[row]].tolist()), sampling, source=ids, **more)

    def room(self, tokens: int) -> int:
        """So many new tokens, or what the window leaves for them."""
        return tokens if self.model.window is None else min(tokens, self.model.window - self.tokens.shape[1])

    def alone(self, row: int) -> Tensor:
        """Logits (time, vocab) of one row by itself, whole, without any state: what everything is compared with."""
        logits: Tensor = self.model(self.tokens[row : row + 1, : self.lengths[row]], source=self.sources([row])).logits
        return logits[0].float()

    def differ(self, got: Tensor, want: Tensor) -> float:
        """The largest difference of logits, relative to their largest value."""
        return float((got.float() - want).abs().max() / want.abs().max().clamp(min=1))

    def verdict(self, name: str, differences: Sequence[float]) -> Check:
        worst = max(differences)
        return Check(name, worst <= self.tolerance, f"largest difference {worst:.1e}, allowed {self.tolerance:.0e}")


@torch.no_grad()
def selftest(writer: TextModel | PairModel, tolerance: float | None = None) -> list[Check]:
    """All checks on one model. Weights that are not finite end it at once, with the layer named."""
    model = writer.model.eval()
    for name, parameter in model.named_parameters():
        if not finite(parameter):
            return [Check("finite weights", False, f"{name} holds a number that is not finite")]
    if tolerance is None:
        tolerance = COARSE if model.head.weight.dtype == torch.bfloat16 else TOLERANCE
    case = Case.of(model, tolerance)
    checks: list[Callable[[Case], Check]] = [
        by_steps,
        in_chunks,
        ragged,
        frozen,
        select_and_concat,
        batched,
        brute_force,
        guessed,
    ]
    results = [Check("finite weights", True, "all"), *(check(case) for check in checks)]
    results += [rescored(case, strategy) for strategy in STRATEGIES]
    return [*results, streamed(writer)] if isinstance(writer, TextModel) else results


def by_steps(case: Case) -> Check:
    state, parts = case.begin(), []
    for step in range(case.tokens.shape[1]):
        output = case.model(case.tokens[:, step : step + 1], state=state)
        state = output.after
        parts.append(output.logits)
    got = torch.cat(parts, 1)
    return case.verdict("one token at a time == all at once", _by_row(case, got))


def in_chunks(case: Case) -> Check:
    cut = max(1, case.tokens.shape[1] // 3)
    first = case.model(case.tokens[:, :cut], state=case.begin())
    second = case.model(case.tokens[:, cut:], state=first.after)
    got = torch.cat([first.logits, second.logits], 1)
    return case.verdict("in chunks == all at once", _by_row(case, got))


def ragged(case: Case) -> Check:
    got = case.model(case.tokens, case.lengths, case.begin()).logits
    return case.verdict("a padded batch == each row alone", _by_row(case, got))


def frozen(case: Case) -> Check:
    """Rows that are given no token do not move."""
    rows = len(case.tokens)
    nothing = torch.zeros(rows, dtype=torch.long, device=case.tokens.device)
    before = case.model(case.tokens, case.lengths - 1, case.begin()).after
    idle = case.model(case.tokens[:, :2], nothing, before).after
    last = case.tokens.gather(1, case.lengths[:, None] - 1)
    got = case.model(last, state=idle).logits[:, 0]
    want = torch.stack([case.alone(row)[-1] for row in range(rows)])
    return case.verdict("a row that is given nothing does not move", [case.differ(got, want)])


def select_and_concat(case: Case) -> Check:
    rows = len(case.tokens)
    halves = [list(range(rows // 2)), list(range(rows // 2, rows))]
    states = [case.model(case.tokens[h], case.lengths[h] - 1, case.begin(h)).after for h in halves]
    order = torch.tensor([2, 0, 0, 3], device=case.tokens.device)
    joined = states[0].concat(states[1]).select(order)
    last = case.tokens.gather(1, case.lengths[:, None] - 1)[order]
    got = case.model(last, state=joined).logits[:, 0]
    want = torch.stack([case.alone(row)[-1] for row in order.tolist()])
    return case.verdict("select and concat keep every row's memory", [case.differ(got, want)])


def batched(case: Case) -> Check:
    """Continuous batching writes what every request writes alone."""
    requests = [
        case.request(row, Sampling(temperature=heat), seed=row, max_new_tokens=4 + 5 * row)
        for row, heat in enumerate((0.0, 1.0, 0.8, 0.0))
    ]
    together = collect(generate(case.model, requests, None, max_rows=2))
    alone = [collect(generate(case.model, [request], None))[0] for request in requests]
    same = [a.tokens == b.tokens for a, b in zip(together, alone, strict=True)]
    return Check("continuous batching == each request alone", all(same), f"{sum(same)} of {len(same)} texts equal")


def brute_force(case: Case) -> Check:
    """A beam wide enough to be exhaustive finds the best of all texts, over a few tokens of the vocabulary."""
    model = Narrow(case.model, torch.arange(NARROW, device=case.tokens.device))
    prompt = tuple((case.tokens[0, :3] % NARROW).tolist())
    beam = Beam(beams=NARROW**LENGTH, length_penalty=0.0)
    read = case.sources([0])
    source = None if read is None else tuple(read.values[0].tolist())
    found = beam_search(model, [Request(prompt, max_new_tokens=LENGTH, source=source)], None, beam)[0]
    texts = torch.tensor(list(itertools.product(range(NARROW), repeat=LENGTH)), device=case.tokens.device)
    whole = torch.cat([torch.tensor(prompt, device=texts.device).expand(len(texts), -1), texts], 1)
    every = None if read is None else Source(*(leaf.expand(len(texts), *leaf.shape[1:]) for leaf in read))
    logprobs = model(whole[:, :-1], source=every).logits[:, len(prompt) - 1 :].float().log_softmax(-1)
    scores = logprobs.gather(2, texts[..., None]).sum((1, 2))
    best = tuple(texts[scores.argmax()].tolist())
    same = found[0].tokens == best or abs(found[0].logprob - float(scores.max())) < case.tolerance
    return Check("exhaustive beam search == brute force", same, f"best of {len(texts)} texts")


def guessed(case: Case) -> Check:
    """Speculative decoding writes what plain decoding writes, with guesses that are right, and with others."""
    requests = [
        case.request(row, Sampling(temperature=heat), seed=row, max_new_tokens=case.room(8))
        for row, heat in enumerate((0.0, 1.0, 0.8, 0.0))
    ]
    plain = [result.tokens for result in collect(generate(case.model, requests, None))]
    drafters = (Lookup(4, 2), Draft(case.model, 3))
    same = [[r.tokens for r in collect(speculate(case.model, requests, None, d))] == plain for d in drafters]
    return Check("speculative decoding == plain decoding", all(same), f"{sum(same)} of {len(same)} drafters")


def rescored(case: Case, strategy: str) -> Check:
    """The log-probability a strategy gives to its texts is that of the whole texts, read at once without a state."""
    how = decoding(strategy, {}, {})
    requests = [
        case.request(row, how.sampling, seed=row, max_new_tokens=case.room(6)) for row in range(len(case.tokens))
    ]
    differences = []
    for row, results in enumerate(decode(case.model, requests, None, how)):
        for result in results:
            text = torch.tensor(result.tokens, device=case.tokens.device)
            whole = torch.cat([case.tokens[row, : case.lengths[row]], text])[None, :-1]
            logits = case.model(whole, source=case.sources([row])).logits[0, int(case.lengths[row]) - 1 :].float()
            want = logits.log_softmax(-1).gather(1, text[:, None]).sum().double()
            differences.append(abs(float(want) - result.logprob) / max(1.0, float(logits.abs().max())))
    return case.verdict(f"{strategy}: its log-probabilities == those of the whole texts", differences)


def streamed(writer: TextModel) -> Check:
    """The parts of a streamed text are its whole text."""
    parts = "".join(chunk.text for chunk in writer.stream(seed=1, max_new_tokens=40))
    whole = writer.generate(seed=1, max_new_tokens=40)[0].text
    return Check("streamed text == whole text", parts == whole, f"{len(whole)} characters")


class Narrow(LanguageModel):
    """A model that knows only the given tokens (n,) of another: the same network, a vocabulary one can enumerate."""

    def __init__(self, model: LanguageModel, tokens: Tensor) -> None:
        super().__init__()
        self.model, self.tokens, self.window = model, tokens, model.window
        self.config: BaseConfig = model.config
        self.head = nn.Linear(model.head.in_features, len(tokens), device=tokens.device)
        self.head.weight = nn.Parameter(model.head.weight[tokens])
        bias = torch.zeros(len(tokens)) if model.head.bias is None else model.head.bias[tokens]
        self.head.bias = nn.Parameter(bias.to(tokens.device))

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> State:
        return self.model.begin(rows, source, capacity=capacity)

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        return self.model.hidden(self.tokens[tokens], lengths, state, source)

    def logits(self, hidden: Hidden) -> Tensor:
        return self.model.logits(hidden)[..., self.tokens]


def _by_row(case: Case, got: Tensor) -> list[float]:
    lengths = case.lengths.tolist()
    return [case.differ(got[row, :length], case.alone(row)) for row, length in enumerate(lengths)]
