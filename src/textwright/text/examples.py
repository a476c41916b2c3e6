"""Examples of what a model should say: prompts with answers, instructions, conversations; and which of their tokens
carry loss.

A row of .jsonl, .csv, .tsv or .parquet is one example:

    {"prompt": "…", "completion": "…"}                          also question/answer, input/output: see `columns`
    {"instruction": "…", "input": "…", "output": "…"}           input, and a system, if there is one
    {"messages": [{"role": "user", "content": "…"}, …]}         also conversations with from/value, or turns
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from textwright.errors import ConfigError, DataError
from textwright.text.columns import COUPLES, couple, read_rows, text
from textwright.text.conversations import ChatTemplate, Message, consecutive
from textwright.text.pair_source import files_of
from textwright.text.sources import TABLES, plain, suffix
from textwright.text.tokenizers import Tokenizer

PREFERENCES = ("chosen", "rejected")
ASKED = ("prompt", "question", "instruction")
BARE = ("prompt", "completion")  # without a template the one follows the other
CONVERSATIONS = ("messages", "conversations", "turns")  # columns that hold a list of what was said
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}  # as some data calls them
# For models without a template of their own; END is the token that ends a reply.
TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message.role + ':\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ 'END' }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


class Example(NamedTuple):
    """What was said, and where it stands, as in `train.jsonl:17`; `bare` if it is a text in two parts."""

    messages: tuple[Message, ...]
    where: str
    bare: bool = False


class Spelled(NamedTuple):
    """An example as ids, the end of the text included, and which of them carry loss."""

    ids: list[int]
    learned: list[bool]


class Speller(NamedTuple):
    """How examples become ids.

    Attributes:
        template: how a conversation is spelled; None: the prompt, then the completion.
        tokenizer: of the model.
        start: ids in front of a text without a template.
        end: the id with which a reply ends.
    """

    template: ChatTemplate | None
    tokenizer: Tokenizer
    start: tuple[int, ...]
    end: int

    def spell(self, example: Example) -> Spelled:
        """The ids of an example.

        Raises:
            DataError: the template refuses it, changes what was said before a reply, or does not end replies.
        """
        if self.template is None:
            if len(example.messages) != 2:
                raise DataError(
                    f"{example.where}: expected a prompt and a completion as in the first row, got "
                    f"{len(example.messages)} messages"
                )
            prompt, completion = (message["content"] for message in example.messages)
            read, answer = consecutive([prompt, prompt + completion], self.tokenizer.encode)
            before = [*self.start, *read]
            answer += [self.tokenizer.end] * (answer[-1:] != [self.tokenizer.end])
            return Spelled(before + answer, [False] * len(before) + [True] * len(answer))
        ids: list[int] = []
        learned: list[bool] = []
        try:
            spans = self.template.spans(example.messages, self.tokenizer)
        except DataError as error:
            raise DataError(f"{example.where}: {error}") from None
        for span, reply in spans:
            if reply and self.end not in span:
                raise DataError(
                    f"{example.where}: the chat template puts no {self.tokenizer.decode([self.end]) or self.end!r} "
                    "behind a reply: the model would never learn to stop"
                )
            said = span.index(self.end) + 1 if reply else 0
            ids += span
            learned += [True] * said + [False] * (len(span) - said)
        if ids[-1] != self.tokenizer.end:
            ids, learned = [*ids, self.tokenizer.end], [*learned, False]
        return Spelled(ids, learned)


def read_examples(source: str, fields: tuple[str, str] | None = None, encoding: str | None = None) -> Iterator[Example]:
    """The examples of a file, or of several.

    Raises:
        DataError: a file cannot be read, or a row is no example.
    """
    for path in files_of(source):
        for where, row in read_rows(path, fields, encoding):
            yield _example(row, where, fields)


def read_preferences(
    source: str, fields: tuple[str, str] | None = None, encoding: str | None = None
) -> Iterator[tuple[Example, Example]]:
    """The better and the worse example of every row of a file, or of several: a prompt (or a question, or an
    instruction) with `chosen` and `rejected`, or these two alone, as conversations.

    Args:
        fields: names of the columns of the better and the worse answer.

    Raises:
        DataError: a file cannot be read, or a row holds no two answers.
    """
    names = fields or PREFERENCES
    for path in files_of(source):
        for where, row in read_rows(path, None, encoding):
            if missing := [name for name in names if name not in row]:
                raise DataError(f"{where}: there is no field {missing[0]!r}; the fields are {', '.join(map(str, row))}")
            yield _answered(row, names[0], where), _answered(row, names[1], where)


def kind_of(source: str) -> Literal["text", "answers", "preferences"]:
    """What the first row of a table holds; a text in one column, or no table, is a text."""
    if source.startswith(("hf:", "builtin:")) or Path(source).is_dir():
        return "text"
    for path in [path for path in files_of(source) if suffix(path) in TABLES][:1]:
        for _, row in islice(read_rows(path, None, None), 1):
            if set(PREFERENCES) <= set(row):
                return "preferences"
            pairs = any(question in row and answer in row for question, answer in COUPLES)
            return "answers" if pairs or any(name in row for name in CONVERSATIONS) else "text"
    return "text"


def template_for(tokenizer: Tokenizer, start: Sequence[int] = ()) -> str:
    """A chat template for a model that has none.

    Args:
        start: ids in front of its texts; a token that begins them and ends none stands in front of conversations, too.

    Raises:
        ConfigError: the tokenizer has no token that stands for an end alone.
    """
    names = {id: name for name, id in tokenizer.entries.items()}
    if names[tokenizer.end] not in tokenizer.controls:
        raise ConfigError(
            f"a tokenizer of kind {tokenizer.kind} has no token that ends a reply: train the base with another one, or "
            "give rows of prompt and completion"
        )
    begun = "".join(names[id] for id in start if id != tokenizer.end and names[id] in tokenizer.controls)
    return begun + TEMPLATE.replace("END", names[tokenizer.end])


def _example(row: Mapping[str, Any], where: str, fields: tuple[str, str] | None) -> Example:
    told = [name for name in CONVERSATIONS if name in row]
    if fields is None and told:
        return Example(_messages(row[told[0]], told[0], where), where)
    system = [{"role": "system", "content": text(row, "system", where)}] if row.get("system") else []
    if fields is None and "instruction" in row:
        answer = next((name for name in ("output", "response", "completion", "answer") if name in row), "output")
        asked = [part for name in ("instruction", "input") if row.get(name) and (part := text(row, name, where))]
        pair = ("instruction", "\n\n".join(asked)), (answer, text(row, answer, where))
    else:
        names = couple(row, where) if fields is None else fields
        pair = (names[0], text(row, names[0], where)), (names[1], text(row, names[1], where))
    for name, said in pair:
        if not said.strip():
            raise DataError(f"{where}: {name} is empty")
    roles = ({"role": role, "content": said} for role, (_, said) in zip(("user", "assistant"), pair, strict=True))
    return Example((*system, *roles), where, bare=tuple(name for name, _ in pair) == BARE and not system)


def _answered(row: Mapping[str, Any], name: str, where: str) -> Example:
    """The row with one of its answers."""
    if isinstance(row[name], list):
        before = row.get("prompt", [])
        return Example(_messages([*(before if isinstance(before, list) else []), *row[name]], name, where), where)
    asked = next((field for field in ASKED if field in row), ASKED[0])
    given = {field: row[field] for field in ("system", "input") if field in row}
    known = {"instruction": row.get(asked), "output": row[name], **given}
    example = _example(known, where, None)
    return example._replace(bare=asked == BARE[0] and not given)


def _messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {name!r} must be a list of what was said, got {str(value)[:40]!r}")
    if name == "turns":
        value = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(value)]
    messages = tuple(_message(item, n, where) for n, item in enumerate(value, 1))
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where}: nobody answers: one of the roles must be 'assistant'")
    return messages


def _message(item: Any, number: int, where: str) -> Message:
    said = item if isinstance(item, Mapping) else {}
    role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        like = '{"role": "user", "content": "…"}'
        raise DataError(f"{where}: message {number} must be like {like}, got {str(item)[:60]}")
    return {"role": ROLES.get(role, role), "content": plain(content)}
