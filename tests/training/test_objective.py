"""What is minimised, against naive sums over one row after the other, without padding, chunks or batches."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB
from small import Recorder, losses
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from textwright.models import EncoderDecoder, LanguageModel
from textwright.models.base import Source
from textwright.text.batching import IGNORE, Batch, Cursor
from textwright.text.buckets import Buckets, Sides
from textwright.text.corpus import Corpus, Facts
from textwright.text.resegment import Resegmented
from textwright.text.tokenizers import TokenizerConfig, train
from textwright.training import cross_entropy, objective
from textwright.training.loop import Trainer
from textwright.training.objective import Objective, both_ways
from textwright.training.parallel import World
from textwright.training.records import EvaluationRecord, Look, Progress, StepRecord
from textwright.training.settings import Budget, EMAAveraging, TrainingConfig

END = 0
SHAPES = [(5, 4), (2, 6), (7, 1), (1, 3), (4, 6)]  # of source and target, their ends included
NAMES = [
    "encdec",
    "encdec-learned",
    "encdec-pointer",
    "seq2seq-additive",
    "seq2seq-no-attention",
    "seq2seq-coverage",
    "seq2seq-pointer",
    "seq2seq-pointer-at-once",
]
COVERED = ["seq2seq-coverage", "seq2seq-pointer"]
families = pytest.mark.parametrize("name", NAMES)


def corpus(lengths: list[int], vocabulary: int, seed: int) -> Corpus:
    draws = torch.Generator().manual_seed(seed)
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.randint(1, vocabulary, (int(ends[-1]),), generator=draws)
    tokens[ends - 1] = END
    return Corpus(tokens, ends, Facts(vocabulary=vocabulary, tokens=len(tokens), documents=len(lengths)))


def pairs(model: EncoderDecoder, shapes: list[tuple[int, int]] = SHAPES) -> Sides:
    sources, targets = zip(*shapes, strict=True)
    return Sides(corpus(list(sources), model.source_vocab, 1), corpus(list(targets), VOCAB, 2))


def whole(model: EncoderDecoder, shapes: list[tuple[int, int]] = SHAPES) -> Batch:
    """One ragged batch of all pairs, in their order."""
    return Buckets(pairs(model, shapes), 64, (END,), 0).gather(torch.arange(len(shapes)), 0)


def build(name: str, dropout: float = 0.0) -> EncoderDecoder:
    torch.manual_seed(0)
    model = FAMILIES[name].model_copy(update={"dropout": dropout}).build()
    assert isinstance(model, EncoderDecoder)
    with torch.no_grad():  # recurrent ones begin near uniform, where a wrong token would not show
        for parameter in model.parameters() if name.startswith("seq2seq") else ():
            parameter.mul_(2)
    return model.train()


def singles(batch: Batch) -> list[Batch]:
    """Every row as a batch of its own, without any padding."""
    assert batch.source is not None and batch.source_lengths is not None and batch.lengths is not None
    found = []
    for row, (time, places) in enumerate(zip(batch.lengths.tolist(), batch.source_lengths.tolist(), strict=True)):
        part = slice(row, row + 1)
        leaves = batch.tokens[part, :time], batch.targets[part, :time], None, None, batch.source[part, :places]
        found.append(Batch(*leaves, batch.source_lengths[part]))
    return found


def logits(model: LanguageModel, row: Batch) -> Tensor:
    """(time, vocab) of a row."""
    assert row.source is not None and row.source_lengths is not None
    return model(row.tokens, source=Source(row.source, row.source_lengths)).logits[0].float()


def penalty(model: LanguageModel, row: Batch) -> Tensor:
    assert row.source is not None and row.source_lengths is not None
    hidden, _ = model.hidden(row.tokens, None, None, Source(row.source, row.source_lengths))
    return torch.zeros(()) if hidden.penalty is None else hidden.penalty.sum()


def naive(model: LanguageModel, row: Batch, smoothing: float = 0.0) -> Tensor:
    """(1 - ε) · nll + ε · mean over the vocabulary, token by token: Szegedy et al. 2016, section 7."""
    total = torch.zeros(())
    for here, target in zip(logits(model, row).log_softmax(-1), row.targets[0].tolist(), strict=True):
        total = total - (1 - smoothing) * here[target] - smoothing * here.sum() / len(here)
    return total


def loss_of(model: LanguageModel, batch: Batch, *options: float) -> float:
    with torch.no_grad():
        return float(Objective(model, *options)(batch)[0])


def gradients(model: LanguageModel, compute: Callable[[], Tensor]) -> list[Tensor]:
    """What `compute` gives, and the gradient of every parameter."""
    model.zero_grad()
    loss = compute()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-6) -> None:
    assert len(first) == len(second) > 1
    for one, other in zip(first, second, strict=True):
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, atol=tolerance * size, rtol=1e-5)


# Cross-entropy, smoothing, penalties ---------------------------------------------------------------------------------


@families
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_sum_over_tokens_by_hand(name: str, smoothing: float) -> None:
    model = build(name)
    batch = whole(model)
    rows = singles(batch)
    with torch.no_grad():
        want = float(sum(naive(model, row, smoothing) + penalty(model, row) for row in rows))
        plain = float(sum(naive(model, row) for row in rows))
    assert loss_of(model, batch, smoothing) == pytest.approx(want, rel=1e-5)
    model.eval()
    quiet = Objective(model, smoothing).eval()
    assert float(quiet(batch)[0].detach()) == pytest.approx(plain, rel=1e-5)  # smoothing and penalties are for training
    assert batch.count == sum(row.targets.numel() for row in rows)


@pytest.mark.parametrize("name", COVERED)
def test_penalties_count_real_targets_alone(name: str) -> None:
    """A longer text in the batch pads the others; what they look at behind their end costs nothing."""
    model = build(name)
    rows = singles(whole(model))
    with torch.no_grad():
        assert all(float(penalty(model, row)) > 0 for row in rows if row.targets.numel() > 1)
    alone = [loss_of(model, row) for row in rows]
    assert loss_of(model, whole(model)) == pytest.approx(sum(alone), rel=1e-5)
    longer = whole(model, [*SHAPES, (3, 12)])
    assert loss_of(model, longer.rows(0, 5)) == pytest.approx(sum(alone), rel=1e-5)


@families
def test_what_the_padding_holds_changes_nothing(name: str) -> None:
    """Of source and target; neither the loss nor a gradient."""
    model = build(name)
    batch = whole(model)
    assert batch.source is not None and batch.source_lengths is not None and batch.lengths is not None
    junk = torch.randint(1, VOCAB, (len(SHAPES), 9), generator=torch.Generator().manual_seed(3))
    source = torch.cat([batch.source, torch.zeros_like(junk[:, :2])], 1)
    behind = torch.arange(source.shape[1]) >= batch.source_lengths[:, None]
    after = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    leaves = batch.tokens.where(~after, junk[:, :6]), batch.targets, batch.lengths, None, source.where(~behind, junk)
    other = Batch(*leaves, batch.source_lengths)
    assert not torch.equal(other.tokens, batch.tokens)
    subject = Objective(model, 0.1)
    close(gradients(model, lambda: subject(batch)[0]), gradients(model, lambda: subject(other)[0]), 1e-5)


# Parts ---------------------------------------------------------------------------------------------------------------


def trainer(folder: Path, model: EncoderDecoder, supply: Buckets, listener: Recorder, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {"budget": Budget(steps=6), "batch_tokens": 12, "log_every": 1, "evaluations": 2}
    config = TrainingConfig(**{**settings, "save_seconds": 1000.0, **changes})

    def validate(model: LanguageModel) -> Look:
        with torch.no_grad():
            return Look(float(sum(Objective(model).eval()(batch)[0] for batch in supply.in_order())))

    return Trainer(
        config,
        model,
        supply,
        supply.sides.target.facts.tokens,
        folder,
        validate=validate,
        calibrate=lambda model: (model, None),
        keep=lambda model: None,
        listener=listener,
        world=World(),
    )


def test_looks_are_as_many_as_were_asked_for(tmp_path: Path) -> None:
    """Also where texts are longer than the corpus counts them, later ones more so."""
    model = build("seq2seq-additive")

    class Stretched(Buckets):
        def gather(self, numbers: Tensor, epoch: int) -> Batch:
            batch = super().gather(numbers, epoch)
            return replace(batch, plain=max(1, batch.count * 10 // (10 + epoch)))

    class Counting(Recorder):
        looks = 0

        def evaluated(self, progress: Progress, record: EvaluationRecord) -> None:
            self.looks += 1

    supply = Stretched(pairs(model), 8, (END,), 0)
    listener = Counting()
    subject = trainer(tmp_path, model, supply, listener, budget=Budget(epochs=20), evaluations=15)
    assert subject.run().evaluations[-1].share >= 1
    assert listener.looks == 1 + 15  # before training, too


@families
@pytest.mark.parametrize("parts", [2, 4, 5])
def test_micro_batches_give_the_gradient_of_one_batch(tmp_path: Path, name: str, parts: int) -> None:
    """Of five rows: three and two; two, two and one; each alone. Normalised by the tokens of all of them."""
    model = build(name)
    batch = whole(model)
    supply = Buckets(pairs(model), 64, (END,), 0)
    want = gradients(model, lambda: Objective(model, 0.1)(batch)[0] / batch.count)
    subject = trainer(tmp_path, model, supply, Recorder(), label_smoothing=0.1, accumulation=parts)
    losses, _ = subject._gradients(batch)
    got = [(losses[0] / batch.count).float(), *(p.grad for p in model.parameters() if p.grad is not None)]
    close(got, want)


@families
def test_the_plain_loss_has_no_smoothing_and_no_penalty(name: str) -> None:
    """What is told of training compares with the loss on any other text."""
    model = build(name)  # without dropout
    batch = whole(model)
    quiet = Objective(model).eval()(batch)
    smooth = Objective(model, 0.3, 2.0 if name == "encdec" else 0.0).train()(batch)
    torch.testing.assert_close(smooth.plain, quiet.plain)
    torch.testing.assert_close(quiet.loss, quiet.plain)
    assert abs(smooth.loss.item() - smooth.plain.item()) > 1e-4
    assert not smooth.plain.requires_grad


@families
def test_ranks_give_the_gradient_of_one_batch(name: str) -> None:
    """With a rank that has no row of its own: it gives zeros, not numbers that are not finite."""
    model = build(name, dropout=0.0)
    batch, subject = whole(model), Objective(model, 0.1, 1.0)
    want = gradients(model, lambda: subject(batch)[0])
    parts = [batch.rows(rank, None, 6) for rank in range(6)]
    assert [part.count for part in parts][5] == 0
    nothing = gradients(model, lambda: subject(parts[5])[0])
    assert len(nothing) == len(want)  # every process has every gradient
    assert all(bool((leaf == 0).all()) for leaf in nothing)
    close(gradients(model, lambda: torch.stack([subject(part)[0] for part in parts]).sum()), want, 1e-5)


@families
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_chunks_give_the_loss_of_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, alpha: float) -> None:
    model = build(name, dropout=0.2)
    batch, subject = whole(model), Objective(model, 0.1, alpha)

    def seeded() -> Tensor:
        torch.manual_seed(4)
        return subject(batch)[0]

    found, sizes, loss = [], [], subject._loss

    def watched(hidden: Any, other: Any, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            sizes.append(len(targets))
        return loss(hidden, other, targets)

    monkeypatch.setattr(subject, "_loss", watched)
    for limit in (2**26, VOCAB * 7):
        for module in (objective, cross_entropy):
            monkeypatch.setattr(module, "CHUNK", limit)
        with torch.no_grad():
            quiet = seeded()
        found.append([quiet, *gradients(model, seeded)])
    close(found[1], found[0], 1e-5)
    assert sizes == [30, 7, 7, 7, 7, 2]  # the last one is ragged


# R-Drop --------------------------------------------------------------------------------------------------------------


@families
def test_r_drop_by_hand(name: str) -> None:
    """Two passes with other dropout: mean of their losses, α/4 of both distances (Liang et al. 2021, eq. 4)."""
    model, alpha = build(name, dropout=0.3), 3.0
    batch = whole(model)
    torch.manual_seed(6)
    with torch.no_grad():
        source = Source(batch.source, batch.source_lengths)
        passes = [model.hidden(batch.tokens, batch.lengths, None, source)[0] for _ in range(2)]
        seen = [model.logits(hidden).double() for hidden in passes]
    real = batch.targets != IGNORE
    first, second = (Categorical(logits=one[real]) for one in seen)
    targets = batch.targets[real]
    nll = -(first.log_prob(targets) + second.log_prob(targets)).sum() / 2
    extra = [hidden.penalty[real].sum() for hidden in passes if hidden.penalty is not None]
    apart = (kl_divergence(first, second) + kl_divergence(second, first)).sum()
    want = float(nll + sum(extra) / 2 + alpha / 4 * apart)
    assert float(apart) > 0.1
    torch.manual_seed(6)
    assert loss_of(model, batch, 0.0, alpha) == pytest.approx(want, rel=1e-4)


@families
def test_no_r_drop_without_a_weight_and_outside_training(name: str) -> None:
    model = build(name, dropout=0.3)
    batch = whole(model)
    seeded = []
    for options in ((0.1,), (0.1, 0.0)):
        torch.manual_seed(8)
        seeded.append(loss_of(model, batch, *options))
    assert seeded[0] == seeded[1]
    quiet = []
    for alpha in (0.0, 5.0):
        subject = Objective(model, 0.0, alpha).eval()
        model.train()  # so that a second pass would differ
        torch.manual_seed(8)
        with torch.no_grad():
            quiet.append(float(subject(batch)[0]))
    assert quiet[0] == quiet[1]


def test_without_dropout_there_is_nothing_to_draw_together() -> None:
    model = build("encdec")
    assert loss_of(model, whole(model), 0.1, 5.0) == pytest.approx(loss_of(model, whole(model), 0.1), rel=1e-6)


def test_distances_of_distributions() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = (torch.randn(9, 5, generator=draws) * 3 for _ in range(2))
    real = torch.arange(9) % 3 > 0
    p, q = Categorical(logits=first), Categorical(logits=second)
    want = (kl_divergence(p, q) + kl_divergence(q, p))[real].sum()
    torch.testing.assert_close(both_ways(first, second, real), want)
    torch.testing.assert_close(both_ways(second, first, real), want)
    assert float(both_ways(first, first + 7, real)) == pytest.approx(0, abs=1e-5)  # logits are up to a constant


# Scheduled sampling --------------------------------------------------------------------------------------------------


def fed(model: LanguageModel, batch: Batch, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The tokens that are learned from, and the model's guesses in their places; nothing is dropped out."""
    read: list[Tensor] = []
    hidden = model.hidden

    def watched(tokens: Tensor, *rest: Any) -> Any:
        read.append(tokens)
        return hidden(tokens, *rest)

    subject = Objective(model)
    subject.sampled = share
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "hidden", watched)
        subject(batch)
        guesses = model(batch.tokens, source=Source(batch.source, batch.source_lengths)).logits.argmax(-1)
    assert torch.equal(read[0], batch.tokens)
    return read[1], torch.cat([batch.tokens[:, :1], guesses[:, :-1]], 1)


