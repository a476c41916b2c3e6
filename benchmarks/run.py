"""Training steps beside plain PyTorch's on this machine: A B A B in one process, medians.

    make bench                                # these and `generation.py`, about half an hour on two cores
    python benchmarks/run.py training         # one part: training, recurrent
    make bench-gpu                            # a 124 M Transformer on a GPU

Absolute figures drift from machine to machine and with what else runs there; the ratios count. The results are
printed as a table and written to benchmarks/results/.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from textwright.models import LanguageModel, LSTMConfig, TransformerConfig
from textwright.text.batching import Batch
from textwright.training import hardware
from textwright.training.gradients import clip
from textwright.training.objective import Objective
from textwright.training.optimizer import AdamConfig
from textwright.training.sampled import Sampler

RESULTS = Path(__file__).parent / "results"
Step = Callable[[], Any]


def side_by_side(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each; every round runs all of them in turn, after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, step in contestants.items():
            begin = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


# training -------------------------------------------------------------------------------------------------------------


def training() -> list[dict[str, Any]]:
    """One optimiser step of nanoGPT's Shakespeare shape: 6 layers, 6 heads, width 384, context 256, batch 64."""
    rows, time_, vocab, rate = 64, 256, 65, 0.2
    tokens = torch.randint(0, vocab, (rows, time_))
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256, "vocab_size": vocab}
    drops = {"resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": rate}
    config = TransformerConfig(
        vocab=vocab, width=384, layers=6, heads=6, window=256, dropout=rate, attention_dropout=rate, positions="learned"
    )
    contestants = {
        "plain PyTorch loop, float32": hugging_face_step(GPT2Config(**shape, **drops), tokens, None),
        "plain PyTorch loop, bfloat16 autocast": hugging_face_step(
            GPT2Config(**shape, **drops), tokens, torch.bfloat16
        ),
        "textwright, bfloat16": our_step(config.build(), tokens, "bfloat16"),
    }
    work = matrix_work(contestants["plain PyTorch loop, float32"])
    seconds = side_by_side(contestants, 2)
    return rows_of("training step, 10.7 M Transformer, dropout 0.2", seconds, rows * time_, "tokens/s", work)


def recurrent() -> list[dict[str, Any]]:
    """One step of the WikiText-2 LSTM of pytorch/examples: 2 layers of 200, tied, batch 20, 35 steps, 33,278 words."""
    rows, time_, vocab, width = 20, 35, 33_278, 200
    tokens = torch.randint(0, vocab, (rows, time_))
    config = LSTMConfig(vocab=vocab, width=width, layers=2, dropout=0.2)
    contestants = {
        "plain torch.nn.LSTM loop, float32": plain_lstm_step(vocab, width, tokens),
        "textwright, float32": our_step(config.build(), tokens, "float32"),
        "textwright, bfloat16": our_step(config.build(), tokens, "bfloat16"),
        "textwright, bfloat16, softmax from 1,024 samples": our_step(
            config.build(), tokens, "bfloat16", Sampler(tokens.flatten().bincount(minlength=vocab), 1024)
        ),
    }
    return rows_of("training step, WikiText-2 LSTM 200", side_by_side(contestants, 7), rows * time_, "tokens/s")


