"""One offline HTML page: a headline, key facts, and sections of text, charts, tables, samples and code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from textwright.reporting.svg import Chart
from textwright.reporting.tables import Table
from textwright.reporting.templates import render


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote; line breaks are kept.

    Args:
        text: what was generated.
        note: where it comes from, such as `after 2,000 steps`.
        prompt: the words the model was given; shown in front of the text, in a quieter colour.
    """

    text: str
    note: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Code:
    """Verbatim text, such as the resolved configuration; with a `summary` it is folded until a reader opens it."""

    text: str
    summary: str = ""


Block = str | Chart | Table | Sample | Code  # a plain string is a paragraph; a blank line in it starts a new one


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


def page(
    title: str, subtitle: str, facts: Sequence[tuple[str, object]], sections: Sequence[Section], language: str = "en"
) -> str:
    """The whole report as one HTML document that asks the network for nothing.

    Args:
        title: the headline.
        subtitle: one line under it.
        facts: label and value of each card; numbers are formatted as in tables.
        sections: the body, in order.
        language: BCP 47 tag of the report's language, such as `en` or `zh`.
    """
    across = math.ceil(len(facts) / math.ceil(len(facts) / 6)) if facts else 1  # rows of cards equally full
    return render(
        "page.html",
        title=title,
        subtitle=subtitle,
        facts=facts,
        across=across,
        sections=_distinct(sections),
        language=language,
    )


def _distinct(sections: Sequence[Section]) -> list[Section]:
    """The same sections, with ids inside the charts that occur once in the page even if a chart occurs twice."""
    numbers = count(1)

    def distinct(block: Block) -> Block:
        if not isinstance(block, Chart) or not block.prefix:
            return block
        return replace(block, svg=block.svg.replace(block.prefix, f"chart{next(numbers)}-"))

    return [replace(section, blocks=[distinct(block) for block in section.blocks]) for section in sections]
