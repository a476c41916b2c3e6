"""A conversation as the text that a model was trained to see: chat templates, which come with a model as Jinja.

A template is somebody else's program: it runs in a sandbox. What people say is never read as a control token: a message
in which one is spelled out is encoded apart from the template around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from textwright.errors import ConfigError, DataError
from textwright.text.tokenizers import Tokenizer

MARK = "\ue000{}\ue001"  # stands for the content of a message; private characters, so that no template changes it
MARKED = re.compile("\ue000(\\d+)\ue001")
Message = Mapping[str, str]  # "role" and "content"


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, which marks what a model says, is what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """How a conversation is spelled.

    Args:
        source: Jinja.
        named: control tokens that the template knows by name, as in bos_token.

    Raises:
        DataError: it is no Jinja.
    """

    def __init__(self, source: str, named: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": datetime.now().strftime}
        environment.globals |= {"tools": None, "documents": None}  # templates ask for them by "is not none"
        environment.filters["tojson"] = _json
        self.source, self.named = source, dict(named)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise DataError(f"the chat template cannot be read: {error}") from None

    def text(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """The conversation; with `reply` up to where the model's next words begin.

        Raises:
            DataError: the template refuses it, or fails.
        """
        given = {"messages": [dict(message) for message in messages], "add_generation_prompt": reply, **self.named}
        try:
            return self._template.render(**given)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses this conversation: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise DataError(f"the model's chat template fails: {type(error).__name__}: {error}") from None

    def ids(self, messages: Sequence[Message], tokenizer: Tokenizer, *, reply: bool = True) -> list[int]:
        """What the model reads: control tokens of the template as such, those spelled in messages as plain text."""
        shown, encoded = _safely(messages, tokenizer)
        return encoded(self.text(shown, reply=reply))

    def spans(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
        """The ids of a whole conversation in parts: what a model reads before each reply as it reads it there, and the
        reply with what ends it, which is marked.

        Raises:
            DataError: the template refuses the conversation, or spells what was said before a reply otherwise after it.
        """
        (shown, encoded), done = _safely(messages, tokenizer), ""
        texts: list[str] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            for text in self.text(shown[:number]), self.text(shown[: number + 1], reply=False):
                if not text.startswith(done):
                    raise DataError(
                        "the model's chat template changes earlier words after a reply: give single replies"
                    )
                texts.append(text)
                done = text
        return [(span, number % 2 == 1) for number, span in enumerate(consecutive(texts, encoded))]


def consecutive(texts: Sequence[str], encoded: Callable[[str], list[int]]) -> list[list[int]]:
    """The ids that each text adds to the one before, with which it begins.

    They are those of the last text, cut where the others end: some vocabularies put a space in front of whatever they
    encode, and what is added is no beginning. Where an id reaches across such an end, every part is encoded by itself.
    """
    parts = [encoded(text[len(before) :]) for before, text in pairwise(["", *texts])]
    whole = encoded(texts[-1])
    if whole == [id for part in parts for id in part]:
        return parts
    cuts = [0]
    for text in texts:
        ids = encoded(text)
        if whole[: len(ids)] != ids:
            return parts
        cuts.append(len(ids))
    return [whole[start:stop] for start, stop in pairwise(cuts)]


def _safely(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[Sequence[Message], Callable[[str], list[int]]]:
    """The messages as a template may see them, and how its text becomes ids: where one spells a control token, what was
    said is a mark there."""
    said = [message["content"] for message in messages]
    if not any(control in content for control in tokenizer.controls for content in said):
        return messages, tokenizer.encode_marked

    def encoded(text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(MARKED.split(text)):  # template, number, template, number, template
            ids += tokenizer.encode(said[int(part)]) if place % 2 else tokenizer.encode_marked(part)
        return ids

    return [{**message, "content": MARK.format(n)} for n, message in enumerate(messages)], encoded


def turns_of(turns: Sequence[str], system: str | None = None) -> list[dict[str, str]]:
    """Messages of a conversation that a person began.

    Raises:
        ConfigError: there is none, or the last word is not the person's.
    """
    if len(turns) % 2 == 0:
        raise ConfigError(f"a reply follows what a person said: expected an odd number of turns, got {len(turns)}")
    begin = [{"role": "system", "content": system}] if system is not None else []
    roles = ("user", "assistant")
    return begin + [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