def gpu() -> list[dict[str, Any]]:
    """One optimiser step of GPT-2's shape, 124 M parameters, 16 rows of 1,024 tokens, on a GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: nothing is measured")
    device = torch.device("cuda")
    tokens = torch.randint(0, 50_257, (16, 1024), device=device)
    config = TransformerConfig(vocab=50_257, width=768, layers=12, heads=12, window=1024, positions="learned")
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50_257}
    peer = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).to(device).train()
    contestants = {
        "plain PyTorch loop, bfloat16 autocast": plain_step(peer, lambda: peer(tokens).logits, tokens, torch.bfloat16),
        "textwright, bfloat16": our_step(config.build().to(device), tokens, "bfloat16"),
    }
    work = matrix_work(contestants["plain PyTorch loop, bfloat16 autocast"])
    seconds = side_by_side(contestants, 9)
    return rows_of("training step, 124 M Transformer", seconds, tokens.numel(), "tokens/s", work)


def our_step(model: LanguageModel, tokens: torch.Tensor, precision: str, sampler: Sampler | None = None) -> Step:
    objective, adam = Objective(model.train(), sampler=sampler), AdamConfig()
    optimizer = adam.build(model)
    if sampler is not None:
        model.embed.sparse = sampler.sparse = True
        optimizer = adam.build_by_rows(model, [model.embed.weight])
    batch = Batch(tokens, tokens, None, None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with hardware.autocast(tokens.device, precision):
            loss = objective(batch).loss
        (loss / batch.count).backward()
        clip(model, 1.0)
        optimizer.step()

    return step


def hugging_face_step(config: GPT2Config, tokens: torch.Tensor, dtype: torch.dtype | None) -> Step:
    model = GPT2LMHeadModel(config).train()
    return plain_step(model, lambda: model(tokens).logits, tokens, dtype)


def plain_lstm_step(vocab: int, width: int, tokens: torch.Tensor) -> Step:
    model = nn.ModuleList([nn.Embedding(vocab, width), nn.LSTM(width, width, 2, dropout=0.2, batch_first=True)])
    head = nn.Linear(width, vocab)
    head.weight = model[0].weight
    model.append(head)

    def forward() -> torch.Tensor:
        x = F.dropout(model[0](tokens), 0.2)
        logits: torch.Tensor = head(F.dropout(model[1](x)[0], 0.2))
        return logits

    return plain_step(model, forward, tokens, None)


def plain_step(
    model: nn.Module, forward: Callable[[], torch.Tensor], targets: torch.Tensor, dtype: torch.dtype | None
) -> Step:
    """The loop that tutorials show."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(targets.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = F.cross_entropy(forward().flatten(0, 1).float(), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def rows_of(what: str, seconds: dict[str, float], amount: int, unit: str, work: int = 0) -> list[dict[str, Any]]:
    """One row a contestant; the ratio is to the first, the peer. `work`: operations in matrix products."""
    first = next(iter(seconds.values()))
    rows = []
    for who, value in seconds.items():
        row = {"what": what, "who": who, "rate": amount / value, "unit": unit, "seconds": value, "ratio": first / value}
        if work:
            row["GFLOP/s"] = work / value / 1e9
        rows.append(row)
    return rows


def matrix_work(step: Step) -> int:
    """Operations of the matrix products in a step, forward and backward; 2 for a multiplication with its addition."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def main() -> None:
    parts = {"training": training, "recurrent": recurrent, "gpu": gpu}
    chosen = sys.argv[1:] or ["training", "recurrent"]
    hardware.keep_memory()
    device = torch.device("cuda" if "gpu" in chosen and torch.cuda.is_available() else "cpu")
    capability = torch.backends.cpu.get_cpu_capability()
    machine = {
        **({"GPU": torch.cuda.get_device_name()} if device.type == "cuda" else {}),
        "processor": f"{platform.machine()}, {torch.get_num_threads()} threads, {capability}",
        "torch": torch.__version__,
        "float32 GFLOP/s": round(hardware.matmul_rate(device, torch.float32, 2048) / 1e9),
        "bfloat16 GFLOP/s": round(hardware.matmul_rate(device, torch.bfloat16, 2048) / 1e9),
    }
    print("; ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    RESULTS.mkdir(exist_ok=True)
    for part in chosen:
        results = parts[part]()
        (RESULTS / f"{part}.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
        print("\n| what | who | rate | seconds | ratio | GFLOP/s |\n|---|---|---:|---:|---:|---:|")
        for row in results:
            rate, ratio = f"{row['rate']:,.0f} {row['unit']}", f"{row['ratio']:.2f}"
            work = f"{row['GFLOP/s']:,.0f}" if "GFLOP/s" in row else ""
            print(f"| {row['what']} | {row['who']} | {rate} | {row['seconds']:.3f} | {ratio} | {work} |", flush=True)


if __name__ == "__main__":
    main()
