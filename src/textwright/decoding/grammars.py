"""Constraints that a grammar describes: JSON schemas, regular expressions and Lark grammars, through llguidance.

llguidance (Microsoft, MIT) says which tokens may come next, not how far it is to the end. Near the limit, therefore,
only tokens remain whose way to the end was found and checked by the library.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import llguidance
import torch
from llguidance import LLMatcher
from torch import Tensor

from textwright.decoding.constraints import FAR, Constraint
from textwright.errors import ConfigError

NEAR = 64  # tokens to spare, at which a text stops to wander
PLACES = 1024  # states whose matchers and masks are kept; others are made again from their tokens
NODES = 200  # texts that a search for a way to the end goes on from
BRANCHES = 64  # tokens it tries after each of them, unless that finds nothing
SEARCHES = 16  # tokens of one state that get a search of their own
REPEAT = 4  # tokens that a text which stands where another stood counts as longer, and for parts of rare characters
FORCED = 256  # bytes of forced text that are spelled at once: a grammar without an end forces it forever
CLOSERS = b'"}]) \n,:;.>0123456789-'  # bytes that rather end things than begin them

Way = tuple[int, ...]


class Guided(Constraint):
    """The texts that a grammar of llguidance generates.

    A state is a text, numbered when it first comes up: the library cannot tell that two texts are equally far. About
    300 bytes stay for each of them; matchers and masks, about 10 kilobytes for 4,000 tokens and three times as much
    near the limit, stay for the last `PLACES` states, so no more rows than that should share the object.

    Limits: with `NEAR` tokens or fewer to spare, the ways to the end are those a bounded search found, so a text may
    end a little earlier than need be. A single token that lengthens the shortest way by more than `NEAR` (a schema
    with a large optional part) may lead past the limit. Where the vocabulary lacks a character that the grammar asks
    for, a text may come to a dead end, far from its limit.

    Args:
        grammar: in the library's dialect of Lark, with a rule `start`.
        pieces: the bytes of every token id; of those without bytes only `end` is ever allowed.
        end: the id that ends a text.
        what: what it is, for errors.
        spelled: strings that the grammar spells out, which the search tries as a whole.

    Raises:
        ConfigError: the grammar does not compile, or no text of these pieces was found that it generates.
    """

    def __init__(self, grammar: str, pieces: Sequence[bytes], end: int, what: str, spelled: Sequence[str] = ()) -> None:
        self._pieces = [b"" if token == end else piece for token, piece in enumerate(pieces)]
        self._end, self._vocab = end, _Vocabulary(self._pieces, spelled)
        # Where only one thing can follow, the library would else allow the one token it would write it with itself.
        free = LLMatcher.grammar_from_lark(grammar + '\n%llguidance {"no_forcing": true}\n')
        self._root = LLMatcher(self._vocab.tokenizer, free, log_level=0)
        if self._root.is_error():
            raise ConfigError(f"{what}: {_reason(self._root)}")
        self._texts: list[tuple[int, int]] = [(-1, -1)]  # of every state the one before, and the token between
        self._moves: dict[tuple[int, int], int] = {}
        self._places: OrderedDict[int, _Place] = OrderedDict()
        way = self._at(self.start).way
        if way is None:
            lacking = self._at(self.start).matcher
            reason = f" ({_reason(lacking)})" if lacking.is_error() and "too" in _reason(lacking) else ""
            raise ConfigError(f"{what}: no complete text of this model's vocabulary was found{reason}; ask for another")
        self.least = len(way)

    def within(self, state: int, budget: int) -> Tensor:
        place = self._at(state)
        mask = place.following.clone()
        if budget <= self.least + NEAR:
            near = place.routes.lengths < budget
            mask = near if place.complete or bool(near.any()) else mask
        mask[self._end] = place.complete
        return mask

    def move(self, state: int, token: int) -> int:
        place = self._at(state)
        if token == self._end and place.complete:
            return state
        if (state, token) not in self._moves:
            if not 0 <= token < len(self._pieces) or place.matcher.validate_tokens([token]) != 1:
                raise ValueError(f"token {token} is not allowed in state {state}")
            self._moves[state, token] = len(self._texts)
            self._texts.append((state, token))
        after = self._moves[state, token]
        if "routes" in vars(place) and token in place.routes.ways:
            vars(self._at(after)).setdefault("way", place.routes.ways[token])  # known already: no search
        return after

    def complete(self, state: int) -> bool:
        return self._at(state).complete

    def _at(self, state: int) -> _Place:
        if state in self._places:
            self._places.move_to_end(state)
            return self._places[state]
        here, tokens = state, []
        while here and here not in self._places:
            here, token = self._texts[here]
            tokens.append(token)
        matcher = (self._places[here].matcher if here in self._places else self._root).deep_copy()
        matcher.consume_tokens(tokens[::-1])
        self._places[state] = _Place(matcher, self._vocab)
        if len(self._places) > PLACES:
            self._places.popitem(last=False)
        return self._places[state]


class Regex(Guided):
    r"""The whole text matches a regular expression of the Rust crate `regex`, without look-around and references.

    `.` is any character but a line end, `\d` and `\w` are those of Unicode.
    """

    def __init__(self, expression: str, pieces: Sequence[bytes], end: int) -> None:
        grammar = f"start: /{llguidance.regex_to_lark(expression, '')}/"
        super().__init__(grammar, pieces, end, "regular expression", spelled_out(expression))


class JsonSchema(Guided):
    """The text is a JSON document of a schema, spaced as `json.dumps` does; keywords that are not known are refused.

    Other white space is left out because a model may write it forever.
    """

    def __init__(self, schema: Mapping[str, Any], pieces: Sequence[bytes], end: int) -> None:
        if not isinstance(schema, Mapping):
            raise ConfigError(f"JSON schema: expected an object such as {{'type': 'object'}}, got {schema!r}"[:300])
        spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        spaced = json.dumps({**schema, "x-guidance": spacing})
        super().__init__(f"start: %json {spaced}", pieces, end, "JSON schema", spelled_out(" ".join(_patterns(schema))))


class Lark(Guided):
    """The text is generated by the rule `start` of a grammar in llguidance's dialect of Lark."""

    def __init__(self, grammar: str, pieces: Sequence[bytes], end: int) -> None:
        super().__init__(grammar, pieces, end, "grammar", re.findall(r'"([^"\\n]+)"', grammar))


