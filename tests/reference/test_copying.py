"""The pointer's mixture: against a naive float64 loop by itself, and inside both families.

What each family's pointer computes is checked, formula by formula, in `test_seq2seq.py` and `test_encdec.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from textwright.models import EncoderDecoderConfig, Seq2SeqConfig, Source
from textwright.models.alignment import AdditiveAlignment, DotAlignment, GeneralAlignment, MultiHeadAlignment
from textwright.models.base import MOST, Hidden, mixed
from textwright.training.hardware import has_bfloat16

VOCAB, WIDTH, ROWS, TIME = 9, 8, 3, 5
IDS = torch.tensor([[4, 4, 7, 4], [1, 2, 1, 2], [0, 8, 3, 5]])  # the first two rows say tokens again


def example() -> tuple[Tensor, Hidden]:
    """Logits (rows, time, vocab) and copied shares, of which some steps copy little and some nearly all."""
    torch.manual_seed(2)
    logits, shares = torch.randn(ROWS, TIME, VOCAB) * 3, torch.randn(ROWS, TIME, IDS.shape[1]).softmax(-1)
    return logits, Hidden(torch.empty(ROWS, TIME, WIDTH), shares * torch.rand(ROWS, TIME, 1), IDS)


def naive(logits: Tensor, copied: Tensor, ids: Tensor) -> Tensor:
    """See et al. 2017, eq. 9, one token at a time: probabilities (rows, time, vocab), float64."""
    likely = torch.zeros(logits.shape, dtype=torch.float64)
    for row, step, token in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        scores = [math.exp(score) for score in logits[row, step].double().tolist()]
        places = [place for place, stands in enumerate(ids[row].tolist()) if stands == token]
        generate = 1 - sum(copied[row, step].double().tolist())
        from_source = sum(float(copied[row, step, place]) for place in places)
        likely[row, step, token] = generate * scores[token] / sum(scores) + from_source
    return likely


def test_mixture_is_the_naive_one() -> None:
    logits, hidden = example()
    torch.testing.assert_close(
        mixed(logits, hidden).double().exp(), naive(logits, hidden.copied, IDS), rtol=1e-5, atol=1e-7
    )


def test_mixture_sums_to_one() -> None:
    torch.testing.assert_close(mixed(*example()).exp().sum(-1), torch.ones(ROWS, TIME))


def test_mass_of_a_repeated_token_adds_up() -> None:
    """By hand: half is copied, of it 1/4, 1/8, 1/2 and 1/8 from the tokens 4, 4, 7, 4; the rest is even among nine."""
    copied = torch.tensor([[[1 / 8, 1 / 16, 1 / 4, 1 / 16]]])
    likely = mixed(torch.zeros(1, 1, VOCAB), Hidden(torch.empty(1, 1, WIDTH), copied, IDS[:1])).exp()[0, 0]
    even = 1 / 2 / 9
    want = [even] * VOCAB
    want[4], want[7] = even + 1 / 8 + 1 / 16 + 1 / 16, even + 1 / 4
    torch.testing.assert_close(likely, torch.tensor(want))


def test_nothing_copied_is_the_head_alone() -> None:
    logits, hidden = example()
    alone = mixed(logits, hidden._replace(copied=torch.zeros_like(hidden.copied)))
    torch.testing.assert_close(alone, logits.log_softmax(-1))


def test_all_copied_is_the_source_alone() -> None:
    logits, hidden = example()
    shares = hidden.copied / hidden.copied.sum(-1, keepdim=True)
    likely = mixed(logits, hidden._replace(copied=shares)).exp()
    for row in range(ROWS):
        absent = [token for token in range(VOCAB) if token not in IDS[row].tolist()]
        assert likely[row, :, absent].max() < 1e-6
        for token in IDS[row].unique().tolist():
            torch.testing.assert_close(likely[row, :, token], shares[row][:, IDS[row] == token].sum(-1))


def test_gradients_are_those_of_the_naive_formula() -> None:
    """Of the log-probability of a token that is in the source, and of one that is not."""
    logits, hidden = example()
    logits, copied = logits.requires_grad_(), hidden.copied.requires_grad_()
    tokens = torch.randint(0, VOCAB, (ROWS, TIME, 1))
    got = torch.autograd.grad(mixed(logits, hidden).gather(-1, tokens).sum(), (logits, copied))
    shares = torch.nn.functional.one_hot(IDS, VOCAB).double()[:, None] * copied.double()[..., None]
    likely = (1 - copied.double().sum(-1, keepdim=True)) * logits.double().softmax(-1) + shares.sum(2)
    want = torch.autograd.grad(likely.log().gather(-1, tokens).sum(), (logits, copied))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mass", [0.0, 1.0])
@pytest.mark.parametrize("token", [4, 6], ids=["in the source", "not in the source"])
def test_values_and_gradients_are_finite_at_the_ends(mass: float, token: int) -> None:
    """A pointer that is certain, either way, in a step whose token disagrees: a large loss, never an infinite one."""
    logits, hidden = example()
    shares = hidden.copied / hidden.copied.sum(-1, keepdim=True) * mass
    logits, copied = logits.requires_grad_(), shares.requires_grad_()
    loss = -mixed(logits, hidden._replace(copied=copied))[..., token]
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), (logits, copied)):
        assert gradient.isfinite().all()


# In both families -----------------------------------------------------------------------------------------------------


def seq2seq(**changes: Any) -> Seq2SeqConfig:
    return Seq2SeqConfig(vocab=VOCAB, width=WIDTH, layers=1, copying=True, **changes)


def encdec(**changes: Any) -> EncoderDecoderConfig:
    shape = {"width": WIDTH, "layers": 2, "heads": 2, "window": 8, "source_window": 8}
    return EncoderDecoderConfig(vocab=VOCAB, copying=True, **{**shape, **changes})


MODELS = {
    "seq2seq": seq2seq(),
    "seq2seq, coverage": seq2seq(cell="lstm", attention=AdditiveAlignment(coverage=1.0)),
    "seq2seq, dot at once": seq2seq(attention=DotAlignment(), encoder_width=WIDTH // 2, input_feeding=False),
    "seq2seq, general at once": seq2seq(attention=GeneralAlignment(), input_feeding=False),
    "seq2seq, multihead": seq2seq(attention=MultiHeadAlignment(heads=2)),
    "encdec": encdec(),
    "encdec, post-norm": encdec(norm_place="post", positions="sinusoidal", bias=True, shared=False),
    "encdec, one block": encdec(layers=1, positions="relative", norm="rmsnorm", kv_heads=1),
}
LENGTHS = torch.tensor([4, 2, 3])


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    made = MODELS[request.param].build().eval()
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, std=0.1 if name.startswith("pointer") else 0.5)  # a pointer that does not know yet
    return made


def read(model: Any) -> tuple[Hidden, Tensor]:
    """What the head reads of a ragged batch, and the logits it makes of it."""
    torch.manual_seed(4)
    tokens, source = torch.randint(0, VOCAB, (ROWS, TIME)), Source(IDS, LENGTHS)
    hidden, _ = model.hidden(tokens, None, None, source)
    return hidden, model(tokens, source=source).logits


def point(model: Any, way: float) -> Any:
    """A pointer that copies nothing (way < 0), or everything (way > 0), whatever it reads."""
    with torch.no_grad():
        model.pointer.weight.zero_()
        model.pointer.bias.fill_(way)
    return model


def test_logits_are_the_mixture_of_the_head_and_the_pointer(model: Any) -> None:
    hidden, logits = read(model)
    assert hidden.copied.sum(-1).min() > 0.1 and hidden.copied.sum(-1).max() < 0.9
    want = naive(model.head(hidden.values).detach(), hidden.copied.detach(), IDS)
    torch.testing.assert_close(logits.double().exp(), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(ROWS, TIME))


def test_nothing_is_copied_from_padding(model: Any) -> None:
    hidden, _ = read(model)
    outside = torch.arange(IDS.shape[1]) >= LENGTHS[:, None]
    assert hidden.copied.masked_select(outside[:, None]).eq(0).all()


@pytest.mark.parametrize("model", [name for name in MODELS if MODELS[name].layers == 1], indirect=True)
def test_places_are_copied_from_as_they_are_looked_at(model: Any) -> None:
    """Where there is one attention over the source, it is what `attention` tells."""
    hidden, _ = read(model)
    torch.manual_seed(4)
    looked = model.attention(torch.randint(0, VOCAB, (ROWS, TIME)), None, Source(IDS, LENGTHS))
    torch.testing.assert_close(hidden.copied / hidden.copied.sum(-1, keepdim=True), looked)


def test_flat_hidden_gives_the_same_logits(model: Any) -> None:
    hidden, logits = read(model)
    flat = hidden.flat()
    assert flat.values.shape == (ROWS * TIME, WIDTH) and flat.ids.shape == flat.copied.shape
    torch.testing.assert_close(model.logits(flat), logits.flatten(0, 1))
    if hidden.penalty is not None:
        assert torch.equal(flat.penalty, hidden.penalty.flatten())


@pytest.mark.parametrize("size", [1, 4, TIME, ROWS * TIME, 100])
def test_split_hidden_gives_the_same_logits(model: Any, size: int) -> None:
    """Parts that cut through rows, and one that holds everything."""
    hidden, logits = read(model)
    parts = hidden.flat().split(size)
    assert [len(part.values) for part in parts[:-1]] == [size] * (len(parts) - 1)
    torch.testing.assert_close(torch.cat([model.logits(part) for part in parts]), logits.flatten(0, 1))
    if hidden.penalty is not None:
        assert torch.equal(torch.cat([part.penalty for part in parts]), hidden.penalty.flatten())


def test_joined_steps_are_the_whole(model: Any) -> None:
    hidden, logits = read(model)
    steps = [
        Hidden(*(leaf if leaf is None or leaf is hidden.ids else leaf[:, t : t + 1] for leaf in hidden))
        for t in range(TIME)
    ]
    joined = Hidden.joined(steps)
    for ours, whole in zip(joined, hidden, strict=True):
        assert (ours is None and whole is None) or torch.equal(ours, whole)
    torch.testing.assert_close(model.logits(joined), logits)


def test_last_step_has_the_logits_of_the_last_step(model: Any) -> None:
    hidden, logits = read(model)
    want = logits[torch.arange(ROWS), LENGTHS - 1]
    torch.testing.assert_close(model.logits(hidden.last(LENGTHS))[:, 0], want)


@pytest.mark.parametrize("way", [-200.0, 0.0, 200.0], ids=["generates", "mixes", "copies"])
def test_gradients_are_finite_however_certain_the_pointer_is(model: Any, way: float) -> None:
    """At 200 a sigmoid is 0 or 1 in float32; every token is asked for, those of the source and others."""
    hidden, logits = read(point(model, way))
    mass = hidden.copied.sum(-1).detach()
    torch.testing.assert_close(mass, torch.full_like(mass, MOST / (1 + math.exp(-way))))
    assert logits.isfinite().all() and logits.min() > -30  # something is always left to the head
    (-logits.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_gradient_reaches_both_sides_of_a_mixture(model: Any) -> None:
    """The pointer learns from the next token alone: nothing else tells it when to copy."""
    _, logits = read(model)
    logits[..., 4].sum().backward()
    assert model.pointer.weight.grad.abs().max() > 1e-3 and model.head.weight.grad.abs().max() > 1e-3


@pytest.mark.skipif(not has_bfloat16(torch.device("cpu")), reason="oneDNN has no LSTM layer in bfloat16 here")
def test_a_pointer_in_bfloat16_still_generates(model: Any) -> None:
    """1 - σ(7) is 0.0009: a bfloat16 next to 1 cannot say that, and rounds it to nothing, hence a loss of 69 nats for
    every token outside the source, whose gradient is zero."""
    point(model, 7.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, logits = read(model)
    generate = 1 - hidden.copied.sum(-1)
    torch.testing.assert_close(generate, torch.full_like(generate, 1 - MOST / (1 + math.exp(-7))), rtol=0.1, atol=0)
    assert logits.min() > -30
