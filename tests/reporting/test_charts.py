from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textwright.reporting import Chart, Series, bars, heatmap, lines

NAN, INF = math.nan, math.inf
ANY = st.floats() | st.sampled_from([0.0, -0.0, 1e-320, 1e308, -1e308, 1e99, 1e-99])
NAMES = st.text(st.characters(), max_size=6)


def svg(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg)


def texts(chart: Chart) -> list[str]:
    return ["".join(node.itertext()) for node in svg(chart).iter("{http://www.w3.org/2000/svg}text")]


def curve(*y: float, name: str = "loss") -> Series:
    return Series(name, range(len(y)), y)


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "y", [(), (1.0,), (2.0, 2.0), (NAN,), (NAN, INF), (1, NAN, 3, INF), (0, 0), (-1, -2), (1e-300, 1e300), (1e-9, 1e-9)]
)
def test_awkward_curves_are_drawn(y: tuple[float, ...], log_y: bool) -> None:
    svg(lines([curve(*y)], x="step", y="loss", log_y=log_y, marks=[(0, "a"), (NAN, "b"), (INF, "c")]))


def test_no_curve_at_all() -> None:
    assert "–" in texts(lines([], x="step", y="loss"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(ANY, ANY), max_size=5), st.booleans(), NAMES, ANY)
def test_lines_draw_anything(points: list[tuple[float, float]], log_y: bool, name: str, mark: float) -> None:
    series = Series(name, [x for x, _ in points], [y for _, y in points])
    svg(lines([series, series], x=name, y=name, title=name, log_y=log_y, marks=[(mark, name)]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(NAMES, ANY), max_size=4))
def test_bars_draw_anything(items: list[tuple[str, float]]) -> None:
    svg(bars([name for name, _ in items], [value for _, value in items], unit="ms"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10), st.data(), st.booleans())
def test_heatmaps_draw_anything(rows: int, columns: int, data: st.DataObject, log: bool) -> None:
    values = data.draw(st.lists(st.lists(ANY, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    svg(heatmap(values, [str(row) for row in range(rows)], range(columns), log=log))


def test_the_same_numbers_give_the_same_bytes_whatever_the_settings() -> None:
    before = lines([curve(3, 2, 1)], x="step", y="loss").svg
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert lines([curve(3, 2, 1)], x="step", y="loss").svg == before


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    bars(["a"], [1])
    assert dict(mpl.rcParams) == before


def test_text_is_text_and_never_mathematics() -> None:
    chart = lines([curve(1, 2)], x="$x^2$ <b>&", y="损失", marks=[(1, "最佳 $")])
    assert {"$x^2$ <b>&", "损失", "最佳 $"} <= set(texts(chart))


@pytest.mark.parametrize("text", ["#010203", 'a id="x"', "url(#a)", "font-family: a; b", "<!-- a --> <style>", "a > b"])
def test_labels_that_look_like_svg_stay_as_they_are(text: str) -> None:
    chart = bars([text], [1], unit=text)
    assert texts(chart).count(text) == 2


def test_colours_and_fonts_are_those_of_the_page() -> None:
    chart = lines([curve(1, 2), curve(2, 3)], x="step", y="loss")
    assert "currentColor" in chart.svg
    assert "var(--series-1" in chart.svg
    assert "#0102" not in chart.svg
    assert "DejaVu" not in chart.svg
    assert "<style" not in chart.svg  # it would hold for the whole page
    assert "<rect" not in re.sub(r"<clipPath.*?</clipPath>", "", chart.svg, flags=re.DOTALL)


def test_ids_belong_to_the_chart_and_every_reference_resolves() -> None:
    charts = [lines([curve(1, 2)], x="a", y="b"), lines([curve(1, 3)], x="a", y="b"), heatmap([[1, 2]], ["r"], [1, 2])]
    found = [set(re.findall(r'\bid="([^"]+)"', chart.svg)) for chart in charts]
    assert not found[0] & found[1]
    for chart, ids in zip(charts, found, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', chart.svg)) <= ids
        assert all(name.startswith(chart.prefix) for name in ids)


def test_a_long_series_is_thinned_and_keeps_its_spike() -> None:
    y = [math.sin(step / 50) for step in range(100_000)]
    y[54_321] = 50.0
    chart = lines([curve(*y)], x="step", y="loss")
    assert len(chart.svg) < 80_000
    assert "50" in texts(chart)


def test_the_legend_names_the_curves_when_there_are_several() -> None:
    assert lines([curve(1, name="a"), curve(2, name="b")], x="", y="").legend == ("a", "b")
    assert lines([curve(1, name="a")], x="", y="").legend == ()


def test_a_chart_describes_itself() -> None:
    chart = lines([curve(1, name='tr"ain'), curve(2, name="valid")], x="step", y="loss", title="Loss")
    assert svg(chart).attrib["aria-label"] == 'Loss, loss / step, tr"ain, valid'
    assert svg(chart).attrib["role"] == "img"


def test_columns_of_a_heatmap_are_named_at_round_steps() -> None:
    assert {"0", "200", "400"} <= set(texts(heatmap([range(1, 52)], ["layer"], range(0, 510, 10))))


def test_the_colour_scale_is_logarithmic() -> None:
    assert {"100", "1", "0.01"} <= set(texts(heatmap([[0.01, 100.0]], ["layer"], ["a", "b"])))
    assert {"100", "50", "0"} <= set(texts(heatmap([[0.0, 100.0]], ["layer"], ["a", "b"], log=False)))


def test_a_long_layer_name_keeps_its_end() -> None:
    name = "model.decoder.layers.11.self_attention.query.weight"
    assert "…" + name[-33:] in texts(heatmap([[1]], [name], [1]))


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x values, 1 y values"):
        Series("loss", [1, 2], [1])
    with pytest.raises(ValueError, match="1 names, 0 values"):
        bars(["a"], [])
    with pytest.raises(ValueError, match="not 1 rows of 2"):
        heatmap([[1]], ["a"], [1, 2])
