"""From a matplotlib figure to an inline SVG that follows the colours and fonts of the page around it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from io import StringIO

from matplotlib import style
from matplotlib.figure import Figure

from textwright.reporting.formats import clean

# Colours matplotlib draws with; `inline` replaces each by what the page defines (the second hex is for a bare SVG).
INK, RULE = "#010203", "#010204"
SERIES = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
_PALETTE = ("#2f6db3", "#c4532a", "#2e8b6f", "#8a5ba6", "#a37c14", "#6b7280")
_CSS = {
    INK: "currentColor",
    RULE: "var(--rule, #8888)",
    **{hue: f"var(--series-{index}, {shown})" for index, (hue, shown) in enumerate(zip(SERIES, _PALETTE, strict=True))},
}
_NOISE = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")  # what is not a tag is the caller's text and stays as it is
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "textwright",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.color": RULE,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The settings every figure is made and saved under, whatever the user's own matplotlib settings are."""
    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # The reader's browser has the fonts; matplotlib's need not know the glyph.
        warnings.filterwarnings("ignore", message=r"(?s).*(Glyph|glyph|font)")
        yield


@dataclass(frozen=True)
class Chart:
    """An SVG for a page. `svg` is trusted as it is: make charts with `lines`, `bars` and `heatmap`."""

    svg: str
    title: str = ""
    legend: tuple[str, ...] = ()
    prefix: str = field(default="", repr=False)  # of every id inside the SVG


def inline(figure: Figure, title: str, words: Sequence[str], legend: Sequence[str] = ()) -> Chart:
    """The figure as a chart; `title` and `words` describe it to those who cannot see it."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    body = _TAG.sub(lambda tag: _restyled(tag[0]), _NOISE.sub("", drawn[drawn.index("<svg") :]))
    prefix = f"c{sha256(body.encode()).hexdigest()[:12]}-"
    description = ", ".join(word for word in (title, *words) if word)
    svg = _opening(body, description) + _prefixed(body[body.index(">") + 1 :], prefix)
    return Chart(svg, title, tuple(legend), prefix)


def _restyled(tag: str) -> str:
    """A tag in the page's colours and fonts."""
    tag = re.sub(r"#0102[0-9a-f]{2}", lambda match: _CSS.get(match[0], match[0]), tag)
    # matplotlib before 3.11 writes `font: 11px 'DejaVu Sans'`, later versions both parts on their own
    return re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", re.sub(r"font-family: [^;\"]*; ?", "", tag))


def _opening(body: str, description: str) -> str:
    match = re.search(r'viewBox="([^"]*)"', body)
    assert match is not None, "matplotlib writes a viewBox"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    joins = "stroke-linejoin: round; stroke-linecap: butt"  # what the style element said, for this SVG alone
    label = escape(clean(description))
    return f'<svg {namespaces} viewBox="{match[1]}" style="{joins}" role="img" aria-label="{label}">'


def _prefixed(body: str, prefix: str) -> str:
    """Keep only ids that something refers to, and make them the chart's own."""
    used = {name for tag in _TAG.findall(body) for name in re.findall(r'(?:href="|url\()#([^")]+)', tag)}

    def own(tag: str) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", tag)
        return re.sub(r'(href="|url\()#', rf"\1#{prefix}", tag)

    return _TAG.sub(lambda tag: own(tag[0]), body).strip()
