"""Every processor against an independent, naive version written per row and token (`naive`), and Hugging Face's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from textwright.decoding import Request, Sampling, Steering
from textwright.decoding.combined import NEVER
from textwright.decoding.engine import check_requests, looping
from textwright.decoding.processors import ORDER, STEPS, active, check_order
from textwright.decoding.rows import BANNED, Rows, begin_rows
from textwright.decoding.rules import Rules
from textwright.decoding.truncation import XTC, next_surprise, top_n_sigma, top_p
from textwright.decoding.watermark import detect, greens
from textwright.errors import ConfigError
from textwright.models import GRUConfig
from textwright.noise import mix, uniform

VOCAB, END = 7, 0
INF = float("inf")


@dataclass
class Case:
    """One row: what stands before it, how it is sampled, and the model's logits."""

    prompt: list[int]
    written: list[int]
    sampling: Sampling
    logits: list[float]
    minimum: int = 0
    steering: Steering = field(default_factory=Steering)
    source: tuple[int, ...] = (0,)
    mu: float = 4.0
    seed: int = 0

    @property
    def text(self) -> list[int]:
        return self.prompt + self.written


def batch(cases: list[Case]) -> tuple[Rows, Rules]:
    """The rows of a batch in the middle of writing."""
    rules = Rules(VOCAB, torch.device("cpu"))
    requests = [
        Request(
            tuple(case.text),
            case.sampling,
            case.seed,
            max_new_tokens=99,
            min_new_tokens=case.minimum,
            source=case.source,
            steering=case.steering,
        )
        for case in cases
    ]
    rows = rules.place(begin_rows(requests, 0, torch.device("cpu")), requests)
    prompts = torch.tensor([len(case.prompt) for case in cases])
    return replace(rows, prompts=prompts, surprise=torch.tensor([case.mu for case in cases]).double()), rules


def processed(cases: list[Case], order: tuple[str, ...] = ORDER) -> Tensor:
    rows, rules = batch(cases)
    logits = torch.tensor([case.logits for case in cases], dtype=torch.float32)
    for process in active(rows, rules, END, order=order):
        logits = process(logits, rows)
    return logits


def struck(case: Case) -> bool:
    noise = uniform(mix(torch.tensor(case.seed) + XTC), torch.tensor(len(case.written)))
    return float(noise) < case.sampling.xtc_probability


Naive = Callable[[list[float], Case], list[float]]


def naive_temperature(logits: list[float], c: Case) -> list[float]:
    s = c.sampling
    return naive.temperature(logits, s.temperature, s.dynamic_temperature, s.dynamic_exponent)


def naive_penalty(logits: list[float], c: Case) -> list[float]:
    s = c.sampling
    return naive.presence_and_frequency(
        logits, c.prompt, c.written, s.presence_penalty, s.frequency_penalty, s.penalty_window
    )


def naive_dry(logits: list[float], c: Case) -> list[float]:
    s = c.sampling
    asked = (s.dry_multiplier, s.dry_base, s.dry_allowed, s.dry_window)
    return naive.dry(logits, c.text, *asked, c.steering.breakers)


def naive_mirostat(logits: list[float], c: Case) -> list[float]:
    version = c.sampling.mirostat
    return logits if not version else (naive.mirostat1, naive.mirostat2)[version - 1](logits, c.mu)


def naive_watermark(logits: list[float], c: Case) -> list[float]:
    s, before = c.sampling, torch.tensor(c.text[-1])
    tokens, key = torch.arange(VOCAB), torch.tensor(s.watermark_key)
    green = greens(before, tokens, key, torch.tensor(s.watermark_share)).tolist()
    return [value + s.watermark * chosen for value, chosen in zip(logits, green, strict=True)]


