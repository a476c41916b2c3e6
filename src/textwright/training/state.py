"""The training state on disk: one folder a save, the newest one counts."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from textwright.models.base import LanguageModel
from textwright.models.state import State, map_leaves
from textwright.training.checkpoint import (
    check_finite,
    fill,
    learned,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    read_json,
    save_tensors,
    write_file,
    write_folder,
    write_json,
)
from textwright.training.records import Progress


@dataclass
class Tensors:
    """The tensors of a run: model, optimiser, average of weights (or None), carried state of recurrent rows."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    carried: State | None = None


def newest(folder: Path) -> Path | None:
    """The last whole save in a run's `training` folder."""
    saves = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return max(saves, key=lambda path: int(path.name[5:]), default=None)


def save(folder: Path, progress: Progress, tensors: Tensors) -> None:
    """Write a new save and drop the older ones. Nothing is written when a weight is not finite."""
    check_finite(tensors.model)
    target = folder / f"step-{progress.step:09d}"
    if target.exists():  # the same step again: more seconds, a reason to end or to go on
        if tensors.average is not None:
            write_file(target / "count.safetensors", partial(_count, tensors.average))
        write_json(target / "progress.json", progress.dump())
    else:
        write_folder(target, lambda temporary: _fill(temporary, progress, tensors))
    for path in (*folder.glob("step-*"), *folder.glob(".step-*.tmp")):  # older ones, and what a killed process left
        if path != target:
            shutil.rmtree(path, ignore_errors=True)


def read_progress(path: Path) -> Progress:
    """What a save tells of the run."""
    return Progress.parse(read_json(path / "progress.json"), str(path / "progress.json"))


def load(path: Path, tensors: Tensors) -> Progress:
    """Read a save into tensors of the same shapes."""
    progress = read_progress(path)
    fill(learned(tensors.model), path / "model.safetensors")
    load_optimizer(tensors.optimizer, load_tensors(path / "optimizer.safetensors"))
    if tensors.average is not None:
        fill(learned(_averaged(tensors.average)), path / "average.safetensors")
        count = load_tensors(path / "count.safetensors")["n_averaged"]
        tensors.average.n_averaged.copy_(count)
    carried = path / "carried.safetensors"  # not before the first step
    tensors.carried = _restore(tensors.model, load_tensors(carried)) if carried.exists() else None
    return progress


def _fill(folder: Path, progress: Progress, tensors: Tensors) -> None:
    save_tensors(folder / "model.safetensors", learned(tensors.model))
    save_tensors(folder / "optimizer.safetensors", optimizer_tensors(tensors.optimizer))
    if tensors.average is not None:
        save_tensors(folder / "average.safetensors", learned(_averaged(tensors.average)))
        _count(tensors.average, folder / "count.safetensors")
    if tensors.carried is not None:
        save_tensors(folder / "carried.safetensors", _leaves(tensors.carried))
    (folder / "progress.json").write_text(progress.model_dump_json(), encoding="utf-8")


def _count(average: AveragedModel, path: Path) -> None:
    save_tensors(path, {"n_averaged": average.n_averaged})


def _averaged(average: AveragedModel) -> nn.Module:
    module: nn.Module = average.module
    return module


def _leaves(state: State) -> dict[str, Tensor]:
    leaves: list[Tensor] = []
    map_leaves(lambda leaf: leaves.append(leaf) or leaf, state)  # type: ignore[func-returns-value]
    return {f"{number:03d}": leaf for number, leaf in enumerate(leaves)}


def _restore(model: LanguageModel, leaves: dict[str, Tensor]) -> State:
    ordered = iter([leaves[name].to(model.device) for name in sorted(leaves)])
    return map_leaves(lambda _: next(ordered), model.begin(1))
