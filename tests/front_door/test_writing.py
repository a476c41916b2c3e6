"""How texts are written, as it is asked for at the command line: strategies, options, several models, bad wishes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from door import Run

import textwright
from textwright import pair_model, writer
from textwright.cli import ways
from textwright.cli.generate import _record
from textwright.errors import ConfigError, MissingExtraError
from textwright.evaluating.risk import least_risk
from textwright.opening import load_pairs
from textwright.quantizing import load_quantized
from textwright.text.tokenizers import Tokenizer
from textwright.wishes import check_reply, steering, stop_strings
from textwright.writer import Text, TextModel

FAMILIES = ("transformer", "lstm")


def outputs(run: Run, *words: Any) -> list[dict[str, Any]]:
    result = run("generate", *words, "--json")
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = json.loads(result.out)["outputs"]
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["greedy", "sample", "beam", "contrastive", "mbr"])
def test_every_strategy_writes(run: Run, trained: dict[str, Path], family: str, strategy: str) -> None:
    (text,) = outputs(run, trained[family], "--strategy", strategy, "--max-new-tokens", "9", "--prompt", "The")
    assert text["finish_reason"] in ("length", "end")
    assert 1 <= len(text["tokens"]) <= 9
    assert text["logprob"] < 0


def test_a_preset_is_shown_and_can_be_changed(run: Run, trained: dict[str, Path]) -> None:
    result = run("generate", trained["lstm"], "--preset", "creative", "--seed", "1", "--max-new-tokens", "8")
    assert "preset creative: strategy sample, temperature 1.0, min_p 0.05, dry_multiplier 0.8" in result.err
    assert outputs(run, trained["lstm"], "--preset", "translate", "--max-new-tokens", "8")[0]["seed"] is None
    run("generate", trained["lstm"], "--preset", "creativ").fails("unknown preset 'creativ'", "creative")


def test_guesses_change_nothing(run: Run, trained: dict[str, Path]) -> None:
    for family, other in (FAMILIES, FAMILIES[::-1]):
        asked = (trained[family], "--seed", "3", "--max-new-tokens", "10", "--prompt", "The ")
        plain = outputs(run, *asked)[0]["tokens"]
        assert outputs(run, *asked, "--lookup")[0]["tokens"] == plain
        assert outputs(run, *asked, "--draft", trained[other])[0]["tokens"] == plain


def test_two_runs_vote(run: Run, trained: dict[str, Path]) -> None:
    alone = textwright.load(trained["lstm"])
    other = textwright.load(trained["transformer"])
    (text,) = outputs(
        run, trained["lstm"], "--with", f"{trained['transformer']}=0.4", "--strategy", "greedy", "--max-new-tokens", "6"
    )
    together = alone.together([(other, 0.4)])
    assert text["tokens"] == list(together.generate(strategy="greedy", max_new_tokens=6)[0].tokens)
    fused = outputs(run, trained["lstm"], "--fuse", f"{trained['transformer']}=0.4", "--seed", "1")
    assert fused[0]["tokens"]
    run("generate", trained["lstm"], "--with", "nowhere").fails("--with expects NAME=NUMBER", "runs/other=0.5")


def test_guidance_and_layers(run: Run, trained: dict[str, Path]) -> None:
    asked = (trained["transformer"], "--prompt", "The quick", "--strategy", "greedy", "--max-new-tokens", "6")
    plain = outputs(run, *asked)[0]["tokens"]
    assert outputs(run, *asked, "--guidance", "1")[0]["tokens"] == plain
    assert outputs(run, *asked, "--guidance", "6", "--negative", "Who")[0]["tokens"]
    run("generate", *asked, "--negative", "Who").fails("--negative does nothing without --guidance")
    run("generate", *asked, "--dola").fails("DoLa", "at least two")


def test_log_probabilities_are_the_models(run: Run, trained: dict[str, Path]) -> None:
    result = run(
        "generate", trained["lstm"], "--prompt", "The", "--json", "--top-logprobs", "3", "--prompt-logprobs",
        "--strategy", "greedy", "--max-new-tokens", "5",
    )  # fmt: skip
    document = json.loads(result.out)
    (text,) = document["outputs"]
    assert [piece for piece, _ in document["prompt_logprobs"]] == ["T", "h", "e"]
    assert all(value < 0 for _, value in document["prompt_logprobs"])
    assert sum(text["logprobs"]) == pytest.approx(text["logprob"])
    for value, top in zip(text["logprobs"], text["top_logprobs"], strict=True):
        assert max(value for _, value in top) == pytest.approx(value, abs=1e-5)
        assert len(top) == 3
    model = textwright.load(trained["lstm"])
    whole = model.logprobs("The" + text["text"])
    assert [value for _, value in whole[3:]] == pytest.approx(text["logprobs"], abs=1e-4)
    run("generate", trained["lstm"], "--top-logprobs", "3").fails("--json")


def test_alternatives_are_written_to_their_end(run: Run, trained: dict[str, Path], spoken: Path) -> None:
    asked = (trained["lstm"], "--strategy", "greedy", "--prompt", "The", "--max-new-tokens", "6")
    texts = outputs(run, *asked, "--alternatives", "3", "--top-logprobs", "3")
    assert [text["text"][0] for text in texts] == [piece for piece, _ in texts[0]["top_logprobs"][0]]
    assert texts[0]["tokens"] == outputs(run, *asked)[0]["tokens"]
    for text in texts:
        (after,) = outputs(run, *asked[:3], "--prompt", "The" + text["text"][0], "--max-new-tokens", "5")
        assert text["text"][1:] == after["text"]
        assert sum(text["logprobs"]) == pytest.approx(text["logprob"])
    shown = run("generate", *asked, "--alternatives", "3").out
    assert [line for line in shown.splitlines() if line.startswith("--- ")][2].startswith("--- 3 (log-probability")
    run("generate", *asked[:1], "--alternatives", "3").fails("it belongs to --strategy greedy")
    run("generate", *asked, "--alternatives", "3", "--n", "2").fails("leave out n")
    run("generate", *asked, "--n", "2").fails("--alternatives 2")
    told = run("generate", *asked, "--alternatives", "3", "--stream")
    told.fails("leave out --stream")
    assert told.out == ""
    words = run("convert", spoken, "64", "--strategy", "greedy", "--alternatives", "3", "--prefix", "sixty ").out
    assert len(set(words.splitlines())) == 3 and all(line.startswith("sixty ") for line in words.splitlines())
    run("convert", spoken, "64", "--strategy", "greedy", "--n-best", "2").fails("--alternatives 2")
    with pytest.raises(ConfigError, match="one reply"):
        load_pairs(spoken).reply(["64"], preset=None, strategy="greedy", alternatives=3)


def test_what_is_avoided_never_stands_there(run: Run, trained: dict[str, Path]) -> None:
    for strategy in ("sample", "beam"):
        for text in outputs(
            run,
            trained["lstm"],
            "--strategy",
            strategy,
            "--n",
            "3",
            "--avoid",
            "e",
            "--avoid",
            "ox",
            "--max-new-tokens",
            "60",
        ):
            assert "e" not in text["text"]
            assert "ox" not in text["text"]


def test_a_bias_moves_the_text(run: Run, trained: dict[str, Path]) -> None:
    (text,) = outputs(
        run, trained["lstm"], "--bias", "fox=50", "--seed", "1", "--prompt", "The fo", "--max-new-tokens", "1"
    )
    assert text["text"] == "x"
    run("generate", trained["lstm"], "--bias", "fox").fails("--bias expects NAME=NUMBER")
    model = textwright.load(trained["lstm"])
    words = {"breakers": None, "exempt": ()}
    fox, with_space = model.tokenizer.encode("fox"), model.tokenizer.encode(" fox")
    assert with_space[1:] == fox  # so the value would be added twice behind a space
    assert steering(model.tokenizer, frozenset(), bias={"fox": 2.0}, **words).sequences == ((tuple(fox), 2.0),)
    run("generate", trained["lstm"], "--bias", " =3").fails("a bias needs a text")


def test_the_whole_text_is_what_was_asked_for(run: Run, trained: dict[str, Path], tmp_path: Path) -> None:
    for family in FAMILIES:
        asked = (trained[family], "--max-new-tokens", "12")
        assert outputs(run, *asked, "--choice", "fox", "--choice", "friend")[0]["text"] in ("fox", "friend")
        text = outputs(run, *asked, "--word", "fox", "--word", "dog", "--in-order")[0]["text"]
        assert 0 <= text.index("fox") < text.index("dog")
        assert outputs(run, *asked, "--regex", "(dog|fox)s? over", "--strategy", "beam")[0]["text"].endswith(" over")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": [[], [[]]]}', encoding="utf-8")
    grammar.write_text('start: "a" start | "b"', encoding="utf-8")
    lstm = (trained["lstm"], "--max-new-tokens", "9")
    assert set(outputs(run, *lstm, "--grammar", grammar)[0]["text"]) <= {"a", "b"}
    run("generate", *lstm, "--json-schema", schema).fails("JSON schema", "no complete text of this model's vocabulary")
    run("generate", *lstm, "--json-schema", grammar).fails("is not JSON")
    run("generate", *lstm, "--regex", "(").fails("regular expression", "unclosed group")
    run("generate", *lstm, "--regex", "a", "--choice", "b").fails("leave out all but one")
    run("generate", *lstm, "--choice", "a very long fox indeed").fails("has 22 tokens, 9 are allowed")
    run("generate", *lstm, "--in-order").fails("add --word")


@pytest.mark.parametrize("strategy", ["greedy", "sample", "beam", "contrastive"])
def test_a_token_ends_the_text_without_being_part_of_it(
    run: Run, trained: dict[str, Path], strategy: str, tmp_path: Path
) -> None:
    """As a stop string of that token does; also where a model has several ends of its own."""
    tokenizer = Tokenizer.load(trained["lstm"])
    (space,) = tokenizer.encode(" ")
    asked = ("--strategy", strategy, "--prompt", "Th", "--max-new-tokens", "40")
    asked += () if strategy in ("beam", "greedy", "contrastive") else ("--seed", "3")
    (text,) = outputs(run, trained["lstm"], *asked, "--stop-id", str(space))
    (want,) = outputs(run, trained["lstm"], *asked, "--stop", " ")
    assert (text["text"], text["tokens"], text["finish_reason"]) == (want["text"], want["tokens"], "stop")
    assert text["tokens"][-1] == space and " " not in text["text"].removeprefix("Th")
    shutil.copytree(trained["lstm"], tmp_path / "several")
    said = json.loads((tmp_path / "several" / "generation.json").read_text())
    (tmp_path / "several" / "generation.json").write_text(json.dumps({**said, "also_end": [space]}))
    (again,) = outputs(run, tmp_path / "several", *asked)
    assert again["tokens"] == want["tokens"]


def test_time_is_kept(run: Run, trained: dict[str, Path]) -> None:
    (text,) = outputs(run, trained["lstm"], "--max-seconds", "0.0001", "--max-new-tokens", "5000")
    assert text["finish_reason"] == "time"


def test_contrastive_search_and_guidance_stay_in_the_window(run: Run, trained: dict[str, Path]) -> None:
    """Without a length: as much as there is room for."""
    for words in (("--strategy", "contrastive"), ("--guidance", "1.5")):
        (text,) = outputs(run, trained["transformer"], "--prompt", "The", *words)
        assert 1 <= len(text["tokens"]) <= 13


def test_a_model_with_a_source_keeps_the_time(spoken: Path) -> None:
    model = load_pairs(spoken)
    assert model.write(["42"], strategy="greedy", max_seconds=1e-9)[0][0].finish_reason == "time"
    with pytest.raises(ConfigError, match="top_logprobs"):
        model.write(["42"], strategy="greedy", top_logprobs=2)


def test_a_loop_ends_and_says_so(run: Run, trained: dict[str, Path]) -> None:
    found = outputs(
        run,
        trained["lstm"],
        "--strategy",
        "greedy",
        "--set",
        "loop_limit=3",
        "--max-new-tokens",
        "3000",
        "--prompt",
        "T",
    )
    assert found[0]["finish_reason"] == "loop"  # a model of a few steps says the same thing again and again
    assert len(found[0]["tokens"]) < 3000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "topk=3"), ("unknown option 'topk'", "top_k")),
        (("--set", "top_k=9999"), ("top_k 9999 is more than",)),
        (("--top-p", "0"), ("top_p", "greater than 0")),
        (("--strategy", "beam", "--temperature", "0"), ("does not use temperature", "sample")),
        (("--strategy", "greedy", "--top-k", "4"), ("does not use top_k",)),
        (("--strategy", "beam", "--beams", "2", "--n", "3"), ("3 texts need at least 3 beams", "--beams 3")),
        (("--strategy", "bean"), ("unknown strategy 'bean'", "beam")),
        (("--set", "mirostat=2", "--set", "top_k=4"), ("leave out top_k",)),
        (("--set", "dry_base=2"), ("does nothing without dry_multiplier",)),
        (("--set", "order=top_p,top_q"), ("unknown step 'top_q'", "top_p")),
        (("--top-k", "3", "--set", "order=temperature,top_p"), ("leaves out top_k",)),
        (("--top-k", "3", "--set", "top_k=4"), ("given twice",)),
        (("--stop", "日本"), ("stop '日本' cannot occur",)),
        (("--stop-id", "9999"), ("never writes the token 9999",)),
        (("--strategy", "mbr", "--stream"), ("knows its text only at the end",)),
        (("--strategy", "contrastive", "--n", "2"), ("writes one text",)),
        (("--strategy", "contrastive", "--prompt", "x" * 40), ("prompt of at most 15 tokens, got 41",)),
        (("--set", "groups=3", "--strategy", "beam", "--beams", "4", "--set", "diversity=1"), ("equal groups",)),
        (("--lookup", "--max-seconds", "3"), ("does not use max_seconds",)),
        (("--lookup", "--set", "draft_length=0"), ("a length",)),
        (("--max-seconds", "0"), ("max_seconds",)),
        (("--set", "max_seconds=soon"), ("max_seconds", "valid number, got 'soon'")),
        (("--lookup", "--set", "draft_length=two"), ("draft_length", "valid integer, got 'two'")),
        (("--set", "order=5"), ("--set: order",)),
        (("--set", "bias=2"), ("--set: bias",)),
        (("--json", "--set", "top_logprobs=many"), ("top_logprobs", "got 'many'")),
        (("--set", "seed=abc"), ("seed", "got 'abc'")),
        (("--set", "avoid=5"), ("--set: avoid: input should be a valid string or input should be", ", got 5")),
        (("--set", "words=5"), ("words",)),
        (("--set", "json_schema=x"), ("json_schema",)),
        (("--set", "top_logprobs=3"), ("add --json",)),
        (("--bias", "the=inf"), ("a bias is a number",)),
        (("--choice", "the fox", "--stop", "fox"), ("stop would end a text before",)),
        (("--choice", "the fox", "--max-seconds", "9"), ("max_seconds would end a text before",)),
        (("--strategy", "beam", "--set", "groups=2", "--set", "diversity=1", "--n", "5"), ("equal groups",)),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, trained: dict[str, Path], words: tuple[str, ...], told: tuple[str, ...]
) -> None:
    run("generate", trained["transformer"], *words).fails(*told)


def test_a_draft_with_another_tokenizer_is_refused(
    run: Run, trained: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    from textwright.api import train

    settings = {"model.width": 16, "model.layers": 1}
    other = tmp_path / "byte"
    train(text, model="lstm", tokenizer="byte", steps=2, out=other, settings=settings)
    run("generate", trained["lstm"], "--draft", other).fails("need one tokenizer")
    run("generate", trained["lstm"], "--with", f"{other}=0.5").fails("need one tokenizer")


def test_translations_obey_too(run: Run, spoken: Path) -> None:
    def written(*words: str) -> str:
        result = run("convert", spoken, "42", *words)
        assert result.code == 0, result.err
        return result.out.strip()

    assert written("--strategy", "mbr", "--seed", "1", "--set", "samples=4")
    assert written("--strategy", "contrastive")
    assert written("--prefix", "sixty").startswith("sixty")
    assert written("--prefix", "sixty", "--prefix-share", "0.999999").startswith("sixty")
    assert "two" not in written("--avoid", "two")
    assert "sixty" not in written("--prefix", "sixty", "--prefix-share", "0.999999", "--avoid", "sixty")
    assert written("--choice", "sixty two", "--choice", "twenty four") in ("sixty two", "twenty four")
    assert written("--draft", str(spoken), "--strategy", "greedy") == written("--strategy", "greedy")
    assert written("--with", f"{spoken}=0.5") == written()
    assert len(written("--max-ratio", "1")) < len(written("--min-ratio", "4"))
    assert written("--guidance", "1", "--negative", "17") == written()
    assert re.fullmatch("(one|two) hundred( [a-z]+)?", written("--regex", "(one|two) hundred( [a-z]+)?"))
    run("convert", spoken, "42", "--guidance", "2").fails("--negative TEXT")
    run("convert", spoken, "42", "--prefix-share", "0.5").fails("needs a prefix")
    run("convert", spoken, "42", "--set", "coverage=1", "--strategy", "greedy").fails("does not use coverage")
    run("convert", spoken, "42", "--max-ratio", "1", "--max-new-tokens", "3").fails("leave out one of them")


def test_the_least_risk_is_the_text_most_like_the_others() -> None:
    samples = ["the cat sat", "a dog ran off", "the cat sat down", "the cat sits"]
    assert samples[least_risk(samples)].startswith("the cat sat")

    def utility(text: str, right: str) -> float:
        return -abs(len(text) - len(right))

    assert least_risk(["a", "bbb", "ccc", "d" * 9], utility) == 1
    assert least_risk(["x", "x", "y"]) == 0


def test_a_string_that_cannot_occur_is_found_by_search(trained: dict[str, Path]) -> None:
    tokenizer: Tokenizer = textwright.load(trained["lstm"]).tokenizer
    letters = frozenset(token for token, piece in enumerate(tokenizer.pieces) if piece == b"q")
    assert stop_strings(tokenizer, ["quick"], "stop", frozenset()) is not None
    with pytest.raises(textwright.errors.ConfigError, match="stop 'quick' cannot occur"):
        stop_strings(tokenizer, ["quick"], "stop", letters)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_smaller_weights_say_what_they_cost(run: Run, trained: dict[str, Path], family: str, kind: str) -> None:
    result = run("generate", trained[family], "--quantize", kind, "--seed", "1", "--max-new-tokens", "8")
    assert result.code == 0, result.err
    pattern = rf"{kind} weights: ([\d.]+) MB instead of ([\d.]+); perplexity ([\d.]+) instead of ([\d.]+)"
    found = re.search(pattern, result.err)
    assert found is not None, result.err
    after, before = float(found[3]), float(found[4])
    assert after == pytest.approx(before, rel=0.1)
    panel = json.loads(run("evaluate", trained[family], "--quantize", kind, "--json").out)
    whole = json.loads(run("evaluate", trained[family], "--json").out)
    assert panel["loss"] != whole["loss"]
    assert panel["loss"] == pytest.approx(whole["loss"], rel=0.05)


def test_smaller_weights_in_python(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained["lstm"], folder)
    model, cost = load_quantized(folder, "int8")
    assert re.search(r"int8 weights: .* perplexity .* on the first 2,048 validation tokens", str(cost))
    assert isinstance(model, TextModel)
    assert model.generate(seed=1, max_new_tokens=5)[0].tokens == model.generate(seed=1, max_new_tokens=5)[0].tokens
    shutil.rmtree(folder / "data")
    assert "no validation text left" in str(load_quantized(folder, "int8")[1])


def test_unknown_weights_are_refused(run: Run, trained: dict[str, Path]) -> None:
    run("generate", trained["lstm"], "--quantize", "int3").fails("unknown kind of weights 'int3'", "int8 or int4")


def test_a_watermark_is_detected(run: Run, trained: dict[str, Path], tmp_path: Path) -> None:
    """In what was written with it, with its key alone; whatever way the text comes in."""
    asked = ("generate", trained["lstm"], "--seed", "1", "--max-new-tokens", "200", "--set", "temperature=1.5")
    marked = run(*asked, "--set", "watermark=8", "--set", "watermark_key=7").out
    file = tmp_path / "text.txt"
    file.write_text(marked, encoding="utf-8")
    found = run("detect", trained["lstm"], "--input", file, "--key", "7")
    assert found.code == 0, found.err
    assert found.out.startswith("a watermark: ")
    assert json.loads(run("detect", trained["lstm"], marked, "--key", "7", "--json").out)["watermark"]
    assert not json.loads(run("detect", trained["lstm"], marked, "--key", "8", "--json").out)["watermark"]
    assert run("detect", trained["lstm"], run(*asked).out, "--key", "7").out.startswith("no watermark")
    run("detect", trained["lstm"], "T").fails("at least two tokens")
    run(*asked, "--set", "watermark=8", "--set", f"watermark_key={2**53}").fails("watermark_key")
    run("detect", trained["lstm"], "The", "--input", file).fails("not both")
    run("detect", trained["lstm"], "--input", tmp_path / "nothing").fails("nothing")


def test_one_string_is_not_its_letters(run: Run, trained: dict[str, Path]) -> None:
    """`stop="END"`, as people write it, and lists given by --set."""
    model = textwright.load(trained["lstm"])
    asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 60}
    plain = model.generate("The ", **asked)[0].text
    parts = (plain[place : place + 3] for place in range(20, 50))
    string = next(part for part in parts if plain.find(part) > min(map(plain.find, part)))  # a letter stands earlier
    for one in (string, [string]):
        (text,) = model.generate("The ", stop=one, **asked)
        assert text.text == plain[: plain.find(string)]
    chosen = model.generate("The ", choices="over the", **asked)[0]
    assert chosen.text == "over the"
    repeated = ("--set", "no_repeat_ngram=1", "--seed", "4", "--max-new-tokens", "25")
    of_letters, whole = (
        outputs(run, trained["lstm"], *repeated, "--set", f"exempt={exempt}")[0]["text"]
        for exempt in ("[t,h,e]", "the")
    )
    without = outputs(run, trained["lstm"], *repeated)[0]["text"]
    assert whole == without  # no single token is "the"
    assert of_letters != without


def test_set_does_not_overwrite_what_has_an_option(run: Run, trained: dict[str, Path], spoken: Path) -> None:
    lstm = trained["lstm"]
    for name in ("max_new_tokens", "n", "stop", "strategy", "preset", "draft", "prompt"):
        run("generate", lstm, "--set", f"{name}=5").fails(f"--set {name}", "--" + name.replace("_", "-"))
    run("generate", lstm, "--set", "stop_ids=[5]").fails("--stop-id")
    run("generate", lstm, "--set", "regex=a", "--regex", "b").fails("--regex")
    run("generate", lstm, "--set", "avoid=[x]", "--avoid", "y").fails("--avoid")
    run("convert", spoken, "7", "--set", "n_best=2").fails("--n-best")
    asked = ("generate", lstm, "--max-new-tokens", "12")
    assert run(*asked, "--set", "seed=7").out == run(*asked, "--seed", "7").out
    run(*asked, "--set", "seed=7", "--seed", "8").fails("seed is given twice")


def test_an_empty_wish_is_a_wish(run: Run, trained: dict[str, Path], tmp_path: Path) -> None:
    anything, nothing, foreign = (tmp_path / name for name in ("any.json", "empty.lark", "foreign.lark"))
    anything.write_text("{}", encoding="utf-8")
    nothing.write_text("", encoding="utf-8")
    foreign.write_bytes('start: "你"'.encode("utf-16"))
    assert ways.demands(None, None, False, "", anything, None) == {"regex": "", "json_schema": {}}
    assert ways.demands(None, None, False, None, None, nothing) == {"grammar": ""}
    run("generate", trained["lstm"], "--grammar", foreign).fails("foreign.lark", "UTF-8")
    pytest.importorskip("llguidance", reason="needs llguidance")
    (text,) = outputs(run, trained["lstm"], "--regex", "", "--seed", "1")
    assert text["text"] == ""


def test_an_empty_list_is_none(trained: dict[str, Path]) -> None:
    model = textwright.load(trained["lstm"])
    plain = model.generate("The ", seed=4, max_new_tokens=9)[0].text
    for name in ("choices", "words", "words_in_order", "stop", "avoid", "exempt"):
        assert model.generate("The ", seed=4, max_new_tokens=9, **{name: []})[0].text == plain


def test_tokens_that_look_alike_are_all_shown() -> None:
    alike = ((("�", -1.0), ("�", -2.0), ("a", -3.0)),)
    record = _record(Text("x", (1,), "end", -1.0, 0, (-1.0,), alike))
    assert record["top_logprobs"] == [[["�", -1.0], ["�", -2.0], ["a", -3.0]]]


def test_a_column_of_a_table_is_measured(run: Run, trained: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("title,body\nThe fox,Who goes there? A friend.\n", encoding="utf-8")
    run("evaluate", trained["lstm"], "--data", table).fails("title, body", "--field NAME")
    told = [run("evaluate", trained["lstm"], "--data", table, "--field", name, "--json") for name in ("title", "body")]
    assert [result.code for result in told] == [0, 0]
    assert json.loads(told[0].out)["tokens"] < json.loads(told[1].out)["tokens"]
    run("evaluate", trained["lstm"], "--field", "body").fails("--data")


def test_a_beam_search_lists_no_log_probabilities_it_has_not(run: Run, trained: dict[str, Path]) -> None:
    asked = ("generate", trained["lstm"], "--max-new-tokens", "5", "--json")
    (found,) = json.loads(run(*asked, "--strategy", "beam").out)["outputs"]
    assert "logprobs" not in found and found["logprob"] < 0
    (found,) = json.loads(run(*asked, "--seed", "1").out)["outputs"]
    assert sum(found["logprobs"]) == pytest.approx(found["logprob"])


def test_a_conversation_goes_on_with_one_reply() -> None:
    for name in ("n", "n_best"):
        with pytest.raises(ConfigError, match=f"leave out {name}"):
            check_reply({name: 2})
    check_reply({"n": 1})


def test_a_share_of_a_prefix_needs_one(run: Run, spoken: Path) -> None:
    run("convert", spoken, "7", "--prefix-share", "0").fails("prefix_share 0.0 needs a prefix")


def test_a_missing_package_is_told_before_anything_is_written(
    trained: dict[str, Path], spoken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingExtraError("chrF", "translate")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it has written")

    for module in (writer, pair_model):
        monkeypatch.setattr(module, "likeness", missing)
        monkeypatch.setattr(module, "decode", never)
    with pytest.raises(MissingExtraError):
        textwright.load(trained["lstm"]).generate("T", strategy="mbr")
    with pytest.raises(MissingExtraError):
        load_pairs(spoken, "convert").write(["7"], strategy="mbr")


def test_a_prompt_that_is_refused_is_not_said_to_be_cut(run: Run, trained: dict[str, Path]) -> None:
    """A model with a window: sampling reads the last part of a long prompt and says so, a search refuses it."""
    asked = ("generate", trained["transformer"], "--prompt", "x" * 40, "--max-new-tokens", "2")
    assert "only the last 16 are read" in run(*asked).err
    result = run(*asked, "--strategy", "beam")
    result.fails("window of 16")
    assert "are read" not in result.err
