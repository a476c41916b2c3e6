"""Values as text a person can read: numbers, clean strings, and how wide a string stands in a terminal."""

from __future__ import annotations

import math
import re
import unicodedata
from numbers import Integral, Real

MISSING = "–"
_EXOTIC = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def clean(text: str) -> str:
    """The text without anything that breaks HTML, SVG or a terminal; line breaks and tabs stay.

    Control characters become their visible pictures (NUL is ␀); lone surrogates and non-characters become U+FFFD.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _EXOTIC.sub(_picture, text.replace("\r\n", "\n").replace("\r", "\n"))


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def number(value: Real | float, digits: int = 4) -> str:
    """A number with `digits` significant digits, thousands grouped, an exponent only where it helps.

    >>> [number(value) for value in (1234, 3.14159, 0.000012, 250000.4, 0.5)]
    ['1,234', '3.142', '1.2e-05', '250,000', '0.5']
    """
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", "−")
    amount = float(value)
    if not math.isfinite(amount):
        return "nan" if math.isnan(amount) else "∞" if amount > 0 else "−∞"
    if amount and not 1e-4 <= abs(amount) < 1e15:
        mantissa, exponent = f"{amount:.{max(digits - 3, 0)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{exponent}".replace("-", "−", 1) if amount < 0 else f"{mantissa}e{exponent}"
    return fixed(amount, decimals(amount, digits))


def decimals(value: float, digits: int = 4) -> int:
    """How many decimals `value` needs to show `digits` significant digits, trailing zeros left out."""
    whole = math.floor(math.log10(abs(value))) + 1 if value else 1
    _, _, fraction = f"{value:.{max(digits - whole, 0)}f}".partition(".")
    return len(fraction.rstrip("0"))


def fixed(value: float, places: int) -> str:
    """A number with exactly `places` decimals and thousands grouped."""
    text = f"{value:,.{places}f}"
    return "−" + text[1:] if text.startswith("-") else text


def show(value: object) -> str:
    """Any value as clean text: None is a dash, truth is yes or no, numbers as `number` writes them."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, Real) else clean(str(value))


def width(text: str) -> int:
    """Terminal columns: an East Asian wide character takes two, a combining mark none."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
