"""What a model with a source may be asked for: lengths, drafts, luck, and what it cannot do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from door import Run
from hypothesis import given
from hypothesis import strategies as st

from textwright.api import train_pairs
from textwright.errors import ConfigError, DataError
from textwright.models.alignment import NoAlignment
from textwright.opening import load_pairs
from textwright.pair_model import FEW, READ, ROWS, PairModel
from textwright.text.pairs import PairSource

SETTINGS = {"model.width": 16, "model.layers": 1, "training.evaluations": 1}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path], spoken: Path) -> PairModel:
    """A Transformer with the tokenizers of `spoken` and a window that is soon full."""
    source = PairSource(path=str(files["train.tsv"]))
    more = {"model.inner": 32, "model.heads": 2, "model.window": 16, "model.source_window": 16}
    more |= {"source_tokenizer": {"kind": str(spoken / "source_tokenizer.json")}}
    return train_pairs(
        "convert",
        source,
        model="transformer",
        tokenizer=str(spoken / "tokenizer.json"),
        steps=4,
        out=tmp_path_factory.mktemp("short") / "run",
        settings={**SETTINGS, **more},
    )


def test_coverage_up_to_the_end_of_the_window(short: PairModel) -> None:
    """A text that fills the window has one token more than the model ever reads."""
    how = {"coverage": 0.2, "min_ratio": 9.0}
    ((text,),) = short.write(["42"], max_new_tokens=16, **how)
    assert len(text.tokens) == 16 and text.finish_reason == "length"


def test_lengths_that_were_asked_for(spoken: Path, short: PairModel) -> None:
    model = load_pairs(spoken)
    ((usual,),) = model.write(["42"], strategy="greedy")
    read = len(model.source_ids("42"))
    wanted = int((model.generation.growth * read + 10) // read + 3)
    ((long,),) = model.write(["42"], strategy="greedy", min_ratio=float(wanted))
    assert len(long.tokens) >= wanted * read > len(usual.tokens)
    prefix = " ".join(["one"] * 60)
    ((begun,),) = model.write(["42"], strategy="greedy", prefix=prefix)
    assert begun.text.startswith(prefix)
    choice = " ".join(["two"] * 60)
    ((chosen,),) = model.write(["42"], choices=[choice])
    assert chosen.text == choice
    ((most,),) = short.write(["42"], strategy="greedy", max_ratio=500.0)
    assert len(most.tokens) <= 16
    with pytest.raises(ConfigError, match="min_ratio of 3 and a max_ratio of 2"):
        model.write(["42"], min_ratio=3.0, max_ratio=2.0)


def test_ngrams_of_a_source_with_a_vocabulary_of_its_own(run: Run, spoken: Path, tmp_path: Path) -> None:
    run("convert", spoken, "42", "--set", "no_repeat_source_ngram=2").fails("one vocabulary for both sides")
    table = tmp_path / "same.tsv"
    table.write_text("".join(f"word {n}\tword {n}\n" for n in range(200)), encoding="utf-8")
    settings = {**SETTINGS, "model.copying": True}
    model = train_pairs(
        "convert", PairSource(path=str(table)), model="gru", steps=30, out=tmp_path / "run", settings=settings
    )
    ((text,),) = model.write(["word 12"], strategy="greedy", no_repeat_source_ngram=1, max_new_tokens=30)
    assert not set(text.tokens) & set(model.source_ids("word 12")[:-1])
    ((ended,),) = model.write(["word 12"], no_repeat_source_ngram=1, choices=["34"])  # the end is no word of it
    assert ended.text == "34" and ended.finish_reason == "end"


def test_a_draft_that_reads_less(run: Run, spoken: Path, short: PairModel) -> None:
    model = load_pairs(spoken)
    assert model.tokenizer.same(short.tokenizer)
    ((guessed,),) = model.write(["42"], strategy="greedy", draft=short)
    ((alone,),) = model.write(["42"], strategy="greedy")
    assert guessed.tokens == alone.tokens
    choices = ["one", "two"]
    ((chosen,),) = model.write(["42"], strategy="greedy", draft=short, choices=choices)
    assert chosen.text in choices
    with pytest.raises(DataError, match="source 1 has 41 tokens, its draft reads up to 16"):
        model.write(["1" * 40], strategy="greedy", draft=short)


def test_luck_can_be_repeated(run: Run, spoken: Path, trained: dict[str, Path]) -> None:
    drawn = ("convert", spoken, "42", "--strategy", "beam", "--set", "draw=true", "--n-best", "3")
    first = json.loads(run(*drawn, "--json").out)["outputs"]
    seed = first[0]["seed"]
    assert json.loads(run(*drawn, "--json", "--set", f"seed={seed}").out)["outputs"] == first
    for words in (drawn, ("convert", spoken, "42", "--strategy", "sample", "--temperature", "3")):
        done = run(*words)
        seed = done.err.rsplit("--seed ", 1)[1].split()[0]
        assert run(*words, "--set", f"seed={seed}").out == done.out
    assert "--seed" not in run("convert", spoken, "42").err
    assert "--seed" not in run("convert", spoken, "42", "--strategy", "sample", "--seed", "3").err
    done = run("generate", trained["lstm"], "--strategy", "beam", "--set", "draw=true", "--max-new-tokens", "9")
    assert "to get the same again" in done.err


def test_where_a_blind_model_looked_is_asked_in_vain(short: PairModel, tmp_path: Path, files: dict[str, Path]) -> None:
    """Refused before anything is written."""
    settings = {**SETTINGS, "model.attention": NoAlignment().model_dump()}
    source = PairSource(path=str(files["train.tsv"]))
    blind = train_pairs("convert", source, model="gru", steps=4, out=tmp_path / "run", settings=settings)
    done: list[int] = []
    assert short.looks and not blind.looks
    with pytest.raises(ConfigError, match="no attention"):
        blind.write(["42"], alignments=True, progress=done.append)
    assert not done


def test_a_conversation_survives_a_long_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text((json.dumps({"turns": ["Hello!", "Hi.", "Bye."]}) + "\n") * 30, encoding="utf-8")
    settings = {**SETTINGS, "model.inner": 32, "model.heads": 2, "model.source_window": 32}
    source = PairSource(path=str(chats))
    how = {"model": "transformer", "tokenizer": "char", "steps": 4, "settings": settings}
    train_pairs("chat", source, valid=source, out=tmp_path / "run", **how)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n" + "so " * 200 + "\nBye.\n\n"))
    talk = run("chat", tmp_path / "run", "--seed", "1", "--max-new-tokens", "5")
    assert talk.code == 0, talk.err
    assert "reads up to 32" in talk.err and "It was not said" in talk.err
    assert [len(line) <= 5 for line in talk.out.splitlines()] == [True, True]
    run("chat", tmp_path / "run", "--system", "Be kind.").fails("leave out --system")


@given(lengths=st.lists(st.integers(1, 3000), max_size=400), rows=st.integers(1, 900))
def test_texts_are_written_together_as_far_as_their_sources_allow(lengths: list[int], rows: int) -> None:
    """Every source once, the longest first; more than a few rows only where their sources are short."""
    batches = list(PairModel._batches(None, [[0] * length for length in lengths], rows))  # type: ignore[arg-type]
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    longest = [[lengths[place] for place in batch] for batch in batches]
    assert [length for batch in longest for length in batch] == sorted(lengths, reverse=True)
    for batch in longest[:-1]:
        assert len(batch) == 1 or rows * len(batch) <= FEW or rows * len(batch) * batch[0] <= READ
        assert rows * (len(batch) + 1) > min(ROWS, max(FEW, READ // batch[0]))  # and no fewer
