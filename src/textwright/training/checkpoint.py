"""Weights and training state on disk: safetensors and JSON, written so that a half-written file is never read.

A file is written under another name, flushed to the disk and then renamed; a folder likewise. Whatever the moment of a
crash, the old state or the new one is there, whole. Every weight file carries the SHA-256 of its tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textwright.errors import CheckpointError, TrainingError

DIGEST = "sha256"


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write` writes, atomically.

    Raises:
        CheckpointError: when it cannot be written (full disk, no permission); what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Make the folder `path`, filled by `write`, atomically. The same promise and errors as `write_file`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in (*temporary.iterdir(), temporary):
            _flush(file)
        temporary.rename(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(folder: Path) -> None:
    """Everything in a folder is on the disk when this returns."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file, atomically."""
    text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    write_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Raises CheckpointError for a missing or damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: expected a folder that `textwright train` wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): restore it from a copy or train again") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their digest; not atomic by itself, see `write_file`."""
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(ready, path, metadata={DIGEST: _digest(ready)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError when the file is missing, cut short, changed, or no safetensors file at all."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: expected weights that `textwright train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get(DIGEST)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}): {_advice(path)}") from None
    if expected is not None and expected != _digest(tensors):
        raise CheckpointError(f"{path} was changed after it was written (its SHA-256 differs): restore it from a copy")
    return tensors


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def learned(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_weights(model: nn.Module, path: Path) -> None:
    """Read all weights of a model of the same shape. The errors of `fill`."""
    fill(dict(model.named_parameters()), path)


def fill(own: Mapping[str, Tensor], path: Path) -> None:
    """Read tensors of the same names and shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; the first few are named.
    """
    tensors = load_tensors(path)
    wrong = [f"{name} is missing" for name in own.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - own.keys()]
    for name in sorted(own.keys() & tensors.keys()):
        if own[name].shape != tensors[name].shape:
            wrong.append(f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}")
    if wrong:
        raise CheckpointError(f"{path} does not fit its config.json: {'; '.join(sorted(wrong)[:3])}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def check_finite(model: nn.Module) -> None:
    """Raises TrainingError naming the first parameter that is not finite: such weights are never saved."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise TrainingError(f"parameter {name} is not finite: these weights are not saved")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's moments as a flat dictionary: "parameter number.moment"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, moments in state.items()
        for name, value in moments.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, into an optimiser over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Ask the system to bring a file, or the entries of a folder, to the disk itself."""
    if os.name == "nt":  # there a folder cannot be opened, and a file only for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(path: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(f"cannot write {path}: {reason}. What was saved before is untouched: make room and go on")


def _advice(path: Path) -> str:
    head = path.read_bytes()[:4]
    if head[:1] == b"\x80" or head == b"PK\x03\x04":
        return "pickled checkpoints can run code and are refused; convert it to safetensors where you trust it"
    return "restore it from a copy or train again"
