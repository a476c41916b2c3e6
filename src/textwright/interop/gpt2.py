"""GPT-2 (Radford et al. 2019): learned positions, layer norms and biases everywhere, GELU by tanh.

Its matrices are stored (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from textwright.interop.tables import Part, refuse
from textwright.models import TransformerConfig

KINDS = ("gpt2",)
IGNORED = (".attn.bias", ".attn.masked_bias")  # the causal mask, as a buffer
PREFIX = "transformer."
ACTIVATIONS: dict[str, Literal["gelu_tanh", "gelu", "relu", "silu"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """As `llama.config`."""
    activation = theirs.get("activation_function", "gelu_new")
    found = {
        f"activation_function {activation}": activation not in ACTIVATIONS,
        "scale_attn_by_inverse_layer_idx": bool(theirs.get("scale_attn_by_inverse_layer_idx")),
        "add_cross_attention": bool(theirs.get("add_cross_attention")),
        "scale_attn_weights: false": not theirs.get("scale_attn_weights", True),
    }
    refuse("config.json asks for {}, which our Transformer does not have", found)
    return TransformerConfig(
        vocab=theirs["vocab_size"],
        width=theirs["n_embd"],
        layers=theirs["n_layer"],
        heads=theirs["n_head"],
        window=theirs.get("n_positions", theirs.get("n_ctx", 1024)),
        inner=theirs.get("n_inner"),
        norm="layernorm",
        norm_epsilon=theirs.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        feed_forward=ACTIVATIONS[activation],
        bias=True,
        tied=theirs.get("tie_word_embeddings", True),
    )


def described(ours: TransformerConfig) -> dict[str, Any]:
    """As `llama.described`."""
    _, heads, kv_heads, each = ours.shape
    found = {
        f"norm {ours.norm}": ours.norm != "layernorm",
        f"norm_place {ours.norm_place}": ours.norm_place != "pre",
        f"positions {ours.positions}": ours.positions != "learned",
        f"feed_forward {ours.feed_forward}": ours.feed_forward not in ACTIVATIONS.values(),
        "no biases": not ours.bias or ours.qkv_bias is False,
        "qk_norm": ours.qk_norm,
        "shared keys": kv_heads != heads,
        "a head_width of its own": heads * each != ours.width,
    }
    refuse("no model of GPT-2's shape has {}", found)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": ours.vocab,
        "n_embd": ours.width,
        "n_layer": ours.layers,
        "n_head": heads,
        "n_positions": ours.window,
        "n_inner": ours.inner,
        "activation_function": next(name for name, own in ACTIVATIONS.items() if own == ours.feed_forward),
        "layer_norm_epsilon": ours.epsilon,
        "tie_word_embeddings": ours.tied,
    }


def table(ours: TransformerConfig) -> list[Part]:
    """As `llama.table`."""
    width, inner = ours.width, ours.inner or 4 * ours.width
    parts = [
        Part("embed.weight", {f"{PREFIX}wte.weight": ours.vocab}),
        Part("position.table.weight", {f"{PREFIX}wpe.weight": ours.window}),
    ]
    if not ours.tied:
        parts.append(Part("head.weight", {"lm_head.weight": ours.vocab}))
    for kind in ("weight", "bias"):
        parts.append(Part(f"norm.{kind}", {f"{PREFIX}ln_f.{kind}": width}))
        for layer in range(ours.layers):
            mine, its, turned = f"blocks.{layer}", f"{PREFIX}h.{layer}", kind == "weight"
            parts += [
                Part(f"{mine}.norm1.{kind}", {f"{its}.ln_1.{kind}": width}),
                Part(f"{mine}.norm2.{kind}", {f"{its}.ln_2.{kind}": width}),
                Part(f"{mine}.attention.qkv.{kind}", {f"{its}.attn.c_attn.{kind}": 3 * width}, turned),
                Part(f"{mine}.attention.out.{kind}", {f"{its}.attn.c_proj.{kind}": width}, turned),
                Part(f"{mine}.feed_forward.up.{kind}", {f"{its}.mlp.c_fc.{kind}": inner}, turned),
                Part(f"{mine}.feed_forward.down.{kind}", {f"{its}.mlp.c_proj.{kind}": width}, turned),
            ]
    return parts
