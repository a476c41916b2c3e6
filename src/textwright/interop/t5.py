"""T5 (Raffel et al. 2020), its successors T5 1.1 and Flan-T5, and mT5 (Xue et al. 2021): relative positions,
root-mean-square norms, no biases.

Their scores are not divided by the root of the head's width, and a head that is the embedding reads what is divided by
that of the model's: here both are in the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from textwright.interop.tables import Part, refuse
from textwright.models import EncoderDecoderConfig

KINDS = ("t5", "mt5")
PREFIX = ""
WINDOW = 512  # relative positions have no end; the models were trained on so many tokens
FEED_FORWARD: dict[str, Literal["relu", "geglu", "swiglu"]] = {
    "relu": "relu",
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
}
HEAD = "lm_head.weight"
LAST = "decoder.final_layer_norm.weight"


def config(theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> EncoderDecoderConfig:
    """As `llama.config`; whether the head is the embedding is told by the weights alone."""
    kind = theirs.get("feed_forward_proj", "relu")
    found = {
        f"feed_forward_proj {kind}": kind not in FEED_FORWARD,
        "relative_attention_num_buckets": theirs.get("relative_attention_num_buckets", 32) != 32,
        "relative_attention_max_distance": theirs.get("relative_attention_max_distance", 128) != 128,
    }
    refuse("config.json asks for {}, which our encoder-decoder does not have", found)
    window = theirs.get("n_positions") or WINDOW
    return EncoderDecoderConfig(
        vocab=theirs["vocab_size"],
        width=theirs["d_model"],
        layers=theirs.get("num_decoder_layers") or theirs["num_layers"],
        encoder_layers=theirs["num_layers"],
        heads=theirs["num_heads"],
        head_width=theirs["d_kv"],
        window=window,
        source_window=window,
        inner=theirs["d_ff"],
        norm="rmsnorm",
        norm_epsilon=theirs.get("layer_norm_epsilon", 1e-6),
        positions="relative",
        feed_forward=FEED_FORWARD[kind],
        scaled=False,
        tied=HEAD not in weights or torch.equal(weights[HEAD], weights["shared.weight"]),
    )


def described(ours: EncoderDecoderConfig) -> dict[str, Any]:
    """As `llama.described`."""
    _, heads, kv_heads, each = ours.shape
    found = {
        f"norm {ours.norm}": ours.norm != "rmsnorm",
        f"norm_place {ours.norm_place}": ours.norm_place != "pre",
        f"positions {ours.positions}": ours.positions != "relative",
        f"feed_forward {ours.feed_forward}": ours.feed_forward not in FEED_FORWARD.values(),
        "biases": ours.bias or bool(ours.qkv_bias) or ours.head_bias,
        "qk_norm": ours.qk_norm,
        "shared keys": kv_heads != heads,
        "scaled embeddings": ours.scaled,
        "norms at the entrance": ours.embed_norm,
        "a pointer": ours.copying,
        "an embedding for each side": not ours.shared,
    }
    refuse("no model of T5's shape has {}", found)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": ours.vocab,
        "d_model": ours.width,
        "d_kv": each,
        "d_ff": ours.inner or 4 * ours.width,
        "num_layers": ours.encoder_layers or ours.layers,
        "num_decoder_layers": ours.layers,
        "num_heads": heads,
        "n_positions": ours.window,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": ours.epsilon,
        "feed_forward_proj": next(name for name, own in FEED_FORWARD.items() if own == ours.feed_forward),
        "tie_word_embeddings": ours.tied,
        "scale_decoder_outputs": ours.tied,
        "dropout_rate": ours.dropout,
    }


def table(ours: EncoderDecoderConfig) -> list[Part]:
    """As `llama.table`."""
    buckets = 32
    parts = [Part("embed.weight", {"shared.weight": ours.vocab})]
    if not ours.tied:
        parts.append(Part("head.weight", {HEAD: ours.vocab}))
    for own, stack in (("source_", "encoder"), ("", "decoder")):
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        parts.append(Part(f"{own}position.table.weight", {first: buckets}))
        parts.append(Part(f"{own}norm.weight", {f"{stack}.final_layer_norm.weight": ours.width}))
    for layer in range(ours.encoder_layers or ours.layers):
        parts += _block(f"encoder.{layer}", f"encoder.block.{layer}.layer", ours, cross=False)
    for layer in range(ours.layers):
        parts += _block(f"blocks.{layer}", f"decoder.block.{layer}.layer", ours, cross=True)
    return parts


def _block(mine: str, its: str, ours: EncoderDecoderConfig, *, cross: bool) -> list[Part]:
    _, heads, _, each = ours.shape
    width, rows, inner = ours.width, heads * each, ours.inner or 4 * ours.width
    last = 2 if cross else 1
    its_own, its_forward = f"{its}.0.SelfAttention", f"{its}.{last}.DenseReluDense"
    parts = [
        Part(f"{mine}.norm{number + 1}.weight", {f"{its}.{number}.layer_norm.weight": width})
        for number in range(last + 1)
    ]
    parts += [
        Part(f"{mine}.attention.qkv.weight", {f"{its_own}.{name}.weight": rows for name in "qkv"}),
        Part(f"{mine}.attention.out.weight", {f"{its_own}.o.weight": width}),
        Part(f"{mine}.feed_forward.down.weight", {f"{its_forward}.wo.weight": width}),
    ]
    if ours.feed_forward == "relu":
        parts.append(Part(f"{mine}.feed_forward.up.weight", {f"{its_forward}.wi.weight": inner}))
    else:
        gate = {f"{its_forward}.wi_{number}.weight": inner for number in (0, 1)}
        parts.append(Part(f"{mine}.feed_forward.gate_up.weight", gate))
    if cross:
        across = f"{its}.1.EncDecAttention"
        parts += [
            Part(f"{mine}.cross.q.weight", {f"{across}.q.weight": rows}),
            Part(f"{mine}.cross.kv.weight", {f"{across}.{name}.weight": rows for name in "kv"}),
            Part(f"{mine}.cross.out.weight", {f"{across}.o.weight": width}),
        ]
    return parts


def ignored(ours: EncoderDecoderConfig) -> tuple[str, ...]:
    """Further names of the embedding, and a table that the first files had and nobody used."""
    return ("embed_tokens.weight", "EncDecAttention.relative_attention_bias.weight")


def into(theirs: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """A tensor of theirs as its `Part` wants it."""
    return tensor * _scale(theirs, name)


def out_of(theirs: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """The inverse of `into`."""
    return tensor / _scale(theirs, name)


def _scale(theirs: Mapping[str, Any], name: str) -> float:
    if name.endswith(".q.weight"):
        return math.sqrt(theirs["d_kv"])
    # T5 1.1 said by an embedding of its own that its outputs are not scaled; files of today say it by a name.
    scaled = theirs["model_type"] == "t5" and theirs.get(
        "scale_decoder_outputs", theirs.get("tie_word_embeddings") is not False
    )
    return 1 / math.sqrt(theirs["d_model"]) if name == LAST and scaled else 1.0
