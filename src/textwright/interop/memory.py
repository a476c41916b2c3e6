"""Whether a model fits before it is loaded: a refusal with a number, not a crash."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from textwright.errors import ConfigError
from textwright.models import BaseConfig
from textwright.models.base import Precision

GIB = 2**30


def free() -> int | None:
    """Bytes of memory that programs may still take; None where the system does not tell (Linux does)."""
    try:
        told = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return int(told[1]) * 1024 if told else None


def need(config: BaseConfig, precision: Precision = "float32") -> int:
    """Bytes of the weights; nothing is allocated to find out."""
    with torch.device("meta"):
        return (2 if precision == "bfloat16" else 4) * config.build().count_parameters()


def check_room(wanted: int, name: str) -> None:
    """Raises ConfigError where so many bytes are not free."""
    there = free()
    if there is not None and wanted > there:
        raise ConfigError(
            f"{name} needs {wanted / GIB:.1f} GiB, {there / GIB:.1f} GiB are free: close what takes memory, or take a "
            "smaller model"
        )
