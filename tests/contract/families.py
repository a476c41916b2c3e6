"""Every model configuration that the contract is run on, small enough to enumerate its texts."""

from typing import Any

from textwright.adapting.lora import LowRankConfig
from textwright.adapting.prompt import PromptConfig
from textwright.models import EncoderDecoderConfig, GRUConfig, LSTMConfig, RNNConfig, Seq2SeqConfig, TransformerConfig
from textwright.models.alignment import (
    AdditiveAlignment,
    DotAlignment,
    GeneralAlignment,
    MultiHeadAlignment,
    NoAlignment,
)
from textwright.models.pretrained import RECURRENT, PretrainedConfig
from textwright.models.pretrained_pairs import PretrainedPairsConfig

VOCAB = 7
WINDOW = 16


def seq2seq(**changes: Any) -> Seq2SeqConfig:
    return Seq2SeqConfig(**{"vocab": VOCAB, "width": 12, "layers": 1, **changes})


def encdec(**changes: Any) -> EncoderDecoderConfig:
    shape = {"width": 16, "layers": 2, "heads": 2, "window": WINDOW, "source_window": WINDOW}
    return EncoderDecoderConfig(**{"vocab": VOCAB, **shape, **changes})


SEPARATE = {"source_vocab": 9, "shared": False}

FAMILIES = {
    "rnn": RNNConfig(vocab=VOCAB, width=16, layers=2),
    "rnn-relu-untied": RNNConfig(vocab=VOCAB, width=16, layers=1, nonlinearity="relu", tied=False),
    "gru": GRUConfig(vocab=VOCAB, width=16, layers=2),
    "lstm": LSTMConfig(vocab=VOCAB, width=16, layers=2),
    "lstm-untied": LSTMConfig(vocab=VOCAB, width=12, layers=1, tied=False),
    "lstm-narrow-words": LSTMConfig(vocab=VOCAB, width=16, layers=2, embedding_width=6),
    "lstm-part-of-words": LSTMConfig(vocab=VOCAB, width=16, layers=1, input_width=5),
    "transformer": TransformerConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW),
    "gpt2-like": TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW, positions="learned", bias=True
    ),
    "llama-like": TransformerConfig(
        vocab=VOCAB,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_width=6,
        qk_norm=True,
        qkv_bias=True,
        window=WINDOW,
        inner=24,
        norm="rmsnorm",
        feed_forward="swiglu",
        tied=False,
    ),
    "original": TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW, positions="sinusoidal", norm_place="post", bias=True
    ),
    "relative": TransformerConfig(
        vocab=VOCAB, width=16, layers=2, heads=2, window=WINDOW, positions="relative", feed_forward="relu"
    ),
    "seq2seq-additive": seq2seq(layers=2, attention=AdditiveAlignment(), input_feeding=True),
    "seq2seq-lstm-general": seq2seq(
        cell="lstm", layers=2, attention=GeneralAlignment(), input_feeding=True, **SEPARATE
    ),
    "seq2seq-rnn-dot": seq2seq(
        cell="rnn", encoder_width=6, attention=DotAlignment(), bridge="pass", input_feeding=True
    ),
    "seq2seq-multihead-at-once": seq2seq(attention=MultiHeadAlignment(heads=3)),
    "seq2seq-no-attention": seq2seq(
        bidirectional=False, bridge="pass", attention=NoAlignment(), input_feeding=False, tied=False, **SEPARATE
    ),
    "seq2seq-coverage": seq2seq(attention=AdditiveAlignment(coverage=1.0), input_feeding=False, bridge="none"),
    "seq2seq-pointer": seq2seq(
        cell="lstm", attention=AdditiveAlignment(coverage=1.0), copying=True, input_feeding=True
    ),
    "seq2seq-pointer-at-once": seq2seq(attention=GeneralAlignment(), input_feeding=False, copying=True),
    "encdec": encdec(),
    "encdec-original": encdec(norm_place="post", positions="sinusoidal", feed_forward="relu", bias=True),
    "encdec-learned": encdec(positions="learned", encoder_layers=1, tied=False, **SEPARATE),
    "encdec-t5-like": encdec(positions="relative", norm="rmsnorm", feed_forward="swiglu", scaled=False, kv_heads=1),
    "encdec-pointer": encdec(copying=True, shared=False),
}


def pretrained(kind: str, **described: Any) -> PretrainedConfig:
    """A small model of the transformers library, as its config.json says it."""
    shape = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **described}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    window = None if kind in RECURRENT else WINDOW
    return PretrainedConfig(
        vocab=VOCAB, width=16, layers=2, window=window, described={"model_type": kind, **shape, **ends}
    )


def pretrained_pairs(kind: str, **described: Any) -> PretrainedPairsConfig:
    """The same with a source."""
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": VOCAB - 1, "decoder_start_token_id": 0}
    described = {"model_type": kind, "vocab_size": VOCAB, "d_model": 16, "is_encoder_decoder": True, **described}
    shape = {"vocab": VOCAB, "width": 16, "layers": 2, "window": WINDOW, "source_window": WINDOW}
    return PretrainedPairsConfig(**shape, described={**described, **ends})


BARTISH = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
} | {"max_position_embeddings": WINDOW}
T5ISH = {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
LLAMA = {"intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": WINDOW}
PRETRAINED = {
    "theirs-gpt2": pretrained("gpt2", n_positions=WINDOW),
    "theirs-llama": pretrained("llama", **LLAMA),
    "theirs-mistral-sliding": pretrained("mistral", sliding_window=3, **LLAMA),
    "theirs-bloom": pretrained("bloom"),
    "theirs-mamba": pretrained("mamba", state_size=4),
    "theirs-plbart": pretrained_pairs("plbart", **BARTISH),
    "theirs-umt5": pretrained_pairs("umt5", **T5ISH),
}

# An adapter on a family: beside its weights, or a part of them.
LORA, DORA = LowRankConfig(rank=2), LowRankConfig(rank=2, magnitude=True)
ADAPTED = {
    "lstm-lora-beside": ("lstm", LORA, False),
    "lstm-dora-merged": ("lstm", DORA, True),
    "llama-like-dora-beside": ("llama-like", DORA, False),
    "llama-like-lora-merged": ("llama-like", LORA, True),
    "seq2seq-lora-beside": ("seq2seq-lstm-general", LORA, False),
    "encdec-lora-beside": ("encdec-t5-like", LORA, False),
    "lstm-prompt": ("lstm", PromptConfig(tokens=3), False),
    "llama-like-prompt": ("llama-like", PromptConfig(tokens=1), False),
}
