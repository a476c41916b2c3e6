"""Architectures of the hub as our own Transformer, in both directions, against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from door import data_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from textwright.errors import CheckpointError, ConfigError
from textwright.interop import memory
from textwright.interop.folder import INDEX, find, read_folder
from textwright.interop.formats import foreign, native
from textwright.models import TransformerConfig

transformers = pytest.importorskip("transformers")
STORIES = data_folder() / ".." / "models" / "stories260K"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 36,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
THEIRS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama-biased": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-wide-heads": transformers.LlamaConfig(
        **SIZES, head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-3
    ),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=16),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt2-relu": transformers.GPT2Config(**GPT2, activation_function="relu", n_inner=50, tie_word_embeddings=False),
    "starcoder2": transformers.Starcoder2Config(**SIZES, sliding_window=None),
}
OURS = {
    "default": TransformerConfig(vocab=40, width=24, layers=2, heads=4, window=16),
    "llama": TransformerConfig(vocab=40, width=24, layers=2, heads=4, window=16, norm="rmsnorm", feed_forward="swiglu"),
    "learned": TransformerConfig(vocab=40, width=24, layers=1, heads=4, window=16, positions="learned", bias=True),
    "untied": TransformerConfig(vocab=40, width=24, layers=1, heads=4, kv_heads=2, window=16, tied=False),
}


def spread(model: torch.nn.Module) -> Any:
    """Weights that make every part matter, biases and gains included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(params=THEIRS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of theirs, saved as they save one."""
    spread(transformers.AutoModelForCausalLM.from_config(THEIRS[request.param])).save_pretrained(tmp_path)
    return tmp_path


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(tokens).logits
    return result


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_logits_are_theirs(folder: Path) -> None:
    tokens = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(2))
    want = logits(loaded(folder), tokens)
    assert want.std() > 0.1
    torch.testing.assert_close(logits(native(read_folder(folder)), tokens), want, rtol=1e-4, atol=1e-4)


def test_they_come_back_unchanged(folder: Path) -> None:
    """In and out again: their tensors, and a configuration that means the same."""
    config, tensors = foreign(native(read_folder(folder)))
    before = load_file(folder / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    said = json.loads((folder / "config.json").read_text())
    window = {"max_position_embeddings", "sliding_window"}  # a window that slides is a short one to us
    known = {"mistral": "llama"}
    assert config["model_type"] == known.get(said["model_type"], said["model_type"])
    for name in config.keys() & said.keys() - window - {"architectures", "model_type", "rope_parameters", "n_inner"}:
        pair = (config[name], said[name])
        assert pair[0] == pair[1] or pair == ("gelu_new", "gelu_pytorch_tanh"), name  # two names of one function


@pytest.mark.parametrize("name", OURS)
def test_ours_is_the_same_there(name: str, tmp_path: Path) -> None:
    model = spread(OURS[name].build())
    config, tensors = foreign(model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(logits(loaded(tmp_path), tokens), logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"norm_place": "post"}, {"positions": "sinusoidal"}, {"qk_norm": True}, {"norm": "rmsnorm"}, {"qkv_bias": True}],
)
def test_what_no_format_holds_is_refused(changes: dict[str, Any]) -> None:
    model = OURS["default"].model_copy(update=changes).build()
    with pytest.raises(CheckpointError, match="no architecture can hold this model"):
        foreign(model)


def test_a_model_without_its_head_and_in_bfloat16(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    theirs = spread(transformers.LlamaModel(config)).bfloat16()
    theirs.save_pretrained(tmp_path)
    model = native(read_folder(tmp_path))
    assert torch.equal(model.embed.weight, theirs.embed_tokens.weight.float())


def shards(folder: Path) -> Path:
    theirs = spread(transformers.AutoModelForCausalLM.from_config(THEIRS["llama"]))
    theirs.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / INDEX).is_file()
    return folder


def test_shards(tmp_path: Path) -> None:
    tokens = torch.arange(10)[None]
    want = logits(loaded(shards(tmp_path)), tokens)
    torch.testing.assert_close(logits(native(read_folder(tmp_path)), tokens), want, rtol=1e-4, atol=1e-4)


def missing_shard(folder: Path) -> None:
    next(shards(folder).glob("model-*.safetensors")).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def said(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


BROKEN = {
    "holds no config.json": no_config,
    "config.json is damaged": cut_config,
    "no whole safetensors file": cut_weights,
    "pickles": pickled,
    r"holds no \*.safetensors": no_weights,
    "which model.safetensors.index.json names": missing_shard,
    "brings code of its own": lambda folder: said(folder, auto_map={"AutoModel": "modeling.Mine"}),
    "is a mamba: expected one of llama": lambda folder: said(folder, model_type="mamba"),
    "lacks 'intermediate_size'": lambda folder: said(folder, intermediate_size="gone"),
    "config.json makes it": lambda folder: said(folder, intermediate_size=40),
    "is missing": lambda folder: said(folder, num_hidden_layers=3),
    "has no place in this model": lambda folder: said(folder, num_hidden_layers=1),
    "rope_type yarn": lambda folder: said(folder, rope_scaling={"rope_type": "yarn", "factor": 2.0}),
    "hidden_act gelu": lambda folder: said(folder, hidden_act="gelu"),
    "makes no model": lambda folder: said(folder, hidden_size=-24),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_bad_folder_is_told(why: str, tmp_path: Path) -> None:
    spread(transformers.AutoModelForCausalLM.from_config(THEIRS["llama"])).save_pretrained(tmp_path)
    BROKEN[why](tmp_path)
    with pytest.raises(CheckpointError, match=why):
        native(read_folder(tmp_path))


def test_of_several_chat_templates_the_default_is_taken(tmp_path: Path) -> None:
    spread(transformers.AutoModelForCausalLM.from_config(THEIRS["llama"])).save_pretrained(tmp_path)
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert read_folder(tmp_path).template == "yes"


def test_a_norm_with_a_bias_that_we_have_not_is_refused(tmp_path: Path) -> None:
    config = transformers.Starcoder2Config(**SIZES, use_bias=False)
    spread(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is not zero"):
        native(read_folder(tmp_path))


def test_a_model_that_does_not_fit_is_refused_with_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = spread(transformers.AutoModelForCausalLM.from_config(THEIRS["llama"]))
    theirs.save_pretrained(tmp_path)
    said(tmp_path, max_position_embeddings=10**9)  # what a window takes is taken later
    assert memory.need(native(read_folder(tmp_path)).config) == 4 * theirs.num_parameters()
    monkeypatch.setattr(memory, "free", lambda: 2**20)
    said(tmp_path, num_hidden_layers=1000)
    with pytest.raises(ConfigError, match=r"needs 0\.0 GiB, 0\.0 GiB are free"):
        native(read_folder(tmp_path))


@pytest.mark.parametrize("place", ["nowhere", "no/such/folder", "./missing", "/missing/folder"])
def test_a_place_that_is_none(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"does not exist|cannot be reached"):
        find(place)


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the folder models beside the one that TEXTWRIGHT_DATA names")
def test_trained_weights() -> None:
    model, theirs = native(read_folder(STORIES)), loaded(STORIES)
    tokens = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(logits(model, tokens), logits(theirs, tokens), rtol=1e-4, atol=1e-4)
