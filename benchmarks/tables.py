"""Results of the benchmarks: kept as JSON, one file a part and kind of machine; shown in docs/benchmarks.md.

    python benchmarks/tables.py        # prints them

A file holds when and on what machine its part was measured, so parts may be measured again one at a time; the document
follows each time. A run replaces only what was measured on the same kind of machine: with AMX, AVX-512 or AVX2 alone,
or on a GPU. A ratio is to what stood beside it in the same run; rates of different days do not compare.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by benchmarks/tables.py -->\n", "<!-- until here -->\n"
SHAPES = {
    "gpt2-124m": "GPT-2's shape, 124 M parameters, 50,257 words, greedy",
    "char-10m": "10.6 M parameters, 65 characters, sampling from the top 20",
    "smollm2-135m": "SmolLM2-135M's shape (Llama, 30 layers, 49,152 words), greedy",
    "lstm": "LSTM of 2 × 650, 10,000 words, greedy",
    "encdec-60m": "encoder-decoder of 6 + 6 × 512, 32,000 words, greedy",
}
COLUMNS = {(1, 1): "1 row", (8, 1): "8 rows", (32, 1): "32 rows", (1, 4): "beam 4"}
OURS = "textwright"
WHO = {
    "hugging_face": "Hugging Face",
    "plain_lstm": "plain loop",
    "ctranslate": "CTranslate2",
    "llama": "llama.cpp",
    OURS: "**textwright**",
}
Row = dict[str, Any]
Part = dict[str, Any]


def keep(name: str, results: Any, libraries: dict[str, str], device: str = "cpu", **facts: Any) -> None:
    """Write results/KIND/NAME.json for the kind of this machine, and the document's tables.

    Args:
        results: what the part's table is made of.
        libraries: versions of those that were compared with.
        device: that was measured: "cpu" or "cuda".
        facts: whatever else the table needs.
    """
    about = {"measured": date.today().isoformat(), "machine": machine(device), "device": device}
    about |= {"libraries": versions("torch") | libraries, **facts}
    text = json.dumps(about | {"results": results}, indent=1) + "\n"
    folder = RESULTS / kind(device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    before, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{DOCUMENT} has no place for the tables: put {BEGIN.strip()} and {END.strip()} into it")
    DOCUMENT.write_text(before + begin + "\n" + tables() + "\n" + end + after, encoding="utf-8")


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.partition(":")[2].strip() for line in _told().splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    kinds = torch.backends.cpu.get_cpu_capability() + (" and AMX" if kind(device) == "amx" else "")
    return f"{processor}, {kinds}, {os.cpu_count()} virtual cores, {torch.get_num_threads()} thread(s)"


def kind(device: str) -> str:
    """What decides which kernels there are."""
    if device == "cuda":
        return device
    return "amx" if "amx_bf16" in _told() else torch.backends.cpu.get_cpu_capability().lower()


def _told() -> str:
    """What the system says of its processors, if it does."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""


def versions(library: str, python: str = sys.executable) -> dict[str, str]:
    """The version of a library that an interpreter has, by name; empty if it has none."""
    ask = [python, "-c", f"from importlib.metadata import version; print(version('{library}'))"]
    answer = subprocess.run(ask, capture_output=True, text=True)
    return {library: answer.stdout.strip()} if answer.returncode == 0 else {}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], figures_from: int = 1) -> str:
    """Markdown; columns from `figures_from` on are set right."""
    heads = list(heads)
    rule = "".join("|---" if column < figures_from else "|---:" for column in range(len(heads))) + "|\n"
    first, *others = ["| " + " | ".join(cells) + " |\n" for cells in (heads, *rows)]
    return first + rule + "".join(others)


def verdict(goal: float, what: str, reached: float, most: bool = False) -> str:
    """One line: the goal (at least, or at `most`), what was reached, and whether that is enough."""
    met = reached <= goal if most else reached >= goal
    bound, end = "at most" if most else "at least", "met" if met else "missed"
    return f"- Goal: {bound} {goal:g} {what}. Reached: **{reached:.2f}**, {end}.\n"


