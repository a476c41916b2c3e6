"""The task of writing: a text goes on from itself."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textwright import plan
from textwright.errors import ConfigError
from textwright.evaluating.perplexity import WIDE, batches_of, head, panel, score
from textwright.job import Job, Measures
from textwright.models import LanguageModel
from textwright.models.rnn import RecurrentLM
from textwright.report import panel_table
from textwright.reporting import Section
from textwright.run import (
    GenerationConfig,
    PairRun,
    TextRun,
    read_generation,
    read_template,
    write_generation,
    write_template,
)
from textwright.run_model import begin_from, learned_since
from textwright.text.batching import Batches, Streams, Windows
from textwright.text.corpus import Corpus, Progress, counted, open_prepared, prepare
from textwright.text.sources import SourceConfig, alike, files, fingerprint
from textwright.text.tokenizers import TokenizerConfig
from textwright.training import cooccurrence
from textwright.training.calibration import Calibration, calibrated
from textwright.training.hardware import Hardware
from textwright.training.loop import Begin
from textwright.training.parallel import World
from textwright.training.records import Look
from textwright.training.sampled import Sampler
from textwright.writer import generation_config, sample_text

QUICK = 50_000  # validation tokens looked at during training; the whole text is measured at the end
LOOK = 2e12  # operations of such a look: a large model looks at fewer tokens, at least at LEAST
LEAST = 4_096
FIRST = 2_000  # and before training, when any model is equally ignorant
SAMPLE = 200  # tokens of a sample


class TextJob(Job):
    """Args: config, and the run's folder, where the text was prepared."""

    requested = ("source", "valid", "test", "tokenizer", "valid_fraction", "test_fraction")

    def __init__(self, config: TextRun, out: Path) -> None:
        self.config = config
        self.data = open_prepared(out / "data")
        self.generation = read_generation(out, GenerationConfig)
        self.epoch_tokens = self.data.train.facts.tokens
        self.kinds = f"{self.data.train.facts.vocabulary:,} ({self.data.tokenizer.kind})"

    @staticmethod
    def check(asked: Mapping[str, Any]) -> None:
        given = bool(asked.get("valid")), bool(asked.get("valid") or asked.get("test"))
        for key, useless in zip(("valid_fraction", "test_fraction"), given, strict=True):
            if useless and key in asked:
                raise ConfigError(f"with a validation or test text of its own nothing is split off: leave out {key}")
        plan.check(asked)

    @staticmethod
    def fingerprint(asked: Mapping[str, Any]) -> str:
        source = SourceConfig.parse(asked["source"], "source")
        others = [other for key in ("valid", "test") if (other := _alike(asked, key)) is not None]
        for text in (source, *others):
            files(text)  # a missing one is told now, not when the vocabulary is learned
        if not others:
            return fingerprint(source)
        return hashlib.sha256("".join(map(fingerprint, (source, *others))).encode()).hexdigest()

    @staticmethod
    def prepare(asked: Mapping[str, Any], folder: Path, progress: Progress) -> None:
        source = SourceConfig.parse(asked["source"], "source")
        others = [_alike(asked, key) for key in ("valid", "test")]
        fractions = {key: asked[key] for key in ("valid_fraction", "test_fraction") if key in asked}
        tokenizer = TokenizerConfig.parse(asked.get("tokenizer", {}), "tokenizer")
        prepare(source, others[0], others[1], tokenizer, folder, progress=progress, **fractions)

    @staticmethod
    def defaults(asked: Mapping[str, Any], folder: Path, hardware: Hardware, processes: int) -> dict[str, Any]:
        facts = open_prepared(folder).train.facts
        return plan.defaults(asked, plan.Situation(facts, hardware, processes))

    @staticmethod
    def describe_run(config: TextRun | PairRun, data: Path, out: Path) -> None:
        prepared = open_prepared(data)
        prepared.tokenizer.save(out / "tokenizer.json")
        if isinstance(config, TextRun) and config.base is not None:  # what the new text lacks was learned before
            base = Path(config.base)
            generation = learned_since(read_generation(base, GenerationConfig), prepared.train)
            end = prepared.tokenizer.end
            if generation.end not in (None, end):  # the base's texts end so; the new documents, with this
                also_end = tuple(sorted({*generation.also_end, end}))
                generation = generation.model_copy(update={"also_end": also_end})
            write_generation(out, generation)
            if (template := read_template(base)) is not None:
                write_template(out, template)
            begin_from(base, out)
        else:
            write_generation(out, generation_config(prepared.tokenizer, prepared.train))

    def describe(self) -> str:
        facts = self.data.train.facts
        return (
            f"text: {facts.characters:,} characters, {facts.tokens:,} tokens of {self.kinds}, {facts.documents:,} "
            f"documents; validation {self.data.valid.facts.tokens:,} tokens"
        )

    def sizes(self) -> list[tuple[str, object]]:
        facts = self.data.train.facts
        return [
            ("vocabulary", self.kinds),
            ("training text, characters", facts.characters),
            ("training text, tokens", facts.tokens),
        ]

    def batches(self, model: LanguageModel, world: World) -> Batches:
        """Contiguous streams for models whose memory does not grow, shuffled windows for the others."""
        training, corpus, first = self.config.training, self.data.train, self.generation.first
        if model.window is not None:
            return Windows(corpus, training.context, training.batch_tokens, first, training.seed)
        rows = max(1, training.batch_tokens // training.context)
        varied = training.varied_context
        streams = Streams(corpus, rows, training.context, first, training.seed, varied=varied)
        if streams.rows % world.size:
            raise ConfigError(
                f"{streams.rows} rows cannot be shared by {world.size} processes: "
                "set training.batch_tokens and another --out"
            )
        return streams

    def sampler(self, device: torch.device) -> Sampler | None:
        size = self.config.training.softmax_samples
        return Sampler(self._counts.to(device), size) if size else None

    def begin(self) -> Begin | None:
        if self.config.training.embedding == "random":
            return None
        seed, read = self.config.training.seed, self.config.model.read
        return lambda model: cooccurrence.embed(model.embed, self.data.train, seed, read)

    def validate(self, model: LanguageModel, *, trained: bool) -> Look:
        part = self._part(model) if self._knows(trained) else head(self.data.valid, FIRST)
        stride = None if model.window is None else min(model.window, WIDE)
        precision = self.config.training.precision
        total, tokens, _ = score(model, part, self.generation.first, stride=stride, precision=precision)
        return Look(total / tokens)

    def calibrate(self, model: LanguageModel, *, trained: bool) -> tuple[LanguageModel, Calibration | None]:
        if not (self.config.training.calibrate and self._knows(trained)):
            return model, None
        assert isinstance(model, RecurrentLM)  # the configuration says so
        part = self._part(model)
        batches, _ = batches_of(model, part, self.generation.first, None)
        return calibrated(model, batches, len(part.tokens), self._counts)

    def _knows(self, trained: bool) -> bool:
        return trained or self.config.base is not None

    def _part(self, model: LanguageModel) -> Corpus:
        """The beginning of the validation text, as much as a look at it is worth."""
        return head(self.data.valid, min(QUICK, max(LEAST, int(LOOK / (2 * model.count_parameters())))))

    def sample(self, model: LanguageModel) -> str:
        return sample_text(model, self.data.tokenizer, self.generation, SAMPLE)

    @cached_property
    def _counts(self) -> Tensor:
        """(vocabulary,): how often each token stands in the training text."""
        return counted(self.data.train, self.data.train.facts.vocabulary)

    def use(self, out: Path) -> str:
        return f"textwright generate {shlex.quote(str(out))} --prompt TEXT"

    def measure(self, model: LanguageModel) -> Measures:
        splits = {"validation": self.data.valid, "test": self.data.test}
        first = self.generation.first
        panels = {name: panel(model, corpus, first) for name, corpus in splits.items() if corpus.facts.tokens}
        facts: list[tuple[str, object]] = []
        for name, one in panels.items():
            facts += [(f"{name} loss, nats a token", round(one.loss, 4)), (f"{name} bits a byte", one.bits_per_byte)]
        table = panel_table(panels)
        fitted = "Two numbers of the model were fitted to the validation text (training.calibrate)."
        told = (fitted,) if self.config.training.calibrate else ()
        return Measures(facts, table, [Section("Perplexity", [table, *told])])


def _alike(asked: Mapping[str, Any], key: str) -> SourceConfig | None:
    """A validation or test source: read as the training source is, unless it says otherwise."""
    if not asked.get(key):
        return None
    trained, own = SourceConfig.parse(asked["source"], "source"), SourceConfig.parse(asked[key], key)
    like = alike(own.path, trained)
    encoding = {} if own.path.startswith(("builtin:", "hf:")) else {"encoding": trained.encoding}
    return SourceConfig.parse({**like.dump(), **encoding, **asked[key]}, key)
