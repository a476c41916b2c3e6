"""Encoder-decoders that descend from BART: BART itself (Lewis et al. 2020), Marian (Junczys-Dowmunt et al. 2018; the
translation models of OPUS-MT) and Pegasus (Zhang et al. 2020).

            positions     norms                                      logits
BART        learned       behind each sublayer, and at the entrance  E x + b
Marian      sinusoidal    behind each sublayer                       E x + b
Pegasus     sinusoidal    in front of each, and behind each stack    E x + b

Their sinusoids have all sines first and the cosines behind, ours take turns: what reads and what writes the residual
stream is turned accordingly, which a model cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from textwright.interop.gpt2 import ACTIVATIONS
from textwright.interop.tables import ZEROS, Part, norm_parts, refuse
from textwright.models import EncoderDecoderConfig

KINDS = ("bart", "marian", "pegasus")
PREFIX = "model."
LOGITS_BIAS = "final_logits_bias"
OFFSET = 2  # rows of BART's table of positions that nobody uses
ARCHITECTURES = {
    "bart": "BartForConditionalGeneration",
    "marian": "MarianMTModel",
    "pegasus": "PegasusForConditionalGeneration",
}


def config(theirs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> EncoderDecoderConfig:
    """As `llama.config`; here the weights say nothing more."""
    kind, activation = theirs["model_type"], theirs.get("activation_function", "gelu")
    heads, inner = theirs["decoder_attention_heads"], theirs["decoder_ffn_dim"]
    found = {
        f"activation_function {activation}": activation not in ACTIVATIONS,
        "encoder_attention_heads of another number": theirs["encoder_attention_heads"] != heads,
        "encoder_ffn_dim of another width": theirs["encoder_ffn_dim"] != inner,
        "normalize_before": bool(theirs.get("normalize_before")),
        "tie_word_embeddings: false": not theirs.get("tie_word_embeddings", True),
        "an odd d_model": bool(theirs["d_model"] % 2),
    }
    refuse("config.json asks for {}, which our encoder-decoder does not have", found)
    apart = not theirs.get("share_encoder_decoder_embeddings", True)
    source, target = theirs["vocab_size"], theirs.get("decoder_vocab_size") or theirs["vocab_size"]
    window = theirs["max_position_embeddings"]
    return EncoderDecoderConfig(
        vocab=target,
        source_vocab=source if apart and source != target else None,
        shared=not apart,
        width=theirs["d_model"],
        layers=theirs["decoder_layers"],
        encoder_layers=theirs["encoder_layers"],
        heads=heads,
        window=window,
        source_window=window,
        inner=inner,
        norm="layernorm",
        norm_place="pre" if kind == "pegasus" else "post",
        positions="learned" if kind == "bart" else "sinusoidal",
        feed_forward=ACTIVATIONS[activation],
        bias=True,
        scaled=bool(theirs.get("scale_embedding", False)),
        embed_norm=kind == "bart",
        head_bias=True,
    )


def described(ours: EncoderDecoderConfig) -> dict[str, Any]:
    """As `llama.described`."""
    _, heads, kv_heads, each = ours.shape
    kind = _kind(ours)
    windows = {ours.window, ours.source_window}
    found = {
        f"norm {ours.norm}": ours.norm != "layernorm",
        f"norm_epsilon {ours.norm_epsilon}": ours.epsilon != 1e-5,
        f"positions {ours.positions} with norm_place {ours.norm_place} and embed_norm {ours.embed_norm}": not kind,
        f"feed_forward {ours.feed_forward}": ours.feed_forward not in ACTIVATIONS.values(),
        "a qkv_bias of its own": ours.qkv_bias not in (None, ours.bias),
        "qk_norm": ours.qk_norm,
        "shared keys": kv_heads != heads,
        "a head_width of its own": heads * each != ours.width,
        "an odd width": bool(ours.width % 2),
        "a pointer": ours.copying,
        "a head of its own": not ours.tied,
        "an embedding for each side": not ours.shared and kind != "marian",
        "learned positions for windows of different lengths": kind == "bart" and len(windows) > 1,
    }
    refuse("no model of BART's, Marian's or Pegasus' shape has {}", found)
    inner = ours.inner or 4 * ours.width
    two = {"share_encoder_decoder_embeddings": ours.shared, "decoder_vocab_size": ours.vocab}
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "is_encoder_decoder": True,
        "vocab_size": ours.source_vocab or ours.vocab,
        **(two if kind == "marian" else {}),
        "d_model": ours.width,
        "encoder_layers": ours.encoder_layers or ours.layers,
        "decoder_layers": ours.layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": max(windows),
        "activation_function": next(name for name, own in ACTIVATIONS.items() if own == ours.feed_forward),
        "scale_embedding": ours.scaled,
        "tie_word_embeddings": True,
        "forced_eos_token_id": None,
        "dropout": ours.dropout,
    }


def table(ours: EncoderDecoderConfig) -> list[Part]:
    """As `llama.table`."""
    width = ours.width
    if ours.shared:
        parts = [Part("embed.weight", {"model.shared.weight": ours.vocab})]
    else:
        parts = [
            Part("embed.weight", {"model.decoder.embed_tokens.weight": ours.vocab}),
            Part("source_embed.weight", {"model.encoder.embed_tokens.weight": ours.source_vocab or ours.vocab}),
        ]
    parts.append(Part("head.bias" if ours.head_bias else ZEROS, {LOGITS_BIAS: ours.vocab}))
    for own, theirs, window in (("source_", "encoder", ours.source_window), ("", "decoder", ours.window)):
        stack = f"model.{theirs}"
        if ours.positions == "learned":
            parts.append(Part(f"{own}position.table.weight", {f"{stack}.embed_positions.weight": window}))
        if ours.embed_norm:
            parts += norm_parts(f"{own}embed_norm", f"{stack}.layernorm_embedding", width, ours.bias)
        if ours.norm_place == "pre":
            parts += norm_parts(f"{own}norm", f"{stack}.layer_norm", width, ours.bias)
    for layer in range(ours.encoder_layers or ours.layers):
        parts += _block(f"encoder.{layer}", f"model.encoder.layers.{layer}", ours, ["self_attn"])
    for layer in range(ours.layers):
        parts += _block(f"blocks.{layer}", f"model.decoder.layers.{layer}", ours, ["self_attn", "encoder_attn"])
    return parts


def _block(mine: str, its: str, ours: EncoderDecoderConfig, sublayers: list[str]) -> list[Part]:
    width, inner = ours.width, ours.inner or 4 * ours.width
    parts = []
    for number, name in enumerate([*sublayers, "final"], 1):
        parts += norm_parts(f"{mine}.norm{number}", f"{its}.{name}_layer_norm", width, ours.bias)
    for kind in ("weight", "bias"):

        def part(own: str, theirs: Mapping[str, int], kind: str = kind) -> Part:
            have = kind == "weight" or ours.bias
            names = {f"{its}.{name}.{kind}": rows for name, rows in theirs.items()}
            return Part(f"{mine}.{own}.{kind}" if have else ZEROS, names)

        parts += [
            part("attention.qkv", {f"self_attn.{name}_proj": width for name in "qkv"}),
            part("attention.out", {"self_attn.out_proj": width}),
            part("feed_forward.up", {"fc1": inner}),
            part("feed_forward.down", {"fc2": width}),
        ]
        if len(sublayers) > 1:
            parts += [
                part("cross.q", {"encoder_attn.q_proj": width}),
                part("cross.kv", {f"encoder_attn.{name}_proj": width for name in "kv"}),
                part("cross.out", {"encoder_attn.out_proj": width}),
            ]
    return parts


def ignored(ours: EncoderDecoderConfig) -> tuple[str, ...]:
    """Sinusoids that were saved, and further names of the embedding."""
    copies = ("embed_tokens.weight", "shared.weight") if ours.shared else ()
    return copies if ours.positions == "learned" else (*copies, "embed_positions.weight")


def into(theirs: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """A tensor of theirs as its `Part` wants it."""
    if name == LOGITS_BIAS:
        return tensor.flatten()
    if name.endswith("embed_positions.weight"):
        return tensor[OFFSET:]
    return _ordered(theirs, name, tensor, _turns(theirs["d_model"]))


def out_of(theirs: Mapping[str, Any], name: str, tensor: Tensor) -> Tensor:
    """The inverse of `into`."""
    if name == LOGITS_BIAS:
        return tensor[None]
    if name.endswith("embed_positions.weight"):
        return torch.cat([tensor.new_zeros(OFFSET, tensor.shape[1]), tensor])
    return _ordered(theirs, name, tensor, _turns(theirs["d_model"]).argsort())


def usual(theirs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a file may lack, by its name: one that was saved without its head has no bias of the logits."""
    return {LOGITS_BIAS: torch.zeros(1, theirs.get("decoder_vocab_size") or theirs["vocab_size"])}


def _kind(ours: EncoderDecoderConfig) -> str:
    shapes = {
        ("learned", "post", True): "bart",
        ("sinusoidal", "post", False): "marian",
        ("sinusoidal", "pre", False): "pegasus",
    }
    return shapes.get((ours.positions, ours.norm_place, ours.embed_norm), "")


def _turns(width: int) -> Tensor:
    """Which of their places stands where in ours."""
    return torch.arange(width).view(2, width // 2).T.flatten()


def _ordered(theirs: Mapping[str, Any], name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """What touches the residual stream, with its places in another order."""
    if theirs["model_type"] == "bart":
        return tensor
    owner, kind = name.split(".")[-2:]
    if owner in ("out_proj", "fc2") or "norm" in owner:  # these write into the stream, or scale it
        return tensor[order]
    return tensor[:, order] if kind == "weight" else tensor
