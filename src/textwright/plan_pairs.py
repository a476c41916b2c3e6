"""Defaults for tasks with a source: sizes from the pairs, the machine and the time there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from textwright.errors import ConfigError
from textwright.plan import BLOCK, EFFICIENCY, STEP, full_batch, recurrent_muon, seconds_of, warmup
from textwright.run import PairRun, merge, parse_run
from textwright.training.hardware import Hardware

ROOM = 64  # windows are multiples of this
WIDTHS = (128, 192, 256, 384, 512)
SIDES = 2  # that have blocks or layers: encoder and decoder
BLOCKS = 3 * 12 + 3 * 16  # squared widths in three blocks of an encoder and three of a decoder
EPOCHS = 12  # that a model of the chosen width should see


@dataclass(frozen=True)
class PairSituation:
    """What defaults depend on: vocabularies (`source_vocab` None: one for both sides; with neighbours a source may hold
    the target's ids, too), target tokens of the training, tokens of the longer sides of its pairs, the longest texts of
    any split, the machine."""

    vocab: int
    source_vocab: int | None
    tokens: int
    padded: int
    longest_source: int
    longest_target: int
    hardware: Hardware
    processes: int = 1


def defaults(asked: Mapping[str, Any], situation: PairSituation) -> dict[str, Any]:
    """A whole configuration; what was asked for is put over it afterwards."""
    family = asked.get("model", {}).get("family", "encdec")
    seconds = seconds_of(asked.get("training", {}).get("budget", {}))
    shape = _encdec(asked.get("model", {}), situation, seconds) if family == "encdec" else {"width": 256, "layers": 1}
    width = asked.get("model", {}).get("width", shape["width"])
    model = {"family": family, "vocab": situation.vocab}
    if not asked.get("base"):  # a base has a shape
        shape |= {"inner": 4 * width} if family == "encdec" and "inner" not in asked.get("model", {}) else {}
        model |= {**shape, "source_vocab": situation.source_vocab, "shared": situation.source_vocab is None}
        model["dropout"] = _dropout(situation, width, seconds)
    operations = STEP + SIDES * BLOCK * asked.get("model", {}).get("layers", shape["layers"])
    full = situation.processes * full_batch(situation.hardware, _parameters(situation, width), operations)
    batch = max(64, min(max(full, 2048 if seconds < 3600 else 4096), situation.padded // 20))
    training = {
        "budget": {} if asked.get("training", {}).get("budget") else {"minutes": 3.0},
        "batch_tokens": batch,
        "optimizer": _optimizer(asked, width),
        "schedule": {"kind": "cosine", "warmup": warmup(asked, situation.padded, batch)},
        "averaging": {"kind": "ema"},
        "label_smoothing": 0.1,
        "precision": situation.hardware.precision,
        "device": str(situation.hardware.device),
        "evaluations": 6 if seconds < 600 else 10 if seconds < 3600 else 20,
    }
    return {"model": model, "training": training}


def check(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown keys, impossible values, and what the task would ignore."""
    config = parsed(asked)
    if config.task != "translate" and (config.language is not None or config.lowercase):
        raise ConfigError(f"leave out language and lowercase: they are for scores of translations, not {config.task}")
    place = Hardware(torch.device("cpu"), "float32", rate=1e11, latency=1e-6)
    parse_run(merge(defaults(asked, PairSituation(256, None, 100_000, 100_000, 50, 50, place)), asked))


def parsed(asked: Mapping[str, Any]) -> PairRun:
    """What was asked for with the defaults that depend on nothing: enough to prepare the data, and to check types
    before the plan computes with them."""
    model, training = (part if isinstance(part := asked.get(key), Mapping) else {} for key in ("model", "training"))
    family, heads = model.get("family", "encdec"), model.get("heads", 4)
    width = {"width": 64 * heads} if isinstance(heads, int) and heads > 0 else {}
    if family == "encdec" and "heads" not in model and isinstance(model.get("width"), int):
        width = {"heads": _heads(model["width"])}
    budget = {} if training.get("budget") else {"minutes": 3.0}
    kinds = {"optimizer": {"kind": "muon"}, "schedule": {"kind": "cosine"}, "averaging": {"kind": "none"}}
    neutral = {
        "model": {"family": family, "vocab": 256, "dropout": 0.1, **width},
        "training": {"budget": budget, **kinds},
    }
    return PairRun.parse(merge(neutral, asked))


def _encdec(asked: Mapping[str, Any], situation: PairSituation, seconds: float) -> dict[str, Any]:
    """Three blocks a side, of the largest width that sees the pairs often enough in the time."""
    fits = [w for w in WIDTHS if _epochs(situation, w, seconds) >= EPOCHS and BLOCKS * w**2 < 20 * situation.tokens]
    width = asked.get("width") or (fits[-1] if fits else WIDTHS[0])
    heads = asked.get("heads") or _heads(width)
    return {
        "width": -(-width // (2 * heads)) * 2 * heads,  # whole heads of an even width
        "layers": 3,
        "heads": heads,
        "window": _window(situation.longest_target),
        "source_window": _window(situation.longest_source),
    }


def _heads(width: int) -> int:
    """The most heads, of 64 or more but at least four if they fit, that share a width in whole and even parts."""
    return next((heads for heads in range(max(4, width // 64), 1, -1) if width % (2 * heads) == 0), 1)


def _epochs(situation: PairSituation, width: int, seconds: float) -> float:
    """How often the targets are seen: a token of them costs its share of both stacks and of the head."""
    work = situation.hardware.rate * EFFICIENCY * seconds * situation.processes
    return work / (6 * _parameters(situation, width)) / situation.tokens


def _parameters(situation: PairSituation, width: int) -> int:
    """That a target token has to do with: of both stacks and of the head."""
    return BLOCKS * width**2 + situation.vocab * width


def _optimizer(asked: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Muon, unless another kind was asked for: rates belong to a kind. Measured for widths of 128 (encoder-decoder) and
    256 (GRU), see docs/benchmarks.md; wider models need less."""
    kind = asked.get("training", {}).get("optimizer", {}).get("kind", "muon")
    model = asked.get("model", {})
    if model.get("family", "encdec") == "encdec":
        rate = 1.2e-2 * math.sqrt(128 / width) if kind == "muon" else min(4e-3, 0.512 / width)
    elif kind == "muon":
        rate = recurrent_muon(model.get("cell", "gru"), width)
    else:
        rate = 4e-3
    decay = 0.1 if kind == "muon" else 0.01
    if kind == "sgd":  # as for texts, see `plan`
        return {"kind": kind, **({"learning_rate": 0.1} if model.get("family", "encdec") == "encdec" else {})}
    return {"kind": kind, "learning_rate": round(rate, 6), "weight_decay": decay, "betas": [0.9, 0.98]}


def _window(longest: int) -> int:
    """A quarter more than the longest text, in whole multiples."""
    return -(-max(ROOM, longest * 5 // 4) // ROOM) * ROOM


def _dropout(situation: PairSituation, width: int, seconds: float) -> float:
    """More where the pairs will be seen more often."""
    epochs = _epochs(situation, width, seconds)
    return 0.1 if epochs < 20 else 0.2 if epochs < 40 else 0.3
