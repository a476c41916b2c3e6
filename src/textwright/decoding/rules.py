"""What a batch looks up instead of computing it: stop strings and wishes about tokens, for engine and beam alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.decoding.constraints import Constraint
from textwright.decoding.rows import BANNED, Processor, Request, Rows
from textwright.decoding.steering import SteeringTables
from textwright.decoding.stops import StopTables


class Rules:
    """The tables of one batch, and the states of its rows in them."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.stops, self.avoided = StopTables(vocab, device), StopTables(vocab, device)
        self.steering = SteeringTables(vocab, device)
        self.vocab = vocab
        self.constraints: list[Constraint | None] = [None]
        self.loops = self.surprises = False  # whether any row is watched for loops, or drawn by mirostat

    def place(self, rows: Rows, requests: Sequence[Request]) -> Rows:
        """The rows of new requests with their automata at the start."""

        def column(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=rows.lengths.device)

        self.loops |= any(request.sampling.loop_limit for request in requests)
        self.surprises |= any(request.sampling.mirostat for request in requests)
        return replace(
            rows,
            automaton=column([self.stops.start(request.stop) for request in requests]),
            avoided=column([self.avoided.start(request.avoid) for request in requests]),
            constraint=column([self._number(request.constraint) for request in requests]),
            allowed=column([request.constraint.start if request.constraint else 0 for request in requests]),
            steering=column([self.steering.number(request.steering) for request in requests]),
            steered=column([self.steering.start(request.steering, request.prompt) for request in requests]),
        )

    def move(self, rows: Rows, tokens: Tensor) -> Rows:
        """The rows with their automata after one more token (R,)."""
        moved: dict[str, Tensor] = {}
        if len(self.stops):
            # A stop string that is complete before the minimum length is forgotten: it must not end the text later.
            after = self.stops.move(rows.automaton, tokens)
            early = (rows.written < rows.limits[:, 0]) & self.stops.accepted(after)
            moved["automaton"] = torch.where(early, self.stops.begun(after), after)
        if len(self.avoided):
            moved["avoided"] = self.avoided.move(rows.avoided, tokens)
        if len(self.constraints) > 1:
            moved["allowed"] = self._moved(rows, tokens)
        if len(self.steering.moves) > 1:
            moved["steered"] = self.steering.moves[rows.steered, tokens]
        return replace(rows, **moved) if moved else rows

    def processors(self, rows: Rows) -> list[Processor]:
        """What the wishes of these rows need."""
        wanted: list[Processor] = []
        if len(self.avoided):
            wanted.append(self._avoid)
        if bool(rows.constraint.any()):
            wanted.append(self._constrain)
        if bool(rows.steering.any()):
            if bool(self.steering.tables.late.any()):
                wanted.append(self._hold_back)
            if bool(self.steering.biases.any()):
                wanted.append(self._bias)
            if bool(self.steering.tables.shares.any()):
                wanted.append(self._prefix)
            if self.steering.tables.forced.shape[1]:
                wanted.append(self._force)
        return wanted

    def _number(self, constraint: Constraint | None) -> int:
        if constraint not in self.constraints:
            self.constraints.append(constraint)
        return self.constraints.index(constraint)

    def _moved(self, rows: Rows, tokens: Tensor) -> Tensor:
        """States of the constraints after tokens (R,); of a hypothesis that has died, any."""
        columns = (rows.constraint, rows.allowed, tokens, rows.limits[:, 1] - rows.written)
        states = []
        for number, state, token, left in zip(*(column.tolist() for column in columns), strict=True):
            constraint = self.constraints[number]
            possible = constraint is not None and bool(constraint.within(state, left)[token])
            states.append(constraint.move(state, token) if constraint is not None and possible else state)
        return torch.tensor(states, device=tokens.device)

    def _constrain(self, logits: Tensor, rows: Rows) -> Tensor:
        """Forbid tokens after which the constraint could not be met within the limit."""
        left = (rows.limits[:, 1] - rows.written).tolist()
        columns = zip(rows.constraint.tolist(), rows.allowed.tolist(), left, strict=True)
        masks = [self._mask(*column) for column in columns]
        return logits.masked_fill(~torch.stack(masks).to(logits.device), BANNED)

    def _mask(self, number: int, state: int, left: int) -> Tensor:
        constraint = self.constraints[number]
        return torch.ones(self.vocab, dtype=torch.bool) if constraint is None else constraint.within(state, left)

    def _avoid(self, logits: Tensor, rows: Rows) -> Tensor:
        """Forbid tokens that would complete a string to avoid."""
        return logits.masked_fill(self.avoided.accepts(rows.avoided), BANNED)

    def _hold_back(self, logits: Tensor, rows: Rows) -> Tensor:
        """Forbid further ends until a row has its minimum of new tokens."""
        early = rows.written < rows.limits[:, 0]
        return logits.masked_fill(self.steering.tables.late[rows.steering] & early[:, None], BANNED)

    def _bias(self, logits: Tensor, rows: Rows) -> Tensor:
        return logits + self.steering.biases[rows.steered]

    def _force(self, logits: Tensor, rows: Rows) -> Tensor:
        """Forbid every token but the forced one."""
        wanted = _at(self.steering.tables.forced[rows.steering], rows.written)
        other = torch.arange(logits.shape[1], device=logits.device) != wanted[:, None]
        return logits.masked_fill(other & (wanted >= 0)[:, None], BANNED)

    def _prefix(self, logits: Tensor, rows: Rows) -> Tensor:
        """(1 - β) p + β on the prefix's next token, in logarithms; as long as what was written is the prefix."""
        prefix = self.steering.tables.prefixes[rows.steering]
        places = torch.arange(prefix.shape[1], device=logits.device)
        at = (rows.prompts[:, None] + places).clamp(max=rows.tokens.shape[1] - 1)
        followed = ((rows.tokens.gather(1, at) == prefix) | (places >= rows.written[:, None])).all(-1)
        wanted = _at(prefix, rows.written)
        share = torch.where(followed & (wanted >= 0), self.steering.tables.shares[rows.steering], 0.0)[:, None]
        given = torch.zeros_like(logits).scatter(1, wanted.clamp(min=0)[:, None], share)
        mixed = torch.logaddexp(logits.log_softmax(-1) + (1 - share).log(), given.log())
        return torch.where((share > 0) & (logits != BANNED), mixed, logits)  # what is forbidden stays so


def _at(table: Tensor, places: Tensor) -> Tensor:
    """(R,) the entry of each row of (R, n) at its place; -1 past the end."""
    return F.pad(table, (0, 1), value=-1).gather(1, places[:, None].clamp(max=table.shape[1])).squeeze(1)