def steps(part: Part) -> str:
    """Training steps: time, share of the rate of matrix products in the same run, memory."""
    rows, counted = part["results"], "GFLOP/s" in part["results"][0]
    heads = ["", "tokens/s", "seconds a step", "times the first", "peak GiB"]
    kinds = {"tokens/s": ",.0f", "seconds": ".3f", "ratio": ".2f", "peak GiB": ".2f"}
    lines = [[row["who"], *(format(row[key], kind) for key, kind in kinds.items())] for row in rows]
    if counted:
        heads += ["GFLOP/s", "of the products' rate"]
        for line, row in zip(lines, rows, strict=True):
            share = row["GFLOP/s"] / part["matrix GFLOP/s"][row["precision"]]
            line += [f"{row['GFLOP/s']:,.0f}", f"{share:.0%}"]
    rates = ", ".join(f"{rate:,.0f} in {precision}" for precision, rate in part["matrix GFLOP/s"].items())
    return f"Matrix products in the same run, GFLOP/s: {rates}.\n\n" + table(heads, lines)


def training(part: Part) -> str:
    """Two goals of the whole step: beside the plain loop, and beside the machine's products."""
    ours = max((row for row in part["results"] if row["who"].startswith(OURS)), key=lambda row: row["ratio"])
    first = part["results"][0]["who"]
    goals = verdict(5, f"times the {first}", ours["ratio"]) if part["device"] == "cpu" else ""
    share = ours["GFLOP/s"] / part["matrix GFLOP/s"][ours["precision"]]
    return steps(part) + "\n" + goals + verdict(0.5, "of the rate of the matrix products", share)


def preparation(part: Part) -> str:
    rows = part["results"]
    lines = [
        [row["who"], f"{row['MB']:,.0f}", f"{row['seconds']:.1f}", f"{row['MB/s']:.2f}", f"{row['peak GiB']:.2f}"]
        for row in rows
    ]
    shown = table(["", "MB of text", "seconds", "MB/s", "peak GiB"], lines)
    if len(rows) < 2:
        return shown + "\n" + verdict(2, "GiB of resident memory", max(row["peak GiB"] for row in rows), most=True)
    return shown + "\n" + verdict(0.8, "times the library's speed", rows[1]["MB/s"] / rows[0]["MB/s"])


def curves(part: Part) -> str:
    ends = {who: curve[-1] for who, curve in part["results"].items()}
    ours = {who for who in ends if who.startswith("textwright")}
    target = min(loss for who, (_, loss) in ends.items() if who not in ours)
    lines = []
    for who, curve in part["results"].items():
        there = next((f"{seconds:.0f}" for seconds, loss in curve if loss <= target), "–")
        lines.append([f"**{who}**" if who in ours else who, f"{curve[-1][1]:.3f}", f"{curve[-1][0]:.0f}", there])
    return table(["", "validation loss, nats a token", "after seconds", f"seconds to {target:.3f}"], lines)


def agreement(part: Part) -> str:
    """Means over the seeds, and how far each is from the first one's with the same seed."""
    runs = {who: torch.tensor(curves) for who, curves in part["results"].items()}
    first, lines = next(iter(runs.values())), []
    for who, curves in runs.items():
        apart = curves[:, -1] - first[:, -1]
        told = "–" if curves is first else f"{apart.mean():+.4f} ± {apart.std():.4f}"
        lines.append([who, *(f"{loss:.3f}" for loss in curves.mean(0).tolist()), told])
    return table(["validation loss after steps", *map(str, part["looks"]), "less the first"], lines)


