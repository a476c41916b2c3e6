"""LoRA: a model learns something new in few numbers, and its own weights stand still.

    W' = W + s B A                            A (r, in), B (out, r)          Hu et al. 2022, "LoRA", eq. 3
    s  = α / r    or    α / √r                rank-stabilised                Kalajdzievski 2023, "rsLoRA", theorem 3.2
    W' = m ⊙ (W + s B A) / ‖W + s B A‖        a norm and an m for each row   Liu et al. 2024, "DoRA", eq. 5

B is zero and m the norm of W's rows at the beginning, so W' = W there. DoRA's norm counts as a constant in the gradient
(section 4.3 there).

A linear layer gets its change beside it, as a hook: y + s B(A x) costs two thin products, and no gradient of W is ever
formed. The weights of a recurrent layer are inside torch's kernels, so there W' itself is formed, by torch's own
parametrisation. Matrices that hold several (queries, keys and values, one below the other) get an A and a B for each,
as if they were apart: what was learned can then go to libraries where they are.

Axes: r rank, n matrices in one weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from textwright.adapting.packed import PackedLinear, Packing
from textwright.config import Config
from textwright.errors import ConfigError
from textwright.models.attention import CrossAttention, SelfAttention
from textwright.models.base import LanguageModel
from textwright.models.layers import Dropout, GatedFeedForward

FIRST = "default"  # the name of an adapter that was given none
RECURRENT = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse")


class LowRankConfig(Config):
    """Which weights learn, and how."""

    rank: int = Field(16, gt=0, description="inner width of the two thin matrices")
    alpha: float = Field(32.0, gt=0, description="α: the change is scaled by α ÷ rank")
    stabilised: bool = Field(False, description="scaled by α ÷ √rank instead (rsLoRA)")
    magnitude: bool = Field(False, description="the length of each row is learned apart from its direction (DoRA)")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what the adapter reads")
    packed: Packing | None = Field(None, description="Transformers: the base is held in so few bits (QLoRA)")
    targets: tuple[str, ...] = Field((), description="ends of names of weights, as in qkv.weight; none: all inner ones")

    @property
    def scale(self) -> float:
        """s in the formulas."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)


class LowRank(nn.Module):
    """The change of one weight (out, in).

    Args:
        weight: as it is.
        rows: how many rows each of the matrices in it has; they sum to `out`.
    """

    def __init__(self, weight: Tensor, rows: tuple[int, ...], config: LowRankConfig) -> None:
        super().__init__()
        self.rank, self.scale = config.rank, config.scale
        inputs = weight.shape[1]
        place = weight.device
        self.down = nn.Parameter(torch.empty(len(rows) * self.rank, inputs, device=place))  # A of each, stacked
        nn.init.uniform_(self.down, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(count, self.rank, device=place)) for count in rows)
        norms = weight.detach().float().norm(dim=1)
        self.magnitude = nn.Parameter(norms) if config.magnitude else None
        self.dropout = Dropout(config.dropout)

    def product(self) -> Tensor:
        """s B A, (out, in)."""
        downs = torch.split(self.down, self.rank)
        return self.scale * torch.cat([up @ down for up, down in zip(self.up, downs, strict=True)])

    def change(self, weight: Tensor) -> Tensor:
        """W' - W, (out, in)."""
        if self.magnitude is None:
            return self.product()
        weight = weight.to(self.down.dtype)
        changed = weight + self.product()
        gain: Tensor = self.magnitude / changed.detach().norm(dim=1)
        return gain[:, None] * changed - weight

    def beside(self, x: Tensor, y: Tensor, layer: nn.Linear) -> Tensor:
        """(W' - W) x for x (…, in), of which the layer made y (…, out)."""
        inner = torch.split(F.linear(self.dropout(x), self.down), self.rank, -1)
        side = torch.cat([F.linear(part, up) for part, up in zip(inner, self.up, strict=True)], -1) * self.scale
        if self.magnitude is None:
            return side
        gain: Tensor = self.magnitude / self._norm(layer.weight.detach().to(self.down.dtype))
        plain = y if layer.bias is None else y - layer.bias
        return (gain - 1) * plain + gain * side

    @torch.no_grad()
    def _norm(self, weight: Tensor) -> Tensor:
        """‖W + s B A‖ of each row, (out,), without that matrix: ‖w‖² + 2 s (W Aᵀ) · b + s² b (A Aᵀ) bᵀ."""
        with torch.autocast(weight.device.type, enabled=False):
            squares = []
            rows = torch.split(weight, [len(up) for up in self.up])
            for own, up, down in zip(rows, self.up, torch.split(self.down, self.rank), strict=True):
                crossed = ((own @ down.mT) * up).sum(1)
                among = ((up @ (down @ down.mT)) * up).sum(1)
                squares.append(own.square().sum(1) + 2 * self.scale * crossed + self.scale**2 * among)
            return torch.cat(squares).clamp(min=0).sqrt()


