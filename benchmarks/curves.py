"""Training curves at equal time: ours, and the loops that people write themselves, on the same text and machine.

    python benchmarks/curves.py tinyshakespeare DATA          # DATA holds tinyshakespeare/input.txt; 3 minutes each
    python benchmarks/curves.py wikitext-2 DATA --minutes 15  # and wikitext-2/train.txt, valid.txt
    …curves.py tinyshakespeare DATA --peers PYTHON            # an interpreter with transformers and accelerate

DATA is $TEXTWRIGHT_DATA if it is left out. One contestant after the other, nothing else running. The peers' clock
stands still while they are evaluated, ours does not. All are measured on the same first tokens of the validation text.
Curves go to benchmarks/results/ and docs/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tables import keep, versions
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import textwright
from textwright.evaluating.perplexity import head
from textwright.text.batching import Batch, Cursor, Streams, strided
from textwright.text.corpus import Corpus, Prepared, open_prepared
from textwright.text_job import QUICK
from textwright.training import state as saves
from textwright.training.records import Progress

LOOKS = 8  # evaluations of a peer
CPU = {"training.device": "cpu"}  # where the peers are
HERE = Path(__file__).parent
Curve = list[tuple[float, float]]  # seconds of training, validation loss in nats a token


class Peer(NamedTuple):
    """A loop: a step gets the share of the time that is spent, `evaluate` gives a loss."""

    step: Callable[[float], None]
    evaluate: Callable[[], float]


def nano_gpt(data: Prepared) -> Peer:
    """nanoGPT's recipe for a CPU: 4 layers of 128, windows of 64, batches of 12, AdamW 1e-3 with a cosine, float32;
    GELU by torch's function and no decay of vectors, as there. (Its layers have no biases; Hugging Face's GPT-2 has.)
    """
    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": data.train.facts.vocabulary}
    plain = {
        "activation_function": "gelu",
        "use_cache": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    model = GPT2LMHeadModel(GPT2Config(**shape, **plain))
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    text, steps = data.train.tokens, iter(range(10**9))

    def step(share: float) -> None:
        rate = min(1.0, (next(steps) + 1) / 100) * (0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        start = torch.randint(len(text) - 64, (12, 1)) + torch.arange(65)
        rows = text[start].long()
        update(optimizer, model(rows[:, :-1]).logits, rows[:, 1:], lambda: limit(model, 1.0))

    def forward(batch: Batch) -> Tensor:
        return model(batch.tokens).logits

    def evaluate() -> float:
        return mean_loss(model, forward, strided(part(data), 64, 64, 8192, data.tokenizer.end))

    return Peer(step, evaluate)


def char_rnn(data: Prepared) -> Peer:
    """char-rnn's defaults: two layers of 128 over one-hot characters, 50 rows of 50 characters, RMSprop 2e-3, gradients
    clamped to 5, weights from ±0.08, gates that remember at first, no dropout."""
    torch.manual_seed(0)
    vocabulary = data.train.facts.vocabulary
    cell, out = nn.LSTM(vocabulary, 128, 2, batch_first=True), nn.Linear(128, vocabulary)
    model = nn.ModuleList([cell, out])
    for name, weight in model.named_parameters():
        nn.init.uniform_(weight, -0.08, 0.08)
        if "bias_ih" in name:
            nn.init.ones_(weight.data[128:256])
    updates = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95)

    def read(tokens: Tensor, before: Any) -> tuple[Tensor, Any]:
        y, after = cell(F.one_hot(tokens, vocabulary).float(), before)
        return out(y), after

    return classic(data, model, read, updates, rows=50, time_=50, clip=lambda: clamp(model, 5.0))


def word_language_model(data: Prepared) -> Peer:
    """pytorch/examples: two tied layers of 200, 20 rows of 35 words, dropout 0.2, SGD 20, gradient norms to 0.25."""
    torch.manual_seed(0)
    vocabulary = data.train.facts.vocabulary
    embed, cell = nn.Embedding(vocabulary, 200), nn.LSTM(200, 200, 2, dropout=0.2, batch_first=True)
    out = nn.Linear(200, vocabulary)
    nn.init.uniform_(embed.weight, -0.1, 0.1)
    out.weight = embed.weight
    nn.init.zeros_(out.bias)
    model = nn.ModuleList([embed, cell, out])
    updates = torch.optim.SGD(model.parameters(), lr=20.0)

    def read(tokens: Tensor, before: Any) -> tuple[Tensor, Any]:
        y, after = cell(F.dropout(embed(tokens), 0.2, model.training), before)
        return out(F.dropout(y, 0.2, model.training)), after

    return classic(data, model, read, updates, rows=20, time_=35, clip=lambda: limit(model, 0.25))


def classic(
    data: Prepared,
    model: nn.Module,
    read: Callable[[Tensor, Any], tuple[Tensor, Any]],
    updates: torch.optim.Optimizer,
    *,
    rows: int,
    time_: int,
    clip: Callable[[], None],
) -> Peer:
    """The classic loop around torch.nn.LSTM: contiguous text, the state carried over, float32."""
    text = data.train.tokens
    columns = len(text) // rows
    stretches = text[: columns * rows].view(rows, columns).long()
    place, state = 0, None

    def step(share: float) -> None:
        nonlocal place, state
        if place + time_ + 1 > columns:
            place, state = 0, None
        logits, after = read(stretches[:, place : place + time_], state)
        update(updates, logits, stretches[:, place + 1 : place + time_ + 1], clip)
        place, state = place + time_, tuple(leaf.detach() for leaf in after)

    def evaluate() -> float:
        carried = None

        def forward(batch: Batch) -> Tensor:
            nonlocal carried
            logits, carried = read(batch.tokens, carried)
            return logits

        supply = Streams(part(data), 1, 128, data.tokenizer.end, None).batches(Cursor())
        return mean_loss(model, forward, (batch for batch, cursor in until_end(supply)))

    return Peer(step, evaluate)


def until_end(supply: Iterator[tuple[Batch, Cursor]]) -> Iterator[tuple[Batch, Cursor]]:
    for batch, cursor in supply:
        if cursor.epoch:
            return
        yield batch, cursor


def update(optimizer: torch.optim.Optimizer, logits: Tensor, targets: Tensor, clip: Callable[[], None]) -> None:
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    clip()
    optimizer.step()


def limit(model: nn.Module, norm: float) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), norm)


def clamp(model: nn.Module, most: float) -> None:
    nn.utils.clip_grad_value_(model.parameters(), most)


@torch.no_grad()
def mean_loss(model: nn.Module, forward: Callable[[Batch], Tensor], batches: Iterator[Batch]) -> float:
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        losses = F.cross_entropy(forward(batch).flatten(0, 1), batch.targets.flatten(), reduction="sum")
        total, count = total + float(losses), count + int((batch.targets >= 0).sum())
    model.train()
    return total / count


def part(data: Prepared) -> Corpus:
    """What our runs look at while they train."""
    return head(data.valid, QUICK)


def peer_curve(peer: Peer, seconds: float) -> Curve:
    curve, spent, looks = [(0.0, peer.evaluate())], 0.0, 0
    while spent < seconds:
        begin = time.perf_counter()
        peer.step(spent / seconds)
        spent += time.perf_counter() - begin
        if spent >= seconds * (looks + 1) / LOOKS:
            looks += 1
            curve.append((spent, peer.evaluate()))
            print(f"  {spent:.0f} s  {curve[-1][1]:.4f}", flush=True)
    return curve


def trainer_curve(python: str, data: Prepared, seconds: float, folder: Path) -> Curve:
    """Hugging Face's Trainer, in a process and an environment of its own."""
    texts = (data.train.tokens.long(), part(data).tokens.long(), data.train.facts.vocabulary, data.tokenizer.end)
    torch.save(texts, folder / "tokens.pt")
    command = [python, str(HERE / "peers" / "trainer.py"), str(folder / "tokens.pt"), str(seconds)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [(spent, loss) for spent, loss in json.loads(output.splitlines()[-1])]


def our_curve(folder: Path) -> Curve:
    """What a run of ours has written down about itself."""
    save = saves.newest(folder / "training")
    assert save is not None
    progress = Progress.parse(json.loads((save / "progress.json").read_text(encoding="utf-8")))
    return [(record.seconds, record.valid_loss) for record in progress.evaluations]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", choices=["tinyshakespeare", "wikitext-2"])
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("TEXTWRIGHT_DATA", "../shared/data"))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with transformers and accelerate")
    asked = parser.parse_args()
    small, folder = asked.corpus == "tinyshakespeare", asked.data / asked.corpus
    if not folder.is_dir():
        print(f"No curves: {folder} is not there. Give the folder that holds it, or export TEXTWRIGHT_DATA.")
        return
    source = folder / ("input.txt" if small else "train.txt")
    options: dict[str, Any] = {"tokenizer": "char"} if small else {"tokenizer": "word", "valid": folder / "valid.txt"}
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as runs:
        for family in ("transformer", "lstm") if small else ("lstm",):
            out = Path(runs) / family
            textwright.train(source, model=family, minutes=asked.minutes, out=out, settings=CPU, **options)
            curves[f"textwright, {family}"] = our_curve(out)
        data = open_prepared(out / "data")
        peers: dict[str, Callable[[], Peer]] = {
            "nanoGPT's CPU recipe": lambda: nano_gpt(data),
            "char-rnn's LSTM recipe": lambda: char_rnn(data),
        }
        words = {"pytorch/examples' LSTM 200": lambda: word_language_model(data)}
        for name, make in (peers if small else words).items():
            print(name, flush=True)
            curves[name] = peer_curve(make(), 60 * asked.minutes)
        if asked.peers and small:
            try:
                curves["Hugging Face Trainer"] = trainer_curve(asked.peers, data, 60 * asked.minutes, Path(runs))
            except subprocess.CalledProcessError:
                print("Hugging Face's Trainer is left out: it ended with an error")
    keep(f"curves-{asked.corpus}", curves, libraries=versions("transformers"), minutes=asked.minutes)
    picture(curves, HERE.parent / "docs" / f"curves-{asked.corpus}.svg")


def picture(curves: dict[str, Curve], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        trained = [point for point in curve if point[0] > 1]  # before training all are equal, and far above
        axes.plot(*zip(*trained, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="seconds of training", ylabel="validation loss, nats a token")
    finish(figure, axes, path)


def finish(figure: Figure, axes: Axes, path: Path) -> None:
    """What every picture of curves has; without a date, so that the same curves are the same file."""
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
