"""Defaults for what the user left open: sizes from the text, the machine and the time there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textwright.errors import ConfigError
from textwright.run import merge, parse_run
from textwright.text.corpus import Facts
from textwright.training.hardware import Hardware

# Sizes to choose from, as (width, layers), small to large.
LADDER = [(64, 2), (128, 3), (128, 4), (192, 4), (256, 4), (256, 6), (384, 6), (512, 8), (640, 10), (768, 12)]
EFFICIENCY = 0.3  # share of the matrix rate that a training step of these sizes reaches
TOKENS_PER_PARAMETER = 2.0  # at least, seen in training, embeddings not counted
OPEN_ENDED = 600.0  # seconds assumed where the budget is in steps or epochs
MANY = 16_384  # words from which on the softmax of a recurrent model is estimated from samples
SAMPLES = 1024
# Operations of a training step with Muon, as counted, and more for each block of a Transformer or recurrent layer; of
# this for every token of a row, too, where cuDNN computes it, forward and backward (not counted here).
STEP, BLOCK, LAYER, TIME = 300, 40, 20, 4
FULL = 16_384  # tokens of the largest batch that is planned to keep a GPU at work
PIECES = 1024  # different tokens from which on they are no letters, but words, pieces of words or 汉字
ANY = 2**20  # words assumed before the text was seen: enough for every setting that needs many


@dataclass(frozen=True)
class Situation:
    """What defaults depend on."""

    facts: Facts  # of the training text
    hardware: Hardware
    processes: int = 1


def defaults(asked: Mapping[str, Any], situation: Situation) -> dict[str, Any]:
    """A whole configuration; what was asked for is put over it afterwards."""
    family = asked.get("model", {}).get("family", "transformer")
    seconds = seconds_of(asked.get("training", {}).get("budget", {}))
    make = {"transformer": _transformer, "pretrained": _pretrained}.get(family, _recurrent)
    model, training = make(asked, situation, seconds)
    model |= {"family": family, "vocab": situation.facts.vocabulary}
    training |= {
        "budget": {} if asked.get("training", {}).get("budget") else {"minutes": 3.0},
        "precision": situation.hardware.precision,
        "device": str(situation.hardware.device),
        "schedule": {"kind": "cosine", "warmup": warmup(asked, situation.facts.tokens, training["batch_tokens"])},
        "evaluations": 6 if seconds < 600 else 10 if seconds < 3600 else 20,
    }
    return {"model": model, "training": training}


def check(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown keys and impossible values."""
    place = Hardware(torch.device("cpu"), "float32", rate=1e11, latency=1e-6)
    base, tokenizer = asked.get("base"), asked.get("tokenizer", {})
    if isinstance(base, str) and tokenizer != {"kind": str(Path(base) / "tokenizer.json")}:
        raise ConfigError(f"a model that is fine-tuned keeps the tokenizer of its base, {base}: leave out tokenizer")
    parse_run(merge(neutral(asked), asked))  # types first: the plan computes with what was asked for
    parse_run(merge(defaults(asked, Situation(Facts(vocabulary=ANY, tokens=1_000_000), place)), asked))


