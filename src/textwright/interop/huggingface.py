"""A folder that transformers' Auto classes open, and the proof that what they open is the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

from textwright.errors import CheckpointError, MissingExtraError
from textwright.interop.formats import foreign
from textwright.models.pretrained import PretrainedLM
from textwright.models.transformer import TransformerLM
from textwright.text.segmenters import is_segmenter
from textwright.text.tokenizers import Tokenizer

Ours = TransformerLM | PretrainedLM
ROOM = 1024  # tokens of a prompt, for models without a window
CLOSE = 1e-3  # of the largest logit: float32 in another order
PLAIN: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}  # whatever the folder asks for


@dataclass(frozen=True)
class Habits:
    """How a model writes.

    Attributes:
        start: ids in front of every text.
        end: the id that ends one, or None.
        unseen: ids that are never written.
        drawing: sampling parameters under the names they have there.
        template: the chat template, as Jinja.
        named: control tokens that it knows by name, as in bos_token.
    """

    start: tuple[int, ...]
    end: int | None
    unseen: tuple[int, ...]
    drawing: dict[str, Any]
    template: str | None = None
    also_end: tuple[int, ...] = ()
    named: dict[str, str] = field(default_factory=dict)


class Parity(NamedTuple):
    """What was compared: texts, their tokens, and the largest difference of any logit."""

    texts: int
    tokens: int
    difference: float


def write_huggingface(folder: Path, model: Ours, tokenizer: Tokenizer, habits: Habits) -> None:
    """Fill an empty folder.

    Raises:
        CheckpointError: no architecture there can hold the model, or no fast tokenizer the tokenizer.
    """
    if is_segmenter(tokenizer.kind):
        raise CheckpointError(f"no fast tokenizer holds {tokenizer.kind}, which finds words by a library of its own")
    ends = {"bos_token_id": habits.start[0] if habits.start else None, "eos_token_id": habits.end}
    write_weights(folder, model, **ends)
    suppressed = {"suppress_tokens": list(habits.unseen)} if habits.unseen else {}
    drawn: dict[str, Any] = {"do_sample": True, **habits.drawing}
    if habits.also_end:
        drawn["eos_token_id"] = [habits.end, *habits.also_end]
    write_json(folder / "generation_config.json", {**ends, "pad_token_id": habits.end, **drawn, **suppressed})
    _write_tokenizer(folder, tokenizer, habits, model.window)


def write_weights(folder: Path, model: Ours, **more: Any) -> None:
    """config.json, with what is given besides, and the weights."""
    config, tensors = foreign(model)
    write_json(folder / "config.json", {**config, **more, "dtype": "float32"})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, habits: Habits, window: int | None) -> None:
    names = {id: name for name, id in tokenizer.entries.items()}
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    if tokenizer.prefix != habits.start:  # so that a text is read with what begins one
        library = Library.from_file(str(path))
        start = {"id": "<start>", "ids": list(habits.start), "tokens": [names[id] for id in habits.start]}
        library.post_processor = TemplateProcessing(single="<start> $A", special_tokens=[start])
        library.save(str(path))
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if window is None else {"model_max_length": window}),
        "clean_up_tokenization_spaces": False,
    }
    if habits.end is not None:
        said["eos_token"] = names[habits.end]
    if tokenizer.unknown is not None:
        said["unk_token"] = names[tokenizer.unknown]
    write_json(folder / "tokenizer_config.json", {**said, **habits.named})
    if habits.template is not None:
        (folder / "chat_template.jinja").write_text(habits.template, encoding="utf-8")


def check_huggingface(
    folder: Path, model: Ours, tokenizer: Tokenizer, habits: Habits, texts: Sequence[str], new: int
) -> Parity:
    """Open the folder with transformers and compare, on real texts: ids, logits, and greedy continuations.

    Args:
        texts: what is read and gone on from; cut where the window would not hold them.
        new: tokens to write after each; at most half a window.

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
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    count, difference, largest = 0, 0.0, 0.0
    room = model.window or ROOM
    new = min(new, room // 2)
    for text in texts:
        ids = [*habits.start, *tokenizer.encode(text)]
        if reader(text).input_ids != ids:
            raise CheckpointError(f"the exported tokenizer reads {text[:40]!r} as other ids: nothing was written")
        prompt = torch.tensor([ids[: room - new]])
        with torch.no_grad():
            ours, other = model(prompt).logits, theirs(prompt).logits
        difference = max(difference, float((ours - other).abs().max()))
        largest = max(largest, float(ours.abs().max()))
        want = _greedy(model, prompt, habits, new)
        written = theirs.generate(prompt, **PLAIN, max_new_tokens=new)[0, prompt.shape[1] :].tolist()
        if difference > CLOSE * largest or written != want:
            raise CheckpointError(
                f"the exported model differs after {text[:40]!r}: logits by {difference:.2g}, "
                f"{sum(map(int.__eq__, written, want))} of {len(want)} greedy tokens are the same: "
                "nothing was written"
            )
        count += prompt.shape[1] + len(want)
    return Parity(len(texts), count, difference)


def _greedy(model: Ours, prompt: torch.Tensor, habits: Habits, new: int) -> list[int]:
    """The likeliest token after the other, by the contract alone."""
    written: list[int] = []
    with torch.no_grad():
        output = model(prompt, state=model.begin(1), last_only=True)
        while len(written) < new:
            logits = output.logits[0, -1].float()
            logits[list(habits.unseen)] = float("-inf")
            written.append(int(logits.argmax()))
            if written[-1] == habits.end or written[-1] in habits.also_end:
                break
            output = model(torch.tensor([written[-1:]]), state=output.after)
    return written


def write_json(path: Path, data: dict[str, Any]) -> None:
    """A file as people read it."""
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
