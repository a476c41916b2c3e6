"""The Transformer encoder-decoder against a naive float64 version written with loops, and against Hugging Face.

The naive version reads one row, without a batch, a mask or a fused kernel: what may not be seen is not there. Models of
Hugging Face are built here from their configurations, with random weights of ours; nothing is downloaded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from textwright.decoding import Request, Sampling, collect, generate
from textwright.models import EncoderDecoderConfig, Source, attention
from textwright.models.base import MOST

VOCAB, SOURCE_VOCAB, WINDOW = 11, 13, 12
LENGTHS, SOURCE_LENGTHS = (5, 2, 1), (3, 10, 1)  # 10 places: relative distances beyond the buckets of their own

Naive = Callable[[int, int], Tensor]  # head, place of the query -> what is added to the scores of all it may see


def config(**changes: Any) -> EncoderDecoderConfig:
    base = {"vocab": VOCAB, "width": 16, "layers": 2, "heads": 4, "window": WINDOW, "source_window": WINDOW}
    return EncoderDecoderConfig(**{**base, **changes})


SEPARATE = {"source_vocab": SOURCE_VOCAB, "shared": False}

VARIANTS = {
    "rotary": config(),
    "rotary post-norm": config(norm_place="post", norm="rmsnorm", feed_forward="swiglu"),
    "grouped": config(kv_heads=2, bias=True),
    "one key-value head": config(kv_heads=1, norm_place="post", feed_forward="relu"),
    "original": config(norm_place="post", positions="sinusoidal", feed_forward="relu", bias=True),
    "sinusoidal pre-norm": config(positions="sinusoidal", scaled=False, heads=1),
    "learned": config(positions="learned", bias=True, tied=False, **SEPARATE),
    "learned post-norm": config(positions="learned", norm_place="post", scaled=False, norm="rmsnorm"),
    "relative": config(positions="relative", norm="rmsnorm", feed_forward="relu", scaled=False),
    "relative post-norm": config(positions="relative", norm_place="post", kv_heads=2, feed_forward="swiglu", inner=24),
    "separate vocabularies, tied": config(**SEPARATE),
    "one vocabulary, two embeddings": config(shared=False, tied=False),
    "deep encoder": config(encoder_layers=3, layers=1),
    "deep decoder": config(encoder_layers=1, layers=3, norm_place="post"),
    "pointer": config(copying=True, layers=3),
    "pointer post-norm": config(copying=True, norm_place="post", shared=False, layers=1),
}


class Case(NamedTuple):
    """A float64 model with wide weights, biases and norms included, and a batch padded with garbage."""

    model: Any
    tokens: Tensor
    source: Source

    def row(self, row: int) -> tuple[Tensor, Tensor]:
        """Real tokens and real source of a row."""
        return self.tokens[row, : LENGTHS[row]], self.source.values[row, : SOURCE_LENGTHS[row]]

    def real(self, logits: Tensor) -> list[Tensor]:
        return [logits[row, :length] for row, length in enumerate(LENGTHS)]


def case(settings: EncoderDecoderConfig) -> Case:
    torch.manual_seed(0)
    model: Any = settings.build().double().eval()
    spread(model)
    tokens = torch.randint(0, VOCAB, (len(LENGTHS), max(LENGTHS)))
    values = torch.randint(0, model.source_vocab, (len(LENGTHS), max(SOURCE_LENGTHS)))
    return Case(model, tokens, Source(values, torch.tensor(SOURCE_LENGTHS)))


def spread(model: nn.Module) -> None:
    """Weights that matter: no norm is one, no bias zero, and neither embeddings nor biases drown the rest."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.25 if "embed" in name else 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)


