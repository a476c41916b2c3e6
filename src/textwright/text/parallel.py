"""Two plain text files, line i of the one beside line i of the other, and where they part if they do not match."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import islice, zip_longest
from math import log
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.errors import DataError
from textwright.text.sources import decoded, lines

NEAR = 25  # lines on either side that tell what is usual at a place
FEW = 20  # lines of which nothing can be told
SHIFTS = 10  # missing lines that are looked for one more at a time
SURE = 30.0  # nats; 15 gave false alarms on the lists of CMUdict, 50 missed single lines of SciTLDR
SHOWN = 60  # characters of a line in a message


class Lines(NamedTuple):
    """Line `number` of both files."""

    source: str
    target: str
    number: int


def read_parallel(source: Path, target: Path, encoding: str | None) -> Iterator[Lines]:
    r"""The lines of both files side by side. Only "\n" and "\r\n" end a line; a line separator within one stays.

    Raises:
        DataError: a file cannot be read, is empty, or holds more lines than the other.
    """
    sides = zip_longest(read_lines(source, encoding), read_lines(target, encoding))
    for number, (left, right) in enumerate(sides, 1):
        if left is None or right is None:
            raise DataError(_uneven(source, target, encoding))
        yield Lines(left, right, number)


def read_lines(path: Path, encoding: str | None) -> Iterator[str]:
    """The lines of a file without their ends."""
    for line in lines(decoded(path, encoding, translate=False)):
        yield line.removesuffix("\n").removesuffix("\r")


# Where two files part --------------------------------------------------------------------------------------------


def _uneven(source: Path, target: Path, encoding: str | None) -> str:
    """Only here something is held of every line: 12 bytes."""
    sides = [_features(path, encoding) for path in (source, target)]
    counts = [side.shape[1] for side in sides]
    for path, count in zip((source, target), counts, strict=True):
        if not count:
            return f"{path} is empty; expected a line for each of the {max(counts):,} lines of the other side"
    told = f"{source} holds {counts[0]:,} lines and {target} {counts[1]:,}; expected line i of one beside line i"
    if max(counts) > 2 * min(counts):
        return f"{told} of the other: are these the two sides of one text?"
    number = parting(sides[0], sides[1]) + 1
    shown = [f"\n  {path}:{number}: {_line(path, encoding, number)}" for path in (source, target)]
    return (
        f"{told} of the other. They seem to part near line {number:,}; mend or take out what is there:{''.join(shown)}"
    )


def _features(path: Path, encoding: str | None) -> Tensor:
    """(3, lines): what the sides of a pair tend to share: log of the length, question mark or none, digits or none."""
    values = array("f")
    for line in read_lines(path, encoding):
        asks, digits = "?" in line or "？" in line, re.search(r"\d", line) is not None
        values.extend((log(len(line) + 1), asks, digits))
    return torch.tensor(values, dtype=torch.float32).view(-1, 3).T


def _line(path: Path, encoding: str | None, number: int) -> str:
    line = next(islice(read_lines(path, encoding), number - 1, None), None)
    if line is None:
        return "(the file has ended)"
    return repr(line if len(line) <= SHOWN else line[:SHOWN] + "…")


def parting(first: Tensor, second: Tensor) -> int:
    """The line, from 0, from which two sides of different lengths stop matching, as far as it can be told.

    Where lines are missing from one side, the features (features, lines) of later lines go together only when the other
    side is shifted. For every shift the log-likelihood ratio "shifted against as it is", under a bivariate normal
    distribution of what differs from the surroundings, is summed line by line (CUSUM, Page 1954): the sum falls as long
    as the lines match and rises afterwards. The earliest rise by `SURE` nats counts; without any, the lowest point of
    the sum for all missing lines at once, which is the end of the shorter side if lines are missing there.
    """
    long, short = sorted((first, second), key=lambda side: -side.shape[1])
    size, missing = short.shape[1], long.shape[1] - short.shape[1]
    if size < FEW:
        return size
    long, short = _unusual(long), _unusual(short)
    shared = _correlation(long, short, missing)
    plain = _likelihood(long[:, :size], short, shared)
    rises, lowest = [], size
    for shift in sorted({*range(1, min(missing, SHIFTS) + 1), missing}):
        ratio = _likelihood(long[:, shift : shift + size], short, shared) - plain
        total = torch.cat((ratio.new_zeros(1), ratio.cumsum(0)))
        floor, place = total.cummin(0)
        sure = (total - floor > SURE).nonzero()
        rises += [int(place[sure[0, 0]])] if len(sure) else []
        lowest = int(total.argmin())
    return min(rises, default=lowest)


def _unusual(side: Tensor) -> Tensor:
    """How much each line differs from those around it, in standard deviations."""
    around = F.avg_pool1d(F.pad(side.double()[None], (NEAR, NEAR), mode="replicate"), 2 * NEAR + 1, 1)[0]
    difference = side - around
    return difference / difference.std(1, keepdim=True).clamp(min=1e-6)


def _correlation(long: Tensor, short: Tensor, missing: int) -> Tensor:
    """(features, 1), of lines that match: of one gap, the first half has none or the second half lies behind it."""
    half = short.shape[1] // 2
    before = (long[:, :half] * short[:, :half]).mean(1, keepdim=True)
    behind = (long[:, half + missing :] * short[:, half:]).mean(1, keepdim=True)
    return torch.maximum(before, behind).clamp(0, 0.95)


def _likelihood(x: Tensor, y: Tensor, shared: Tensor) -> Tensor:
    """(lines): log-likelihood ratio of "correlated by `shared`" against "independent", short of a constant."""
    nats = shared * (2 * x * y - shared * (x * x + y * y)) / (2 * (1 - shared * shared))
    return nats.clamp(-4, 4).sum(0)
