"""What fine-tuning will take, told before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from textwright import plan, plan_pairs
from textwright.interop.memory import GIB
from textwright.models import LanguageModel
from textwright.models.quantized import weight_bytes
from textwright.run import merge, parse_run
from textwright.run_model import restrict
from textwright.training.checkpoint import learned
from textwright.training.hardware import choose

REACHED = 0.55  # share of the rate of matrix products that a step reached, 135 million parameters, two cores


class Expense(NamedTuple):
    """How many parameters there are and learn, bytes of memory at least, and tokens a second, roughly."""

    parameters: int
    learning: int
    memory: int
    rate: float

    def __str__(self) -> str:
        return (
            f"{self.learning:,} parameters learn, the model has {self.parameters:,}; at least "
            f"{self.memory / GIB:.1f} GiB of memory (weights, and gradients and two moments of what learns); about "
            f"{self.rate:,.0f} tokens a second here"
        )


def expense(asked: Mapping[str, Any]) -> Expense:
    """Of a request of `finetune`; nothing is allocated to find out.

    Raises:
        ConfigError: the request makes no run.
    """
    if asked.get("task", "write") == "write":
        plan.check(asked)
        config = parse_run(merge(plan.neutral(asked), asked))
    else:
        plan_pairs.check(asked)
        config = plan_pairs.parsed(asked)
    with torch.device("meta"):
        model: LanguageModel = config.model.build()
        whole = model.count_parameters()
        model = restrict(model, config)
    learning = sum(parameter.numel() for parameter in learned(model).values())
    table = 0 if config.model.tied else config.model.vocab * config.model.embedded  # takes part in no product
    # With a source there are two stacks, and a token goes through one of them.
    products = (whole - table) // (1 if config.task == "write" else 2)
    # A product a weight forwards and one for what lies below it backwards; what learns has one for itself.
    operations = 4 * products + 2 * min(learning, products)
    training = asked.get("training", {})
    place = choose(training.get("device", "auto"), training.get("precision", "auto"))
    memory = weight_bytes(model) + 12 * learning
    return Expense(whole, learning, memory, place.rate * REACHED / operations)
