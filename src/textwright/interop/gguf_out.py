"""A model of Llama's shape leaves as GGUF, the file of llama.cpp: the inverse of `gguf_file`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from textwright.errors import CheckpointError, MissingExtraError
from textwright.interop import llama
from textwright.interop.formats import native
from textwright.interop.gguf_file import ARCHITECTURES, TENSORS, read_gguf
from textwright.interop.gguf_tokenizer import facts_of
from textwright.interop.huggingface import Habits
from textwright.interop.tables import write
from textwright.models.transformer import TransformerLM
from textwright.text.tokenizers import Tokenizer

Packing = Literal["f32", "f16", "q8_0", "q4_0"]
ALIKE = 0.97  # share of places with the same likeliest token: llama.cpp keeps keys and values in 16 bits
LONGEST = 256  # tokens of a text that are compared
CLOSE = 1e-4  # of the largest logit: what is not rounded comes back
NAMES = {new: old for old, new in TENSORS.items()}


def write_gguf(
    path: Path, name: str, model: TransformerLM, tokenizer: Tokenizer, habits: Habits, packing: Packing
) -> None:
    """Write the file.

    Raises:
        MissingExtraError: the package gguf is not installed.
        CheckpointError: the model is not of Llama's shape, or llama.cpp has no tokenizer like this one.
    """
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise MissingExtraError("writing GGUF", "gguf") from None
    config = llama.described(model.config)
    kind, facts = config["model_type"], facts_of(tokenizer, config["vocab_size"])
    if kind not in ARCHITECTURES or model.config.bias:
        raise CheckpointError("GGUF holds no biases of Llama's projections")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, facts, tokenizer, habits)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in write(model, llama.table(model.config)).items():
        full = _name(name)
        values = _turned(tensor, heads.get(full.split(".")[-2], 0) if kind == "llama" else 0).float().numpy()
        if values.ndim < 2 or packing == "f32" or values.shape[-1] % 32:
            writer.add_tensor(full, values)
        else:
            # Four bits in the tables of words cost more than in all layers: llama.cpp's own files keep them wider, too.
            wide = packing == "q4_0" and not full.startswith("blk.")
            type_ = gguf.GGMLQuantizationType["Q8_0" if wide else packing.upper()]
            writer.add_tensor(full, gguf.quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(path: Path, model: TransformerLM, prompts: Sequence[tuple[str, Sequence[int]]], packing: Packing) -> str:
    """Read the file back, and open it with llama.cpp where that is installed: both must see the same ids, the same
    logits where nothing is rounded, and for float32 the same likeliest tokens.

    Args:
        prompts: texts and their ids without what begins a text.

    Returns:
        what was compared, in words.

    Raises:
        CheckpointError: something differs.
    """
    folder = read_gguf(path)
    again, tokenizer = native(folder), folder.tokenizer()
    difference, largest, same, places = 0.0, 0.0, 0, 0
    likeliest = []
    for text, ids in prompts:
        if tokenizer.encode(text) != list(ids):
            raise CheckpointError(f"the file reads {text[:40]!r} as other ids: nothing was written")
        row = torch.tensor([list(ids)[: min(LONGEST, model.window or LONGEST)]])
        with torch.no_grad():
            ours, theirs = model(row).logits[0], again(row).logits[0]
        difference = max(difference, float((ours - theirs).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        same, places = same + int((ours.argmax(-1) == theirs.argmax(-1)).sum()), places + len(ours)
        likeliest.append(ours.argmax(-1))
    if packing == "f32" and difference > CLOSE * largest:
        raise CheckpointError(f"read back, the logits differ by {difference:.2g}: nothing was written")
    told = (
        f"read back, logits within {difference:.1g} of {largest:.0f}, the same likeliest token at "
        f"{same / max(places, 1):.0%} of {places:,} places; "
    )
    return told + _opened(path, prompts, likeliest if packing == "f32" else None)


def _opened(path: Path, prompts: Sequence[tuple[str, Sequence[int]]], likeliest: Sequence[Tensor] | None) -> str:
    try:
        library: Any = import_module("llama_cpp")
    except ImportError:
        return "not opened by llama.cpp: llama-cpp-python is not installed"
    theirs = library.Llama(str(path), n_ctx=2 * LONGEST, logits_all=True, verbose=False)
    for number, (text, ids) in enumerate(prompts):
        if list(theirs.tokenize(text.encode(), add_bos=False)) != list(ids):
            raise CheckpointError(f"llama.cpp reads {text[:40]!r} as other ids: nothing was written")
        if likeliest is None:
            continue
        row = list(ids)[: len(likeliest[number])]
        theirs.reset()
        theirs.eval(row)
        same = torch.from_numpy(theirs.scores[: len(row)]).argmax(-1) == likeliest[number]
        if not bool(same.float().mean() > ALIKE):
            raise CheckpointError(f"llama.cpp finds other tokens likeliest after {text[:40]!r}: nothing was written")
    return f"opened by llama.cpp, the same ids of {len(prompts)} texts"


def _add_tokenizer(writer: Any, facts: Mapping[str, Any], tokenizer: Tokenizer, habits: Habits) -> None:
    writer.add_tokenizer_model(facts["model"])
    writer.add_token_list(facts["tokens"])
    writer.add_token_types(facts["token_type"])
    if facts["model"] == "gpt2":
        writer.add_tokenizer_pre(facts["pre"])
        writer.add_token_merges(facts["merges"])
    else:
        writer.add_token_scores(facts["scores"])
        writer.add_unk_token_id(facts["unknown_token_id"])
        writer.add_add_space_prefix(facts["add_space_prefix"])
    writer.add_bos_token_id(habits.start[0] if habits.start else tokenizer.end)
    writer.add_eos_token_id(tokenizer.end if habits.end is None else habits.end)
    for add, id in zip((writer.add_eot_token_id, writer.add_eom_token_id), habits.also_end, strict=False):
        add(id)
    writer.add_add_bos_token(bool(tokenizer.prefix))
    if habits.template is not None:
        writer.add_chat_template(habits.template)


def _name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    layer, rest = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def _turned(tensor: Tensor, heads: int) -> Tensor:
    """Neighbours in the place of halves: see `gguf_file`."""
    if not heads:
        return tensor
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
