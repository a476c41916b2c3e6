"""The five invariants of the model contract, on every family, in float32 and in bfloat16.

Each check compares with the slowest and plainest way to the same answer: one row alone, the whole text at once, no
state. Weights are spread wide, so that a wrong memory shows in the logits and not only in their last digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from families import ADAPTED, FAMILIES, PRETRAINED, VOCAB, WINDOW
from torch import Tensor

from textwright.adapting import lora
from textwright.adapting.prompt import PromptConfig, Prompted
from textwright.decoding import Beam, Engine, Request, Result, Sampling, beam_search, collect, generate
from textwright.decoding.speculative import Draft, Drafter, Lookup, Speculation, speculate
from textwright.errors import StateSpentError
from textwright.models import EncoderDecoder, LanguageModel, State, blocks
from textwright.models.base import Source
from textwright.models.pretrained import RecurrentStateLM

TIME = 9
EVERY = FAMILIES | (PRETRAINED if find_spec("transformers") else {}) | ADAPTED
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-2}


@dataclass
class Subject:
    model: LanguageModel
    tokens: Tensor  # (4, TIME)
    lengths: Tensor  # (4,), ragged
    nxt: Tensor  # (4, 1), one more token for each row
    source: Source | None  # of the 4 rows, ragged, for models that read one
    tolerance: float
    build: Callable[[], LanguageModel]  # one of its shape

    def close(self, got: Tensor, want: Tensor, least: float = 1.0) -> None:
        scale = float(want.detach().float().abs().max().clamp(min=least))
        torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=self.tolerance * scale)

    def sources(self, rows: list[int] | None = None) -> Source | None:
        """The sources of some rows, as one ragged batch, padded with what is there."""
        if self.source is None:
            return None
        rows = list(range(4)) if rows is None else rows
        lengths = self.source.lengths[rows]
        return Source(self.source.values[rows, : int(lengths.max())], lengths)

    def begin(self, rows: list[int] | None = None, capacity: int | None = None) -> State:
        """A fresh state for some rows."""
        return self.model.begin(4 if rows is None else len(rows), self.sources(rows), capacity=capacity)

    def whole(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of all four rows, without a state."""
        return self.model(tokens, lengths, source=self.source).logits

    def alone(self, row: int, *more: Tensor) -> Tensor:
        """Logits (time, vocab) of one row by itself: its real tokens, then `more`."""
        text = torch.cat([self.tokens[row, : self.lengths[row]], *more])
        return self.model(text[None], source=self.sources([row])).logits[0]

    def request(self, row: int, *options: Any, **more: Any) -> Request:
        """The row's real tokens as a prompt."""
        source = self.sources([row])
        ids = None if source is None else tuple(source.values[0].tolist())
        return Request(tuple(self.tokens[row, : self.lengths[row]].tolist()), *options, source=ids, **more)

    def after(self, rows: list[int] | None = None) -> State:
        """The state of some rows after their real tokens, read as one ragged batch."""
        rows = list(range(4)) if rows is None else rows
        lengths = self.lengths[rows]
        return self.model(self.tokens[rows, : int(lengths.max())], lengths, self.begin(rows)).after


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=EVERY)
def subject(request: pytest.FixtureRequest, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(blocks, "GROWTH", 2)  # a cache that grows in large chunks hides a wrong concat
    if "mamba" in request.param and dtype == torch.bfloat16:
        pytest.skip("the library's own steps of Mamba mix types there; ours are always float32")
    torch.manual_seed(3)
    family, adapter, merged = ADAPTED.get(request.param, (request.param, None, False))

    def build() -> LanguageModel:
        made = EVERY[family].build().eval()
        if isinstance(adapter, PromptConfig):
            return Prompted(made, adapter).eval()
        if adapter is not None:
            lora.attach(made, adapter)
        return made

    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                wide = 0.4 if adapter is None or not parameter.requires_grad else 0.15  # a product of two, on top
                parameter.copy_(torch.randn_like(parameter) * wide)
    if merged:
        lora.merge(model)
    lengths = torch.tensor([TIME, 3, 6, 1])
    tokens, nxt = torch.randint(0, VOCAB, (4, TIME)), torch.randint(0, VOCAB, (4, 1))
    source = None
    if isinstance(model, EncoderDecoder):
        source = Source(torch.randint(0, model.source_vocab, (4, 6)), torch.tensor([4, 6, 1, 3]))
    return Subject(model.to(dtype), tokens, lengths, nxt, source, TOLERANCE[dtype], build)


# 1. one token at a time == in chunks == all at once ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, TIME])
@torch.no_grad()
def test_chunks(subject: Subject, size: int) -> None:
    state, parts = subject.begin(), []
    for start in range(0, TIME, size):
        output = subject.model(subject.tokens[:, start : start + size], state=state)
        state, parts = output.after, [*parts, output.logits]
    subject.close(torch.cat(parts, 1), subject.whole(subject.tokens))


@pytest.mark.parametrize("capacity", [None, TIME + 3])
@torch.no_grad()
def test_capacity_changes_nothing(subject: Subject, capacity: int | None) -> None:
    output = subject.model(subject.tokens, state=subject.begin(capacity=capacity))
    output = subject.model(subject.nxt, state=output.after)
    whole = torch.cat([subject.tokens, subject.nxt], 1)
    subject.close(output.logits[:, 0], subject.whole(whole)[:, -1])


def test_gradients_through_states(subject: Subject) -> None:
    """What flows back through carried states is what flows back through the whole text."""
    model = subject.model
    if isinstance(model, RecurrentStateLM):  # of another library, which writes in place
        with pytest.raises(ValueError, match="no gradient flows"):
            model(subject.tokens, state=subject.begin())
        return
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        pytest.skip("its adapter was merged, and nothing learns")
    subject.whole(subject.tokens).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in learning]
    model.zero_grad()
    first = model(subject.tokens[:, :4], state=subject.begin())
    second = model(subject.tokens[:, 4:], state=first.after)
    torch.cat([first.logits, second.logits], 1).square().sum().backward()
    # A bias of keys changes no attention: its gradient is 0, and what is seen is the rounding of larger ones.
    least = max(1.0, 0.02 * max(float(want.abs().max()) for want in whole))
    for parameter, want in zip(learning, whole, strict=True):
        subject.close(parameter.grad, want, least)


