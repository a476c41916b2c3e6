"""The two numbers of a calibration against autograd, against other numbers, and against what a model scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from textwright.evaluating.perplexity import batches_of, score
from textwright.models import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.rnn import RecurrentConfig, RecurrentLM
from textwright.text.corpus import Corpus, Facts
from textwright.training import calibration
from textwright.training.calibration import Calibration, calibrate

VOCAB, WIDTH = 23, 8
CONFIGS = {
    "tied": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=2),
    "apart": GRUConfig(vocab=VOCAB, width=WIDTH, layers=1, tied=False),
    "narrow": RNNConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5),
    "narrow-apart": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5, tied=False),
    "in-part": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, input_width=3),
    "one-layer": RNNConfig(vocab=VOCAB, width=WIDTH, layers=1),
}


def built(config: RecurrentConfig, spread: float = 1.0) -> RecurrentLM:
    torch.manual_seed(1)
    model = config.build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=spread)
    return model


def written(model: RecurrentLM, tokens: int, share: float = 0.5) -> tuple[Corpus, Tensor]:
    """A text that the model wrote in part, the rest by chance; and counts that favour some words."""
    torch.manual_seed(2)
    ids, state = [torch.tensor([[0]])], model.begin(1)
    with torch.no_grad():
        for _ in range(tokens):
            output = model(ids[-1], state=state)
            state = output.state
            own = torch.distributions.Categorical(logits=output.logits[:, -1]).sample()
            ids.append(torch.where(torch.rand(1) < share, own, torch.randint(0, VOCAB // 2, (1,)))[:, None])
    corpus = torch.cat(ids[1:], 1)[0]
    facts = Facts(vocabulary=VOCAB, tokens=tokens, documents=1, bytes=tokens, characters=tokens)
    counts = torch.randint(0, 4, (VOCAB,)) + 20 * (torch.arange(VOCAB) < VOCAB // 2)
    return Corpus(corpus.to(torch.uint8), torch.tensor([tokens]), facts), counts


def fit(model: RecurrentLM, corpus: Corpus, counts: Tensor) -> Calibration:
    return calibrate(model, batches_of(model, corpus, 0, None)[0], len(corpus.tokens), counts)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adjusted_model_has_the_logits_that_were_asked_for(kind: str) -> None:
    model = built(CONFIGS[kind]).double()
    tokens, offset = torch.randint(0, VOCAB, (3, 7)), torch.randn(VOCAB, dtype=torch.float64)
    before = model(tokens, state=model.begin(3))
    model.adjust(0.7, offset)
    after = model(tokens, state=model.begin(3))
    torch.testing.assert_close(after.logits, 0.7 * before.logits + offset)
    torch.testing.assert_close(after.state.hidden, before.state.hidden)  # what it remembers is the same


def test_moments_are_the_derivatives_of_the_loss() -> None:
    model = built(CONFIGS["tied"])
    hidden, targets = torch.randn(40, WIDTH), torch.randint(0, VOCAB, (40,))
    frequency = torch.randn(VOCAB).log_softmax(0)
    numbers = torch.tensor([0.8, 0.3], dtype=torch.float64)
    logits = model.head(hidden).detach()

    def loss(numbers: Tensor) -> Tensor:
        return nn.functional.cross_entropy(numbers[0] * logits + numbers[1] * frequency, targets, reduction="sum")

    with torch.no_grad():
        found = calibration._moments(model, hidden, targets, frequency, numbers)
    assert found[0] == pytest.approx(float(loss(numbers)), rel=1e-5)
    torch.testing.assert_close(found[1], torch.autograd.functional.jacobian(loss, numbers), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[2], torch.autograd.functional.hessian(loss, numbers), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["tied", "apart"])
def test_no_other_numbers_are_better(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss that is told is the one that the adjusted model scores; numbers beside those have a higher one."""
    monkeypatch.setattr(calibration, "ROUNDS", 8)
    corpus, counts = written(built(CONFIGS[kind]), 3000)
    model = built(CONFIGS[kind])
    total, tokens, _ = score(model, corpus, 0)
    found = fit(model, corpus, counts)
    assert found.tokens == tokens == 3000
    assert found.before == pytest.approx(total / tokens, rel=1e-5)
    assert found.after < found.before - 0.1
    assert 0 < found.scale < 1  # half of the text was written by chance
    assert found.frequency > 0  # among frequent words
    assert score(model, corpus, 0)[0] / tokens == pytest.approx(found.after, rel=1e-5)
    frequency = ((counts + 1) / (counts + 1).sum()).log()
    for scale, weight in [(0.02, 0.0), (-0.02, 0.0), (0.0, 0.02), (0.0, -0.02)]:
        other = built(CONFIGS[kind])
        other.adjust(found.scale + scale, (found.frequency + weight) * frequency)
        assert score(other, corpus, 0)[0] / tokens > found.after


def test_a_calibrated_model_stays_as_it_is() -> None:
    corpus, counts = written(built(CONFIGS["tied"]), 3000)
    model = built(CONFIGS["tied"])
    first = fit(model, corpus, counts)
    again = fit(model, corpus, counts)
    assert (again.scale, again.frequency) == pytest.approx((1, 0), abs=0.01)
    assert again.after == pytest.approx(first.after, rel=1e-4)


def test_a_part_of_a_long_text_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, counts = written(built(CONFIGS["tied"]), 3000)
    whole = fit(built(CONFIGS["tied"]), corpus, counts)
    monkeypatch.setattr(calibration, "FITTED", 1000)
    monkeypatch.setattr(calibration, "CHUNK", 7 * VOCAB)
    part = fit(built(CONFIGS["tied"]), corpus, counts)
    assert part.tokens == pytest.approx(1000, rel=0.05)
    assert (part.scale, part.frequency) == pytest.approx((whole.scale, whole.frequency), abs=0.1)
    assert part.scale != whole.scale


def test_a_text_that_speaks_against_the_model_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best scale would be below 0, which no weights can express: a model that knows the opposite."""
    monkeypatch.setattr(calibration, "ROUNDS", 12)
    model = built(CONFIGS["apart"], spread=0.5)
    opposite = built(CONFIGS["apart"], spread=0.5)
    with torch.no_grad():
        opposite.head.weight.neg_()
        opposite.head.bias.neg_()
    corpus, counts = written(opposite, 2000, share=1.0)
    before = [parameter.clone() for parameter in model.parameters()]
    found = fit(model, corpus, counts)
    assert (found.scale, found.frequency) == (1, 0)
    assert found.after == found.before
    for one, other in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
