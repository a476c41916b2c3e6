"""Alternatives at a position: the likeliest tokens there, so that each of them can be written on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import torch

from textwright.decoding.engine import check_requests, checked, read, write
from textwright.decoding.largest import largest
from textwright.decoding.processors import active
from textwright.decoding.rows import BANNED, Request, begin_rows
from textwright.decoding.rules import Rules
from textwright.models.base import LanguageModel


@torch.no_grad()
def branches(
    model: LanguageModel, request: Request, end: int | None, most: int, *, banned: Sequence[int], order: Sequence[str]
) -> list[Request]:
    """The request once for each of the `most` likeliest tokens at its first free place, the likeliest first.

    The place is the one behind the prompt and behind the tokens that are forced there. What the request forbids at this
    place is no alternative, so there may be fewer.

    Raises:
        ConfigError: the request asks for what this model or this order cannot serve.
        TextwrightError: the model gave a number that is not finite.
    """
    check_requests(model, [request], order)
    forced = dict(request.steering.forced)
    place = next(place for place in count() if place not in forced)
    if place >= request.max_new_tokens:
        return [request]  # every token is forced
    rules = Rules(model.head.out_features, model.device)
    rows = rules.place(begin_rows([request], 0, model.device), [request])
    begun = [forced[place] for place in range(place)]
    for token in begun:
        rows = write(rows, torch.tensor([token], device=model.device), torch.zeros_like(rows.score), rules)
    text = [*request.prompt, *begun]
    logits, _ = read(model, [text[-(model.window or len(text)) :]], [request.source])
    logits = checked(logits)
    for process in active(rows, rules, end, banned, order):
        logits = process(logits, rows)
    values, tokens = largest(logits, min(most, logits.shape[1]))
    possible = [token for token, value in zip(tokens[0].tolist(), values[0].tolist(), strict=True) if value > BANNED]
    steerings = [replace(request.steering, forced=(*request.steering.forced, (place, token))) for token in possible]
    return [replace(request, steering=steering) for steering in steerings] or [request]  # which fails, as it does alone
