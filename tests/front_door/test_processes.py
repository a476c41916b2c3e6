"""Several processes and killed ones, through the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from door import Run

STEPS = 24

# The command, which notes the threads of its process: while it has a group, and at its end.
WATCHED = """
import atexit, os, runpy
from pathlib import Path
import torch.distributed as dist

def note(when):
    names = []
    for thread in os.listdir("/proc/self/task"):
        try:
            names.append(Path("/proc/self/task", thread, "comm").read_text())
        except OSError:  # it has just ended
            pass
    Path("FOLDER", when + os.environ["RANK"]).write_text("".join(names))

def watched():
    note("within-")
    leave()

leave, dist.destroy_process_group = dist.destroy_process_group, watched
atexit.register(note, "after-")
runpy.run_module("textwright", run_name="__main__")
"""

# The command, in whose first process the disk is full after two steps.
FULL = """
import os, runpy
from textwright.errors import CheckpointError
from textwright.training import state

def save(folder, progress, tensors):
    if progress.step >= 2:
        raise CheckpointError("cannot write the save: No space left on device")
    whole(folder, progress, tensors)

if os.environ["RANK"] == "0":
    whole, state.save = state.save, save
runpy.run_module("textwright", run_name="__main__")
"""


def launch(
    text: Path,
    out: Path,
    family: str,
    processes: int,
    steps: int = STEPS,
    program: tuple[str, ...] = ("-m", "textwright"),
    fails: str = "",
    **changes: object,
) -> str:
    """`torchrun` (or plain Python for one process) with a global batch that does not depend on their number."""
    settings = {
        "model.width": 16,
        "model.layers": 2,
        "model.dropout": 0.0,
        "training.batch_tokens": 256,
        "training.context": 16,
        "training.precision": "float32",
        "training.log_every": 1,
        "training.evaluations": 3,
        "training.save_seconds": 0,
        "training.label_smoothing": 0.1,
        "training.optimizer.kind": "adamw",
        **changes,
    }
    if family == "transformer":
        settings["model.window"] = 16
    words = [*program, "train", str(text), "--model", family, "--tokenizer", "byte", "--out", str(out)]
    words += ["--steps", str(steps)] + [w for name, value in settings.items() for w in ("--set", f"{name}={value}")]
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    result = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, check=False)
    assert bool(result.returncode) == bool(fails), result.stderr[-3000:]
    assert fails in result.stderr
    assert "Warning" not in result.stderr
    return result.stderr


def curve(out: Path) -> list[float]:
    (save,) = (out / "training").glob("step-*")
    return [record["loss"] for record in json.loads((save / "progress.json").read_text())["steps"]]


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_two_processes_give_the_curve_of_one(text: Path, tmp_path: Path, family: str) -> None:
    """Also where each of them gathers a step from several parts, where the embedding begins from the text, and under
    Muon, whose updates have products of their own."""
    begun = {"training.embedding": "cooccurrence", "training.optimizer.kind": "muon"} if family == "lstm" else {}
    launch(text, tmp_path / "one", family, 1, **begun)
    launch(text, tmp_path / "two", family, 2, **begun)
    one, two = (curve(tmp_path / name) for name in ("one", "two"))
    assert len(one) == STEPS
    assert two == pytest.approx(one, abs=1e-5)
    if family == "transformer":
        launch(text, tmp_path / "parts", family, 2, **{"training.accumulation": 3})
        assert curve(tmp_path / "parts") == pytest.approx(one, abs=1e-5)


def test_two_processes_resume_what_they_left(text: Path, tmp_path: Path) -> None:
    """Ended by its budget and continued with a larger one, under a rate that does not depend on the budget."""
    steady = {"training.schedule.kind": "constant", "training.schedule.warmup": 5}
    launch(text, tmp_path / "whole", "lstm", 2, **steady)
    launch(text, tmp_path / "resumed", "lstm", 2, steps=STEPS // 2, **steady)
    launch(text, tmp_path / "resumed", "lstm", 2, **steady)
    assert curve(tmp_path / "resumed") == curve(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads the names of threads from /proc")
@pytest.mark.parametrize("fails", ["", "training diverged"])
def test_a_process_leaves_no_thread_of_its_group_behind(text: Path, tmp_path: Path, fails: str) -> None:
    """One that still held a tensor when the interpreter shut down aborted the process now and then."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    rate = {"training.optimizer.learning_rate": 1e38} if fails else {}
    launch(text, tmp_path / "run", "lstm", 2, steps=2, program=(str(script),), fails=fails, **rate)
    for rank in range(2):
        within, after = ((tmp_path / f"{when}-{rank}").read_text(encoding="utf-8") for when in ("within", "after"))
        assert "gloo" in within
        assert after and "gloo" not in after


def test_a_process_whose_first_one_failed_does_not_take_it_for_a_defect(text: Path, tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL, encoding="utf-8")
    told = launch(text, tmp_path / "run", "lstm", 2, steps=4, program=(str(script),), fails="No space left on device")
    assert "defect" not in told
    launch(text, tmp_path / "run", "lstm", 2, steps=4)  # nothing is lost
    assert len(curve(tmp_path / "run")) == 4


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_killed_runs_continue_bit_for_bit(run: Run, family: str) -> None:
    result = run("verify-resume", "--kills", "3", "--steps", "30", "--model", family)
    assert result.code == 0, result.err
    assert "ok: 3 kills" in result.out
