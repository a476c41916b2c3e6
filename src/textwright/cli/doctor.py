"""`textwright doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys

import typer

EXTRAS = {"parquet": "pyarrow", "hub": "datasets", "words": "spacy", "tensorboard": "tensorboard"}
CORE = ("torch", "tokenizers", "safetensors", "pydantic", "PyYAML", "typer", "rich", "matplotlib", "jinja2")


def doctor() -> None:
    """Show versions, what the processor is fast at, and which extras are installed."""
    import torch

    from textwright import __version__
    from textwright.training import hardware

    _row("textwright", __version__)
    _row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in CORE:
        _row(name, importlib.metadata.version(name))
    _row(
        "processor",
        f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}; {torch.backends.cpu.get_cpu_capability()}",
    )
    place = hardware.pick_device("auto")
    for dtype in (torch.float32, torch.bfloat16):
        _row(
            f"{str(dtype).removeprefix('torch.')} products",
            f"{hardware.matmul_rate(place, dtype) / 1e9:,.0f} GFLOP/s on {place}",
        )
    _row("training would use", hardware.choose().describe())
    free = shutil.disk_usage(".").free
    _row("free disk here", f"{free / 2**30:,.1f} GiB")
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        _row(f"extra {extra}", "installed" if there else f'missing: pip install "textwright[{extra}]"')
    if free < 2**30:
        typer.echo("There is less than 1 GiB of free disk: checkpoints may not fit.")
        sys.exit(1)


def _row(name: str, value: str) -> None:
    typer.echo(f"{name:22} {value}")
