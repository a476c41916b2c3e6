"""Recipes: every one in the repository can be asked for, and their errors say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from textwright.errors import ConfigError, DataError
from textwright.fit import job_of
from textwright.recipes import list_recipes, read_recipe

FOLDER = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTWRIGHT_DATA", "/data")
    request = read_recipe(path).run
    job_of(request).check(request)
    assert all(source["path"].startswith("/data/") for source in request.get("pairs") or [request["source"]])


def test_all_are_listed() -> None:
    assert [name for name, _ in list_recipes(FOLDER)] == [path.stem for path in sorted(FOLDER.glob("*.yaml"))]


def test_without_the_data_folder_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTWRIGHT_DATA", raising=False)
    with pytest.raises(ConfigError, match="export TEXTWRIGHT_DATA=FOLDER"):
        read_recipe(FOLDER / "multi30k-de-en.yaml")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("- a\n- b\n", ConfigError, "expected the keys about, needs, run and results"),
        ("about: [\n", DataError, "is not YAML"),
        ("about: a\nneeds: b\nrun: {}\nresult: []\n", ConfigError, "unknown key 'result'. Did you mean 'results'"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_recipe(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
