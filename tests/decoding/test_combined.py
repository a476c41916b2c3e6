"""Models that choose together, against their formulas on whole texts, through every way of feeding them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from textwright.decoding import Beam, Request, Sampling, beam_search, collect, generate
from textwright.decoding.combined import Dola, Ensemble, Guided
from textwright.decoding.contrastive import Contrastive, contrastive_search
from textwright.decoding.speculative import Draft, Lookup, speculate
from textwright.errors import ConfigError
from textwright.models import EncoderDecoderConfig, LanguageModel, LSTMConfig, Seq2SeqConfig, Source, TransformerConfig

VOCAB = 6
SHAPES: dict[str, Any] = {
    "lstm": LSTMConfig(vocab=VOCAB, width=12, layers=2),
    "transformer": TransformerConfig(vocab=VOCAB, width=16, layers=3, heads=2, window=20),
    "seq2seq": Seq2SeqConfig(vocab=VOCAB, width=12, layers=1),
    "encdec": EncoderDecoderConfig(vocab=VOCAB, width=16, layers=3, heads=2, window=20, source_window=20),
}
SOURCES = Source(torch.tensor([[1, 4, 2], [3, 5, 0], [2, 2, 5]]), torch.tensor([3, 2, 3]))
NEGATIVE = (5, 1)


def made(family: str, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = SHAPES[family].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model


def sources(model: LanguageModel, rows: int = 3) -> Source | None:
    return Source(SOURCES.values[:rows], SOURCES.lengths[:rows]) if hasattr(model, "source_vocab") else None


def logprobs(model: LanguageModel, text: Tensor, source: Source | None) -> Tensor:
    """(time, vocab) of one row by itself, all at once."""
    return model(text[None], source=source).logits[0].float().log_softmax(-1)


def one(source: Source | None, row: int) -> Source | None:
    return (
        None
        if source is None
        else Source(source.values[row : row + 1, : source.lengths[row]], source.lengths[row : row + 1])
    )


class Subject:
    """A combined model, and what its log-probabilities should be after a row's text (time,)."""

    def __init__(self, kind: str, family: str) -> None:
        self.models = [made(family, seed) for seed in (1, 2)]
        self.source = sources(self.models[0])
        self.reads = self.source is not None
        first, second = self.models
        if kind == "ensemble":
            self.model: LanguageModel = Ensemble(self.models, (0.25, 0.75))
            self.want: Callable[[Tensor, int], Tensor] = lambda text, row: (
                0.25 * self.plain(first, text, row).exp() + 0.75 * self.plain(second, text, row).exp()
            ).log()
        elif kind == "fusion":
            self.model = Ensemble(self.models, (1.0, 0.4), "logarithms")
            self.want = lambda text, row: (
                self.plain(first, text, row) + 0.4 * self.plain(second, text, row)
            ).log_softmax(-1)
        elif kind == "guided":
            self.model = Guided(first, 1.8, prompt=0 if self.reads else 3, negative=NEGATIVE if self.reads else ())
            self.want = self.guided
        elif kind == "negative":
            self.model = Guided(first, 1.8, prompt=3, negative=NEGATIVE)
            self.want = self.guided
        else:
            self.model = Dola(first)
            self.want = self.contrasted

    def plain(self, model: LanguageModel, text: Tensor, row: int) -> Tensor:
        return logprobs(model, text, one(self.source, row))[-1]

    def guided(self, text: Tensor, row: int) -> Tensor:
        model = self.models[0]
        if self.reads:
            other = logprobs(model, text, Source(torch.tensor([NEGATIVE]), torch.tensor([len(NEGATIVE)])))[-1]
        elif len(text) < 3:
            return self.plain(model, text, row)
        else:
            begun = torch.tensor(NEGATIVE) if self.model.negative else text[2:3]
            other = logprobs(model, torch.cat([begun, text[3:]]), None)[-1]
        here = self.plain(model, text, row)
        return (other + 1.8 * (here - other)).log_softmax(-1)

    def contrasted(self, text: Tensor, row: int) -> Tensor:
        """A model cut after a block is the model of its first blocks: their logits, without hooks."""
        model = self.models[0]
        last = self.plain(model, text, row)
        early = []
        blocks = model.blocks
        for count in (1, 2):
            model.blocks = torch.nn.ModuleList(list(blocks)[:count])
            early.append(self.plain(model, text, row))
            model.blocks = blocks

        def divergence(q: Tensor) -> float:
            p, q = last.exp(), q.exp()
            m = (p + q) / 2
            return float(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2)

        farthest = max(early, key=divergence)
        likely = last.exp() >= 0.1 * last.exp().max()
        return torch.where(likely, last - farthest, -torch.inf).log_softmax(-1)


