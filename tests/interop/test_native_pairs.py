"""Encoder-decoders of the hub as our own, in both directions, against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from textwright.errors import CheckpointError
from textwright.interop.folder import read_folder
from textwright.interop.pair_formats import foreign_pairs, native_pairs
from textwright.models import EncoderDecoderConfig, Source

transformers = pytest.importorskip("transformers")
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None}
T5 = {"vocab_size": 40, "d_model": 24, "d_kv": 5, "d_ff": 36, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 40, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 36, "decoder_ffn_dim": 36, "max_position_embeddings": 32,
    "bos_token_id": 2,
}  # fmt: skip
THEIRS = {
    "t5": transformers.T5Config(**T5, **ENDS),
    "t5-1.1": transformers.T5Config(**T5, **ENDS, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": transformers.MT5Config(**T5, **ENDS, feed_forward_proj="gated-silu", layer_norm_epsilon=0.1),
    "bart": transformers.BartConfig(**BART, **ENDS),
    "bart-scaled": transformers.BartConfig(**BART, **ENDS, scale_embedding=True, activation_function="relu"),
    "marian": transformers.MarianConfig(**BART, **ENDS, activation_function="swish", scale_embedding=True),
    "marian-apart": transformers.MarianConfig(
        **{**BART, **ENDS, "decoder_vocab_size": 30, "share_encoder_decoder_embeddings": False}
    ),
    "pegasus": transformers.PegasusConfig(**BART, **ENDS, scale_embedding=True),
}
SHAPE = {"vocab": 40, "width": 24, "layers": 2, "heads": 4, "window": 16, "source_window": 20}
OURS = {
    "sinusoidal": EncoderDecoderConfig(**SHAPE, positions="sinusoidal"),
    "sinusoidal post-norm": EncoderDecoderConfig(**SHAPE, positions="sinusoidal", norm_place="post", bias=True),
    "two vocabularies": EncoderDecoderConfig(
        **SHAPE, positions="sinusoidal", norm_place="post", source_vocab=30, shared=False, encoder_layers=1
    ),
    "biased head": EncoderDecoderConfig(**SHAPE, positions="sinusoidal", head_bias=True),
    "relative, untied": EncoderDecoderConfig(
        **SHAPE, positions="relative", norm="rmsnorm", feed_forward="relu", scaled=False, tied=False
    ),
    "relative": EncoderDecoderConfig(
        **SHAPE, positions="relative", norm="rmsnorm", feed_forward="geglu", scaled=False, head_width=10
    ),
    "bart": EncoderDecoderConfig(
        **{**SHAPE, "source_window": 16}, positions="learned", norm_place="post", embed_norm=True, bias=True
    ),
}


def spread(model: Any) -> Any:
    """Weights that make every part matter, biases and gains included; what is no parameter and learned, too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name or getattr(model, "config", None) is THEIRS["bart"]:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    return model.eval()


def source(vocab: int) -> Source:
    generator = torch.Generator().manual_seed(3)
    return Source(torch.randint(3, vocab, (3, 9), generator=generator), torch.tensor([9, 4, 1]))


@torch.no_grad()
def compared(ours: Any, theirs: Any) -> None:
    """Logits of a ragged batch, theirs with an attention mask."""
    given = source(ours.source_vocab)
    tokens = torch.randint(3, ours.config.vocab, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < given.lengths[:, None]).long()
    want = theirs(input_ids=given.values, attention_mask=mask, decoder_input_ids=tokens).logits
    assert want.std() > 0.1
    got: Tensor = ours(tokens, source=given).logits
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)


@pytest.fixture(params=THEIRS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of theirs, saved as they save one."""
    config = THEIRS[request.param]
    spread(transformers.AutoModelForSeq2SeqLM.from_config(config)).save_pretrained(tmp_path)
    return tmp_path


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def test_logits_are_theirs(folder: Path) -> None:
    compared(native_pairs(read_folder(folder)), loaded(folder))


def test_a_file_without_its_head(tmp_path: Path) -> None:
    """As facebook/bart-base is stored."""
    body = spread(transformers.BartModel(THEIRS["bart"]))
    body.save_pretrained(tmp_path)
    compared(native_pairs(read_folder(tmp_path)), loaded(tmp_path))


def test_they_come_back_unchanged(folder: Path) -> None:
    """In and out again: their tensors, and a configuration that means the same."""
    config, tensors = foreign_pairs(native_pairs(read_folder(folder)))
    before = load_file(folder / "model.safetensors")
    assert tensors.keys() <= before.keys()
    for name in before.keys() - tensors.keys():  # sinusoids, or the embedding under another name
        assert "embed_positions" in name or torch.equal(before[name], tensors["shared.weight"]), name
    said = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "t5":  # what T5 divides its outputs by may be in the last norm
        divided = said.get("scale_decoder_outputs", False)
        before["decoder.final_layer_norm.weight"] *= 1 if divided else 24**0.5
        said["scale_decoder_outputs"] = True
    for name, tensor in tensors.items():
        unused = 2 if config["model_type"] == "bart" and "embed_positions" in name else 0
        torch.testing.assert_close(tensor[unused:], before[name][unused:], rtol=1e-6, atol=0, msg=name)
    assert config["model_type"] == {"mt5": "t5"}.get(said["model_type"], said["model_type"])
    for name in config.keys() & said.keys() - {"architectures", "model_type", "dropout", "dropout_rate"}:
        pair = (config[name], said[name])
        assert pair[0] == pair[1] or pair == ("silu", "swish"), name


@pytest.mark.parametrize("name", OURS)
def test_ours_is_the_same_there(name: str, tmp_path: Path) -> None:
    model = spread(OURS[name].build())
    config, tensors = foreign_pairs(model)
    (tmp_path / "config.json").write_text(json.dumps({**config, **ENDS}))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    compared(model, loaded(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary"},
        {"tied": False},
        {"copying": True},
        {"kv_heads": 2},
        {"norm": "rmsnorm"},
        {"feed_forward": "swiglu"},
    ],
)
def test_what_no_format_holds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"no architecture can hold this model.*positions=sinusoidal"):
        foreign_pairs(OURS["sinusoidal"].model_copy(update=changes).build())


@pytest.mark.parametrize(
    ("kind", "said", "told"),
    [
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj gated-relu"),
        ("t5", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
        ("bart", {"encoder_attention_heads": 2}, "encoder_attention_heads"),
        ("bart", {"activation_function": "tanh"}, "activation_function tanh"),
        ("bart", {"d_model": None}, "makes no model"),
        ("marian", {"model_type": "prophetnet"}, "prophetnet"),
    ],
)
def test_what_ours_cannot_be_is_refused(kind: str, said: dict[str, Any], told: str, tmp_path: Path) -> None:
    transformers.AutoModelForSeq2SeqLM.from_config(THEIRS[kind]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    with pytest.raises(CheckpointError, match=told):
        native_pairs(read_folder(tmp_path))
