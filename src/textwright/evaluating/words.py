"""The words of a text in any script, for metrics that count words.

In a script without spaces each character, with the marks that combine with it, is a word. Which characters those are
is `count_words`' convention (text/segmenters.py), extended here by the unspaced scripts of South-East Asia and Tibet.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache

from textwright.text.segmenters import count_words

_SCRIPTS = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")  # as the names of their characters begin in Unicode
_JOINERS = "\u200c\u200d"  # invisible, and inside words in Persian and in the scripts of India


def tokens(text: str) -> list[str]:
    """What stands between spaces, and each character of a script without spaces; nothing else is changed or lost.

    >>> tokens("Hello, world! 你好。")
    ['Hello,', 'world!', '你', '好', '。']
    """
    return _pieces(text, str.isspace)


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation; a text that has none (`!!!`, emoji) gives what stands between its spaces.

    On ASCII texts with a letter or a digit these are the tokens of the `rouge_score` package without its stemmer; that
    package loses the letters of all other scripts.

    >>> words("Don't panic: 你好。"), words("?! 😀")
    (['don', 't', 'panic', '你', '好'], ['?!', '😀'])
    """
    text = text.lower()
    return _pieces(text, _is_gap) or text.split()


def has_unspaced(text: str) -> bool:
    """True if any letter belongs to a script without spaces."""
    return any(character.isalpha() and is_alone(character) for character in text)


@cache
def is_alone(character: str) -> bool:
    """True if this character (not white space) is a word by itself: two of them are two words."""
    return count_words(2 * character) == 2 or unicodedata.name(character, "").startswith(_SCRIPTS)


def _pieces(text: str, is_gap: Callable[[str], bool]) -> list[str]:
    pieces: list[str] = []
    before = ""  # the character the next one may join; empty after a gap
    for character in text:
        if before and _is_mark(character):
            pieces[-1] += character
        elif is_gap(character):
            before = ""
        elif before and not is_alone(before) and not is_alone(character):
            pieces[-1] += character
        else:
            pieces.append(character)
            before = character
    return pieces


def _is_gap(character: str) -> bool:
    return not character.isalnum()


@cache
def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" or character in _JOINERS