# 2. steps at or after lengths[r] do not move row r --------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["zeros", "random"])
@torch.no_grad()
def test_padding_never_shows(subject: Subject, garbage: str) -> None:
    padding = torch.zeros(4, TIME, dtype=torch.long) if garbage == "zeros" else torch.randint(0, VOCAB, (4, TIME))
    batch = torch.where(torch.arange(TIME) < subject.lengths[:, None], subject.tokens, padding)
    output = subject.model(batch, subject.lengths, subject.begin())
    after = subject.model(subject.nxt, state=output.after).logits
    for row, length in enumerate(subject.lengths.tolist()):
        subject.close(output.logits[row, :length], subject.alone(row))
        subject.close(after[row, 0], subject.alone(row, subject.nxt[row])[-1])


@torch.no_grad()
def test_training_ignores_padding(subject: Subject) -> None:
    logits = subject.whole(subject.tokens, subject.lengths)
    for row, length in enumerate(subject.lengths.tolist()):
        subject.close(logits[row, :length], subject.alone(row))


@torch.no_grad()
def test_rows_without_a_token_do_not_move(subject: Subject) -> None:
    given = torch.tensor([1, 0, 1, 0])
    moved = subject.model(subject.nxt, given, subject.after()).after
    logits = subject.model(subject.nxt, state=moved).logits[:, 0]
    for row in range(4):
        more = [subject.nxt[row]] * (1 + int(given[row]))
        subject.close(logits[row], subject.alone(row, *more)[-1])


@torch.no_grad()
def test_an_empty_call_moves_nothing(subject: Subject) -> None:
    idle = subject.model(subject.tokens, torch.zeros(4, dtype=torch.long), subject.after()).after
    logits = subject.model(subject.nxt, state=idle).logits[:, 0]
    for row in range(4):
        subject.close(logits[row], subject.alone(row, subject.nxt[row])[-1])