# step -> the naive version, and settings that switch it on
STEP: dict[str, tuple[Naive, dict[str, Any]]] = {
    "end_growth": (
        lambda x, c: naive.end_growth(x, END, c.written, c.sampling.end_growth, c.sampling.end_growth_after),
        {"end_growth": st.sampled_from([1.1, 2.0]), "end_growth_after": st.integers(0, 4)},
    ),
    "repetition_penalty": (
        lambda x, c: naive.repetition_penalty(x, c.text, c.sampling.repetition_penalty, c.sampling.penalty_window),
        {"repetition_penalty": st.sampled_from([1.3, 0.8]), "penalty_window": st.integers(0, 5)},
    ),
    "frequency_penalty": (
        naive_penalty,
        {
            "presence_penalty": st.sampled_from([0.5, -0.5]),
            "frequency_penalty": st.sampled_from([0.0, 0.7]),
            "penalty_window": st.integers(0, 5),
        },
    ),
    "dry": (
        naive_dry,
        {
            "dry_multiplier": st.sampled_from([0.5, 1.0]),
            "dry_base": st.sampled_from([1.0, 1.5, 2.5]),
            "dry_allowed": st.integers(1, 3),
            "dry_window": st.integers(0, 9),
        },
    ),
    "no_repeat_ngram": (
        lambda x, c: naive.no_repeat_ngram(x, c.text, c.sampling.no_repeat_ngram, c.steering.exempt),
        {"no_repeat_ngram": st.integers(1, 4)},
    ),
    "no_repeat_source_ngram": (
        lambda x, c: naive.no_repeat_source_ngram(
            x, c.text, list(c.source), c.sampling.no_repeat_source_ngram, c.steering.exempt
        ),
        {"no_repeat_source_ngram": st.integers(1, 3)},
    ),
    "watermark": (
        naive_watermark,
        {"watermark": st.sampled_from([0.5, 2.0]), "watermark_share": st.sampled_from([0.25, 0.5])},
    ),
    "temperature": (
        naive_temperature,
        {
            "temperature": st.sampled_from([0.0, 0.5, 1.7]),
            "dynamic_temperature": st.sampled_from([0.3, 1.0]),
            "dynamic_exponent": st.sampled_from([1.0, 2.0]),
        },
    ),
    "top_k": (lambda x, c: naive.top_k(x, c.sampling.top_k), {"top_k": st.integers(1, VOCAB)}),
    "top_p": (lambda x, c: naive.top_p(x, c.sampling.top_p), {"top_p": st.sampled_from([0.1, 0.5, 0.9])}),
    "min_p": (lambda x, c: naive.min_p(x, c.sampling.min_p), {"min_p": st.sampled_from([0.1, 0.6])}),
    "typical_p": (
        lambda x, c: naive.typical_p(x, c.sampling.typical_p),
        {"typical_p": st.sampled_from([0.2, 0.5, 0.9])},
    ),
    "epsilon_cutoff": (
        lambda x, c: naive.epsilon_cutoff(x, c.sampling.epsilon_cutoff),
        {"epsilon_cutoff": st.sampled_from([0.05, 0.2])},
    ),
    "eta_cutoff": (
        lambda x, c: naive.eta_cutoff(x, c.sampling.eta_cutoff),
        {"eta_cutoff": st.sampled_from([0.05, 0.3])},
    ),
    "top_h": (lambda x, c: naive.top_h(x, c.sampling.top_h), {"top_h": st.sampled_from([0.2, 0.5, 0.8])}),
    "top_n_sigma": (
        lambda x, c: naive.top_n_sigma(x, c.sampling.top_n_sigma),
        {"top_n_sigma": st.sampled_from([0.5, 1.0, 2.0])},
    ),
    "xtc": (
        lambda x, c: naive.xtc(x, c.sampling.xtc_threshold, struck(c)),
        {"xtc_probability": st.sampled_from([0.5, 1.0]), "xtc_threshold": st.sampled_from([0.1, 0.3])},
    ),
    "mirostat": (naive_mirostat, {"mirostat": st.integers(1, 2)}),
}

texts = st.lists(st.integers(0, 3), min_size=1, max_size=10)  # few different tokens, so that they repeat
# Equal or a thousandth apart: of two that float32 loses on the way, each version might cut off another one.
values = st.lists(st.integers(-4096, 4096).map(lambda part: part / 1024), min_size=VOCAB, max_size=VOCAB)
steerings = st.builds(
    Steering,
    breakers=st.sampled_from([(), (1,), (0, 2)]),
    exempt=st.sampled_from([(), (2,), (1, 3)]),
)


def test_every_step_has_a_naive_version() -> None:
    assert set(STEP) == set(STEPS)


def cases(asked: dict[str, Any]) -> st.SearchStrategy[Case]:
    on = st.fixed_dictionaries(asked).map(lambda chosen: Sampling(**chosen))
    return st.builds(
        Case,
        texts,
        texts,
        st.one_of(on, st.just(Sampling())),  # rows where the step is off share the batch
        values,
        steering=steerings,
        source=texts.map(tuple),
        mu=st.sampled_from([0.5, 2.0, 6.0]),
        seed=st.integers(0, 2**40),
    )


