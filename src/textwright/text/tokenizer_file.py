"""What a tokenizer.json says: which kind it is, where texts end, what every id adds to a text."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer as Library

from textwright.errors import CheckpointError
from textwright.text.segmenters import is_segmenter

END = "<|end|>"  # a plain entry of the vocabulary that no text can reach, not an added token found in raw text
UNKNOWN = "<unk>"
DECODERS = ("ByteLevel", "WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
ENDS = (
    *("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<EOS_TOKEN>", "[EOS]", "<｜end▁of▁sentence｜>"),
    *(END, "<|im_end|>", "<|eot_id|>", "[SEP]"),
)


def check_ids(facts: dict[str, Any]) -> None:
    """Refuse a file with a few entries and enormous ids: the library would walk through all the ids between."""
    vocabulary = facts["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token["id"] for token in facts.get("added_tokens", [])]
    if max(ids, default=0) > 2 * len(vocabulary) + len(ids) + 1024:
        raise CheckpointError(f"it has {len(ids)} entries but ids up to {max(ids)}")


def kind_of(facts: dict[str, Any], entries: dict[str, int]) -> str:
    """The kind of our own files, told by their shape; a foreign file is checked to be decodable piece by piece."""
    model, before = facts["model"], facts["pre_tokenizer"] or {}
    if model["type"] == "WordLevel" and UNKNOWN in entries:
        segmented = [token[6:-2] for token in entries if token.startswith("<|end:") and is_segmenter(token[6:-2])]
        if segmented and facts["decoder"] == {"type": "Fuse"}:
            return segmented[0]
        if "\n" in entries and before.get("type") == "Sequence":
            return "word"
    if model["type"] == "BPE" and END in entries and not facts["added_tokens"]:
        if model["byte_fallback"] and not model["merges"]:
            return "char"
        if facts["decoder"] and facts["decoder"]["type"] == "ByteLevel":
            return "bpe" if before.get("type") == "Sequence" else "byte"
    for name in decoders_of(facts):
        if name not in DECODERS:
            raise CheckpointError(f"its decoder {name} is not supported; expected ByteLevel, Metaspace or WordPiece")
    return "existing"


def decoders_of(facts: dict[str, Any]) -> list[str]:
    decoder = facts["decoder"] or {"type": "none"}
    return [part["type"] for part in decoder.get("decoders", [decoder])]


def end_of(kind: str, entries: dict[str, int], controls: Collection[str] = ()) -> str:
    """The name of the token between texts. An entry that texts can spell is one only where no control token is:
    BART's vocabulary, for one, has the end of GPT-2's among its words."""
    if kind == "word":
        return "\n"
    if is_segmenter(kind):
        return f"<|end:{kind}|>"
    if kind != "existing":
        return END
    names = [name for name in ENDS if name in controls] or [name for name in ENDS if name in entries]
    if not names:
        raise CheckpointError(f"no token that ends a text; expected one of {', '.join(ENDS)}")
    return names[0]


def pieces_of(library: Library, facts: dict[str, Any], kind: str, entries: dict[str, int]) -> list[bytes]:
    """What every id adds in the middle of a text."""
    controls = {token["content"] for token in facts["added_tokens"] if token["special"]}
    if kind not in ("word", "existing"):
        controls.add(end_of(kind, entries))
    bytewise = "ByteLevel" in decoders_of(facts)
    pieces = [b""] * (1 + max(entries.values()))
    for token, i in entries.items():
        if token not in controls:
            pieces[i] = _from_alphabet(token) if bytewise else _piece(token, library.decoder)
    return pieces


def _piece(token: str, decoder: Any) -> bytes:
    if escape := BYTE.fullmatch(token):
        return bytes([int(escape[1], 16)])
    if decoder is None:  # `word`: the library puts a space between tokens
        return b"\n" if token == "\n" else b" " + token.encode()
    text: str = decoder.decode(["a", token])  # whatever it drops at the start of a text, it drops before the "a"
    return text[1:].encode()


def stripped(library: Library, kind: str, entries: dict[str, int], pieces: list[bytes]) -> str:
    """Where decoding drops a leading space: "" nowhere, "text" at the start of the text, "line" of every line."""
    if kind == "word":
        return "line"
    spaced = next((token for token, i in entries.items() if pieces[i].startswith(b" ")), None)
    if spaced is None or library.decoder.decode([spaced]).startswith(" "):
        return ""
    return "text"


def _alphabet() -> dict[str, int]:
    """The characters that byte-level models write bytes as: visible Latin-1 as itself, the others from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte if byte in visible else 256 + hidden.index(byte)): byte for byte in range(256)}


ALPHABET = _alphabet()


def _from_alphabet(token: str) -> bytes:
    if all(character in ALPHABET for character in token):
        return bytes(ALPHABET[character] for character in token)
    return token.encode()  # an added token, which is stored as it is written
