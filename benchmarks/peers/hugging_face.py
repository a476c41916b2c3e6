"""Hugging Face generate: python hugging_face.py SHAPE float32|bfloat16."""

import sys

import torch
from shapes import NEW, SHAPES, prompts, serve
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel
from transformers.utils import logging

logging.set_verbosity_error()


def build(name: str) -> torch.nn.Module:
    """Random weights of a shape."""
    shape = SHAPES[name]
    torch.manual_seed(0)
    if name.startswith("encdec"):
        config = MarianConfig(
            vocab_size=shape.vocab, decoder_vocab_size=shape.vocab, d_model=shape.width, pad_token_id=0,
            encoder_layers=shape.layers, decoder_layers=shape.layers, encoder_attention_heads=shape.heads,
            decoder_attention_heads=shape.heads, encoder_ffn_dim=shape.inner, decoder_ffn_dim=shape.inner,
            max_position_embeddings=128, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None,
            activation_function="relu",
        )  # fmt: skip
        return MarianMTModel(config).eval()
    if shape.kv_heads:
        config = LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.inner,
            tie_word_embeddings=True, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=shape.vocab, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, n_positions=128,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.generation_config.pad_token_id = 0
    return model


if __name__ == "__main__":
    name, kind = sys.argv[1:]
    shape = SHAPES[name]
    model = build(name).to(getattr(torch, kind))
    drawn = {"do_sample": True, "top_k": shape.top_k, "temperature": 0.8} if shape.top_k else {"do_sample": False}

    def write(rows: int, beams: int) -> int:
        ids = torch.tensor(prompts(shape, rows))
        options = {"do_sample": False} if beams > 1 else drawn
        encdec = name.startswith("encdec")
        given = 1 if encdec else ids.shape[1]  # tokens of the text before the first new one
        texts = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=beams, min_new_tokens=NEW, max_new_tokens=NEW, **options
        )
        return (texts.shape[1] - given) * rows

    serve(write)
