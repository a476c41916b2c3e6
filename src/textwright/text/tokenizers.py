"""Text to ids and back. Every kind is a recipe for one `tokenizers.Tokenizer`; one class wraps them all.

A tokenizer is stored as a single tokenizer.json that the `tokenizers` library opens too. There is no companion file:
what we need beyond it (kind, ids of the control tokens, spacing) is derived from it, see `Tokenizer`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from textwright.config import Config
from textwright.errors import CheckpointError, ConfigError
from textwright.text.detokenizer import Detokenizer
from textwright.text.segmenters import is_segmenter, is_unspaced, segmenter
from textwright.text.tokenizer_file import (
    ALPHABET,
    BYTE,
    END,
    UNKNOWN,
    check_ids,
    decoders_of,
    end_of,
    kind_of,
    pieces_of,
    stripped,
)

CHARACTERS = 8000  # default vocabulary of `char`
SAMPLE = 50_000_000  # characters that BPE merges are learned from
SLICE = 4096  # characters and bytes may be cut anywhere, and short strings are encoded in parallel
BATCH = 64  # slices per call: an encoding in the library takes about 100 bytes for every token

# Words with a leading space, numbers in threes, runs of signs. Letters and signs never share a token, so END is out
# of reach; a line end between visible characters always ends a token, so long documents can be cut there. Runs stop
# at 64 characters because learning merges takes time quadratic in their length.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]{1,64}|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,64}[\r\n]{0,64}|\s{0,64}[\r\n]{1,64}|\s{1,64}(?!\S)|\s{1,64}"
)
WORD = re.compile(r"[^ \t\n]+|\n")


class TokenizerConfig(Config):
    """Which tokenizer to make.

    Attributes:
        kind: `auto`, `char`, `byte`, `word`, `bpe`, `spacy:LANG`, `jieba`, or the path of a tokenizer.json (or of its
            folder).
        vocabulary: the most ids, all included.
        min_frequency: characters or words that are rarer are left out.
    """

    kind: str = "auto"
    vocabulary: int | None = None
    min_frequency: int = 1


class Tokenizer:
    """A tokenizer of any kind.

    `char`, `byte` and `bpe` are lossless: `decode(encode(text)) == text` for every text. So are the segmented kinds
    (`jieba`, `spacy:LANG`) as long as no word is unknown. `word` keeps words and line ends, not runs of spaces.

    A foreign tokenizer of the Llama kind puts a space in front of every text; a document longer than `sources.PIECE`
    is encoded in several texts and gets one at each of its joints.

    Attributes:
        kind: as in `TokenizerConfig`; `existing` for a foreign tokenizer.json.
        size: the number of ids.
        end: the id between documents, which also begins unprompted text.
        unknown: the id of the unknown word; None where every text can be written with the vocabulary.
        bytewise: entries are spelled in the alphabet of byte-level models.
        controls: tokens that a text cannot spell.
        whole: tokens that are found in a text before anything is merged.
        pieces: what every id adds to the text, as bytes; nothing for control tokens.
    """

    def __init__(self, library: Library) -> None:
        facts = json.loads(library.to_str())
        entries = library.get_vocab(with_added_tokens=True)
        self.size = 1 + max(entries.values(), default=-1)
        self.kind = kind_of(facts, entries)
        added = {token["content"]: token["special"] for token in facts["added_tokens"]}
        controls = {token for token, special in added.items() if special}
        self.end = entries[end_of(self.kind, entries, controls)]
        said = facts["model"]
        self.unknown = said["unk_id"] if said["type"] == "Unigram" else entries.get(said.get("unk_token"))
        self.bytewise = "ByteLevel" in decoders_of(facts)
        self.pieces = pieces_of(library, facts, self.kind, entries)
        # The end of our own kinds is an entry like others, which no text reaches.
        self._own_end = None if self.kind in ("word", "existing") else end_of(self.kind, entries)
        self.controls = frozenset(controls if self._own_end is None else {*controls, self._own_end})
        self.whole = frozenset(added.keys() - controls)
        self._stripped = stripped(library, self.kind, entries, self.pieces)
        self._entries = entries
        self._library = library
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True  # a control token spelled out in a text is text
        if facts["model"].get("dropout"):
            library.model.dropout = None  # it belongs to training elsewhere; here a text has one encoding

    @cached_property
    def fallback(self) -> frozenset[int]:
        """Ids that stand for what the vocabulary does not hold: the unknown word and single bytes in its place."""
        escapes = {i for token, i in self._entries.items() if BYTE.fullmatch(token)}
        return frozenset(escapes if self.unknown is None else escapes | {self.unknown})

    @cached_property
    def _words(self) -> dict[str, int]:
        """What a segmenter's words are looked up in: spelled out in a text, the end token is an unknown word."""
        return {token: i for token, i in self._entries.items() if i != self.end}

    def reserve(self, size: int) -> None:
        """Ids up to `size`, if there are fewer: the new ones stand for nothing."""
        self.pieces += [b""] * (size - len(self.pieces))
        self.size = max(self.size, size)

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The ids that the tokenizer's own rules put in front of every text; for texts of `char` … `bpe`, none."""
        for text in ("a", *self._entries):  # the first one that the vocabulary can write
            if plain := self._library.encode(text, add_special_tokens=False).ids:
                ruled = self._library.encode(text).ids
                return tuple(ruled[: next(n for n in range(len(ruled)) if ruled[n : n + len(plain)] == plain)])
        return ()

    def begun_by(self, name: str) -> Tokenizer:
        """The same, except that its rules put this entry in front of every text."""
        library = Library.from_str(self._library.to_str())
        first = {"id": "<start>", "ids": [self._entries[name]], "tokens": [name]}
        library.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[first])
        return Tokenizer(library)

    def same(self, other: Tokenizer) -> bool:
        """Both give the same ids to every text."""
        return self is other or self._library.to_str() == other._library.to_str()

    @property
    def entries(self) -> dict[str, int]:
        """The id of every entry, as the library writes it."""
        return self._entries

    @cached_property
    def merges(self) -> dict[tuple[str, str], int]:
        """The rank of every merge of a `bpe`, the first one to be done 0; none for other kinds."""
        pairs = json.loads(self._library.to_str())["model"].get("merges", [])
        return {tuple(pair): rank for rank, pair in enumerate(pairs)}

    def words(self, text: str) -> list[str]:
        """What a `bpe` puts together from bytes, in the library's alphabet: merges never cross these."""
        return [word for word, _ in self._library.pre_tokenizer.pre_tokenize_str(text)]

    def encode(self, text: str) -> list[int]:
        """Ids of one text, control tokens never among them."""
        return self.encode_many([text])[0]

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which control tokens are spelled out and meant."""
        text = text.encode("utf-8", "replace").decode()
        if self._own_end is not None:
            parts = text.split(self._own_end)
            return [id for part in parts for id in (*self.encode(part), self.end)][:-1]
        self._library.encode_special_tokens = False
        try:
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        finally:
            self._library.encode_special_tokens = True
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; the library works on several texts at once."""
        texts = [text.encode("utf-8", "replace").decode() for text in texts]  # half a surrogate pair becomes "?"
        if is_segmenter(self.kind):
            return [[i for word in segmenter(self.kind)(text) for i in self._word(word)] for text in texts]
        if self.kind in ("char", "byte"):
            return [self._sliced(text) for text in texts]
        encoded = [e.ids for e in self._library.encode_batch_fast(texts, add_special_tokens=False)]
        if self._reachable:
            for row in [row for row, ids in enumerate(encoded) if not self._reachable.isdisjoint(ids)]:
                encoded[row] = self._as_text(texts[row])
        return encoded

    def decode(self, ids: Iterable[int], spelled: Mapping[int, str] | None = None) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. At the places in `spelled` stands that word."""
        pieces = [self.pieces[i] for i in ids]
        for place, word in (spelled or {}).items():
            space = b" " if pieces[place].startswith(b" ") else b""
            pieces[place] = space + word.strip().encode()
        data = b"".join(pieces)
        if self._stripped == "line":
            data = data.replace(b"\n ", b"\n")
        return (data.removeprefix(b" ") if self._stripped else data).decode("utf-8", "replace")

    @property
    def drops_space(self) -> bool:
        """A space at the beginning of a text is not shown."""
        return bool(self._stripped)

    def surfaces(self, text: str) -> list[str]:
        """What each id of `encode(text)` stands for in the text: also for an unknown word the word itself."""
        text = text.encode("utf-8", "replace").decode()
        if is_segmenter(self.kind):
            split = [(word, self._word(word)) for word in segmenter(self.kind)(text)]
            return [part for word, ids in split for part in ([word] if len(ids) == 1 else [word[0], word[1:]])]
        encoding = self._library.encode(text, add_special_tokens=False)
        return [text[start:stop] for start, stop in encoding.offsets]

    def stream(self) -> Detokenizer:
        """A decoder for one id after the other."""
        return Detokenizer(self.pieces, self._stripped)

    def unseen(self, text: str) -> list[str]:
        """The distinct characters (or words) of a text that the vocabulary does not hold, in order of appearance."""
        text = text.encode("utf-8", "replace").decode()
        if is_segmenter(self.kind):
            words = segmenter(self.kind)(text)
            return list(dict.fromkeys(word.strip() for word in words if self.unknown in self._word(word)))
        found: dict[str, None] = {}
        for start in range(0, len(text), SLICE) if self.kind == "char" else [0]:
            part = text[start : start + SLICE] if self.kind == "char" else text
            encoding = self._library.encode(part, add_special_tokens=False)
            places = zip(encoding.ids, encoding.offsets, strict=True)
            found.update(dict.fromkeys(part[a:b] for i, (a, b) in places if i in self.fallback))
        return [part for part in found if part.strip() and part != UNKNOWN]

    def save(self, path: Path) -> None:
        """Write one JSON file, whole or not at all: equal tokenizers give equal bytes."""
        unfinished = path.with_name(f".{path.name}.tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(self._library.to_str(pretty=True))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a file that `save` or the `tokenizers` library wrote (or the folder that holds tokenizer.json).

        Raises:
            CheckpointError: the file is missing, damaged, or of a kind that cannot be decoded piece by piece.
        """
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
            check_ids(json.loads(text))
            return cls(Library.from_str(text))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        except BaseException as error:  # a panic in the library is not an Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} is not a tokenizer.json: {reason[:200]}") from None

    def _sliced(self, text: str) -> list[int]:
        parts = [text[start : start + SLICE] for start in range(0, len(text), SLICE)]
        ids: list[int] = []
        for start in range(0, len(parts), BATCH):
            for encoding in self._library.encode_batch_fast(parts[start : start + BATCH], add_special_tokens=False):
                ids += encoding.ids
        return ids

    @cached_property
    def _reachable(self) -> frozenset[int]:
        """Ids of control tokens that are entries like others for the model of a foreign vocabulary: where it does not
        know their characters, a text that spells them out would reach them."""
        if self.kind != "existing" or json.loads(self._library.to_str())["model"]["type"] == "BPE":
            return frozenset()
        return frozenset(self._entries[name] for name in self.controls) - {self.unknown}

    def _as_text(self, text: str) -> list[int]:
        """Ids of a text that spells out control tokens: it is read in parts that begin within them."""
        places = [match.start() + 1 for match in re.finditer("|".join(map(re.escape, self.controls)), text)]
        parts = [text[start:stop] for start, stop in pairwise([0, *places, len(text)])]
        read = self._library.encode_batch_fast(parts, add_special_tokens=False)
        return [id for part in read for id in part.ids if id not in self._reachable]

    def _word(self, word: str) -> tuple[int, ...]:
        """Ids of one word of a segmenter; a known word may stand behind an unexpected space."""
        words, unknown = self._words, self._words[UNKNOWN]
        if word not in words and word.startswith(" "):
            return words[" "], words.get(word[1:], unknown)
        return (words.get(word, unknown),)


