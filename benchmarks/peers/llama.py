"""llama.cpp, one row: python llama.py SHAPE Q8_0|Q4_0."""

import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from llama_cpp import Llama
from shapes import NEW, SHAPES, prompts, serve

CONTEXT = 256  # it takes no smaller one
name, kind = sys.argv[1:]
shape = SHAPES[name]
path = str(Path(tempfile.mkdtemp()) / "model.gguf")
draw = np.random.default_rng(0)
writer = GGUFWriter(path, "llama" if shape.kv_heads else "gpt2")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(shape.width)
writer.add_block_count(shape.layers)
writer.add_feed_forward_length(shape.inner)
writer.add_head_count(shape.heads)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([f"t{number}" for number in range(shape.vocab)])
writer.add_token_types([1] * shape.vocab)
writer.add_token_merges(["t 0"])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)


def matrix(label: str, *size: int) -> None:
    weight = (draw.standard_normal(size) * 0.02).astype(np.float32)
    type_ = GGMLQuantizationType[kind]
    writer.add_tensor(label, gguf.quants.quantize(weight, type_), raw_dtype=type_)


def vector(label: str, size: int, value: float = 0.0) -> None:
    writer.add_tensor(label, np.full(size, value, dtype=np.float32))


W, INNER = shape.width, shape.inner


def gpt2() -> None:
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("position_embd.weight", (draw.standard_normal((CONTEXT, W)) * 0.02).astype(np.float32))
    matrix("output.weight", shape.vocab, W)
    for layer in range(shape.layers):
        for label, out, inside in (
            ("attn_qkv", 3 * W, W), ("attn_output", W, W), ("ffn_up", INNER, W), ("ffn_down", W, INNER)
        ):  # fmt: skip
            matrix(f"blk.{layer}.{label}.weight", out, inside)
            vector(f"blk.{layer}.{label}.bias", out)
        for label in ("attn_norm", "ffn_norm"):
            vector(f"blk.{layer}.{label}.weight", W, 1.0)
            vector(f"blk.{layer}.{label}.bias", W)
    vector("output_norm.bias", W)


def llama() -> None:
    """The head is the embedding."""
    head = W // shape.heads
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(shape.vocab)
    for layer in range(shape.layers):
        for label, out, inside in (
            ("attn_q", W, W), ("attn_k", shape.kv_heads * head, W), ("attn_v", shape.kv_heads * head, W),
            ("attn_output", W, W), ("ffn_gate", INNER, W), ("ffn_up", INNER, W), ("ffn_down", W, INNER),
        ):  # fmt: skip
            matrix(f"blk.{layer}.{label}.weight", out, inside)
        for label in ("attn_norm", "ffn_norm"):
            vector(f"blk.{layer}.{label}.weight", W, 1.0)


matrix("token_embd.weight", shape.vocab, W)
llama() if shape.kv_heads else gpt2()
vector("output_norm.weight", W, 1.0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
threads = int(os.environ["OMP_NUM_THREADS"])
model = Llama(path, n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)


def write(rows: int, beams: int) -> int | None:
    if rows > 1 or beams > 1:
        return None
    model.reset()
    model.eval(prompts(shape, 1)[0])
    options = {"top_k": shape.top_k, "temp": 0.8} if shape.top_k else {"temp": 0.0}
    for step in range(NEW):
        token = model.sample(**options)
        if step < NEW - 1:
            model.eval([token])
    return NEW


serve(write)
