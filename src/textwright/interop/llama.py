"""Models of Llama's shape: Llama (Touvron et al. 2023), Mistral, Qwen 2 and 3, SmolLM 2.

Root-mean-square norms before attention and a SwiGLU network, rotary positions, keys shared by groups of heads. Qwen 2
adds biases to queries, keys and values, Qwen 3 normalises queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textwright.interop.tables import Part, kinds, refuse, rotary_base
from textwright.models import TransformerConfig

KINDS = ("llama", "mistral", "qwen2", "qwen3")
PREFIX = "model."
IGNORED = (".rotary_emb.inv_freq",)


def config(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Our configuration of a model that config.json describes.

    Raises:
        CheckpointError: it asks for something that our blocks do not do, named.
    """
    kind, heads, width = theirs["model_type"], theirs["num_attention_heads"], theirs["hidden_size"]
    found = {
        f"partial_rotary_factor {theirs.get('partial_rotary_factor')}": theirs.get("partial_rotary_factor", 1) != 1,
        f"hidden_act {theirs.get('hidden_act')}": theirs.get("hidden_act", "silu") != "silu",
        "attention_bias without mlp_bias": _bias(theirs, "attention") != _bias(theirs, "mlp"),
        "use_sliding_window": bool(theirs.get("use_sliding_window")),
    }
    base = rotary_base(theirs, found)
    refuse("config.json asks for {}, which our Transformer does not have", found)
    window = theirs["max_position_embeddings"]
    sliding = theirs.get("sliding_window") if kind == "mistral" else None  # the other kinds name it and do not use it
    return TransformerConfig(
        vocab=theirs["vocab_size"],
        width=width,
        layers=theirs["num_hidden_layers"],
        heads=heads,
        kv_heads=theirs.get("num_key_value_heads") or heads,
        head_width=theirs.get("head_dim") or width // heads,
        window=min(window, sliding or window),  # inside a window that slides, nothing is hidden yet
        inner=theirs["intermediate_size"],
        norm="rmsnorm",
        norm_epsilon=theirs.get("rms_norm_eps", 1e-6),
        positions="rotary",
        rotary_base=base,
        feed_forward="swiglu",
        bias=_bias(theirs, "mlp"),
        qkv_bias=True if kind == "qwen2" else None,
        qk_norm=kind == "qwen3",
        tied=bool(theirs.get("tie_word_embeddings", False)),
    )


def described(ours: TransformerConfig) -> dict[str, Any]:
    """config.json of a model of ours, as the kind that has what it has.

    Raises:
        CheckpointError: no model of this shape has what it has, named.
    """
    found = {
        f"norm {ours.norm}": ours.norm != "rmsnorm",
        f"norm_place {ours.norm_place}": ours.norm_place != "pre",
        f"positions {ours.positions}": ours.positions != "rotary",
        f"feed_forward {ours.feed_forward}": ours.feed_forward != "swiglu",
        "qk_norm with biases": ours.qk_norm and (ours.bias or bool(ours.qkv_bias)),
        "bias without qkv_bias": ours.bias and ours.qkv_bias is False,
    }
    _, heads, kv_heads, head_width = ours.shape
    kind = "qwen3" if ours.qk_norm else "qwen2" if ours.qkv_bias and not ours.bias else "llama"
    found["qkv_bias and a head_width of its own"] = kind == "qwen2" and heads * head_width != ours.width
    refuse("no model of Llama's shape has {}", found)
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    biases = {"attention_bias": ours.bias, "mlp_bias": ours.bias} if kind == "llama" else {}
    return {
        "architectures": [names[kind]],
        "model_type": kind,
        "vocab_size": ours.vocab,
        "hidden_size": ours.width,
        "num_hidden_layers": ours.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "max_position_embeddings": ours.window,
        "intermediate_size": ours.inner or 4 * ours.width,
        "hidden_act": "silu",
        "rms_norm_eps": ours.epsilon,
        "rope_theta": ours.rotary_base,  # what readers of every age look for
        "rope_parameters": {"rope_type": "default", "rope_theta": ours.rotary_base},
        "tie_word_embeddings": ours.tied,
        **biases,
    }


def table(ours: TransformerConfig) -> list[Part]:
    """Which of their tensors make ours."""
    _, heads, kv_heads, each = ours.shape
    inner, width = ours.inner or 4 * ours.width, ours.width
    parts = [
        Part("embed.weight", {"model.embed_tokens.weight": ours.vocab}),
        Part("norm.weight", {"model.norm.weight": width}),
    ]
    if not ours.tied:
        parts.append(Part("head.weight", {"lm_head.weight": ours.vocab}))
    for layer in range(ours.layers):
        mine, its = f"blocks.{layer}", f"model.layers.{layer}"
        parts += [
            Part(f"{mine}.norm1.weight", {f"{its}.input_layernorm.weight": width}),
            Part(f"{mine}.norm2.weight", {f"{its}.post_attention_layernorm.weight": width}),
        ]
        if ours.qk_norm:
            parts += [
                Part(f"{mine}.attention.{name}.weight", {f"{its}.self_attn.{name}.weight": each})
                for name in ("q_norm", "k_norm")
            ]
        rows = {"q_proj": heads * each, "k_proj": kv_heads * each, "v_proj": kv_heads * each}
        for kind in kinds(ours.bias if ours.qkv_bias is None else ours.qkv_bias):
            theirs = {f"{its}.self_attn.{name}.{kind}": count for name, count in rows.items()}
            parts.append(Part(f"{mine}.attention.qkv.{kind}", theirs))
        for kind in kinds(ours.bias):
            pair = {f"{its}.mlp.gate_proj.{kind}": inner, f"{its}.mlp.up_proj.{kind}": inner}
            parts += [
                Part(f"{mine}.attention.out.{kind}", {f"{its}.self_attn.o_proj.{kind}": width}),
                Part(f"{mine}.feed_forward.gate_up.{kind}", pair),
                Part(f"{mine}.feed_forward.down.{kind}", {f"{its}.mlp.down_proj.{kind}": width}),
            ]
    return parts


def _bias(theirs: Mapping[str, Any], of: str) -> bool:
    return bool(theirs.get(f"{of}_bias", False))
