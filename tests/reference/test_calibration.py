"""The two numbers of a calibration against autograd, against other numbers, and against what a model scores."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from textwright.evaluating.perplexity import batches_of, score
from textwright.models import GRUConfig, LSTMConfig, RNNConfig
from textwright.models.rnn import RecurrentConfig, RecurrentLM
from textwright.text.batching import Batch
from textwright.text.corpus import Corpus, Facts
from textwright.training import calibration
from textwright.training.calibration import Calibration, calibrated

VOCAB, WIDTH = 23, 8
CONFIGS = {
    "tied": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=2),
    "apart": GRUConfig(vocab=VOCAB, width=WIDTH, layers=1, tied=False),
    "narrow": RNNConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5),
    "narrow-apart": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5, tied=False),
    "in-part": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, input_width=3),
    "narrow-in-part": LSTMConfig(vocab=VOCAB, width=WIDTH, layers=1, embedding_width=5, input_width=3),
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


def fit(model: RecurrentLM, corpus: Corpus, counts: Tensor) -> tuple[RecurrentLM, Calibration]:
    copy, found = calibrated(model.eval(), batches_of(model, corpus, 0, None)[0], len(corpus.tokens), counts)
    assert found is not None
    return copy, found


def loss_at(model: RecurrentLM, corpus: Corpus, counts: Tensor, scale: float, weight: float) -> float:
    """Nats a token with other numbers, by the model's own logits."""
    other = deepcopy(model)
    other.adjust(scale, weight * ((counts + 1) / (counts + 1).sum()).log())
    return score(other, corpus, 0)[0] / len(corpus.tokens)


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
def test_no_other_numbers_are_better(kind: str) -> None:
    """The loss that is told is the one that the calibrated model scores; numbers beside those have a higher one."""
    model = built(CONFIGS[kind])
    corpus, counts = written(model, 3000)
    before = [parameter.clone() for parameter in model.parameters()]
    copy, found = fit(model, corpus, counts)
    assert found.tokens == 3000
    assert found.before == pytest.approx(score(model, corpus, 0)[0] / 3000, rel=1e-5)
    assert found.after < found.before - 0.1
    assert found.scale < 1  # half of the text was written by chance
    assert found.frequency > 0  # among frequent words
    assert score(copy, corpus, 0)[0] / 3000 == pytest.approx(found.after, rel=1e-5)
    for scale, weight in [(0.03, 0.0), (-0.03, 0.0), (0.0, 0.03), (0.0, -0.03)]:
        assert loss_at(model, corpus, counts, found.scale + scale, found.frequency + weight) > found.after
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)  # the model itself goes on learning as it was


def test_a_model_that_is_far_too_sure_is_brought_back() -> None:
    """Its softmax is flat where it begins: a whole step of Newton's would lead hundreds astray."""
    model = built(CONFIGS["apart"])
    corpus, counts = written(model, 2000)
    model.adjust(8.0, torch.zeros(VOCAB))
    _, found = fit(model, corpus, counts)
    best = min(
        loss_at(model, corpus, counts, scale / 200, weight / 4) for scale in range(10, 31, 2) for weight in range(4)
    )
    assert found.before > 2 * found.after
    assert found.after < best + 0.05


def test_a_calibrated_model_stays_as_it_is() -> None:
    model = built(CONFIGS["tied"])
    corpus, counts = written(model, 3000)
    copy, first = fit(model, corpus, counts)
    again = fit(copy, corpus, counts)[1]
    assert (again.scale, again.frequency) == pytest.approx((1, 0), abs=0.02)
    assert again.after == pytest.approx(first.after, abs=1e-3)


def test_a_few_tokens_say_little() -> None:
    """One token would have the scale grow without end."""
    model = built(CONFIGS["tied"])
    corpus, counts = written(model, 1, share=1.0)
    found = fit(model, corpus, counts)[1]
    assert found.tokens == 1
    assert found.scale == pytest.approx(1, abs=0.3)


def test_a_part_of_a_long_text_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(CONFIGS["tied"])
    corpus, counts = written(model, 3000)
    whole = fit(model, corpus, counts)[1]
    monkeypatch.setattr(calibration, "FITTED", 1000)
    monkeypatch.setattr(calibration, "CHUNK", 7 * VOCAB)
    part = fit(model, corpus, counts)[1]
    assert part.tokens == 1000
    assert (part.scale, part.frequency) == pytest.approx((whole.scale, whole.frequency), abs=0.15)
    assert part.scale != whole.scale


def test_the_places_are_spread_evenly_over_all_batches() -> None:
    model = built(CONFIGS["tied"])
    shapes = [(2, 3), (1, 1), (1, 1), (1, 4), (3, 5)]
    ids = torch.arange(27) % VOCAB
    batches, start = [], 0
    for rows, time in shapes:
        targets = ids[start : start + rows * time].view(rows, time)
        batches.append(Batch(torch.zeros_like(targets), targets, None, None))
        start += rows * time
    hidden, targets = calibration._read(model, batches, 4)
    assert targets.tolist() == ids[::4].tolist()
    assert hidden.shape == (7, WIDTH)


def test_a_text_that_speaks_against_the_model() -> None:
    """The best scale would be below 0; what is believed of the model then is as little as may be."""
    model = built(CONFIGS["apart"], spread=0.5)
    opposite = built(CONFIGS["apart"], spread=0.5)
    with torch.no_grad():
        opposite.head.weight.neg_()
        opposite.head.bias.neg_()
    corpus, counts = written(opposite, 2000, share=1.0)
    found = fit(model, corpus, counts)[1]
    assert found.scale == pytest.approx(calibration.LEAST)
    assert found.after < found.before


def test_weights_that_are_broken_are_no_error() -> None:
    """The look that follows finds them, and training is rolled back."""
    model = built(CONFIGS["tied"])
    corpus, counts = written(model, 200)
    with torch.no_grad():
        model.head.bias[3] = math.nan
    assert calibrated(model.eval(), batches_of(model, corpus, 0, None)[0], 200, counts) == (model, None)
