"""Adapters in the layout of the peft library: adapter_config.json and adapter_model.safetensors, both ways.

There every matrix is apart, and has an A and a B of its own; ranks may differ. Here the matrices of one weight share a
rank, so thinner ones get zeros, and what differs in their scale goes into B: the product is the same. GPT-2 has
queries, keys and values in one matrix there; then the three A stand one below the other and the three B on a diagonal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from textwright.adapting.lora import LowRankConfig, adaptable, fused
from textwright.adapting.prompt import Prompted
from textwright.errors import CheckpointError, MissingExtraError
from textwright.interop.formats import form_of
from textwright.interop.huggingface import CLOSE
from textwright.interop.tables import refuse
from textwright.models.transformer import TransformerLM

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings under which an adapter is more than A, B and a magnitude, with the values under which it is not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "init_lora_weights": (
        True,
        False,
        None,
        "gaussian",
        "eva",
        "orthogonal",
        "mica",
    ),  # others change the weight beside the adapter, too
    "fan_in_fan_out": (False, True, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}


class Piece(NamedTuple):
    """One matrix of theirs: A (r, in), B (out, r), the scale of their product, and the norms of DoRA."""

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None


def write_peft(
    folder: Path, model: TransformerLM, config: LowRankConfig, values: Mapping[str, Tensor], base: str
) -> None:
    """Fill an empty folder.

    Args:
        model: what the adapter is for.
        values: the adapter, as `lora.tensors` names it.
        base: the name of the model it is for, for readers.

    Raises:
        CheckpointError: no architecture there can hold the model.
    """
    form = form_of(model.config)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for part in form.table(model.config):
        if f"{part.ours}.down" not in values:
            continue
        ups = [values[f"{part.ours}.up.{n}"] for n in range(len(_rows(model, part.ours)))]
        downs = torch.split(values[f"{part.ours}.down"], config.rank)
        if len(part.theirs) < len(ups):
            ups, downs = [torch.block_diag(*ups)], (torch.cat(downs),)  # type: ignore[no-untyped-call]
        magnitude = values.get(f"{part.ours}.magnitude")
        norms = None if magnitude is None else torch.split(magnitude, list(part.theirs.values()))
        for n, theirs in enumerate(part.theirs):
            name = theirs.removesuffix(".weight")
            tensors[f"{PREFIX}{name}.lora_A.weight"] = downs[n]
            tensors[f"{PREFIX}{name}.lora_B.weight"] = ups[n]
            if norms is not None:
                tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = norms[n]
            ranks[name] = len(downs[n])
    other = {name: rank for name, rank in ranks.items() if rank != config.rank}
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.stabilised,
        "use_dora": config.magnitude,
        "target_modules": sorted({name.rpartition(".")[2] for name in ranks} if _whole(model, values) else ranks),
        "rank_pattern": other,
        "alpha_pattern": {name: _alpha(config, rank) for name, rank in other.items()},
        "fan_in_fan_out": any(part.transposed for part in form.table(model.config)),
        "bias": "none",
        "inference_mode": True,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def write_peft_prompt(folder: Path, model: Prompted, base: str) -> None:
    """Fill an empty folder with a learned prompt; `base` as in `write_peft`.

    Raises:
        CheckpointError: no architecture there can hold the model.
    """
    inner = model.model
    assert isinstance(inner, TransformerLM)
    form_of(inner.config)
    told = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": len(model.prompt),
        "token_dim": model.prompt.shape[1],
        "num_layers": inner.config.layers,
        "num_attention_heads": inner.config.shape[1],
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }
    save_file({"prompt_embeddings": model.prompt.detach().contiguous()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def check_peft(folder: Path, base: Path, model: TransformerLM | Prompted, prompts: Sequence[Sequence[int]]) -> float:
    """Open base and adapter with transformers and peft, and compare logits: the largest difference.

    Args:
        base: a folder that transformers opens, with the weights the adapter is for.
        model: with the adapter.

    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: the logits differ.
    """
    try:
        transformers, peft = (import_module(name) for name in ("transformers", "peft"))
    except ImportError:
        raise MissingExtraError("an export to peft, which is checked by opening it,", "peft") from None
    below: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs: Any = peft.PeftModel.from_pretrained(below, folder).eval()
    difference = 0.0
    for ids in prompts:
        tokens = torch.tensor([list(ids)])
        with torch.no_grad():
            ours = model(tokens).logits
            other = theirs(tokens).logits[:, -tokens.shape[1] :]  # a learned prompt has some in front
        found = float((ours - other).abs().max())
        if found > CLOSE * float(ours.abs().max()):
            raise CheckpointError(f"the exported adapter differs: logits by {found:.2g}; nothing was written")
        difference = max(difference, found)
    return difference


def read_peft(folder: Path, model: TransformerLM) -> tuple[LowRankConfig, dict[str, Tensor]]:
    """An adapter for the model: its configuration, and its tensors as `lora.tensors` names them.

    Raises:
        CheckpointError: the folder holds no such adapter, or one that cannot be held here, or not one for this model.
    """
    said, tensors = _opened(folder)
    found: dict[str, dict[int, Piece]] = {}
    left = set(tensors)
    can = {f"{path}.{leaf}" for path, _, leaf in adaptable(model)}
    for part in [part for part in form_of(model.config).table(model.config) if part.ours in can]:
        for n, theirs in enumerate(part.theirs):
            name = theirs.removesuffix(".weight")
            if f"{PREFIX}{name}.lora_A.weight" not in tensors:
                continue
            names = [f"{PREFIX}{name}.{leaf}" for leaf in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")]
            down, up, magnitude = (tensors[key].float() if key in tensors else None for key in names)
            left -= set(names)
            inputs = model.get_parameter(part.ours).shape[1]
            expected = (part.theirs[theirs], inputs)
            if down is None or up is None or (len(up), down.shape[1]) != expected or len(down) != up.shape[1]:
                raise CheckpointError(f"{folder} is for another model: {name} has not {expected[0]} x {expected[1]}")
            found.setdefault(part.ours, {})[n] = Piece(down, up, _scale(said, name, len(down)), magnitude)
    if left:
        raise CheckpointError(
            f"{folder}: {sorted(left)[0]} has no place in this model; peft's merge_and_unload makes it a part of "
            "the weights, which can be imported"
        )
    if not found:
        raise CheckpointError(f"{folder} holds no adapter")
    rank = max(len(piece.down) for pieces in found.values() for piece in pieces.values())
    scale = max(piece.scale for pieces in found.values() for piece in pieces.values())
    config = LowRankConfig(
        rank=rank,
        alpha=scale * rank,
        magnitude=bool(said.get("use_dora", False)),
        dropout=float(said.get("lora_dropout", 0.0)),
        targets=tuple(sorted(found)),
    )
    values: dict[str, Tensor] = {}
    for ours, pieces in found.items():
        values |= _gathered(model, ours, pieces, config)
    return config, values


def base_of(folder: Path) -> str:
    """The model that an adapter in a folder is for, as it says; nothing if the folder is gone."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path") or "")
    except (OSError, ValueError):
        return ""


