"""Several readings of a text that choose its next token together: each is a model of the contract itself, so every
strategy, option and check works on it as on any other."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from textwright.errors import ConfigError
from textwright.models.base import Hidden, LanguageModel, Output, Source
from textwright.models.encdec import TransformerEncoderDecoder
from textwright.models.state import State
from textwright.models.transformer import TransformerLM

NEVER = -1e9  # a logit without a chance that is still a finite number


@dataclass(frozen=True)
class Joint(State):
    """What several models remember of the same rows."""

    parts: tuple[State, ...]

    @property
    def has_places(self) -> bool:
        return all(part.has_places for part in self.parts)

    def truncate(self, lengths: Tensor) -> Joint:
        return Joint(tuple(part.truncate(lengths) for part in self.parts))


class Wrapped(LanguageModel):
    """Base of models made of models: shape and head are the first one's, logits are its own."""

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        first = models[0]
        self.config, self.embed, self.head = first.config, first.embed, first.head
        windows = [model.window for model in models if model.window is not None]
        self.window = min(windows) if windows else None
        self.slides = all(model.slides for model in models)
        self.has_source = first.has_source

    def hidden(
        self, tokens: Tensor, lengths: Tensor | None, state: State | None, source: Source | None
    ) -> tuple[Hidden, State | None]:
        raise ConfigError("models that choose together have no hidden states in common: use another strategy")

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output: ...


class Ensemble(Wrapped):
    """Models with one vocabulary that vote.

    Args:
        models: the first one's shape counts; those that read no source are not given it.
        weights: of the votes, positive or (for a model to be avoided) negative.
        average: "probabilities": log Σ w p, for weights that are a distribution (an ensemble); "logarithms":
            Σ w log p (a product of experts; with weights 1 and λ, shallow fusion: Gulcehre et al. 2015, eq. 7).

    Raises:
        ConfigError: different vocabularies, or weights that do not fit.
    """

    def __init__(
        self, models: Sequence[LanguageModel], weights: Sequence[float] = (), average: str = "probabilities"
    ) -> None:
        super().__init__(models)
        weights = weights or [1 / len(models)] * len(models)
        sizes = {model.head.out_features for model in models}
        if len(sizes) > 1:
            raise ConfigError(f"models that vote need one vocabulary, got {', '.join(map(str, sorted(sizes)))} tokens")
        if len(weights) != len(models):
            raise ConfigError(f"expected a weight for each of {len(models)} models, got {len(weights)}")
        if not all(map(math.isfinite, weights)):
            raise ConfigError(f"a vote is a number, got {', '.join(f'{weight:g}' for weight in weights)}")
        if average == "probabilities" and (min(weights) < 0 or abs(sum(weights) - 1) > 1e-6):
            shown = ", ".join(f"{weight:g}" for weight in weights)
            raise ConfigError(
                f"votes must be positive and sum to 1, got {shown}, where the first model has what the others leave: "
                "give those less than 1 together"
            )
        self.weights, self.average = tuple(weights), average

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> Joint:
        return Joint(tuple(model.begin(rows, _for(model, source), capacity=capacity) for model in self._models()))

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output:
        assert state is None or isinstance(state, Joint)
        parts: Sequence[State | None] = [None] * len(self.models) if state is None else state.spend().parts
        outputs = [
            model(tokens, lengths, part, source=None if part is not None else _for(model, source), last_only=last_only)
            for model, part in zip(self._models(), parts, strict=True)
        ]
        logprobs = torch.stack([output.logits.float().log_softmax(-1) for output in outputs])
        weights = torch.tensor(self.weights, device=self.device).view(-1, 1, 1, 1)
        mixed = (
            (logprobs + weights.log()).logsumexp(0) if self.average == "probabilities" else (weights * logprobs).sum(0)
        )
        return Output(mixed, None if state is None else Joint(tuple(output.after for output in outputs)))

    def _models(self) -> list[LanguageModel]:
        return list(self.models)  # type: ignore[arg-type]


