"""Texts that must be something: every one of them is, on any vocabulary, by any strategy, in any budget that fits."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.decoding import Request, Sampling
from textwright.decoding.constraints import Choices, Constraint, Words
from textwright.decoding.grammars import JsonSchema, Lark, Regex
from textwright.decoding.strategies import decode, decoding
from textwright.errors import ConfigError
from textwright.models import GRUConfig, LSTMConfig, TransformerConfig

CHARACTERS = [b"", *(bytes([byte]) for byte in range(32, 127)), "é".encode(), "猫".encode()]
MERGED = [  # every byte, and tokens of several, some of which end inside a character
    *(b"", *(bytes([byte]) for byte in range(256)), "é".encode(), "猫".encode()),
    *(b"th", b"the ", b" fox", b'": ', b'", "', b"ab", b"bab", b"00", b"ox on", b"e.", b"es", b"\xe7\x8c"),
]
END = 0
VOCABULARIES = {"characters": CHARACTERS, "merged": MERGED}

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
EXPRESSIONS = [
    r"\d{3}-\d{4}",
    r"(Ein|Der) [A-Za-z ]+ Bett\.",
    r"[A-Z][a-z]+( [A-Z][a-z]+)* was born in (19|20)\d\d\.",
    r"[^x]{5,9}!",
    r"(a|bb)*c",
    r"[猫é]+",
]
LARK = 'start: "(" (start | WORD) ")"\nWORD: /[a-z]+/'


def is_of_the_schema(text: str) -> bool:
    value = json.loads(text)
    tags = value.get("tags", [])
    return (
        isinstance(value["name"], str)
        and type(value["age"]) is int
        and value["age"] >= 0
        and isinstance(value["ok"], bool)
        and set(value) <= {"name", "age", "ok", "tags"}
        and len(tags) <= 3
        and set(tags) <= {"red", "green"}
    )


def in_order(text: str) -> bool:
    return re.search("fox.*ox on", text) is not None


CASES: dict[str, tuple[Any, Any]] = {
    "choices": (
        lambda p: Choices(["yes", "no", "maybe 猫", "yesterday"], p, END),
        {"yes", "no", "maybe 猫", "yesterday"},
    ),
    "words": (lambda p: Words(["fox", "ox on", "é"], p, END), lambda t: all(w in t for w in ("fox", "ox on", "é"))),
    "in order": (lambda p: Words(["fox", "ox on"], p, END, ordered=True), in_order),
    "json": (lambda p: JsonSchema(SCHEMA, p, END), is_of_the_schema),
    "lark": (
        lambda p: Lark(LARK, p, END),
        lambda t: re.fullmatch(r"(\(+)[a-z]+(\)+)", t) and t.count("(") == t.count(")"),
    ),
    **{
        expression: (
            lambda p, e=expression: Regex(e, p, END),
            lambda t, e=expression: re.fullmatch(e, t) is not None,
        )
        for expression in EXPRESSIONS
    },
}


def walk(constraint: Constraint, pieces: Sequence[bytes], budget: int, seed: int) -> str:
    """A random text: any allowed token, again and again, until the end or the limit."""
    chance, state, text = random.Random(seed), constraint.start, b""
    for left in range(budget, 0, -1):
        allowed = constraint.within(state, left).nonzero().flatten().tolist()
        assert allowed, f"nothing is allowed after {text!r}"
        token = chance.choice(allowed)
        if token == END:
            assert constraint.complete(state)
            break
        state, text = constraint.move(state, token), text + pieces[token]
    assert constraint.complete(state), text
    return text.decode("utf-8", "replace")  # around words, anything may stand


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("name", CASES)
def test_every_text_is_what_was_asked_for(name: str, vocabulary: str) -> None:
    make, right = CASES[name]
    pieces = VOCABULARIES[vocabulary]
    constraint = make(pieces)
    for seed in range(12):
        budget = constraint.least + (0, 1, 7, 60)[seed % 4]
        text = walk(constraint, pieces, budget, seed)
        assert text in right if isinstance(right, set) else right(text), text


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.text("ab", min_size=1, max_size=3).map(str.encode), min_size=1, max_size=5, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_choices_allow_exactly_what_can_become_one(strings: list[str], tokens: list[bytes]) -> None:
    """Against all sequences of tokens that spell a string."""
    pieces = [b"", *tokens]
    ways = {
        way
        for string in strings
        for length in range(1, len(string) + 1)
        for way in itertools.product(range(1, len(pieces)), repeat=length)
        if b"".join(pieces[token] for token in way) == string.encode()
    }
    if not ways:
        with pytest.raises(ConfigError, match="no text of this model's vocabulary fits"):
            Choices(strings, pieces, END)
        return
    constraint = Choices(strings, pieces, END)
    assert constraint.least == min(map(len, ways))
    for way in ways:
        for cut in range(len(way) + 1):
            state = constraint.start
            for token in way[:cut]:
                state = constraint.move(state, token)
            for left in range(1, 6):
                follow = {other[cut] for other in ways if other[:cut] == way[:cut] and cut < len(other) <= cut + left}
                # Another way to spell what stands here leads to the same state.
                spelled = b"".join(pieces[token] for token in way[:cut])
                follow |= {
                    other[n]
                    for other in ways
                    for n in range(len(other))
                    if b"".join(pieces[token] for token in other[:n]) == spelled and len(other) - n <= left
                }
                allowed = set(constraint.within(state, left).nonzero().flatten().tolist())
                assert allowed - {END} == follow
                assert (END in allowed) == (spelled.decode() in strings)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3, unique=True), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_shortest_text_with_words_is_the_shortest(words: list[str], ordered: bool) -> None:
    pieces = [b"", b"a", b"b", b"ab"]
    constraint = Words(words, pieces, END, ordered=ordered)

    def right(text: str) -> bool:
        if not ordered:
            return all(word in text for word in words)
        return re.search(".*".join(map(re.escape, words)), text) is not None

    shortest = next(
        length
        for length in range(1, 12)
        if any(
            right(b"".join(pieces[token] for token in way).decode())
            for way in itertools.product((1, 2, 3), repeat=length)
        )
    )
    assert constraint.least == shortest


def test_words_that_overlap_share_their_letters_unless_ordered() -> None:
    assert Words(["aba", "bab"], [b"", b"a", b"b"], END).least == 4
    assert Words(["aba", "bab"], [b"", b"a", b"b"], END, ordered=True).least == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Regex("(", p, END), "regular expression: .*unclosed"),
        (lambda p: Regex("[字]", p, END), "no complete text of this model's vocabulary"),
        (lambda p: Lark('start: "a" start', p, END), "no complete text of this model's vocabulary"),
        (lambda p: JsonSchema({"type": "text"}, p, END), "JSON schema: Invalid type"),
        (lambda p: Lark("start: foo", p, END), "grammar: .*unknown name"),
        (lambda p: Choices(["字"], p, END), "choices: no text of this model's vocabulary"),
        (lambda p: Choices([], p, END), "at least one string"),
        (lambda p: Words([f"word {n} is long" for n in range(12)], p, END), "too many or too long"),
    ],
)
def test_what_no_text_can_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(CHARACTERS)


def test_forced_bytes_leave_every_way_to_spell_them() -> None:
    """Where one text alone can follow, any token that it begins with may; also without single bytes for a character."""
    assert Regex("ab", [b"", b"a", b"b", b"ab", b"a"], END).within(0, 9).tolist() == [False, True, False, True, True]
    assert walk(Regex("né日n", [*CHARACTERS, "日".encode()], END), [*CHARACTERS, "日".encode()], 4, 0) == "né日n"


def test_tokens_may_reach_beyond_what_is_forced() -> None:
    """A vocabulary of words with their spaces: no token is the space that must come first."""
    pieces = [b"", b" one", b" two", b" hundred"]
    assert Regex(" (one|two) hundred", pieces, END).within(0, 2).tolist() == [False, True, True, False]


def test_an_optional_part_that_does_not_fit_is_left_out() -> None:
    inner = {name: {"type": "string"} for name in ("a", "b", "c", "d", "e")}
    wide = {"type": "object", "properties": inner, "required": [*inner]}
    schema = {"type": "object", "properties": {"x": {"type": "integer"}, "wide": wide}, "required": ["x"]}
    constraint = JsonSchema(schema, CHARACTERS, END)
    for seed in range(4):
        assert "x" in json.loads(walk(constraint, CHARACTERS, 45, seed))


SHAPES: dict[str, Any] = {
    "lstm": LSTMConfig(vocab=len(CHARACTERS), width=16, layers=1),
    "transformer": TransformerConfig(vocab=len(MERGED), width=16, layers=1, heads=2, window=128),
}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("greedy", {}),
    ("sample", {}),
    ("sample", {"lookup": True, "top_k": 5}),
    ("beam", {"beams": 3}),
    ("beam", {"beams": 4, "groups": 2, "diversity": 1.0}),
    ("contrastive", {}),
]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", ["choices", "words", "json", EXPRESSIONS[1]])
def test_models_of_any_kind_obey(family: str, name: str) -> None:
    """A character LSTM and a Transformer with merged tokens, by every strategy; constrained rows beside free ones."""
    torch.manual_seed(2)
    model = SHAPES[family].build().eval()
    pieces = CHARACTERS if family == "lstm" else MERGED
    make, right = CASES[name]
    constraint = make(pieces)
    budget = constraint.least + 20
    for strategy, asked in ASKED:
        how = decoding(strategy, asked, {})
        requests = [
            Request((5, row), how.sampling, row, budget, constraint=constraint if row else None) for row in range(3)
        ]
        free, *bound = decode(model, requests, END, how)
        assert free
        for results in bound:
            for result in results:
                text = b"".join(pieces[token] for token in result.tokens).decode("utf-8", "replace")
                assert text in right if isinstance(right, set) else right(text), (strategy, text)


def test_a_budget_that_is_too_small_is_refused() -> None:
    model = GRUConfig(vocab=len(CHARACTERS), width=8, layers=1).build().eval()
    request = Request((5,), Sampling(), max_new_tokens=3, constraint=Choices(["maybe"], CHARACTERS, END))
    with pytest.raises(ConfigError, match="has 5 tokens, 3 are allowed: --max-new-tokens 6"):
        decode(model, [request], END, decoding("sample", {}, {}))
