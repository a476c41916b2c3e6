"""What stands beside a figure, so that another person can compute the same: references, rules, version."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version


def reference_count(references: Sequence[Sequence[str]]) -> int | None:
    """References an item has; None where that varies."""
    counts = {len(several) for several in references}
    return counts.pop() if len(counts) == 1 else None


def describe(references: Sequence[Sequence[str]], how: str) -> str:
    """A signature in the manner of sacrebleu's, for the metrics that are computed here."""
    return signed(f"nrefs:{reference_count(references) or 'var'}|{how}")


def signed(how: str) -> str:
    """With the version of this package, for its definitions may change."""
    return f"{how}|version:textwright-{version('textwright')}"
