"""Every option on every strategy and on models with and without a source: it does something, or it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from textwright.decoding import Request, Result, Sampling
from textwright.decoding.beam import Beam
from textwright.decoding.combined import Dola
from textwright.decoding.constraints import Choices
from textwright.decoding.contrastive import Contrastive
from textwright.decoding.processors import ORDER
from textwright.decoding.steering import Steering
from textwright.decoding.strategies import OPTIONS, STRATEGIES, check_options, decode, decoding
from textwright.decoding.table import markdown
from textwright.errors import ConfigError
from textwright.models import EncoderDecoderConfig, GRUConfig, LanguageModel, Seq2SeqConfig, TransformerConfig
from textwright.models.base import Source

VOCAB, END = 9, 0
SHAPES: dict[str, Any] = {
    "gru": GRUConfig(vocab=VOCAB, width=16, layers=1),
    "transformer": TransformerConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=64),
    "seq2seq": Seq2SeqConfig(vocab=VOCAB, width=16, layers=1),
    "encdec": EncoderDecoderConfig(vocab=VOCAB, width=16, layers=2, heads=2, window=64, source_window=16),
}

# option -> (a value with an effect, what else is needed for it to make sense)
STRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (0.2, {}),
    "dynamic_temperature": (0.9, {}),
    "dynamic_exponent": (5.0, {"dynamic_temperature": 0.9}),
    "top_k": (1, {}),
    "top_p": (0.2, {}),
    "min_p": (0.9, {}),
    "typical_p": (0.1, {}),
    "epsilon_cutoff": (0.3, {}),
    "eta_cutoff": (0.5, {}),
    "top_h": (0.1, {}),
    "top_n_sigma": (0.2, {}),
    "xtc_probability": (1.0, {}),
    "xtc_threshold": (0.02, {"xtc_probability": 1.0}),
    "mirostat": (2, {"mirostat_target": 0.5}),
    "mirostat_target": (0.5, {"mirostat": 2}),
    "mirostat_rate": (1.0, {"mirostat": 2, "mirostat_target": 1.5}),
    "seed": (99, {}),
    "repetition_penalty": (5.0, {}),
    "presence_penalty": (9.0, {}),
    "frequency_penalty": (9.0, {}),
    "penalty_window": (1, {"repetition_penalty": 5.0}),
    "dry_multiplier": (9.0, {"dry_allowed": 1}),
    "dry_base": (9.0, {"dry_multiplier": 0.2, "dry_allowed": 1}),
    "dry_allowed": (1, {"dry_multiplier": 9.0}),
    "dry_window": (2, {"dry_multiplier": 9.0, "dry_allowed": 1}),
    "no_repeat_ngram": (2, {}),
    "no_repeat_source_ngram": (1, {}),
    "end_growth": (2.0, {}),
    "end_growth_after": (12, {"end_growth": 3.0}),
    "watermark": (9.0, {}),
    "watermark_share": (0.7, {"watermark": 9.0}),
    "watermark_key": (3, {"watermark": 9.0}),
    "order": (("repetition_penalty", "frequency_penalty"), {"repetition_penalty": 4.0, "frequency_penalty": 1.5}),
    "loop_limit": (2, {}),
    "beams": (1, {}),
    "length_penalty": (0.0, {}),
    "length_norm": ("gnmt", {"length_penalty": 0.6}),
    "stopping": ("first", {"beams": 2}),
    "patience": (6.0, {"stopping": "first"}),
    "coverage": (9.0, {}),
    "groups": (4, {"diversity": 9.0}),
    "diversity": (9.0, {"groups": 2}),
    "siblings": (9.0, {}),
    "draw": (True, {}),
    "candidates": (9, {"contrast": 0.9}),
    "contrast": (0.0, {}),
    "samples": (3, {}),
    "alternatives": (3, {}),
}
SAME = {"lookup", "draft", "draft_length"}  # they change the speed, and nothing else
RUNNING = {"max_seconds", "top_logprobs"}  # tested with the engine: they are options of the request


def made(family: str, spread: float = 0.5, ends: float = 0.35) -> LanguageModel:
    torch.manual_seed(11)
    model = SHAPES[family].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * spread)
        model.embed.weight[1:] *= 1.6
        model.embed.weight[END] *= ends
    return model


def written(family: str, strategy: str, asked: dict[str, Any], draft: bool = False) -> list[list[Result]]:
    # A search shows what its options do where ends are near, the others where texts do not end at once.
    model = made(family, 0.3, 1.6) if strategy == "beam" else made(family)
    asked = {"samples": 4, **asked} if strategy == "mbr" else asked
    source = (1, 4, 7, 7, 2, 3, 5) if family in ("seq2seq", "encdec") else None
    how = decoding(strategy, asked, {}, made(family) if draft else None)
    first = asked.get("seed", 5)
    requests = [
        Request((1, 2, 1, 2, row % VOCAB), how.sampling, first + row, 36, 3, source=source) for row in range(1, 13)
    ]
    if strategy == "mbr":
        requests = [replace(request, seed=request.seed + 7 * n) for request in requests for n in range(how.samples)]
    return decode(model, requests, END, how)


def texts(found: list[list[Result]]) -> list[list[tuple[tuple[int, ...], str]]]:
    return [[(result.tokens, result.finish) for result in results] for results in found]


def test_the_list_of_options_is_complete() -> None:
    assert set(STRONG) | SAME | RUNNING == OPTIONS
    assert {*Sampling.model_fields, *Beam.model_fields, *Contrastive.model_fields, "order"} <= OPTIONS


CELLS = [(strategy, option) for strategy in STRATEGIES for option in sorted(OPTIONS - SAME - RUNNING)]


@pytest.mark.parametrize(("strategy", "option"), CELLS, ids=lambda value: str(value))
@pytest.mark.parametrize("family", ["gru", "encdec"])
def test_an_option_does_something_or_is_refused(family: str, strategy: str, option: str) -> None:
    value, needed = STRONG[option]
    if option not in STRATEGIES[strategy].options:
        with pytest.raises(ConfigError, match=f"strategy {strategy} does not use {option}"):
            decoding(strategy, {option: value}, {})
        return
    if strategy == "beam" and option == "seed":
        with pytest.raises(ConfigError, match="draws nothing"):
            decoding(strategy, {"seed": 3}, {})
        needed = {"draw": True}
    if option in ("no_repeat_source_ngram", "coverage") and family in ("gru", "transformer"):
        with pytest.raises(ConfigError, match="source"):
            written(family, strategy, {option: value})
        return
    if option == "order":
        value = (*reversed(value), *(step for step in ORDER if step not in value))
    if option == "groups":
        assert texts(written(family, strategy, {"diversity": 9.0, "groups": 2})) != texts(
            written(family, strategy, {"diversity": 9.0, "groups": 4})
        )
        return
    used = {name: setting for name, setting in needed.items() if name != option}
    if option == "loop_limit":
        used = {"sample": {"temperature": 0.01}, "mbr": {"temperature": 0.01}, "contrastive": {"contrast": 0.0}}.get(
            strategy, {}
        )
    if option == "diversity":
        base = written(family, strategy, {"groups": 2, "diversity": 1e-6})
    else:
        base = written(family, strategy, {} if option in ("dry_multiplier", "mirostat") else used)
    changed = texts(written(family, strategy, {**used, option: value})) != texts(base)
    assert changed, f"{option} changed nothing"


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
@pytest.mark.parametrize("family", SHAPES)
def test_guessing_changes_nothing(family: str, strategy: str) -> None:
    base = texts(written(family, strategy, {}))
    for asked, draft in (({"lookup": True}, False), ({"draft": True, "draft_length": 3}, True)):
        assert texts(written(family, strategy, asked, draft)) == base


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"greedy", "sample"}))
def test_guessing_is_refused_where_it_cannot_be(strategy: str) -> None:
    for option in sorted(SAME):
        with pytest.raises(ConfigError, match="does not use"):
            decoding(strategy, {option: 2}, {})


@pytest.mark.parametrize(
    ("strategy", "asked", "message"),
    [
        ("sampel", {}, r"unknown strategy 'sampel'.*sample"),
        ("sample", {"topk": 3}, r"unknown option 'topk'.*top_k"),
        ("greedy", {"beams": 3}, "it belongs to --strategy beam"),
        ("sample", {"samples": 4}, "it belongs to --strategy mbr"),
        ("mbr", {"samples": 1}, "at least 2"),
        ("greedy", {"alternatives": 1}, "at least 2"),
        ("sample", {"alternatives": 3}, "it belongs to --strategy greedy"),
        ("sample", {"lookup": True, "draft": True}, "leave out one of them"),
        ("sample", {"draft_length": 3}, "does nothing without draft or lookup"),
    ],
)
def test_what_makes_no_sense(strategy: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decoding(strategy, asked, {}, made("gru") if "draft" in asked else None)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("family", SHAPES)
def test_alternatives_are_greedy_texts_after_each_likely_token(family: str, place: int) -> None:
    """The naive way: the likeliest tokens at the place by a softmax over the whole text, each forced, then greedy."""
    model = made(family, 0.4, 1.0)
    source = (1, 4, 7, 7, 2) if family in ("seq2seq", "encdec") else None
    prompt, begun, banned = (1, 2, 1), (3, 5)[:place], 4
    how = decoding("greedy", {"alternatives": 4, "no_repeat_ngram": 2}, {})
    steering = Steering(forced=tuple(enumerate(begun)), sequences=(((6,), float("-inf")),))
    request = Request(prompt, how.sampling, max_new_tokens=9, source=source, steering=steering)
    (found,) = decode(model, [request], END, how, banned=(banned,))
    with torch.no_grad():
        read = None if source is None else Source(torch.tensor([source]), torch.tensor([len(source)]))
        after = model(torch.tensor([[*prompt, *begun]]), None, model.begin(1, read)).logits[0, -1].log_softmax(-1)
    never = {banned, 6} | ({2} if place == 0 else set())  # after 1 stood a 2 before
    order = [token for token in after.argsort(descending=True).tolist() if token not in never][:4]
    assert [result.tokens[place] for result in found] == order
    plain = decoding("greedy", {"no_repeat_ngram": 2}, {})
    for token, result in zip(order, found, strict=True):
        forced = replace(steering, forced=(*steering.forced, (place, token)))
        ((alone,),) = decode(model, [replace(request, steering=forced)], END, plain, banned=(banned,))
        assert (result.tokens, result.finish) == (alone.tokens, alone.finish)
        assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert result.logprobs[place] == pytest.approx(float(after[token]), abs=1e-4)
    assert any(token == END for token in order) == any(len(result.tokens) == place + 1 for result in found)


def test_fewer_alternatives_where_no_more_are_allowed() -> None:
    model, how = made("transformer"), decoding("greedy", {"alternatives": 5}, {})
    pieces = [b"", *(bytes([ord("a") + token]) for token in range(1, VOCAB))]
    constraint = Choices(["de", "dff", "h"], pieces, END)
    request = Request((1, 2), how.sampling, max_new_tokens=6, constraint=constraint)
    (found,) = decode(model, [request], END, how)
    assert {result.tokens[0] for result in found} == {3, 7} and len(found) == 2
    whole = replace(request, constraint=None, max_new_tokens=2, steering=Steering(forced=((0, 3), (1, 4))))
    with pytest.raises(ConfigError, match=r"no place is left.*max_new_tokens 3"):
        decode(model, [whole], END, how)


def test_alternatives_of_several_requests_are_those_of_each() -> None:
    """With prefixes of different lengths, a window that is shorter than a prompt, and where layers are contrasted."""
    model, how = made("transformer"), decoding("greedy", {"alternatives": 3}, {})
    requests = [
        Request(prompt, how.sampling, max_new_tokens=5, steering=Steering(forced=tuple(enumerate(begun))))
        for prompt, begun in (((1, 2), ()), ((3,) * 70, (4,)), ((5, 6, 7), ()), ((2,), (1, 1)))
    ]
    together = texts(decode(model, requests, END, how, rows=2))
    assert together == [texts(decode(model, [request], END, how))[0] for request in requests]
    assert all(len({tokens for tokens, _ in found}) == 3 for found in together)
    contrasted = decode(Dola(model), [requests[0]], END, decoding("greedy", {"alternatives": VOCAB}, {}))[0]
    assert all(result.logprobs[0] > -1e6 for result in contrasted)  # none that DoLa leaves no chance


def test_a_preset_gives_what_the_strategy_uses() -> None:
    preset = {"temperature": 0.5, "top_p": 0.8, "beams": 7, "repetition_penalty": 1.2}
    assert decoding("beam", {}, preset).beam.beams == 7
    assert decoding("beam", {}, preset).sampling == Sampling(repetition_penalty=1.2)
    assert decoding("sample", {"top_p": 0.9}, preset).sampling.asked() == {
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
    }
    assert decoding("sample", {"mirostat": 2}, preset).sampling.top_p == 1.0
    check_options("greedy", [])


def test_the_documents_show_the_table() -> None:
    document = Path(__file__).parents[2] / "docs" / "decoding.md"
    assert markdown() in document.read_text(encoding="utf-8"), "run: python -m textwright.decoding.table"
