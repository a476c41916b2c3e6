"""Numbers become one offline HTML file: charts, tables and the page around them."""

from textwright.reporting.alignments import alignment, save_alignment
from textwright.reporting.charts import Series, bars, lines
from textwright.reporting.heatmaps import heatmap
from textwright.reporting.page import Block, Code, Sample, Section, page
from textwright.reporting.svg import Chart
from textwright.reporting.tables import Table, table

__all__ = [
    "Block",
    "Chart",
    "Code",
    "Sample",
    "Section",
    "Series",
    "Table",
    "alignment",
    "bars",
    "heatmap",
    "lines",
    "page",
    "save_alignment",
    "table",
]
