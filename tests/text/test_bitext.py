"""Pairs on disk: nothing is lost, equal sources stay in one split, tokenizers fit the sides, mistakes are told."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from textwright.errors import CheckpointError, ConfigError, DataError
from textwright.text import tokenizers
from textwright.text.bitext import LOOK, Bitext, PairPlan, open_bitext, prepare_pairs, raw_pairs
from textwright.text.buckets import Sides
from textwright.text.filters import Filters
from textwright.text.pairs import PairSource
from textwright.text.sides import never_read, read_characters
from textwright.text.tokenizers import Tokenizer, TokenizerConfig

DATA = Path(os.environ.get("TEXTWRIGHT_DATA", Path(__file__).parents[2] / "../shared/data"))
CHAR = TokenizerConfig(kind="char")
Couples = Sequence[tuple[str, str]]

GERMAN = ["der", "die", "das", "Hund", "Katze", "Haus", "läuft", "schläft", "groß", "im", "Garten", "Straße", "über"]
ENGLISH = ["the", "a", "that", "dog", "cat", "house", "runs", "sleeps", "big", "in", "garden", "street", "across"]
CHINESE = "我你他们今天明去公园学校看书吃饭很好的天气在家"


def sentences(words: Sequence[str], count: int, seed: int, join: str = " ") -> list[str]:
    """Sentences without end: a number makes every one a new one."""
    draws = random.Random(seed)
    return [join.join([*draws.choices(words, k=draws.randint(4, 9)), str(number)]) for number in range(count)]


def parallel(folder: Path, couples: Couples, name: str = "a") -> PairSource:
    files = [folder / f"{name}.source", folder / f"{name}.target"]
    for side, file in enumerate(files):
        file.write_text("".join(couple[side] + "\n" for couple in couples), encoding="utf-8")
    return PairSource(path=str(files[0]), target=str(files[1]))


def table(folder: Path, rows: Sequence[dict[str, Any]], name: str = "a.jsonl") -> PairSource:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PairSource(path=str(folder / name))


def plan(*sources: PairSource, **changes: Any) -> PairPlan:
    usual: dict[str, Any] = {
        "train": sources,
        "valid": (),
        "test": (),
        "source_tokenizer": None,
        "tokenizer": TokenizerConfig(),
        "filters": Filters(),
        "cut": list,
        "valid_fraction": 0.05,
        "test_fraction": 0.05,
    }
    return PairPlan(**{**usual, **changes})


def prepare(folder: Path, *sources: PairSource, **changes: Any) -> Bitext:
    return prepare_pairs(plan(*sources, **changes), folder, lambda what, characters: None)


def texts(sides: Sides, data: Bitext) -> list[tuple[str, str]]:
    """The pairs of a split, read back from their tokens."""
    told = []
    for corpus, tokenizer in zip(sides, (data.source_tokenizer, data.tokenizer), strict=True):
        ids = corpus.tokens.tolist()
        bounds = [0, *corpus.ends.tolist()]
        assert all(ids[stop - 1] == tokenizer.end for stop in bounds[1:])
        told.append([tokenizer.decode(ids[start : stop - 1]) for start, stop in pairwise(bounds)])
    return list(zip(*told, strict=True))


def splits(data: Bitext) -> list[list[tuple[str, str]]]:
    return [texts(sides, data) for sides in (data.train, data.valid, data.test)]


def translations(count: int = 300) -> list[tuple[str, str]]:
    return list(zip(sentences(GERMAN, count, 0), sentences(ENGLISH, count, 1), strict=True))


# Round trip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "char", "byte", "bpe", "word"])
def test_what_was_prepared_is_opened_as_it_was(tmp_path: Path, kind: str) -> None:
    couples = translations()
    made = prepare(tmp_path / "data", parallel(tmp_path, couples), tokenizer=TokenizerConfig(kind=kind))
    found = open_bitext(tmp_path / "data")
    assert splits(found) == splits(made)
    assert found.facts == made.facts
    assert found.tokenizer.same(made.tokenizer)
    assert found.source_tokenizer.same(made.source_tokenizer)
    if kind != "word":  # which does not know the words of the other splits
        assert sorted(pair for split in splits(found) for pair in split) == sorted(couples)
    for name, sides in (("valid", found.valid), ("test", found.test)):
        assert len(raw_pairs(tmp_path / "data" / name)) == sides.pairs > 0
    assert raw_pairs(tmp_path / "data" / "train") == []  # nothing is judged there, and it may be large


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    source = parallel(tmp_path, translations())
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        prepare(folder, source)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in folders]
    assert files[0] == files[1]
    assert len(files[0]) >= 3 + 3 * 7  # facts and tokenizers; three splits of two corpora and their raw pairs
    assert all((folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() for file in files[0])


def test_raw_pairs_are_what_was_read(tmp_path: Path) -> None:
    """Whatever a text holds; with the other references, the place in the file, and in order."""
    strange = [
        'a "quoted" \\ one',
        "two\nlines",
        "a\u2028b\x85c\x0bd",
        "标点，。",
        "👩‍👩‍👧 e\u0301",
        "  spaces \t tab ",
    ]
    rows = [{"source": f"{text} {n}", "target": [text, f"other {text}", "third"]} for n, text in enumerate(strange)]
    source = table(tmp_path, rows, "valid.jsonl")
    prepare(tmp_path / "data", parallel(tmp_path, translations(40)), valid=[source], tokenizer=CHAR)
    found = raw_pairs(tmp_path / "data" / "valid")
    assert [pair.source for pair in found] == [row["source"] for row in rows]
    assert [pair.target for pair in found] == strange
    assert [pair.others for pair in found] == [(f"other {text}", "third") for text in strange]
    assert [pair.where for pair in found] == [f"{source.path}:{number}" for number in range(1, 7)]


def test_a_prefix_is_part_of_what_is_read(tmp_path: Path) -> None:
    source = parallel(tmp_path, translations()).model_copy(update={"prefix": "to English: "})
    data = prepare(tmp_path / "data", source)
    assert all(text.startswith("to English: ") for split in splits(data) for text, _ in split)
    assert all(pair.source.startswith("to English: ") for pair in raw_pairs(tmp_path / "data" / "valid"))


def test_several_sources_are_read_in_order(tmp_path: Path) -> None:
    first, second = translations(60)[:30], translations(60)[30:]
    sources = parallel(tmp_path, first, "a"), parallel(tmp_path, second, "b")
    data = prepare(tmp_path / "data", *sources, valid=[parallel(tmp_path, first[:2], "c")])
    assert splits(data)[0] == first + second


@pytest.mark.parametrize("damage", ["facts.json", "tokenizer.json", "train/source/facts.json", "valid/target/ends.bin"])
def test_a_missing_file_is_named(tmp_path: Path, damage: str) -> None:
    prepare(tmp_path / "data", parallel(tmp_path, translations(60)), tokenizer=CHAR)
    (tmp_path / "data" / damage).unlink()
    with pytest.raises(CheckpointError, match=Path(damage).parts[0]):
        open_bitext(tmp_path / "data")


def test_sides_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "data", parallel(tmp_path, translations(60)), tokenizer=CHAR)
    (tmp_path / "data/train/source").rename(tmp_path / "data/train/old")
    (tmp_path / "data/valid/source").rename(tmp_path / "data/train/source")
    with pytest.raises(CheckpointError, match="different numbers of texts"):
        open_bitext(tmp_path / "data")


# Splits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.3, 0.2), (0.5, 0.0)])
def test_equal_sources_stay_together_and_nothing_is_lost(tmp_path: Path, fractions: tuple[float, float]) -> None:
    draws = random.Random(3)
    couples = [(f"source {draws.randrange(400)}", f"target {number}") for number in range(1200)]
    shares = {"valid_fraction": fractions[0], "test_fraction": fractions[1]}
    found = splits(prepare(tmp_path / "data", parallel(tmp_path, couples), tokenizer=CHAR, **shares))
    place = {pair: number for number, pair in enumerate(couples)}
    numbers = [[place[pair] for pair in split] for split in found]
    assert all(split == sorted(split) for split in numbers)  # in the order of the file
    assert sorted(number for split in numbers for number in split) == list(range(1200))
    sources = [{source for source, _ in split} for split in found]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    for split, share in zip(sources[1:], fractions, strict=True):
        assert len(split) == pytest.approx(share * 400, abs=4 * (share * (1 - share) * 400) ** 0.5)


def test_where_a_pair_goes_depends_on_its_source_alone(tmp_path: Path) -> None:
    """More pairs, another order or other targets do not move a source from validation into training."""
    couples = translations()
    known = splits(prepare(tmp_path / "first", parallel(tmp_path, couples), tokenizer=CHAR))
    other = [(source, target[::-1]) for source, target in reversed([*couples, *translations(500)[300:]])]
    grown = splits(prepare(tmp_path / "second", parallel(tmp_path, other, "b"), tokenizer=CHAR))
    for before, after in zip(known, grown, strict=True):
        assert {source for source, _ in before} <= {source for source, _ in after}


def test_with_validation_pairs_nothing_is_split_off(tmp_path: Path) -> None:
    couples = translations()
    valid = parallel(tmp_path, couples[-5:], "valid")
    found = splits(prepare(tmp_path / "data", parallel(tmp_path, couples[:-5]), valid=[valid], tokenizer=CHAR))
    assert found == [couples[:-5], couples[-5:], []]
    assert raw_pairs(tmp_path / "data" / "test") == []


def test_with_test_pairs_only_validation_is_split_off(tmp_path: Path) -> None:
    couples = translations()
    test = parallel(tmp_path, couples[-5:], "test")
    shares = {"valid_fraction": 0.2, "test_fraction": 0.7}
    found = splits(prepare(tmp_path / "data", parallel(tmp_path, couples[:-5]), test=[test], tokenizer=CHAR, **shares))
    assert found[2] == couples[-5:]
    assert sorted(found[0] + found[1]) == sorted(couples[:-5])
    assert 0.1 < len(found[1]) / 295 < 0.3


def test_with_both_everything_is_trained_on(tmp_path: Path) -> None:
    couples = translations(60)
    parts = [couples[:40], couples[40:50], couples[50:]]
    train, valid, test = (parallel(tmp_path, part, str(n)) for n, part in enumerate(parts))
    assert splits(prepare(tmp_path / "data", train, valid=[valid], test=[test], tokenizer=CHAR)) == parts


def test_few_pairs_need_validation_pairs(tmp_path: Path) -> None:
    couples = translations(19)
    source = parallel(tmp_path, couples)
    with pytest.raises(DataError, match=r"19 pairs are too few to hold some back .* give --valid-pairs"):
        prepare(tmp_path / "data", source)
    assert prepare(tmp_path / "data", source, valid=[source]).train.pairs == 19


def test_nothing_left_to_validate_on(tmp_path: Path) -> None:
    """All pairs that fall to it have a blank side, and are dropped."""
    known = splits(prepare(tmp_path / "first", parallel(tmp_path, translations(60)), tokenizer=CHAR))
    blank = [*known[0], *known[2], *((source, "") for source, _ in known[1])]
    with pytest.raises(DataError, match=r"nothing is left for the validation split: give --valid-pairs"):
        prepare(tmp_path / "data", parallel(tmp_path, blank, "b"), tokenizer=CHAR)


@pytest.mark.parametrize("seed", range(12))
def test_few_pairs_leave_some_to_validate_and_to_test(tmp_path: Path, seed: int) -> None:
    """Where shares would give a split nothing, which one of three would have here, it gets one."""
    couples = [(f"source {seed} {number}", f"{number}") for number in range(20)]
    parts = splits(prepare(tmp_path / "data", parallel(tmp_path, couples), tokenizer=CHAR))
    assert all(parts)
    assert sorted(chain.from_iterable(parts)) == sorted(couples)
    assert len(parts[0]) >= 14


def test_a_sentence_of_two_tasks_is_in_one_split(tmp_path: Path) -> None:
    """Otherwise validation would ask for what was read in training, with other words in front."""
    couples = [(f"sentence {number}", f"{number}") for number in range(300)]
    tasks = [parallel(tmp_path, couples, name).model_copy(update={"prefix": f"{name}: "}) for name in ("say", "count")]
    parts = splits(prepare(tmp_path / "data", *tasks, tokenizer=CHAR))
    numbers = [{source.split()[-1] for source, _ in part} for part in parts]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) == 300
    assert all(numbers)


def test_an_own_tokenizer_of_the_sources_leaves_the_targets_to_their_kind(tmp_path: Path) -> None:
    draws = random.Random(0)
    sounds = [" ".join(draws.choices(["AH0", "B", "K", "OW1"], k=5)) for _ in range(200)]
    words = ["".join(draws.choices("abcdefgh", k=7)) for _ in sounds]
    source = parallel(tmp_path, list(zip(words, sounds, strict=True)))
    kinds = {}
    for asked in (None, "char", "auto"):
        own = None if asked is None else TokenizerConfig(kind=asked)
        data = prepare(tmp_path / str(asked), source, source_tokenizer=own)
        kinds[asked] = data.source_tokenizer.kind, data.tokenizer.kind
    assert set(kinds.values()) == {("char", "word")}


def test_every_file_says_what_the_sides_are_made_of(tmp_path: Path) -> None:
    """Not the first one alone: behind Chinese sources stand German ones, of several words each."""
    chinese = list(zip(sentences(list(CHINESE), 2200, 0, ""), sentences(ENGLISH, 2200, 1), strict=True))
    german = list(zip(sentences(GERMAN, 2200, 2), sentences(ENGLISH, 2200, 3), strict=True))
    data = prepare(tmp_path / "data", parallel(tmp_path, chinese, "zh"), parallel(tmp_path, german, "de"))
    assert data.source_tokenizer.kind != "char"


def test_pairs_of_a_paragraph_or_dialogue_stay_together(tmp_path: Path) -> None:
    """Otherwise validation would ask about a paragraph that was read in training, or go on with a dialogue of it."""
    questions = [
        {"question": f"who is {name}?", "context": f"In house {house} live Ann, Bob and Cid.", "answer": name}
        for house in range(120)
        for name in ("Ann", "Bob", "Cid")
    ]
    data = prepare(tmp_path / "one", table(tmp_path, questions, "questions.jsonl"), tokenizer=CHAR)
    parts = splits(data)
    houses = [{source.partition("house ")[2].split()[0] for source, _ in part} for part in parts]
    assert sum(map(len, houses)) == len(set().union(*houses)) == 120
    assert [3 * len(part) for part in houses] == [len(part) for part in parts]
    assert all(houses)
    chats = [{"turns": [f"hello {n}", f"good day {n}", f"how is {n}?", f"fine {n}"]} for n in range(120)]
    parts = splits(prepare(tmp_path / "two", table(tmp_path, chats, "chats.jsonl"), tokenizer=CHAR))
    numbers = [{target.strip("?").split()[-1] for _, target in part} for part in parts]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) == 120
    (tmp_path / "other").mkdir()
    moved = splits(prepare(tmp_path / "three", table(tmp_path / "other", chats, "moved.jsonl"), tokenizer=CHAR))
    assert moved == parts  # what is held back depends on what was said alone, not on the file's name


def test_few_paragraphs_are_not_held_back_whole(tmp_path: Path) -> None:
    """Of ten paragraphs chance might take none; then their questions are told apart."""
    questions = [
        {"question": f"who is {n}?", "context": f"In house {house} live many.", "answer": "many"}
        for house in range(10)
        for n in range(40)
    ]
    data = prepare(tmp_path / "data", table(tmp_path, questions, "questions.jsonl"), tokenizer=CHAR)
    assert min(len(part) for part in splits(data)) > 5


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    shares = {"valid_fraction": 0.6, "test_fraction": 0.6}
    with pytest.raises(ConfigError, match="below 1 together"):
        prepare(tmp_path / "data", parallel(tmp_path, translations()), tokenizer=CHAR, **shares)


def test_equal_sources_stay_together(tmp_path: Path) -> None:
    """So there must be one for each split."""
    animals = [("Hund", "dog"), ("Katze", "cat"), ("Maus", "mouse")]
    for count in (1, 2):
        few = parallel(tmp_path, animals[:count] * 50, f"of-{count}")
        with pytest.raises(DataError, match=rf"too few different sources \({count}\) for 3 splits.*--valid-pairs"):
            prepare(tmp_path / f"data-{count}", few, tokenizer=CHAR)
    three = parallel(tmp_path, animals * 50, "of-3")
    parts = splits(prepare(tmp_path / "data-3", three, tokenizer=CHAR))
    assert {frozenset(part) for part in parts} == {frozenset([pair]) for pair in animals}
    two = prepare(tmp_path / "data", parallel(tmp_path, animals[:2] * 50, "two"), tokenizer=CHAR, test_fraction=0.0)
    assert (two.train.pairs, two.valid.pairs, two.test.pairs) == (50, 50, 0)


def test_a_test_split_may_turn_out_empty(tmp_path: Path) -> None:
    """One blank target, by chance the only pair that went to the test split."""
    couples = translations(60)
    known = splits(prepare(tmp_path / "first", parallel(tmp_path, couples), tokenizer=CHAR))
    fewer = [*known[0], *known[1], (known[2][0][0], "")]
    data = prepare(tmp_path / "data", parallel(tmp_path, fewer, "b"), tokenizer=CHAR)
    assert data.test.pairs == 0


# Sides that changed places -------------------------------------------------------------------------------------------


def test_swapped_validation_pairs(tmp_path: Path) -> None:
    couples = translations()
    train = parallel(tmp_path, couples[:250])
    right = parallel(tmp_path, couples[250:], "right")
    wrong = parallel(tmp_path, [(target, source) for source, target in couples[250:]], "wrong")
    with pytest.raises(DataError, match=r"sides of .*wrong\.source look swapped") as caught:
        prepare(tmp_path / "data", train, valid=[wrong])
    assert repr(couples[250][1][:60]) in str(caught.value)
    assert prepare(tmp_path / "data", train, valid=[right]).valid.pairs == 50


def test_swapped_test_pairs(tmp_path: Path) -> None:
    couples = translations()
    wrong = parallel(tmp_path, [(target, source) for source, target in couples[250:]], "wrong")
    with pytest.raises(DataError, match=r"sides of .*wrong\.source look swapped"):
        prepare(tmp_path / "data", parallel(tmp_path, couples[:250]), test=[wrong])


def test_a_prefix_does_not_hide_that_sides_changed_places(tmp_path: Path) -> None:
    couples = translations()
    prefix = {"prefix": "translate this into plain English please: "}
    train = parallel(tmp_path, couples[:250]).model_copy(update=prefix)
    wrong = parallel(tmp_path, [(target, source) for source, target in couples[250:]], "wrong")
    with pytest.raises(DataError, match="look swapped"):
        prepare(tmp_path / "data", train, valid=[wrong.model_copy(update=prefix)])


def test_each_task_is_compared_with_its_own_training_pairs(tmp_path: Path) -> None:
    """One model for both directions: whichever is validated on, its sides are those of its own training pairs."""
    couples = translations()
    turned = [(target, source) for source, target in couples]
    there = parallel(tmp_path, couples[:250]).model_copy(update={"prefix": "en: "})
    back = parallel(tmp_path, turned[:250], "back").model_copy(update={"prefix": "de: "})
    held = parallel(tmp_path, turned[250:], "held")
    for number, order in enumerate(((there, back), (back, there))):
        right = held.model_copy(update={"prefix": "de: "})
        assert prepare(tmp_path / f"right{number}", *order, valid=[right]).valid.pairs == 50
        wrong = held.model_copy(update={"prefix": "en: "})
        with pytest.raises(DataError, match="look swapped"):
            prepare(tmp_path / f"wrong{number}", *order, valid=[wrong])


# What is kept for later ----------------------------------------------------------------------------------------------


def test_characters_of_the_training_sources_alone(tmp_path: Path) -> None:
    couples = [(f"ab {number}", "xyz") for number in range(30)]
    valid = parallel(tmp_path, [("é 1", "x")], "valid")
    prepare(tmp_path / "data", parallel(tmp_path, couples), valid=[valid])
    assert read_characters(tmp_path / "data") == frozenset("ab 0123456789")
    assert never_read("a é\n9é", read_characters(tmp_path / "data")) == ["é"]
    assert read_characters(tmp_path) == frozenset() and never_read("é", frozenset()) == []


def test_what_was_left_out_of_every_split_is_known(tmp_path: Path) -> None:
    valid = parallel(tmp_path, [("a", "b"), ("c", "")], "valid")
    facts = prepare(tmp_path / "data", parallel(tmp_path, translations(60)), valid=[valid]).facts
    assert facts.held[0].text().startswith("dropped 1 of 2 pairs: 1 empty on one side (first: ")
    assert not facts.held[1].dropped


# Tokenizers ----------------------------------------------------------------------------------------------------------


def test_a_pointer_needs_one_vocabulary(tmp_path: Path) -> None:
    """Sides that would get tokenizers of their own share one where tokens are copied."""
    couples = [(f"abc{number}", " ".join(f"abc{number}".upper())) for number in range(200)]
    apart = prepare(tmp_path / "apart", parallel(tmp_path, couples))
    assert not apart.source_tokenizer.same(apart.tokenizer)
    together = prepare(tmp_path / "together", parallel(tmp_path, couples), copying=True)
    assert together.source_tokenizer.same(together.tokenizer)


def spelled(count: int) -> list[tuple[str, str]]:
    draws = random.Random(5)
    sounds = [f"{letter}{letter}".upper() for letter in "abcdefghij"]
    words = ["".join(draws.choices("abcdefghij", k=draws.randint(3, 9))) for _ in range(count)]
    return [(word, " ".join(sounds["abcdefghij".index(letter)] for letter in word)) for word in words]


def labelled(count: int) -> list[tuple[str, str]]:
    return [(text, ("good", "bad", "neither")[n % 3]) for n, text in enumerate(sentences(ENGLISH, count, 2))]


def renamed(count: int) -> list[tuple[str, str]]:
    return [(word, word[::-1].title()) for word, _ in spelled(count)]


def chinese(count: int) -> list[str]:
    return sentences(CHINESE, count, 4, join="")


@pytest.mark.parametrize(
    ("couples", "kinds"),
    [
        (translations, ("bpe", "bpe")),
        (lambda n: list(zip(chinese(n), sentences(ENGLISH, n, 1), strict=True)), ("char", "bpe")),
        (lambda n: list(zip(sentences(ENGLISH, n, 1), chinese(n), strict=True)), ("bpe", "char")),
        (spelled, ("char", "word")),
        (labelled, ("bpe", "word")),
        (renamed, ("char", "char")),
    ],
    ids=["German-English", "Chinese-English", "English-Chinese", "spelling-sounds", "sentence-label", "name-name"],
)
def test_tokenizers_fit_the_sides(tmp_path: Path, couples: Callable[[int], Couples], kinds: tuple[str, str]) -> None:
    data = prepare(tmp_path / "data", parallel(tmp_path, couples(400)))
    assert (data.source_tokenizer.kind, data.tokenizer.kind) == kinds
    assert data.source_tokenizer.same(data.tokenizer) == (kinds[0] == kinds[1] != "word")  # written alike


@pytest.mark.parametrize(
    ("files", "fields", "kinds"),
    [
        (("multi30k/train.de", "multi30k/train.en"), None, ("bpe", "bpe")),
        (("tatoeba-cmn-eng/train.zh", "tatoeba-cmn-eng/train.en"), None, ("char", "bpe")),  # begins with "Hi."
        (("cmudict-g2p/train.tsv",), ("1", "2"), ("char", "word")),
    ],
    ids=["multi30k", "tatoeba", "cmudict"],
)
def test_tokenizers_fit_real_corpora(
    tmp_path: Path, files: tuple[str, ...], fields: tuple[str, str] | None, kinds: tuple[str, str]
) -> None:
    names = []
    for name in files:
        if not (DATA / name).is_file():
            pytest.skip(f"needs {DATA / name} in the folder that TEXTWRIGHT_DATA names")
        names.append(str(tmp_path / Path(name).name))
        lines = (DATA / name).read_text(encoding="utf-8").split("\n")[:LOOK]
        Path(names[-1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = PairSource(path=names[0], target=names[1] if len(names) > 1 else None, fields=fields)
    data = prepare(tmp_path / "data", source)
    assert (data.source_tokenizer.kind, data.tokenizer.kind) == kinds


def test_a_shared_tokenizer_knows_both_sides(tmp_path: Path) -> None:
    one = prepare(tmp_path / "data", parallel(tmp_path, translations())).tokenizer
    for word in (" läuft", " Straße", " sleeps", " garden"):
        assert len(one.encode(word)) == 1, word


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_of_a_large_corpus_both_sides_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    """Merges are learned from every `stride`-th text only; sources and targets follow each other."""
    couples = translations()
    characters = sum(len(source) + len(target) for source, target in couples)
    monkeypatch.setattr(tokenizers, "SAMPLE", characters // (stride - 1))
    source = parallel(tmp_path, couples)
    one = prepare(tmp_path / "data", source, valid=[source]).tokenizer
    assert len(one.encode(" läuft Straße")) <= 4
    assert len(one.encode(" sleeps garden")) <= 4


def test_tokenizers_that_are_asked_for(tmp_path: Path) -> None:
    source = parallel(tmp_path, translations())
    own = prepare(tmp_path / "own", source, source_tokenizer=CHAR, tokenizer=TokenizerConfig(kind="word"))
    assert (own.source_tokenizer.kind, own.tokenizer.kind) == ("char", "word")
    shared = prepare(tmp_path / "shared", source, tokenizer=TokenizerConfig(kind="word"))
    assert shared.source_tokenizer.same(shared.tokenizer)
    assert shared.tokenizer.unseen("Hund dog") == []


def test_tokenizers_learn_from_the_training_pairs_alone(tmp_path: Path) -> None:
    couples = translations(60)
    valid, test = (parallel(tmp_path, [(f"{sign} Hund", f"{sign} dog")], sign) for sign in "☃☂")
    data = prepare(tmp_path / "data", parallel(tmp_path, couples), valid=[valid], test=[test], tokenizer=CHAR)
    assert data.tokenizer.unseen("☃☂ Hund") == ["☃", "☂"]


def test_the_source_side_knows_only_what_sources_hold(tmp_path: Path) -> None:
    data = prepare(tmp_path / "data", parallel(tmp_path, spelled(400)))
    assert "Z" in data.source_tokenizer.unseen("Z")
    assert data.source_tokenizer.unseen("abc") == []
    assert data.tokenizer.unseen("AA BB") == []
    assert data.tokenizer.unseen("abc") == ["abc"]


def test_line_ends_inside_a_text_do_not_end_it(tmp_path: Path) -> None:
    """The end of a `word` tokenizer is the line end; the other kinds keep it."""
    rows = [{"source": f"one{n}\ntwo\n\nthree", "target": f"four\nfive{n}"} for n in range(30)]
    valid = table(tmp_path, rows[:2], "valid.jsonl")
    for kind, want in (("word", ("one0 two three", "four five0")), ("char", ("one0\ntwo\n\nthree", "four\nfive0"))):
        folder = tmp_path / kind
        data = prepare(folder, table(tmp_path, rows), valid=[valid], tokenizer=TokenizerConfig(kind=kind))
        assert splits(data)[0][0] == want
        for corpus, tokenizer in zip(data.train, (data.source_tokenizer, data.tokenizer), strict=True):
            assert int((corpus.tokens == tokenizer.end).sum()) == 30
        assert raw_pairs(folder / "valid")[0][:2] == ("one0\ntwo\n\nthree", "four\nfive0")


# Filters and facts ---------------------------------------------------------------------------------------------------


def test_filters_are_for_the_training_pairs(tmp_path: Path) -> None:
    couples = [*translations(40), ("", "x"), ("lang " * 40, "long"), ("doppelt", "twice"), ("doppelt", "twice")]
    valid = parallel(tmp_path, [("lang " * 40, "long"), ("doppelt", "twice"), ("doppelt", "twice")], "valid")
    filters = Filters(max_source=150, duplicates="drop")
    source = parallel(tmp_path, couples)
    data = prepare(tmp_path / "data", source, valid=[valid], tokenizer=CHAR, filters=filters)
    assert data.facts.report.text() == (
        f"dropped 3 of 44 pairs: 1 empty on one side (first: {source.path}:41), 1 with a source longer than 150 tokens "
        f"(first: {source.path}:42), 1 the same as an earlier one (first: {source.path}:44)"
    )
    assert splits(data)[0] == [*couples[:40], ("doppelt", "twice")]
    assert data.valid.pairs == 3


def test_blank_pairs_are_in_no_split(tmp_path: Path) -> None:
    """And raw pairs stay beside their tokens."""
    couples = translations(60)
    valid = parallel(tmp_path, [couples[0], ("", "nothing"), couples[1], ("nichts", "  "), couples[2]], "valid")
    data = prepare(tmp_path / "data", parallel(tmp_path, couples), valid=[valid], tokenizer=CHAR)
    assert splits(data)[1] == couples[:3]
    assert [(pair.source, pair.target) for pair in raw_pairs(tmp_path / "data" / "valid")] == couples[:3]


def test_everything_is_dropped(tmp_path: Path) -> None:
    source = parallel(tmp_path, translations(40))
    with pytest.raises(
        DataError, match="no pair is left: dropped 40 of 40 pairs: 40 with a target longer than 2 token"
    ):
        prepare(tmp_path / "data", source, valid=[source], tokenizer=CHAR, filters=Filters(max_target=2))


def test_facts_by_hand(tmp_path: Path) -> None:
    """Lengths in tokens, the end included, in any split; the growth of the training pairs."""
    couples = [("ab", "xyz")] * 30 + [("abcd", "x" * 14)]  # 4 / 3 and 15 / 5
    valid, test = parallel(tmp_path, [("a" * 40, "x")], "valid"), parallel(tmp_path, [("a", "x" * 50)], "test")
    source = parallel(tmp_path, couples)
    facts = prepare(tmp_path / "data", source, valid=[valid], test=[test], tokenizer=CHAR).facts
    assert (facts.longest_source, facts.longest_target) == (41, 51)
    ratios = torch.tensor([4 / 3] * 30 + [3.0])
    assert facts.growth == pytest.approx(float(ratios.quantile(0.999)), rel=1e-6)
    assert (facts.report.pairs, facts.report.kept) == (31, 31)


def test_long_sources_are_cut_and_targets_are_not(tmp_path: Path) -> None:
    couples = [(f"abcdef{n}", f"uvwxyz{n}") for n in range(30)]
    source = parallel(tmp_path, couples)
    for first, want in ((True, "abcd"), (False, "f29")):
        cut: Callable[[list[int]], list[int]] = partial(_first, 4) if first else partial(_last, 3)
        data = prepare(tmp_path / want, source, valid=[source], tokenizer=CHAR, cut=cut)
        assert splits(data)[0][29] == (want, "uvwxyz29")
        assert data.facts.longest_source == len(want) + 1
        assert raw_pairs(tmp_path / want / "valid")[29].source == "abcdef29"


def _first(size: int, ids: list[int]) -> list[int]:
    return ids[:size]


def _last(size: int, ids: list[int]) -> list[int]:
    return ids[-size:]


def test_progress_is_told_of_every_pass(tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {}
    prepare_pairs(
        plan(parallel(tmp_path, translations(60)), tokenizer=CHAR),
        tmp_path / "data",
        lambda what, characters: seen.setdefault(what, []).append(characters),
    )
    whole = sum(len(source) + len(target) for source, target in translations(60))
    assert seen["reading"][-1] == whole
    assert sum(seen[f"encoding {name}"][-1] for name in ("train", "valid", "test")) == whole
    assert "learning the vocabulary" in seen


def test_saved_tokenizers_open_alone(tmp_path: Path) -> None:
    data = prepare(tmp_path / "data", parallel(tmp_path, spelled(400)))
    assert Tokenizer.load(tmp_path / "data" / "source_tokenizer.json").same(data.source_tokenizer)
    assert Tokenizer.load(tmp_path / "data" / "tokenizer.json").same(data.tokenizer)
