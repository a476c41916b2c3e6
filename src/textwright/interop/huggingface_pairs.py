"""An encoder-decoder as a folder that transformers' Auto classes open, and the proof that it is the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from textwright.errors import CheckpointError, MissingExtraError
from textwright.interop.huggingface import CLOSE, Parity, write_json
from textwright.interop.pair_formats import foreign_pairs
from textwright.models.base import Source
from textwright.models.encdec import TransformerEncoderDecoder
from textwright.models.pretrained_pairs import PretrainedPairs
from textwright.text.segmenters import is_segmenter
from textwright.text.tokenizers import Tokenizer

Ours = TransformerEncoderDecoder | PretrainedPairs
TARGET = "target"  # folder of the tokenizer of what is written, where it is not that of the source


@dataclass(frozen=True)
class PairHabits:
    """How a model with a source writes.

    Attributes:
        start: ids in front of every text; the first one starts the decoder, a second one is forced.
        end: the id that ends a source, and a text.
        unseen: ids that are never written.
        beams, length_penalty: of its beam search.
    """

    start: tuple[int, ...]
    end: int
    unseen: tuple[int, ...]
    beams: int
    length_penalty: float


@dataclass(frozen=True)
class Example:
    """A source as it is typed, its ids, and the ids of what our model writes for it, greedily."""

    text: str
    source: tuple[int, ...]
    written: tuple[int, ...]


def write_pairs(
    folder: Path,
    model: Ours,
    tokenizers: tuple[Tokenizer, Tokenizer],
    habits: PairHabits,
) -> None:
    """Fill an empty folder.

    Args:
        tokenizers: of the source and of what is written.

    Raises:
        CheckpointError: no architecture there can hold the model, or no fast tokenizer a tokenizer.
    """
    if odd := [tokenizer.kind for tokenizer in tokenizers if is_segmenter(tokenizer.kind)]:
        raise CheckpointError(f"no fast tokenizer holds {odd[0]}, which finds words by a library of its own")
    if len(habits.start) > 2:
        raise CheckpointError(f"texts begin with {len(habits.start)} tokens; one to start from and one more are held")
    config, tensors = foreign_pairs(model)
    first, *forced = habits.start
    padding = config.get("pad_token_id")  # some models of the library count positions by it
    padding = habits.end if padding is None else padding
    ends = {"eos_token_id": habits.end, "pad_token_id": padding, "decoder_start_token_id": first}
    forcing = {"forced_bos_token_id": forced[0]} if forced else {}
    write_json(folder / "config.json", {**config, **ends, "dtype": "float32"})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    suppressed = {"suppress_tokens": list(habits.unseen)} if habits.unseen else {}
    beams = {"num_beams": habits.beams, "length_penalty": habits.length_penalty, "early_stopping": True}
    length = {"max_length": model.config.window}
    write_json(
        folder / "generation_config.json",
        {**ends, **forcing, **(beams if habits.beams > 1 else {}), **length, **suppressed},
    )
    source, target = tokenizers
    _write_tokenizer(folder, source, source.end, padding, model.config.source_window)
    if not source.same(target):
        (folder / TARGET).mkdir()
        _write_tokenizer(folder / TARGET, target, habits.end, padding, model.config.window)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, end: int, padding: int, window: int) -> None:
    """One that puts the end behind every text, which is how sources are read."""
    names = {id: name for name, id in tokenizer.entries.items()}
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    library = Library.from_file(str(path))
    before = {"id": "<start>", "ids": list(tokenizer.prefix), "tokens": [names[id] for id in tokenizer.prefix]}
    behind = {"id": "<end>", "ids": [end], "tokens": [names[end]]}
    shape = "<start> $A <end>" if tokenizer.prefix else "$A <end>"
    special = [before, behind] if tokenizer.prefix else [behind]
    library.post_processor = TemplateProcessing(single=shape, special_tokens=special)
    library.save(str(path))
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
        "eos_token": names[end],
        "pad_token": names.get(padding, names[end]),
    }
    if tokenizer.unknown is not None:
        said["unk_token"] = names[tokenizer.unknown]
    write_json(folder / "tokenizer_config.json", said)


def check_pairs(folder: Path, model: Ours, habits: PairHabits, examples: Sequence[Example]) -> Parity:
    """Open the folder with transformers and compare, on real sources: ids, logits along our text, and greedy texts.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: anything differs.
    """
    try:
        transformers: Any = import_module("transformers")  # it is typed in parts only
    except ImportError:
        raise MissingExtraError("an export, which is checked by opening it,", "huggingface") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    count, difference, largest = 0, 0.0, 0.0
    for example in examples:
        if tuple(reader(example.text).input_ids) != example.source:
            raise CheckpointError(
                f"the exported tokenizer reads {example.text[:40]!r} as other ids: nothing was written"
            )
        source = torch.tensor([example.source])
        text = torch.tensor([[*habits.start, *example.written[:-1]]])
        with torch.no_grad():
            ours = model(text, source=Source(source, torch.tensor([len(example.source)]))).logits
            other = theirs(input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=text).logits
        difference = max(difference, float((ours - other).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        new = len(example.written) + len(habits.start) - 1
        greedy = {"do_sample": False, "num_beams": 1, "early_stopping": False, "length_penalty": 1.0}
        found = theirs.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=new, **greedy)
        written = tuple(found[0, len(habits.start) :].tolist())
        if difference > CLOSE * largest or written != example.written:
            raise CheckpointError(
                f"the exported model differs for {example.text[:40]!r}: logits by {difference:.2g}, "
                f"{sum(map(int.__eq__, written, example.written))} of {len(example.written)} greedy tokens are the "
                "same: nothing was written"
            )
        count += len(example.source) + len(example.written)
    return Parity(len(examples), count, difference)
