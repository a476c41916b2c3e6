"""Corpora: what is written is what is read back, splits are deterministic and lose nothing."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from textwright.errors import CheckpointError, ConfigError, DataError
from textwright.text import corpus as module
from textwright.text.batching import Batch, Cursor, Streams, Windows, strided
from textwright.text.corpus import Corpus, Facts, counted, open_corpus, open_prepared, prepare, split, write
from textwright.text.sources import Piece, SourceConfig
from textwright.text.tokenizers import TokenizerConfig, train

DATA = Path(os.environ.get("TEXTWRIGHT_DATA", Path(__file__).parents[2] / "../shared/data"))
BYTE = train(TokenizerConfig(kind="byte"), lambda: iter([]))
CHAR = TokenizerConfig(kind="char")


def source(folder: Path, text: str, name: str = "a.txt", **options: str) -> SourceConfig:
    (folder / name).write_text(text, "utf-8")
    return SourceConfig.parse({"path": str(folder / name), **options})


def texts(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def documents(corpus: Corpus) -> list[list[int]]:
    starts = [0, *corpus.ends.tolist()]
    return [corpus.tokens[a:b].tolist() for a, b in pairwise(starts)]


def written(folder: Path, *pieces: tuple[str, bool]) -> Corpus:
    return write(folder / "c", [Piece(*piece) for piece in pieces], BYTE)


@pytest.mark.parametrize("batch", [1, 1000])
def test_documents_end_with_the_end_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    corpus = written(tmp_path, ("ab", False), ("c\n", True), ("é", True), ("cut", False))
    assert documents(corpus) == [[97, 98, 99, 10, 256], [195, 169, 256], [99, 117, 116]]
    expected = {"tokens": 11, "documents": 3, "bytes": 9, "characters": 8, "words": 5, "unknown": 0, "vocabulary": 257}
    assert corpus.facts.dump() == expected
    again = open_corpus(tmp_path / "c")
    assert torch.equal(again.tokens, corpus.tokens)
    assert again.facts == corpus.facts


def test_word_document_that_ends_with_a_line_end(tmp_path: Path) -> None:
    tokenizer = train(TokenizerConfig(kind="word"), lambda: iter(["the cat\n"]))
    pieces = [Piece("the cat\n", True), Piece("the\n", False), Piece("  ", True), Piece("dog", True)]
    corpus = write(tmp_path / "c", pieces, tokenizer)
    the, cat, end = (tokenizer.encode(word)[0] for word in ("the", "cat", "\n"))
    assert documents(corpus) == [[the, cat, end], [the, end], [tokenizer.unknown, end]]
    assert corpus.facts.unknown == 1


@pytest.mark.parametrize(("size", "dtype"), [(256, torch.uint8), (257, torch.uint16), (65537, torch.int32)])
def test_smallest_type(size: int, dtype: torch.dtype) -> None:
    assert module._storage(size)[1] == dtype


def test_wide_ids_survive(tmp_path: Path) -> None:
    words = " ".join(f"w{i}" for i in range(70_000))
    tokenizer = train(TokenizerConfig(kind="word"), lambda: iter([words]))
    corpus = write(tmp_path / "c", [Piece(words, True)], tokenizer)
    assert corpus.tokens.dtype == torch.int32
    assert corpus.tokens.tolist() == [*tokenizer.encode(words), tokenizer.end]


def test_empty_corpus(tmp_path: Path) -> None:
    corpus = written(tmp_path)
    assert (corpus.tokens.numel(), corpus.ends.numel(), corpus.facts.documents) == (0, 0, 0)


def test_replacing_is_atomic_and_spares_what_is_not_a_corpus(tmp_path: Path) -> None:
    written(tmp_path, ("old", True))
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "c", (Piece("x" * (1 // 0), True) for _ in range(1)), BYTE)
    assert open_corpus(tmp_path / "c").facts.characters == 3
    assert written(tmp_path, ("newer", True)).facts.characters == 5
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match="not a corpus"):
        write(tmp_path / "file", [], BYTE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="not a corpus"):
        write(tmp_path / "mine", [], BYTE)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["tokens.bin", "ends.bin", "facts.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "garbage"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    written(tmp_path, ("some text", True), ("more", True))
    path = tmp_path / "c" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "short" else b"\xff" * 100)
    with pytest.raises(CheckpointError, match="prepare it again"):
        open_corpus(tmp_path / "c")


@pytest.mark.parametrize("change", [{"tokens": -1}, {"documents": 1}, {"colour": 1}, {"tokens": "x"}])
def test_lying_facts(tmp_path: Path, change: dict[str, object]) -> None:
    written(tmp_path, ("some text", True), ("more", True))
    path = tmp_path / "c" / "facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError):
        open_corpus(tmp_path / "c")


# Splits


@pytest.mark.parametrize("size", [7, 10_000])
def test_cut_in_order_after_a_line_end(size: int) -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    pieces = [Piece(text[i : i + size], i + size >= len(text)) for i in range(0, len(text), size)]
    parts = [list(part()) for part in split(lambda: iter(pieces), 0.05, 0.05)]
    assert "".join(map(texts, parts)) == text
    assert all(texts(part).startswith("line") and texts(part).endswith("\n") for part in parts)
    assert [part[-1].last for part in parts] == [False, False, True]
    assert 0.04 < len(texts(parts[1])) / len(text) < 0.06


@pytest.mark.parametrize("text", ["a" * 40, "x" * 10_000, "one line of forty characters, no more ..\n", "ab\n" * 11])
@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.05, 0.0), (0.0, 0.05), (0.0, 0.0), (0.4, 0.5)])
def test_short_texts_leave_nothing_empty(text: str, fractions: tuple[float, float]) -> None:
    parts = [texts(list(part())) for part in split(lambda: iter([Piece(text, True)]), *fractions)]
    assert "".join(parts) == text
    assert [bool(part) for part in parts] == [True, *map(bool, fractions)]


def test_documents_go_by_their_hash() -> None:
    pieces = [Piece(f"document {i % 200}", True) for i in range(400)]
    parts = [[piece.text for piece in part()] for part in split(lambda: iter(pieces), 0.1, 0.1)]
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(piece.text for piece in pieces)
    assert not set(parts[0]) & set(parts[1]) | set(parts[1]) & set(parts[2]) | set(parts[0]) & set(parts[2])
    assert 10 < len(parts[1]) < 80
    more = [[piece.text for piece in part()] for part in split(lambda: iter(pieces + pieces[:1]), 0.1, 0.1)]
    assert all(set(a) == set(b) for a, b in zip(parts, more, strict=True))


def test_equal_documents_are_cut_in_order() -> None:
    pieces = [Piece("the same", True)] * 30
    parts = [texts(list(part())) for part in split(lambda: iter(pieces), 0.05, 0.05)]
    assert "".join(parts) == "the same" * 30
    assert all(parts)


@pytest.mark.parametrize("pieces", [1, 500])
def test_of_a_long_text_no_more_is_held_back_than_can_be_measured(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {i}\n" for i in range(10_000))
    size = -(-len(text) // pieces)
    given = [Piece(text[i : i + size], pieces > 1 or i + size >= len(text)) for i in range(0, len(text), size)]

    def held(*fractions: float | None) -> list[int]:
        return [len(texts(list(part()))) for part in split(lambda: iter(given), *fractions)][1:]

    assert all(0.03 < length / len(text) < 0.07 for length in held(None, None))
    monkeypatch.setattr(module, "MOST", 2_000)
    assert all(1_000 < length < 4_000 for length in held(None, None))
    assert all(0.03 < length / len(text) < 0.07 for length in held(0.05, 0.05))  # asked for is asked for
    assert held(None, 0.0)[1] == 0


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5), (float("nan"), 0.0)])
def test_impossible_fractions(fractions: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="below 1 together"):
        split(lambda: iter([Piece("a" * 100, True)]), *fractions)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["windows", "streams", "strided", "counted"])
def test_memory_does_not_grow_with_what_was_read(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 << 20
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "tokens.bin").write_bytes(bytes(range(256)) * (size // 256))
    (tmp_path / "c" / "ends.bin").write_bytes(torch.tensor([size]).numpy().tobytes())
    facts = Facts(vocabulary=256, tokens=size, documents=1)
    (tmp_path / "c" / "facts.json").write_text(json.dumps(facts.dump()))
    corpus = open_corpus(tmp_path / "c")

    def resident() -> int:
        """Bytes of the mapped tokens that the process holds."""
        (_, *lines) = Path("/proc/self/smaps").read_text().split(str(tmp_path / "c" / "tokens.bin"))
        return sum(1024 * int(part.split("Rss:", 1)[1].split()[0]) for part in lines)

    assert int(corpus.tokens[:: 1 << 12].long().sum()) == 0
    assert resident() == size
    monkeypatch.setattr(module, "KEPT", 4)
    corpus.touched(1, size)
    assert resident() == 0
    most, read = 0, 0
    if kind == "counted":
        monkeypatch.setattr(module, "BATCH", size // 16)
        assert counted(corpus, 256).tolist() == [size // 256] * 256
        most = resident()
    batches: dict[str, Callable[[], Iterator[Batch]]] = {
        "windows": lambda: (batch for batch, _ in Windows(corpus, 512, 1 << 16, 0, seed=1).batches(Cursor())),
        "streams": lambda: (batch for batch, _ in Streams(corpus, 64, 1024, 0, seed=1).batches(Cursor())),
        "strided": lambda: strided(corpus, 1 << 14, 1 << 14, 1 << 16, 0),
        "counted": lambda: iter(()),
    }
    for batch in batches[kind]():
        read += batch.targets.numel()
        most = max(most, resident()) if read % (1 << 22) == 0 else most
        assert batch.targets[0, :200].diff().remainder(256).eq(1).all()  # the same after pages were forgotten
        if read >= size / 2:
            break
    assert most < size / 4


# From text to corpora


def test_prepare(tmp_path: Path) -> None:
    text = "".join(f"line {i} 文匠\n" for i in range(300)) + "Ω" * 200
    seen: list[tuple[str, float]] = []
    only = source(tmp_path, text)
    prepared = prepare(only, None, None, CHAR, tmp_path / "p", progress=lambda what, done: seen.append((what, done)))
    parts = [prepared.tokenizer.decode(corpus.tokens.tolist()) for corpus in prepared[:3]]
    assert "".join(parts) == text
    assert prepared.test.facts.unknown > 0  # the tokenizer has never seen the test split
    assert int(prepared.test.tokens[-1]) == prepared.tokenizer.end
    assert {what for what, _ in seen} >= {"reading", "learning the vocabulary", "encoding train"}
    again = open_prepared(tmp_path / "p")
    assert again.tokenizer.pieces == prepared.tokenizer.pieces
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(again[:3], prepared[:3], strict=True))


def test_same_source_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(SourceConfig(path="builtin:python-docs"), None, None, TokenizerConfig(), tmp_path / name)
    first, second = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two"))
    assert len(first) == 10
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(("valid", "test"), [(True, False), (False, True), (True, True)])
def test_given_splits(tmp_path: Path, valid: bool, test: bool) -> None:
    only, extra = source(tmp_path, "train " * 50), source(tmp_path, "held out", "b.txt")
    prepared = prepare(only, extra if valid else None, extra if test else None, CHAR, tmp_path / "p")
    sizes = [corpus.facts.characters for corpus in prepared[:3]]
    assert sizes == [300 if valid else 285, 8 if valid else 15, 8 if test else 0]


@pytest.mark.parametrize("kind", ["auto", "char", "byte", "bpe", "word"])
@pytest.mark.parametrize("text", ["a" * 100, "a single line without an end, but long enough to be cut in three"])
def test_tiny_sources(tmp_path: Path, kind: str, text: str) -> None:
    prepared = prepare(source(tmp_path, text), None, None, TokenizerConfig(kind=kind), tmp_path / "p")
    assert all(corpus.facts.tokens for corpus in prepared[:3])


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too little text: 5 characters; at least 32"):
        prepare(source(tmp_path, "hello"), None, None, CHAR, tmp_path / "p")


def test_wikitext(tmp_path: Path) -> None:
    folder = DATA / "wikitext-2"
    if not folder.exists():
        pytest.skip("needs wikitext-2 in the folder that TEXTWRIGHT_DATA names")
    train_source, test_source = (SourceConfig(path=str(folder / f"{name}.txt")) for name in ("train", "test"))
    prepared = prepare(train_source, test_source, test_source, TokenizerConfig(kind="word"), tmp_path / "p")
    assert prepared.tokenizer.size == 33278
    assert prepared.test.facts.tokens == prepared.test.facts.words == 245_569
    assert prepared.train.facts.tokens == 2_088_628
    assert prepared.train.tokens.dtype == torch.uint16
