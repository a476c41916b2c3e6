"""Small runs for the tests of training: a corpus in memory and a trainer over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from textwright.evaluating.perplexity import score
from textwright.models import GRUConfig, LanguageModel, LSTMConfig, TransformerConfig
from textwright.text.batching import Streams, Windows
from textwright.text.corpus import Corpus, Facts, counted
from textwright.training.callbacks import Listener
from textwright.training.loop import Begin, Calibrate, Trainer
from textwright.training.parallel import World
from textwright.training.records import Look, Progress
from textwright.training.sampled import Sampler
from textwright.training.settings import Budget, TextTraining

VOCAB = 12
MODELS = {
    "transformer": TransformerConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=16, dropout=0.1),
    "lstm": LSTMConfig(vocab=VOCAB, width=16, layers=2, dropout=0.1),
    "gru": GRUConfig(vocab=VOCAB, width=16, layers=1),
}


def corpus(lengths: list[int], seed: int = 0) -> Corpus:
    """Documents of the given lengths (the `end` id 0 included) with some order to learn in them."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for length in lengths:
        steps = torch.randint(1, 3, (length - 1,), generator=generator).cumsum(0)
        parts.append(torch.cat([1 + steps % (VOCAB - 1), torch.zeros(1, dtype=torch.long)]))
    tokens = torch.cat(parts)
    facts = Facts(
        vocabulary=VOCAB, tokens=len(tokens), documents=len(lengths), bytes=len(tokens), characters=len(tokens)
    )
    return Corpus(tokens.to(torch.uint8), torch.tensor(lengths).cumsum(0), facts)


class Recorder(Listener):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.samples = 0

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def sample(self, model: LanguageModel) -> str:
        assert not model.training
        self.samples += 1
        return "sample"


def trainer(
    folder: Path,
    family: str = "transformer",
    *,
    data: Corpus | None = None,
    listener: Listener | None = None,
    steps: int = 12,
    model: LanguageModel | None = None,
    begin: Begin | None = None,
    calibrate: Calibrate = lambda model: (model, None),
    **changes: Any,
) -> Trainer:
    """`softmax_samples` among the changes makes the sampler, too."""
    data = data or corpus([90, 40, 7, 200, 3])
    settings: dict[str, Any] = {
        "budget": Budget(steps=steps),
        "batch_tokens": 128,
        "context": 16,
        "log_every": 1,
        "evaluations": 3,
        "save_seconds": 1000.0,
    }
    config = TextTraining(**{**settings, **changes})
    torch.manual_seed(config.seed)
    model = model or MODELS[family].build()
    if model.window is None:
        supply: Any = Streams(data, config.batch_tokens // config.context, config.context, 0, config.seed)
    else:
        supply = Windows(data, config.context, config.batch_tokens, 0, config.seed)

    def validate(model: LanguageModel) -> Look:
        total, tokens, _ = score(model, data, 0)
        return Look(total / tokens)

    return Trainer(
        config,
        model,
        supply,
        data.facts.tokens,
        folder,
        validate=validate,
        calibrate=calibrate,
        keep=lambda model: None,
        listener=listener or Recorder(),
        world=World(),
        sampler=Sampler(counted(data, VOCAB), config.softmax_samples) if config.softmax_samples else None,
        begin=begin,
    )


def losses(progress: Progress) -> list[float]:
    return [record.loss for record in progress.steps]
