"""What is asked of a text, in words: strings become what the decoder understands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import Field

from textwright.config import Config
from textwright.decoding import Steering, StopStrings
from textwright.decoding.constraints import Choices, Constraint, Words
from textwright.decoding.strategies import Decoding
from textwright.errors import ConfigError, MissingExtraError
from textwright.text.tokenizers import Tokenizer

Strings = str | tuple[str, ...] | None


class Wishes(Config):
    """The types of what is asked for besides the fields of `Sampling` and of the searches."""

    seed: int | None = None
    n: int = 1
    n_best: int = 1
    order: str | tuple[str, ...] = ""
    top_logprobs: int = 0
    max_seconds: float | None = None
    samples: int = 2
    alternatives: int = 2
    lookup: bool = False
    draft_length: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    stop: Strings = ()
    stop_ids: tuple[int, ...] = ()
    avoid: Strings = ()
    breakers: Strings = None
    exempt: Strings = ()
    bias: dict[str, float] = Field(default_factory=dict)
    prefix: str = ""
    prefix_share: float | None = None
    choices: Strings = ()
    words: Strings = ()
    words_in_order: Strings = ()
    regex: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None


def check_types(options: Mapping[str, Any], origin: str) -> None:
    """Raise ConfigError for an option of a wrong type; what is not known here is checked elsewhere."""
    Wishes.parse({name: value for name, value in options.items() if name in Wishes.model_fields}, origin)


SEVERAL = frozenset({"stop", "avoid", "breakers", "exempt", "choices", "words", "words_in_order"})  # lists of strings
BREAKERS = ("\n",)  # a new line may begin as earlier ones did


def check_reply(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for what a conversation cannot use."""
    several = [name for name, one in (("alternatives", 0), ("n", 1), ("n_best", 1)) if options.get(name, one) != one]
    if several:
        raise ConfigError(f"a conversation goes on with one reply: leave out {several[0]}")


def stop_strings(
    tokenizer: Tokenizer, strings: Sequence[str], name: str, never: Set[int], ids: Sequence[int] = ()
) -> StopStrings | None:
    """Strings to watch for in what is written, and tokens; None where there are none.

    Args:
        name: of the option, for errors.
        never: ids that are never written.

    Raises:
        ConfigError: one is empty, or cannot be written with this vocabulary.
    """
    for id in ids:
        if id in never or not 0 <= id < len(tokenizer.pieces):
            raise ConfigError(f"{name}: this model never writes the token {id}")
    if not strings and not ids:
        return None
    if not all(strings):
        raise ConfigError(f"an empty {name} string: expected at least one character")
    for string in strings:
        if not _possible(StopStrings([_bare(tokenizer, string)], tokenizer.pieces), never):
            raise ConfigError(f"{name} {string!r} cannot occur: this model never writes all of its characters")
    return StopStrings([_bare(tokenizer, string) for string in strings], tokenizer.pieces, ids)


def _bare(tokenizer: Tokenizer, string: str) -> bytes:
    # Every word of the word tokenizer brings its space, also at the beginning of a line, where it is not shown.
    return (re.sub(r"\n(?=\S)", "\n ", string) if tokenizer.kind == "word" else string).encode()


def _possible(stop: StopStrings, never: Set[int]) -> bool:
    """Some text of allowed tokens holds the string."""
    reached, new = {0}, [0]
    allowed = [token for token in range(stop.table.shape[1]) if token not in never]
    while new and stop.accept not in reached:
        after = set(stop.table[new][:, allowed].flatten().tolist()) - reached
        reached |= after
        new = sorted(after)
    return stop.accept in reached


def steering(
    tokenizer: Tokenizer,
    never: Set[int],
    *,
    bias: Mapping[str, float],
    breakers: Sequence[str] | None,
    exempt: Sequence[str],
    prefix: Sequence[int] = (),
    prefix_share: float | None = None,
) -> Steering:
    """What is asked about single tokens.

    Args:
        never: ids that are never written.
        bias: text -> what is added to the logit of its last token where its other tokens stand, with a space in front
            or without.
        breakers: tokens that hold one of these strings let no repetition pass (`dry_multiplier`); None: line ends.
        exempt: tokens that are one of these strings may repeat (`no_repeat_ngram`).
        prefix: ids the text begins with; with `prefix_share`, only more likely so.

    Raises:
        ConfigError: a text is empty or never written, or a share without a prefix or out of range.
    """
    sequences: dict[tuple[int, ...], float] = {}
    for text, value in bias.items():
        if not text.strip():
            raise ConfigError("a bias needs a text: --bias 'word=2.5'")
        if not value < math.inf:
            raise ConfigError(f"a bias is a number, or -inf, got {value} for {text!r}")
        spellings = [tuple(tokenizer.encode(spelled)) for spelled in (text, " " + text)]
        # What stands before the last token may come from a prompt; the last one is to be written.
        spellings = [ids for ids in spellings if ids and ids[-1] not in {*never, tokenizer.unknown}]
        if not spellings:
            raise ConfigError(f"bias {text!r} would do nothing: this model never writes it so")
        # Where the space is a token of its own, what stands behind it would count twice.
        if len(spellings) == 2 and spellings[1][-len(spellings[0]) :] == spellings[0]:
            del spellings[1]
        sequences |= dict.fromkeys(spellings, float(value))
    if prefix_share is not None and not (prefix and 0 < prefix_share < 1):
        raise ConfigError(f"prefix_share {prefix_share} needs a prefix, and lies between 0 and 1")
    soft = prefix_share is not None
    return Steering(
        sequences=tuple(sequences.items()),
        forced=() if soft else tuple(enumerate(prefix)),
        breakers=_holding(tokenizer, BREAKERS if breakers is None else breakers),
        exempt=tuple(i for i, piece in enumerate(tokenizer.pieces) if piece.strip() in {t.encode() for t in exempt}),
        prefix=tuple(prefix) if soft else (),
        prefix_share=prefix_share or 0.0,
    )


