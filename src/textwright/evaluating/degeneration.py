"""How much written texts repeat themselves, each other, and the text a model was trained on.

None of these figures is good or bad by itself: real text repeats itself, too. They are read beside those of real text
of the same number and length, and compare with nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import eq
from typing import NamedTuple

from textwright.evaluating.dialogue import Distinct
from textwright.evaluating.languages import CHINESE, UNSPACED, guess_language
from textwright.evaluating.scores import check_texts
from textwright.evaluating.translation import BLEU
from textwright.evaluating.verbatim import overlap
from textwright.evaluating.words import tokens

LONGEST = 40  # characters of a word; "aaaa…" is no word but a text that goes round in circles
LEAST = {"words": 8, "characters": 20}  # units in a row that are hardly the same by chance


class Loop(NamedTuple):
    """`units` of a text are one sequence, written `times` in a row; both are 0 where nothing stands twice in a row."""

    units: int
    times: int


class Degeneration(NamedTuple):
    """The panel of some texts.

    Attributes:
        texts: how many there are.
        units: words or characters of a text, mean; few where texts end early or hold nothing but white space.
        rep_2, rep_3, rep_4: see `repeated`, in percent.
        loop, loop_times: units of the longest loop of any text, and how often its sequence stands there.
        distinct_1, distinct_2: see `dialogue.Distinct`, in percent.
        self_bleu: see `self_bleu`; None for a single text, or where sacrebleu is not installed.
        overlap, longest_copy: see `verbatim.overlap`, in percent and in units; None where there is nothing to compare.
    """

    texts: int
    units: float
    rep_2: float
    rep_3: float
    rep_4: float
    loop: int
    loop_times: int
    distinct_1: float
    distinct_2: float
    self_bleu: float | None
    overlap: float | None
    longest_copy: int | None


def measure(
    texts: Sequence[str], unit: str = "words", copies: Sequence[Sequence[int]] | None = None, *, bleu: bool = True
) -> Degeneration:
    """The whole panel.

    Args:
        unit: from `unit_of`; decides from how many units on a span counts as copied.
        copies: of each text's `units`, from `verbatim.copied`; None: nothing is known about a training text.
        bleu: False leaves self-BLEU out.

    Raises:
        DataError: there is no text.
        MissingExtraError: self-BLEU without sacrebleu.
    """
    check_texts(texts, "texts")
    split = [units(text) for text in texts]
    longest = max(map(loop, split))
    shared = None if copies is None else overlap(copies, LEAST[unit])
    return Degeneration(
        texts=len(texts),
        units=sum(map(len, split)) / len(texts),
        rep_2=repeated(split, 2),
        rep_3=repeated(split, 3),
        rep_4=repeated(split, 4),
        loop=longest.units,
        loop_times=longest.times,
        distinct_1=Distinct(1).corpus(texts).value,
        distinct_2=Distinct(2).corpus(texts).value,
        self_bleu=self_bleu(split) if bleu and len(texts) > 1 else None,
        overlap=None if shared is None else shared.share,
        longest_copy=None if shared is None else shared.longest,
    )


def unit_of(texts: Iterable[str]) -> str:
    """What the `units` of texts mostly are: "characters" in scripts without spaces between words, or "words"."""
    return "characters" if guess_language(texts) in CHINESE | UNSPACED else "words"


def units(text: str) -> list[str]:
    """What stands between spaces, each character of a script without spaces, and each one of an endless word."""
    return list(stream([text]))


def stream(parts: Iterable[str]) -> Iterator[str]:
    """The `units` of a text that comes in parts, whatever they are cut at."""
    held = ""
    for part in parts:
        text = held + part
        pieces = _tokens(text)
        held = "" if text[-1:].isspace() or not pieces else pieces.pop()  # the next part may go on with it
        yield from _spelled(pieces)
    yield from _spelled([held] if held else [])


def repeated(texts: Sequence[Sequence[Hashable]], order: int) -> float:
    """rep-n: share of n-grams that stood before in the same text, in percent; mean over the texts that hold any.

    seq-rep-n of Welleck et al. 2020 ("Neural text generation with unlikelihood training", section 6): 1 - different
    n-grams ÷ n-grams. It grows with the length of a text. No text with an n-gram gives 0.
    """
    shares = []
    for text in texts:
        ngrams = list(zip(*(text[start:] for start in range(order)), strict=False))
        shares += [1 - len(set(ngrams)) / len(ngrams)] if ngrams else []
    return 100 * sum(shares) / max(len(shares), 1)


def loop(text: Sequence[Hashable]) -> Loop:
    """The most units anywhere in a text that are one sequence, written at least twice in a row.

    Holtzman et al. 2020 ("The curious case of neural text degeneration") count the texts that end so; a loop that a
    text leaves again is found here, too. Only whole repetitions count; of equally long loops, the shortest sequence.
    Time quadratic in the length of the text.
    """
    best = Loop(0, 0)
    for period in range(1, len(text) // 2 + 1):
        same = groupby(map(eq, text, islice(text, period, None)))
        longest = max((sum(run) for is_same, run in same if is_same), default=0)
        times = 1 + longest // period
        if times > 1 and times * period > best.units:
            best = Loop(times * period, times)
    return best


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Self-BLEU (Zhu et al. 2018, Texygen): BLEU of each text with all the others as references, mean, in percent.

    100: the texts are all the same. sacrebleu's BLEU with n-grams up to 4 and its "exp" smoothing, over `units`. It
    grows with the number of texts, of which there must be at least 2. Time quadratic in that number.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    bleu, lines = BLEU(tokenizer="none"), [" ".join(text) for text in texts]
    scores = [bleu.corpus([line], [lines[:place] + lines[place + 1 :]]).value for place, line in enumerate(lines)]
    return sum(scores) / len(scores)


def _tokens(text: str) -> list[str]:
    """`words.tokens`, but fast where words are ASCII: a whole training text passes through here."""
    return [piece for word in text.split() for piece in ([word] if word.isascii() else tokens(word))]


def _spelled(pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        if len(piece) > LONGEST:
            yield from piece
        else:
            yield piece
