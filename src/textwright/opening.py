"""Opening a run: what `textwright train` or `textwright import` wrote becomes a model that writes."""

from __future__ import annotations

from pathlib import Path

from textwright.errors import ConfigError
from textwright.pair_model import PairModel
from textwright.run import (
    NEIGHBOURS,
    GenerationConfig,
    Imported,
    ImportedRun,
    PairGeneration,
    PairRun,
    TextRun,
    WithSource,
    load_tokenizer,
    read_generation,
    read_run,
    read_template,
)
from textwright.run_model import load_model
from textwright.text.bitext import shift_of
from textwright.text.conversations import ChatTemplate
from textwright.text.neighbours import Neighbours, from_tensors
from textwright.training import hardware
from textwright.training.checkpoint import load_tensors
from textwright.training.hardware import pick_device
from textwright.writer import TextModel


def load(path: str | Path, device: str = "auto", *, apart: bool = False) -> TextModel | PairModel:
    """Open a run at its best weights: a `TextModel`, or a `PairModel` for tasks with a source.

    With weights of fewer bits: `quantizing.load_quantized`.

    Args:
        apart: leave an adapter beside the weights it is for; else it becomes a part of them, which is faster.

    Raises:
        CheckpointError: the folder is missing, damaged, hostile or from a newer version.
    """
    hardware.keep_memory()
    folder = Path(path)
    config = read_run(folder)
    tokenizer = load_tokenizer(folder, config.model.vocab, spare=has_base(config))
    if not isinstance(config, WithSource):
        model = load_model(folder, config, pick_device(device), apart=apart)
        return TextModel(
            model, tokenizer, read_generation(folder, GenerationConfig), config, template=_template(folder, config)
        )
    vocabulary = config.model.source_vocab or config.model.vocab
    if beside := isinstance(config, PairRun) and config.neighbours:
        vocabulary -= tokenizer.size if config.model.source_vocab else 0  # a source may hold the target's ids, too
    source_tokenizer = load_tokenizer(folder, vocabulary, "source_tokenizer", spare=has_base(config))
    model = load_model(folder, config, pick_device(device), apart=apart)
    known = None
    if beside:
        pairs = from_tensors(load_tensors(folder / NEIGHBOURS), (source_tokenizer.size, tokenizer.size))
        known = Neighbours(*pairs, beside, shift_of(source_tokenizer, tokenizer))
    generation = read_generation(folder, PairGeneration)
    return PairModel(model, source_tokenizer, tokenizer, generation, config, neighbours=known)


def has_base(config: TextRun | ImportedRun | WithSource) -> bool:
    """The weights came from elsewhere: there may be more ids than the tokenizer has."""
    return isinstance(config, Imported) or config.base is not None


def _template(folder: Path, config: TextRun | ImportedRun) -> ChatTemplate | None:
    source = read_template(folder)
    return None if source is None else ChatTemplate(source, config.named)


def load_writer(path: str | Path) -> TextModel:
    """Open a run that writes without a source."""
    return as_writer(load(path), path)


def load_pairs(path: str | Path, task: str | None = None) -> PairModel:
    """Open a run that writes with a source, trained for `task` if one is named."""
    return as_pairs(load(path), path, task)


def as_writer(model: TextModel | PairModel, path: str | Path) -> TextModel:
    """The run at `path`, if it writes without a source.

    Raises:
        ConfigError: it does not.
    """
    if isinstance(model, PairModel):
        raise ConfigError(f"{path} was trained to {model.config.task}: textwright {model.config.task} {path}")
    return model


def as_pairs(model: TextModel | PairModel, path: str | Path, task: str | None = None) -> PairModel:
    """The run at `path`, if it writes with a source and was trained for `task`, where one is named.

    Raises:
        ConfigError: it does not, or was not.
    """
    if isinstance(model, TextModel):
        raise ConfigError(f"{path} was trained on a text, not on pairs: textwright generate {path}")
    if task is not None and model.config.task != task:
        raise ConfigError(f"{path} was trained to {model.config.task}: textwright {model.config.task} {path}")
    return model
