"""The package's HTML templates: autoescaped, and every value that enters them is cleaned first."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from textwright.reporting.formats import show


def render(template: str, **values: object) -> str:
    """Fill one template of this package."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("textwright", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: "text" if isinstance(block, str) else type(block).__name__.lower()
    return environment


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else show(value)
