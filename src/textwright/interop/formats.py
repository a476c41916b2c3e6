"""Architectures of the Hugging Face hub that our own Transformer can be: their weights in it give the same logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from textwright.errors import CheckpointError
from textwright.interop import gpt2, llama, starcoder2
from textwright.interop.folder import Folder, under
from textwright.interop.memory import check_room, need
from textwright.interop.tables import Part, read, write
from textwright.models import TransformerConfig
from textwright.models.base import Precision, building
from textwright.models.pretrained import PretrainedLM
from textwright.models.transformer import TransformerLM


class Format(NamedTuple):
    """One architecture: see `llama` for what each function does.

    Attributes:
        prefix: of every tensor but the head's.
        ignored: ends of names of tensors that hold nothing a model learns.
    """

    config: Callable[[Mapping[str, Any]], TransformerConfig]
    described: Callable[[TransformerConfig], dict[str, Any]]
    table: Callable[[TransformerConfig], Sequence[Part]]
    prefix: str
    ignored: tuple[str, ...]


LLAMA = Format(llama.config, llama.described, llama.table, llama.PREFIX, llama.IGNORED)
GPT2 = Format(gpt2.config, gpt2.described, gpt2.table, gpt2.PREFIX, gpt2.IGNORED)
STARCODER2 = Format(starcoder2.config, starcoder2.described, starcoder2.table, starcoder2.PREFIX, starcoder2.IGNORED)
FORMATS = {
    **dict.fromkeys(llama.KINDS, LLAMA),
    **dict.fromkeys(gpt2.KINDS, GPT2),
    **dict.fromkeys(starcoder2.KINDS, STARCODER2),
}


def format_of(folder: Folder) -> Format:
    """Raises CheckpointError for an architecture that our Transformer cannot be."""
    if folder.kind not in FORMATS:
        raise CheckpointError(
            f"{folder.path} is a {folder.kind or 'model without a model_type'}: expected one of {', '.join(FORMATS)}"
        )
    return FORMATS[folder.kind]


C = TypeVar("C")


def read_config(folder: Folder, config: Callable[[Mapping[str, Any]], C]) -> C:
    """Our configuration of the model in a folder.

    Raises:
        CheckpointError: an option we do not have, or a config.json that lacks something.
    """
    try:
        return config(folder.config)
    except KeyError as error:
        raise CheckpointError(f"{folder.path / 'config.json'} lacks {error}: download the folder again") from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder.path / 'config.json'} makes no model: {error}") from None


def native(folder: Folder, precision: Precision = "float32") -> TransformerLM:
    """The model in a folder as one of ours, in evaluation mode.

    Raises:
        ConfigError: it does not fit into memory.
        CheckpointError: see `format_of`, `read_config` and `tables.read`.
    """
    form = format_of(folder)
    config = read_config(folder, form.config)
    check_room(need(config, precision), f"{folder.path.name}, its weights in {precision},")
    with building(precision):
        model = config.build()
    head = ("lm_head.weight",) if config.tied else ()  # some files repeat the embedding
    read(model, form.table(config), under(folder.weights, form.prefix), (*form.ignored, *head))
    return model.eval()


def foreign(model: TransformerLM | PretrainedLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a model, in the first architecture that can hold it, or in its own.

    Raises:
        CheckpointError: none can; what stands in the way of each is named.
    """
    if isinstance(model, PretrainedLM):
        tensors = {name: value.detach().contiguous() for name, value in model.theirs.named_parameters()}
        return model.config.described, tensors
    form = form_of(model.config)
    return form.described(model.config), write(model, form.table(model.config))


def form_of(config: TransformerConfig) -> Format:
    """The first architecture that can hold a model of ours. The errors of `foreign`."""
    reasons = []
    for form in (LLAMA, GPT2, STARCODER2):
        try:
            form.described(config)
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            return form
    raise CheckpointError(f"no architecture can hold this model: {'; '.join(reasons)}")
