"""Cross-entropy of a linear head whose output never stands in memory as a whole, nor in float32.

    z_n = V h_n + d        p_n = softmax(z_n)        q_n = (1 - ε) [target_n] + ε / |V|
    loss  = Σ_n -Σ_v q_nv log p_nv                   ε: label smoothing, Szegedy et al. 2016, section 7
    plain = Σ_n -log p_n[target_n]
    ∂loss/∂z_n = p_n - q_n

The last line needs nothing that the loss does not need, so the gradients of h, V and d are computed together with it,
some rows at a time, and the scores are overwritten by their own gradient. Autograd's way keeps the scores of a whole
batch several times over, and with a large vocabulary it waits for memory longer than for the matrix products.

Axes: N positions, W width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**26  # scores that may stand in memory at once
BLOCK = 2**19  # scores that become probabilities at once on a CPU, so that they stay in its caches


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore: int,
    *,
    smoothing: float = 0.0,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The two sums above, in nats, float32 scalars; only `loss` has a gradient.

    Args:
        hidden: (N, W).
        weight: (V, W).
        bias: (V,), or None.
        targets: (N,); positions whose target is `ignore` do not count.
        smoothing: ε.
        own: (N,), added to the score of each position's target; None: nothing.

    Products are in the type of a surrounding autocast.
    """
    loss, plain = _LinearCrossEntropy.apply(hidden, weight, bias, targets, ignore, smoothing, own)  # type: ignore[no-untyped-call]
    return loss, plain


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore: int,
        smoothing: float,
        own: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        sums = torch.zeros(2, device=hidden.device)
        of_hidden: list[Tensor] = []
        of_weight = of_bias = None
        learns = ctx.needs_input_grad[1:3]  # a frozen head costs nothing
        with torch.autocast(kind, enabled=False):
            h, w, d = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            for start in range(0, len(h), size := max(1, CHUNK // len(w))):
                rows = h[start : start + size]
                scores = rows @ w.mT if d is None else torch.addmm(d, rows, w.mT)
                wanted = targets[start : start + size]
                if own is not None:
                    scores.scatter_add_(1, wanted.clamp(min=0)[:, None], own[start : start + size, None].to(dtype))
                sums += _into_gradient(scores, wanted, ignore, smoothing)
                of_hidden.append((scores @ w).to(hidden.dtype))
                if learns[0]:
                    of_weight = _added(of_weight, (scores.mT @ rows).to(weight.dtype))
                if bias is not None and learns[1]:
                    of_bias = _added(of_bias, scores.sum(0, dtype=bias.dtype))
        ctx.save_for_backward(torch.cat(of_hidden), of_weight, of_bias)
        loss, plain = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(plain)
        return loss, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place: nobody else holds these tensors, and one is as large as V.
        hidden, weight, bias = (None if leaf is None else leaf.mul_(above) for leaf in ctx.saved_tensors)
        return hidden, weight, bias, None, None, None, None


def _into_gradient(scores: Tensor, targets: Tensor, ignore: int, smoothing: float) -> Tensor:
    """The two sums of some positions (2,); their scores (n, V) become the gradient of the first one."""
    vocabulary = scores.shape[1]
    size = max(1, BLOCK // vocabulary) if scores.device.type == "cpu" else max(1, len(scores))
    sums = torch.zeros(2, device=scores.device)
    for part, own in zip(torch.split(scores, size), torch.split(targets, size), strict=True):
        skipped = (own == ignore)[:, None]
        own = own[:, None].masked_fill(skipped, 0)
        logarithms = part.log_softmax(1, dtype=torch.float32)
        plain = -logarithms.gather(1, own).masked_fill_(skipped, 0).sum()
        uniform = -logarithms.mean(1, keepdim=True).masked_fill_(skipped, 0).sum() if smoothing else plain
        sums += torch.stack([(1 - smoothing) * plain + smoothing * uniform, plain])
        gradient = logarithms.exp_()
        gradient.scatter_add_(1, own, gradient.new_full(own.shape, smoothing - 1))
        if smoothing:
            gradient.sub_(smoothing / vocabulary)
        if scores.device.type != "cpu" or bool(skipped.any()):  # a GPU would have to be waited for
            gradient.masked_fill_(skipped, 0)
        part.copy_(gradient)
    return sums


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)
