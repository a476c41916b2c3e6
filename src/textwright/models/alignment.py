"""Attention of recurrent decoders: how a query is compared with the places of a source.

    score_i = vᵀ tanh(W q + U m_i + b)                 additive: Bahdanau, Cho and Bengio 2015, section A.1.2
    score_i = vᵀ tanh(W q + U m_i + w c_i + b)         with coverage c: See et al. 2017, eq. 11 (after Tu et al. 2016)
    score_i = qᵀ m_i                                   dot:      Luong, Pham and Manning 2015, section 3.1
    score_i = qᵀ W m_i                                 general:  the same
    score_i = (W q)ᵀ (U m_i) / √D, in several heads    multihead: Vaswani et al. 2017, section 3.2.2
    a = softmax(score);  context = Σ a_i m_i           (of the heads: of their own values, joined and projected)

Axes: R rows, T time, S places of the source, M width of the memory, W width of the decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.config import Config
from textwright.models.attention import CrossAttention, Heads, weights


class Alignment(nn.Module, ABC):
    """Base: `read` once a source, then compare.

    Attributes:
        context: width of what comes out.
        coverage: λ of the coverage penalty; 0: places are not told how often they were looked at.
    """

    context: int
    coverage: float = 0.0

    @abstractmethod
    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory (R, S, M) -> keys and values, (R, S, …) each."""

    @abstractmethod
    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """query (R, T, W), mask (R, 1, S) to be added, seen (R, S) the sum of earlier weights -> context (R, T, M) and
        weights (R, T, S)."""


class Additive(Alignment):
    def __init__(self, width: int, memory: int, inner: int, coverage: float) -> None:
        super().__init__()
        self.context, self.coverage = memory, coverage
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(memory, inner)
        self.score = nn.Linear(inner, 1, bias=False)
        self.seen = nn.Linear(1, inner, bias=False) if coverage else None

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory), memory

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.seen is not None and seen is not None:
            keys = keys + self.seen(seen[..., None].to(keys.dtype))
        scores = self.score(torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1))).squeeze(-1)
        return _look(scores, mask, values)


class Product(Alignment):
    """Dot (no matrix) and general (one): the matrix is applied to the memory, once a source."""

    def __init__(self, width: int, memory: int, *, general: bool) -> None:
        super().__init__()
        self.context = memory
        self.key = nn.Linear(memory, width, bias=False) if general else nn.Identity()

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory), memory

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return _look(query @ keys.mT, mask, values)


class MultiHead(Alignment):
    def __init__(self, width: int, memory: int, heads: int) -> None:
        super().__init__()
        self.context = width
        self.bring = nn.Linear(memory, width) if memory != width else nn.Identity()
        self.cross = CrossAttention(Heads(width, heads, heads, width // heads), 0.0, bias=True)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.cross.read(self.bring(memory))

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        looked = weights(self.cross.query(query), keys, mask[:, None])  # (R, H, T, S)
        heads = looked.to(values.dtype) @ values
        context: Tensor = self.cross.out(heads.transpose(1, 2).flatten(2))
        return context, looked.mean(1)


def _look(scores: Tensor, mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    looked = (scores.float() + mask).softmax(-1)
    return looked.to(values.dtype) @ values, looked


# Configuration ---------------------------------------------------------------------------------------------------


class NoAlignment(Config):
    """The source is known through the decoder's first state alone (Sutskever et al. 2014)."""

    kind: Literal["none"] = "none"

    def build(self, width: int, memory: int) -> None:
        return None


class AdditiveAlignment(Config):
    """vᵀ tanh(W query + U key): a small network compares (Bahdanau et al. 2015)."""

    kind: Literal["additive"] = "additive"
    coverage: float = Field(0.0, ge=0, description="λ of See et al. 2017, eq. 13; 0: no coverage")

    def build(self, width: int, memory: int) -> Alignment:
        return Additive(width, memory, width, self.coverage)


class DotAlignment(Config):
    """The product of query and key (Luong et al. 2015)."""

    kind: Literal["dot"] = "dot"

    def build(self, width: int, memory: int) -> Alignment:
        if width != memory:
            raise ValueError(f"dot attention needs an encoder as wide as the decoder: {memory} and {width}")
        return Product(width, memory, general=False)


class GeneralAlignment(Config):
    """The product with a matrix between them (Luong et al. 2015)."""

    kind: Literal["general"] = "general"

    def build(self, width: int, memory: int) -> Alignment:
        return Product(width, memory, general=True)


class MultiHeadAlignment(Config):
    """Several scaled products side by side (Vaswani et al. 2017)."""

    kind: Literal["multihead"] = "multihead"
    heads: int = Field(4, gt=0, description="of attention")

    def build(self, width: int, memory: int) -> Alignment:
        return MultiHead(width, memory, self.heads)


AlignmentConfig = Annotated[
    NoAlignment | AdditiveAlignment | DotAlignment | GeneralAlignment | MultiHeadAlignment,
    Field(discriminator="kind"),
]
