"""Defaults for tasks with a source: sizes from the pairs, the machine and the time there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from textwright.plan import seconds_of, warmup
from textwright.run import PairRun, merge, parse_run
from textwright.training.hardware import Hardware

ROOM = 64  # windows are multiples of this


@dataclass(frozen=True)
class PairSituation:
    """What defaults depend on: vocabularies (`source_vocab` None: one for both sides), pairs and target tokens of the
    training, the longest texts of any split, the machine."""

    vocab: int
    source_vocab: int | None
    pairs: int
    tokens: int
    longest_source: int
    longest_target: int
    hardware: Hardware
    processes: int = 1


def defaults(asked: Mapping[str, Any], situation: PairSituation) -> dict[str, Any]:
    """A whole configuration; what was asked for is put over it afterwards."""
    family = asked.get("model", {}).get("family", "encdec")
    seconds = seconds_of(asked.get("training", {}).get("budget", {}))
    model = {"family": family, "vocab": situation.vocab, "source_vocab": situation.source_vocab}
    model |= {"shared": situation.source_vocab is None, "dropout": _dropout(situation)}
    model |= _encdec(situation) if family == "encdec" else {"width": 256, "layers": 1}
    batch = 2048 if seconds < 3600 else 4096
    training = {
        "budget": {} if asked.get("training", {}).get("budget") else {"minutes": 3.0},
        "batch_tokens": max(64, min(batch, situation.tokens // 20)),
        "optimizer": {"kind": "adamw", "learning_rate": 2e-3, "betas": [0.9, 0.98], "weight_decay": 0.01},
        "schedule": {"kind": "cosine", "warmup": warmup(asked, situation.tokens, batch)},
        "averaging": {"kind": "ema"},
        "label_smoothing": 0.1,
        "precision": situation.hardware.precision,
        "device": str(situation.hardware.device),
        "evaluations": 6 if seconds < 600 else 10 if seconds < 3600 else 20,
    }
    return {"model": model, "training": training}


def check(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown keys and impossible values."""
    parsed(asked)
    place = Hardware(torch.device("cpu"), "float32", 1e11)
    parse_run(merge(defaults(asked, PairSituation(256, None, 10_000, 100_000, 50, 50, place)), asked))


def parsed(asked: Mapping[str, Any]) -> PairRun:
    """What was asked for with the defaults that depend on nothing: enough to prepare the data, and to check types
    before the plan computes with them."""
    model, training = (part if isinstance(part := asked.get(key), Mapping) else {} for key in ("model", "training"))
    family, heads = model.get("family", "encdec"), model.get("heads", 4)
    width = {"width": 64 * heads} if isinstance(heads, int) and heads > 0 else {}
    budget = {} if training.get("budget") else {"minutes": 3.0}
    kinds = {"optimizer": {"kind": "adamw"}, "schedule": {"kind": "cosine"}, "averaging": {"kind": "none"}}
    neutral = {
        "model": {"family": family, "vocab": 256, "dropout": 0.1, **width},
        "training": {"budget": budget, **kinds},
    }
    return PairRun.parse(merge(neutral, asked))


def _encdec(situation: PairSituation) -> dict[str, Any]:
    return {
        "width": 256,
        "layers": 3,
        "heads": 4,
        "inner": 1024,
        "window": _window(situation.longest_target),
        "source_window": _window(situation.longest_source),
    }


def _window(longest: int) -> int:
    """A quarter more than the longest text, in whole multiples."""
    return -(-max(ROOM, longest * 5 // 4) // ROOM) * ROOM


def _dropout(situation: PairSituation) -> float:
    return 0.3 if situation.pairs < 50_000 else 0.1
