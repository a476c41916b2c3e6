"""A base in few bits under an adapter: QLoRA (Dettmers et al. 2023, section 3).

The weights that stand still are kept as small integers and unpacked for each product, forwards and backwards; only the
adapter learns, in float32. What is trained is a function of the rounded weights, so a run that was trained this way is
opened with them: see `rounded`.

    int8   w = s q        q = round(w / s), s = max |w| / 127      a scale for each group of 64 inputs
    int4   w = s q        q = round(w / s), s = max |w| / 7        two of them in a byte

Axes: O outputs, G groups, I inputs in a group.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models.base import LanguageModel

Packing = Literal["int8", "int4"]
GROUP = 64  # inputs that share a scale
LARGEST: dict[Packing, int] = {"int8": 127, "int4": 7}
TINY = 1e-20  # a group of zeros has no scale


def pack(model: LanguageModel, kind: Packing) -> None:
    """Replace every linear layer but the head by one that holds small integers, in place."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not model.head:
                setattr(parent, name, PackedLinear(layer, kind))


@torch.no_grad()
def rounded(model: LanguageModel, kind: Packing) -> None:
    """Round the weights that `pack` replaces to what its integers stand for, in place."""
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not model.head:
            layer.weight.copy_(PackedLinear(layer, kind).weight)


class PackedLinear(nn.Linear):
    """y = W x + b with W in small integers: no gradient of W, one of x.

    Args:
        layer: what it takes the place of.
    """

    integers: Tensor  # (O, G, I) int8, or (O, G, I / 2) uint8
    scale: Tensor  # (O, G, 1) float32

    def __init__(self, layer: nn.Linear, kind: Packing) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.kind = layer.out_features, layer.in_features, kind
        self.register_parameter("bias", layer.bias)
        values = F.pad(layer.weight.detach().float(), (0, -layer.in_features % GROUP))
        groups = values.view(layer.out_features, -1, GROUP)
        scale = (groups.abs().amax(-1, keepdim=True) / LARGEST[kind]).clamp(min=TINY)
        integers = (groups / scale).round().to(torch.int8)
        if kind == "int4":
            halves = (integers + 8).to(torch.uint8)
            integers = halves[..., ::2] | (halves[..., 1::2] << 4)
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, in) float32."""
        integers = self.integers
        if self.kind == "int4":
            integers = torch.stack([integers & 15, integers >> 4], -1).flatten(-2).to(torch.int8) - 8
        return (integers * self.scale).flatten(1)[:, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        place = x.device.type
        if torch.is_autocast_enabled(place):
            x = x.to(torch.get_autocast_dtype(place))
        with torch.autocast(place, enabled=False):
            y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
            return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x Wᵀ, where W is unpacked anew on the way back instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight.to(gradient.dtype), None
