"""A model in the layout of the Hugging Face hub: a folder, or the name of one that is downloaded.

config.json              the architecture, as that library's configuration classes write it
*.safetensors            the weights, in one file or in several with model.safetensors.index.json
tokenizer.json           what the `tokenizers` library opens
generation_config.json, tokenizer_config.json, chat_template.jinja     if there are any
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from textwright.errors import CheckpointError, ConfigError
from textwright.text.tokenizers import Tokenizer

INDEX = "model.safetensors.index.json"
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.spm")  # no code, no pickles
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Weights(Mapping[str, Tensor]):
    """Tensors of one or several safetensors files, read when they are asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from None
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names (new -> old)."""

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def under(weights: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Tensors named as whole models name them: files of a model without its head lack the prefix."""
    if any(name.startswith(prefix) for name in weights):
        return weights
    return Renamed(weights, {prefix + name: name for name in weights})


@dataclass(frozen=True)
class Folder:
    """What such a folder says, before any weight is read.

    Attributes:
        path: the folder.
        config: config.json.
        weights: tensors by their names.
        generation: generation_config.json, or nothing.
        tokens: tokenizer_config.json, or nothing.
        template: the chat template, as Jinja.
    """

    path: Path
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    generation: dict[str, Any]
    tokens: dict[str, Any]
    template: str | None

    @property
    def kind(self) -> str:
        """The architecture: `model_type` of config.json."""
        return str(self.config.get("model_type", ""))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.path} holds no tokenizer.json: write one with transformers, "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        return Tokenizer.load(path)


def find(place: str) -> Path:
    """The folder (or .gguf file) at a path or, where there is none, that of a name on the hub, downloaded.

    Raises:
        ConfigError: neither exists, or the hub cannot be reached.
    """
    path = Path(place).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.exists()):
        return path
    if path.exists():
        raise ConfigError(f"{place} is a file: give the folder that holds config.json and the weights, or a .gguf file")
    if place.count("/") > 1 or place.startswith((".", "/", "~")) or not place.strip("/"):
        raise ConfigError(f"{place} does not exist: expected a folder, or a name on the hub such as OWNER/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(place, allow_patterns=list(WANTED)))
    except HFValidationError:
        raise ConfigError(
            f"{place} does not exist: expected a folder, or a name on the hub such as OWNER/NAME"
        ) from None
    except HfHubHTTPError as error:
        raise ConfigError(f"the hub has no model {place} for you: {str(error).splitlines()[0]}") from None
    except (LocalEntryNotFoundError, OSError):
        raise ConfigError(
            f"{place} is no folder here, and the hub cannot be reached: go online once, or give a folder"
        ) from None


def read_folder(path: Path) -> Folder:
    """What the folder says.

    Raises:
        CheckpointError: it holds no such model, or parts of it are missing, damaged, or would run code.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} holds no config.json: expected a model in the layout of the Hugging Face hub")
    config = _json(path / "config.json")
    if "auto_map" in config:
        raise CheckpointError(
            f"{path} brings code of its own ({', '.join(config['auto_map'])} in config.json), which is not run here"
        )
    tokens = _optional(path / "tokenizer_config.json")
    template = path / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else _template(tokens.get("chat_template"))
    generation = _optional(path / "generation_config.json")
    return Folder(path, config, Weights(_files(path)), generation, tokens, text)


def _template(said: Any) -> str | None:
    """The chat template in tokenizer_config.json; where there are several by name, the one called default."""
    if isinstance(said, list):
        named = {one.get("name"): one.get("template") for one in said if isinstance(one, dict)}
        said = named.get("default")
    return said if isinstance(said, str) else None


def _files(path: Path) -> dict[str, Path]:
    """Which file holds which tensor; every file is opened once, so that a damaged or missing one is told now."""
    if (path / INDEX).is_file():
        where = _json(path / INDEX).get("weight_map", {})
        missing = sorted({name for name in where.values() if not (path / name).is_file()})
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}, which {INDEX} names: download the folder again")
        files = sorted({path / name for name in where.values()})
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        if pickled:
            raise CheckpointError(
                f"{path} holds weights as pickles ({pickled[0]}), which can run code and are refused: convert them to "
                "safetensors where you trust them"
            )
        raise CheckpointError(f"{path} holds no *.safetensors: expected the weights of a model")
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
    if (path / INDEX).is_file() and (lost := sorted(where.keys() - found.keys())):
        raise CheckpointError(f"{path} lacks the tensor {lost[0]}, which {INDEX} names: download the folder again")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): download the folder again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object")
    return data


def _optional(path: Path) -> dict[str, Any]:
    return _json(path) if path.is_file() else {}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no whole safetensors file ({error}): download the folder again")
