"""What is there for GPUs: compiled blocks, and batches that are put together ahead."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from small import Recorder, corpus, losses, trainer
from torch import nn

from textwright.errors import ConfigError
from textwright.evaluating.perplexity import score
from textwright.models import LanguageModel, TransformerConfig
from textwright.models.layers import Dropout
from textwright.run import parse_run
from textwright.text.batching import Batch, Cursor, Windows
from textwright.training import compiling
from textwright.training.ahead import ahead
from textwright.training.compiling import compile_blocks
from textwright.training.records import EvaluationRecord, Progress

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile asks for a C++ compiler")


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # both are of torch's compiler at work
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_run_learns_as_a_plain_one(tmp_path: Path) -> None:
    """The same losses, and the same looks; equal blocks are compiled once, and looks compile nothing."""
    config = TransformerConfig(vocab=12, width=16, layers=2, heads=2, window=16)
    runs, graphs = [], torch._dynamo.utils.counters["stats"]

    class Counting(Recorder):
        """Graphs that were compiled before and after each look."""

        def __init__(self) -> None:
            super().__init__()
            self.before: list[int] = []
            self.after: list[int] = []

        def sample(self, model: LanguageModel) -> str:
            self.before.append(graphs["unique_graphs"])
            score(model, corpus([50, 3]), 0)
            return ""

        def evaluated(self, progress: Progress, record: EvaluationRecord) -> None:
            self.after.append(graphs["unique_graphs"])

    for compiled in (False, True):
        torch.manual_seed(0)
        model, listener = config.build(), Counting()
        graphs.clear()
        if compiled:
            compile_blocks(model, model.device)
        job = trainer(tmp_path / str(compiled), model=model, steps=4, listener=listener, compile=compiled)
        runs.append(job.run())
    plain, other = runs
    assert listener.before == listener.after
    assert listener.before[0] == 1  # what asked whether there is a compiler
    assert listener.before[-1] == 2  # and both blocks together
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5)
    looks = [[look.valid_loss for look in run.evaluations] for run in runs]
    assert looks[1] == pytest.approx(looks[0], rel=1e-5)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_dropout_is_dropout() -> None:
    """As many zeros, the same scale, and one mask forward and backward."""
    torch.manual_seed(0)
    subject, x = torch.compile(Dropout(0.25).train()), torch.rand(64, 500).add_(1).requires_grad_()
    y = subject(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())
    assert sorted(y.detach().div(x.detach()).round(decimals=4).unique().tolist()) == pytest.approx([0, 4 / 3], rel=1e-4)
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(subject(x) == 0, y == 0)


def test_no_compiler_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("cannot find g++\nand more")

    monkeypatch.setattr(compiling.torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"does not work here \(cannot find g\+\+\): --set training.compile=false$"):
        compile_blocks(nn.Identity(), torch.device("cpu"))


def test_nothing_to_compile_is_refused() -> None:
    training = {"budget": {"steps": 1}, "compile": True}
    run = {"source": {"path": "x"}, "model": {"family": "lstm", "vocab": 9}, "training": training}
    with pytest.raises(ConfigError, match=r"training\.compile is for our Transformers that go on writing"):
        parse_run(run)


def test_batches_ahead_are_the_same() -> None:
    subject = Windows(corpus([30, 8, 5, 21]), 16, 64, 0, 0)
    plain = list(islice(subject.batches(Cursor()), 9))
    early = list(islice(ahead(subject.batches(Cursor()), lambda batch: replace(batch, share=0.5)), 9))
    for (batch, cursor), (other, after) in zip(plain, early, strict=True):
        assert cursor == after and other.share == 0.5
        assert torch.equal(batch.tokens, other.tokens) and torch.equal(batch.targets, other.targets)


def test_ahead_is_one_batch_and_ends_with_its_reader() -> None:
    given: list[int] = []

    def supply() -> Iterator[tuple[Batch, Cursor]]:
        nothing = torch.zeros(1, 1, dtype=torch.long)
        for number in range(4):
            given.append(number)
            yield Batch(nothing, nothing, None, None), Cursor(epoch=number)
        raise MemoryError("no room")

    before = threading.active_count()
    reader = ahead(supply(), lambda batch: batch)
    assert next(reader)[1].epoch == 0
    del reader
    assert given == [0, 1] and threading.active_count() == before
    with pytest.raises(MemoryError, match="no room"):
        list(ahead(supply(), lambda batch: batch))
