"""Dynamic evaluation: the model goes on learning from the text it is measured on, after each part has been scored.

    w <- w - η clip(∂L(part)/∂w) + λ (w_0 - w)        Krause et al. 2018, with plain SGD and its decay

L is the mean loss of a part, w_0 the trained weights. Every token is predicted before anything is learned from it.
η and λ are chosen on the validation text. Like the continuous cache this is a property of the measurement, and it is
named in the result.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product, takewhile
from typing import NamedTuple

import torch
from torch import nn

from textwright.errors import ConfigError
from textwright.evaluating.perplexity import Panel, head, panel_of
from textwright.models.base import LanguageModel, renewed
from textwright.progress import Told, untold
from textwright.text.batching import Cursor, Streams
from textwright.text.corpus import Corpus
from textwright.training.gradients import clip
from textwright.training.objective import Objective

PART = 64  # tokens that are scored and then learned from
LIMIT = 1.0  # largest norm of a gradient
RATES = (0.02, 0.05, 0.1, 0.2, 0.4)
DECAYS = (0.0, 0.003)
TRIALS = len(RATES) * len(DECAYS)
TRIAL = 20_000  # tokens of the validation text that η and λ are tried on


class DynamicSettings(NamedTuple):
    """η and λ."""

    rate: float
    decay: float


def dynamic_panel(
    model: LanguageModel, corpus: Corpus, first: int, settings: DynamicSettings, progress: Told = untold
) -> Panel:
    """As `perplexity.panel`, with a copy of the model that learns on.

    Raises:
        ConfigError: the model carries no state.
    """
    total, tokens = dynamic_loss(model, corpus, first, settings, progress)
    context = f"carried state, 1 row, dynamic evaluation in parts of {PART} (η {settings.rate:g}, λ {settings.decay:g})"
    return panel_of(total, tokens, context, corpus.facts)


def choose_dynamic(model: LanguageModel, corpus: Corpus, first: int, progress: Told = untold) -> DynamicSettings:
    """The best η and λ of a grid on the beginning of a validation text, which is read `TRIALS` times.

    Raises:
        ConfigError: the model carries no state.
    """
    part = head(corpus, TRIAL)
    settings = [DynamicSettings(*pair) for pair in product(RATES, DECAYS)]
    return min(settings, key=lambda one: dynamic_loss(model, part, first, one, progress)[0])


def dynamic_loss(
    model: LanguageModel, corpus: Corpus, first: int, settings: DynamicSettings, progress: Told = untold
) -> tuple[float, int]:
    """Summed loss in nats and the number of targets; the model itself stays as it is."""
    if model.window is not None:
        raise ConfigError("dynamic evaluation is for models that carry their state: rnn, gru, lstm")
    learner = deepcopy(model).requires_grad_()
    objective, total, tokens, state = Objective(learner).eval(), 0.0, 0, None
    for layer in learner.modules():
        if isinstance(layer, nn.RNNBase):
            layer.train()  # cuDNN keeps what a gradient needs only so; these layers drop nothing
    weights = list(learner.parameters())
    trained = [weight.detach().clone() for weight in weights]
    streams = Streams(corpus, 1, PART, first, None)
    for batch, _ in takewhile(lambda item: item[1].epoch == 0, streams.batches(Cursor())):
        batch = batch.to(model.device)
        assert batch.fresh is not None
        losses = objective(batch, renewed(learner, state, batch.fresh))
        total, tokens = total + float(losses.plain), tokens + batch.count
        progress(batch.count)
        assert losses.after is not None
        state = losses.after.detach()
        learner.zero_grad(set_to_none=True)
        (losses.loss / batch.count).backward()
        clip(learner, LIMIT)
        with torch.no_grad():
            for weight, origin in zip(weights, trained, strict=True):
                if weight.grad is not None:
                    weight.sub_(weight.grad, alpha=settings.rate)
                if settings.decay:
                    weight.lerp_(origin, settings.decay)
    return total, tokens
