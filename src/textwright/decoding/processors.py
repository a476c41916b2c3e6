"""The processors, the order they are applied in, and which of them a batch needs.

A processor is a function (logits (rows, vocab) float32, Rows) -> logits. Each reads its parameter per row, so requests
with different settings share a batch without a loop over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from textwright.decoding import penalties, truncation
from textwright.decoding.rows import BANNED, Processor, Rows
from textwright.decoding.rules import Rules
from textwright.decoding.settings import Sampling
from textwright.decoding.watermark import watermark
from textwright.errors import ConfigError, nearest


class Step(NamedTuple):
    """The settings that switch a processor on, and the processor for a batch's rules and end token."""

    switches: tuple[str, ...]
    make: Callable[[Rules, int | None], Processor]


def _always(process: Processor) -> Callable[[Rules, int | None], Processor]:
    return lambda rules, end: process


# In the order they are applied in, unless told otherwise.
STEPS: dict[str, Step] = {
    "end_growth": Step(("end_growth",), lambda rules, end: penalties.end_growth(end)),
    "repetition_penalty": Step(("repetition_penalty",), _always(penalties.repetition_penalty)),
    "frequency_penalty": Step(("presence_penalty", "frequency_penalty"), _always(penalties.presence_and_frequency)),
    "dry": Step(("dry_multiplier",), lambda rules, end: penalties.dry(rules.steering.tables.breakers)),
    "no_repeat_ngram": Step(
        ("no_repeat_ngram",), lambda rules, end: penalties.no_repeat_ngram(rules.steering.tables.exempt)
    ),
    "no_repeat_source_ngram": Step(
        ("no_repeat_source_ngram",), lambda rules, end: penalties.no_repeat_source_ngram(rules.steering.tables.exempt)
    ),
    "watermark": Step(("watermark",), _always(watermark)),
    "temperature": Step(("temperature", "dynamic_temperature"), _always(truncation.temperature)),
    "top_k": Step(("top_k",), _always(truncation.top_k)),
    "top_p": Step(("top_p",), _always(truncation.top_p)),
    "min_p": Step(("min_p",), _always(truncation.min_p)),
    "typical_p": Step(("typical_p",), _always(truncation.typical_p)),
    "epsilon_cutoff": Step(("epsilon_cutoff",), _always(truncation.epsilon_cutoff)),
    "eta_cutoff": Step(("eta_cutoff",), _always(truncation.eta_cutoff)),
    "top_h": Step(("top_h",), _always(truncation.top_h)),
    "top_n_sigma": Step(("top_n_sigma",), _always(truncation.top_n_sigma)),
    "xtc": Step(("xtc_probability",), _always(truncation.xtc)),
    "mirostat": Step(("mirostat",), _always(truncation.mirostat)),
}
ORDER = tuple(STEPS)


def active(
    rows: Rows, rules: Rules, end: int | None, banned: Sequence[int] = (), order: Sequence[str] = ORDER
) -> list[Processor]:
    """The processors that at least one row needs, in order. Changes only when rows join or leave.

    What forbids a token comes first, and no later step can bring it back.
    """
    processors: list[Processor] = []
    if banned:
        forbidden = torch.tensor(banned, device=rows.tokens.device)
        processors.append(lambda logits, rows: logits.index_fill(1, forbidden, BANNED))
    if end is not None and bool((rows.limits[:, 0] > 0).any()):
        processors.append(penalties.before_minimum(end))
    processors += rules.processors(rows)
    for step in order:
        if any(bool((rows.setting(name) != _default(name)).any()) for name in STEPS[step].switches):
            processors.append(STEPS[step].make(rules, end))
    return processors


def check_order(order: Sequence[str], needed: Iterable[str] = ()) -> None:
    """Raise ConfigError for an order with an unknown or repeated step, or without one that is needed."""
    for step in order:
        if step not in STEPS:
            raise ConfigError(f"unknown step {step!r} in the order.{nearest(step, ORDER)}")
    if len(set(order)) < len(order):
        raise ConfigError("a step stands twice in the order")
    for name in needed:
        missing = [step for step in STEPS if name in STEPS[step].switches and step not in order]
        if missing:
            raise ConfigError(f"{name} is asked for, but the order leaves out {missing[0]}: add it")


def _default(name: str) -> float:
    return float(Sampling.model_fields[name].default)
