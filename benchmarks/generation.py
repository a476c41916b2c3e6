"""Tokens a second beside Hugging Face generate, CTranslate2 and llama.cpp, in one run.

    make bench                                                       # this and the other parts
    python benchmarks/generation.py                                  # ours and Hugging Face
    python benchmarks/generation.py --peers PYTHON                   # with what that interpreter has of the others
    python benchmarks/generation.py --shapes gpt2-124m lstm --rounds 5

Every contestant lives in a process of its own, holds a model of the same shape with random weights, and waits. They are
asked in turn, A B C A B C, and what is told are medians: so a slow minute of the machine meets all of them. All models
of a shape are in memory at once. CTranslate2 and llama.cpp have an environment of their own, which `make bench` builds;
llama.cpp is compiled there, and left out where that fails.

All texts have a prompt (or a source) of 32 tokens and go on for 64; nothing ends them earlier. Time is from the call to
the last token, the reading of the prompt included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tables import COLUMNS, SHAPES, keep, versions

from textwright.training import hardware

HERE = Path(__file__).parent
KINDS = ("float32", "bfloat16", "int8", "int4")
WHOLE = ("float32", "bfloat16")
PEERS = {
    "gpt2-124m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8"), "llama": ("Q8_0", "Q4_0")},
    "char-10m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8"), "llama": ("Q8_0", "Q4_0")},
    "smollm2-135m": {"hugging_face": WHOLE, "llama": ("Q8_0", "Q4_0")},
    "lstm": {"plain_lstm": WHOLE},
    "encdec-60m": {"hugging_face": WHOLE, "ctranslate": ("float32", "int8")},
}
LIBRARIES = {"ctranslate": "ctranslate2", "llama": "llama-cpp-python"}  # where others live that are compared
COMPARED = ("hugging_face", "plain_lstm")  # the better figure of these is 1


class Contestant:
    """A process that holds a model and writes when asked. One that ends has no figure from then on."""

    def __init__(self, python: str, peer: str, shape: str, kind: str) -> None:
        self.name = f"{peer.rstrip('_')} {kind}"
        command = [python, str(HERE / "peers" / f"{peer}.py"), shape, kind]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as many for everybody
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )
        self.ended = False
        self.ask({"rows": 1, "beams": 1})  # it is ready

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        if not self.ended:
            print(f"{self.name} ended without an answer", flush=True)
            self.ended = True
        return {"tokens": None, "seconds": None}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def able(kind: str) -> bool:
    """Whether this processor has it: without instructions for bfloat16 nobody would write in it."""
    return kind != "bfloat16" or hardware.has_bfloat16(torch.device("cpu"))


def measure(shape: str, pythons: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """Median tokens a second of every contestant in every column; None where it does not do that."""
    peers = [(peer, kind) for peer, kinds in PEERS[shape].items() if peer in pythons for kind in kinds if able(kind)]
    contestants = [Contestant(pythons[peer], peer, shape, kind) for peer, kind in peers]
    contestants += [Contestant(sys.executable, "textwright_", shape, kind) for kind in KINDS if able(kind)]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with ctranslate2 or llama-cpp-python or both")
    asked = parser.parse_args()
    pythons, libraries = dict.fromkeys(COMPARED, sys.executable), versions("transformers")
    for peer, library in LIBRARIES.items():
        found = versions(library, python=asked.peers) if asked.peers else {}
        if found:
            pythons[peer] = asked.peers
            libraries |= found
        else:
            print(f"without {library}: --peers names no interpreter that has it", flush=True)
    for shape in asked.shapes:
        keep(f"generation-{shape}", measure(shape, pythons, asked.rounds), libraries=libraries, rounds=asked.rounds)


if __name__ == "__main__":
    main()
