"""Errors a person can act on.

Every message says what was expected, what came, and what to type instead. The command line prints the message of
a `TextwrightError` and exits with a code other than 0; any other exception is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TextwrightError(Exception):
    """Anything the user can mend; the message is complete without a traceback."""


class ConfigError(TextwrightError, ValueError):
    """An option, a key or a value that cannot be used."""


class DataError(TextwrightError, ValueError):
    """A text, a file or a corpus that cannot be used."""


class CheckpointError(TextwrightError):
    """A saved run that is missing, damaged, hostile or from a newer version."""


class TrainingError(TextwrightError):
    """Training cannot go on; the last good state is on disk."""


class StateSpentError(TextwrightError, RuntimeError):
    """A generation state was fed to a model twice."""


class MissingExtraError(TextwrightError, ImportError):
    """An optional package is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f'{purpose} needs an extra package: pip install "textwright[{extra}]"')


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'width'?`, or the list of what is known when nothing is close."""
    known = sorted(known)
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    if close:
        return " Did you mean " + " or ".join(repr(name) for name in close) + "?"
    return " Known: " + ", ".join(known) + "."