@pytest.mark.parametrize("step", ORDER)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_step_equals_the_naive_version(step: str, data: st.DataObject) -> None:
    function, asked = STEP[step]
    rows = data.draw(st.lists(cases(asked), min_size=1, max_size=3))
    got = processed(rows)
    for case, result in zip(rows, got, strict=True):
        off = all(case.sampling.off(name) for name in STEPS[step].switches)
        given_logits = [float(torch.tensor(value)) for value in case.logits]
        assert_same(result, given_logits if off else function(given_logits, case))


everything: dict[str, Any] = {}
for _, _asked in STEP.values():
    everything |= {name: st.one_of(st.just(Sampling.model_fields[name].default), way) for name, way in _asked.items()}


def sense(chosen: dict[str, Any]) -> Sampling | None:
    try:
        return Sampling(**chosen)
    except ValueError:
        return None


@given(
    st.lists(
        st.builds(
            Case,
            texts,
            texts,
            st.fixed_dictionaries(everything).map(sense).filter(bool),
            values,
            minimum=st.integers(0, 4),
            steering=steerings,
            source=texts.map(tuple),
        ),
        min_size=1,
        max_size=3,
    ),
    st.permutations(ORDER),
)
@settings(max_examples=150, deadline=None)
def test_all_steps_together_in_any_order(rows: list[Case], order: list[str]) -> None:
    got = processed(rows, tuple(order))
    for case, result in zip(rows, got, strict=True):
        want = [float(torch.tensor(value)) for value in case.logits]
        want = naive.before_minimum(want, END, case.written, case.minimum)
        for step in order:
            if not all(case.sampling.off(name) for name in STEPS[step].switches):
                want = STEP[step][0](want, case) if max(want) > -INF else want
        if max(want) > -INF:
            assert_same(result, want)


def assert_same(got: Tensor, want: list[float]) -> None:
    """Equal up to float32; at a cut, tokens that float32 cannot tell from the border may fall on either side."""
    expected = torch.tensor(want)
    if bool(torch.isclose(got, expected, rtol=1e-4, atol=1e-4).all()) or bool(got.isnan().all()):
        return
    both = (got > -INF) & (expected > -INF)
    torch.testing.assert_close(got[both], expected[both], rtol=1e-3, atol=1e-3)
    different = (got > -INF) != (expected > -INF)
    # A tie at the border: some other token has nearly the same logit as each one that is told apart.
    known = torch.where(got > -INF, got, expected)
    for token in different.nonzero().flatten().tolist():
        others = torch.cat([known[:token], known[token + 1 :]])
        assert bool(((others - known[token]).abs() < 1e-3).any()), f"{got} is not {expected}"


@pytest.mark.parametrize("p", [0.05, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(spread: float, p: float) -> None:
    """Whether the likeliest few hold the mass or not; some logits are equal."""
    logits = (torch.randn(3, 1200, generator=torch.Generator().manual_seed(1)) * 50).round() / 50 * spread
    rows, _ = batch([Case([1], [], Sampling(top_p=p), [0.0] * VOCAB)] * 3)
    for got, row in zip(top_p(logits, rows), logits, strict=True):
        want = torch.tensor(naive.top_p(row.tolist(), p))
        assert int(((got > -INF) != (want > -INF)).sum()) <= 1  # the mass reaches p up to rounding


def test_the_nucleus_of_a_flat_distribution_takes_the_first_of_equal_tokens() -> None:
    rows, _ = batch([Case([1], [], Sampling(top_p=0.01), [0.0] * VOCAB)])
    got = top_p(torch.zeros(1, 2000), rows)[0]
    assert (got > -INF).nonzero().flatten().tolist() == list(range(20))


# what is asked about single tokens ------------------------------------------------------------------------------------

sequences = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), st.sampled_from([-INF, -1.5, 0.5, 2.0])),
    max_size=5,
)