@pytest.mark.parametrize("name", VARIANTS)
def test_naive_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, and what flows back to every weight; by plain matrix products and by the kernel of long texts."""
    model, tokens, source = subject = case(VARIANTS[name])
    names, parameters = zip(*model.named_parameters(), strict=True)

    def gradients(rows: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(row.sin().sum() for row in rows), parameters)

    want = [naive(model, *subject.row(row))[0] for row in range(len(LENGTHS))]
    back = gradients(want)
    for short in (attention.SHORT, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        got = subject.real(model(tokens, torch.tensor(LENGTHS), source=source).logits)
        for ours, theirs in zip(got, want, strict=True):
            # Positions, and the weights and mixture of a pointer, are float32 by design: they agree to that.
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
        for which, ours, theirs in zip(names, gradients(got), back, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=1), which


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("place", ["pre", "post"])
def test_attention_is_that_of_the_last_block_but_one(place: str, layers: int) -> None:
    """The mean over its heads; of a decoder of one block, that block's."""
    subject = case(config(layers=layers, encoder_layers=1, norm_place=place, kv_heads=2))
    looked = subject.model.attention(subject.tokens, torch.tensor(LENGTHS), subject.source)
    assert looked.shape == (len(LENGTHS), max(LENGTHS), max(SOURCE_LENGTHS))
    for row, (length, places) in enumerate(zip(LENGTHS, SOURCE_LENGTHS, strict=True)):
        _, looks = naive(subject.model, *subject.row(row))
        want = looks[max(0, layers - 2)].mean(0)
        torch.testing.assert_close(looked[row, :length, :places].double(), want, rtol=1e-5, atol=1e-6)
        assert looked[row, :, places:].eq(0).all()


def test_padding_of_a_source_may_pass_its_window() -> None:
    """Only the real tokens must fit: a batch is as wide as whoever made it liked."""
    subject = case(config(positions="learned"))
    wide = nn.functional.pad(subject.source.values, (0, WINDOW))
    logits = subject.model(subject.tokens, source=Source(wide, subject.source.lengths)).logits
    torch.testing.assert_close(logits, subject.model(subject.tokens, source=subject.source).logits)


# The naive version ----------------------------------------------------------------------------------------------------


