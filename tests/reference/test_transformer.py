"""The Transformer against a naive float64 version written with loops, and against Hugging Face with equal weights."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models import TransformerConfig
from textwright.models.attention import attend, hidden_after, weights
from textwright.models.layers import Dropout, RelativePosition, RMSNorm

VOCAB, ROWS, TIME = 11, 2, 7


def config(**changes: object) -> TransformerConfig:
    base = {"vocab": VOCAB, "width": 16, "layers": 2, "heads": 4, "window": 12}
    return TransformerConfig(**{**base, **changes})


VARIANTS = {
    "rotary": config(),
    "grouped": config(kv_heads=2),
    "learned": config(positions="learned", bias=True),
    "sinusoidal": config(positions="sinusoidal"),
    "relative": config(positions="relative", feed_forward="relu"),
    "post-norm": config(norm_place="post", bias=True),
    "llama": config(norm="rmsnorm", feed_forward="swiglu", inner=24, kv_heads=1, tied=False),
    "qwen2": config(norm="rmsnorm", norm_epsilon=0.1, feed_forward="swiglu", qkv_bias=True, rotary_base=50.0),
    "qwen3": config(norm="rmsnorm", feed_forward="swiglu", kv_heads=2, head_width=6, qk_norm=True, norm_epsilon=0.2),
    "gpt2": config(positions="learned", bias=True, feed_forward="gelu_tanh", norm_epsilon=0.3),
    "only rows": config(bias=True, qkv_bias=False),
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
    far = model.position.table.weight if c.positions == "relative" else torch.zeros(32, c.heads)
    for block in model.blocks:
        if c.norm_place == "pre":
            x = x + attention(block.attention, norm(block.norm1, x, c), c, far)
            x = x + feed_forward(block.feed_forward, norm(block.norm2, x, c), c)
        else:
            x = norm(block.norm1, x + attention(block.attention, x, c, far), c)
            x = norm(block.norm2, x + feed_forward(block.feed_forward, x, c), c)
    if c.norm_place == "pre":
        x = norm(model.norm, x, c)
    return x @ model.head.weight.T


def wave(position: int, place: int, width: int) -> float:
    """Vaswani et al. 2017, section 3.5."""
    angle = position / 10000 ** (2 * (place // 2) / width)
    return math.cos(angle) if place % 2 else math.sin(angle)


def norm(module: torch.nn.Module, x: Tensor, c: TransformerConfig) -> Tensor:
    if isinstance(module, torch.nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + (c.norm_epsilon or 1e-6)).sqrt() * module.weight
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + (c.norm_epsilon or 1e-5)).sqrt() * module.weight
    return y if module.bias is None else y + module.bias


def attention(module: torch.nn.Module, x: Tensor, c: TransformerConfig, far: Tensor) -> Tensor:
    def bias(distance: int, head: int) -> Tensor:  # shorter than 16: every distance has a bucket of its own
        return far[distance, head]

    width, groups = c.head_width or c.width // c.heads, c.kv_heads or c.heads
    projected = linear(module.qkv, x)
    heads = []
    for head in range(c.heads):
        group = head // (c.heads // groups)
        q = projected[:, head * width : (head + 1) * width]
        k = projected[:, (c.heads + group) * width :][:, :width]
        v = projected[:, (c.heads + groups + group) * width :][:, :width]
        if c.qk_norm:
            q, k = norm(module.q_norm, q, c), norm(module.k_norm, k, c)
        if c.positions == "rotary":
            q, k = turn(q, c.rotary_base), turn(k, c.rotary_base)
        out = []
        for t in range(len(x)):
            scores = torch.stack([q[t] @ k[s] / math.sqrt(width) + bias(t - s, head) for s in range(t + 1)]).softmax(0)
            out.append(sum(scores[s] * v[s] for s in range(t + 1)))
        heads.append(torch.stack(out))
    return linear(module.out, torch.cat(heads, -1))


def turn(x: Tensor, base: float) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers times e^(i·position·base^(-2i/D))."""
    half = x.shape[1] // 2
    frequency = base ** (-torch.arange(half).double() / half)
    angle = torch.arange(len(x)).double()[:, None] * frequency
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


def feed_forward(module: torch.nn.Module, x: Tensor, c: TransformerConfig) -> Tensor:
    if c.feed_forward == "relu":
        return linear(module.down, linear(module.up, x).clamp(min=0))
    if c.feed_forward == "gelu":
        y = linear(module.up, x)
        return linear(module.down, y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))
    if c.feed_forward == "gelu_tanh":
        y = linear(module.up, x)
        return linear(module.down, y * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))))
    gate, up = linear(module.gate_up, x).chunk(2, -1)
    return linear(module.down, gate * torch.sigmoid(gate) * up)


def linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    y = x @ module.weight.T
    return y if module.bias is None else y + module.bias


@pytest.mark.parametrize("kv_heads", [3, 1])
@pytest.mark.parametrize("masked", ["causal", "padded", "both", "nothing"])
def test_attention_is_scaled_dot_product_attention(masked: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, with a causal mask, with padded keys, with both."""
    torch.manual_seed(0)
    q = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    padding = hidden_after(torch.tensor([9, 4]), 9).double() if masked in ("padded", "both") else None
    causal = masked in ("causal", "both")
    got = attend(q, k, v, padding, Dropout(0.0), causal=causal)
    seen = torch.ones(9, 9, dtype=torch.bool).tril() if causal else torch.ones(9, 9, dtype=torch.bool)
    seen = seen & (True if padding is None else padding == 0)
    want = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    mask = torch.where(seen, 0.0, float("-inf")).double()
    monkeypatch.setattr(sys.modules[attend.__module__], "SHORT", 0)
    torch.testing.assert_close(attend(q, k, v, padding, Dropout(0.0), causal=causal), want)  # the fused kernel
    torch.testing.assert_close(attend(q[:, :, 4:5], k, v, mask[..., 4:5, :], Dropout(0.0)), want[:, 4:5])
    mean = weights(q, k, mask).double() @ v.repeat_interleave(3 // kv_heads, 1)
    torch.testing.assert_close(mean.transpose(1, 2).flatten(2), want, rtol=1e-5, atol=1e-6)


def test_relative_positions_are_those_of_t5() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    ahead = torch.arange(-300, 300)
    for causal in (True, False):
        got = RelativePosition(2, causal=causal).bucket(ahead)
        assert torch.equal(got, theirs(ahead, bidirectional=not causal, num_buckets=32, max_distance=128))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_root_mean_square_norm_keeps_the_type_of_the_stream(dtype: torch.dtype) -> None:
    """Gains stay float32 while the stream may be bfloat16: no warning, and the formula."""
    norm = RMSNorm(8, 1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(3, 8).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    want = x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(y.float(), want, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


def test_the_stream_has_the_type_of_autocast() -> None:
    config = TransformerConfig(vocab=11, width=16, layers=2, heads=2, window=8, norm="rmsnorm", qk_norm=True)
    model, tokens, seen = config.build(), torch.randint(0, 11, (2, 6)), []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    want = model(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = model(tokens).logits
    assert seen == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(got.float(), want, atol=0.02, rtol=0.05)