def _holding(tokenizer: Tokenizer, strings: Sequence[str]) -> tuple[int, ...]:
    wanted = [string.encode() for string in strings if string]
    return tuple(i for i, piece in enumerate(tokenizer.pieces) if any(string in piece for string in wanted))


def constraint(
    tokenizer: Tokenizer,
    end: int | None,
    never: Set[int],
    *,
    whole: bool = False,
    choices: Sequence[str],
    words: Sequence[str],
    words_in_order: Sequence[str],
    regex: str | None,
    json_schema: Mapping[str, Any] | None,
    grammar: str | None,
) -> Constraint | None:
    """What the text must be; None: anything.

    Args:
        whole: it begins with nothing before it, so that a space some tokenizers begin texts with is not shown.
        choices: exactly one of these strings.
        words, words_in_order: all of them somewhere in it, in any order or in this one.
        regex: it matches this expression from its beginning to its end.
        json_schema: a JSON document of this schema.
        grammar: the rule `start` of a Lark grammar.

    Raises:
        ConfigError: two of them, one that no text of this vocabulary meets, or a model whose texts have no end.
        MissingExtraError: llguidance is not installed, and one of the last three needs it.
    """
    asked: dict[str, Any] = {"choices": choices, "words": words, "words_in_order": words_in_order}
    asked |= {"regex": regex, "json_schema": json_schema, "grammar": grammar}
    given = [name for name, value in asked.items() if (value if name in SEVERAL else value is not None)]
    if not given:
        return None
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each say what the whole text is: leave out all but one")
    if end is None:
        raise ConfigError(f"{given[0]} needs a model whose texts have an end, and this one's have none")
    pieces = [b"" if token in never else piece for token, piece in enumerate(tokenizer.pieces)]
    firsts = ["", " "] if whole and tokenizer.drops_space else [""]
    if tokenizer.kind == "word":
        firsts = [" "]  # every word brings its space; a text is shown without the first
    if choices:
        return Choices([first + choice for first in firsts for choice in choices], pieces, end)
    if words or words_in_order:
        return Words(words or words_in_order, pieces, end, ordered=bool(words_in_order))
    try:
        from textwright.decoding.grammars import JsonSchema, Lark, Regex
    except ModuleNotFoundError:
        raise MissingExtraError(given[0], "grammars") from None
    if json_schema is not None:  # an empty one asks for any document
        return JsonSchema(json_schema, pieces, end)
    return (
        Regex(f"({'|'.join(firsts)})({regex})", pieces, end) if regex is not None else Lark(grammar or "", pieces, end)
    )


# what `constraint` is asked for, unless told otherwise
FREE: dict[str, Any] = {"choices": (), "words": (), "words_in_order": ()}
FREE |= {"regex": None, "json_schema": None, "grammar": None}


def steered(how: Decoding, words: dict[str, Any]) -> bool:
    """Somebody asked about single tokens, or for what has default breakers."""
    for name, needed in (("breakers", "dry_multiplier"), ("exempt", "no_repeat_ngram")):
        if words[name] and how.sampling.off(needed):
            raise ConfigError(f"{name} does nothing without {needed}: set that, too")
    return any(words.values()) or words.get("prefix_share") is not None or not how.sampling.off("dry_multiplier")


def taken(options: dict[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Take the named options out of `options`, with a default for each that is missing; of strings, one stands for a
    list of itself, and never for its letters."""
    found = {name: options.pop(name, default) for name, default in names.items()}
    return {name: _several(value, names[name]) if name in SEVERAL else value for name, value in found.items()}


def _several(value: str | Sequence[str] | None, default: Any) -> Any:
    """Strings, each of them UTF-8: half a surrogate pair, as arguments in other encodings have, becomes "?"."""
    if value is None:
        return default
    return tuple(text.encode("utf-8", "replace").decode() for text in ((value,) if isinstance(value, str) else value))
