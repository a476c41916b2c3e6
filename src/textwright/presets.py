"""Named ways of writing: a strategy with options that go together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from textwright.errors import ConfigError, nearest
from textwright.text.tokenizers import Tokenizer

# Repeated tokens that DRY lets pass, by the kind of tokenizer: in what people write, at most about one token in a
# hundred goes on with so long a repetition of the last thousand tokens (tinyshakespeare and WikiText-2).
DRY_ALLOWED = {"char": 16, "byte": 20, "word": 5}
DRY_ALLOWED_PIECES = 6


class Preset(NamedTuple):
    """A strategy, its options, and whether a passage must not be repeated."""

    strategy: str
    options: Mapping[str, Any]
    dry: bool = True


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "creative": Preset("sample", {"temperature": 1.0, "min_p": 0.05}),
        "precise": Preset("sample", {"temperature": 0.5, "top_p": 0.9}),
        "chat": Preset("sample", {"temperature": 0.7, "top_p": 0.9}),
        "translate": Preset("beam", {"beams": 5, "length_penalty": 1.0, "stopping": "soon"}, dry=False),
    }
)


def preset(name: str, tokenizer: Tokenizer) -> tuple[str, dict[str, Any]]:
    """The strategy and the options of a preset, for texts of this tokenizer.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}.{nearest(name, PRESETS)} There are: {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    dry = {"dry_multiplier": 0.8, "dry_allowed": dry_allowed(tokenizer)} if chosen.dry else {}
    return chosen.strategy, {**chosen.options, **dry}


def dry_allowed(tokenizer: Tokenizer) -> int:
    """How long a repetition may be in texts of this tokenizer."""
    return DRY_ALLOWED.get(tokenizer.kind, DRY_ALLOWED_PIECES)
