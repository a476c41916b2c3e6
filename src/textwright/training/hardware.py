"""What the machine does well: device, precision, and an allocator that does not give memory back at every step."""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from textwright.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
WITHOUT_BFLOAT16 = "this processor has no instructions for products in bfloat16"


@dataclass(frozen=True)
class Hardware:
    """Where training runs, in what precision, and what sizes and times are planned from: the rate of matrix products
    there (floating-point operations a second, in that precision), and the seconds from one small operation to the next,
    below which no operation of a training step can be made smaller."""

    device: torch.device
    precision: Precision
    rate: float
    latency: float

    def describe(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self._cores()
        return f"{where}, {self.precision} (matrix products at {self.rate / 1e9:,.0f} GFLOP/s)"

    def _cores(self) -> str:
        return f"{self.device.type} with {torch.get_num_threads()} threads" if self.device.type == "cpu" else "GPU"


def choose(device: str = "auto", precision: str = "auto") -> Hardware:
    """Measure what is to be chosen: bfloat16 where its products are clearly faster than float32's.

    Raises:
        ConfigError: there is no such device, or it has no bfloat16 and was asked for it.
    """
    place = pick_device(device)
    if precision == "bfloat16" and not has_bfloat16(place):
        raise ConfigError(f"{WITHOUT_BFLOAT16}: leave out training.precision, or --set training.precision=float32")
    rates: dict[Precision, float] = {"float32": matmul_rate(place, torch.float32)}
    if precision != "float32" and has_bfloat16(place):
        rates["bfloat16"] = matmul_rate(place, torch.bfloat16)
    if precision == "auto":
        best: Precision = "bfloat16" if rates.get("bfloat16", 0.0) > 1.5 * rates["float32"] else "float32"
    else:
        best = "bfloat16" if precision == "bfloat16" else "float32"
    return Hardware(place, best, rates[best], operation_time(place))


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are worth asking for. oneDNN computes those of a processor, and asks for AVX-512 or
    Arm's instructions; without them torch takes loops that are dozens of times slower, and an LSTM layer is refused."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pick_device(device: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:1" as a device that exists."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("mps"):
        raise ConfigError("device 'mps' has no 64-bit numbers, which tokens are drawn with: --set training.device=cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device {device!r} cannot be used here: --set training.device=cpu") from None
    return place


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 512) -> float:
    """Floating-point operations a second of a square matrix product, the best of a few: about 20 ms on a CPU."""
    if device.type == "cuda":
        size *= 8
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def operation_time(device: torch.device, count: int = 200) -> float:
    """Seconds from one small operation to the next, the best of a few: a GPU is told of each, and waits for that."""
    number, best = torch.zeros(1, device=device), float("inf")
    for _ in range(6):
        begin = time.perf_counter()
        for _ in range(count):
            number += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best / count


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products, and the residual stream of a Transformer, in bfloat16 where that was chosen; master weights and
    losses stay float32. A run that was begun elsewhere stays in float32 on a device that has none."""
    if precision != "bfloat16" or not has_bfloat16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def keep_memory() -> None:
    """Tell glibc to keep freed memory: large tensors are otherwise mapped, cleared and unmapped at every step.

    Does nothing on other C libraries. The parameters are those of mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD and
    M_MMAP_THRESHOLD.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    # Older versions refuse a threshold above 32 MiB for mapping; then nothing is changed, because setting any of the
    # three turns the library's own adaptation off.
    if mallopt(-3, 2**30):
        mallopt(-1, 2**31 - 1)
        mallopt(-2, 64 * 2**20)