class Adapters(nn.Module):
    """The adapters of one weight, by name; the changes of those in `active` add up.

    Attributes:
        of: the weight's name in the model.
    """

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.named = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.hook: RemovableHandle | None = None

    def __getitem__(self, name: str) -> LowRank:
        adapter = self.named[name]
        assert isinstance(adapter, LowRank)
        return adapter

    def forward(self, weight: Tensor) -> Tensor:
        """W -> W', what torch's parametrisation asks for."""
        for change in [self[name].change(weight) for name in self.active]:
            weight = weight + change
        return weight

    def beside(self, layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """The hook of a linear layer."""
        for side in [self[name].beside(inputs[0], output, layer) for name in self.active]:
            output = output + side
        return output


def attach(model: LanguageModel, config: LowRankConfig, name: str = FIRST) -> None:
    """Put an adapter on a model; from now on it alone is active, and it alone learns.

    Raises:
        ConfigError: the name is taken, or a target names no weight that can have one.
    """
    if "." in name or not name:
        raise ConfigError(f"{name!r} is no name for an adapter: letters and digits will do")
    known = adapters(model)
    if any(name in found.named for found in known.values()):
        raise ConfigError(f"there is an adapter {name!r} already: give another name")
    every = {f"{path}.{leaf}": (module, leaf) for path, module, leaf in adaptable(model)}
    if not every:
        raise ConfigError("this model has no layers that an adapter is made for: --method full")
    for end in config.targets:
        if not any(weight.endswith(end) for weight in every):
            some = ", ".join(sorted({_family(weight) for weight in every}))
            raise ConfigError(
                f"adapter.targets: no weight that can have an adapter ends with {end!r}: there are {some}"
            )
    parents = dict(model.named_modules())
    model.requires_grad_(False)
    for weight, (module, leaf) in every.items():
        if config.targets and not weight.endswith(config.targets):
            continue
        value = getattr(module, leaf)
        own, _, place = weight.removesuffix(f".{leaf}").rpartition(".")
        adapter = LowRank(value, fused(parents[own], place, len(value)), config)
        if weight not in known:
            known[weight] = _install(module, leaf, weight)
        known[weight].named[name] = adapter.train(model.training)
    activate(model, name)


def adapters(model: nn.Module) -> dict[str, Adapters]:
    """Those of every weight that has one, by the weight's name."""
    return {module.of: module for module in model.modules() if isinstance(module, Adapters)}


def activate(model: nn.Module, *names: str) -> None:
    """Let the named adapters work, their changes added up, and no others; without names, the model is as it was.

    Raises:
        ConfigError: there is no such adapter.
    """
    found = adapters(model)
    there = {name for one in found.values() for name in one.named}
    for name in names:
        if name not in there:
            raise ConfigError(f"there is no adapter {name!r}: {', '.join(sorted(there)) or 'none is attached'}")
    for one in found.values():
        one.active = tuple(name for name in names if name in one.named)
        for own, adapter in one.named.items():
            adapter.requires_grad_(own in names)


def merge(model: nn.Module) -> None:
    """Write what the active adapters change into the weights, and take all adapters off."""
    for path, module in list(model.named_modules()):
        if not isinstance(module, Adapters):
            continue
        layer = model.get_submodule(path.removesuffix(".adapters").split(".parametrizations.")[0])
        leaf = module.of.rpartition(".")[2]
        if isinstance(layer, nn.RNNBase):
            parametrize.remove_parametrizations(layer, leaf, leave_parametrized=True)
            continue
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight.copy_(module(layer.weight))
        assert module.hook is not None
        module.hook.remove()
        del layer.adapters


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """For a while the active adapters are part of the weights of linear layers, which is faster to write with;
    afterwards these are what they were, bit by bit. Packed ones stay as they are."""
    linear = [pair for pair in _linear(model) if not isinstance(pair[0], PackedLinear)]
    every = [(module, adapter) for module, adapter in linear if adapter.active]
    before = [(module.weight.detach().clone(), adapter.active) for module, adapter in every]
    try:
        with torch.no_grad():
            for module, adapter in every:
                module.weight.copy_(adapter(module.weight))
                adapter.active = ()
        yield
    finally:
        with torch.no_grad():
            for (module, adapter), (weight, active) in zip(every, before, strict=True):
                module.weight.copy_(weight)
                adapter.active = active


def tensors(model: nn.Module, name: str = FIRST) -> dict[str, Tensor]:
    """What an adapter has learned: "WEIGHT.down", "WEIGHT.up.0" and so on, "WEIGHT.magnitude"."""
    every = {weight: found for weight, found in adapters(model).items() if name in found.named}
    return {
        f"{weight}.{leaf}": parameter.detach()
        for weight, found in every.items()
        for leaf, parameter in found[name].named_parameters()
    }


def fused(parent: nn.Module, layer: str, rows: int) -> tuple[int, ...]:
    """How many rows each of the matrices has that a layer of `parent` holds in one."""
    if isinstance(parent, SelfAttention) and layer == "qkv":
        heads, groups, each = parent.heads, parent.kv_heads, parent.head_width
        return heads * each, groups * each, groups * each
    if (isinstance(parent, CrossAttention) and layer == "kv") or (
        isinstance(parent, GatedFeedForward) and layer == "gate_up"
    ):
        return rows // 2, rows // 2
    return (rows,)


def adaptable(model: LanguageModel) -> Iterator[tuple[str, nn.Module, str]]:
    """Every weight that can have an adapter: path of its module, the module, its name there. The head is not among
    them, because losses read its weight directly."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.head:
            yield path, module, "weight"
        elif isinstance(module, nn.RNNBase):
            for leaf in RECURRENT[: 4 if module.bidirectional else 2]:
                yield path, module, leaf


def _install(module: nn.Module, leaf: str, weight: str) -> Adapters:
    found = Adapters(weight)
    if isinstance(module, nn.RNNBase):
        parametrize.register_parametrization(module, leaf, found)
    else:
        module.adapters = found
        found.hook = module.register_forward_hook(found.beside)
    return found


def _linear(model: nn.Module) -> Iterator[tuple[nn.Linear, Adapters]]:
    for weight, found in adapters(model).items():
        layer = model.get_submodule(weight.rpartition(".")[0])
        if isinstance(layer, nn.Linear):
            yield layer, found


def _family(weight: str) -> str:
    """ "blocks.3.attention.qkv.weight" -> "attention.qkv.weight"."""
    parts = weight.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else weight
