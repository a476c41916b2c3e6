"""Ours: python textwright_.py SHAPE float32|bfloat16|int8|int4."""

import sys

import torch
from shapes import NEW, SHAPES, prompts, serve

from textwright.decoding import Beam, Request, Sampling, beam_search, collect, generate
from textwright.models import EncoderDecoderConfig, LanguageModel, LSTMConfig, TransformerConfig
from textwright.models.quantized import quantize
from textwright.training import hardware

name, kind = sys.argv[1:]
shape = SHAPES[name]


def build() -> LanguageModel:
    blocks = {"vocab": shape.vocab, "width": shape.width, "layers": shape.layers, "heads": shape.heads, "bias": True}
    if name == "lstm":
        return LSTMConfig(vocab=shape.vocab, width=shape.width, layers=shape.layers).build()
    if name.startswith("encdec"):
        positions = {"positions": "sinusoidal", "feed_forward": "relu", "window": 128, "source_window": 128}
        return EncoderDecoderConfig.parse({**blocks, "inner": shape.inner, **positions}).build()
    if shape.kv_heads:
        kind = {"norm": "rmsnorm", "feed_forward": "swiglu", "positions": "rotary", "bias": False, "window": 8192}
        blocks |= {"kv_heads": shape.kv_heads, "inner": shape.inner, "tied": True}
        return TransformerConfig.parse({**blocks, **kind}).build()
    return TransformerConfig.parse(
        {**blocks, "window": 128, "positions": "learned", "feed_forward": "gelu_tanh"}
    ).build()


def write(rows: int, beams: int) -> int:
    texts = prompts(shape, rows)
    drawn = {"temperature": 0.8, "top_k": shape.top_k} if shape.top_k else {"temperature": 0.0}
    sampling = Sampling() if beams > 1 else Sampling.parse(drawn)
    if name.startswith("encdec"):
        requests = [Request((1,), sampling, 0, NEW, source=tuple(text)) for text in texts]
    else:
        requests = [Request(tuple(text), sampling, row, NEW) for row, text in enumerate(texts)]
    if beams > 1:
        return sum(len(found[0].tokens) for found in beam_search(model, requests, None, Beam(beams=beams)))
    return sum(len(result.tokens) for result in collect(generate(model, requests, None)))


hardware.keep_memory()
torch.manual_seed(0)
model = build().eval()
if kind in ("int8", "int4"):
    quantize(model, kind)
elif kind == "bfloat16":
    model = model.bfloat16()
serve(write)