@families
def test_nothing_sampled_is_plain(name: str) -> None:
    model = build(name)
    batch, subject = whole(model), Objective(model, 0.1)
    plain = gradients(model, lambda: subject(batch)[0])
    subject.sampled = 1e-12
    close(gradients(model, lambda: subject(batch)[0]), plain)
    subject.sampled, model = 1.0, model.eval()
    with torch.no_grad():
        assert float(subject.eval()(batch)[0]) == float(Objective(model).eval()(batch)[0])  # in training alone


@families
def test_everything_sampled_feeds_the_own_guesses(name: str) -> None:
    """Token by token: the first is the end of the text before, then what is likeliest after the real ones."""
    model = build(name)
    batch, subject = whole(model), Objective(model, 0.1)
    subject.sampled = 1.0
    want = torch.zeros(())
    replaced = 0
    for row in singles(batch):
        tokens = row.tokens.clone()
        with torch.no_grad():
            guesses = logits(model, row).argmax(-1)
        for step in range(1, tokens.shape[1]):
            replaced += int(tokens[0, step] != guesses[step - 1])
            tokens[0, step] = guesses[step - 1]
        own = Batch(tokens, row.targets, None, None, row.source, row.source_lengths)
        want = want + naive(model, own, 0.1) + penalty(model, own)
    assert replaced >= 5
    found = gradients(model, lambda: subject(batch)[0])
    assert float(found[0]) == pytest.approx(float(want.detach()), rel=1e-5)
    close(found, gradients(model, lambda: _once(model, batch)), 1e-5)


