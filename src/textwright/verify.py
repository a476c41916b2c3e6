"""Proof that a killed run continues bit for bit: run it once in peace, once under kill -9, and compare."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from textwright.errors import TrainingError

TEXT = "builtin:python-docs"
SETTINGS = (
    "training.save_seconds=0",  # save after every step
    "training.log_every=1",
    "training.evaluations=4",
    "training.batch_tokens=256",
    "training.context=32",
    "model.width=32",
    "model.layers=2",
    "model.dropout=0.1",
    "training.precision=float32",
)


def command(family: str, steps: int, out: Path) -> list[str]:
    """The command that is killed and typed again."""
    words = [sys.executable, "-m", "textwright", "train", TEXT, "--model", family, "--tokenizer", "byte"]
    words += ["--steps", str(steps), "--out", str(out)]
    window = ("model.window=32",) if family == "transformer" else ()
    return words + [word for setting in (*SETTINGS, *window) for word in ("--set", setting)]


def verify_resume(family: str, kills: int, steps: int, seed: int, tell: Callable[[str], None]) -> None:
    """Kill small runs `kills` times at random moments and compare each, when it has ended, with a quiet one.

    Raises:
        TrainingError: a loss or a weight differs, or a killed folder cannot be continued.
    """
    chance, done, runs = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        expected = _finish(command(family, steps, Path(folder) / "quiet"), Path(folder) / "quiet")
        lasted = time.monotonic() - began
        tell(f"{family}: undisturbed run of {steps} steps took {lasted:.1f} s")
        while done < kills:
            runs += 1
            out = Path(folder) / f"killed-{runs}"
            words = command(family, steps, out)
            while done < kills and _killed(words, chance.uniform(0, lasted)):
                done += 1
                tell(f"  kill {done} of {kills}: {_where(out)}")
            if _finish(words, out) != expected:
                raise TrainingError(f"run {runs} ended differently from the undisturbed one after {done} kills")
            tell(f"  run {runs} ended bit-equal to the undisturbed one")


def _killed(words: list[str], delay: float) -> bool:
    """Start the run and kill it after a while; False when it had ended by itself before."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise TrainingError(f"a killed run could not be continued: {errors.decode(errors='replace').strip()}")
    return False


def _finish(words: list[str], out: Path) -> dict[str, object]:
    """Run to the end; gives all losses as exact text and the weights' bytes."""
    result = subprocess.run(words, capture_output=True, check=False)
    if result.returncode:
        raise TrainingError(f"the run failed: {result.stderr.decode(errors='replace').strip()}")
    (save,) = (out / "training").glob("step-*")
    progress = json.loads((save / "progress.json").read_text(encoding="utf-8"))
    return {
        "steps": [(r["step"], r["loss"].hex(), r["gradient_norm"].hex()) for r in progress["steps"]],
        "evaluations": [(r["step"], r["valid_loss"].hex(), r["sample"]) for r in progress["evaluations"]],
        "weights": {name: (save / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")},
        "best": (out / "model.safetensors").read_bytes(),
    }


def _where(out: Path) -> str:
    saves = sorted((out / "training").glob("step-*"))
    return f"after step {int(saves[-1].name[5:])}" if saves else "before the first save"
