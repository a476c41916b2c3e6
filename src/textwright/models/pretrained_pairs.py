"""Encoder-decoders of the transformers library behind our contract.

    m = encoder(source, mask)           x = decoder(tokens, m, mask, cache)           logits = head(scale · x)

The decoder keeps keys and values of the text and, read once, of the source. Rows whose texts are equally long go
through it together; where they are not, each length goes on its own. That is right for whatever the library's models
take positions from (slots, ids, masks), and costs nothing where it matters: the beams of a source are equally long.

Models that our encoder-decoder can be are better read into that (`interop.pair_formats`).

Axes: R rows, N sources, T time, S places of the source, G heads, D head width, W width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.errors import CheckpointError
from textwright.models.base import BaseConfig, EncoderDecoder, Hidden, Source
from textwright.models.encdec import EncoderDecoderState
from textwright.models.memory import Memory
from textwright.models.pretrained import library, pairs_of
from textwright.models.state import State, join


class PretrainedPairsConfig(BaseConfig):
    """A model as its config.json describes it.

    Attributes:
        described: config.json.
        window, source_window: the most tokens a text and a source may have.
        source_vocab: None: source and target share one vocabulary.
        scale: what the decoder's output is multiplied by in front of the head.
    """

    family: Literal["pretrained-pairs"] = "pretrained-pairs"
    described: dict[str, Any]
    window: int = Field(gt=0)
    source_window: int = Field(gt=0)
    source_vocab: None = None
    scale: float = 1.0
    dropout: float = Field(0.0, ge=0, le=0, description="theirs is set in `described`")

    def build(self) -> PretrainedPairs:
        """The same shape with fresh weights, in float32."""
        transformers = library()
        said = {key: value for key, value in self.described.items() if key not in ("dtype", "torch_dtype")}
        config = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
        return PretrainedPairs(self, transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)).eval()


class PretrainedPairs(EncoderDecoder):
    """A model of the library.

    Attributes:
        theirs: the library's model; its parameters have the names they have there.
    """

    config: PretrainedPairsConfig
    theirs: Any

    def __init__(self, config: PretrainedPairsConfig, theirs: Any) -> None:
        super().__init__()
        self.config, self.theirs = config, theirs
        self.window, self.source_window, self.source_vocab = config.window, config.source_window, config.vocab
        self.encoder, self.decoder = theirs.get_encoder(), theirs.get_decoder()
        head = theirs.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise CheckpointError(f"{type(theirs).__name__} has no linear head, which training and probes need")
        self.head, self.embed = head, self.decoder.get_input_embeddings()

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> EncoderDecoderState:
        memory = self.read(self.check_source(source))
        # First stands the encoder's output, then keys and values of each layer, in the shape of a text's.
        empty = tuple(leaf.new_zeros(rows, leaf.shape[1], 0, leaf.shape[3]) for leaf in memory.read[1:])
        lengths = torch.zeros(rows, dtype=torch.long, device=self.device)
        return EncoderDecoderState(empty[::2], empty[1::2], lengths, memory)

    def read(self, source: Source) -> Memory:
        """Encode a source, once, with the keys and values that every layer of the decoder looks up."""
        mask = _mask(source.lengths, source.values.shape[1])
        encoded = self.encoder(input_ids=source.values, attention_mask=mask).last_hidden_state
        cache = self._cache()
        first = torch.zeros(len(encoded), 1, dtype=torch.long, device=self.device)
        self._decode(first, encoded, mask, cache)
        keys, values = pairs_of(self.decoder, cache.cross_attention_cache)
        read = tuple(leaf for pair in zip(keys, values, strict=True) for leaf in pair)
        return Memory.of((encoded, *read), source.lengths, source.values)

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        if state is None:
            self._check(tokens.shape[1])
            whole = self.check_source(source)
            mask = _mask(whole.lengths, whole.values.shape[1])
            encoded = self.encoder(input_ids=whole.values, attention_mask=mask).last_hidden_state
            return Hidden(self._decode(tokens, encoded, mask, None)), None
        if source is not None:
            raise ValueError("the state has read its source already: give one or the other")
        before = state.spend()
        assert isinstance(before, EncoderDecoderState)
        time, past = tokens.shape[1], before.lengths
        lengths = torch.full_like(past, time) if lengths is None else lengths
        self._check(int((past + lengths).max()) if len(past) else 0)
        memory = before.memory.a_row_each()
        rows = [torch.arange(len(past), device=past.device)]
        if len(past) and not bool((past == past[0]).all() and (lengths == lengths[0]).all()):
            _, group = torch.stack([past, lengths], 1).unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
            rows = [(group == number).nonzero().flatten() for number in range(int(group.max()) + 1)]
        parts = [self._together(tokens, lengths, before, memory, chosen) for chosen in rows]
        # Parts are put one under the other, padded, and back into the order of the rows.
        values, keys, kept = parts[0]
        for more in parts[1:]:
            values = join(values, more[0])
            keys, kept = (tuple(map(join, a, b)) for a, b in ((keys, more[1]), (kept, more[2])))
        if len(parts) > 1:
            order = torch.cat(rows).argsort()
            values, keys, kept = values[order], tuple(k[order] for k in keys), tuple(v[order] for v in kept)
        return Hidden(values), EncoderDecoderState(keys, kept, past + lengths, memory)

    def _together(
        self, tokens: Tensor, lengths: Tensor, before: EncoderDecoderState, memory: Memory, rows: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs (rows, T, W), keys and values of rows whose texts are equally long before and after."""
        have, new = (int(numbers[rows[0]]) if len(rows) else 0 for numbers in (before.lengths, lengths))
        past = [[leaf[rows, :, :have] for leaf in leaves] for leaves in (before.keys, before.values)]
        read = [leaf[rows] for leaf in memory.read]
        if not new or not len(rows):
            empty = read[0].new_zeros(len(rows), tokens.shape[1], read[0].shape[2])
            return empty, tuple(past[0]), tuple(past[1])
        cache = self._cache(past if have else None, (read[1::2], read[2::2]))
        mask = _mask(memory.lengths[rows], read[0].shape[1])
        out = self._decode(tokens[rows, :new], read[0], mask, cache)
        padded = nn.functional.pad(out, (0, 0, 0, tokens.shape[1] - new))
        return padded, *pairs_of(self.decoder, cache.self_attention_cache)

    def attention(self, tokens: Tensor, lengths: Tensor | None, source: Source) -> Tensor | None:
        """Of the last block but one, as in our own encoder-decoder."""
        mask = _mask(self.check_source(source).lengths, source.values.shape[1])
        encoded = self.encoder(input_ids=source.values, attention_mask=mask).last_hidden_state
        kind = self.theirs.config._attn_implementation
        self.theirs.set_attn_implementation("eager")  # the others never hold the weights
        try:
            given = {"encoder_hidden_states": encoded, "encoder_attention_mask": mask, "use_cache": False}
            looked = self.decoder(input_ids=tokens, output_attentions=True, **given).cross_attentions
        finally:
            self.theirs.set_attn_implementation(kind)
        if not looked:
            return None
        watched: Tensor = looked[max(0, len(looked) - 2)].mean(1)
        return watched

    def _cache(self, past: Any = None, read: Any = None) -> Any:
        """Theirs, with keys and values of each layer of the text and of the source; in memory of its own."""
        caches = []
        for pair in (past, read):
            cache = library().DynamicCache()
            for layer, (keys, values) in enumerate(zip(*pair, strict=True) if pair else ()):
                cache.update(keys, values, layer)
            caches.append(cache)
        return library().EncoderDecoderCache(*caches)

    def _decode(self, tokens: Tensor, encoded: Tensor, mask: Tensor, cache: Any) -> Tensor:
        out = self.decoder(
            input_ids=tokens,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = out.last_hidden_state * self.config.scale
        return hidden

    def _check(self, length: int) -> None:
        if length > self.config.window:
            raise ValueError(f"{length} tokens do not fit this model's window of {self.config.window}")


def _mask(lengths: Tensor, size: int) -> Tensor:
    """(N,) -> (N, S): 1 where there is a token."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None]).long()