def neutral(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Enough defaults to check the types of what was asked for."""
    model, training = (part if isinstance(part := asked.get(key), Mapping) else {} for key in ("model", "training"))
    family, heads = model.get("family", "transformer"), model.get("heads", 4)
    width = {"width": 64 * heads} if isinstance(heads, int) and heads > 0 else {}
    budget = {} if "budget" in training else {"minutes": 3.0}
    optimizer, kinds = {"kind": "muon"}, {"schedule": {"kind": "cosine"}, "averaging": {"kind": "none"}}
    return {
        "model": {"family": family, "vocab": ANY, **width},
        "training": {"budget": budget, "context": 1, "optimizer": optimizer, **kinds},
    }


def _transformer(
    asked: Mapping[str, Any], situation: Situation, seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    width, layers = _rung(situation, seconds)
    width = asked.get("model", {}).get("width", width)
    layers = asked.get("model", {}).get("layers", layers)
    window = asked.get("model", {}).get("window", asked.get("training", {}).get("context", 128))
    heads = asked.get("model", {}).get("heads")
    if heads is None:
        heads = next(heads for heads in (width // 64, width // 32, 2, 1) if heads and width % heads == 0)
    elif "width" not in asked.get("model", {}):
        width = -(-width // (2 * heads)) * 2 * heads  # whole heads of an even width
    parameters = 12 * layers * width**2 + situation.facts.vocabulary * width
    dropout = _dropout(parameters, situation, seconds)
    model = {"width": width, "layers": layers, "heads": heads, "window": window, "dropout": dropout}
    kind = _optimizer(asked)
    rate = {"muon": 6e-3, "sgd": 0.1}.get(kind, 3e-3)
    wanted = 2048 if asked.get("base") else 1024 if seconds < 600 else 4096 if seconds < 3600 else 16384
    context = asked.get("training", {}).get("context", window)
    full = full_batch(situation.hardware, parameters, STEP + BLOCK * layers)
    training = {
        "batch_tokens": _batch(situation, max(wanted, situation.processes * full), context),
        "context": context,
        "averaging": {"kind": "none"},
        "optimizer": {"kind": kind, "learning_rate": min(rate, round(rate * math.sqrt(128 / width), 5))},
    }
    return model, training


def _pretrained(
    asked: Mapping[str, Any], situation: Situation, seconds: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its shape is given; it trains as a Transformer of its own does when it is fine-tuned."""
    training = _transformer(asked, situation, seconds)[1]
    return {"width": asked["model"]["width"]}, training


def _recurrent(asked: Mapping[str, Any], situation: Situation, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    family = asked["model"]["family"]
    many = situation.facts.vocabulary >= MANY and not asked.get("training", {}).get("label_smoothing")
    width = 256 if seconds < (600 if many else 1200) or situation.facts.tokens < 200_000 else 512
    width = asked["model"].get("width", width)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[family]
    words = 2 * SAMPLES if many else situation.facts.vocabulary  # that a batch has to do with: drawn ones and targets
    parameters = 2 * gates * width**2 + words * width
    model = {"width": width, "layers": 1, "dropout": _dropout(parameters, situation, seconds)}
    context = asked.get("training", {}).get("context", 32 if many else 64)
    full = full_batch(situation.hardware, parameters, STEP + LAYER + TIME * context)
    training = {
        "batch_tokens": _batch(situation, max(1024, situation.processes * full), context),
        "context": context,
        "softmax_samples": SAMPLES if many else 0,
        "averaging": {"kind": "none"},
        "optimizer": _recurrent_optimizer(asked, width, many),
    }
    return model, training


def _recurrent_optimizer(asked: Mapping[str, Any], width: int, many: bool) -> dict[str, Any]:
    """What was measured at a width of 256; with many words Muon was behind (docs/benchmarks.md, "Learning speed")."""
    family, kind = asked["model"]["family"], "adamw" if many else _optimizer(asked)
    if kind == "sgd":  # at its own default, 1: a Transformer needs a tenth of it
        return {"kind": kind}
    if kind != "muon":
        rate = 1e-3 if family == "rnn" else 6e-3 if many else 4e-3
        return {"kind": kind, "learning_rate": rate, "weight_decay": 0.01}
    return {"kind": kind, "learning_rate": recurrent_muon(family, width), "weight_decay": 0.1}


def recurrent_muon(cell: str, width: int) -> float:
    """The rate of Muon that was measured at a width of 256; less where matrices are larger, as for Transformers."""
    rate = {"rnn": 4e-3, "gru": 8e-3, "lstm": 1.2e-2}[cell]
    return round(rate * math.sqrt(256 / max(width, 256)), 5)


def _optimizer(asked: Mapping[str, Any]) -> str:
    """Muon, unless another kind was asked for: rates belong to a kind."""
    kind: str = asked.get("training", {}).get("optimizer", {}).get("kind", "muon")
    return kind


def _rung(situation: Situation, seconds: float) -> tuple[int, int]:
    """The largest size of the ladder that sees enough tokens in the time, and enough different ones."""
    work = situation.hardware.rate * EFFICIENCY * seconds * situation.processes  # floating-point operations
    best = LADDER[0]
    for width, layers in LADDER:
        blocks = 12 * layers * width**2
        tokens = work / (6 * (blocks + situation.facts.vocabulary * width))  # Kaplan et al. 2020, section 2.1
        if tokens >= TOKENS_PER_PARAMETER * blocks and blocks < 20 * situation.facts.tokens:
            best = (width, layers)
    return best


def _dropout(parameters: int, situation: Situation, seconds: float) -> float:
    """Only where the text will be seen often; more where there are many different tokens, each of which tells more and
    is sooner known by heart than a character: see docs/benchmarks.md, "Learning speed"."""
    work = situation.hardware.rate * EFFICIENCY * seconds * situation.processes
    epochs = work / (6 * parameters) / situation.facts.tokens
    if epochs < 8:
        return 0.0
    return 0.3 if situation.facts.vocabulary >= PIECES else 0.1 if epochs < 25 else 0.2


def _batch(situation: Situation, wanted: int, row: int) -> int:
    """`wanted` tokens, fewer for a small text (about fifty batches an epoch), in whole rows for every process.

    Small batches learn most in a short time: see docs/benchmarks.md, "Learning speed".
    """
    rows = max(1, min(wanted, situation.facts.tokens // 50) // row)
    return max(1, -(-rows // situation.processes)) * situation.processes * row


def full_batch(hardware: Hardware, parameters: int, operations: int) -> int:
    """The tokens that a device computes with for as long as it takes to start the operations of their step: with fewer
    a GPU waits. A power of two; few where starting is quick and computing slow, as on a processor."""
    computed = operations * hardware.latency * hardware.rate * EFFICIENCY
    return 1 << int(math.log2(max(1.0, min(computed / (6 * parameters), FULL))))


def warmup(asked: Mapping[str, Any], tokens: int, batch_tokens: int) -> int:
    """100 steps, or a tenth of a run that is shorter than a thousand."""
    budget = asked.get("training", {}).get("budget", {})
    steps = float(budget.get("steps") or 1000)
    if budget.get("epochs"):
        steps = budget["epochs"] * tokens / batch_tokens
    return min(100, int(steps) // 10)


def seconds_of(budget: Mapping[str, Any]) -> float:
    """The time a run will have, assumed where the budget is in steps or epochs."""
    return 60 * float(budget.get("minutes") or OPEN_ENDED / 60)
