"""The model of a run: with fresh weights, with its best ones, or with those of the run it begins from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from textwright.adapting import lora, prompt
from textwright.adapting.packed import pack, rounded
from textwright.adapting.prompt import Prompted
from textwright.errors import ConfigError, nearest
from textwright.models import LanguageModel
from textwright.models.base import building
from textwright.run import (
    ADAPTER,
    WEIGHTS,
    GenerationConfig,
    ImportedPairs,
    ImportedRun,
    PairGeneration,
    PairRun,
    TextRun,
    WithSource,
    read_run,
)
from textwright.text.corpus import Corpus, counted
from textwright.training.checkpoint import fill, learned, load_tensors, load_weights, save_tensors, weights, write_file

G = TypeVar("G", GenerationConfig, PairGeneration)


def build_model(config: TextRun | PairRun, device: torch.device) -> LanguageModel:
    """The model with fresh weights, a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return config.model.build().to(device)


def load_model(
    folder: Path, config: TextRun | WithSource | ImportedRun, device: torch.device, *, apart: bool = False
) -> LanguageModel:
    """The best model of a run, in evaluation mode; an adapter is a part of its weights, or with `apart` beside them."""
    with torch.random.fork_rng(devices=[]):
        with building(config.precision if isinstance(config, ImportedRun) else "float32"):
            model: LanguageModel = config.model.build().to(device)
        load_weights(model, folder / WEIGHTS)
        if not isinstance(config, ImportedPairs) and config.adapter is not None:
            if config.adapter.packed is not None:  # what it was trained on
                rounded(model, config.adapter.packed)
            lora.attach(model, config.adapter)
            fill(lora.tensors(model), folder / ADAPTER)
            if not apart:
                lora.merge(model)
        elif not isinstance(config, WithSource | ImportedRun) and config.prompt is not None:
            model = Prompted(model, config.prompt)
            fill(prompt.tensors(model), folder / ADAPTER)
    return model.eval()


def begin_from(base: Path, out: Path) -> None:
    """Put the weights of the run `base` into the run `out`, which then needs it no more: as a second name of the same
    file where that can be, which costs no room; weight files are replaced, never changed."""
    config = read_run(base)
    target, file = out / WEIGHTS, base / WEIGHTS
    if isinstance(config, TextRun) and config.prompt is not None:
        raise ConfigError(
            f"{base} is a learned prompt, which no weights can take up: fine-tune its base, {config.base}"
        )
    if not isinstance(config, ImportedPairs) and config.adapter is not None:
        model = load_model(base, config, torch.device("cpu"))
        write_file(target, lambda path: save_tensors(path, weights(model)))
    elif not file.is_file():
        load_tensors(file)  # tells that it is missing
    else:
        write_file(target, lambda path: _link(file, path))


def learned_since(generation: G, *train: Corpus) -> G:
    """How the base writes, except that it may write what the new training texts hold, too."""
    unseen = generation.unseen
    for corpus in train:
        counts = counted(corpus, corpus.facts.vocabulary)
        unseen = tuple(id for id in unseen if id >= len(counts) or not counts[id])
    return generation.model_copy(update={"unseen": unseen})


def _link(file: Path, path: Path) -> None:
    try:
        path.hardlink_to(file)
    except OSError:  # another disk, or one without second names
        shutil.copyfile(file, path)


def restrict(model: LanguageModel, config: TextRun | PairRun) -> LanguageModel:
    """The model of a base as it learns: by a fresh adapter or prompt, or by all weights that are not frozen.

    Raises:
        ConfigError: a beginning names no weight, or nothing is left to learn.
    """
    if config.adapter is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            if config.adapter.packed is not None:
                pack(model, config.adapter.packed)
            lora.attach(model, config.adapter)
    elif config.prompt is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            model = Prompted(model, config.prompt)
    names = [name for name, _ in model.named_parameters()]
    for beginning in config.frozen:
        if not any(name.startswith(beginning) for name in names):
            raise ConfigError(f"frozen: no weight begins with {beginning!r}.{nearest(beginning, names)}")
    for name, parameter in model.named_parameters():
        if config.frozen and name.startswith(config.frozen):
            parameter.requires_grad_(False)
    if not learned(model):
        raise ConfigError("every weight is frozen: leave something to learn")
    return model


def kept(model: LanguageModel, config: TextRun | PairRun) -> tuple[str, dict[str, Tensor]]:
    """The file that keeps what a run learns, and what stands in it."""
    if config.adapter is not None:
        return ADAPTER, lora.tensors(model)
    return (WEIGHTS, weights(model)) if config.prompt is None else (ADAPTER, prompt.tensors(model))
