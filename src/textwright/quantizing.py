"""What smaller weights cost: the perplexity of a run before and after, on its own validation text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from textwright.errors import ConfigError
from textwright.evaluating.perplexity import head, score
from textwright.models.quantized import KINDS, Kind, quantize, weight_bytes
from textwright.opening import load
from textwright.pair_job import pair_loss
from textwright.pair_model import PairModel
from textwright.text.bitext import open_sides
from textwright.text.corpus import open_prepared
from textwright.writer import TextModel

TOKENS = 2048  # of the validation text: enough to see a change, soon read


@dataclass(frozen=True)
class Cost:
    """Sizes in bytes, losses in nats a token; no losses where the run has lost its validation text."""

    kind: Kind
    size_before: int
    size_after: int
    before: float | None
    after: float | None

    def __str__(self) -> str:
        sizes = f"{self.kind} weights: {self.size_after / 1e6:.1f} MB instead of {self.size_before / 1e6:.1f}"
        if self.before is None or self.after is None:
            return f"{sizes}; the run has no validation text left to measure the change with"
        change = math.expm1(self.after - self.before)
        perplexities = f"perplexity {math.exp(self.after):.3f} instead of {math.exp(self.before):.3f}"
        return f"{sizes}; {perplexities} ({change:+.2%}) on the first {TOKENS:,} validation tokens"


def load_quantized(path: str | Path, kind: str, device: str = "auto") -> tuple[TextModel | PairModel, Cost]:
    """Open a run with weights of fewer bits, and say what that changes.

    Args:
        kind: "int8" or "int4"; see `models.quantized`.

    Raises:
        ConfigError: another kind.
        CheckpointError: as `load`.
    """
    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise ConfigError(f"unknown kind of weights {kind!r}: expected {' or '.join(KINDS)}")
    model = load(path, device)
    size, loss = weight_bytes(model.model), _loss(model, Path(path))
    quantize(model.model, chosen)
    return model, Cost(chosen, size, weight_bytes(model.model), loss, _loss(model, Path(path)))


def _loss(model: TextModel | PairModel, folder: Path) -> float | None:
    if not (folder / "data").is_dir():
        return None
    if isinstance(model, PairModel):
        valid = open_sides(folder / "data" / "valid", 0 if model.neighbours is None else model.neighbours.count)
        return pair_loss(model.model, valid, model.generation.start, TOKENS, "float32")
    part = head(open_prepared(folder / "data").valid, TOKENS)
    total, tokens, _ = score(model.model, part, model.generation.first)
    return total / tokens
