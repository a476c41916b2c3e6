"""The five invariants of the model contract, on every family, in float32 and in bfloat16.

Each check compares with the slowest and plainest way to the same answer: one row alone, the whole text at once, no
state. Weights are spread wide, so that a wrong memory shows in the logits and not only in their last digits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, VOCAB, WINDOW
from torch import Tensor

from textwright.decoding import Beam, Engine, Request, Sampling, beam_search, collect, generate
from textwright.errors import StateSpentError
from textwright.models import LanguageModel, State, transformer
from textwright.models.base import Source

TIME = 9
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-2}


@dataclass
class Subject:
    model: LanguageModel
    tokens: Tensor  # (4, TIME)
    lengths: Tensor  # (4,), ragged
    nxt: Tensor  # (4, 1), one more token for each row
    tolerance: float

    def close(self, got: Tensor, want: Tensor) -> None:
        scale = float(want.detach().float().abs().max().clamp(min=1))
        torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=self.tolerance * scale)

    def alone(self, row: int, *more: Tensor) -> Tensor:
        """Logits (time, vocab) of one row by itself: its real tokens, then `more`."""
        text = torch.cat([self.tokens[row, : self.lengths[row]], *more])
        return self.model(text[None]).logits[0]

    def after(self, rows: list[int] | None = None) -> State:
        """The state of some rows after their real tokens, read as one ragged batch."""
        rows = list(range(4)) if rows is None else rows
        lengths = self.lengths[rows]
        return self.model(self.tokens[rows, : int(lengths.max())], lengths, self.model.begin(len(rows))).after


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(transformer, "GROWTH", 2)  # a cache that grows in large chunks hides a wrong concat
    torch.manual_seed(3)
    model = FAMILIES[request.param].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    lengths = torch.tensor([TIME, 3, 6, 1])
    tokens, nxt = torch.randint(0, VOCAB, (4, TIME)), torch.randint(0, VOCAB, (4, 1))
    return Subject(model.to(dtype), tokens, lengths, nxt, TOLERANCE[dtype])


# 1. one token at a time == in chunks == all at once ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, TIME])
@torch.no_grad()
def test_chunks(subject: Subject, size: int) -> None:
    state, parts = subject.model.begin(4), []
    for start in range(0, TIME, size):
        output = subject.model(subject.tokens[:, start : start + size], state=state)
        state, parts = output.after, [*parts, output.logits]
    subject.close(torch.cat(parts, 1), subject.model(subject.tokens).logits)


@pytest.mark.parametrize("capacity", [None, TIME + 3])
@torch.no_grad()
def test_capacity_changes_nothing(subject: Subject, capacity: int | None) -> None:
    output = subject.model(subject.tokens, state=subject.model.begin(4, capacity=capacity))
    output = subject.model(subject.nxt, state=output.after)
    whole = torch.cat([subject.tokens, subject.nxt], 1)
    subject.close(output.logits[:, 0], subject.model(whole).logits[:, -1])


def test_gradients_through_states(subject: Subject) -> None:
    """What flows back through carried states is what flows back through the whole text."""
    model = subject.model
    model(subject.tokens).logits.square().sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    first = model(subject.tokens[:, :4], state=model.begin(4))
    second = model(subject.tokens[:, 4:], state=first.after)
    torch.cat([first.logits, second.logits], 1).square().sum().backward()
    for parameter, want in zip(model.parameters(), whole, strict=True):
        subject.close(parameter.grad, want)


# 2. steps at or after lengths[r] do not move row r --------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["zeros", "random"])
@torch.no_grad()
def test_padding_never_shows(subject: Subject, garbage: str) -> None:
    padding = torch.zeros(4, TIME, dtype=torch.long) if garbage == "zeros" else torch.randint(0, VOCAB, (4, TIME))
    batch = torch.where(torch.arange(TIME) < subject.lengths[:, None], subject.tokens, padding)
    output = subject.model(batch, subject.lengths, subject.model.begin(4))
    after = subject.model(subject.nxt, state=output.after).logits
    for row, length in enumerate(subject.lengths.tolist()):
        subject.close(output.logits[row, :length], subject.alone(row))
        subject.close(after[row, 0], subject.alone(row, subject.nxt[row])[-1])


@torch.no_grad()
def test_training_ignores_padding(subject: Subject) -> None:
    logits = subject.model(subject.tokens, subject.lengths).logits
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
    logits = subject.model(subject.tokens, subject.lengths, subject.model.begin(4), last_only=True).logits
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


@torch.no_grad()
def test_a_copy_is_a_snapshot(subject: Subject) -> None:
    """Ragged acceptance by replay: advance a copy by a draft, then feed each row only what was accepted of it."""
    snapshot = subject.after([1, 2, 3])
    draft, accepted = torch.randint(0, VOCAB, (3, 4)), torch.tensor([4, 0, 2])
    subject.model(draft, state=snapshot.copy())
    replayed = subject.model(draft, accepted, snapshot).after
    logits = subject.model(subject.nxt[1:], state=replayed).logits[:, 0]
    for place, row in enumerate((1, 2, 3)):
        subject.close(logits[place], subject.alone(row, draft[place, : accepted[place]], subject.nxt[row])[-1])


@torch.no_grad()
def test_truncate_equals_replay(subject: Subject) -> None:
    state = subject.after([1, 2, 3])
    if not isinstance(state, transformer.KeyValueState):
        pytest.skip("recurrent states roll back by replay alone")
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
    prompts = [tuple(subject.tokens[row, : subject.lengths[row]].tolist()) for row in rows]
    requests = [Request(prompt, max_new_tokens=length) for prompt in prompts]
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
        Request(
            tuple(subject.tokens[row, : subject.lengths[row]].tolist()),
            Sampling(temperature=0.0 if row % 2 else 1.0, top_k=5),
            seed=row,
            max_new_tokens=budget,
        )
        for row, budget in enumerate((5, 30, 3, 17))
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
    prompts = [tuple(subject.tokens[row, : subject.lengths[row]].tolist()) for row in range(4)]
    requests = [Request(prompt, Sampling(temperature=0.0), max_new_tokens=WINDOW - TIME) for prompt in prompts]
    results = collect(generate(subject.model, requests, None, max_rows=2))
    for prompt, result in zip(prompts, results, strict=True):
        text = torch.tensor([prompt + result.tokens[:-1]])
        logits = subject.model(text).logits[0, len(prompt) - 1 :].float()
        chosen = logits.gather(1, torch.tensor(result.tokens)[:, None]).squeeze(1)
        scale = float(logits.abs().max().clamp(min=1))
        assert float((logits.amax(-1) - chosen).max()) <= 2 * subject.tolerance * scale


def test_a_source_is_refused_by_models_without_an_encoder(subject: Subject) -> None:
    source = Source(torch.zeros(2, 3, dtype=torch.long), torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="reads no source"):
        subject.model.begin(2, source)
    with pytest.raises(ValueError, match="reads no source"):
        subject.model(subject.tokens, source=source)
