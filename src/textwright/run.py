"""A run: one configuration, one folder, everything needed to repeat it, resume it and use it.

RUN/config.json         what was asked for, and what it was resolved to
RUN/tokenizer.json      opens with the `tokenizers` library, too
RUN/generation.json     where unprompted text begins, and how it is sampled unless told otherwise
RUN/model.safetensors   the best weights so far
RUN/report.html         one offline page
RUN/data/               the text as token ids
RUN/training/           the training state that a resume needs
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from textwright import __version__
from textwright.config import Config
from textwright.decoding import Sampling
from textwright.errors import CheckpointError, ConfigError
from textwright.models import LanguageModel, ModelConfig, TransformerConfig
from textwright.text.sources import RUN, SourceConfig
from textwright.text.tokenizers import Tokenizer, TokenizerConfig
from textwright.training.checkpoint import load_weights, read_json, write_json
from textwright.training.settings import TrainingConfig

FORMAT = 1


class RunConfig(Config):
    """Everything a run is made of."""

    source: SourceConfig
    valid: SourceConfig | None = None
    test: SourceConfig | None = None
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    test_fraction: float = Field(0.05, ge=0, lt=1)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        training = self.training
        if isinstance(self.model, TransformerConfig) and training.context > self.model.window:
            raise ValueError(f"training.context {training.context} is larger than model.window {self.model.window}")
        if training.batch_tokens < training.context:
            raise ValueError(f"training.batch_tokens {training.batch_tokens} is less than a row of {training.context}")
        return self


class GenerationConfig(Config):
    """How a run writes unless told otherwise.

    Attributes:
        start: token ids in front of every prompt, where the training text began a document or a line.
        end: the id that ends a text; None where it only ends a line of a longer one.
        unseen: ids that the training text never used: what cannot have been learned is never written. Among them are
            the single bytes of a character vocabulary that knows all its characters.
        sampling: the preset.
    """

    start: tuple[int, ...]
    end: int | None
    unseen: tuple[int, ...] = ()
    sampling: Sampling = Field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    max_new_tokens: int = Field(256, gt=0)


class Manifest(Config):
    """config.json."""

    format: int = FORMAT
    textwright: str = __version__
    hardware: str
    fingerprint: str = Field(description="SHA-256 of the source's bytes")
    asked: dict[str, Any]
    config: RunConfig


def read_manifest(folder: Path) -> Manifest:
    """Raises CheckpointError for a folder that is no run, is damaged, or was written by a newer version."""
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist: expected a folder that `textwright train` wrote")
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no config.json: expected a folder that `textwright train` wrote")
    data = read_json(path)
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} has no format number: expected a file that `textwright train` wrote")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version of Textwright reads up to {FORMAT}: pip install -U textwright"
        )
    try:
        return Manifest.parse(data, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_run(folder: Path, manifest: Manifest, tokenizer: Tokenizer, generation: GenerationConfig) -> None:
    """Write what describes a run; config.json last, because it is what makes a folder a run."""
    write_json(folder / "generation.json", generation.dump())
    tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "config.json", manifest.dump())


def read_generation(folder: Path) -> GenerationConfig:
    path = folder / "generation.json"
    try:
        return GenerationConfig.parse(read_json(path), str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def build_model(config: RunConfig, device: torch.device) -> LanguageModel:
    """The model with fresh weights, a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return config.model.build().to(device)


def load_model(folder: Path, config: RunConfig, device: torch.device) -> LanguageModel:
    """The best model of a run, in evaluation mode."""
    model = build_model(config, device)
    load_weights(model, folder / "model.safetensors")
    return model.eval()


def load_tokenizer(folder: Path, config: RunConfig) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
        CheckpointError: when it does not fit the model.
    """
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.size != config.model.vocab:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {tokenizer.size} ids, the model has {config.model.vocab}: "
            "they belong to different runs"
        )
    return tokenizer


def merge(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """`asked` over `defaults`, section by section."""
    result = dict(defaults)
    for key, value in asked.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second training out of the folder. The lock is the system's: it is gone when the process is."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / RUN, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another training runs in {folder}: wait for it, or give another --out") from None
        for rest in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            rest.unlink()
        yield
    finally:
        os.close(handle)
