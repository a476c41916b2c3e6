"""Models of the transformers library behind our contract: its layers, its caches, our state.

    out = body(tokens, mask, positions, cache)         logits = head(scale · out)

Two kinds of memory are understood. Attention keeps keys and values: our state holds them with slot number == position,
and for a call every row is moved to the right, so that its past ends where its new tokens begin. Whatever a model takes
distances from (positions given, slots counted, a mask summed up) then comes out the same as for the row alone. Models
with a recurrent state are fed one token at a time, so that rows can end at different places. Others are refused by
name.

The library's own file of a model says what it computes; here only its memory is handled. Models that our Transformer
can be are better read into that (`interop.formats`): it is faster, trains faster and needs no library.

Axes: R rows, T time, S slots, G key-value heads, D head width, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.errors import CheckpointError, MissingExtraError
from textwright.models.base import BaseConfig, Hidden, LanguageModel, Source, refuse_source
from textwright.models.state import State, keep
from textwright.models.transformer import KeyValueState

RECURRENT = ("mamba", "falcon_mamba", "mamba2")  # what they remember is a convolution's input and a state
REFUSED = {"rwkv": "in that library a step of RWKV mixes the rows of a batch"}


class PretrainedConfig(BaseConfig):
    """A model as its config.json describes it.

    Attributes:
        described: config.json.
        window: the most tokens a sequence may have; None for recurrent ones.
        scale: what hidden states are multiplied by in front of the head.
    """

    family: Literal["pretrained"] = "pretrained"
    described: dict[str, Any]
    window: int | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, le=0, description="theirs is set in `described`")
    scale: float = 1.0

    def build(self) -> PretrainedLM:
        """The same shape with fresh weights, in float32."""
        transformers = library()
        said = {key: value for key, value in self.described.items() if key not in ("dtype", "torch_dtype")}
        config = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
        return wrap(self, transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))


@dataclass(frozen=True)
class LeavesState(State):
    """What a recurrent model remembers, rows first."""

    leaves: tuple[Tensor, ...]


class PretrainedLM(LanguageModel):
    """Base of the two kinds.

    Attributes:
        theirs: the library's model; its parameters have the names they have there.
        body: everything in it before the head; gives `last_hidden_state`.
    """

    config: PretrainedConfig
    theirs: Any
    body: Any

    def __init__(self, config: PretrainedConfig, theirs: Any) -> None:
        super().__init__()
        self.config, self.window = config, config.window
        self.theirs, self.body = theirs, theirs.base_model
        head = theirs.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise CheckpointError(f"{type(theirs).__name__} has no linear head, which training and probes need")
        self.head, self.embed = head, self.body.get_input_embeddings()
        self._shapes: list[tuple[int, ...]] = []  # of the leaves of its memory after one token of one row

    def whole(self, tokens: Tensor) -> Hidden:
        """Without a memory: what training takes. Tokens after a row's length are seen by none before them."""
        return self.scaled(self.body(input_ids=tokens, use_cache=False).last_hidden_state)

    def scaled(self, values: Tensor) -> Hidden:
        """What the head reads."""
        return Hidden(values if self.config.scale == 1 else values * self.config.scale)


class AttentionLM(PretrainedLM):
    """One that remembers keys and values."""

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> KeyValueState:
        refuse_source(self, source)
        if not self._shapes:
            keys, values = pairs_of(self.body, self._probe())
            self._shapes = [tuple(leaf.shape) for leaf in (*keys, *values)]
        empty = [self.embed.weight.new_zeros(rows, groups, 0, width) for _, groups, _, width in self._shapes]
        half = len(empty) // 2
        return KeyValueState(
            tuple(empty[:half]), tuple(empty[half:]), torch.zeros(rows, dtype=torch.long, device=self.device)
        )

    @torch.no_grad()
    def _probe(self) -> Any:
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        out = self.body(input_ids=token, past_key_values=library().DynamicCache(), use_cache=True)
        if "past_key_values" not in out:
            raise CheckpointError(f"{type(self.body).__name__} keeps no cache of keys and values, nor one known here")
        return out.past_key_values

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        refuse_source(self, source)
        if state is None:
            self._check(tokens.shape[1])
            return self.whole(tokens), None
        before = state.spend()
        assert isinstance(before, KeyValueState)
        time, past = tokens.shape[1], before.lengths
        lengths = torch.full_like(past, time) if lengths is None else lengths
        after = past + lengths
        self._check(int(after.max()) if len(after) else 0)
        have = int(past.max()) if len(past) else 0
        equal = bool((past == have).all()) and bool((lengths == time).all())
        given, view = self._given(before, have, equal), self._view(past, lengths, have, time)
        if equal:
            view.pop("attention_mask")
        out = self.body(input_ids=tokens, past_key_values=given, use_cache=True, **view)
        keys, values = pairs_of(self.body, out.past_key_values)
        if not equal:
            slots = torch.arange(int(after.max()), device=past.device)
            moved = slots + (have - past)[:, None]  # a row's past ends at `have`, and its new tokens begin there
            keys, values = (tuple(_gather(leaf, moved) for leaf in leaves) for leaves in (keys, values))
        return self.scaled(out.last_hidden_state), KeyValueState(keys, values, after)

    def _given(self, before: KeyValueState, have: int, equal: bool) -> Any:
        """The library's cache with every row's past at the right end."""
        cache = library().DynamicCache()
        places = torch.arange(have, device=before.lengths.device) - (have - before.lengths)[:, None]
        for layer, pair in enumerate(zip(before.keys, before.values, strict=True)):
            keys, values = (leaf[:, :, :have] if equal else _gather(leaf, places) for leaf in pair)
            if have:
                cache.update(keys, values, layer)
        return cache

    def _view(self, past: Tensor, lengths: Tensor, have: int, time: int) -> dict[str, Tensor]:
        """Which slots hold a token, and the positions of the new ones."""
        old = torch.arange(have, device=past.device) >= (have - past)[:, None]
        steps = torch.arange(time, device=past.device)
        # A row without any token would look at nothing: it looks at what it was not given, and is not read.
        new = (steps < lengths[:, None]) | (past + lengths == 0)[:, None]
        view = {"attention_mask": torch.cat([old, new], 1).long()}
        if "position_ids" in signature(self.body.forward).parameters:
            view["position_ids"] = (past[:, None] + steps).clamp(max=self.window and self.window - 1)
        return view

    def _check(self, length: int) -> None:
        if self.window is not None and length > self.window:
            raise ValueError(f"{length} tokens do not fit this model's window of {self.window}")


