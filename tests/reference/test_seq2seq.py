"""The recurrent encoder-decoder against its written formulas in float64, with loops: one row, one step, one place at a
time. A row is read without its padding, so a backward direction that begins in the padding cannot agree."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from textwright.models import Seq2SeqConfig, Source
from textwright.models.alignment import (
    AdditiveAlignment,
    DotAlignment,
    GeneralAlignment,
    MultiHeadAlignment,
    NoAlignment,
)
from textwright.models.base import MOST

VOCAB, SOURCE_VOCAB, WIDTH = 9, 12, 6
LENGTHS, SOURCE_LENGTHS = (4, 2, 1), (2, 5, 1)
LAMBDA = 0.7


def config(**changes: Any) -> Seq2SeqConfig:
    return Seq2SeqConfig(**{"vocab": VOCAB, "width": WIDTH, "layers": 1, **changes})


ATTENTIONS = {
    "additive": {"attention": AdditiveAlignment()},
    "coverage": {"attention": AdditiveAlignment(coverage=LAMBDA)},
    "dot": {"attention": DotAlignment(), "encoder_width": WIDTH // 2},
    "general": {"attention": GeneralAlignment()},
    "multihead": {"attention": MultiHeadAlignment(heads=2)},
    "multihead of one width": {"attention": MultiHeadAlignment(heads=3), "encoder_width": WIDTH // 2},
}
CELLS = ("rnn", "gru", "lstm")
NO_ATTENTION = {"attention": NoAlignment(), "input_feeding": False}
SEPARATE = {"source_vocab": SOURCE_VOCAB, "shared": False}

VARIANTS = {
    f"{cell}, {name}{', fed' if feeding else ''}": config(cell=cell, input_feeding=feeding, **attention)
    for cell, (name, attention), feeding in itertools.product(CELLS, ATTENTIONS.items(), (True, False))
}
VARIANTS |= {
    **{f"{cell}, no attention": config(cell=cell, layers=2, **NO_ATTENTION) for cell in CELLS},
    **{f"{cell}, two layers": config(cell=cell, layers=2) for cell in CELLS},
    **{f"{cell}, passed": config(cell=cell, layers=2, bridge="pass", encoder_width=WIDTH // 2) for cell in CELLS},
    **{f"{cell}, no bridge": config(cell=cell, layers=2, bridge="none") for cell in CELLS},
    **{f"{cell}, one direction": config(cell=cell, layers=2, bidirectional=False, bridge="pass") for cell in CELLS},
    "narrow encoder": config(encoder_width=2, layers=2),
    "separate vocabularies": config(tied=False, **SEPARATE),
    "separate vocabularies, tied": config(**SEPARATE),
    "pointer": config(copying=True),
    "pointer with coverage": config(cell="lstm", copying=True, attention=AdditiveAlignment(coverage=LAMBDA)),
    "pointer at once": config(copying=True, attention=GeneralAlignment(), input_feeding=False, shared=False),
    "pointer, multihead": config(copying=True, attention=MultiHeadAlignment(heads=2), tied=False),
}


class Case(NamedTuple):
    """A float64 model with wide weights, biases included, and a batch padded with garbage."""

    model: Any
    tokens: Tensor
    source: Source

    def row(self, row: int) -> tuple[Tensor, Tensor]:
        """Real tokens and real source of a row."""
        return self.tokens[row, : LENGTHS[row]], self.source.values[row, : SOURCE_LENGTHS[row]]


def case(settings: Seq2SeqConfig) -> Case:
    torch.manual_seed(1)
    model: Any = settings.build().double().eval()
    for parameter in model.parameters():  # biases too: a formula that forgets one must fail
        nn.init.normal_(parameter, std=0.5)
    tokens = torch.randint(0, VOCAB, (len(LENGTHS), max(LENGTHS)))
    values = torch.randint(0, model.source_vocab, (len(LENGTHS), max(SOURCE_LENGTHS)))
    return Case(model, tokens, Source(values, torch.tensor(SOURCE_LENGTHS)))


@pytest.mark.parametrize("name", VARIANTS)
def test_written_formulas(name: str) -> None:
    """Logits, where each step looked, and what flows back to every weight."""
    model, tokens, source = subject = case(VARIANTS[name])
    logits = model(tokens, torch.tensor(LENGTHS), source=source).logits
    looked = model.attention(tokens, torch.tensor(LENGTHS), source)
    got, want = [], []
    for row, (length, places) in enumerate(zip(LENGTHS, SOURCE_LENGTHS, strict=True)):
        written = by_formula(model, *subject.row(row))
        got.append(logits[row, :length].double())
        want.append(written.logits)
        # Weights and mixture are float32 by design: they agree to that.
        torch.testing.assert_close(got[-1], want[-1], rtol=1e-5, atol=1e-5)
        if looked is None:
            assert written.looked == []
            continue
        expected = torch.stack(written.looked)
        torch.testing.assert_close(looked[row, :length, :places].double(), expected, rtol=1e-5, atol=1e-6)
        assert looked[row, :, places:].eq(0).all()
    names, parameters = zip(*model.named_parameters(), strict=True)
    sides = [torch.autograd.grad(sum(part.sin().sum() for part in parts), parameters) for parts in (got, want)]
    for which, ours, theirs in zip(names, *sides, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=1), which


@pytest.mark.parametrize("feeding", [True, False])
@pytest.mark.parametrize("copying", [True, False])
@torch.no_grad()
def test_coverage_penalty(feeding: bool, copying: bool) -> None:
    """λ Σ min(a_i, c_i) of each step, nothing at the first: See et al. 2017, eq. 12 and 13."""
    attention = AdditiveAlignment(coverage=LAMBDA)
    subject = case(config(attention=attention, input_feeding=feeding, copying=copying))
    hidden, _ = subject.model.hidden(subject.tokens, None, None, subject.source)
    assert hidden.penalty.shape == subject.tokens.shape
    assert hidden.penalty[:, 0].eq(0).all()
    for row, length in enumerate(LENGTHS):
        looked = by_formula(subject.model, *subject.row(row)).looked
        for step in range(length):
            covered = [sum(float(before[place]) for before in looked[:step]) for place in range(len(looked[0]))]
            want = LAMBDA * sum(min(float(now), then) for now, then in zip(looked[step], covered, strict=True))
            assert float(hidden.penalty[row, step]) == pytest.approx(want, abs=1e-6)


@torch.no_grad()
def test_a_source_of_one_token_is_penalised_in_full() -> None:
    """Every step looks at the one place there is: λ min(1, t)."""
    subject = case(config(attention=AdditiveAlignment(coverage=LAMBDA)))
    hidden, _ = subject.model.hidden(subject.tokens, None, None, subject.source)
    assert SOURCE_LENGTHS[2] == 1
    torch.testing.assert_close(hidden.penalty[2], torch.tensor([0, LAMBDA, LAMBDA, LAMBDA]))


# By hand: one query over the places (0, 0), (1, 0), (0, 1); (5, 5) stands behind the end of the source ----------------

LOGS = torch.tensor([[[math.log(2), math.log(3)]]])  # a query whose scores are logarithms of small integers
PLACES = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]])
MASK = torch.tensor([[[0.0, 0.0, 0.0, -math.inf]]])


def look(align: Any, query: Tensor, seen: Tensor | None = None) -> tuple[list[float], list[float]]:
    context, looked = align(query, *align.read(PLACES), MASK, seen)
    assert looked[0, 0, 3] == 0
    return context[0, 0].tolist(), looked[0, 0, :3].tolist()


@torch.no_grad()
def test_dot_by_hand() -> None:
    """e^score is 1, 2, 3."""
    context, looked = look(DotAlignment().build(2, 2), LOGS)
    assert looked == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert context == pytest.approx([2 / 6, 3 / 6])


@torch.no_grad()
def test_general_by_hand() -> None:
    """W (1, 0) = (1, 0) and W (0, 1) = (2, 1): e^score is 1, 2 and 2² · 3. With qᵀ Wᵀ m it would be 1, 2 · 3², 3."""
    align: Any = GeneralAlignment().build(2, 2)
    align.key.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    context, looked = look(align, LOGS)
    assert looked == pytest.approx([1 / 15, 2 / 15, 12 / 15])
    assert context == pytest.approx([2 / 15, 12 / 15])


@torch.no_grad()
@pytest.mark.parametrize("seen", [None, (0.0, 2.0, 1.0, 0.0)])
def test_additive_by_hand(seen: tuple[float, ...] | None) -> None:
    """W q = (3, -1), U m = (m_1 + m_2, -m_1), b = (0, 1), w = (1, 2), v = (2, -1)."""
    align: Any = AdditiveAlignment(coverage=float(seen is not None)).build(2, 2)
    align.query.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, -1.0]]))
    align.key.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
    align.key.bias.copy_(torch.tensor([0.0, 1.0]))
    align.score.weight.copy_(torch.tensor([[2.0, -1.0]]))
    inner = [(3, 0), (4, -1), (4, 0)]
    if seen is not None:
        align.seen.weight.copy_(torch.tensor([[1.0], [2.0]]))
        inner = [(3, 0), (6, 3), (5, 2)]
    context, looked = look(align, torch.tensor([[[2.0, 1.0]]]), None if seen is None else torch.tensor([seen]))
    shares = [math.exp(2 * math.tanh(first) - math.tanh(second)) for first, second in inner]
    want = [share / sum(shares) for share in shares]
    assert looked == pytest.approx(want)
    assert context == pytest.approx(want[1:])


@torch.no_grad()
def test_multihead_by_hand() -> None:
    """Two heads of width 1; values are twice the places; the heads change places on their way out, and 1 is added."""
    align: Any = MultiHeadAlignment(heads=2).build(2, 2)
    one = torch.eye(2)
    align.cross.q.weight.copy_(one)
    align.cross.kv.weight.copy_(torch.cat([one, 2 * one]))
    align.cross.out.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    for part, value in ((align.cross.q, 0.0), (align.cross.kv, 0.0), (align.cross.out, 1.0)):
        part.bias.fill_(value)
    context, looked = look(align, LOGS)
    first, second = (1 / 4, 2 / 4, 1 / 4), (1 / 5, 1 / 5, 3 / 5)  # e^score is 1, 2, 1 and 1, 1, 3
    assert looked == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert context == pytest.approx([1 + 2 * second[2], 1 + 2 * first[1]])


# The formulas ---------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    logits: Tensor  # (T, vocab)
    looked: list[Tensor]  # of each step: (S,)


Memory = tuple[Tensor, Tensor]  # hidden and, for the LSTM, cell


def by_formula(model: Any, tokens: Tensor, source: Tensor) -> Written:
    """The docstring of models/seq2seq.py, for one row: tokens (T,) and source (S,)."""
    c = model.config
    places, finals = encoded(model, source)
    memory = [bridged(model, layer, final) for layer, final in enumerate(finals)]
    fed, covered = torch.zeros(c.width).double(), torch.zeros(len(source)).double()
    logits, looks = [], []
    for token in tokens.tolist():
        embedded = x = model.embed.weight[token]
        if c.input_feeding:
            x = torch.cat([x, fed])
        for layer, cell in enumerate(model.cells):
            memory[layer] = step(c.cell, cell, "l0", x, memory[layer])
            x = memory[layer][0]
        mixed = state = x
        if model.align is not None:
            looked, context = attention(model.align, c, state, places, covered)
            mixed = torch.tanh(linear(model.mix, torch.cat([context, state])))
            looks.append(looked)
            fed, covered = mixed, covered + looked
        scores = model.head.weight @ mixed + model.head.bias
        if c.copying:
            generate = 1 - MOST * sigmoid(linear(model.pointer, torch.cat([context, state, embedded])))
            scores = copied(scores, generate.squeeze(), looked, source)
        logits.append(scores)
    return Written(torch.stack(logits), looks)


def encoded(model: Any, source: Tensor) -> tuple[list[Tensor], list[Memory]]:
    """Places m_1 … m_S, and of every layer the last states of both directions, joined."""
    c = model.config
    x, finals = [model.source_embed.weight[token] for token in source.tolist()], []
    for cell in model.encoder:
        width = torch.zeros(c.encoded).double()
        directions = [("l0", range(len(x)))] + [("l0_reverse", range(len(x) - 1, -1, -1))] * c.bidirectional
        sides, ends = [], []
        for suffix, order in directions:
            memory, outputs = (width, width), {}
            for place in order:
                memory = step(c.cell, cell, suffix, x[place], memory)
                outputs[place] = memory[0]
            sides.append(outputs)
            ends.append(memory)
        x = [torch.cat([side[place] for side in sides]) for place in range(len(x))]
        finals.append((torch.cat([end[0] for end in ends]), torch.cat([end[1] for end in ends])))
    return x, finals


def bridged(model: Any, layer: int, final: Memory) -> Memory:
    c = model.config
    if c.bridge == "pass":
        return final
    if c.bridge == "none":
        return torch.zeros(c.width).double(), torch.zeros(c.width).double()
    hidden = torch.tanh(linear(model.bridges[layer], final[0]))
    return hidden, torch.tanh(linear(model.bridges[c.layers + layer], final[1])) if c.cell == "lstm" else hidden


def attention(align: Any, c: Seq2SeqConfig, query: Tensor, places: list[Tensor], seen: Tensor) -> tuple[Tensor, Tensor]:
    """The docstring of models/alignment.py: a (S,) and the context."""
    kind = c.attention.kind
    if kind == "multihead":
        return multihead(align, c.attention.heads, query, places)
    scores = []
    for place, covered in zip(places, seen, strict=True):
        if kind == "additive":
            inner = align.query.weight @ query + linear(align.key, place)
            if c.attention.coverage:
                inner = inner + align.seen.weight[:, 0] * covered
            scores.append(align.score.weight[0] @ torch.tanh(inner))
        else:
            scores.append(query @ (align.key.weight @ place if kind == "general" else place))
    looked = softmax(scores)
    return looked, sum(weight * place for weight, place in zip(looked, places, strict=True))


def multihead(align: Any, heads: int, query: Tensor, places: list[Tensor]) -> tuple[Tensor, Tensor]:
    if len(places[0]) != len(query):
        places = [linear(align.bring, place) for place in places]
    width = len(query) // heads
    q = linear(align.cross.q, query).split(width)
    both = [linear(align.cross.kv, place).split(width) for place in places]
    looks = [softmax([q[head] @ kv[head] / math.sqrt(width) for kv in both]) for head in range(heads)]
    found = [sum(looks[head][s] * kv[heads + head] for s, kv in enumerate(both)) for head in range(heads)]
    return sum(looks) / heads, linear(align.cross.out, torch.cat(found))


def copied(scores: Tensor, generate: Tensor, looked: Tensor, source: Tensor) -> Tensor:
    """log(p_gen P(token) + (1 - p_gen) Σ a_i over its places): See et al. 2017, eq. 9."""
    likely = list(generate * softmax(list(scores)))
    for token, weight in zip(source.tolist(), looked, strict=True):
        likely[token] = likely[token] + (1 - generate) * weight
    return torch.stack(likely).log()


def step(kind: str, cell: Any, suffix: str, x: Tensor, memory: Memory) -> Memory:
    """One step of one layer: the docstring of models/rnn.py."""
    W, U, b, c = (getattr(cell, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, m = memory
    ours, before = W @ x + b, U @ h + c
    if kind == "rnn":
        return torch.tanh(ours + before), m
    if kind == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = ours.chunk(3), before.chunk(3)
        z = sigmoid(x_z + h_z)
        return (1 - z) * torch.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h, m
    i, f, g, o = (ours + before).chunk(4)
    m = sigmoid(f) * m + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(m), m


def softmax(scores: list[Tensor]) -> Tensor:
    shares = [score.exp() for score in scores]
    return torch.stack([share / sum(shares) for share in shares])


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def linear(module: Any, x: Tensor) -> Tensor:
    return module.weight @ x + module.bias


@pytest.mark.parametrize("settings", [{"attention": DotAlignment()}, {"bridge": "pass"}], ids=["dot", "pass"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_encoder_is_as_wide_as_the_decoder_where_it_must_be(settings: dict[str, Any], bidirectional: bool) -> None:
    """Without being told: half a width for each of two directions."""
    config = Seq2SeqConfig(vocab=9, width=8, bidirectional=bidirectional, **settings)
    assert config.memory == 8
    source = Source(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    model = config.build()
    assert model(torch.tensor([[4, 5]]), state=model.begin(1, source)).logits.shape == (1, 2, 9)
    assert Seq2SeqConfig(vocab=9, width=8, bidirectional=bidirectional).memory == (16 if bidirectional else 8)