KINDS = [
    *((kind, family) for kind in ("ensemble", "fusion", "guided") for family in SHAPES),
    *(("negative", family) for family in ("lstm", "transformer")),
    *(("dola", family) for family in ("transformer", "encdec")),
]


@pytest.fixture(params=KINDS, ids=lambda pair: "-".join(pair))
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(*request.param)


def close(got: Tensor, want: Tensor) -> None:
    got = got.float().log_softmax(-1)
    torch.testing.assert_close(got.exp(), want.exp(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunks", [[7], [3, 4], [1] * 7, [2, 5]])
@torch.no_grad()
def test_logits_are_the_formula(subject: Subject, chunks: list[int]) -> None:
    texts = torch.randint(0, VOCAB, (3, 7), generator=torch.Generator().manual_seed(0))
    state, parts, start = subject.model.begin(3, subject.source), [], 0
    for size in chunks:
        output = subject.model(texts[:, start : start + size], state=state)
        state, start = output.after, start + size
        parts.append(output.logits)
    got = torch.cat(parts, 1)
    for row in range(3):
        for time in range(2, 7):
            close(got[row, time], subject.want(texts[row, : time + 1], row))


@torch.no_grad()
def test_without_a_state_and_ragged(subject: Subject) -> None:
    texts = torch.randint(0, VOCAB, (3, 6), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 3, 4])
    whole = subject.model(texts, source=subject.source).logits
    ragged = subject.model(texts, lengths, subject.model.begin(3, subject.source), last_only=True)
    for row, length in enumerate(lengths.tolist()):
        close(whole[row, 5], subject.want(texts[row], row))
        close(ragged.logits[row, 0], subject.want(texts[row, :length], row))
    more = torch.tensor([[1], [2], [3]])
    moved = subject.model(more, torch.tensor([1, 0, 1]), ragged.after.select(torch.tensor([0, 1, 2]))).after
    again = subject.model(more[:2], state=moved.select(torch.tensor([2, 1]))).logits[:, 0]
    close(again[0], subject.want(torch.cat([texts[2, :4], more[2], more[0]]), 2))
    close(again[1], subject.want(torch.cat([texts[1, :3], more[1]]), 1))


@torch.no_grad()
def test_every_strategy_writes_with_it(subject: Subject) -> None:
    prompts = [(1, 2, 3), (4, 0, 2), (5, 5, 1)]
    read = [None if subject.source is None else tuple(one(subject.source, row).values[0].tolist()) for row in range(3)]
    requests = [
        Request(prompt, Sampling(temperature=heat), seed=row, max_new_tokens=6, source=read[row])
        for row, (prompt, heat) in enumerate(zip(prompts, (0.0, 1.0, 0.7), strict=True))
    ]
    plain = collect(generate(subject.model, requests, None))
    for drafter in (Lookup(3, 2), Draft(subject.models[0], 3)):
        assert [r.tokens for r in collect(speculate(subject.model, requests, None, drafter))] == [
            r.tokens for r in plain
        ]
    greedy = torch.tensor(prompts[0])
    for token in plain[0].tokens:
        assert token == int(subject.want(greedy, 0).argmax())
        greedy = torch.cat([greedy, torch.tensor([token])])
    warm = [Request(prompt, max_new_tokens=2, source=read[row]) for row, prompt in enumerate(prompts)]
    for row, results in enumerate(beam_search(subject.model, warm, None, Beam(beams=VOCAB**2))):
        for result in results[:3]:
            if result.logprob < -1e8:
                continue  # DoLa bans it
            text, total = torch.tensor(prompts[row]), 0.0
            for token in result.tokens:
                total += float(subject.want(text, row)[token])
                text = torch.cat([text, torch.tensor([token])])
            assert result.logprob == pytest.approx(total, abs=1e-3)
    if type(subject.model) is not Dola:
        with pytest.raises(ConfigError, match="no hidden states in common"):
            list(contrastive_search(subject.model, requests, None, Contrastive()))


def test_what_cannot_be_combined() -> None:
    lstm, transformer = made("lstm", 1), made("transformer", 1)
    other = LSTMConfig(vocab=VOCAB + 1, width=8, layers=1).build()
    with pytest.raises(ConfigError, match="one vocabulary, got 6, 7 tokens"):
        Ensemble([lstm, other])
    with pytest.raises(ConfigError, match="a weight for each of 2"):
        Ensemble([lstm, transformer], (1.0,))
    with pytest.raises(ConfigError, match="sum to 1"):
        Ensemble([lstm, transformer], (1.0, 0.5))
    with pytest.raises(ConfigError, match="layers of a Transformer"):
        Dola(lstm)
    with pytest.raises(ConfigError, match="layers from 0 to 1, got 2"):
        Dola(transformer, (2,))
    with pytest.raises(ConfigError, match="a source to lead away from"):
        Guided(made("encdec", 1), 1.5)
    with pytest.raises(ConfigError, match="the prompt has 2 tokens, the negative one 30"):
        Guided(transformer, 1.5, prompt=2, negative=[1] * 30)


def test_a_memory_that_is_half_places_goes_back_too() -> None:
    """An LSTM forgets by replay, a Transformer writes in place: together they must do neither by half."""
    both = Ensemble([made("lstm", 1), made("transformer", 2)])
    requests = [Request((1, 2, row), seed=row, max_new_tokens=8) for row in range(4)]
    plain = collect(generate(both, requests, None))
    for drafter in (Lookup(3, 2), Draft(both.models[0], 3), Draft(both, 2)):
        assert [r.tokens for r in collect(speculate(both, requests, None, drafter))] == [r.tokens for r in plain]


@torch.no_grad()
def test_an_lstm_and_a_transformer_vote() -> None:
    lstm, transformer = made("lstm", 1), made("transformer", 2)
    text = torch.tensor([[1, 2, 3, 4]])
    got = Ensemble([lstm, transformer])(text).logits
    want = (lstm(text).logits.softmax(-1) + transformer(text).logits.softmax(-1)) / 2
    torch.testing.assert_close(got.exp(), want)


@torch.no_grad()
def test_models_made_of_models_of_models_with_a_source() -> None:
    """A wrapper around a model with a source reads one, and guidance leads away from a source, not from a prompt."""
    plain, text, source = made("encdec", 1), torch.tensor([[0, 3, 1]]), one(SOURCES, 0)
    layers = Dola(plain)
    guided = Guided(layers, 1.7, negative=NEGATIVE)
    away = Source(torch.tensor([NEGATIVE]), torch.tensor([len(NEGATIVE)]))
    with_, without = (layers(text, source=read).logits.log_softmax(-1) for read in (source, away))
    torch.testing.assert_close(guided(text, source=source).logits, without + 1.7 * (with_ - without))
    both = Ensemble([layers, plain])
    want = (layers(text, source=source).logits.softmax(-1) + plain(text, source=source).logits.softmax(-1)) / 2
    torch.testing.assert_close(both(text, source=source).logits.exp(), want)


def test_a_guided_text_does_not_slide() -> None:
    """Read again from its last part it would no longer begin with its prompt."""
    guided = Guided(made("transformer", 1), 1.5, prompt=3)
    (text,) = collect(generate(guided, [Request((1, 2, 3), max_new_tokens=18)], None))
    assert len(text.tokens) == 18
    with pytest.raises(ConfigError, match="guidance cannot go past the window of 20 tokens"):
        collect(generate(guided, [Request((1, 2, 3), max_new_tokens=19)], None))


def test_contrastive_search_up_to_the_window() -> None:
    """It reads what it chooses among, the last token too."""
    model, how = made("transformer", 1), Contrastive()
    (text,) = collect(contrastive_search(model, [Request((1, 2, 3), max_new_tokens=17)], None, how))
    assert len(text.tokens) == 17
    with pytest.raises(ConfigError, match="ask for at most 17"):
        list(contrastive_search(model, [Request((1, 2, 3), max_new_tokens=18)], None, how))