def _once(model: LanguageModel, batch: Batch) -> Tensor:
    """The loss on fixed guesses: no gradient flows through them."""
    with torch.no_grad():
        guesses = model(batch.tokens, source=Source(batch.source, batch.source_lengths)).logits.argmax(-1)
    tokens = torch.cat([batch.tokens[:, :1], guesses[:, :-1]], 1)
    own = Batch(tokens, batch.targets, batch.lengths, None, batch.source, batch.source_lengths)
    loss: Tensor = Objective(model, 0.1)(own)[0]
    return loss


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_so_many_tokens_are_guesses(share: float) -> None:
    model = build("encdec")
    batch = whole(model, [(4, 16)] * 60)
    tokens, guesses = fed(model, batch, share)
    assert torch.equal(tokens[:, 0], batch.tokens[:, 0])  # where every text begins
    differ = guesses != batch.tokens
    assert bool(((tokens == guesses) | (tokens == batch.tokens)).all())
    count = int(differ.sum())
    taken = int((tokens == guesses)[differ].sum())
    assert count > 400
    assert taken / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)
    again, _ = fed(model, batch, share)
    other, _ = fed(model, batch, share, seed=1)
    assert torch.equal(again, tokens)
    assert not torch.equal(other, tokens)


def test_a_token_that_every_text_begins_with_is_no_guess() -> None:
    """Such as the language of what is written: it carries no loss, and a model does not learn to write it."""
    model = build("encdec")
    batch = Buckets(pairs(model), 64, (END, 3), 0).gather(torch.arange(len(SHAPES)), 0)
    tokens, guesses = fed(model, batch, 1.0)
    assert bool((guesses[:, 1] != 3).any())
    assert torch.equal(tokens[:, :2], batch.tokens[:, :2])
    real = batch.targets[:, 1:-1] != IGNORE
    assert torch.equal(tokens[:, 2:][real], guesses[:, 2:][real])


