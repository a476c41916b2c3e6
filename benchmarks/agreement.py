"""Does the fast path learn what plain PyTorch learns? One Transformer, the same first weights, the same batches.

    python benchmarks/agreement.py DATA      # DATA holds tinyshakespeare/input.txt; some six minutes on two cores

Ours has dropout from cheap bits, attention by plain products at short contexts and a loss that is never whole, in
float32 and with products in bfloat16; the plain one is Hugging Face's GPT-2 under autograd in float32. Only what
dropout draws differs between them, so the plain one runs twice: how far it is from itself with other draws is chance.

DATA is $TEXTWRIGHT_DATA if it is left out. Curves go to benchmarks/results/ and docs/.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from curves import finish
from run import SAME
from tables import keep, versions
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from textwright.interop.formats import foreign
from textwright.models import TransformerConfig
from textwright.models.transformer import TransformerLM
from textwright.text.batching import Batch
from textwright.training import hardware
from textwright.training.gradients import clip
from textwright.training.objective import Objective
from textwright.training.optimizer import AdamConfig

SEEDS = (0, 1, 2)
LOOKS = (50, 100, 150, 200, 250, 300, 400)  # steps after which the validation loss is taken
ROWS, WINDOW, DROPOUT = 8, 128, 0.2
ADAM = AdamConfig(weight_decay=0.0)
WARMUP = 50
JUDGED = 20_000  # characters of the last tenth
PLAIN = "plain PyTorch loop, float32"
AGAIN = "the same with other draws"
HERE = Path(__file__).parent
Curve = list[float]
ATEN = torch.ops.aten


class Rounded(TorchDispatchMode):
    """Products in bfloat16 by a processor that has none: of the rounded numbers, added up in float32, and rounded, as
    torch's own loops do it, which take dozens of times as long. These are all products that come up here: torch takes
    `linear` and `matmul` apart where gradients are kept, and so short a context is no matter for fused attention."""

    PRODUCTS = ATEN.mm, ATEN.bmm, ATEN.addmm, ATEN.baddbmm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in self.PRODUCTS or args[-1].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        return func(*(argument.float() for argument in args), **(kwargs or {})).bfloat16()


def products(precision: str) -> AbstractContextManager[Any]:
    """In bfloat16, whether the processor has it or not."""
    has = precision != "bfloat16" or hardware.has_bfloat16(torch.device("cpu"))
    return nullcontext() if has else Rounded()


def config(vocabulary: int) -> TransformerConfig:
    """nanoGPT's shape for a CPU, with dropout."""
    rates = {"dropout": DROPOUT, "attention_dropout": DROPOUT}
    return TransformerConfig(
        vocab=vocabulary, width=128, layers=4, heads=4, window=WINDOW, norm="layernorm", **rates, **SAME
    )


