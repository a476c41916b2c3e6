"""The shapes that are compared, and how a contestant is asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

PROMPT, NEW = 32, 64


@dataclass(frozen=True)
class Shape:
    vocab: int
    width: int
    layers: int
    heads: int = 1
    inner: int = 0
    kv_heads: int = 0  # 0: a GPT-2; otherwise a Llama
    top_k: int = 0  # 0: greedy


SHAPES = {
    "gpt2-124m": Shape(50_257, 768, 12, 12, 3072),
    "char-10m": Shape(65, 384, 6, 6, 1536, top_k=20),
    "smollm2-135m": Shape(49_152, 576, 30, 9, 1536, kv_heads=3),
    "lstm": Shape(10_000, 650, 2),
    "encdec-60m": Shape(32_000, 512, 6, 8, 2048),
}


def prompts(shape: Shape, rows: int) -> list[list[int]]:
    """The same for everybody; ids 0 to 3 may have a meaning."""
    return [[4 + (row * 7919 + place * 104_729) % (shape.vocab - 4) for place in range(PROMPT)] for row in range(rows)]


def serve(write: Callable[[int, int], int | None]) -> None:
    """Answer jobs on standard input: rows and beams -> how many tokens were written (None: cannot do that), and the
    seconds it took."""
    for line in sys.stdin:
        job = json.loads(line)
        begin = time.perf_counter()
        tokens = write(job["rows"], job["beams"])
        seconds = time.perf_counter() - begin
        print(json.dumps({"tokens": tokens, "seconds": None if tokens is None else seconds}), flush=True)
