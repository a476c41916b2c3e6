"""StarCoder 2 (Lozhkov et al. 2024): layer norms, rotary positions, a plain feed-forward network, shared keys.

What `textwright train` makes of a Transformer by default is of this shape, without the biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textwright.interop.gpt2 import ACTIVATIONS
from textwright.interop.tables import Part, kinds, norm_parts, refuse, rotary_base
from textwright.models import TransformerConfig

KINDS = ("starcoder2",)
PREFIX = "model."
IGNORED: tuple[str, ...] = ()


def config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """As `llama.config`."""
    activation = theirs.get("hidden_act", "gelu_pytorch_tanh")
    found = {f"hidden_act {activation}": activation not in ACTIVATIONS}
    base = rotary_base(theirs, found)
    refuse("config.json asks for {}, which our Transformer does not have", found)
    window = theirs["max_position_embeddings"]
    return TransformerConfig(
        vocab=theirs["vocab_size"],
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        kv_heads=theirs.get("num_key_value_heads"),
        window=min(window, theirs.get("sliding_window") or window),
        inner=theirs["intermediate_size"],
        norm="layernorm",
        norm_epsilon=theirs.get("norm_epsilon", 1e-5),
        positions="rotary",
        rotary_base=base,
        feed_forward=ACTIVATIONS[activation],
        bias=theirs.get("use_bias", True),
        tied=theirs.get("tie_word_embeddings", True),
    )


def described(ours: TransformerConfig) -> dict[str, Any]:
    """As `llama.described`."""
    _, heads, kv_heads, each = ours.shape
    found = {
        f"norm {ours.norm}": ours.norm != "layernorm",
        f"norm_place {ours.norm_place}": ours.norm_place != "pre",
        f"positions {ours.positions}": ours.positions != "rotary",
        f"feed_forward {ours.feed_forward}": ours.feed_forward not in ACTIVATIONS.values(),
        "a qkv_bias of its own": ours.qkv_bias not in (None, ours.bias),
        "qk_norm": ours.qk_norm,
        "a head_width of its own": heads * each != ours.width,
    }
    refuse("no model of StarCoder 2's shape has {}", found)
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "vocab_size": ours.vocab,
        "hidden_size": ours.width,
        "num_hidden_layers": ours.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": ours.window,
        "sliding_window": None,
        "intermediate_size": ours.inner or 4 * ours.width,
        "hidden_act": next(name for name, own in ACTIVATIONS.items() if own == ours.feed_forward),
        "norm_epsilon": ours.epsilon,
        "rope_theta": ours.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": ours.rotary_base},
        "use_bias": ours.bias,
        "tie_word_embeddings": ours.tied,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
    }


def table(ours: TransformerConfig) -> list[Part]:
    """As `llama.table`."""
    _, heads, kv_heads, each = ours.shape
    width, inner = ours.width, ours.inner or 4 * ours.width
    parts = [Part("embed.weight", {"model.embed_tokens.weight": ours.vocab})]
    parts += norm_parts("norm", "model.norm", width, ours.bias)
    if not ours.tied:
        parts.append(Part("head.weight", {"lm_head.weight": ours.vocab}))
    rows = {"q_proj": heads * each, "k_proj": kv_heads * each, "v_proj": kv_heads * each}
    for layer in range(ours.layers):
        mine, its = f"blocks.{layer}", f"model.layers.{layer}"
        parts += norm_parts(f"{mine}.norm1", f"{its}.input_layernorm", width, ours.bias)
        parts += norm_parts(f"{mine}.norm2", f"{its}.post_attention_layernorm", width, ours.bias)
        for kind in kinds(ours.bias):
            theirs = {f"{its}.self_attn.{name}.{kind}": count for name, count in rows.items()}
            parts += [
                Part(f"{mine}.attention.qkv.{kind}", theirs),
                Part(f"{mine}.attention.out.{kind}", {f"{its}.self_attn.o_proj.{kind}": width}),
                Part(f"{mine}.feed_forward.up.{kind}", {f"{its}.mlp.c_fc.{kind}": inner}),
                Part(f"{mine}.feed_forward.down.{kind}", {f"{its}.mlp.c_proj.{kind}": width}),
            ]
    return parts
