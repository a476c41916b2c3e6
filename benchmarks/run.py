"""Training steps beside plain PyTorch's on this machine: A B A B in one process, medians.

    make bench                                # these and the other parts, about an hour on two cores
    python benchmarks/run.py training         # one part: training, recurrent
    make bench-gpu                            # a 124 M Transformer and the LSTM on a GPU

Absolute figures drift from machine to machine and with what else runs there; the ratios count. The rate of square
matrix products is measured between the rounds, and memory before them, a process for each contestant. Results go to
benchmarks/results/, from which `tables.py` makes its tables.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from memory import peak as resident_peak
from tables import keep, versions
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from textwright.models import LanguageModel, LSTMConfig, TransformerConfig
from textwright.text.batching import Batch
from textwright.training import hardware
from textwright.training.compiling import compile_blocks
from textwright.training.gradients import clip
from textwright.training.objective import Objective
from textwright.training.optimizer import AdamConfig
from textwright.training.sampled import Sampler

Step = Callable[[], Any]
# One model for both: nanoGPT's activation, which torch has fused (GPT-2's own is written out in Python and slower), and
# biases, which Hugging Face's GPT-2 always has.
PLAIN: dict[str, Any] = {"activation_function": "gelu", "use_cache": False, "bos_token_id": None, "eos_token_id": None}
SAME: dict[str, Any] = {"positions": "learned", "feed_forward": "gelu", "bias": True}


class Contestant(NamedTuple):
    """How a step is made, and the precision of its matrix products."""

    precision: hardware.Precision
    make: Callable[[], Step]


@dataclass(frozen=True)
class Part:
    """What is compared; the first contestant is what the others are compared with. Those whose precision a device does
    not have are left out.

    Attributes:
        device: where the steps run.
        tokens: of a step.
        rounds: that are timed.
        counted: whether matrix products are counted, in the first one's step; torch counts none in fused LSTMs.
    """

    device: torch.device
    tokens: int
    rounds: int
    contestants: dict[str, Contestant]
    counted: bool = True


# what is compared -----------------------------------------------------------------------------------------------------


def training() -> Part:
    """One optimiser step of nanoGPT's Shakespeare shape: 6 layers, 6 heads, width 384, context 256, batch 64."""
    rows, time_, vocab, rate = 64, 256, 65, 0.2
    tokens = torch.randint(0, vocab, (rows, time_))
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "n_positions": 256, "vocab_size": vocab}
    plain = GPT2Config(**shape, **PLAIN, resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate)
    config = TransformerConfig(
        vocab=vocab, width=384, layers=6, heads=6, window=256, dropout=rate, attention_dropout=rate, **SAME
    )
    contestants = {
        "plain PyTorch loop, float32": Contestant("float32", lambda: hugging_face_step(plain, tokens, None)),
        "plain PyTorch loop, bfloat16 autocast": Contestant(
            "bfloat16", lambda: hugging_face_step(plain, tokens, torch.bfloat16)
        ),
        "textwright, float32": Contestant("float32", lambda: our_step(config.build(), tokens, "float32")),
        "textwright, bfloat16": Contestant("bfloat16", lambda: our_step(config.build(), tokens, "bfloat16")),
    }
    return Part(tokens.device, tokens.numel(), 3, contestants)


def recurrent() -> Part:
    """One step of the WikiText-2 LSTM of pytorch/examples: 2 layers of 200, tied, batch 20, 35 steps, 33,278 words."""
    return word_lstm(torch.device("cpu"))


def gpu_recurrent() -> Part:
    """The same step of the WikiText-2 LSTM, on a GPU."""
    return word_lstm(cuda())


def word_lstm(device: torch.device) -> Part:
    rows, time_, vocab, width = 20, 35, 33_278, 200
    tokens = torch.randint(0, vocab, (rows, time_), device=device)
    config = LSTMConfig(vocab=vocab, width=width, layers=2, dropout=0.2)

    best = precisions(device)[-1]

    def ours(precision: hardware.Precision, sampler: Sampler | None = None) -> Step:
        return our_step(config.build().to(device), tokens, precision, sampler)

    def sampled() -> Step:
        return ours(best, Sampler(tokens.flatten().bincount(minlength=vocab), 1024))

    contestants = {
        "plain torch.nn.LSTM loop, float32": Contestant("float32", lambda: plain_lstm_step(vocab, width, tokens)),
        "textwright, float32": Contestant("float32", lambda: ours("float32")),
        "textwright, bfloat16": Contestant("bfloat16", lambda: ours("bfloat16")),
        f"textwright, {best}, softmax from 1,024 samples": Contestant(best, sampled),
    }
    return Part(device, tokens.numel(), 9, contestants, counted=False)


def cuda() -> torch.device:
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: nothing is measured")
    return torch.device("cuda")


