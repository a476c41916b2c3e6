"""Whose weight is whose: tables of tensors, read in both directions.

Two libraries build the same network from other pieces: where one has a matrix for the queries, one for the keys and one
for the values, the other has all three one below the other. A `Part` says which of their tensors make one of ours; the
table of a whole model is a list of them. `read` follows it from them to us, `write` from us to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textwright.errors import CheckpointError

ZEROS = ""  # in the place of a parameter of ours: theirs must be zero, because we have none


class Part(NamedTuple):
    """One parameter of ours.

    Attributes:
        ours: its name, or `ZEROS`.
        theirs: names of the tensors that make it, one below the other, and how many rows each of them gives.
        transposed: theirs are stored (in, out), ours (out, in).
    """

    ours: str
    theirs: Mapping[str, int]
    transposed: bool = False


class UnlikeError(CheckpointError):
    """What is whole, and cannot be held in the other shape."""


def refuse(why: str, found: Mapping[str, bool]) -> None:
    """Raise UnlikeError naming what was found and cannot be held: `why` with it in the place of {}."""
    if names := [name for name, here in found.items() if here]:
        raise UnlikeError(why.format(", ".join(names)))


def kinds(bias: bool) -> tuple[str, ...]:
    """What a linear layer has."""
    return ("weight", "bias") if bias else ("weight",)


def norm_parts(ours: str, theirs: str, width: int, bias: bool) -> list[Part]:
    """Of a layer norm; theirs always has a bias."""
    own = f"{ours}.bias" if bias else ZEROS
    return [Part(f"{ours}.weight", {f"{theirs}.weight": width}), Part(own, {f"{theirs}.bias": width})]


def rotary_base(theirs: Mapping[str, Any], found: dict[str, bool]) -> float:
    """The base of rotary positions in a config.json of any age; ways to stretch them are put among what was found."""
    rotary = dict(theirs.get("rope_parameters") or {}) | dict(theirs.get("rope_scaling") or {})
    scaled = rotary.get("rope_type", rotary.get("type", "default"))
    found[f"rope_type {scaled}"] = scaled != "default"
    return float(rotary.get("rope_theta", theirs.get("rope_theta", 10000.0)))


def read(model: nn.Module, table: Sequence[Part], tensors: Mapping[str, Tensor], ignored: Sequence[str] = ()) -> None:
    """Fill the model's parameters, whatever precision the tensors have.

    Args:
        ignored: ends of names of tensors that hold nothing a model learns.

    Raises:
        CheckpointError: a tensor is missing, is of another shape, would be left over, or is not zero where it must be.
    """
    own = dict(model.named_parameters())
    wanted = {name for part in table for name in part.theirs}
    wrong = [f"{name} is missing" for name in sorted(wanted - tensors.keys())]
    left = tensors.keys() - wanted
    wrong += [f"{name} has no place in this model" for name in sorted(left) if not name.endswith(tuple(ignored))]
    if wrong:
        raise CheckpointError(f"these weights are not the model that config.json describes: {'; '.join(wrong[:3])}")
    assert own.keys() == {part.ours for part in table} - {ZEROS}
    with torch.no_grad():
        for part in table:
            if part.ours == ZEROS:
                if unlike := [name for name in part.theirs if tensors[name].any()]:
                    raise UnlikeError(f"{unlike[0]} is not zero, and our Transformer has nothing in its place")
            else:
                own[part.ours].copy_(_ours(part, tensors, own[part.ours]))


def write(model: nn.Module, table: Sequence[Part]) -> dict[str, Tensor]:
    """The model's parameters under their names and in their shapes."""
    own = dict(model.named_parameters())
    theirs: dict[str, Tensor] = {}
    for part in table:
        if part.ours == ZEROS:
            theirs |= {name: torch.zeros(rows) for name, rows in part.theirs.items()}
            continue
        pieces = torch.split(own[part.ours].detach(), list(part.theirs.values()))
        theirs |= {name: piece.T if part.transposed else piece for name, piece in zip(part.theirs, pieces, strict=True)}
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def _ours(part: Part, tensors: Mapping[str, Tensor], own: Tensor) -> Tensor:
    pieces = []
    for name, rows in part.theirs.items():
        tensor = tensors[name]
        piece = tensor.T if part.transposed else tensor
        expected = (rows, *own.shape[1:])
        if piece.shape != expected:
            shown = expected[::-1] if part.transposed else expected
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}, config.json makes it {tuple(shown)}")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