def generation(part: Part) -> str:
    """Tokens a second and, in brackets, the ratio to the better figure of the reference."""
    rows: list[Row] = part["results"]
    lines, best = [], dict.fromkeys(COLUMNS, 0.0)
    for who in dict.fromkeys(row["who"] for row in rows):
        engine, kind = who.split()
        cells = {(row["rows"], row["beams"]): row for row in rows if row["who"] == who}
        lines.append([f"{WHO[engine]}, {kind}", *(cell(cells[column]) for column in COLUMNS)])
        if engine == OURS:
            best = {column: max(ratio, cells[column]["ratio"] or 0.0) for column, ratio in best.items()}
    compared = {(row["rows"], row["beams"]) for row in rows if row["ratio"]}  # where the reference has a figure
    least = min((best[column] for column in compared), default=0.0)
    goal = verdict(3, "times the better figure of the reference, in every column", least)
    return table(["", *COLUMNS.values()], lines) + "\n" + goal


def cell(row: Row) -> str:
    if row["rate"] is None:
        return "–"
    return f"{row['rate']:,.0f}" + (f" ({row['ratio']:.2f})" if row["ratio"] else "")


def translation(part: Part) -> str:
    """JoeyNMT's row, then ours."""
    joey, own = part["results"]
    kinds = {"tokens/s": ",.0f", "updates": ",.0f", "minutes": ".1f", "BLEU": ".2f", "chrF": ".2f"}
    for beams in (5, 1):
        kinds |= {f"beam {beams}: {what}": ",.0f" for what in ("tokens/s", "sentences/s")}
        kinds[f"beam {beams}: tokens a text"] = ".1f"
    lines = [
        [f"{row['who']}, {row['precision']}", *(format(row[key], kind) for key, kind in kinds.items())]
        for row in (joey, own)
    ]
    heads = ["", "training, target tokens/s", *list(kinds)[1:]]
    shown = f"{part['minutes']:g} minutes each, then {part['sentences']:,} sentences.\n\n" + table(heads, lines)
    goals = verdict(4, "times its training", own["tokens/s"] / joey["tokens/s"])
    goals += verdict(5, "times its writing at beam 5", own["beam 5: tokens/s"] / joey["beam 5: tokens/s"])
    return (
        shown
        + "\n"
        + goals
        + verdict(5, "times its greedy writing", own["beam 1: tokens/s"] / joey["beam 1: tokens/s"])
    )


PARTS: dict[str, tuple[str, Callable[[Part], str]]] = {
    "training": ("A step of nanoGPT's Shakespeare shape (6 × 384, context 256, batch 64, dropout 0.2)", training),
    "recurrent": ("A step of the WikiText-2 LSTM of pytorch/examples (2 × 200, tied, 33,278 words)", steps),
    "gpu": ("A step of GPT-2's shape, 124 M parameters, 16 rows of 1,024 tokens", training),
    "gpu-recurrent": ("The same step of the WikiText-2 LSTM, on a GPU", steps),
    "preparation": ("From a text to token ids, BPE of 8,000", preparation),
    "preparation-large": ("A text of 5 GB: preparation and 200 steps of training", preparation),
    "curves-tinyshakespeare": ("tinyshakespeare by characters, at equal time", curves),
    "curves-wikitext-2": ("WikiText-2 by words, at equal time", curves),
    "agreement": ("Equal weights and batches: 4 × 128, tinyshakespeare by characters, three seeds", agreement),
    "translation-multi30k": (
        "Multi30k, German to English, beside JoeyNMT: equal shape, tokens and minutes",
        translation,
    ),
    "translation-tatoeba": (
        "Tatoeba, Chinese to English, beside JoeyNMT: equal shape, tokens and minutes",
        translation,
    ),
    **{f"generation-{name}": (f"Writing: {shape}; tokens a second", generation) for name, shape in SHAPES.items()},
}


def tables() -> str:
    """All parts that were measured, as Markdown, on one kind of machine after the other."""
    shown = []
    for name, (title, show) in PARTS.items():
        for path in sorted(RESULTS.glob(f"*/{name}.json")):
            part = json.loads(path.read_text(encoding="utf-8"))
            libraries = ", ".join(f"{library} {version}" for library, version in part["libraries"].items())
            shown.append(f"**{title}.** {part['measured']}, {part['machine']}, {libraries}.\n\n{show(part)}")
    return "\n".join(shown)


if __name__ == "__main__":
    print(tables())