def naive(model: Any, tokens: Tensor, source: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One row, tokens (T,) and source (S,) -> logits (T, vocab) and where each block looked, (H, T, S)."""
    c = model.config
    memory = encoded(model, source)
    x = model.embed.weight[tokens] * (math.sqrt(c.width) if c.scaled else 1)
    x = placed(model.position, x, c)
    looks = []
    for block in model.blocks:

        def around(y: Tensor, block: Any = block) -> Tensor:
            return self_attention(block.attention, y, c, model.position, causal=True)

        def across(y: Tensor, block: Any = block) -> Tensor:
            out, looked = cross_attention(block.cross, y, memory, c)
            looks.append(looked)
            return out

        x = added(block.norm1, x, around, c)
        x = added(block.norm2, x, across, c)
        x = added(block.norm3, x, functools.partial(feed_forward, block.feed_forward, c=c), c)
    if c.norm_place == "pre":
        x = norm(model.norm, x)
    logits = x @ model.head.weight.T
    return (pointed(model, x, logits, looks[-1], source) if c.copying else logits), looks


def encoded(model: Any, source: Tensor) -> Tensor:
    c = model.config
    x = model.source_embed.weight[source] * (math.sqrt(c.width) if c.scaled else 1)
    x = placed(model.source_position, x, c)
    for block in model.encoder:

        def around(y: Tensor, block: Any = block) -> Tensor:
            return self_attention(block.attention, y, c, model.source_position, causal=False)

        x = added(block.norm1, x, around, c)
        x = added(block.norm2, x, functools.partial(feed_forward, block.feed_forward, c=c), c)
    return norm(model.source_norm, x) if c.norm_place == "pre" else x


def added(module: nn.Module, x: Tensor, sublayer: Callable[[Tensor], Tensor], c: EncoderDecoderConfig) -> Tensor:
    return x + sublayer(norm(module, x)) if c.norm_place == "pre" else norm(module, x + sublayer(x))


def placed(position: Any, x: Tensor, c: EncoderDecoderConfig) -> Tensor:
    if c.positions == "learned":
        return x + position.table.weight[: len(x)]
    if c.positions == "sinusoidal":
        return x + waves(len(x), c.width)
    return x


def waves(time: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: (T, W), float64."""
    angles = [[t / 10000 ** (2 * (i // 2) / width) for i in range(width)] for t in range(time)]
    rows = [[math.cos(angle) if i % 2 else math.sin(angle) for i, angle in enumerate(row)] for row in angles]
    return torch.tensor(rows, dtype=torch.float64)


def norm(module: Any, x: Tensor) -> Tensor:
    if isinstance(module, nn.RMSNorm):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight
    return y if module.bias is None else y + module.bias


def self_attention(module: Any, x: Tensor, c: EncoderDecoderConfig, position: Any, *, causal: bool) -> Tensor:
    width, groups = c.width // c.heads, c.kv_heads or c.heads
    parts = linear(module.qkv, x).split(width, -1)
    q, k, v = parts[: c.heads], parts[c.heads : c.heads + groups], parts[c.heads + groups :]
    if c.positions == "rotary":
        q, k = [turned(part) for part in q], [turned(part) for part in k]

    def bias(head: int, t: int) -> Tensor:
        seen = range(t + 1 if causal else len(x))
        if c.positions != "relative":
            return torch.zeros(len(seen))
        return torch.stack([position.table.weight[bucket(s - t, causal), head] for s in seen])

    out, _ = looked_at(list(q), list(k), list(v), bias)
    return linear(module.out, out)


def cross_attention(module: Any, x: Tensor, memory: Tensor, c: EncoderDecoderConfig) -> tuple[Tensor, Tensor]:
    """Places of two texts are not comparable: neither rotated nor biased."""
    width, groups = c.width // c.heads, c.kv_heads or c.heads
    q, parts = linear(module.q, x).split(width, -1), linear(module.kv, memory).split(width, -1)
    out, looked = looked_at(
        list(q), list(parts[:groups]), list(parts[groups:]), lambda head, t: torch.zeros(len(memory))
    )
    return linear(module.out, out), torch.stack(looked).view(c.heads, len(x), len(memory))


def looked_at(q: list[Tensor], k: list[Tensor], v: list[Tensor], bias: Naive) -> tuple[Tensor, list[Tensor]]:
    """Heads of queries (T, D), keys and values (S, D) -> what was found (T, H · D), and weights, head by head."""
    found, weights = [], []
    for head, queries in enumerate(q):
        group = head // (len(q) // len(k))
        for t, query in enumerate(queries):
            more = bias(head, t)
            shares = (k[group][: len(more)] @ query / math.sqrt(len(query)) + more).exp()
            weights.append(shares / shares.sum())
            found.append(weights[-1] @ v[group][: len(more)])
    found = [torch.stack(found[start : start + len(q[0])]) for start in range(0, len(found), len(q[0]))]
    return torch.cat(found, -1), weights


def bucket(ahead: int, causal: bool) -> int:
    """Raffel et al. 2020, section 2.1: of 32 buckets half are exact, the rest reach 128; both ways, each way has 16."""
    count, start = (32, 0) if causal else (16, 16 if ahead > 0 else 0)
    distance, exact = abs(ahead), count // 2
    if distance < exact:
        return start + distance
    far = exact + int(math.log(distance / exact) / math.log(128 / exact) * (count - exact))
    return start + min(far, count - 1)


def turned(x: Tensor) -> Tensor:
    """Pairs (i, i + D/2) as complex numbers times e^(i·position·10000^(-2i/D))."""
    half = x.shape[1] // 2
    angle = torch.arange(len(x)).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    y = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([y.real, y.imag], -1)


def feed_forward(module: Any, x: Tensor, c: EncoderDecoderConfig) -> Tensor:
    if c.feed_forward == "swiglu":
        gate, up = linear(module.gate_up, x).chunk(2, -1)
        return linear(module.down, gate / (1 + (-gate).exp()) * up)
    y = linear(module.up, x)
    if c.feed_forward == "relu":
        return linear(module.down, y.clamp(min=0))
    return linear(module.down, y * 0.5 * (1 + torch.erf(y / math.sqrt(2))))


def linear(module: Any, x: Tensor) -> Tensor:
    y = x @ module.weight.T
    return y if module.bias is None else y + module.bias


def pointed(model: Any, x: Tensor, logits: Tensor, looked: Tensor, source: Tensor) -> Tensor:
    """log(p_gen P(token) + p_copy Σ weights of its places in the source): See et al. 2017, eq. 9."""
    rows = []
    for t, scores in enumerate(logits):
        copy = MOST / (1 + (-(model.pointer.weight[0] @ x[t] + model.pointer.bias[0])).exp())
        likely = list((1 - copy) * scores.exp() / scores.exp().sum())
        for place, token in enumerate(source.tolist()):
            likely[token] = likely[token] + copy * looked[:, t, place].mean()
        rows.append(torch.stack(likely).log())
    return torch.stack(rows)


# Hugging Face ---------------------------------------------------------------------------------------------------------

PAD, END, START = 0, 1, 2
HF_LENGTHS = (6, 9, 1, 4)

# Marian: post-norm (OPUS-MT); Pegasus: pre-norm, with a norm behind each stack; T5: relative positions, no biases.
SHAPES = {
    "marian": config(norm_place="post", positions="sinusoidal", bias=True, layers=3, encoder_layers=2),
    "marian-relu": config(norm_place="post", positions="sinusoidal", bias=True, feed_forward="relu", scaled=False),
    "marian-two-vocabularies": config(norm_place="post", positions="sinusoidal", bias=True, **SEPARATE),
    "pegasus": config(positions="sinusoidal", bias=True, layers=1, encoder_layers=2),
    "pegasus-relu": config(positions="sinusoidal", bias=True, feed_forward="relu", inner=24, scaled=False),
    "t5": config(positions="relative", norm="rmsnorm", feed_forward="relu", scaled=False, layers=2, encoder_layers=3),
    "t5-gated": config(positions="relative", norm="rmsnorm", feed_forward="swiglu", scaled=False, inner=24),
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our model and theirs, float32, with the same weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    model: Any = SHAPES[request.param].build().eval()
    spread(model)
    with torch.no_grad():
        if request.param.startswith("t5"):
            return model, like_t5(model, transformers)
        return model, like_bart(model, transformers, request.param.partition("-")[0])


@torch.no_grad()
def test_logits_of_hugging_face(pair: tuple[Any, Any]) -> None:
    """On a ragged batch, with their attention mask and our lengths."""
    model, theirs = pair
    source, tokens = sources(model), torch.randint(3, VOCAB, (len(HF_LENGTHS), 7))
    want = theirs(input_ids=source.values, attention_mask=mask(source), decoder_input_ids=tokens).logits
    assert want.std() > 0.1  # or agreement would say little
    torch.testing.assert_close(model(tokens, source=source).logits, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_of_hugging_face(pair: tuple[Any, Any]) -> None:
    model, theirs = pair
    source, tokens = sources(model), torch.randint(3, VOCAB, (len(HF_LENGTHS), 7))
    given = {"input_ids": source.values, "attention_mask": mask(source), "decoder_input_ids": tokens}
    layers = theirs(**given, output_attentions=True).cross_attentions
    want = layers[max(0, len(layers) - 2)].mean(1)
    torch.testing.assert_close(model.attention(tokens, None, source), want, rtol=1e-4, atol=1e-5)


def test_greedy_text_of_hugging_face(pair: tuple[Any, Any]) -> None:
    """No pair of tokens twice: untrained models would go round in circles, and agree whatever their source."""
    model, theirs = pair
    source, room = sources(model), WINDOW - 1
    written = theirs.generate(
        input_ids=source.values,
        attention_mask=mask(source),
        do_sample=False,
        num_beams=1,
        max_new_tokens=room,
        no_repeat_ngram_size=2,
    ).tolist()
    greedy = Sampling(temperature=0.0, no_repeat_ngram=2)
    rows = zip(source.values.tolist(), source.lengths.tolist(), strict=True)
    requests = [Request((START,), greedy, max_new_tokens=room, source=tuple(row[:length])) for row, length in rows]
    results = collect(generate(model, requests, END))
    assert len({result.tokens for result in results}) > 1
    for result, want in zip(results, written, strict=True):
        text = want[1:]  # theirs begins with the start, and is padded behind its end
        assert list(result.tokens) == text[: text.index(END) + 1 if END in text else None]


def test_positions_of_marian_are_ours_in_another_order() -> None:
    """They put the sines first and the cosines behind; Vaswani et al. and we take turns. A model cannot tell."""
    marian = pytest.importorskip("transformers").models.marian.modeling_marian
    theirs = marian.MarianSinusoidalPositionalEmbedding(WINDOW, 16).create_weight()
    torch.testing.assert_close(theirs.view(WINDOW, 2, 8).mT.flatten(1), waves(WINDOW, 16).float())


def sources(model: Any) -> Source:
    torch.manual_seed(5)
    values = torch.randint(3, model.source_vocab, (len(HF_LENGTHS), max(HF_LENGTHS)))
    lengths = torch.tensor(HF_LENGTHS)
    return Source(values.masked_fill(torch.arange(max(HF_LENGTHS)) >= lengths[:, None], PAD), lengths)


def mask(source: Source) -> Tensor:
    return (torch.arange(source.values.shape[1]) < source.lengths[:, None]).long()


def like_bart(model: Any, transformers: Any, name: str) -> Any:
    """Marian and Pegasus name their parts like BART, from which theirs were copied."""
    c = model.config
    inner = c.inner or 4 * c.width
    kinds = {
        "marian": ("MarianConfig", "MarianMTModel"),
        "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration"),
    }
    make_config, make_model = (getattr(transformers, part) for part in kinds[name])
    two = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": VOCAB} if c.source_vocab else {}
    shape = {
        "vocab_size": c.source_vocab or VOCAB,
        "d_model": c.width,
        "encoder_layers": c.encoder_layers or c.layers,
        "decoder_layers": c.layers,
        "encoder_attention_heads": c.heads,
        "decoder_attention_heads": c.heads,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": WINDOW,
        "activation_function": c.feed_forward,
        "scale_embedding": c.scaled,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": START,
        "forced_eos_token_id": None,
    }
    theirs = make_model(make_config(**shape, **two, attn_implementation="eager")).eval()
    encoder, decoder = theirs.model.encoder, theirs.model.decoder
    for stack, table in ((encoder, model.source_embed), (decoder, model.embed)):
        stack.embed_tokens.weight.copy_(table.weight)
        stack.embed_positions.weight.copy_(waves(WINDOW, c.width))
    for ours, layer in zip(model.encoder, encoder.layers, strict=True):
        copy_block(ours, layer)
        copy_parts((ours.norm2, layer.final_layer_norm))
    for ours, layer in zip(model.blocks, decoder.layers, strict=True):
        copy_block(ours, layer)
        cross = layer.encoder_attn
        copy_split(ours.cross.kv, [cross.k_proj, cross.v_proj])
        copy_parts((ours.cross.q, cross.q_proj), (ours.cross.out, cross.out_proj))
        copy_parts((ours.norm2, layer.encoder_attn_layer_norm), (ours.norm3, layer.final_layer_norm))
    if c.norm_place == "pre":
        copy_parts((model.source_norm, encoder.layer_norm), (model.norm, decoder.layer_norm))
    # Ours has no place for a bias of the logits, which a converted model may have: here it must be as it is made.
    assert theirs.final_logits_bias.eq(0).all()
    theirs.tie_weights()
    return theirs


def like_t5(model: Any, transformers: Any) -> Any:
    c = model.config
    inner = c.inner or 4 * c.width
    shape = {
        "vocab_size": VOCAB,
        "d_model": c.width,
        "d_kv": c.width // c.heads,
        "d_ff": inner,
        "num_layers": c.encoder_layers or c.layers,
        "num_decoder_layers": c.layers,
        "num_heads": c.heads,
        "feed_forward_proj": "gated-silu" if c.feed_forward == "swiglu" else "relu",
        "pad_token_id": PAD,
        "eos_token_id": END,
        "decoder_start_token_id": START,
    }
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, attn_implementation="eager")).eval()
    theirs.shared.weight.copy_(model.embed.weight)
    sides = ((theirs.encoder, model.encoder, model.source_norm), (theirs.decoder, model.blocks, model.norm))
    for stack, blocks, last in sides:
        for ours, block in zip(blocks, stack.block, strict=True):
            copy_t5_block(ours, list(block.layer), c)
        copy_parts((last, stack.final_layer_norm))
    theirs.decoder.final_layer_norm.weight.mul_(math.sqrt(c.width))  # theirs divides what a tied head reads by that
    for stack, position in ((theirs.encoder, model.source_position), (theirs.decoder, model.position)):
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(position.table.weight)
    theirs.tie_weights()
    return theirs


def copy_t5_block(ours: Any, layers: list[Any], c: EncoderDecoderConfig) -> None:
    around, *across, forward = layers
    own = around.SelfAttention
    copy_split(ours.attention.qkv, [own.q, own.k, own.v])
    queries = [own.q]
    copy_parts((ours.attention.out, own.o), (ours.norm1, around.layer_norm))
    for layer in across:
        other = layer.EncDecAttention
        copy_split(ours.cross.kv, [other.k, other.v])
        copy_parts((ours.cross.q, other.q), (ours.cross.out, other.o), (ours.norm2, layer.layer_norm))
        queries.append(other.q)
    for query in queries:  # theirs does not divide scores by √D: the queries bring it along
        query.weight.div_(math.sqrt(c.width // c.heads))
    dense = forward.DenseReluDense
    copy_parts((ours.norm3 if across else ours.norm2, forward.layer_norm), (ours.feed_forward.down, dense.wo))
    if c.feed_forward == "swiglu":
        copy_split(ours.feed_forward.gate_up, [dense.wi_0, dense.wi_1])
    else:
        copy_parts((ours.feed_forward.up, dense.wi))


def copy_block(ours: Any, layer: Any) -> None:
    """What encoders and decoders have in common: self-attention and feed-forward network."""
    theirs = layer.self_attn
    copy_split(ours.attention.qkv, [theirs.q_proj, theirs.k_proj, theirs.v_proj])
    copy_parts((ours.attention.out, theirs.out_proj), (ours.norm1, layer.self_attn_layer_norm))
    copy_parts((ours.feed_forward.up, layer.fc1), (ours.feed_forward.down, layer.fc2))


def copy_parts(*pairs: tuple[Any, Any]) -> None:
    for ours, theirs in pairs:
        copy_split(ours, [theirs])


def copy_split(ours: Any, theirs: list[Any]) -> None:
    """One layer of ours is several of theirs, one below the other."""
    for number, part in enumerate(theirs):
        part.weight.copy_(ours.weight.chunk(len(theirs))[number])
        assert (getattr(part, "bias", None) is None) == (getattr(ours, "bias", None) is None)
        if getattr(part, "bias", None) is not None:
            part.bias.copy_(ours.bias.chunk(len(theirs))[number])
