"""Fine-tuning SmolLM2-135M on GSM8K, by the command, as in `textwright finetune --help`.

    python benchmarks/finetuning.py BASE OUT [--minutes 20] [--methods lora full dora]

BASE is a run that `textwright import` made. Each method gets the same time. Printed are perplexities of a token of 200
questions and answers that no method saw, before and after, and the largest memory of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HELD = 200  # questions for validation, and as many for the test


def spelled(source: Path, rows: slice, target: Path) -> None:
    """Questions and answers as texts, one a line."""
    lines = source.read_text(encoding="utf-8").splitlines()[rows]
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in map(json.loads, lines)]
    target.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def call(*words: object) -> str:
    """Run the command; what it says goes to standard error."""
    command = [sys.executable, "-m", "textwright", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(run: Path, test: Path) -> dict[str, Any]:
    """The figures of a text that was not learned from."""
    figures: dict[str, Any] = json.loads(call("evaluate", run, "--data", test, "--json"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    options = parser.parse_args()
    data = Path(os.environ.get("TEXTWRIGHT_DATA", "../shared/data")) / "gsm8k"
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / f"{name}.jsonl" for name in ("train", "valid", "test")}
    spelled(data / "train.jsonl", slice(None, -HELD), files["train"])
    spelled(data / "train.jsonl", slice(-HELD, None), files["valid"])
    spelled(data / "test.jsonl", slice(HELD), files["test"])
    print(f"{'method':<8} {'perplexity':>10} {'bits a byte':>11} {'GiB':>6}")
    before = measured(options.base, files["test"])
    print(f"{'before':<8} {before['token_perplexity']:>10.3f} {before['bits_per_byte']:>11.4f}", flush=True)
    for method in options.methods:
        run = options.out / method
        asked = ("--method", method, "--valid", files["valid"], "--minutes", options.minutes, "--out", run)
        call("finetune", options.base, files["train"], *asked)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest child so far
        after = measured(run, files["test"])
        print(
            f"{method:<8} {after['token_perplexity']:>10.3f} {after['bits_per_byte']:>11.4f} {peak:>6.1f}", flush=True
        )


if __name__ == "__main__":
    main()