def _for(model: LanguageModel, source: Source | None) -> Source | None:
    return source if model.has_source else None


class Unaided(Wrapped):
    """A model with a source that does not read the neighbours behind it: so it can vote with one that does.

    Args:
        model: an encoder-decoder, or several of them.
        end: the id that a source itself ends with.
    """

    def __init__(self, model: LanguageModel, end: int) -> None:
        super().__init__([model])
        self.model, self.end = model, end

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> State:
        return self.model.begin(rows, self._own(source), capacity=capacity)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output:
        output: Output = self.model(tokens, lengths, state, source=self._own(source), last_only=last_only)
        return output

    def _own(self, source: Source | None) -> Source | None:
        if source is None:
            return None
        own = (source.values == self.end).int().argmax(1) + 1
        values = source.values[:, : int(own.max())]
        place = torch.arange(values.shape[1], device=values.device)
        # Behind a short source there may be ids of neighbours that the model has no embedding for.
        return Source(values.masked_fill(place >= own[:, None], self.end), own)


@dataclass(frozen=True)
class GuidedState(Joint):
    """Both streams, and how many tokens (R,) of the prompt the second one still lets pass."""

    skip: Tensor

    @property
    def has_places(self) -> bool:
        return False  # the streams hold different numbers of tokens


class Guided(Wrapped):
    """Classifier-free guidance (Sanchez et al. 2023, "Stay on topic", eq. 7): what the prompt, or the source, changes
    is exaggerated: log p(without) + γ (log p(with) - log p(without)).

    Args:
        model: any model of the contract.
        scale: γ; 1 changes nothing.
        prompt: tokens of the prompts that the unguided stream does not read, all but their last one; 0 for a model
            with a source, which differs by its source instead.
        negative: ids the unguided stream reads in place of the prompt, or of the source, which it needs.
    """

    def __init__(self, model: LanguageModel, scale: float, *, prompt: int = 0, negative: Sequence[int] = ()) -> None:
        super().__init__([model])
        self.model, self.scale, self.prompt, self.negative = model, scale, prompt, tuple(negative)
        self.slides = False  # read again, a text would no longer begin with its prompt
        if not math.isfinite(scale):
            raise ConfigError(f"guidance is a number, got {scale}: --guidance 1.5")
        if model.has_source and not negative:
            raise ConfigError("guidance of a model with a source needs a source to lead away from")
        if self.window is not None and not model.has_source:
            self.window -= max(0, len(self.negative) - prompt)
            if self.window < prompt:
                raise ConfigError(
                    f"the prompt has {prompt} tokens, the negative one {len(negative)}, and the model sees "
                    f"{model.window}: shorten them, or leave out guidance"
                )

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> GuidedState:
        device = self.device
        negative = torch.tensor(self.negative, dtype=torch.long, device=device).expand(rows, -1)
        if source is not None:
            lengths = torch.full((rows,), negative.shape[1], device=device)
            other = self.model.begin(rows, Source(negative, lengths))
        else:
            other = self.model.begin(rows)
            if negative.shape[1] > 1:  # its last token is read when the prompt's last one is
                other = self.model(negative[:, :-1], state=other, last_only=True).after
        skip = torch.full((rows,), max(self.prompt - 1, 0), device=device)
        return GuidedState((self.model.begin(rows, source, capacity=capacity), other), skip)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output:
        if state is None:
            state, keeps = self.begin(len(tokens), source), False
        else:
            keeps = True
        assert isinstance(state, GuidedState)
        guided, plain = state.spend().parts
        lengths = torch.full_like(tokens[:, 0], tokens.shape[1]) if lengths is None else lengths
        drop = torch.minimum(state.skip.clamp(min=0), lengths)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        late = tokens.gather(1, (place + drop[:, None]).clamp(max=tokens.shape[1] - 1))
        if self.negative and not self.model.has_source:
            # The first token the second stream reads closes its own prompt.
            opens = (state.skip < lengths) & (state.skip >= 0)
            first = torch.where(opens, self.negative[-1], late[:, 0])
            late = torch.cat([first[:, None], late[:, 1:]], 1)
        used = lengths - drop
        here = self.model(tokens, lengths, guided, last_only=last_only)
        there = self.model(late, used, plain, last_only=last_only)
        with_, without = here.logits.float().log_softmax(-1), there.logits.float().log_softmax(-1)
        if last_only:
            known = (used > 0)[:, None]
        else:
            known = place >= drop[:, None]
            at = (place - drop[:, None]).clamp(min=0)[:, :, None].expand_as(without)
            without = without.gather(1, at)
        mixed = torch.where(known[..., None], without + self.scale * (with_ - without), with_)
        # -1: the second stream has opened, and lets nothing pass any more.
        skip = torch.where((lengths > state.skip) & bool(self.negative), -1, state.skip - drop)
        after = GuidedState((here.after, there.after), skip)
        return Output(mixed, after if keeps else None)


