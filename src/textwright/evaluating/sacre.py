"""The door to sacrebleu (Post 2018), an extra package that is imported when a metric of it is made."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from textwright.errors import MissingExtraError
from textwright.evaluating.signatures import reference_count


def sacrebleu(purpose: str) -> Any:
    """The module `sacrebleu.metrics`.

    Raises:
        MissingExtraError: it is not installed; `purpose` says what for.
    """
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ImportError:
        raise MissingExtraError(purpose, "translate") from None


def signature_of(scorer: Any, references: Sequence[Sequence[str]]) -> Any:
    """sacrebleu's full signature of a scorer of its own, for these references."""
    scorer.num_refs = reference_count(references) or -1  # how it writes a number that varies
    return scorer.get_signature()
