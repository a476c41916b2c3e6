"""What a beam search may be told, against naive versions, formulas, counts and Hugging Face."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from textwright.decoding import Beam, Request, beam_search
from textwright.errors import ConfigError
from textwright.models import (
    EncoderDecoderConfig,
    GRUConfig,
    LanguageModel,
    Output,
    Seq2SeqConfig,
    State,
    TransformerConfig,
)
from textwright.models.alignment import NoAlignment
from textwright.models.base import Source

VOCAB, END = 5, 0


def wide(model: LanguageModel, seed: int = 5) -> LanguageModel:
    """Weights spread wide, so that texts differ in probability."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.eval()


def gru() -> LanguageModel:
    return wide(GRUConfig(vocab=VOCAB, width=12, layers=1).build())


@torch.no_grad()
def logprobs(model: LanguageModel, text: tuple[int, ...]) -> Tensor:
    return model(torch.tensor([text])).logits[0, -1].double().log_softmax(-1)


@torch.no_grad()
def score(model: LanguageModel, prompt: tuple[int, ...], text: tuple[int, ...]) -> float:
    rows = model(torch.tensor([prompt + text[:-1]])).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
    return float(sum(row[token] for row, token in zip(rows, text, strict=True)))


def every_text(length: int) -> list[tuple[int, ...]]:
    """All texts of at most `length` tokens, ended by the end or by the limit."""
    whole = itertools.product(range(VOCAB), repeat=length)
    return sorted({text[: text.index(END) + 1] if END in text else text for text in whole})


@pytest.mark.parametrize(("norm", "alpha"), [("average", 0.7), ("average", 2.0), ("gnmt", 0.6), ("gnmt", 3.0)])
def test_length_norms_rank_an_exhaustive_search(norm: str, alpha: float) -> None:
    model, prompt = gru(), (1, 3)
    beam = Beam(beams=VOCAB**3, length_penalty=alpha, length_norm=norm)
    found = beam_search(model, [Request(prompt, max_new_tokens=3)], END, beam)[0]

    def rank(text: tuple[int, ...]) -> float:
        n = len(text)
        return score(model, prompt, text) / (((5 + n) / 6) ** alpha if norm == "gnmt" else n**alpha)

    want = sorted(every_text(3), key=rank, reverse=True)
    assert [rank(result.tokens) for result in found] == pytest.approx([rank(text) for text in want], abs=1e-4)


def naive_first(model: LanguageModel, prompt: tuple[int, ...], beams: int, patience: float, limit: int) -> list[tuple]:
    """First come, first served: ends count when they are among the best `beams` of all children."""
    running, ended = [(0.0, ())], []
    for length in range(1, limit + 1):
        children = []
        for value, text in running:
            row = logprobs(model, prompt + text)
            children += [(value + float(row[token]), (*text, token)) for token in range(VOCAB)]
        children.sort(reverse=True)
        over = [child for child in children if child[1][-1] == END or length == limit]
        border = children[beams - 1][0] if len(children) >= beams else -1e9
        going = [child for child in children if child not in over][:beams]
        ended += [child for child in over[:beams] if child[0] >= border - 1e-9]
        if len(ended) >= beams * patience:
            break
        running = going
    return sorted(ended, key=lambda pair: -pair[0] / len(pair[1]))[:beams]


@pytest.mark.parametrize("patience", [1.0, 2.0])
@pytest.mark.parametrize("prompt", [(1,), (3, 2), (4, 4, 1)])
def test_first_come_first_served(prompt: tuple[int, ...], patience: float) -> None:
    model = gru()
    beam = Beam(beams=3, stopping="first", patience=patience)
    found = beam_search(model, [Request(prompt, max_new_tokens=7)], END, beam)[0]
    want = naive_first(model, prompt, 3, patience, 7)
    assert [result.tokens for result in found] == [text for _, text in want]


def naive_groups(model: LanguageModel, prompt: tuple[int, ...], beam: Beam, limit: int) -> list[list[tuple[int, ...]]]:
    """Diverse beam search and sibling penalties without an end token: the texts of each group, best first."""
    size = beam.beams // beam.groups
    groups: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(beam.groups)]
    for _ in range(limit):
        chosen: Counter[int] = Counter()
        for number, group in enumerate(groups):
            children = []
            for value, text in group:
                row = logprobs(model, prompt + text)
                gains = [(float(row[token]) - beam.diversity * chosen[token], token) for token in range(VOCAB)]
                for rank, (gain, token) in enumerate(sorted(gains, reverse=True)):
                    order = value + gain - beam.siblings * rank
                    children.append((order, value + float(row[token]), (*text, token)))
            best = sorted(children, reverse=True)[:size]
            groups[number] = [(value, text) for _, value, text in best]
            chosen.update(text[-1] for _, text in groups[number])
    return [[text for _, text in sorted(group, reverse=True)] for group in groups]


