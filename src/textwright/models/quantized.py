"""Weights as small integers, for writing: a model that waits for its memory reads a quarter or an eighth of it.

    int8   y_o = s_o a Σ_i q_oi u_i      q_oi = round(w_oi / s_o), s_o = max_i |w_oi| / 127       a row of the matrix
                                         u_i = round(x_i / a), a = max_i |x_i| / 127              a row of the input
    int4   y_o = Σ_i w'_oi x_i           w'_oi = s (q_oi - 8) + z, 0 <= q_oi <= 15                 32 inputs a scale

(63 instead of the second 127 on an x86 processor without VNNI instructions, see `int8_levels`.)

Scales a row: Dettmers et al. 2022, "LLM.int8()", section 3; scales of a group of weights: Frantar et al.
2023, "GPTQ", section 5. Since every row of the input has a scale of its own, a text does not depend on what it is
written beside. Norms, attention and embeddings stay as they are, and so do matrices with few outputs.

On x86 processors the products are torch's own kernels (FBGEMM and ATen); elsewhere the same formulas are computed with
floating-point products, which saves memory and no time. The names of those kernels are not public, so
`tests/reference/test_quantized.py` compares both ways.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textwright.models.rnn import Stepped

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")
GROUP = 32  # weights that share a scale in int4
BLOCK = 64  # the int4 kernel takes its outputs in such blocks
FEW = 16  # outputs, below which a matrix stays as it is
TINY = 1e-20  # an input of zeros has no scale


def quantize(model: nn.Module, kind: Kind) -> None:
    """Replace the linear layers and recurrent cells of a model, in place; what is left becomes float32.

    Recurrent encoders, which read a source once, stay as they are.
    """
    model.float().eval().requires_grad_(False)
    packed: dict[nn.Module, nn.Module] = {}  # a model that reads a prompt first has the head of the one in it
    for path, parent in list(model.named_modules()):
        for name, layer in parent.named_children():
            if layer in packed:
                setattr(parent, name, packed[layer])
            elif isinstance(layer, nn.Linear) and layer.out_features >= FEW:
                packed[layer] = linear(kind, layer.weight, layer.bias)
                setattr(parent, name, packed[layer])
            elif isinstance(layer, nn.RNNBase) and path in ("cells", "model.cells"):
                setattr(parent, name, QuantizedCell(layer, kind))


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the weights of a model take."""
    whole = sum(leaf.nbytes for leaves in (model.parameters(), model.buffers()) for leaf in leaves)
    packed = [layer for layer in model.modules() if isinstance(layer, Int8Linear) and layer.packed is not None]
    return whole + sum(layer.out_features * layer.in_features for layer in packed)


class QuantizedLinear(nn.Linear):
    """Base of the two kinds: shaped like the layer it replaces; `weight` is what its integers stand for."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone(), False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in) float32."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    integers: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=TINY)
        self.register_buffer("integers", (weight / scale[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.levels = int8_levels() if weight.device.type == "cpu" else None
        self.packed = None
        if self.levels is not None:
            self.packed = pack(self.integers, self.scale)
            self.integers = self.integers[:0]  # the packed copy is enough

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        if self.packed is None:
            return self.integers * self.scale[:, None]
        matrix: Tensor = torch.ops.quantized.linear_unpack(self.packed)[0]
        return matrix.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), float32."""
        if self.packed is None or self.levels is None:
            largest = x.abs().amax(-1, keepdim=True).clamp(min=TINY)
            y = F.linear((x / largest * 127).round().float(), self.integers.float()) * (self.scale * (largest / 127))
        elif x.numel() == self.in_features:  # one row: its scale is a number, and the kernel takes one
            y = product(x.float(), max(float(x.abs().max()), TINY), self.levels, self.packed)
        else:
            largest = x.abs().amax(-1, keepdim=True).clamp_(min=TINY)
            y = product((x / largest).float(), 1.0, self.levels, self.packed).mul_(largest)
        return y if self.bias is None else y.add_(self.bias)