@torch.no_grad()
def test_last_only(subject: Subject) -> None:
    logits = subject.model(subject.tokens, subject.lengths, subject.begin(), last_only=True).logits
    assert logits.shape == (4, 1, VOCAB)
    for row in range(4):
        subject.close(logits[row, 0], subject.alone(row)[-1])


# 3. rows do not see each other ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_select_with_repeats_and_omissions(subject: Subject) -> None:
    rows = torch.tensor([2, 0, 0])
    logits = subject.model(subject.nxt[rows], state=subject.after().select(rows)).logits[:, 0]
    for place, row in enumerate(rows.tolist()):
        subject.close(logits[place], subject.alone(row, subject.nxt[row])[-1])


@torch.no_grad()
def test_selected_copies_go_their_own_ways(subject: Subject) -> None:
    state = subject.after([0]).select(torch.tensor([0, 0]))
    two = torch.tensor([[1], [2]])
    state = subject.model(two, state=state).after
    logits = subject.model(subject.nxt[[0, 0]], state=state).logits[:, 0]
    for place in range(2):
        subject.close(logits[place], subject.alone(0, two[place], subject.nxt[0])[-1])


@pytest.mark.parametrize("order", [([0, 1], [2, 3]), ([3], [0, 2, 1])])
@torch.no_grad()
def test_concat_of_batches_of_different_lengths(subject: Subject, order: tuple[list[int], list[int]]) -> None:
    joined = subject.after(order[0]).concat(subject.after(order[1]))
    rows = order[0] + order[1]
    output = subject.model(subject.nxt[rows], state=joined)
    again = subject.model(subject.nxt[rows], state=output.after).logits[:, 0]
    for place, row in enumerate(rows):
        subject.close(output.logits[place, 0], subject.alone(row, subject.nxt[row])[-1])
        subject.close(again[place], subject.alone(row, subject.nxt[row], subject.nxt[row])[-1])


# 4. a state is spent by the call it is passed to ----------------------------------------------------------------------


@torch.no_grad()
def test_a_spent_state_raises_and_shows_how(subject: Subject) -> None:
    state = subject.after()
    subject.model(subject.nxt, state=state)
    with pytest.raises(StateSpentError, match=r"state=output\.state\)\s+# right"):
        subject.model(subject.nxt, state=state)


@pytest.mark.parametrize("method", ["copy", "fork"])
@torch.no_grad()
def test_a_copy_is_a_snapshot(subject: Subject, method: str) -> None:
    """Ragged acceptance by replay: advance a copy by a draft, then feed each row only what was accepted of it."""
    snapshot = subject.after([1, 2, 3])
    draft, accepted = torch.randint(0, VOCAB, (3, 4)), torch.tensor([4, 0, 2])
    subject.model(draft, state=getattr(snapshot, method)())
    replayed = subject.model(draft, accepted, snapshot).after
    logits = subject.model(subject.nxt[1:], state=replayed).logits[:, 0]
    for place, row in enumerate((1, 2, 3)):
        subject.close(logits[place], subject.alone(row, draft[place, : accepted[place]], subject.nxt[row])[-1])


@torch.no_grad()
def test_truncate_equals_replay(subject: Subject) -> None:
    state = subject.after([1, 2, 3])
    if not state.has_places:
        with pytest.raises(NotImplementedError, match="has no places"):
            state.truncate(subject.lengths[1:])
        return
    draft, accepted = torch.randint(0, VOCAB, (3, 4)), torch.tensor([4, 0, 2])
    verified = subject.model(draft, state=state).after
    cut = verified.truncate(subject.lengths[1:] + accepted)
    logits = subject.model(subject.nxt[1:], state=cut).logits[:, 0]
    for place, row in enumerate((1, 2, 3)):
        subject.close(logits[place], subject.alone(row, draft[place, : accepted[place]], subject.nxt[row])[-1])
    with pytest.raises(StateSpentError):
        subject.model(subject.nxt[1:], state=verified)


