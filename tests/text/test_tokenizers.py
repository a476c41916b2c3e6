"""Tokenizers: lossless where they promise it, equal to the library they wrap, and the same files every time."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from textwright.errors import CheckpointError, ConfigError, MissingExtraError
from textwright.text import segmenters
from textwright.text.segmenters import count_words, is_unspaced, segmenter
from textwright.text.tokenizer_file import ALPHABET, END
from textwright.text.tokenizers import SLICE, Tokenizer, TokenizerConfig, train

DATA = Path(os.environ.get("TEXTWRIGHT_DATA", Path(__file__).parents[2] / "../shared/data"))
ENGLISH = "It was a bright cold day in April, and the clocks were striking thirteen. \U0001f600 It wasn't 1984!\n" * 4
CHINESE = "春天来了，小河边的柳树发出了新芽。孩子们在草地上放风筝，老人们坐在长椅上聊天。\n" * 4
LOSSLESS = ("char", "byte", "bpe")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
parts = ["the ", " cold", "\n", "  ", "春天", "\U0001f600", "e\u0301", "<|end|>", "<unk>", "12345"]
mixed = st.lists(st.sampled_from(parts))
anything = text | mixed.map("".join)


def made(kind: str, *texts: str, **options: int) -> Tokenizer:
    return train(TokenizerConfig.parse({"kind": kind, **options}), lambda: iter(texts or (ENGLISH, CHINESE)))


def data(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"needs {path} in the folder that TEXTWRIGHT_DATA names")
    return DATA / path


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.feed, ids), stream.flush()]


TOKENIZERS = {kind: made(kind) for kind in (*LOSSLESS, "word")}


# Every kind


@pytest.mark.parametrize("kind", LOSSLESS)
@given(anything)
def test_round_trip(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.data())
def test_stream_is_decode(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=40) | anything.map(tokenizer.encode))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_stream_holds_incomplete_characters_back(kind: str) -> None:
    tokenizer = made(kind, "abc " * 20)
    assert streamed(tokenizer, tokenizer.encode("a\U0001f600")) == ["a", "", "", "", "\U0001f600", ""]
    assert streamed(tokenizer, tokenizer.encode("\U0001f600")[:2]) == ["", "", "\ufffd"]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(anything)
def test_no_text_reaches_the_end_token(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text + END + text)
    assert ids.count(tokenizer.end) == (2 * text.count("\n") if kind == "word" else 0)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_control_tokens_in_the_training_text(kind: str) -> None:
    tokenizer = made(kind, f"one{END}two {END}\n" * 500)
    assert tokenizer.end not in tokenizer.encode(f"{END}one{END} {END}")
    assert tokenizer.pieces[tokenizer.end] == b""
    assert tokenizer.decode([tokenizer.end, *tokenizer.encode("a"), tokenizer.end]) == "a"


@pytest.mark.parametrize("kind", [*TOKENIZERS, "auto"])
def test_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    tokenizer = made(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for name in ("kind", "size", "end", "unknown", "pieces", "fallback"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again.encode(ENGLISH) == tokenizer.encode(ENGLISH)
    assert Tokenizer.load(tmp_path).kind == tokenizer.kind
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("kind", [*TOKENIZERS, "auto"])
def test_same_texts_same_bytes(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        made(kind).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_library_agrees(tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.save(tmp_path / "t.json")
    library = Library.from_file(str(tmp_path / "t.json"))
    for sample in ("", ENGLISH, CHINESE, "\u00e9\U0001f600 new words\n", "x" * (SLICE + 1)):
        ids = tokenizer.encode(sample)
        assert ids == library.encode(sample).ids
        if kind in LOSSLESS:
            assert library.decode(ids) == tokenizer.decode(ids) == sample


@pytest.mark.parametrize("kind", [*TOKENIZERS, "auto"])
@pytest.mark.parametrize("sample", ["a", "a" * 100_000, "中" * 100_000, "one line", "\n\n\n", "\0", " ", ""])
def test_tiny_texts(kind: str, sample: str) -> None:
    tokenizer = made(kind, sample)
    assert tokenizer.size == len(tokenizer.pieces)
    if kind != "word":
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_half_a_surrogate_pair_is_no_crash(kind: str) -> None:
    assert "?" in TOKENIZERS[kind].decode(TOKENIZERS[kind].encode("the \ud83d cold")) or kind == "word"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_is_one_by_one(kind: str) -> None:
    samples = [ENGLISH, "", "\n", CHINESE]
    assert TOKENIZERS[kind].encode_many(samples) == [TOKENIZERS[kind].encode(sample) for sample in samples]


# Each kind


def test_char_vocabulary() -> None:
    tokenizer = made("char", "aaabbc\U0001f600", vocabulary=259)
    assert (tokenizer.size, tokenizer.end, tokenizer.unknown) == (259, 258, None)
    assert tokenizer.pieces[256:] == [b"a", b"b", b""]
    assert len(tokenizer.encode("ab\U0001f600")) == 6
    assert tokenizer.unseen("abc\U0001f600c <0x41>") == ["c", "\U0001f600", "<", "0", "x", "4", "1", ">"]
    assert made("char", "aaabbc", min_frequency=2).unseen("abc") == ["c"]
    assert made("char", "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))).size == 8000


def test_byte_ids_are_bytes() -> None:
    tokenizer = made("byte")
    assert (tokenizer.size, tokenizer.end) == (257, 256)
    assert tokenizer.pieces == [*(bytes([i]) for i in range(256)), b""]
    assert tokenizer.encode("A\U0001f600") == list("A\U0001f600".encode())
    assert tokenizer.unseen("\U0001f600") == []


def test_bpe_size() -> None:
    assert made("bpe", ENGLISH, vocabulary=300).size == 300
    assert made("bpe", ENGLISH).size < 1024
    numbers = " ".join(f"w{i:x}" for i in range(200_000))
    assert made("bpe", numbers).size == 2048
    with pytest.raises(ConfigError, match="at least 257"):
        made("bpe", vocabulary=100)


@given(st.text("ab \n.1\u4e2d", max_size=40), st.text("ab \n.1\u4e2d", max_size=40))
def test_bpe_does_not_notice_where_documents_are_cut(before: str, after: str) -> None:
    tokenizer = TOKENIZERS["bpe"]
    whole = tokenizer.encode(f"{before}a\nb{after}")
    assert tokenizer.encode(f"{before}a\n") + tokenizer.encode(f"b{after}") == whole
    whole = tokenizer.encode(f"{before}a b{after}")
    assert tokenizer.encode(f"{before}a") + tokenizer.encode(f" b{after}") == whole


def test_word() -> None:
    tokenizer = made("word", "the cat\tsat \n \n the <unk> end\n", min_frequency=1)
    assert (tokenizer.size, tokenizer.unknown, tokenizer.end) == (6, 0, 1)
    ids = tokenizer.encode("  the dog sat\n\n <unk> cat ")
    assert tokenizer.decode(ids) == "the <unk> sat\n\n<unk> cat"
    assert tokenizer.unseen("the dog <unk>\n") == ["dog"]
    assert made("word", "a a b", min_frequency=2).size == 3
    assert made("word", "a a b", vocabulary=3).unseen("a b") == ["b"]


def test_word_on_wikitext() -> None:
    train_text, test_text = (data(f"wikitext-2/{name}.txt").read_text("utf-8") for name in ("train", "test"))
    tokenizer = made("word", train_text)
    assert tokenizer.size == 33278
    assert len(tokenizer.encode(test_text)) == 245_569 == count_words(test_text)
    assert tokenizer.decode(tokenizer.encode(test_text)).split() == test_text.split()


def test_auto() -> None:
    assert made("auto", CHINESE).kind == "char"
    assert made("auto", ENGLISH).kind == "bpe"
    assert made("auto", "12345").kind == "bpe"


@pytest.mark.parametrize("kind", ["chars", "spacey:en", "/nowhere/tokenizer.json"])
def test_unknown_kind(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no tokenizer .* expected auto, char"):
        made(kind)


@pytest.mark.parametrize("kind", ["char", "byte", "word"])
def test_vocabulary_too_small(kind: str) -> None:
    with pytest.raises(ConfigError, match="needs a vocabulary of at least"):
        made(kind, vocabulary=1)
    with pytest.raises(ConfigError, match="vocabulary"):
        made(kind, vocabulary=0)


def test_no_option_is_ignored() -> None:
    with pytest.raises(ConfigError, match="min_frequency cannot change it"):
        made("byte", min_frequency=2)


# Segmenters


@pytest.fixture(params=["jieba", "spacy:en", "spacy:zh"])
def segmented(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name.split(":")[0], reason="needs spaCy and jieba")
    return name


@pytest.mark.parametrize("sample", [ENGLISH, CHINESE, " a  b\t\n\n c ", "", "don't <|end|> <unk>", "春天 来了, ok\n"])
def test_segmented_round_trip(tmp_path: Path, segmented: str, sample: str) -> None:
    assert "".join(segmenter(segmented)(sample)) == sample
    tokenizer = made(segmented, sample)
    ids = tokenizer.encode(sample)
    if "<unk>" not in sample:
        assert tokenizer.decode(ids) == "".join(streamed(tokenizer, ids)) == sample
    assert tokenizer.end not in ids
    tokenizer.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json").kind == segmented
    library = Library.from_file(str(tmp_path / "t.json"))
    assert library.encode(segmenter(segmented)(sample), is_pretokenized=True).ids == ids


def test_segmented_chinese_gets_no_spaces(segmented: str) -> None:
    tokenizer = made(segmented, CHINESE)
    assert tokenizer.decode(tokenizer.encode("孩子们在放风筝。")).replace("<unk>", "").count(" ") == 0


def fake(monkeypatch: pytest.MonkeyPatch, words: Callable[[str], list[str]]) -> None:
    segmenter.cache_clear()
    monkeypatch.setattr(segmenters, "_jieba", lambda: words)


def test_segmenter_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, lambda text: [part for word in text.split(" ") for part in (word, " ") if part][:-1])
    tokenizer = made("jieba", "the <|end:jieba|> cat sat on the mat")
    assert tokenizer.decode(tokenizer.encode("the cat sat")) == "the cat sat"
    assert tokenizer.decode(tokenizer.encode("cat the dog")) == "<unk> the <unk>"
    assert tokenizer.unseen("the dog sat the dog") == ["dog"]
    for told in ("the cat dog sat", "cat the"):  # also where a word stands behind an unexpected space
        assert len(tokenizer.surfaces(told)) == len(tokenizer.encode(told))
        assert "".join(tokenizer.surfaces(told)) == told
    assert tokenizer.end not in tokenizer.encode("<|end:jieba|> <|end:jieba|>")
    monkeypatch.setattr(segmenters, "_LIMIT", 7)
    assert "".join(segmenter("jieba")("one\ntwo\nthreefour\n")) == "one\ntwo\nthreefour\n"
    segmenter.cache_clear()


def test_missing_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter.cache_clear()
    for name in ("spacy", "jieba"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(MissingExtraError, match=r"textwright\[words\]"):
            made("jieba" if name == "jieba" else "spacy:en")


def test_unknown_language() -> None:
    pytest.importorskip("spacy", reason="needs spaCy")
    with pytest.raises(ConfigError, match="a code such as spacy:en"):
        made("spacy:zz")


def test_counting_words() -> None:
    assert count_words("the cat, sat\n\n on") == 6
    assert count_words("我们 say你好。\n") == 7
    assert count_words("") == 0
    for text in (ENGLISH, "Größe, déjà\u3000vu\n", CHINESE, "a\x1cb\u2028c 。"):  # the short way counts as the long one
        alone = [character for character in text if count_words(2 * character) == 2 and not character.isspace()]
        spaced = "".join(" " if character in alone else character for character in text)
        assert count_words(text) == len(spaced.split()) + len(alone) + text.count("\n")
    assert is_unspaced(CHINESE)
    assert not is_unspaced("123")


# Existing files


def existing(folder: Path, library: Library) -> Tokenizer:
    library.save(str(folder / "tokenizer.json"))
    return made(str(folder))


def trained(library: Library, special: list[str], **options: Any) -> Library:
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False, **options)
    if not isinstance(library.model, models.WordPiece):
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False, **options)
    library.train_from_iterator([ENGLISH, CHINESE], trainer)
    return library


def byte_level() -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trained(library, ["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    library.add_tokens([AddedToken("a tool", special=False)])
    return library


def metaspace() -> Library:
    library = Library(models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return trained(library, ["<unk>", "</s>"])


def word_piece() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    return trained(library, ["[UNK]", "[CLS]", "[SEP]"])


SAMPLES = ("It was a cold day.", "  two\n\nlines ", "day, wasn't it? 春天来了", "a tool", "", "<|endoftext|></s>[SEP]")


@pytest.mark.parametrize("library", [byte_level, metaspace, word_piece])
@pytest.mark.parametrize("sample", SAMPLES)
def test_existing_decodes_as_the_library(tmp_path: Path, library: Callable[[], Library], sample: str) -> None:
    tokenizer = existing(tmp_path, library())
    ids = tokenizer.encode(sample)
    plain = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.end not in ids
    assert tokenizer.decode(ids) == plain.decode(ids) == "".join(streamed(tokenizer, ids))
    assert tokenizer.decode([*ids, tokenizer.end]) == tokenizer.decode(ids)


@pytest.mark.parametrize("sample", ["Once upon a time", "  two  spaces\n\n", "\u00e9\u4e2d\U0001f600", "</s><s>", ""])
def test_real_llama_file(sample: str) -> None:
    path = data("../models/stories260K/tokenizer.json")
    tokenizer, library = Tokenizer.load(path), Library.from_file(str(path))
    ids = tokenizer.encode(sample)
    assert (tokenizer.size, tokenizer.end, tokenizer.kind) == (512, 2, "existing")
    assert tokenizer.decode(ids) == library.decode(ids) == "".join(streamed(tokenizer, ids)) == sample
    assert tokenizer.end not in ids
    assert made(str(path.parent)).encode(sample) == ids
    assert tokenizer.unseen("time \U0001f600 time") == ["\U0001f600"]


def test_the_end_is_a_control_token_where_there_is_one(tmp_path: Path) -> None:
    """BART's vocabulary has the end of GPT-2's texts among its words."""
    library = Library(models.BPE({**ALPHABET, "<|endoftext|>": 256}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    assert existing(tmp_path, library).end == 256
    library.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = existing(tmp_path, library)
    assert tokenizer.end == tokenizer.entries["</s>"] == 257


def test_what_stands_in_front_of_a_text_without_latin_letters(tmp_path: Path) -> None:
    library = Library(models.BPE({"A": 0, "C": 1, "<s>": 2, "</s>": 3}, []))
    library.decoder = decoders.Fuse()
    library.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    assert existing(tmp_path, library).prefix == ()
    library.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    assert existing(tmp_path, library).prefix == (2,)


def test_existing_is_refused_by_name(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"[UNK]": 0, "[SEP]": 1}, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its decoder none is not supported"):
        existing(tmp_path, library)
    library.decoder = decoders.CTC()
    with pytest.raises(CheckpointError, match="its decoder CTC is not supported"):
        existing(tmp_path, library)
    library = Library(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="no token that ends a text"):
        existing(tmp_path, library)


def hostile() -> Iterator[str]:
    good = json.loads(TOKENIZERS["char"]._library.to_str())
    yield from ("", "null", "[]", "{}", "{" * 100_000, '"x"', "\0\1\2")
    yield json.dumps(good)[:-10]
    yield json.dumps(good | {"model": {"type": "BPE", "vocab": {END: 4_000_000_000}, "merges": []}})
    yield json.dumps(good | {"model": {"type": "BPE", "vocab": {END: 100_000_000, "a": 0}, "merges": []}})
    yield json.dumps(good | {"added_tokens": [{"id": 4_000_000_000, "content": END, "special": True}]})
    yield json.dumps(good | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}})
    yield json.dumps(good | {"model": {"type": "BPE", "vocab": {}, "merges": []}})
    yield json.dumps(good | {"model": {"type": "Pickle"}})
    yield json.dumps(good | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}})


@pytest.mark.parametrize("content", list(hostile()))
def test_hostile_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\x80\x04\xff")
    with pytest.raises(CheckpointError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