def plain_of(model: TransformerLM) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with the same weights."""
    described, weights = foreign(model)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT)
    plain = GPT2LMHeadModel(GPT2Config(**described, **rates, use_cache=False, bos_token_id=None, eos_token_id=None))
    missing, unknown = plain.load_state_dict(weights, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)  # tied
    return plain


def learn(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    scores_of: Callable[[Tensor], Tensor],
    limit: Callable[[], object],
    batches: Iterator[tuple[Tensor, Tensor]],
    judged: tuple[Tensor, Tensor],
) -> Curve:
    """The validation loss at every look.

    Args:
        loss_of: the mean loss of inputs and targets (rows, time) in training.
        scores_of: logits of inputs.
        limit: clips gradients.
        judged: inputs and targets of the validation text.
    """
    optimizer, curve = ADAM.build(model.train()), []  # type: ignore[arg-type]
    for step in range(1, LOOKS[-1] + 1):
        for group in optimizer.param_groups:
            group["lr"] = ADAM.learning_rate * min(1.0, step / WARMUP)
        optimizer.zero_grad(set_to_none=True)
        loss_of(*next(batches)).backward()
        limit()
        optimizer.step()
        if step in LOOKS:
            with torch.no_grad():
                scores = scores_of(judged[0])
            curve.append(float(F.cross_entropy(scores.float().flatten(0, 1), judged[1].flatten())))
            model.train()
    return curve


def ours(
    model: TransformerLM, precision: str, batches: Iterator[tuple[Tensor, Tensor]], judged: tuple[Tensor, Tensor]
) -> Curve:
    objective, coarse = Objective(model), precision == "bfloat16"

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
            return objective.train()(Batch(inputs, targets, None, None)).loss / targets.numel()

    def scores_of(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
            return model.eval()(inputs).logits

    with products(precision):
        return learn(model, loss_of, scores_of, lambda: clip(model, 1.0), batches, judged)


def plain(model: GPT2LMHeadModel, batches: Iterator[tuple[Tensor, Tensor]], judged: tuple[Tensor, Tensor]) -> Curve:
    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())

    def limit() -> object:
        return nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    return learn(model, loss_of, lambda inputs: model.eval()(inputs).logits, limit, batches, judged)


def windows(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random stretches, the same ones for a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(len(text) - WINDOW, (ROWS, 1), generator=generator)
        rows = text[start + torch.arange(WINDOW + 1)]
        yield rows[:, :-1], rows[:, 1:]


def contest(text: Tensor, judged: tuple[Tensor, Tensor], vocabulary: int, seed: int) -> Iterator[tuple[str, Curve]]:
    """Everyone's curve from the same weights over the same batches of a text."""
    torch.manual_seed(seed)
    begun = config(vocabulary).build()
    every: list[tuple[str, str | None]] = [(PLAIN, None), (AGAIN, None)]
    emulated = "" if hardware.has_bfloat16(torch.device("cpu")) else " (emulated)"
    every += [("textwright, float32", "float32"), (f"textwright, bfloat16{emulated}", "bfloat16")]
    for number, (who, precision) in enumerate(every, 1):
        batches = windows(text, seed)
        torch.manual_seed(100 * seed + number)  # of dropout
        yield (
            who,
            plain(plain_of(begun), batches, judged)
            if precision is None
            else ours(deepcopy(begun), precision, batches, judged),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("TEXTWRIGHT_DATA", "../shared/data"))
    file = parser.parse_args().data / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        print(f"No curves: {file} is not there. Give the folder that holds it, or export TEXTWRIGHT_DATA.")
        return
    hardware.keep_memory()
    characters = file.read_text(encoding="utf-8")
    alphabet = sorted(set(characters))
    numbers = {character: number for number, character in enumerate(alphabet)}
    text = torch.tensor([numbers[character] for character in characters])
    split = len(text) * 9 // 10
    judged = text[split : split + JUDGED // WINDOW * WINDOW + 1]
    pairs = judged[:-1].view(-1, WINDOW), judged[1:].view(-1, WINDOW)
    curves: dict[str, list[Curve]] = {}
    for seed in SEEDS:
        for who, curve in contest(text[:split], pairs, len(alphabet), seed):
            print(f"seed {seed}  {who:40s} {curve[-1]:.4f}", flush=True)
            curves.setdefault(who, []).append(curve)
    keep("agreement", curves, versions("transformers"), looks=LOOKS)
    picture(curves, HERE.parent / "docs" / "agreement.svg")


def picture(curves: dict[str, list[Curve]], path: Path) -> None:
    """Each contestant's mean over the seeds, less the plain one's, and how far the seeds lie apart."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    first = torch.tensor(curves[PLAIN])
    for who, runs in curves.items():
        if who == PLAIN:
            continue
        apart = torch.tensor(runs) - first
        (line,) = axes.plot(LOOKS, apart.mean(0), marker="o", markersize=3, label=who)
        axes.fill_between(LOOKS, apart.amin(0), apart.amax(0), alpha=0.2, color=line.get_color())
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="steps", ylabel="validation loss less the plain loop's, nats")
    finish(figure, axes, path)


if __name__ == "__main__":
    main()
