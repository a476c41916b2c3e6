"""Where words begin and end: plain counting, and the rules of spaCy and jieba behind one function type.

A segmenter is a function from a text to its words, and `"".join(words)` is the text: nothing is lost or normalised.
"""

from __future__ import annotations

import importlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from textwright.errors import ConfigError, MissingExtraError

Segmenter = Callable[[str], list[str]]

# Scripts written without spaces: Han and kana. Korean has spaces.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_LETTER = re.compile(f"[{_UNSPACED}]")
_CHARACTER = re.compile(f"[{_UNSPACED}\u3001-\u303f\uff01-\uffef]")  # with the full-width punctuation
_LIMIT = 100_000  # characters; spaCy refuses texts of more than a million


def count_words(text: str) -> int:
    """Words between white space, every character of Chinese and Japanese as a word, and one for each line end.

    Under this convention the test set of word-level WikiText-2 has its usual 245,569 words.
    """
    if text.isascii() or not _CHARACTER.search(text):  # most texts of other languages: 2.7 times as fast
        return len(text.split()) + text.count("\n")
    return len(_CHARACTER.sub(" ", text).split()) + len(_CHARACTER.findall(text)) + text.count("\n")


def is_unspaced(text: str) -> bool:
    """True if more than a third of the letters belong to a script that does not put spaces between words."""
    return 3 * len(_LETTER.findall(text)) > sum(map(str.isalpha, text))


def is_segmenter(name: str) -> bool:
    """True for the names that `segmenter` knows."""
    return name == "jieba" or name.startswith("spacy:")


@cache
def segmenter(name: str) -> Segmenter:
    """The segmenter called `jieba` or `spacy:LANG`.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: spaCy does not know the language.
    """
    words = _jieba() if name == "jieba" else _spacy(name.removeprefix("spacy:"))

    def segment(text: str) -> list[str]:
        return [word for part in _shorter(text) for word in _attach(words(part))]

    return segment


def _shorter(text: str) -> list[str]:
    """Lines, joined up to the limit: no word of either library crosses a line end."""
    parts, start = [], 0
    while len(text) - start > _LIMIT:
        end = text.rfind("\n", start, start + _LIMIT) + 1 or start + _LIMIT
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _attach(words: Iterable[str]) -> list[str]:
    """Put a single space in front of the word it precedes, so that running text has no tokens for spaces."""
    result: list[str] = []
    for word in words:
        if result and result[-1] == " " and not word.isspace():
            result[-1] = " " + word
        else:
            result.append(word)
    return result


def _jieba() -> Callable[[str], list[str]]:
    try:
        with warnings.catch_warnings():  # about escapes in its source and about pkg_resources
            warnings.simplefilter("ignore")
            jieba = importlib.import_module("jieba")
    except ImportError:
        raise MissingExtraError("Segmenting Chinese into words", "words") from None
    jieba.setLogLevel("ERROR")
    tokenizer = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as private:  # it would unmarshal a cache file that anybody could have written
        tokenizer.tmp_dir = private
        tokenizer.initialize()
    words: Callable[[str], list[str]] = tokenizer.lcut
    return words


def _spacy(language: str) -> Callable[[str], list[str]]:
    try:
        spacy = importlib.import_module("spacy")
    except ImportError:
        raise MissingExtraError("Segmenting text into words", "words") from None
    try:
        rules: Callable[[str], Iterable[Any]] = spacy.blank(language).tokenizer
    except (ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"spaCy has no rules for {language!r} ({reason}); expected a code such as spacy:en") from None

    def words(text: str) -> list[str]:
        return [part for token in rules(text) for part in (token.text, token.whitespace_) if part]

    return words