# 5. search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, 0])
@torch.no_grad()
def test_exhaustive_beam_equals_brute_force(subject: Subject, end: int | None) -> None:
    length, rows = 3, (1, 2)
    requests = [subject.request(row, max_new_tokens=length) for row in rows]
    found = beam_search(subject.model, requests, end, Beam(beams=VOCAB**length, length_penalty=0.0))
    for place, row in enumerate(rows):
        want = brute_force(subject, row, length, end)
        assert len(found[place]) == len(want)
        scores = {result.tokens: result.logprob for result in found[place]}
        for text, score in want.items():
            assert scores[text] == pytest.approx(score, abs=20 * subject.tolerance)
        assert found[place][0].logprob == pytest.approx(max(want.values()), abs=20 * subject.tolerance)


def brute_force(subject: Subject, row: int, length: int, end: int | None) -> dict[tuple[int, ...], float]:
    """The log-probability of every text of at most `length` tokens that could follow the row."""
    texts: dict[tuple[int, ...], float] = {}
    for full in itertools.product(range(VOCAB), repeat=length):
        text = full[: full.index(end) + 1] if end in full else full
        if text not in texts:
            logits = subject.alone(row, torch.tensor(text[:-1], dtype=torch.long)).float()
            logprobs = logits[int(subject.lengths[row]) - 1 :].log_softmax(-1)
            texts[text] = float(logprobs[torch.arange(len(text)), list(text)].sum())
    return texts


@torch.no_grad()
def test_continuous_batching_equals_each_request_alone(subject: Subject) -> None:
    """Staggered arrivals and departures, greedy and sampled rows mixed; texts run past a Transformer's window."""
    if subject.tolerance > 1e-3:
        greedy_up_to_rounding(subject)
        return
    requests = [
        subject.request(
            row,
            Sampling(temperature=0.0 if row % 2 else 1.0, top_k=5),
            seed=row,
            max_new_tokens=budget,
        )
        for row, budget in enumerate((5, 30, 3, 17) if subject.source is None else (5, 7, 3, 9))
    ]
    engine, events = Engine(subject.model, None), []
    engine.admit(requests[:2])
    events += engine.step() + engine.step()
    engine.admit(requests[2:3])
    events += engine.step()
    engine.admit(requests[3:])
    while len(engine):
        events += engine.step()
    together = collect(events)
    for request, result in zip(requests, together, strict=True):
        (alone,) = collect(generate(subject.model, [request], None))
        assert result.tokens == alone.tokens
        assert result.logprob == pytest.approx(alone.logprob, abs=1e-3)


def greedy_up_to_rounding(subject: Subject) -> None:
    """In bfloat16 a batch of another size may flip a tie: every token must be the likeliest but for the tolerance."""
    requests = [subject.request(row, Sampling(temperature=0.0), max_new_tokens=WINDOW - TIME) for row in range(4)]
    likeliest(subject, collect(generate(subject.model, requests, None, max_rows=2)))


def likeliest(subject: Subject, results: list[Result]) -> None:
    for row, result in enumerate(results):
        written = torch.tensor(result.tokens[:-1], dtype=torch.long)
        logits = subject.alone(row, written)[int(subject.lengths[row]) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(result.tokens)[:, None]).squeeze(1)
        scale = float(logits.abs().max().clamp(min=1))
        assert float((logits.amax(-1) - chosen).max()) <= 2 * subject.tolerance * scale


