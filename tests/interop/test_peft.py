"""Adapters in the layout of peft, both ways, against peft itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from textwright.adapting import lora
from textwright.adapting.lora import LowRankConfig
from textwright.errors import CheckpointError
from textwright.interop.folder import read_folder
from textwright.interop.formats import native
from textwright.interop.huggingface import write_weights
from textwright.interop.peft import CONFIG, WEIGHTS, check_peft, read_peft, write_peft
from textwright.models import TransformerConfig
from textwright.models.transformer import TransformerLM

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
SHAPE: dict[str, Any] = {"vocab": 40, "width": 24, "layers": 2, "heads": 4, "window": 32}
OURS = {
    "llama": TransformerConfig(**SHAPE, kv_heads=2, norm="rmsnorm", feed_forward="swiglu"),
    "gpt2": TransformerConfig(**SHAPE, positions="learned", bias=True),
    "starcoder2": TransformerConfig(**SHAPE),
}
KINDS = {
    "lora": LowRankConfig(rank=3, alpha=5.0),
    "rslora": LowRankConfig(rank=3, alpha=5.0, stabilised=True),
    "dora": LowRankConfig(rank=3, alpha=5.0, magnitude=True),
    "some": LowRankConfig(rank=3, targets=("blocks.1.attention.qkv.weight",)),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def build(family: str, folder: Path) -> TransformerLM:
    """A model of ours, also written to a folder that transformers opens."""
    torch.manual_seed(0)
    model = OURS[family].build().eval()
    assert isinstance(model, TransformerLM)
    folder.mkdir()
    write_weights(folder, model)
    return native(read_folder(folder))


def stir(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


def put(model: TransformerLM, config: LowRankConfig, values: dict[str, Tensor]) -> None:
    lora.attach(model, config)
    own = lora.tensors(model)
    assert own.keys() == values.keys()
    for name, value in own.items():
        value.copy_(values[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", OURS)
def test_peft_opens_what_we_write_and_we_read_it_back(family: str, kind: str, tmp_path: Path) -> None:
    model = build(family, tmp_path / "base")
    plain = model(TOKENS).logits
    lora.attach(model, KINDS[kind])
    stir(model)
    out = tmp_path / "adapter"
    out.mkdir()
    write_peft(out, model, KINDS[kind], lora.tensors(model), "base")
    assert check_peft(out, tmp_path / "base", model, [TOKENS[0].tolist()]) < 1e-4
    again = native(read_folder(tmp_path / "base"))
    put(again, *read_peft(out, again))
    torch.testing.assert_close(again(TOKENS).logits, model(TOKENS).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(again(TOKENS).logits, plain, atol=1e-3)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", OURS)
def test_we_open_what_peft_writes(family: str, dora: bool, tmp_path: Path) -> None:
    model = build(family, tmp_path / "base")
    some = {"llama": ["q_proj", "v_proj", "up_proj"], "gpt2": ["c_attn", "c_fc"], "starcoder2": ["k_proj", "c_proj"]}
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=some[family], use_dora=dora, fan_in_fan_out=family == "gpt2",
        rank_pattern={r"0\.(self_attn|attn)\.\w+": 2}, alpha_pattern={r"1\.(self_attn|attn)\.\w+": 9},
        task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    stir(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    put(model, *read_peft(tmp_path / "adapter", model))
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits, atol=1e-5, rtol=1e-4)
    lora.merge(model)
    torch.testing.assert_close(model(TOKENS).logits, theirs(TOKENS).logits.detach(), atol=1e-5, rtol=1e-4)


def damage(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**said, **changes}))


def test_what_cannot_be_read(tmp_path: Path) -> None:
    model = build("llama", tmp_path / "base")
    lora.attach(model, KINDS["lora"])
    out = tmp_path / "adapter"
    out.mkdir()
    with pytest.raises(CheckpointError, match="holds no whole adapter"):
        read_peft(out, model)
    fresh = native(read_folder(tmp_path / "base"))
    write_peft(out, model, KINDS["lora"], lora.tensors(model), "base")
    for changes, told in (
        ({"peft_type": "LOHA"}, "of kind LOHA"),
        ({"bias": "all"}, "asks for bias all"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ):
        damage(out, **changes)
        with pytest.raises(CheckpointError, match=told):
            read_peft(out, fresh)
        damage(out, peft_type="LORA", bias="none", modules_to_save=None, init_lora_weights=True)
    other = TransformerConfig(**{**SHAPE, "width": 32}, norm="rmsnorm", feed_forward="swiglu").build()
    assert isinstance(other, TransformerLM)
    with pytest.raises(CheckpointError, match="is for another model"):
        read_peft(out, other)
    tensors = load_file(out / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(1)}, out / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A\.weight has no place"):
        read_peft(out, fresh)
    save_file({}, out / WEIGHTS)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        read_peft(out, fresh)


def test_a_head_of_its_own_takes_no_adapter(tmp_path: Path) -> None:
    """Losses read its weight directly; an adapter on it would make a run that nothing opens."""
    model = TransformerConfig(**{**SHAPE, "tied": False}, norm="rmsnorm", feed_forward="swiglu").build()
    assert isinstance(model, TransformerLM)
    lora.attach(model, KINDS["lora"])
    write_peft(tmp_path, model, KINDS["lora"], lora.tensors(model), "base")
    vocab, width = model.head.weight.shape
    head = {"lora_A": torch.zeros(3, width), "lora_B": torch.zeros(vocab, 3)}
    more = {f"base_model.model.lm_head.{name}.weight": value for name, value in head.items()}
    save_file({**load_file(tmp_path / WEIGHTS), **more}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A\.weight has no place.*merge_and_unload"):
        read_peft(tmp_path, model)
