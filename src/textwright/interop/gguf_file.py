"""GGUF, the file of llama.cpp: configuration, tokenizer and weights in one, often with few bits a weight.

The weights are unpacked to float32. Models of Llama's shape are read. llama.cpp rotates neighbouring pairs where Llama
rotates halves, so in its files the rows of queries and keys stand in another order (architecture "llama" only).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textwright.errors import CheckpointError, MissingExtraError
from textwright.interop.folder import Folder, Renamed
from textwright.interop.gguf_tokenizer import UNUSED, library_of
from textwright.text.tokenizers import Tokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Packed(Mapping[str, Tensor]):
    """The tensors of a GGUF file under the file's names, unpacked when they are asked for."""

    def __init__(self, reader: Any, turned: Mapping[str, int]) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._turned = turned

    def __getitem__(self, name: str) -> Tensor:
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(f"{name} cannot be unpacked: {error}") from None
        heads = self._turned.get(name.split(".")[-2], 0)
        if not heads:
            return values
        pairs = values.view(heads, len(values) // heads // 2, 2, *values.shape[1:])
        return pairs.transpose(1, 2).reshape(values.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class GGUF(Folder):
    """A GGUF file as a folder of the hub would tell it.

    Attributes:
        facts: what it says under "tokenizer.ggml".
    """

    facts: dict[str, Any]

    def tokenizer(self) -> Tokenizer:
        try:
            return Tokenizer(library_of(self.facts))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} has {error}") from None


def read_gguf(path: Path) -> GGUF:
    """What the file says.

    Raises:
        MissingExtraError: the package gguf is not installed.
        CheckpointError: it is damaged, or of an architecture or a kind of packing that is not read.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtraError("reading GGUF", "gguf") from None
    try:
        reader = GGUFReader(path)
        said = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no whole GGUF file ({error}): download it again") from None
    kind = str(said.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{path} is a {kind}: expected one of {', '.join(ARCHITECTURES)}")
    own = {name.removeprefix(f"{kind}."): value for name, value in said.items() if name.startswith(f"{kind}.")}
    facts = {name.removeprefix("tokenizer.ggml."): value for name, value in said.items() if "tokenizer.ggml." in name}
    names = {tensor.name: _name(tensor.name) for tensor in reader.tensors}
    try:
        config = _config(kind, own, facts, tied="output.weight" not in names)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {kind}.{error.args[0]}: download it again") from None
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = Renamed(Packed(reader, heads if kind == "llama" else {}), {new: old for old, new in names.items()})
    tokens = {
        f"{name}_token": facts["tokens"][facts[f"{name}_token_id"]]
        for name in ("bos", "eos")
        if f"{name}_token_id" in facts
    }
    ends = [facts[name] for name in ("eos_token_id", "eot_token_id", "eom_token_id") if name in facts]
    spare = [id for id, kind in enumerate(facts.get("token_type", ())) if kind == UNUSED]
    generation = {"eos_token_id": ends, "suppress_tokens": spare}
    return GGUF(path, config, weights, generation, tokens, said.get("tokenizer.chat_template"), facts)


def _config(kind: str, own: Mapping[str, Any], facts: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    heads, width = own["attention.head_count"], own["embedding_length"]
    return {
        "model_type": kind,
        "vocab_size": len(facts["tokens"]),
        "hidden_size": width,
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length", width // heads),
        "intermediate_size": own["feed_forward_length"],
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
        "rope_theta": own.get("rope.freq_base", 10000.0),
        "rope_scaling": {"rope_type": own.get("rope.scaling.type", "default").replace("none", "default")},
        "tie_word_embeddings": tied,
    }


def _name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    *block, stem, kind = name.split(".")
    if stem not in TENSORS:
        return name  # it will be told as one that has no place
    return f"model.layers.{block[1]}.{TENSORS[stem]}.{kind}" if block else f"{TENSORS[stem]}.{kind}"
