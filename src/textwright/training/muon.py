"""Muon for the matrices inside a model, AdamW for everything else, as one optimiser.

    M <- μ M + (1 - μ) G                                  the momentum of a matrix's gradient G
    W <- W - η s O((1 - μ) G + μ M) - η λ W               O: the nearest matrix whose rows or columns are orthonormal
    s = 0.2 √max(rows, columns)                           gives updates the size of AdamW's, so that η serves both

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), with s of Liu et al. 2025, "Muon is Scalable for LLM
Training", section 2.2. The orthogonalisation, five steps of a Newton-Schulz iteration, is torch.optim.Muon's. Tables of
words, the head, biases and gains are for AdamW: a row of a table stands for one word and is used alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Together(torch.optim.Optimizer):
    """Two optimisers over different parameters: one list of groups, one state to save."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.first, self.second = first, second
        self._share()

    def _share(self) -> None:
        count = len(self.first.param_groups)
        self.first.param_groups, self.second.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.first.state = self.second.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        self.first.step()
        self.second.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
