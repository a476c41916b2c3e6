"""Alternatives at a position: the likeliest tokens there, so that each of them can be written on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import torch

from textwright.decoding.combined import NEVER
from textwright.decoding.engine import check_requests, checked, read, write
from textwright.decoding.processors import active
from textwright.decoding.rows import Request, begin_rows
from textwright.decoding.rules import Rules
from textwright.errors import ConfigError
from textwright.models.base import LanguageModel


def branches(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    most: int,
    *,
    banned: Sequence[int],
    order: Sequence[str],
    rows: int,
) -> list[list[Request]]:
    """Every request once for each of the `most` likeliest tokens at its first free place, the likeliest first.

    The place is the one behind the prompt and behind the tokens that are forced there. What the request forbids at this
    place is no alternative, so there may be fewer.

    Args:
        rows: how many requests are read at once.

    Raises:
        ConfigError: a request asks for what this model or this order cannot serve, or has no free place.
        TextwrightError: the model gave a number that is not finite.
    """
    check_requests(model, requests, order)
    places = [_free(request) for request in requests]
    found: dict[int, list[Request]] = {}
    for place in dict.fromkeys(places):
        alike = [number for number, other in enumerate(places) if other == place]
        for first in range(0, len(alike), rows):
            batch = alike[first : first + rows]
            likely = _likeliest(model, [requests[number] for number in batch], end, most, place, banned, order)
            found |= {
                number: [_with(requests[number], place, token) for token in tokens]
                for number, tokens in zip(batch, likely, strict=True)
            }
    return [found[number] or [request] for number, request in enumerate(requests)]  # one without any fails as alone


@torch.no_grad()
def _likeliest(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    most: int,
    place: int,
    banned: Sequence[int],
    order: Sequence[str],
) -> list[list[int]]:
    """Of every request the tokens that may stand at this place behind its prompt, the likeliest first."""
    rules = Rules(model.head.out_features, model.device)
    rows = rules.place(begin_rows(requests, 0, model.device), requests)
    begun = [tuple(dict(request.steering.forced)[n] for n in range(place)) for request in requests]
    for column in zip(*begun, strict=True):
        rows = write(rows, torch.tensor(column, device=model.device), torch.zeros_like(rows.score), rules)
    texts = [(*request.prompt, *forced) for request, forced in zip(requests, begun, strict=True)]
    seen = [text[-(model.window or len(text)) :] for text in texts]
    logits = checked(read(model, seen, [request.source for request in requests])[0])
    for process in active(rows, rules, end, banned, order):
        logits = process(logits, rows)
    values, tokens = logits.sort(descending=True, stable=True)  # of equal ones the first, as a greedy text has it
    table = zip(values[:, :most].tolist(), tokens[:, :most].tolist(), strict=True)
    return [
        [token for value, token in zip(*row, strict=True) if value > NEVER / 2]  # neither banned nor without a chance
        for row in table
    ]


def _free(request: Request) -> int:
    """The first place behind the prompt that no token is forced at."""
    forced = dict(request.steering.forced)
    place = next(place for place in count() if place not in forced)
    if place >= request.max_new_tokens:
        raise ConfigError(
            f"no place is left for alternatives: the {place} tokens of the prefix are all that a text may have; allow "
            f"more of them (max_new_tokens {place + 1})"
        )
    return place


def _with(request: Request, place: int, token: int) -> Request:
    """The request with this token at this place."""
    steering = replace(request.steering, forced=(*request.steering.forced, (place, token)))
    return replace(request, steering=steering)
