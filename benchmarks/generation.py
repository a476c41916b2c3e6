"""Tokens a second beside Hugging Face generate, CTranslate2 and llama.cpp, in one run.

    python benchmarks/generation.py                                     # ours and Hugging Face
    python benchmarks/generation.py --ctranslate2 PYTHON --llama PYTHON # with interpreters that have them
    python benchmarks/generation.py --shapes gpt2-124m lstm --rounds 5

Every contestant lives in a process of its own (two OpenMP run-times in one process do not get along), holds a model of
the same shape with random weights, and waits. They are asked in turn, A B C A B C, and what is told are medians: so a
slow minute of the machine meets all of them. Interpreters for the peers, each a venv:

    pip install torch==2.13.0 transformers ctranslate2==4.8.5
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36 gguf

All texts have a prompt (or a source) of 32 tokens and go on for 64; nothing ends them earlier. Time is from the call to
the last token, the reading of the prompt included.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
COLUMNS = ((1, 1), (8, 1), (32, 1), (1, 4))  # rows and beams
SHAPES = ("gpt2-124m", "char-10m", "smollm2-135m", "lstm", "encdec-60m")
OURS = ("float32", "bfloat16", "int8", "int4")
WHOLE = ("float32", "bfloat16")
PEERS = {
    "gpt2-124m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8"), "llama": ("Q8_0", "Q4_0")},
    "char-10m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8"), "llama": ("Q8_0", "Q4_0")},
    "smollm2-135m": {"hugging_face": WHOLE, "llama": ("Q8_0", "Q4_0")},
    "lstm": {"plain_lstm": WHOLE},
    "encdec-60m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8")},
}
COMPARED = ("hugging_face", "plain_lstm")  # the better figure of these is 1


class Contestant:
    """A process that holds a model and writes when asked."""

    def __init__(self, python: str, peer: str, shape: str, kind: str) -> None:
        self.name = f"{peer.rstrip('_')} {kind}"
        command = [python, str(HERE / "peers" / f"{peer}.py"), shape, kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask({})  # it is ready

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"{self.name} ended without an answer")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(shape: str, pythons: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """Median tokens a second of every contestant in every column; None where it does not do that."""
    peers = [(peer, kind) for peer, kinds in PEERS[shape].items() if peer in pythons for kind in kinds]
    contestants = [Contestant(pythons[peer], peer, shape, kind) for peer, kind in peers]
    contestants += [Contestant(sys.executable, "textwright_", shape, kind) for kind in OURS]
    rows = []
    for count, beams in COLUMNS:
        job = {"rows": count, "beams": beams}
        rates: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
        for turn in range(rounds + 1):  # the first one is not counted
            for contestant in contestants:
                answer = contestant.ask(job)
                if turn and answer["seconds"] is not None:
                    rates[contestant.name].append(answer["tokens"] / answer["seconds"])
        medians = {name: statistics.median(values) if values else None for name, values in rates.items()}
        best = max((rate or 0.0 for name, rate in medians.items() if name.split()[0] in COMPARED), default=0.0)
        for name, value in medians.items():
            ratio = value / best if value and best else None
            rows.append({"shape": shape, "rows": count, "beams": beams, "who": name, "rate": value, "ratio": ratio})
            shown = "–" if value is None else f"{value:8.1f} tokens/s" + ("" if ratio is None else f"  {ratio:5.2f}")
            print(f"{shape:12s} rows {count:2d} beams {beams}  {name:24s} {shown}", flush=True)
    for contestant in contestants:
        contestant.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ctranslate2", help="an interpreter with torch, transformers and ctranslate2")
    parser.add_argument("--llama", help="an interpreter with llama-cpp-python and gguf")
    asked = parser.parse_args()
    pythons = {"hugging_face": sys.executable, "plain_lstm": sys.executable}
    pythons |= {name: python for name, python in (("ctranslate", asked.ctranslate2), ("llama", asked.llama)) if python}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    for shape in asked.shapes:
        rows = measure(shape, pythons, asked.rounds)
        document = {"machine": machine, "torch": torch.__version__, "rounds": asked.rounds, "results": rows}
        (HERE / "results" / f"generation-{shape}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
