"""`textwright doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys

import typer

EXTRAS = {
    "parquet": ("pyarrow",),
    "hub": ("datasets",),
    "words": ("spacy", "jieba"),
    "translate": ("sacrebleu",),
    "grammars": ("llguidance",),
    "huggingface": ("transformers",),
    "peft": ("transformers", "peft"),
    "gguf": ("gguf",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
}


def doctor() -> None:
    """Show versions, what the processor is fast at, and which extras are installed."""
    from textwright import __version__

    _row("textwright", __version__)
    _row("python", f"{platform.python_version()} on {platform.platform()}")
    missing = [name for name in _core() if not _package(name)]
    if missing:
        typer.echo(f"Missing: pip install {' '.join(missing)}")
        sys.exit(1)
    _hardware()
    for extra, modules in EXTRAS.items():
        there = all(importlib.util.find_spec(module) for module in modules)
        _row(f"extra {extra}", "installed" if there else f'missing: pip install "textwright[{extra}]"')
    free = shutil.disk_usage(".").free
    _row("free disk here", f"{free / 2**30:,.1f} GiB")
    if free < 2**30:
        typer.echo("There is less than 1 GiB of free disk: checkpoints may not fit.")
        sys.exit(1)


def _core() -> list[str]:
    """Names of the packages that we need, as our own metadata lists them."""
    needed = importlib.metadata.requires("textwright") or []
    return [re.split(r"[<>=!~; ]", line)[0] for line in needed if "extra ==" not in line]


def _package(name: str) -> bool:
    try:
        _row(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        _row(name, "missing")
        return False
    return True


def _hardware() -> None:
    import torch

    from textwright.training import hardware

    capability = torch.backends.cpu.get_cpu_capability()
    _row("processor", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}; {capability}")
    place = hardware.pick_device("auto")
    for dtype in (torch.float32, torch.bfloat16):
        rate = hardware.matmul_rate(place, dtype) / 1e9
        _row(f"{str(dtype).removeprefix('torch.')} products", f"{rate:,.0f} GFLOP/s on {place}")
    _row("training would use", hardware.choose().describe())


def _row(name: str, value: str) -> None:
    typer.echo(f"{name:22} {value}")