def gpu() -> Part:
    """One optimiser step of GPT-2's shape, 124 M parameters, 16 rows of 1,024 tokens, on a GPU."""
    device = cuda()
    tokens = torch.randint(0, 50_257, (16, 1024), device=device)
    config = TransformerConfig(vocab=50_257, width=768, layers=12, heads=12, window=1024, **SAME)
    shape = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50_257}
    plain = GPT2Config(**shape, **PLAIN, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

    def ours(*, compiled: bool) -> Step:
        model = config.build().to(device)
        if compiled:
            compile_blocks(model, device)
        return our_step(model, tokens, "bfloat16")

    def theirs(*, compiled: bool) -> Step:
        return hugging_face_step(plain, tokens, torch.bfloat16, compiled=compiled)

    contestants = {
        "plain PyTorch loop, bfloat16 autocast": Contestant("bfloat16", lambda: theirs(compiled=False)),
        "the same, torch.compile": Contestant("bfloat16", lambda: theirs(compiled=True)),
        "textwright, bfloat16": Contestant("bfloat16", lambda: ours(compiled=False)),
        "textwright, bfloat16, training.compile": Contestant("bfloat16", lambda: ours(compiled=True)),
    }
    return Part(tokens.device, tokens.numel(), 9, contestants)


def precisions(device: torch.device) -> tuple[hardware.Precision, ...]:
    """Those that a device has, the coarsest last."""
    return ("float32", "bfloat16") if hardware.has_bfloat16(device) else ("float32",)


PARTS = {"training": training, "recurrent": recurrent, "gpu": gpu, "gpu-recurrent": gpu_recurrent}


# who is compared ------------------------------------------------------------------------------------------------------


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


def hugging_face_step(
    config: GPT2Config, tokens: torch.Tensor, dtype: torch.dtype | None, *, compiled: bool = False
) -> Step:
    model = GPT2LMHeadModel(config).to(tokens.device).train()
    if compiled:
        model.compile()
    return plain_step(model, lambda: model(tokens).logits, tokens, dtype)


def plain_lstm_step(vocab: int, width: int, tokens: torch.Tensor) -> Step:
    model = nn.ModuleList([nn.Embedding(vocab, width), nn.LSTM(width, width, 2, dropout=0.2, batch_first=True)])
    head = nn.Linear(width, vocab)
    head.weight = model[0].weight
    model.append(head)
    model.to(tokens.device)

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


# how it is measured ---------------------------------------------------------------------------------------------------


def measure(name: str) -> None:
    part = PARTS[name]()
    able = {who: one for who, one in part.contestants.items() if one.precision in precisions(part.device)}
    peaks = {who: peak(name, who) for who in able}  # first: a GPU's memory is still free
    steps = {who: contestant.make() for who, contestant in able.items()}
    first = next(iter(steps))
    work = matrix_work(steps[first]) if part.counted else 0
    seconds, rates = side_by_side(part.device, steps, part.rounds)
    rows: list[dict[str, Any]] = []
    for who, contestant in able.items():
        taken = seconds[who]
        row = {"who": who, "precision": contestant.precision, "tokens/s": part.tokens / taken, "seconds": taken}
        row |= {"ratio": seconds[first] / taken, "peak GiB": peaks[who]}
        rows.append(row | ({"GFLOP/s": work / taken / 1e9} if work else {}))
        print(f"{who:50s} {taken:8.3f} s  {seconds[first] / taken:5.2f} times", flush=True)
    keep(name, rows, versions("transformers"), part.device.type, **{"matrix GFLOP/s": rates})


def side_by_side(
    device: torch.device, steps: dict[str, Step], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each step, and the best GFLOP/s of square matrix products in each precision; every round runs
    all of them in turn, after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates: dict[str, list[float]] = {precision: [] for precision in precisions(device)}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - begin)
        for precision in precisions(device):
            rates[precision].append(hardware.matmul_rate(device, getattr(torch, precision), 2048) / 1e9)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians, {precision: max(values) for precision, values in rates.items()}


def matrix_work(step: Step) -> int:
    """Operations of the matrix products in a step, forward and backward; 2 for a multiplication with its addition."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak(name: str, who: str) -> float:
    """GiB at most in use by a process that does this alone: resident memory, or the GPU's."""
    command = [sys.executable, __file__, "--peak", name, who]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def own_peak(name: str, who: str) -> float:
    part = PARTS[name]()
    step = part.contestants[who].make()
    step()
    if part.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # the first step may have compiled
    step()
    return torch.cuda.max_memory_allocated() / 2**30 if part.device.type == "cuda" else resident_peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: the first two")
    parser.add_argument("--peak", nargs=2, metavar=("PART", "WHO"), help="memory of one contestant, in this process")
    asked = parser.parse_args()
    unknown = set(asked.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    hardware.keep_memory()  # for all contestants alike
    if asked.peak:
        print(own_peak(*asked.peak))
        return
    for name in asked.parts or ["training", "recurrent"]:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        measure(name)


if __name__ == "__main__":
    main()