def _opened(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no whole adapter ({error}): expected {CONFIG} and {WEIGHTS}, as peft writes them"
        ) from None
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        kind = said.get("peft_type") if isinstance(said, dict) else None
        raise CheckpointError(f"{folder} is an adapter of kind {kind}: expected LORA")
    found = {f"{name} {said[name]}": said.get(name) not in usual for name, usual in NEUTRAL.items() if name in said}
    refuse(f"{folder} asks for {{}}, which adapters do not have here", found)
    return said, tensors


def _gathered(model: TransformerLM, ours: str, pieces: Mapping[int, Piece], config: LowRankConfig) -> dict[str, Tensor]:
    """The matrices of one weight of ours, from those of theirs that have an adapter."""
    weight, rows = model.get_parameter(ours).detach(), _rows(model, ours)
    whole = len(rows) > 1 and set(pieces) == {0} and len(pieces[0].up) == len(weight)  # theirs are in one, too
    downs, ups = [], []
    starts = [sum(rows[:n]) for n in range(len(rows))]
    for n, (start, count) in enumerate(zip(starts, rows, strict=True)):
        down, up = torch.zeros(config.rank, weight.shape[1]), torch.zeros(count, config.rank)
        if whole or n in pieces:
            piece = pieces[0 if whole else n]
            down[: len(piece.down)] = piece.down
            own = piece.up[start : start + count] if whole else piece.up
            up[:, : len(piece.down)] = own * (piece.scale / config.scale)
        downs.append(down)
        ups.append(up)
    values = {f"{ours}.down": torch.cat(downs)} | {f"{ours}.up.{n}": up for n, up in enumerate(ups)}
    if config.magnitude:
        norms = list(torch.split(weight.float().norm(dim=1), [len(weight)] if whole else list(rows)))
        for n, piece in pieces.items():
            if piece.magnitude is not None:
                norms[n] = piece.magnitude
        values[f"{ours}.magnitude"] = torch.cat(norms)
    return values


def _rows(model: TransformerLM, ours: str) -> tuple[int, ...]:
    parent, _, layer = ours.removesuffix(".weight").rpartition(".")
    return fused(model.get_submodule(parent), layer, len(model.get_parameter(ours)))


def _whole(model: TransformerLM, values: Mapping[str, Tensor]) -> bool:
    """Every weight that has a namesake in another layer has an adapter if that one has: a short list names them all."""
    have = {_family(name.removesuffix(".down")) for name in values if name.endswith(".down")}
    every = [name for name, _ in model.named_parameters() if name.endswith(".weight") and _family(name) in have]
    return all(f"{name}.down" in values for name in every)


def _family(weight: str) -> str:
    return ".".join(part for part in weight.split(".") if not part.isdigit())


def _alpha(config: LowRankConfig, rank: int) -> float:
    """The α that gives another rank the same scale."""
    return config.scale * (math.sqrt(rank) if config.stabilised else rank)


def _scale(said: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = said.get("alpha_pattern") or {}
    # Keys are regular expressions for the end of a name, as in peft; the first that fits counts.
    alpha = next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", name)), said["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)