class Int4Linear(QuantizedLinear):
    integers: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        out, inside = weight.shape
        weight = F.pad(weight.detach().float(), (0, -inside % GROUP, 0, -out % BLOCK))
        groups = weight.view(len(weight), -1, GROUP)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=TINY).bfloat16()
        zero = (low + 8 * scale.float()).bfloat16()
        integers = (((groups - zero.float()) / scale.float()).round() + 8).clamp(0, 15).to(torch.int32).flatten(1)
        self.register_buffer("scales", torch.cat([scale, zero], -1).transpose(0, 1).contiguous(), persistent=False)
        self.fast = weight.device.type == "cpu" and has_int4()
        packed = torch._convert_weight_to_int4pack_for_cpu(integers, 1) if self.fast else integers.to(torch.uint8)
        self.register_buffer("integers", packed, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        if self.fast:
            return self._product(torch.eye(self.in_features)).mT
        scale, zero = self.scales.float().transpose(0, 1).chunk(2, -1)  # each (out, groups, 1)
        groups = self.integers.view(len(self.integers), -1, GROUP).float()
        return ((groups - 8) * scale + zero).flatten(1)[: self.out_features, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out), float32."""
        y = self._product(x.flatten(0, -2)) if self.fast else F.linear(x.flatten(0, -2).float(), self.weight)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -self.in_features % GROUP)).bfloat16()
        y = torch._weight_int4pack_mm_for_cpu(x, self.integers, GROUP, self.scales)
        return y[:, : self.out_features].float()


def linear(kind: Kind, weight: Tensor, bias: Tensor | None) -> QuantizedLinear:
    """A layer of this kind."""
    return Int8Linear(weight, bias) if kind == "int8" else Int4Linear(weight, bias)


class QuantizedCell(Stepped):
    """One recurrent layer by the formulas in `rnn`, a step at a time."""

    def __init__(self, cell: nn.RNNBase, kind: Kind) -> None:
        super().__init__()
        self.mode, self.width = cell.mode, cell.hidden_size
        self.leaves = 2 if cell.mode == "LSTM" else 1
        self.input = linear(kind, cell.get_parameter("weight_ih_l0"), cell.get_parameter("bias_ih_l0"))
        self.hidden = linear(kind, cell.get_parameter("weight_hh_l0"), cell.get_parameter("bias_hh_l0"))

    def bring(self, x: Tensor) -> Tensor:
        return self.input(x)  # type: ignore[no-any-return]

    def step(self, new: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before = memory[0]
        old = self.hidden(before)
        if self.mode == "LSTM":
            i, f, g, o = (new + old).chunk(4, -1)
            cell = f.sigmoid() * memory[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * cell.tanh(), cell
        if self.mode == "GRU":
            r, z = (new + old)[:, : 2 * self.width].sigmoid().chunk(2, -1)
            n = (new.chunk(3, -1)[2] + r * old.chunk(3, -1)[2]).tanh()
            return (torch.lerp(n, before, z),)
        return ((new + old).relu() if self.mode == "RNN_RELU" else (new + old).tanh(),)


@cache
def int8_levels() -> int | None:
    """How many steps to each side of zero an input may have for this processor's int8 kernel to be exact, or None where
    there is no such kernel. Without VNNI instructions it adds pairs of products in 16 bits, which overflow for all 127;
    the processor is asked by sums of the largest products."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return None
    largest = pack(torch.full((1, BLOCK), 127, dtype=torch.int8), torch.ones(1))
    exact = [n for n in (127, 63) if abs(product(torch.ones(1, BLOCK), 1.0, n, largest).item() - 127 * BLOCK) < 1]
    return max(exact, default=None)


def product(x: Tensor, largest: float, levels: int, packed: torch.ScriptObject) -> Tensor:
    """x (…, in) in [-largest, largest], rounded to steps of largest / levels, times a packed matrix: (…, out)."""
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    y: Tensor = kernel(x, largest / levels, levels + 1, packed)
    return y


def pack(integers: Tensor, scale: Tensor) -> torch.ScriptObject:
    """int8 (out, in) and float32 (out,), arranged for the kernel."""
    zeros = torch.zeros(len(scale), dtype=torch.long)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # Tensors of this type are to leave torch (github.com/pytorch/pytorch/issues/184982), and no other kernel of
            # it is as fast for few rows: oneDNN's takes 1.6 times as long for one.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            matrix = torch._make_per_channel_quantized_tensor(integers, scale.double(), zeros, 0)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(matrix, None)
    finally:
        torch.backends.quantized.engine = engine
    return packed


def has_int4() -> bool:
    """Whether the int4 kernel is there and fast: it is written for AVX2 and AVX-512, and a plain loop elsewhere."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
