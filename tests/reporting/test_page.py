from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.reporting import Chart, Code, Sample, Section, Series, lines, page, table
from textwright.reporting.formats import clean

VOID = {"meta", "link", "br", "img"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</blockquote></section></body></html>",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!-- --> <!DOCTYPE html> &lt;&amp;&#0;",
    "\x00\x08\x1b[31m\x85\ud800\udfff\uffff\r\n\r",
    "' onmouseover='x' \" style=\"x",
    "\n\n  leading and trailing \t\n",
    "\u202eright to left",
]


class Tree(HTMLParser):
    """Checks that tags nest, and collects the text of every element by tag and class."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.stack: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        collected: list[str] = []
        self.found.append((tag, dict(attrs), collected))
        if tag not in VOID:
            self.open.append(tag)
            self.stack.append(collected)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        for collected in self.stack:
            collected.append(data)

    def texts(self, wanted: str) -> list[str]:
        return ["".join(text) for tag, _, text in self.found if tag == wanted]

    def attributes(self) -> list[set[str]]:
        return [set(attributes) for _, attributes, _ in self.found]

    def tags(self) -> list[str]:
        return [tag for tag, _, _ in self.found]


def everywhere(text: str) -> str:
    blocks = [text, Sample(text, text, text), Code(text), Code(text, text), table([text], [[text]], caption=text),
              Chart("<svg></svg>", text, (text,))]  # fmt: skip
    return page(text, text, [(text, text)], [Section(text, blocks)] * 3, text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(text: str) -> None:
    tree, harmless = Tree(everywhere(text)), Tree(everywhere("harmless"))
    assert tree.tags() == harmless.tags()
    assert tree.attributes() == harmless.attributes()
    assert tree.texts("blockquote")[0] == clean(text) * 2
    assert tree.texts("title") == [clean(text)]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters() | st.sampled_from("<>&\"'\n\r\0{}%#"), max_size=40))
def test_a_sample_is_found_back(text: str) -> None:
    document = page("t", "", [], [Section("s", [Sample(text), Code(text)])])
    document.encode()
    tree = Tree(document)
    assert tree.texts("blockquote") == [clean(text)]
    assert tree.texts("div")[-1] == clean(text)


def test_headings_are_in_order_and_named_by_their_sections() -> None:
    tree = Tree(page("Title", "sub", [], [Section("One", []), Section("Two", []), Section("Three", [])]))
    assert [tag for tag in tree.tags() if tag in ("h1", "h2", "h3")] == ["h1", "h2", "h2", "h2"]
    ids = [attributes["id"] for _, attributes, _ in tree.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for tag, attributes, _ in tree.found if tag == "section"} <= set(ids)
    links = [attributes["href"] for tag, attributes, _ in tree.found if tag == "a"]
    assert links == ["#section1", "#section2", "#section3"]


def test_one_chart_twice_has_distinct_ids() -> None:
    chart = lines([Series("a", [1, 2], [3, 4])], x="step", y="loss")
    tree = Tree(page("t", "", [], [Section("s", [chart, chart]), Section("s", [chart])]))
    ids = [attributes["id"] for _, attributes, _ in tree.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5


@pytest.mark.parametrize(("count", "across"), [(1, 1), (6, 6), (7, 4), (8, 4), (9, 5), (13, 5)])
def test_rows_of_cards_are_equally_full(count: int, across: int) -> None:
    assert f"--across: {across}" in page("t", "", [("fact", 0.123456)] * count, [])


def test_facts_are_formatted() -> None:
    tree = Tree(page("t", "", [("loss", 0.123456), ("steps", 4000), ("device", "cpu"), ("best", None)], []))
    assert tree.texts("dd") == ["0.1235", "4,000", "cpu", "–"]


def test_configuration_is_folded() -> None:
    tree = Tree(page("t", "", [], [Section("s", [Code("a: 1\n  b: 2", "Configuration")])]))
    assert tree.texts("summary") == ["Configuration"]
    assert "a: 1\n  b: 2" in tree.texts("details")[0]
    assert all("open" not in attributes for tag, attributes, _ in tree.found if tag == "details")


def test_the_language_and_the_policy_stand_in_the_page() -> None:
    document = page("标题", "", [], [], "zh")
    assert '<html lang="zh">' in document
    assert "default-src 'none'" in document
    assert 'name="viewport"' in document
    assert "prefers-color-scheme: dark" in document
