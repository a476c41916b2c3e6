"""Generation state as a value: one rule (rows first) and two operations (`select`, `concat`).

What a model remembers of a batch of sequences is a frozen dataclass of tensors. Dimension 0 of every tensor is the
row, one sequence. Beam reorder, dropping finished rows and tiling are all `select`; admitting new requests to a
running batch is `concat`. Every decoding loop is written with these two and knows no model family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch.nn.functional as F
from torch import Tensor, cat, where

from textwright.errors import StateSpentError

T = TypeVar("T")

SPENT = """this state was already fed to the model: the call that took it may have overwritten its memory.
    output = model(tokens, state=state)
    output = model(more, state=state)           # wrong: `state` is spent
    output = model(more, state=output.state)    # right
To go on twice from one point, copy it first: snapshot = state.copy()"""


@dataclass(frozen=True)
class State:
    """What a model remembers of a batch; dimension 0 of every leaf is the row."""

    _spent: ClassVar[bool] = False

    def select(self, rows: Tensor) -> Self:
        """The given rows (int64 indices, shape (n,)), which may repeat or be left out, as a new state."""
        return replace(self, **{field.name: _select(getattr(self, field.name), rows) for field in fields(self)})

    def concat(self, other: Self) -> Self:
        """The rows of both batches, this one's first; dimensions that grow are padded with zeros on the right."""
        names = [field.name for field in fields(self)]
        return replace(self, **{name: _concat(getattr(self, name), getattr(other, name)) for name in names})

    def copy(self) -> Self:
        """The same rows in memory of their own."""
        return map_leaves(lambda leaf: leaf.clone(), self)

    def fork(self) -> Self:
        """The same rows for a second call: only what a call overwrites in place is copied."""
        return replace(self, **{field.name: _fork(getattr(self, field.name)) for field in fields(self)})

    def detach(self) -> Self:
        """The same values, cut from the graph: what truncated back-propagation passes to the next step."""
        return map_leaves(lambda leaf: leaf.detach(), self)

    @property
    def has_places(self) -> bool:
        """Whether every token has a place of its own in this state, so that `truncate` can forget the last ones."""
        return False

    def truncate(self, lengths: Tensor) -> Self:
        """Forget the tokens at or after `lengths` (R,), where the state has places; spends this state.

        A recurrent state has none: keep a copy of the one before, and feed what should stay again.
        """
        raise NotImplementedError(f"{type(self).__name__} has no places: feed what should stay to an earlier state")

    def spend(self) -> Self:
        """Mark this state as used by a model call.

        Raises:
            StateSpentError: when it was used before. Key-value caches are written in place, so a snapshot that is
                advanced twice would be silently wrong.
        """
        if self._spent:
            raise StateSpentError(SPENT)
        object.__setattr__(self, "_spent", True)
        return self


def map_leaves(fn: Callable[..., Tensor], *trees: T) -> T:
    """Apply `fn` to the corresponding tensors of equally shaped trees of dataclasses and tuples."""
    return _map(fn, *trees)  # type: ignore[no-any-return]


def _map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return fn(*trees)
    if isinstance(first, tuple):
        return tuple(_map(fn, *leaves) for leaves in zip(*trees, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return replace(first, **{name: _map(fn, *(getattr(tree, name) for tree in trees)) for name in names})
    raise TypeError(f"a state holds tensors, tuples and dataclasses, not {type(first).__name__}")


def keep(lengths: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the rows that were given a token, `old` for the rows of length 0."""
    return where((lengths > 0).view(-1, *[1] * (new.ndim - 1)), new, old)


def _select(part: Any, rows: Tensor) -> Any:
    """A field of a state: a state knows itself how, other leaves are tensors."""
    if isinstance(part, State):
        return part.select(rows)
    if isinstance(part, tuple):
        return tuple(_select(leaf, rows) for leaf in part)
    return part.index_select(0, rows)


def _fork(part: Any) -> Any:
    if isinstance(part, State):
        return part.fork()
    return tuple(_fork(leaf) for leaf in part) if isinstance(part, tuple) else part


def _concat(part: Any, other: Any) -> Any:
    if isinstance(part, State):
        return part.concat(other)
    if isinstance(part, tuple):
        return tuple(_concat(*leaves) for leaves in zip(part, other, strict=True))
    return join(part, other)


def join(a: Tensor, b: Tensor) -> Tensor:
    """The rows of both; dimensions that differ are padded with zeros on the right."""
    shape = [max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True)]
    return cat([_pad(a, shape), _pad(b, shape)])


def _pad(x: Tensor, shape: list[int]) -> Tensor:
    missing = [(0, want - have) for want, have in zip(shape, x.shape[1:], strict=True)]
    return F.pad(x, [amount for pair in reversed(missing) for amount in pair]) if any(n for _, n in missing) else x
