"""Any language model of the transformers library, from a folder in the layout of the hub, as that library runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textwright.errors import CheckpointError
from textwright.interop.folder import Folder
from textwright.interop.memory import check_room, need
from textwright.models import LanguageModel
from textwright.models.base import Source
from textwright.models.pretrained import RECURRENT, PretrainedConfig, PretrainedLM, library, wrap
from textwright.models.pretrained_pairs import PretrainedPairs, PretrainedPairsConfig

WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")  # in config.json
SIDES = (("max_encoder_position_embeddings", *WINDOWS), ("max_decoder_position_embeddings", *WINDOWS))
UNSAID = 2048  # tokens, for models that name no limit because their positions have none
SAME = 1e-4  # of logits, relative to their largest value


def has_source(folder: Folder) -> bool:
    """Whether the model in a folder writes with a source. The errors of `adopted`."""
    return bool(_described(folder).is_encoder_decoder)


def adopted(folder: Folder) -> LanguageModel:
    """The model in a folder behind our contract, in float32, in evaluation mode.

    Raises:
        ConfigError: it does not fit into memory.
        CheckpointError: the library has no language model of this kind; weights are missing, left over or of another
            shape; or a run could not keep all that it learned.
    """
    theirs = _described(folder)
    config = _pairs_config(folder, theirs) if theirs.is_encoder_decoder else _config(folder, theirs)
    check_room(need(config), f"{folder.path.name}, its weights in float32,")
    loaded = _weights(config, folder.path)
    model: LanguageModel
    if isinstance(config, PretrainedPairsConfig):
        model = _scaled_pairs(config, loaded, folder)
    else:
        model = _scaled(config, loaded, folder)
    fresh = dict(config.build().named_buffers())
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, fresh[name]):
            raise CheckpointError(
                f"{folder.path}: the buffer {name} was learned, too, and runs here keep parameters alone"
            )
    return model


def _described(folder: Folder) -> Any:
    """The library's configuration of the model."""
    transformers = library()
    from huggingface_hub.errors import StrictDataclassError  # which comes with that library

    said = {name: value for name, value in folder.config.items() if name != "model_type"}
    try:
        theirs = transformers.AutoConfig.for_model(folder.kind, **said)
        auto = transformers.AutoModelForSeq2SeqLM if theirs.is_encoder_decoder else transformers.AutoModelForCausalLM
        auto._model_mapping[type(theirs)]
        theirs.vocab_size, theirs.hidden_size  # noqa: B018 - a model of several parts has these in each part
    except (ValueError, KeyError, TypeError, AttributeError, StrictDataclassError):
        raise CheckpointError(
            f"{folder.path} is a {folder.kind or 'model without a model_type'}, and the transformers library has no "
            "language model of that kind and configuration, with a source or without"
        ) from None
    return theirs


def _config(folder: Folder, theirs: Any) -> PretrainedConfig:
    window = None if folder.kind in RECURRENT else _window(folder, theirs, WINDOWS)
    return PretrainedConfig(window=window, **_shape(folder, theirs))


def _pairs_config(folder: Folder, theirs: Any) -> PretrainedPairsConfig:
    source, target = (_window(folder, theirs, names) for names in SIDES)
    return PretrainedPairsConfig(window=target, source_window=source, **_shape(folder, theirs))


def _shape(folder: Folder, theirs: Any) -> dict[str, Any]:
    return {
        "vocab": theirs.vocab_size,
        "width": theirs.hidden_size,
        "layers": theirs.num_hidden_layers,
        "tied": bool(theirs.tie_word_embeddings),
        "described": {**folder.config, "model_type": folder.kind},
    }


def _window(folder: Folder, theirs: Any, names: tuple[str, ...]) -> int:
    """What config.json says, or else what the library takes for usual."""
    said = [table[name] for table in (folder.config, theirs.to_dict()) for name in names if _counts(table.get(name))]
    return said[0] if said else UNSAID


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _weights(config: PretrainedConfig | PretrainedPairsConfig, path: Path) -> Any:
    """The library's model with the weights in a folder, all of them and no others."""
    transformers = library()
    pairs = isinstance(config, PretrainedPairsConfig)
    auto = transformers.AutoModelForSeq2SeqLM if pairs else transformers.AutoModelForCausalLM
    theirs, found = auto.from_pretrained(
        path,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are told below
        output_loading_info=True,
    )
    wrong = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    wrong += [f"{name} has no place" for name in sorted(found["unexpected_keys"])]
    wrong += [f"{key[0]} has another shape" for key in sorted(found["mismatched_keys"])]
    if wrong:
        raise CheckpointError(f"{path}: these weights are not the model of config.json: {'; '.join(wrong[:3])}")
    return theirs.eval()


@torch.no_grad()
def _scaled_pairs(config: PretrainedPairsConfig, theirs: Any, folder: Folder) -> PretrainedPairs:
    """Ours around theirs, with the factor in front of the head that some have."""
    plain = PretrainedPairs(config, theirs)
    source, text = torch.arange(14).reshape(2, 7) % config.vocab, torch.arange(10).reshape(2, 5) % config.vocab
    given = {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": text}
    hidden, _ = plain.hidden(text, None, None, Source(source, torch.tensor([7, 7])))
    scale = _factor(theirs(**given, use_cache=False).logits, plain.head, hidden.values, folder)
    return PretrainedPairs(config.model_copy(update={"scale": scale}), theirs).eval()


@torch.no_grad()
def _scaled(config: PretrainedConfig, theirs: Any, folder: Folder) -> PretrainedLM:
    """The same for a model without a source."""
    plain = wrap(config, theirs)
    text = torch.arange(10).reshape(2, 5) % config.vocab
    hidden, _ = plain.hidden(text, None, None, None)
    scale = _factor(theirs(input_ids=text, use_cache=False).logits, plain.head, hidden.values, folder)
    return wrap(config.model_copy(update={"scale": scale}), theirs)


def _factor(logits: Tensor, head: nn.Linear, hidden: Tensor, folder: Folder) -> float:
    """What hidden states are multiplied by before they reach the head, told from the logits.

    Raises:
        CheckpointError: there is more than a factor between them and the logits.
    """
    bias = 0.0 if head.bias is None else head.bias
    wanted, found = (logits - bias).double(), (head(hidden) - bias).double()
    scale = float((wanted * found).sum() / (found * found).sum())
    usual = [value for value in (1.0, head.in_features**-0.5) if abs(scale / value - 1) < SAME]
    scale = usual[0] if usual else float(f"{scale:.5g}")
    if float((wanted - scale * found).abs().max()) > SAME * float(wanted.abs().max()):
        raise CheckpointError(
            f"{folder.path} is a {folder.kind}, whose logits are more than a linear head on what its layers give: it "
            "cannot stand behind our contract"
        )
    return scale