class _Vocabulary:
    """The pieces in the form llguidance wants, with an end token of its own behind them."""

    def __init__(self, pieces: Sequence[bytes], spelled: Sequence[str]) -> None:
        self.pieces, self.end = pieces, len(pieces)
        # The attributes that `llguidance.TokenizerWrapper` reads. What has no bytes needs a name all the same.
        self.eos_token_id, self.bos_token_id = self.end, None
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece] + [self.end]
        self.tokens = [piece or f"<{token}>".encode() for token, piece in enumerate(pieces)] + [b"<end>"]
        self.twins: dict[bytes, list[int]] = {}  # all ids with these bytes
        for token, piece in enumerate(pieces):
            if piece:
                self.twins.setdefault(piece, []).append(token)
        self.ids = {piece: tokens[0] for piece, tokens in self.twins.items()}
        self.longest = max(map(len, self.ids), default=0)
        # In the order a search tries them: short ones, but first what only closes; of ids with equal bytes one.
        order = sorted(self.ids.values(), key=lambda token: _openness(pieces[token]))
        self.order = torch.tensor(order, dtype=torch.long)
        self.hints = [way for text in spelled if (way := self.spell(text.encode())[0])]
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), n_vocab=self.end + 1)

    def __call__(self, text: bytes) -> list[int]:
        """The library wants it for writing forced text itself, which `no_forcing` rules out."""
        return []

    def spell(self, text: bytes) -> list[Way | None]:
        """For each place of a text, the fewest tokens that spell it from there to its end; None: there are none."""
        ways: list[Way | None] = [None] * len(text) + [()]
        for at in range(len(text) - 1, -1, -1):
            for stop in range(at + 1, min(at + self.longest, len(text)) + 1):
                token, rest, best = self.ids.get(text[at:stop]), ways[stop], ways[at]
                if token is not None and rest is not None and (best is None or len(rest) + 1 < len(best)):
                    ways[at] = (token, *rest)
        return ways


@dataclass
class _Routes:
    """For the tokens of one state after which a way is known: that way, and the tokens to the end with it."""

    ways: dict[int, Way]
    lengths: Tensor  # (vocab,) tokens after this one; FAR: not known