@families
def test_guesses_in_the_padding_change_nothing(name: str) -> None:
    model = build(name)
    batch, subject = whole(model), Objective(model)
    subject.sampled = 1.0
    with torch.no_grad():
        alone = sum(float(subject(row)[0]) for row in singles(batch))
        assert float(subject(batch)[0]) == pytest.approx(alone, rel=1e-5)


def test_the_share_of_guesses_grows_with_the_budget(tmp_path: Path) -> None:
    model, seen = build("encdec", dropout=0.1), []

    class Watcher(Recorder):
        def stepped(self, progress: Progress, record: StepRecord) -> None:
            seen.append(subject.objective.sampled)

    supply = Buckets(pairs(model), 12, (END,), 0)
    subject = trainer(tmp_path, model, supply, Watcher(), scheduled_sampling=0.6, budget=Budget(steps=4))
    subject.run()
    assert seen == pytest.approx([0, 0.15, 0.3, 0.45])


# Everything at once --------------------------------------------------------------------------------------------------


class Stopper(Recorder):
    """Presses Ctrl-C after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def stepped(self, progress: Progress, record: StepRecord) -> None:
        if record.step == self.after:
            os.kill(os.getpid(), signal.SIGINT)


LINES = ["the lower", "newest low", "we went", "wide river", "so low"]


def dropping(seed: int) -> Buckets:
    """Pairs whose words are cut anew at every epoch."""
    one = train(TokenizerConfig(kind="bpe", vocabulary=300), lambda: iter(LINES * 3))
    ids = [[*one.encode(line), one.end] for line in LINES]
    ends = torch.tensor([len(part) for part in ids]).cumsum(0)
    tokens = torch.tensor([token for part in ids for token in part])
    data = Corpus(tokens, ends, Facts(vocabulary=one.size, tokens=len(tokens), documents=len(ids)))
    sides = Sides(data, data)
    return Buckets(sides, 24, (one.end,), seed, Resegmented(sides, (one, one), 0.4, seed))


@pytest.mark.parametrize(("name", "stop"), [("encdec-pointer", 1), ("encdec-pointer", 4), ("seq2seq-pointer", 4)])
def test_an_interrupted_run_continues_bit_for_bit(tmp_path: Path, name: str, stop: int) -> None:
    """BPE dropout, dropout, R-Drop, scheduled sampling, micro-batches and averaging, over several epochs."""
    size = dropping(3).sides.target.facts.vocabulary
    changes = {"vocab": size, "dropout": 0.2, **({"window": 80, "source_window": 80} if name[:3] == "enc" else {})}
    options: dict[str, Any] = {"r_drop": 1.0, "scheduled_sampling": 0.8, "label_smoothing": 0.1, "accumulation": 2}
    options |= {"averaging": EMAAveraging(decay=0.9), "budget": Budget(steps=6)}

    def run(folder: str, listener: Recorder) -> tuple[Progress, LanguageModel]:
        torch.manual_seed(0)
        model = FAMILIES[name].model_copy(update=changes).build()
        assert isinstance(model, EncoderDecoder)
        return trainer(tmp_path / folder, model, dropping(3), listener, **options).run(), model

    expected, whole_model = run("whole", Recorder())
    assert expected.cursor.epoch >= 2
    assert run("cut", Stopper(stop))[0].step == stop
    resumed, model = run("cut", Recorder())
    assert losses(resumed) == losses(expected)
    assert [look.valid_loss for look in resumed.evaluations] == [look.valid_loss for look in expected.evaluations]
    assert all(torch.equal(*both) for both in zip(model.parameters(), whole_model.parameters(), strict=True))


def test_every_step_and_every_rank_draws_its_own_numbers(tmp_path: Path) -> None:
    """Else the same places would be dropped, and the same tokens guessed, for ever."""
    model, drawn = build("encdec"), []
    subject = trainer(tmp_path, model, Buckets(pairs(model), 12, (END,), 0), Recorder())
    for step, rank in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)):
        subject.progress, subject.world = Progress(step=step), World(rank=rank, size=2)
        subject._reseed()
        drawn.append(float(torch.rand(())))
    assert len(set(drawn[:4])) == 4
    assert drawn[4] == drawn[0]


def test_an_epoch_counts_every_target_once(tmp_path: Path) -> None:
    model = build("seq2seq-no-attention")
    supply = Buckets(pairs(model), 12, (END,), 0)
    progress = trainer(tmp_path, model, supply, Recorder(), budget=Budget(epochs=2)).run()
    assert progress.tokens == 2 * sum(target for _, target in SHAPES)
    count = len(
        [batch for batch, cursor in zip(range(99), supply.batches(Cursor()), strict=False) if not cursor[1].epoch]
    )
    assert progress.step == 2 * count
