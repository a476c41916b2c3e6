"""Vocabularies of SentencePiece as Marian's models have them: source.spm, target.spm and one vocab.json for both.

A .spm file is a message of protocol buffers (github.com/google/sentencepiece, src/sentencepiece_model.proto): pieces
with log-probabilities, and the table by which a text is normalised first. Both are handed to the `tokenizers` library,
whose Unigram finds the likeliest pieces as SentencePiece does (Kudo 2018). The ids are those of vocab.json.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from textwright.errors import CheckpointError
from textwright.text.tokenizers import Tokenizer

UNIGRAM = 1  # of trainer_spec.model_type
WRITTEN = (1, 4)  # types of pieces that stand for text: normal, user-defined
NEVER = -1e6  # a log-probability by which no piece is chosen where another can be
CONTROLS = ("</s>", "<unk>", "<pad>")
LANGUAGE = re.compile(r">>.+<<")  # of models with several target languages


class SentencePiece(NamedTuple):
    """What such a file says: log-probabilities of its pieces, and the table of its normaliser."""

    scores: dict[str, float]
    table: bytes


def read_sentencepiece(path: Path) -> SentencePiece:
    """Read a .spm file.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind than unigram.
    """
    try:
        parts = list(_fields(path.read_bytes()))
        scores, kind, table = {}, UNIGRAM, b""
        for number, value in parts:
            inside = dict(_fields(value)) if isinstance(value, bytes) else {}
            if number == 1:  # pieces: 1 piece, 2 score, 3 type
                if inside.get(3, WRITTEN[0]) in WRITTEN:
                    scores[inside[1].decode()] = struct.unpack("<f", inside[2])[0] if 2 in inside else 0.0
            elif number == 2:  # trainer_spec: 3 model_type
                kind = inside.get(3, UNIGRAM)
            elif number == 3:  # normalizer_spec: 2 precompiled_charsmap
                table = inside.get(2, b"")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, IndexError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path} is no file of SentencePiece: {error}") from None
    if kind != UNIGRAM or not scores:
        raise CheckpointError(f"{path} is no unigram vocabulary of SentencePiece, and only these are read")
    return SentencePiece(scores, table)


def marian_tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of source and target of a Marian model.

    Raises:
        CheckpointError: a file is missing or damaged, or the sides have vocabularies of their own.
    """
    if (folder / "target_vocab.json").is_file():
        raise CheckpointError(f"{folder}: its sides have vocabularies of their own, and one for both is read")
    path = folder / "vocab.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(ids, dict) or not all(isinstance(id, int) for id in ids.values()) or "<unk>" not in ids:
        raise CheckpointError(f"{path} is no vocabulary of Marian: expected pieces with their ids, <unk> among them")
    source, target = (read_sentencepiece(folder / f"{side}.spm") for side in ("source", "target"))
    return _tokenizer(source, ids, writes=False), _tokenizer(target, ids, writes=True)


def _tokenizer(side: SentencePiece, ids: Mapping[str, int], *, writes: bool) -> Tokenizer:
    """One side's.

    Args:
        writes: pieces of the other side alone keep their names, because the model may write them. Where texts are only
            read no text reaches them, but for single characters that this side does not know: as in Marian.
    """
    entries = [(f"\uffff{id}", NEVER) for id in range(1 + max(ids.values()))]
    for piece, id in ids.items():
        if writes or len(piece) == 1 or piece in side.scores or piece in CONTROLS or LANGUAGE.fullmatch(piece):
            entries[id] = (piece, side.scores.get(piece, NEVER))
    library = Library(models.Unigram(entries, unk_id=ids["<unk>"], byte_fallback=False))
    tidy = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    table = [normalizers.Precompiled(side.table)] if side.table else []
    library.normalizer = normalizers.Sequence([*table, *tidy])
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    library.add_special_tokens([name for name in CONTROLS if name in ids])
    library.add_tokens([AddedToken(name, normalized=False) for name in ids if LANGUAGE.fullmatch(name)])
    return Tokenizer(library)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields, in order: whole numbers, and bytes of all others."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == 0:
            value, place = _varint(data, place)
        else:
            size, place = _varint(data, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = data[place : place + size], place + size
            if len(value) < size:
                raise ValueError("it ends within a field")
        yield number, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the place behind it."""
    number = shift = 0
    while data[place] & 0x80:
        number |= (data[place] & 0x7F) << shift
        shift, place = shift + 7, place + 1
    return number | data[place] << shift, place + 1