class _Place:
    """A text that was written so far: the library's matcher, and what was found out about it."""

    def __init__(self, matcher: LLMatcher, vocab: _Vocabulary) -> None:
        self.matcher, self.vocab = matcher, vocab
        # Asked before the mask: at a dead end computing that leaves an error, and a mask with the end in it.
        self.complete = bool(matcher.is_accepting())

    @cached_property
    def following(self) -> Tensor:
        """(vocab,) bool: tokens that may come next, without the end."""
        return _following(self.matcher)

    @cached_property
    def way(self) -> Way | None:
        """A short way to a complete text, () if it is one; None: none was found."""
        return () if self.complete else _way(self.matcher, self.vocab)

    @cached_property
    def routes(self) -> _Routes:
        """Ways after each token: the end of a way that is known here, where it can follow the token, else what a
        search finds. The library has checked each."""
        ways: dict[int, Way] = {}
        endings: list[tuple[bytes, list[Way | None]]] = []
        searches = SEARCHES if self.way is not None else 0
        if self.way is not None:
            endings.append(self._ending(self.way))
        for token in self.vocab.order[self.following[self.vocab.order]].tolist() if searches else ():
            way = next((rest for ending in endings if (rest := self._rest(token, *ending)) is not None), None)
            if way is None and searches:
                searches -= 1
                after = self.matcher.deep_copy()
                after.consume_token(token)
                way = () if after.is_accepting() else _search(after, self.vocab, BRANCHES, NODES)
                if way is not None:
                    endings.append(self._ending(way))
            if way is not None:
                ways |= dict.fromkeys(self.vocab.twins[self.vocab.pieces[token]], way)
        lengths = torch.full((len(self.vocab.pieces),), FAR)
        if ways:
            lengths[list(ways)] = torch.tensor([len(way) for way in ways.values()])
        return _Routes(ways, lengths)

    def _ending(self, way: Way) -> tuple[bytes, list[Way | None]]:
        text = b"".join(self.vocab.pieces[token] for token in way)
        return text, self.vocab.spell(text)

    def _rest(self, token: int, text: bytes, rests: Sequence[Way | None]) -> Way | None:
        """The end of the text that can be written after the token: the shorter, the more of it the token holds."""
        piece = self.vocab.pieces[token]
        for held in range(min(len(piece), len(text)), -1, -1):
            rest = rests[held]
            if rest is None or not piece.endswith(text[:held]):
                continue
            if self.matcher.validate_tokens([token, *rest, self.vocab.end]) == len(rest) + 2:
                return rest
        return None


def _following(matcher: LLMatcher) -> Tensor:
    allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
    return allowed[:-1] > 0


def _way(matcher: LLMatcher, vocab: _Vocabulary) -> Way | None:
    """Few tokens after which the text is complete; a second search tries every token. None: they found none."""
    return _search(matcher, vocab, BRANCHES, NODES) or _search(matcher, vocab, len(vocab.order), 10 * NODES)


def _search(begun: LLMatcher, vocab: _Vocabulary, branches: int, nodes: int) -> Way | None:
    """Best first: short texts, and rather such where other tokens may come next than after any text before, because a
    text that stands where another stood gets nowhere."""
    seen: dict[bytes, int] = {}
    open_: list[tuple[int, int, Way, LLMatcher]] = [(0, 0, (), begun)]
    pushed = 0
    for _ in range(nodes):
        if not open_:
            return None
        _, _, way, matcher = heapq.heappop(open_)
        for more in _steps(matcher, vocab, branches):
            if matcher.validate_tokens([*more, vocab.end]) == len(more) + 1:
                return way + more
            after = matcher.deep_copy()
            after.consume_tokens(list(more))
            where = after.compute_logit_bias()
            if any(where[:-1]) and not after.is_error():
                seen[where] = seen.get(where, -1) + 1
                pushed += 1
                detour = REPEAT * (seen[where] + sum(not vocab.pieces[token].isascii() for token in way + more))
                heapq.heappush(open_, (len(way + more) + detour, pushed, way + more, after))
    return None


def _steps(matcher: LLMatcher, vocab: _Vocabulary, branches: int) -> Iterator[Way]:
    """What to try next: what is forced, or else one token for each difference that tokens make."""
    forced = vocab.spell(matcher.compute_ff_bytes()[:FORCED])[0]
    if forced:  # a token may also reach beyond what is forced
        return iter((forced,))
    if matcher.is_error():
        return iter(())
    allowed = vocab.order[_following(matcher)[vocab.order]]
    # A dead end and a complete text have equal masks.
    kinds: dict[tuple[bool, bytes], Way] = {}
    for token in allowed[:branches].tolist():
        after = matcher.deep_copy()
        after.consume_token(token)
        kinds.setdefault((after.is_accepting(), after.compute_logit_bias()), (token,))
    hints = (way for way in vocab.hints if matcher.validate_tokens(list(way)) == len(way))
    return itertools.chain(hints, kinds.values())


def spelled_out(expression: str) -> list[str]:
    """The runs of ordinary characters in a regular expression: "a(b|cd)[ef] g\\." has "a", "b", "cd" and " g."."""
    bare = re.sub(
        r"\\[a-zA-Z](\{[^}]*\})?|\[\^?\]?(\\.|[^\]\\])*\]|\{[^}]*\}|\(\?(?:[a-zA-Z]*:|P?<[^>]*>)", "\0", expression
    )
    marked = re.sub(r"\\(.)|([.^$*+?()|])", lambda found: found[1] or "\0", bare)
    return sorted({run for run in marked.split("\0") if run}, key=lambda run: (-len(run), run))


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a JSON schema."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _patterns(part)


def _openness(piece: bytes) -> tuple[bool, int, bytes]:
    """The smaller, the sooner a text is over that goes on so."""
    return (not all(byte in CLOSERS for byte in piece), len(piece), piece)


def _reason(matcher: LLMatcher) -> str:
    """The library's error in one line, without the state and the grammar it appends."""
    lines = matcher.get_error().partition("\n<state>")[0].splitlines()
    return " ".join(" ".join(lines).split())[:300]