class RecurrentStateLM(PretrainedLM):
    """One whose memory does not grow."""

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> LeavesState:
        refuse_source(self, source)
        if not self._shapes:
            token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with torch.no_grad():
                self._shapes = [tuple(leaf.shape) for leaf in _leaves(self.body(input_ids=token, use_cache=True))]
        leaves = [self.embed.weight.new_zeros(rows, *shape[1:]) for shape in self._shapes]
        return LeavesState(tuple(leaves))

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        refuse_source(self, source)
        if state is None:
            return self.whole(tokens), None
        before = state.spend()
        assert isinstance(before, LeavesState)
        if torch.is_grad_enabled():
            raise ValueError(f"no gradient flows through the memory of {type(self.body).__name__}: feed texts whole")
        leaves, steps = before.leaves, []
        for time in range(tokens.shape[1]):
            given = self._memory(leaves)
            out = self.body(input_ids=tokens[:, time : time + 1], use_cache=True, cache_params=given)
            new = _leaves(out)
            if lengths is not None:
                new = tuple(keep(lengths - time, leaf, old) for leaf, old in zip(new, leaves, strict=True))
            leaves = new
            steps.append(out.last_hidden_state)
        return self.scaled(torch.cat(steps, 1)), LeavesState(leaves)

    def _memory(self, leaves: tuple[Tensor, ...]) -> Any:
        """What the library takes, in memory of its own: it is written in place."""
        cache = library().DynamicCache(config=self.body.config)
        for layer, convolved, recurrent in zip(cache.layers, leaves[::2], leaves[1::2], strict=True):
            layer.lazy_initialization(conv_states=convolved, recurrent_states=recurrent)
            layer.conv_states[0], layer.recurrent_states[0] = convolved.clone(), recurrent.clone()
            layer.has_previous_state[0] = True
        return cache


def wrap(config: PretrainedConfig, theirs: Any) -> PretrainedLM:
    """A model of the library as one of ours, in evaluation mode.

    Raises:
        CheckpointError: the library's own steps are wrong for it, or it has no linear head.
    """
    if reason := REFUSED.get(config.described["model_type"]):
        raise CheckpointError(f"{type(theirs).__name__} is not taken: {reason}")
    kind = RecurrentStateLM if config.described["model_type"] in RECURRENT else AttentionLM
    return kind(config, theirs).eval()


def library() -> Any:
    """The transformers library (typed in parts only), silent.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise MissingExtraError("a model of the transformers library", "huggingface") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def pairs_of(body: Any, cache: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Keys and values of every layer, each (R, G, S, D)."""
    strange = sorted({type(layer).__name__ for layer in cache.layers} - {"DynamicLayer"})
    if strange:
        raise CheckpointError(f"{type(body).__name__} remembers in {', '.join(strange)}, which is not understood here")
    return tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)


def _leaves(out: Any) -> tuple[Tensor, ...]:
    """What a recurrent model remembers, rows first."""
    layers = out.cache_params.layers
    return tuple(leaf for layer in layers for leaf in (layer.conv_states[0], layer.recurrent_states[0]))


def _gather(leaf: Tensor, slots: Tensor) -> Tensor:
    """(R, G, S, D) at slots (R, N) of each row -> (R, G, N, D); slots outside hold anything."""
    index = slots.clamp(0, max(0, leaf.shape[2] - 1))[:, None, :, None]
    return leaf.gather(2, index.expand(-1, leaf.shape[1], -1, leaf.shape[3]))
