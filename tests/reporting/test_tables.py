from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textwright.reporting import formats, table, tables
from textwright.reporting.formats import clean, number, show, width


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (1234, "1,234"), (-1234567, "−1,234,567"), (10**30, f"{10**30:,}"),
        (0.0, "0"), (3.14159, "3.142"), (9.99996, "10"), (1234.5, "1,234"), (250000.4, "250,000"), (0.5, "0.5"),
        (0.012345, "0.01235"), (1.2e-5, "1.2e-05"), (-1.2e-5, "−1.2e-05"), (2e-7, "2e-07"),
        (1e20, "1e+20"), (-2.5, "−2.5"),
        (math.nan, "nan"), (math.inf, "∞"), (-math.inf, "−∞"),
        (np.float32(0.1), "0.1"), (np.int64(5000), "5,000"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(-1e300, 1e300))
def test_a_shown_number_is_close_to_the_number(value: float) -> None:
    assert float(number(value).replace(",", "").replace("−", "-")) == pytest.approx(value, rel=0.06, abs=0)


def test_other_values() -> None:
    assert [show(value) for value in (None, True, False, "a\x1b[31m", 2)] == ["–", "yes", "no", "a␛[31m", "2"]


@given(st.text(st.characters()))
def test_clean_text_is_plain_and_clean(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert clean(text).encode().decode() == clean(text)
    assert not any(character < " " and character not in "\n\t" for character in clean(text))


def test_clean_joins_surrogate_pairs_and_keeps_line_breaks() -> None:
    assert clean("\ud83d\ude00 a\r\nb\rc\td\x00\x7f\x85\ud800\uffff") == "😀 a\nb\nc\td␀␡\ufffd\ufffd\ufffd"


def test_floats_of_a_column_share_their_decimals() -> None:
    assert [row[0] for row in table(["x"], [[3.14159], [2.9], [None], [12.0], [7]]).rows] == [
        "3.142", "2.900", "–", "12.000", "7",
    ]  # fmt: skip
    assert [row[0] for row in table(["x"], [[0.012345], [1234.0], [1e-9], [math.nan]]).rows] == [
        "0.01235", "1,234", "1e-09", "nan",
    ]  # fmt: skip


def test_columns_of_numbers_are_numeric() -> None:
    result = table(["a", "b", "c", "d"], [[1, "1", None, True], [2.5, 2, None, False]])
    assert result.numeric == (True, False, False, False)


def test_text_aligns_chinese() -> None:
    shown = table(["文本", "困惑度"], [["验证集", 12.3], ["news", 4]], caption="表").text()
    assert shown.splitlines() == ["表", "文本    困惑度", "──────  ──────", "验证集    12.3", "news         4"]
    assert {width(line) for line in shown.splitlines()[1:]} == {14}


def test_markdown_escapes_what_would_break_it() -> None:
    shown = table(["a|b", "n"], [["<script>*x*\n`y`", 1234]], caption="c").markdown()
    assert shown.splitlines() == [
        "**c**", "", r"| a\|b | n |", "| --- | ---: |", r"| &lt;script>\*x\* \`y\` | 1,234 |",
    ]  # fmt: skip


def test_html_is_escaped_and_accessible() -> None:
    shown = table(["<b>", "n"], [["</td><script>", 1]], caption="x & y").html()
    assert "<script>" not in shown
    assert "<caption>x &amp; y</caption>" in shown
    assert '<th scope="col">&lt;b&gt;</th>' in shown
    assert '<td class="number">1</td>' in shown


def test_empty_tables_are_tables() -> None:
    assert table(["a", "b"], []).text() == "a  b\n─  ─"
    assert table(["a"], []).markdown() == "| a |\n| --- |"
    assert "<thead>" in table(["a"], []).html()


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells, the table has 2 columns"):
        table(["a", "b"], [[1]])


@pytest.mark.parametrize("module", [formats, tables])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
