"""Opening a run: what `textwright train` wrote becomes a model that writes."""

from __future__ import annotations

from pathlib import Path

from textwright.errors import ConfigError
from textwright.pair_model import PairModel
from textwright.run import (
    GenerationConfig,
    PairGeneration,
    TextRun,
    load_model,
    load_tokenizer,
    read_generation,
    read_manifest,
)
from textwright.training.hardware import pick_device
from textwright.writer import TextModel


def load(path: str | Path, device: str = "auto") -> TextModel | PairModel:
    """Open a run at its best weights: a `TextModel`, or a `PairModel` for tasks with a source.

    Raises:
        CheckpointError: the folder is missing, damaged, hostile or from a newer version.
    """
    folder = Path(path)
    config = read_manifest(folder).config
    tokenizer = load_tokenizer(folder, config.model.vocab)
    if isinstance(config, TextRun):
        model = load_model(folder, config, pick_device(device))
        return TextModel(model, tokenizer, read_generation(folder, GenerationConfig), config)
    source_tokenizer = load_tokenizer(folder, config.model.source_vocab or config.model.vocab, "source_tokenizer")
    model = load_model(folder, config, pick_device(device))
    return PairModel(model, source_tokenizer, tokenizer, read_generation(folder, PairGeneration), config)


def load_writer(path: str | Path) -> TextModel:
    """Open a run that writes without a source."""
    model = load(path)
    if isinstance(model, PairModel):
        raise ConfigError(f"{path} was trained to {model.config.task}: textwright {model.config.task} {path}")
    return model


def load_pairs(path: str | Path, task: str | None = None) -> PairModel:
    """Open a run that writes with a source, trained for `task` if one is named."""
    model = load(path)
    if isinstance(model, TextModel):
        raise ConfigError(f"{path} was trained on a text, not on pairs: textwright generate {path}")
    if task is not None and model.config.task != task:
        raise ConfigError(f"{path} was trained to {model.config.task}: textwright {model.config.task} {path}")
    return model
