"""The Python interface: `train`, `load`, and what they return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textwright.config import override
from textwright.errors import TrainingError
from textwright.fit import Audience, default_folder, fit
from textwright.writer import TextModel, load

__all__ = ["TextModel", "load", "train"]


def train(
    source: str | Path,
    *,
    model: str = "transformer",
    tokenizer: str = "auto",
    valid: str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    audience: Audience | None = None,
) -> TextModel:
    """Train a model on a text and open it. Called again with the same arguments, it goes on where it stopped.

    Args:
        source: a file, folder, glob, "builtin:python-docs" or "hf:NAME".
        model: "rnn", "gru", "lstm" or "transformer".
        tokenizer: "auto", "char", "byte", "word", "bpe", "spacy:LANG", "jieba", or a tokenizer.json.
        valid: a validation text of its own; otherwise part of the source is held back.
        minutes, steps, epochs: the budget, one of them; 3 minutes when none is given.
        out: the run's folder, runs/NAME-MODEL by default.
        settings: anything else, by dotted path: {"model.width": 128, "training.optimizer.learning_rate": 3e-4}.
        audience: is told what happens; silent by default.

    Raises:
        TextwrightError: of some kind, for everything a user can mend.
    """
    request = asked(str(source), model, tokenizer, None if valid is None else str(valid), minutes, steps, epochs, seed)
    request = override(request, [f"{path}={json.dumps(value)}" for path, value in (settings or {}).items()])
    folder = Path(out) if out else default_folder(str(source), model)
    outcome = fit(request, folder, audience or Audience())
    if not outcome.complete:
        raise TrainingError(f"training was interrupted; the same call goes on from {folder}")
    return load(folder)


def asked(
    source: str,
    model: str,
    tokenizer: str,
    valid: str | None,
    minutes: float | None,
    steps: int | None,
    epochs: float | None,
    seed: int,
    assignments: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The parts of a configuration that a call or a command line states."""
    given = {
        name: value for name, value in (("minutes", minutes), ("steps", steps), ("epochs", epochs)) if value is not None
    }
    request: dict[str, Any] = {
        "source": {"path": source},
        "tokenizer": {"kind": tokenizer},
        "model": {"family": model},
        "training": {"seed": seed, **({"budget": given} if given else {})},
    }
    if valid is not None:
        request["valid"] = {"path": valid}
    return override(request, assignments)
