"""Recipes: one YAML file for each published result, with everything that repeats it.

    about: what it shows
    needs: the data, and where it comes from
    run: {task: …, pairs: …, model: …, training: …}       as in config.json; what is left out is planned
    sha256: {${TEXTWRIGHT_DATA}/…: 9c2a…}                 of the files it was measured with
    results: [{text: test_2016_flickr, metric: BLEU, value: 39.2, range: 0.8, …}]

Paths may begin with ${TEXTWRIGHT_DATA}, the folder that holds the corpora.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from textwright.config import Config
from textwright.errors import ConfigError, DataError

VARIABLE = re.compile(r"\$\{(\w+)\}")


class Result(Config):
    """A figure somebody measured with the recipe.

    Attributes:
        text: what it was measured on. (Not `on`: YAML takes that for a truth value.)
        metric, value: and how far other seeds were from it, or None if there was one seed only.
        signature: how the metric was computed.
        seed, minutes, machine: of the run.
        baseline: what a model-free baseline scores, by its name.
        note: what a reader must know.
    """

    text: str
    metric: str
    value: float
    range: float | None = None
    signature: str = ""
    seed: int = 0
    minutes: float
    machine: str
    baseline: dict[str, float] = Field(default_factory=dict)
    note: str = ""

    @property
    def ranged(self) -> str:
        """The figure for people: 73.0, or 73.0 ± 0.2."""
        return f"{self.value:g}" if self.range is None else f"{self.value:g} ± {self.range:g}"


class Recipe(Config):
    """A recipe's contents."""

    about: str
    needs: str
    run: dict[str, Any]
    sha256: dict[str, str] = Field(default_factory=dict)
    results: tuple[Result, ...] = ()


def is_recipe(name: str) -> bool:
    """True for the name of a YAML file."""
    return Path(name).suffix.lower() in (".yaml", ".yml")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, its paths filled in.

    Raises:
        DataError: the file is missing or no YAML.
        ConfigError: a key is unknown, or ${TEXTWRIGHT_DATA} stands for nothing.
    """
    recipe = _read(path)
    run, hashes = (_filled(part, recipe.needs) for part in (recipe.run, recipe.sha256))
    return recipe.model_copy(update={"run": run, "sha256": hashes})


def _read(path: Path) -> Recipe:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected the keys about, needs, run and results, got {type(data).__name__}")
    return Recipe.parse(data, str(path))


def changed(recipe: Recipe) -> list[str]:
    """Files of a recipe that are there, but are not what its results were measured with."""
    return [path for path, digest in recipe.sha256.items() if Path(path).is_file() and sha256(Path(path)) != digest]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_recipes(folder: Path) -> tuple[list[tuple[str, Recipe]], list[str]]:
    """All recipes of a folder by name, and what is wrong with its other YAML files."""
    found, faults = [], []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            found.append((path.stem, _read(path)))
        except (ConfigError, DataError) as error:
            faults.append(str(error))
    return found, faults


def _filled(value: Any, needs: str) -> Any:
    if isinstance(value, dict):
        return {_filled(key, needs): _filled(item, needs) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, needs) for item in value]
    return VARIABLE.sub(lambda match: _variable(match[1], needs), value) if isinstance(value, str) else value


def _variable(name: str, needs: str) -> str:
    if name not in os.environ:
        raise ConfigError(f"this recipe needs {needs} Say in which folder that lies: export {name}=FOLDER")
    return os.environ[name]
