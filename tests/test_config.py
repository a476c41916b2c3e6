"""Configuration is strict, and its errors say what to type."""

from __future__ import annotations

import pytest

from textwright.config import override
from textwright.errors import ConfigError
from textwright.fit import job_of
from textwright.run import merge


def check(request: dict) -> None:
    job_of(request).check(request)


def asked(**more: object) -> dict:
    return merge({"source": {"path": "x"}, "model": {"family": "transformer"}}, more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"training": {"learning_rat": 1}}, "unknown key 'training.learning_rat'"),
        ({"training": {"optimizer": {"learning_rat": 1}}}, "Did you mean 'learning_rate'"),
        ({"modl": {}}, "unknown key 'modl'. Did you mean 'model'"),
        ({"model": {"family": "transformer", "widht": 8}}, "Did you mean 'width'"),
        ({"model": {"width": -3}}, "model.*width: input should be greater than 0, got -3"),
        ({"model": {"width": "big"}}, "width.*valid integer.*got 'big'"),
        ({"model": {"width": 10, "heads": 4}}, "width 10 must be a multiple of heads 4"),
        ({"model": {"heads": 4, "kv_heads": 3}}, "must be a multiple of kv_heads 3"),
        ({"training": {"budget": {"minutes": 1.0, "steps": 4}}}, "exactly one of minutes, steps and epochs"),
        ({"training": {"budget": {"minutes": -1.0}}}, "greater than 0, got -1"),
        ({"training": {"clip": True}}, "clip.*got True"),
        ({"training": {"precision": "float16"}}, "precision.*'float32' or 'bfloat16', got 'float16'"),
        ({"source": {"documents": "word"}}, "documents.*got 'word'"),
    ],
)
def test_wrong_configuration_is_refused_before_any_work(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(asked(**wrong))


def test_what_is_right_passes() -> None:
    check(asked(model={"family": "lstm", "width": 10}, training={"budget": {"epochs": 2}}))


def pairs(**more: object) -> dict:
    return merge({"task": "translate", "pairs": [{"path": "a", "target": "b"}], "model": {"family": "encdec"}}, more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "transalte"}, "no task 'transalte'. Did you mean 'translate'"),
        ({"model": {"family": "gru"}}, "'gru' found using 'family' does not match.*'seq2seq', 'encdec'"),
        ({"model": {"family": "seq2seq", "attention": {"kind": "dott"}}}, "'dott'.*'dot'"),
        ({"model": {"family": "seq2seq", "attention": {"kind": "dot", "heads": 2}}}, "unknown key.*heads"),
        ({"model": {"family": "seq2seq", "attention": {"kind": "none"}, "copying": True}}, "copying need attention"),
        (
            {"model": {"family": "seq2seq", "attention": {"kind": "dot"}, "encoder_width": 9}},
            "18 and 256 units: leave out",
        ),
        ({"model": {"copying": True, "source_vocab": 9, "shared": False}}, "needs one vocabulary"),
        ({"model": {"dropout": 0.0}, "training": {"r_drop": 1.0}}, "set model.dropout"),
        ({"training": {"context": 64}}, "unknown key 'training.context'"),
        ({"pairs": []}, "pairs"),
        ({"pairs": [{"path": "a", "target": "b", "fields": ["x", "y"]}]}, "exclude each other"),
        ({"language": "xx"}, "code of the target language"),
        ({"bpe_dropout": 1.5}, "bpe_dropout.*less than 1"),
    ],
)
def test_wrong_configuration_of_pairs_is_refused_before_any_work(wrong: dict, message: str) -> None:
    request = pairs(**wrong)
    with pytest.raises(ConfigError, match=message):
        check(request)


def test_what_is_only_for_sources_is_refused_without_one() -> None:
    for training in ({"r_drop": 1.0}, {"scheduled_sampling": 0.2}, {"keep": "score"}):
        with pytest.raises(ConfigError, match=r"leave out training\.keep|for tasks with a source"):
            check(asked(training=training))


def test_right_configurations_of_pairs_pass() -> None:
    check(pairs())
    check(pairs(model={"family": "seq2seq", "cell": "lstm"}, training={"r_drop": 5.0, "keep": "score"}))


def test_override_reads_values_as_yaml() -> None:
    got = override({"a": {"b": 1}}, ["a.b=3e-4", "a.c=[1, 2]", "d=true", "e=null", "f=text", "g='2024'"])
    assert got == {"a": {"b": 3e-4, "c": [1, 2]}, "d": True, "e": None, "f": "text", "g": "2024"}


@pytest.mark.parametrize("wrong", ["a", "=3", "a.b.c=1", "a=[1"])
def test_wrong_assignments_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override({"a": {"b": 1}}, [wrong])
