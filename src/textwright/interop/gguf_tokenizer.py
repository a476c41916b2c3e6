"""Tokenizers of GGUF files: byte-level merges ("gpt2" there), or the pieces of SentencePiece with scores ("llama").

Of a byte-level tokenizer a file gives the merges, and only the name of the rule that cuts a text into words. Of pieces
it gives scores in the place of merges: the two neighbours are joined whose joint piece has the highest score. So every
way to put a piece together from two others is a merge, in the order of the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from textwright.errors import CheckpointError
from textwright.text.tokenizer_file import BYTE
from textwright.text.tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTES = range(1, 7)  # token_type; a text cannot spell a control token
SPACE = "▁"  # stands for a space in pieces
# How texts are cut into words before pieces are merged, by the name that llama.cpp gives it; as in the tokenizer.json
# of these models. None: GPT-2's own rule, which the library has.
SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}
WHOLE_WORDS = "llama-bpe"  # there a word that is an entry is not put together from its parts
# Texts on which such rules differ: numbers, contractions, spaces, line ends, scripts, emoji.
PROBES = (
    "I'll pay 12345.67 don't   you\n\n  see?\tYES'S",
    "文章 千古事，得失寸心知。",
    "x=1;\r\n  y==22 — naïve 🙂🙂 e\u0301",
)


def library_of(facts: Mapping[str, Any]) -> Library:
    """The tokenizer of the library that a file describes.

    Args:
        facts: what it says under "tokenizer.ggml".

    Raises:
        CheckpointError: it is of another kind, or cuts texts by an unknown rule.
    """
    kind, split = facts.get("model"), facts.get("pre", "default")
    if kind == "llama" and "scores" in facts:
        return _framed(_pieces(facts), {"add_bos_token": True, "bos_token_id": 1, **facts})
    if kind != "gpt2" or split not in SPLITS:
        raise CheckpointError(
            f"a tokenizer of kind {kind}, {split}; expected llama, or gpt2 with one of {', '.join(SPLITS)}: import the "
            "folder that the file was made from"
        )
    framed = split == WHOLE_WORDS and "bos_token_id" in facts  # llama.cpp has this for usual
    return _framed(_bytewise(facts, split), {"add_bos_token": framed, **facts})


def facts_of(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """What a file says of a tokenizer, filled up to `size` ids: the inverse of `library_of`.

    Raises:
        CheckpointError: llama.cpp has no tokenizer like this one.
    """
    names = {id: name for name, id in tokenizer.entries.items()}
    tokens = [names.get(id, f"[unused{id}]") for id in range(max(size, 1 + max(names)))]
    controls = {*tokenizer.controls, tokens[tokenizer.end]}
    if not tokenizer.merges or not (tokenizer.bytewise or SPACE in tokenizer.entries):
        raise CheckpointError(f"GGUF takes tokenizers with merges, and this one is of kind {tokenizer.kind}")
    if tokenizer.bytewise:
        facts = {
            "model": "gpt2",
            "tokens": tokens,
            "token_type": [_type(token, tokenizer, controls) for token in tokens],
            "merges": [" ".join(pair) for pair in tokenizer.merges],
        }
        return {**facts, "pre": _split_of(tokenizer, facts)}
    return _scored(tokenizer, tokens, controls)


def _type(token: str, tokenizer: Tokenizer, controls: set[str]) -> int:
    if token not in tokenizer.entries:
        return UNUSED
    return CONTROL if token in controls else USER if token in tokenizer.whole else NORMAL


def _framed(library: Library, facts: Mapping[str, Any]) -> Library:
    """With the token in front of every text, where the file asks for one."""
    if not facts.get("add_bos_token"):
        return library
    stored, id = json.loads(library.to_str()), facts["bos_token_id"]
    name = facts["tokens"][id]
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {name: {"id": name, "ids": [id], "tokens": [name]}}
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": special,
    }
    return Library.from_str(json.dumps(stored))


# Byte-level merges ---------------------------------------------------------------------------------------------------


def _bytewise(facts: Mapping[str, Any], split: str) -> Library:
    tokens = facts["tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["merges"]]
    entries = {token: id for id, token in enumerate(tokens)}
    library = Library(models.BPE(entries, merges, ignore_merges=split == WHOLE_WORDS))
    rule, whole = SPLITS[split], pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[split] is None)
    before: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
    before += [pre_tokenizers.Split(Regex(rule), "isolated")] if rule is not None else []
    library.pre_tokenizer = pre_tokenizers.Sequence([*before, whole])
    library.decoder = decoders.ByteLevel()
    _add(library, tokens, facts.get("token_type", []))
    return library


def _split_of(tokenizer: Tokenizer, facts: Mapping[str, Any]) -> str:
    """The name under which llama.cpp knows the rule by which this tokenizer cuts texts into words."""
    words = [tokenizer.words(text) for text in PROBES]
    for split in [name for name in SPLITS if name != "default"]:
        other = _bytewise(facts, split).pre_tokenizer
        if [[word for word, _ in other.pre_tokenize_str(text)] for text in PROBES] == words:
            return split
    raise CheckpointError("llama.cpp has no rule that cuts texts into words as this tokenizer does")


# Pieces with scores --------------------------------------------------------------------------------------------------


def _pieces(facts: Mapping[str, Any]) -> Library:
    tokens, kinds = facts["tokens"], facts.get("token_type") or [NORMAL] * len(facts["tokens"])
    ids = {token: id for id, token in enumerate(tokens)}
    scores = {token: score for token, score, kind in zip(tokens, facts["scores"], kinds, strict=True) if kind == NORMAL}
    merges = [
        (-score, ids[piece[:cut]], ids[piece[cut:]])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    library = Library(
        models.BPE(
            ids,
            [(tokens[left], tokens[right]) for _, left, right in sorted(merges)],
            unk_token=tokens[facts.get("unknown_token_id", 0)],
            fuse_unk=True,
            byte_fallback=BYTES in kinds,
        )
    )
    prefixed = facts.get("add_space_prefix", True)
    prepend = [normalizers.Prepend(SPACE)] if prefixed else []
    library.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add(library, tokens, kinds)
    return library


def _scored(tokenizer: Tokenizer, tokens: list[str], controls: set[str]) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    for pair, rank in tokenizer.merges.items():
        ranks.setdefault("".join(pair), rank)

    def kind(id: int, token: str) -> int:
        if id == tokenizer.unknown:
            return UNKNOWN
        if (type_ := _type(token, tokenizer, controls)) != NORMAL:
            return type_
        if BYTE.fullmatch(token):
            return BYTES
        return NORMAL if len(token) == 1 or token in ranks else USER  # nothing but itself puts it together

    facts = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [kind(id, token) for id, token in enumerate(tokens)],
        "scores": [-float(ranks.get(token, len(tokenizer.merges))) for token in tokens],
        "unknown_token_id": tokenizer.unknown or 0,
    }
    texts = [*PROBES, *(name.replace(SPACE, " ") for name in tokenizer.entries if name not in controls)]
    for prefixed in (True, False):
        spaced = {**facts, "add_space_prefix": prefixed}
        if Tokenizer(_pieces(spaced)).encode_many(texts) == tokenizer.encode_many(texts):
            return spaced
    raise CheckpointError("llama.cpp has no rule that cuts texts into pieces as this tokenizer does")


def _add(library: Library, tokens: list[str], kinds: list[int]) -> None:
    """Tokens that are found in a text before anything is merged."""
    spelled = [token for token, kind in zip(tokens, kinds, strict=False) if kind == USER]
    controls = [token for token, kind in zip(tokens, kinds, strict=False) if kind == CONTROL]
    library.add_tokens([AddedToken(token, normalized=False) for token in spelled])
    library.add_special_tokens([AddedToken(token, special=True) for token in controls])