@pytest.mark.parametrize(
    "beam",
    [
        Beam(beams=4, groups=2, diversity=0.7),
        Beam(beams=6, groups=3, diversity=5.0),
        Beam(beams=3, groups=3, diversity=0.2),
        Beam(beams=4, siblings=0.8),
        Beam(beams=4, groups=2, diversity=0.5, siblings=0.3),
    ],
)
def test_groups_and_siblings_equal_the_naive_search(beam: Beam) -> None:
    model, prompts = gru(), [(1,), (3, 2)]
    found = beam_search(model, [Request(prompt, max_new_tokens=4) for prompt in prompts], None, beam)
    for prompt, results in zip(prompts, found, strict=True):
        want = [text for group in naive_groups(model, prompt, beam, 4) for text in group]
        assert sorted(result.tokens for result in results) == sorted(want)
        values = [result.logprob for result in results]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx([score(model, prompt, result.tokens) for result in results], abs=1e-4)


def test_groups_make_texts_differ() -> None:
    model = gru()
    plain = beam_search(model, [Request((1,), max_new_tokens=6)], None, Beam(beams=4))[0]
    groups = beam_search(model, [Request((1,), max_new_tokens=6)], None, Beam(beams=4, groups=4, diversity=3.0))[0]
    assert len({result.tokens[0] for result in groups}) > len({result.tokens[0] for result in plain})


def test_a_drawn_beam_as_wide_as_all_texts_finds_them_all() -> None:
    model = gru()
    results = beam_search(model, [Request((1,), max_new_tokens=3, seed=4)], END, Beam(beams=VOCAB**3, draw=True))[0]
    assert sorted(result.tokens for result in results) == every_text(3)
    assert sum(torch.tensor([result.logprob for result in results]).exp()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_first_text_of_a_drawn_beam_is_a_sample(beams: int) -> None:
    """Without replacement, the first one drawn follows the model's own distribution (Kool et al. 2019, sec. 4.1)."""
    model, draws = gru(), 4000
    requests = [Request((1,), max_new_tokens=2, seed=seed) for seed in range(draws)]
    found = beam_search(model, requests, END, Beam(beams=beams, draw=True))
    assert all(len({result.tokens for result in results}) == beams for results in found)
    counts = Counter(results[0].tokens for results in found)
    statistic, classes = 0.0, 0
    for text in every_text(2):
        expected = draws * float(torch.tensor(score(model, (1,), text)).exp())
        statistic += (counts[text] - expected) ** 2 / expected
        classes += 1
    assert classes == 21
    assert statistic < 45.3  # 20 degrees of freedom: once in a thousand, and this draw is always the same one


def test_a_drawn_beam_belongs_to_its_seed() -> None:
    model = gru()
    requests = [Request((1, 2), max_new_tokens=5, seed=seed) for seed in (7, 8, 7)]
    together = beam_search(model, requests, END, Beam(beams=3, draw=True))
    alone = beam_search(model, requests[:1], END, Beam(beams=3, draw=True))
    assert [r.tokens for r in together[0]] == [r.tokens for r in together[2]] == [r.tokens for r in alone[0]]
    assert [r.tokens for r in together[0]] != [r.tokens for r in together[1]]


@pytest.mark.parametrize("family", ["seq2seq", "encdec"])
@torch.no_grad()
def test_coverage_is_what_the_paper_says(family: str) -> None:
    config = (
        Seq2SeqConfig(vocab=VOCAB, width=12, layers=1)
        if family == "seq2seq"
        else EncoderDecoderConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=16, source_window=16)
    )
    model = wide(config.build())
    read, beta = (1, 4, 2, 3), 1.5
    source = Source(torch.tensor([read]), torch.tensor([len(read)]))

    def rank(text: tuple[int, ...]) -> float:
        whole = torch.tensor([(1, *text[:-1])])
        rows = model(whole, source=source).logits[0].double().log_softmax(-1)
        value = float(sum(row[token] for row, token in zip(rows, text, strict=True)))
        looked = model.attention(whole, None, source)[0]
        return value / len(text) + beta * float(looked.sum(0).clamp(max=1.0).log().sum())

    beam = Beam(beams=VOCAB**3, coverage=beta)
    requests = [Request((1,), max_new_tokens=3, source=read), Request((1,), max_new_tokens=3, source=read[:2])]
    found = beam_search(model, requests, END, beam)[0]
    ranks = [rank(result.tokens) for result in found]
    assert len(found) == len(every_text(3))
    assert ranks == pytest.approx(sorted(ranks, reverse=True), abs=1e-3)
    plain = beam_search(model, requests, END, Beam(beams=VOCAB**3))[0]
    assert [result.tokens for result in plain] != [result.tokens for result in found]


