"""The Transformer against a naive float64 version written with loops, and against Hugging Face with equal weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.models import TransformerConfig
from textwright.models.layers import Dropout, short_causal_attention

VOCAB, ROWS, TIME = 11, 2, 7


def config(**changes: object) -> TransformerConfig:
    base = {"vocab": VOCAB, "width": 16, "layers": 2, "heads": 4, "window": 12}
    return TransformerConfig(**{**base, **changes})


VARIANTS = {
    "rotary": config(),
    "grouped": config(kv_heads=2),
    "learned": config(positions="learned", bias=True),
    "sinusoidal": config(positions="sinusoidal"),
    "post-norm": config(norm_place="post", bias=True),
    "llama": config(norm="rmsnorm", feed_forward="swiglu", inner=24, kv_heads=1, tied=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_naive_version(name: str) -> None:
    torch.manual_seed(0)
    model = VARIANTS[name].build().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokens = torch.randint(0, VOCAB, (ROWS, TIME))
    want = torch.stack([naive(model, row) for row in tokens])
    # Positions are float32 by design: rotary angles agree to that.
    torch.testing.assert_close(model(tokens).logits, want, rtol=1e-5, atol=1e-5)


def naive(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """One row (T,) -> logits (T, vocab), by the formulas, without a batch dimension or a fused kernel."""
    c = model.config
    x = model.embed.weight[tokens]
    if c.positions == "learned":
        x = x + model.position.table.weight[: len(tokens)]
    if c.positions == "sinusoidal":
        x = x + torch.tensor([[wave(t, i, c.width) for i in range(c.width)] for t in range(len(tokens))]).double()
    for block in model.blocks:
        if c.norm_place == "pre":
            x = x + attention(block.attention, norm(block.norm1, x), c)
            x = x + feed_forward(block.feed_forward, norm(block.norm2, x), c)
        else:
            x = norm(block.norm1, x + attention(block.attention, x, c))
            x = norm(block.norm2, x + feed_forward(block.feed_forward, x, c))
    if c.norm_place == "pre":
        x = norm(model.norm, x)
    return x @ model.head.weight.T


def wave(position: int, place: int, width: int) -> float:
    """Vaswani et al. 2017, section 3.5."""
    angle = position / 10000 ** (2 * (place // 2) / width)
    return math.cos(angle) if place % 2 else math.sin(angle)


def norm(module: torch.nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, torch.nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight
    return y if module.bias is None else y + module.bias


def attention(module: torch.nn.Module, x: Tensor, c: TransformerConfig) -> Tensor:
    width, groups = c.width // c.heads, c.kv_heads or c.heads
    projected = linear(module.qkv, x)
    heads = []
    for head in range(c.heads):
        group = head // (c.heads // groups)
        q = projected[:, head * width : (head + 1) * width]
        k = projected[:, (c.heads + group) * width :][:, :width]
        v = projected[:, (c.heads + groups + group) * width :][:, :width]
        if c.positions == "rotary":
            q, k = turn(q), turn(k)
        out = []
        for t in range(len(x)):
            scores = torch.stack([q[t] @ k[s] / math.sqrt(width) for s in range(t + 1)]).softmax(0)
            out.append(sum(scores[s] * v[s] for s in range(t + 1)))
        heads.append(torch.stack(out))
    return linear(module.out, torch.cat(heads, -1))


def turn(x: Tensor) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers times e^(i·position·10000^(-2i/D))."""
    half = x.shape[1] // 2
    frequency = 10000.0 ** (-torch.arange(half).double() / half)
    angle = torch.arange(len(x)).double()[:, None] * frequency
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def feed_forward(module: torch.nn.Module, x: Tensor, c: TransformerConfig) -> Tensor:
    if c.feed_forward == "gelu":
        y = linear(module.up, x)
        return linear(module.down, y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))
    gate, up = linear(module.gate_up, x).chunk(2, -1)
    return linear(module.down, gate * torch.sigmoid(gate) * up)


def linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    y = x @ module.weight.T
    return y if module.bias is None else y + module.bias


def test_short_attention_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    got = short_causal_attention(q, k, v, Dropout(0.0))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)


def test_hugging_face_gpt2_with_the_same_weights() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = config(positions="learned", bias=True).build().eval()
    shape = {"vocab_size": VOCAB, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 4}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**shape, activation_function="gelu", bos_token_id=0, eos_token_id=0)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    copy_to_gpt2(model, theirs.transformer)
    theirs.tie_weights()
    tokens = torch.randint(0, VOCAB, (ROWS, TIME))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def copy_to_gpt2(model: torch.nn.Module, theirs: torch.nn.Module) -> None:
    with torch.no_grad():
        theirs.wte.weight.copy_(model.embed.weight)
        theirs.wpe.weight.copy_(model.position.table.weight)
        pairs = [(model.norm, theirs.ln_f)]
        for ours, block in zip(model.blocks, theirs.h, strict=True):
            pairs += [(ours.norm1, block.ln_1), (ours.norm2, block.ln_2)]
            pairs += [(ours.attention.qkv, block.attn.c_attn), (ours.attention.out, block.attn.c_proj)]
            pairs += [(ours.feed_forward.up, block.mlp.c_fc), (ours.feed_forward.down, block.mlp.c_proj)]
        for ours, other in pairs:  # GPT-2's "Conv1D" stores the transposed weight
            other.weight.copy_(ours.weight.T if ours.weight.ndim == 2 else ours.weight)
            other.bias.copy_(ours.bias)
