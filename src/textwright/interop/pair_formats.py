"""Encoder-decoders of the Hugging Face hub that ours can be: their weights in it give the same logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from textwright.errors import CheckpointError
from textwright.interop import bart, t5
from textwright.interop.folder import Folder, under
from textwright.interop.formats import read_config
from textwright.interop.memory import check_room, need
from textwright.interop.tables import Part, read, write
from textwright.models import EncoderDecoderConfig
from textwright.models.encdec import TransformerEncoderDecoder
from textwright.models.pretrained_pairs import PretrainedPairs


class PairFormat(NamedTuple):
    """One family of architectures: see `llama` and `bart` for what each function does."""

    config: Callable[[Mapping[str, Any], Mapping[str, Tensor]], EncoderDecoderConfig]
    described: Callable[[EncoderDecoderConfig], dict[str, Any]]
    table: Callable[[EncoderDecoderConfig], Sequence[Part]]
    prefix: str
    ignored: Callable[[EncoderDecoderConfig], tuple[str, ...]]
    into: Callable[[Mapping[str, Any], str, Tensor], Tensor]
    out_of: Callable[[Mapping[str, Any], str, Tensor], Tensor]
    usual: Callable[[Mapping[str, Any]], dict[str, Tensor]]


BART = PairFormat(
    bart.config, bart.described, bart.table, bart.PREFIX, bart.ignored, bart.into, bart.out_of, bart.usual
)
T5 = PairFormat(t5.config, t5.described, t5.table, t5.PREFIX, t5.ignored, t5.into, t5.out_of, lambda said: {})
PAIR_FORMATS = {**dict.fromkeys(bart.KINDS, BART), **dict.fromkeys(t5.KINDS, T5)}


class Turned(Mapping[str, Tensor]):
    """Tensors as our tables want them; those that a file may lack, as they are then."""

    def __init__(self, folder: Folder, form: PairFormat) -> None:
        self._tensors, self._form, self._said = under(folder.weights, form.prefix), form, folder.config
        self._usual = {name: value for name, value in form.usual(self._said).items() if name not in self._tensors}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._usual[name] if name in self._usual else self._tensors[name]
        return self._form.into(self._said, name, tensor.float())

    def __iter__(self) -> Iterator[str]:
        return chain(self._tensors, self._usual)

    def __len__(self) -> int:
        return len(self._tensors) + len(self._usual)


def native_pairs(folder: Folder) -> TransformerEncoderDecoder:
    """The model in a folder as one of ours, in evaluation mode.

    Raises:
        ConfigError: it does not fit into memory.
        CheckpointError: another architecture, or see `formats.read_config` and `tables.read`.
    """
    if folder.kind not in PAIR_FORMATS:
        raise CheckpointError(
            f"{folder.path} is a {folder.kind}: of encoder-decoders, {', '.join(PAIR_FORMATS)} are taken"
        )
    form = PAIR_FORMATS[folder.kind]
    config = read_config(folder, lambda said: form.config(said, folder.weights))
    check_room(need(config), f"{folder.path.name}, its weights in float32,")
    model = config.build()
    ignored = form.ignored(config) + (("lm_head.weight",) if config.tied else ())  # some files repeat the embedding
    read(model, form.table(config), Turned(folder, form), ignored)
    return model.eval()


def foreign_pairs(model: TransformerEncoderDecoder | PretrainedPairs) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a model, in the first architecture that can hold it, or in its own.

    Raises:
        CheckpointError: none can; what stands in the way of each is named.
    """
    if isinstance(model, PretrainedPairs):
        tensors = {name: value.detach().contiguous() for name, value in model.theirs.named_parameters()}
        return model.config.described, tensors
    config, reasons = model.config, []
    for form in (BART, T5):
        try:
            described = form.described(config)
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            tensors = write(model, form.table(config))
            return described, {
                name: form.out_of(described, name, tensor).contiguous() for name, tensor in tensors.items()
            }
    raise CheckpointError(
        f"no architecture can hold this model: {'; '.join(reasons)}. One can that was trained with "
        "--set model.positions=sinusoidal --set model.norm_place=post"
    )
