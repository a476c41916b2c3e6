"""Any causal model of the transformers library, from a folder in the layout of the hub, as that library runs it."""

from __future__ import annotations

from pathlib import Path

import torch

from textwright.errors import CheckpointError
from textwright.interop.folder import Folder
from textwright.models.pretrained import RECURRENT, PretrainedConfig, PretrainedLM, library, wrap

WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")  # in config.json
UNSAID = 2048  # tokens, for models that name no limit because their positions have none


def adopted_config(folder: Folder) -> PretrainedConfig:
    """Our configuration of the model in a folder.

    Raises:
        CheckpointError: the library knows no causal model of this kind, or config.json lacks its sizes.
    """
    transformers = library()
    said = folder.config
    try:
        theirs = transformers.AutoConfig.for_model(folder.kind, **{k: v for k, v in said.items() if k != "model_type"})
        transformers.AutoModelForCausalLM._model_mapping[type(theirs)]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder.path} is a {folder.kind or 'model without a model_type'}, and the transformers library has no "
            "causal language model of that kind"
        ) from None
    sizes = theirs.to_dict()
    windows = [said[name] for name in WINDOWS if isinstance(said.get(name), int)]
    windows += [sizes[name] for name in WINDOWS if isinstance(sizes.get(name), int)]
    window = None if folder.kind in RECURRENT else windows[0] if windows else UNSAID
    return PretrainedConfig(
        vocab=theirs.vocab_size,
        width=theirs.hidden_size,
        layers=theirs.num_hidden_layers,
        tied=bool(theirs.tie_word_embeddings),
        window=window,
        described={**said, "model_type": folder.kind},
    )


def adopt(config: PretrainedConfig, path: Path) -> PretrainedLM:
    """The model in a folder with its weights, in float32, in evaluation mode.

    Raises:
        CheckpointError: weights are missing, left over or of another shape, or more than weights would have to be kept.
    """
    transformers = library()
    theirs, found = transformers.AutoModelForCausalLM.from_pretrained(
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
    fresh = dict(config.build().named_buffers())
    model = wrap(config, theirs)
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, fresh[name]):
            raise CheckpointError(f"{path}: the buffer {name} was learned, too, and runs here keep parameters alone")
    return model