# Recipes ---------------------------------------------------------------------------------------------------------

Texts = Callable[[], Iterator[str]]


def train(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    """Make the tokenizer that `config` describes from texts, which may be asked for several times.

    The result depends on the texts and their order only: the same texts give the same file, byte for byte.

    Raises:
        ConfigError: the kind is unknown, or the vocabulary too small for it.
        MissingExtraError: the kind needs spaCy or jieba.
    """
    kind = _automatic(texts) if config.kind == "auto" else config.kind
    if kind == "char":
        return _char(config, texts)
    if kind == "byte":
        return _byte(config)
    if kind == "bpe":
        return _bpe(config, texts)
    if kind == "word":
        return _word_level(config, (WORD.findall(text) for text in texts()), {UNKNOWN: 0, "\n": 1}, _spaces())
    if is_segmenter(kind):
        controls = {UNKNOWN: 0, f"<|end:{kind}|>": 1, " ": 2}
        return _word_level(config, map(segmenter(kind), texts()), controls, None)
    return _existing(config)


def _automatic(texts: Texts) -> str:
    sample = ""
    for text in texts():
        sample += text[: 200_000 - len(sample)]
        if len(sample) >= 200_000:
            break
    return "char" if is_unspaced(sample) else "bpe"


def _char(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(text)
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    room = _room(config, 257, CHARACTERS)
    for character in _frequent(counts, config.min_frequency)[:room]:
        vocabulary[character] = len(vocabulary)
    library = Library(models.BPE(vocab={**vocabulary, END: len(vocabulary)}, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(library)


def _byte(config: TokenizerConfig) -> Tokenizer:
    _room(config, 257, 257)
    _refuse_frequency(config)
    library = Library(models.BPE(vocab={**ALPHABET, END: 256}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library)


def _bpe(config: TokenizerConfig, texts: Texts) -> Tokenizer:
    characters = sum(map(len, texts()))
    stride = (1 + characters // SAMPLE) | 1  # odd: pairs give their two sides in turn, and both must be seen
    room = _room(config, 1, _bpe_size(characters))
    if room < 256:
        raise ConfigError(f"bpe needs a vocabulary of at least 257 (every byte and the end), got {config.vocabulary}")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=max(2, config.min_frequency),  # what occurs once teaches nothing about the language
        initial_alphabet=list(ALPHABET),
        max_token_length=64,
        show_progress=False,
    )
    library.train_from_iterator((text for i, text in enumerate(texts()) if i % stride == 0), trainer)
    stored = json.loads(library.to_str())
    stored["model"]["vocab"][END] = len(stored["model"]["vocab"])
    return Tokenizer(Library.from_str(json.dumps(stored)))


def _bpe_size(characters: int) -> int:
    """A round number of ids that this much text can teach."""
    steps = ((300_000, 1024), (2_000_000, 2048), (5_000_000, 4096), (50_000_000, 8192))
    return next((size for limit, size in steps if characters <= limit), 16384)


def _spaces() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[ \t]+"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )


def _word_level(
    config: TokenizerConfig, texts: Iterable[Iterable[str]], vocabulary: dict[str, int], splitting: Any
) -> Tokenizer:
    counts: Counter[str] = Counter()
    for words in texts:
        counts.update(words)
    for name in vocabulary:
        del counts[name]
    room = _room(config, len(vocabulary), sys.maxsize)
    for word in _frequent(counts, config.min_frequency)[:room]:
        vocabulary[word] = len(vocabulary)
    library = Library(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if splitting:
        library.pre_tokenizer = splitting
    else:
        library.decoder = decoders.Fuse()
    return Tokenizer(library)


def _existing(config: TokenizerConfig) -> Tokenizer:
    path = Path(config.kind).expanduser()
    if not path.exists():
        kinds = "auto, char, byte, word, bpe, jieba, spacy:LANG or the path of a tokenizer.json"
        raise ConfigError(f"There is no tokenizer {config.kind!r}; expected {kinds}")
    tokenizer = Tokenizer.load(path)
    _room(config, tokenizer.size, tokenizer.size)
    _refuse_frequency(config)
    return tokenizer


def _frequent(counts: Counter[str], least: int) -> list[str]:
    """Most frequent first, ties by code point."""
    return sorted((name for name, n in counts.items() if n >= least), key=lambda name: (-counts[name], name))


def _room(config: TokenizerConfig, needed: int, default: int) -> int:
    """How many entries fit beside the `needed` ones."""
    bound = default if config.vocabulary is None else config.vocabulary
    if bound < needed:
        raise ConfigError(f"the tokenizer {config.kind!r} needs a vocabulary of at least {needed}, got {bound}")
    return bound - needed


def _refuse_frequency(config: TokenizerConfig) -> None:
    if config.min_frequency != 1:
        raise ConfigError(f"the tokenizer {config.kind!r} is fixed: min_frequency cannot change it, leave it out")
