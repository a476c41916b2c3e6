"""The engine and beam search on a model whose next token is known: ends, stops, limits, retirement, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from textwright.decoding import Beam, Engine, Request, Sampling, Steering, StopStrings, beam_search, collect, generate
from textwright.decoding.stops import StopTables
from textwright.errors import ConfigError, TextwrightError
from textwright.models import GRUConfig, LanguageModel, TransformerConfig
from textwright.models.base import Hidden

GREEDY = Sampling(temperature=0.0)
PIECES = [b"", b"a", b"b", b"ab", b"c", "é".encode()[:1], "é".encode()[1:]]


class Cycle(LanguageModel):
    """Writes 1 2 3 4 5 6 0, whatever it reads: the likeliest next token is the last one plus one."""

    def __init__(self, vocab: int = 7) -> None:
        super().__init__()
        inner = GRUConfig(vocab=vocab, width=vocab).build()
        self.config, self.embed, self.head, self.inner = inner.config, inner.embed, torch.nn.Linear(vocab, vocab), inner
        self.head.weight.data.copy_(torch.eye(vocab).roll(1, 0) * 9)
        self.head.bias.data.zero_()

    def begin(self, rows: int, source: Any = None, *, capacity: int | None = None) -> Any:
        return self.inner.begin(rows)

    def hidden(self, tokens: Tensor, lengths: Tensor | None, state: Any, source: Any) -> tuple[Hidden, Any]:
        _, after = self.inner.hidden(tokens, lengths, state, None)
        return Hidden(torch.nn.functional.one_hot(tokens, 7).float()), after


def write(end: int | None = None, **options: Any) -> Any:
    return collect(generate(Cycle(), [Request((1,), GREEDY, **options)], end))[0]


def test_length() -> None:
    result = write(max_new_tokens=4)
    assert (result.tokens, result.finish) == ((2, 3, 4, 5), "length")


def test_end_token_is_written_and_ends() -> None:
    result = write(end=4, max_new_tokens=50)
    assert (result.tokens, result.finish) == ((2, 3, 4), "end")


def test_no_end_before_the_minimum() -> None:
    result = write(end=4, max_new_tokens=12, min_new_tokens=5)
    assert len(result.tokens) >= 5
    assert 4 not in result.tokens[:5]


def test_stop_string_across_tokens() -> None:
    # 2 3 4 is "b" "ab" "c": "bc" lies in the second and third token
    result = write(max_new_tokens=50, stop=StopStrings([b"bc"], PIECES))
    assert (result.tokens, result.finish) == ((2, 3, 4), "stop")


def test_no_further_end_before_the_minimum() -> None:
    """An end that the model has beside its own ends the text as a stop does, and is held back as its own is."""
    wishes = {"stop": StopStrings([], PIECES, (5,)), "steering": Steering(late=(5,))}
    result = write(max_new_tokens=12, min_new_tokens=6, **wishes)
    assert 5 not in result.tokens[:6]
    assert (write(max_new_tokens=12, min_new_tokens=3, **wishes).tokens) == (2, 3, 4, 5)
    early = Request((1,), GREEDY, max_new_tokens=12, min_new_tokens=6, **wishes)
    plain = Request((1,), GREEDY, max_new_tokens=12, stop=wishes["stop"])
    held, free = collect(generate(Cycle(), [early, plain], None))  # in one batch
    assert (held.tokens, free.tokens) == (result.tokens, (2, 3, 4, 5))


def test_a_stop_string_before_the_minimum_does_not_end_later() -> None:
    result = write(max_new_tokens=6, min_new_tokens=3, stop=StopStrings([b"bc"], PIECES))
    assert (result.tokens, result.finish) == ((2, 3, 4, 5, 6, 0), "length")


def test_a_stop_string_that_begins_before_the_minimum_ends_after_it() -> None:
    result = write(max_new_tokens=6, min_new_tokens=2, stop=StopStrings([b"bc"], PIECES))
    assert (result.tokens, result.finish) == ((2, 3, 4), "stop")


def test_a_token_ends_a_text() -> None:
    result = write(max_new_tokens=50, stop=StopStrings([b"zz"], PIECES, (5,)))
    assert (result.tokens, result.finish) == ((2, 3, 4, 5), "stop")
    result = write(max_new_tokens=9, min_new_tokens=4, stop=StopStrings([], PIECES, (5, 6)))
    assert (result.tokens, result.finish) == ((2, 3, 4, 5, 6), "stop")


@pytest.mark.parametrize(("text", "strings"), [("aaab", ["aab"]), ("ababac", ["abac", "bb"]), ("xyé", ["é"])])
def test_stop_automaton_equals_search(text: str, strings: list[str]) -> None:
    """Byte by byte: accepted exactly from where the first of the strings ends on."""
    data, targets = text.encode(), [string.encode() for string in strings]
    stops = StopStrings(targets, [bytes([byte]) for byte in range(256)])
    tables = StopTables(256, torch.device("cpu"))
    state = torch.tensor([tables.start(stops)])
    for length, byte in enumerate(data, 1):
        state = tables.move(state, torch.tensor([byte]))
        assert bool(tables.accepted(state)) == any(target in data[:length] for target in targets)


def test_requests_with_and_without_stop_strings_share_a_batch() -> None:
    stops = [None, StopStrings([b"c"], PIECES), StopStrings([b"abc", b"b"], PIECES), None]
    requests = [Request((1,), GREEDY, max_new_tokens=5, stop=stop) for stop in stops]
    results = collect(generate(Cycle(), requests, None))
    assert [result.tokens for result in results] == [(2, 3, 4, 5, 6), (2, 3, 4), (2,), (2, 3, 4, 5, 6)]


def test_the_same_seed_gives_the_same_text_in_any_batch() -> None:
    torch.manual_seed(0)
    model = TransformerConfig(vocab=50, width=32, layers=2, heads=2, window=24).build().eval()
    torch.nn.init.normal_(model.embed.weight, std=0.5)
    request = Request((1, 2, 3), Sampling(temperature=1.2, top_p=0.9), seed=5, max_new_tokens=40)
    others = [Request((seed,), Sampling(), seed=seed, max_new_tokens=9 * seed) for seed in range(1, 6)]
    (alone,) = collect(generate(model, [request], 0))
    for place in range(4):
        batch = [*others[:place], request, *others[place:]]
        assert collect(generate(model, batch, 0, max_rows=place + 2))[place].tokens == alone.tokens


def test_different_seeds_differ() -> None:
    model = GRUConfig(vocab=50, width=16).build().eval()
    requests = [Request((1,), Sampling(), seed=seed, max_new_tokens=20) for seed in range(10)]
    assert len({result.tokens for result in collect(generate(model, requests, None))}) == 10


def test_retire_drops_a_request() -> None:
    engine = Engine(Cycle(), None)
    first, second = engine.admit([Request((1,), GREEDY), Request((2,), GREEDY)])
    engine.step()
    engine.retire([first])
    assert [event.request for event in engine.step()] == [second]
    engine.retire([second])
    assert len(engine) == 0
    assert engine.step() == []


def test_numbers_that_are_not_finite_are_named() -> None:
    model = Cycle()
    model.head.bias.data[3] = float("nan")
    with pytest.raises(TextwrightError, match="not a finite number"):
        collect(generate(model, [Request((1,))], None))


def test_a_text_without_any_allowed_token_is_named() -> None:
    request = Request((0, 1), Sampling(no_repeat_ngram=1), max_new_tokens=9)
    with pytest.raises(TextwrightError, match="every token is banned"):
        collect(generate(GRUConfig(vocab=2, width=4).build().eval(), [request], None))


@pytest.mark.parametrize("options", [{"prompt": ()}, {"max_new_tokens": 0}, {"min_new_tokens": 9, "max_new_tokens": 3}])
def test_impossible_requests_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Request(**{"prompt": (1,), **options})


def test_a_prompt_longer_than_the_window_is_read_from_its_end() -> None:
    torch.manual_seed(0)
    model = TransformerConfig(vocab=9, width=16, layers=1, heads=1, window=6).build().eval()
    long, short = tuple(i % 9 for i in range(20)), tuple(i % 9 for i in range(14, 20))
    results = collect(generate(model, [Request(p, GREEDY, max_new_tokens=1) for p in (long, short)], None))
    assert results[0].tokens == results[1].tokens


def test_beam_search_prefers_the_better_text_that_greedy_misses() -> None:
    """1 is likelier at first, but only 2 leads to something certain."""
    model = Cycle()
    weight = torch.full((7, 7), -20.0)
    weight[1, 0], weight[2, 0] = 0.2, 0.0  # after 0: 1 a little likelier than 2
    weight[[3, 4, 5, 6], 1] = 1.0  # after 1: four equal ways
    weight[3, 2] = 9.0  # after 2: surely 3
    model.head.weight.data.copy_(weight)
    (greedy,) = collect(generate(model, [Request((0,), GREEDY, max_new_tokens=2)], None))
    best = beam_search(model, [Request((0,), max_new_tokens=2)], None, Beam(beams=2))[0]
    assert greedy.tokens[0] == 1
    assert best[0].tokens == (2, 3)
    assert best[0].logprob > greedy.logprob


def test_beams_stop_at_stop_strings() -> None:
    request = Request((1,), max_new_tokens=20, stop=StopStrings([b"bc"], PIECES))
    best = beam_search(Cycle(), [request], None, Beam(beams=3))[0][0]
    assert (best.tokens, best.finish) == ((2, 3, 4), "stop")


def test_beams_that_do_not_fit_the_window_are_refused_with_the_number_that_fits() -> None:
    model = TransformerConfig(vocab=9, width=16, layers=1, heads=1, window=8).build().eval()
    with pytest.raises(ConfigError, match="at most 6 new tokens"):
        beam_search(model, [Request((1, 2, 3), max_new_tokens=7)], None, Beam())
    assert beam_search(model, [Request((1, 2, 3), max_new_tokens=6)], None, Beam())


def test_beams_of_several_requests_equal_each_alone() -> None:
    torch.manual_seed(1)
    model = GRUConfig(vocab=9, width=16).build().eval()
    torch.nn.init.normal_(model.embed.weight)
    requests = [Request(tuple(range(1, 2 + i)), max_new_tokens=3 + 2 * i) for i in range(4)]
    together = beam_search(model, requests, 0, Beam(beams=3))
    for request, results in zip(requests, together, strict=True):
        alone = beam_search(model, [request], 0, Beam(beams=3))[0]
        assert [result.tokens for result in results] == [result.tokens for result in alone]
