"""Defaults that depend on the machine: what keeps a device at work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textwright import plan, plan_pairs
from textwright.plan import FULL, Situation, full_batch
from textwright.plan_pairs import PairSituation
from textwright.run import merge, parse_run
from textwright.text.corpus import Facts
from textwright.training.hardware import Hardware, operation_time

FACTS = Facts(vocabulary=100, tokens=10_000_000)


def machine(rate: float, latency: float) -> Hardware:
    return Hardware(torch.device("cpu"), "float32", rate, latency)


LAPTOP, GPU = machine(1.5e11, 2e-6), machine(4e14, 5e-6)


def planned(hardware: Hardware, processes: int = 1, **asked: Any) -> dict[str, Any]:
    asked["training"] = {"budget": {"minutes": 3.0}, **asked.get("training", {})}
    found = plan.defaults(asked, Situation(FACTS, hardware, processes))
    config = parse_run(merge(found, {"source": {"path": "a.txt"}, "tokenizer": {"kind": "char"}, **asked}))
    assert config.training.batch_tokens % config.training.context == 0
    return found["training"]


@pytest.mark.parametrize("family", ["transformer", "lstm", "gru", "rnn"])
def test_a_gpu_gets_batches_that_keep_it_at_work(family: str) -> None:
    model = {"family": family, "width": 256, "layers": 2}
    small, large = (planned(place, model=model)["batch_tokens"] for place in (LAPTOP, GPU))
    assert small == 1024
    assert 2048 <= large <= FULL
    assert planned(GPU, 2, model=model)["batch_tokens"] == 2 * large


def test_a_gpu_gets_larger_batches_of_pairs() -> None:
    def batch(place: Hardware, padded: int) -> Any:
        found = plan_pairs.defaults({}, PairSituation(8000, None, padded, padded, 50, 50, place))
        return found["training"]["batch_tokens"]

    assert batch(LAPTOP, 200_000) == 2048 < batch(GPU, 200_000) <= FULL
    assert batch(GPU, 10_000) == batch(LAPTOP, 10_000) == 500  # twenty batches an epoch


@given(
    parameters=st.integers(10_000, 10**9),
    operations=st.integers(50, 10_000),
    rate=st.floats(1e10, 1e15),
    latency=st.floats(1e-7, 1e-4),
)
def test_a_full_batch_takes_as_long_to_compute_as_to_start(
    parameters: int, operations: int, rate: float, latency: float
) -> None:
    tokens = full_batch(machine(rate, latency), parameters, operations)
    assert tokens & (tokens - 1) == 0 and 1 <= tokens <= FULL
    computing, starting = 6 * parameters * tokens / (plan.EFFICIENCY * rate), operations * latency
    assert computing <= starting * (1 + 1e-9) or tokens == 1
    assert computing > starting / 2 or tokens == FULL


def test_a_row_may_be_longer_than_the_usual_batch() -> None:
    for family in ("transformer", "lstm"):
        training = planned(LAPTOP, model={"family": family}, training={"context": 4096})
        assert training["batch_tokens"] == 4096 == training["context"]


def test_operations_take_time_here() -> None:
    assert 0 < operation_time(torch.device("cpu"), 20) < 1e-2
