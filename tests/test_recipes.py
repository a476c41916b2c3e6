"""Recipes: every one in the repository can be asked for, and their errors say what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from textwright.errors import ConfigError, DataError
from textwright.fit import job_of
from textwright.recipes import Result, changed, list_recipes, read_recipe

FOLDER = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTWRIGHT_DATA", "/data")
    request = read_recipe(path).run
    job_of(request).check(request)
    assert all(source["path"].startswith("/data/") for source in request.get("pairs") or [request["source"]])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_a_recipe_has_its_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTWRIGHT_DATA", "/data")
    recipe = read_recipe(path)
    named = set(re.findall(r"/data/[^']+", str(recipe.run)))
    if recipe.results:
        assert recipe.sha256.keys() == named
    else:  # its data may not have been at hand
        assert "not measured yet" in recipe.about
        assert recipe.sha256.keys() <= named
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in recipe.sha256.values())


def test_what_a_reader_sees_of_a_result() -> None:
    told = {"text": "test", "metric": "exact", "value": 73.0, "minutes": 1.0, "machine": "m"}
    assert Result.parse(told).ranged == "73"
    assert Result.parse({**told, "range": 0.25}).ranged == "73 ± 0.25"


def test_the_corpora_at_hand_are_those_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(os.environ.get("TEXTWRIGHT_DATA", FOLDER.parent / ".." / "shared" / "data"))
    if not data.is_dir():
        pytest.skip(f"no corpora in {data}")
    monkeypatch.setenv("TEXTWRIGHT_DATA", str(data))
    assert {name: changed(read_recipe(FOLDER / f"{name}.yaml")) for name, _ in list_recipes(FOLDER)[0]} == {
        name: [] for name, _ in list_recipes(FOLDER)[0]
    }


def test_all_are_listed() -> None:
    assert [name for name, _ in list_recipes(FOLDER)[0]] == [path.stem for path in sorted(FOLDER.glob("*.yaml"))]


def test_what_is_no_recipe_is_told_and_hides_none(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text((FOLDER / "tang-poems.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "bytes.yaml").write_bytes(b"about: \xff\xfe\n")
    (tmp_path / "broken.yaml").write_text("about: [", encoding="utf-8")
    (tmp_path / "ours.yml").write_text("version: 2\n", encoding="utf-8")
    found, faults = list_recipes(tmp_path)
    assert [name for name, _ in found] == ["good"]
    assert [name in fault for name, fault in zip(("broken.yaml", "bytes.yaml", "ours.yml"), faults, strict=True)] == [
        True
    ] * 3


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