@given(st.lists(st.tuples(texts, texts, sequences, values), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_sequences_equal_a_search_for_them(rows: list) -> None:
    batched = [
        Case(prompt, written, Sampling(), logits, steering=Steering(sequences=tuple(wanted)))
        for prompt, written, wanted, logits in rows
    ]
    for case, result in zip(batched, processed(batched), strict=True):
        wanted = [(list(ids), value) for ids, value in case.steering.sequences]
        want = naive.sequence_bias([float(torch.tensor(v)) for v in case.logits], case.text, wanted)
        torch.testing.assert_close(result, torch.tensor(want), rtol=1e-5, atol=1e-5)


@given(texts, st.lists(st.integers(0, 3), max_size=6), st.sampled_from([0.2, 0.9]), values, st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_forced_tokens_and_prefixes(prompt: list, prefix: list, share: float, logits: list, place: int) -> None:
    for written in (prefix[:2], [0, 1], [], prefix):
        wishes = [
            Steering(forced=((place, 3), (place + 2, 1))),
            Steering(prefix=tuple(prefix), prefix_share=share) if prefix else Steering(),
        ]
        rows = [Case(prompt, list(written), Sampling(), logits, steering=wish) for wish in wishes]
        got = processed(rows)
        given_logits = [float(torch.tensor(value)) for value in logits]
        assert_same(got[0], naive.forced(given_logits, list(written), {place: 3, place + 2: 1}))
        assert_same(got[1], naive.soft_prefix(given_logits, list(written), prefix, share))


@given(st.lists(st.tuples(texts, st.lists(st.integers(0, 1), max_size=60), st.sampled_from([0, 2, 3, 8])), min_size=1))
@settings(max_examples=100, deadline=None)
def test_loops_are_seen(rows: list) -> None:
    batched = [Case(p, w, Sampling(loop_limit=limit), [0.0] * VOCAB) for p, w, limit in rows]
    got = looping(batch(batched)[0]).tolist()
    assert got == [naive.loops(case.written, case.sampling.loop_limit) for case in batched]


@pytest.mark.parametrize(("unit", "times", "limit", "loops"), [(1, 16, 4, True), (1, 15, 4, False), (7, 3, 3, True)])
def test_a_loop_needs_length_and_repetitions(unit: int, times: int, limit: int, loops: bool) -> None:
    case = Case([5], [1, 2, *[0, 1, 2, 3, 4, 5, 6][:unit] * times], Sampling(loop_limit=limit), [0.0] * VOCAB)
    assert looping(batch([case])[0]).tolist() == [loops]


def test_mirostat_moves_its_limit() -> None:
    rows, _ = batch([Case([1], [], Sampling(mirostat=2, mirostat_target=t, mirostat_rate=0.2), []) for t in (3.0, 1.0)])
    logprobs = torch.tensor([-1.0, -4.0])
    want = [naive.next_mu(4.0, -1.0, 3.0, 0.2), naive.next_mu(4.0, -4.0, 1.0, 0.2)]
    assert next_surprise(rows, logprobs).tolist() == pytest.approx(want)


# a watermark ----------------------------------------------------------------------------------------------------------


def test_a_watermark_is_found_with_its_key_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 1000, (400,), generator=generator).tolist()
    marked = [3]
    for _ in range(400):
        green = greens(torch.tensor(marked[-1]), torch.arange(1000), torch.tensor(7), torch.tensor(0.5))
        weights = torch.ones(1000) * (1 + 3 * green)
        marked.append(int(torch.multinomial(weights, 1, generator=generator)))
    assert detect(marked, share=0.5, key=7).p < 1e-9
    assert detect(marked, share=0.5, key=8).p > 1e-3
    assert detect(plain, share=0.5, key=7).p > 1e-3
    with pytest.raises(ValueError, match="at least two tokens"):
        detect([1])


def test_the_green_share_is_what_was_asked() -> None:
    before, tokens = torch.arange(300)[:, None], torch.arange(300)
    for share in (0.1, 0.5):
        assert float(greens(before, tokens, torch.tensor(3), torch.tensor(share)).double().mean()) == pytest.approx(
            share, abs=0.01
        )


def test_a_repeated_pair_counts_once() -> None:
    assert detect([1, 2] * 500).counted == 2


# what makes no sense --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dry_base": 2.0}, "dry_base does nothing without dry_multiplier"),
        ({"penalty_window": 8}, "penalty_window does nothing without one of"),
        ({"mirostat": 2, "top_k": 4}, "leave out top_k"),
        ({"mirostat": 1, "temperature": 0.0}, "temperature 0 does not"),
        ({"loop_limit": 1}, "would end every text"),
        ({"top_p": 0.0}, "top_p"),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.7}, "xtc_threshold"),
        ({"topk": 3}, "top_k"),
    ],
)
def test_contradictory_settings_are_refused(asked: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling.parse(asked)


def test_orders_and_requests_that_cannot_be() -> None:
    model = GRUConfig(vocab=VOCAB, width=4, layers=1).build()
    with pytest.raises(ConfigError, match="top_k 8 is more than the 7 tokens"):
        check_requests(model, [Request((1,), Sampling(top_k=8))], ORDER)
    with pytest.raises(ConfigError, match="needs a model that reads a source"):
        check_requests(model, [Request((1,), Sampling(no_repeat_source_ngram=2))], ORDER)
    with pytest.raises(ConfigError, match="the order leaves out top_k"):
        check_requests(model, [Request((1,), Sampling(top_k=3))], ("temperature", "top_p"))
    with pytest.raises(ConfigError, match=r"unknown step 'top-p'.*top_p"):
        check_order(("top-p",))
    with pytest.raises(ConfigError, match="twice"):
        check_order(("top_p", "top_p"))
    with pytest.raises(ValueError, match="token 9 is not in the vocabulary"):
        batch([Case([1], [], Sampling(), [], steering=Steering(sequences=(((1, 9), 1.0),)))])


def test_at_least_one_token_is_always_kept() -> None:
    sampling = Sampling(top_k=1, top_p=1e-9, min_p=0.999, typical_p=1e-9, epsilon_cutoff=0.99, eta_cutoff=0.99)
    logits = processed([Case([1], [2], sampling, [0.0, 3.0, 1.0, 3.0, -1.0, 2.0, 0.0])])
    assert int((logits > -INF).sum()) >= 1


def test_nothing_is_switched_on_by_default() -> None:
    rows, rules = batch([Case([1], [2], Sampling(), [])])
    assert active(rows, rules, END) == []


def test_processors_agree_with_hugging_face() -> None:
    theirs = pytest.importorskip("transformers").generation.logits_process
    tokens, logits = [1, 2, 3, 1, 2], torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3))
    pairs = [
        (Sampling(repetition_penalty=1.4), theirs.RepetitionPenaltyLogitsProcessor(1.4)),
        (Sampling(no_repeat_ngram=3), theirs.NoRepeatNGramLogitsProcessor(3)),
        (Sampling(temperature=0.6), theirs.TemperatureLogitsWarper(0.6)),
        (Sampling(top_k=2), theirs.TopKLogitsWarper(2)),
        (Sampling(top_p=0.6), theirs.TopPLogitsWarper(0.6)),
        (Sampling(min_p=0.2), theirs.MinPLogitsWarper(0.2)),
        (Sampling(typical_p=0.7), theirs.TypicalLogitsWarper(0.7)),
        (Sampling(epsilon_cutoff=0.1), theirs.EpsilonLogitsWarper(0.1)),
        (Sampling(eta_cutoff=0.2), theirs.EtaLogitsWarper(0.2)),
        (Sampling(top_h=0.6), theirs.TopHLogitsWarper(0.6)),
        (
            Sampling(no_repeat_source_ngram=2),
            theirs.EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor([[3, 2, 6, 1, 4]])),
        ),
        (
            Sampling(end_growth=1.3, end_growth_after=2),
            theirs.ExponentialDecayLengthPenalty((2, 1.3), torch.tensor([END]), input_ids_seq_length=0),
        ),
    ]
    for sampling, processor in pairs:
        written = tokens if sampling.end_growth > 1 else []
        case = Case([] if written else tokens, written, sampling, logits[0].tolist(), source=(3, 2, 6, 1, 4))
        torch.testing.assert_close(processed([case]), processor(torch.tensor([tokens]), logits.clone()))
    bias = {(2,): 1.5, (1, 2, 4): -3.0, (2, 5): math.inf * -1, (3, 5): 9.0}
    case = Case(tokens, [], Sampling(), logits[0].tolist(), steering=Steering(sequences=tuple(bias.items())))
    want = theirs.SequenceBiasLogitsProcessor([[list(ids), value] for ids, value in bias.items()])
    torch.testing.assert_close(processed([case]), want(torch.tensor([tokens]), logits.clone()))


def test_tokens_without_a_chance_do_not_widen_top_n_sigma() -> None:
    """As where layers are contrasted: what the last layer finds unlikely has a finite logit that no token reaches."""
    logits = [3.0, 2.9, 0.0, -1.0, -2.0, NEVER, NEVER / 2]
    rows, _ = batch([Case([1], [], Sampling(top_n_sigma=1.0), logits)])
    assert (top_n_sigma(torch.tensor([logits]), rows) > BANNED).tolist() == [[True, True] + [False] * 5]