@pytest.mark.parametrize("family", ["seq2seq", "encdec"])
def test_coverage_asks_for_the_text_of_a_source_alone(family: str) -> None:
    """What stands behind it need not be looked at: a rank is the same whether coverage is asked of nothing, or not at
    all."""
    config = (
        Seq2SeqConfig(vocab=VOCAB, width=12, layers=1)
        if family == "seq2seq"
        else EncoderDecoderConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=16, source_window=16)
    )
    model = wide(config.build())

    def found(beam: Beam, **more: int) -> list[tuple[int, ...]]:
        request = Request((1,), max_new_tokens=3, source=(1, 4, 2, 3), **more)
        return [result.tokens for result in beam_search(model, [request], END, beam)[0]]

    plain, covered = Beam(beams=VOCAB**3), Beam(beams=VOCAB**3, coverage=1.5)
    assert found(covered, source_text=0) == found(plain)
    assert found(covered, source_text=4) == found(covered) != found(plain)


def test_coverage_needs_something_to_look_at() -> None:
    with pytest.raises(ConfigError, match="this model reads none"):
        beam_search(gru(), [Request((1,), max_new_tokens=3)], END, Beam(coverage=1.0))
    blind = wide(Seq2SeqConfig(vocab=VOCAB, width=12, layers=1, attention=NoAlignment()).build())
    with pytest.raises(ConfigError, match="no attention"):
        beam_search(blind, [Request((1,), max_new_tokens=3, source=(1, 2))], END, Beam(coverage=1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 4, "groups": 3, "diversity": 1.0}, "equal groups"),
        ({"beams": 4, "groups": 2}, "groups need a diversity"),
        ({"diversity": 1.0}, "groups need a diversity"),
        ({"patience": 2.0}, "patience belongs to stopping first"),
        ({"draw": True, "siblings": 1.0}, "ranks by chance"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Beam.parse(options)


@dataclass(frozen=True)
class Texts(State):
    tokens: Tensor


def test_beam_search_agrees_with_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=11,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=END,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.6,
        )
    ).eval()

    class Theirs(LanguageModel):
        """Their network behind our contract, read again from the beginning at every step."""

        def __init__(self) -> None:
            super().__init__()
            inner = TransformerConfig(vocab=11, width=16, layers=1, heads=2, window=32).build()
            self.config, self.embed, self.head, self.gpt = inner.config, inner.embed, inner.head, theirs

        def begin(self, rows: int, source: Any = None, *, capacity: int | None = None) -> Texts:
            return Texts(torch.zeros(rows, 0, dtype=torch.long))

        def hidden(self, *given: Any) -> Any:
            raise NotImplementedError

        def forward(self, tokens: Tensor, lengths: Any = None, state: Any = None, **more: Any) -> Output:
            whole = torch.cat([state.tokens, tokens], 1)
            return Output(self.gpt(whole).logits[:, -1:], Texts(whole))

    for seed in range(6):
        prompt = torch.randint(1, 11, (1, 4), generator=torch.Generator().manual_seed(seed))
        options = {"num_beams": 4, "do_sample": False, "max_new_tokens": 8, "length_penalty": 1.0, "pad_token_id": 0}
        want = theirs.generate(prompt, early_stopping=True, **options)[0, 4:].tolist()
        beam = Beam(beams=4, stopping="first")
        got = beam_search(Theirs().eval(), [Request(tuple(prompt[0].tolist()), max_new_tokens=8)], END, beam)[0][0]
        assert list(got.tokens) == want[: len(got.tokens)]