@pytest.mark.parametrize("kind", ["lookup", "itself", "another"])
@torch.no_grad()
def test_speculation_writes_what_the_engine_writes(subject: Subject, kind: str) -> None:
    """Token for token, drawn and greedy, with stops and limits; the drafts are right always, sometimes and hardly."""
    other = subject.model
    if kind == "another":
        other = subject.build().to(subject.model.head.weight.dtype)
        theirs = dict(subject.model.named_parameters())
        for name, parameter in other.named_parameters():  # those of an adapter that was merged are left out
            parameter.copy_(theirs.get(name, parameter))
            parameter.add_(torch.randn_like(parameter) * 0.05)

    def drafter() -> Drafter:
        return Lookup(length=3, match=2) if kind == "lookup" else Draft(other, length=3)

    if subject.tolerance > 1e-3:
        requests = [subject.request(row, Sampling(temperature=0.0), max_new_tokens=WINDOW - TIME) for row in range(4)]
        likeliest(subject, collect(speculate(subject.model, requests, None, drafter(), max_rows=3)))
        return
    settings = (Sampling(temperature=0.0), Sampling(), Sampling(top_k=3, repetition_penalty=1.2), Sampling(mirostat=2))
    requests = [
        subject.request(row, sampling, seed=row, max_new_tokens=budget, min_new_tokens=2)
        for row, (sampling, budget) in enumerate(zip(settings, (5, 7, 3, 9), strict=True))
    ]
    plain = collect(generate(subject.model, requests, 0))
    got = collect(speculate(subject.model, requests, 0, drafter(), max_rows=3))
    assert [(r.tokens, r.finish) for r in got] == [(r.tokens, r.finish) for r in plain]
    for result, want in zip(got, plain, strict=True):
        assert result.logprob == pytest.approx(want.logprob, abs=1e-3)
    if kind == "itself":
        running = Speculation(subject.model, requests[:1], None, drafter())
        while len(running):
            running.step()
        assert running.rounds == 2  # 5 tokens: a model that guesses for itself is always right, 3 and 1 more at a time


def test_a_source_is_refused_by_models_without_an_encoder(subject: Subject) -> None:
    if subject.source is not None:
        pytest.skip("this model reads a source")
    source = Source(torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="reads no source"):
        subject.model.begin(2, source)
    with pytest.raises(ValueError, match="reads no source"):
        subject.model(subject.tokens, source=source)


# Models with a source -------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(subject: Subject) -> Subject:
    if subject.source is None:
        pytest.skip("this model reads no source")
    return subject


def test_a_source_is_needed(reader: Subject) -> None:
    with pytest.raises(ValueError, match="give one, source=Source"):
        reader.model.begin(2)
    with pytest.raises(ValueError, match="give one, source=Source"):
        reader.model(reader.tokens)
    with pytest.raises(ValueError, match="one or the other"):
        reader.model(reader.tokens, state=reader.begin(), source=reader.source)
    with pytest.raises(ValueError, match="at least one token"):
        reader.model.begin(1, Source(torch.zeros(1, 2, dtype=torch.long), torch.tensor([0])))


@torch.no_grad()
def test_what_stands_after_a_source_never_shows(reader: Subject) -> None:
    values, lengths = reader.source
    other = torch.where(torch.arange(values.shape[1]) < lengths[:, None], values, (values + 1) % VOCAB)
    for source in (Source(other, lengths), Source(torch.nn.functional.pad(values, (0, 3)), lengths)):
        reader.close(reader.model(reader.tokens, source=source).logits, reader.whole(reader.tokens))


@torch.no_grad()
def test_every_token_of_a_source_shows(reader: Subject) -> None:
    """A memory that lost part of the source would pass every comparison with itself."""
    values, lengths = reader.source
    base = reader.whole(reader.tokens).float()
    for place in range(4):
        changed = values.clone()
        changed[0, place] = (values[0, place] + 1) % VOCAB
        moved = (reader.model(reader.tokens, source=Source(changed, lengths)).logits.float() - base).abs().amax((1, 2))
        assert moved[0] > 1e-4
        assert moved[1:].max() == 0


@torch.no_grad()
def test_attention_sums_to_one_over_the_source(reader: Subject) -> None:
    looked = reader.model.attention(reader.tokens, reader.lengths, reader.source)
    if looked is None:
        assert reader.model.config.attention.kind == "none"
        return
    assert looked.shape == (4, TIME, reader.source.values.shape[1])
    torch.testing.assert_close(looked.float().sum(-1), torch.ones(4, TIME), rtol=0, atol=2e-2)
    outside = torch.arange(looked.shape[2]) >= reader.source.lengths[:, None]
    assert looked.masked_select(outside[:, None]).abs().max() == 0


@torch.no_grad()
def test_copied_probability_is_a_probability(reader: Subject) -> None:
    if not getattr(reader.model.config, "copying", False):
        pytest.skip("this model does not copy")
    torch.testing.assert_close(
        reader.whole(reader.tokens).float().exp().sum(-1), torch.ones(4, TIME), rtol=0, atol=1e-3
    )