class Dola(Wrapped):
    """Decoding by contrasting layers (Chuang et al. 2024, "DoLa", eq. 3 to 6): what the last layer knows and an earlier
    one does not yet. The earlier one is chosen for every token: the one whose distribution is farthest away.

    Args:
        model: a Transformer, with a source or without; other families have no stack that one head reads.
        layers: numbers of the blocks that may be contrasted, from 0; none: all but the last.
        share: tokens less likely than this share of the likeliest are banned (eq. 4).

    Raises:
        ConfigError: another family, or layers there are not.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int] = (), share: float = 0.1) -> None:
        super().__init__([model])
        if not isinstance(model, TransformerLM | TransformerEncoderDecoder) or model.config.layers < 2:
            raise ConfigError("DoLa contrasts the layers of a Transformer of at least two: use another strategy")
        if isinstance(model, TransformerEncoderDecoder) and model.pointer is not None:
            raise ConfigError("DoLa cannot contrast a model that copies: use another strategy")
        last = model.config.layers - 1
        if any(not 0 <= layer < last for layer in layers):
            raise ConfigError(f"expected layers from 0 to {last - 1}, got {', '.join(map(str, layers))}")
        if not 0 < share < 1:
            raise ConfigError(f"expected a share between 0 and 1, got {share}")
        self.model, self.layers, self.share = model, tuple(layers) or tuple(range(last)), share

    def begin(self, rows: int, source: Source | None = None, *, capacity: int | None = None) -> State:
        return self.model.begin(rows, source, capacity=capacity)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        state: State | None = None,
        *,
        source: Source | None = None,
        last_only: bool = False,
    ) -> Output:
        seen: dict[int, Tensor] = {}

        def watch(layer: int) -> Any:
            return lambda module, inputs, output: seen.__setitem__(layer, output)

        hooks = [self.model.blocks[layer].register_forward_hook(watch(layer)) for layer in self.layers]
        try:
            hidden, after = self.model.hidden(tokens, lengths, state, source)
        finally:
            for hook in hooks:
                hook.remove()
        kept = [Hidden(self.model.norm(seen[layer])) for layer in self.layers]
        if last_only:
            hidden, kept = hidden.last(lengths), [early.last(lengths) for early in kept]
        mature = self.model.logits(hidden).float().log_softmax(-1)
        early = torch.stack([self.model.logits(part).float().log_softmax(-1) for part in kept])
        chosen = _divergence(mature, early).argmax(0)
        contrast = mature - early.gather(0, chosen[None, ..., None].expand_as(early[:1]))[0]
        likely = mature >= mature.amax(-1, keepdim=True) + torch.log(torch.tensor(self.share))
        return Output(contrast.masked_fill(~likely, NEVER), after)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions (layers, rows, time) from p, given in logarithms."""
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2
