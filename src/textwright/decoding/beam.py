"""Beam search over groups of rows (Graves 2012; Sutskever et al. 2014), on any model.

A request owns `beams` rows. They share every processor with sampling, and stop strings travel with them, because both
live in `Rows` and one `select` reorders the search and the model's state alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from textwright.config import Config
from textwright.decoding.engine import Result, check_window, checked, finished, read, write
from textwright.decoding.processors import active
from textwright.decoding.rows import Request, begin_rows
from textwright.decoding.stops import StopTables
from textwright.errors import TextwrightError
from textwright.models.base import LanguageModel

NEVER = float("-inf")
BLOCK = 64  # values of which the maximum is found first


class Beam(Config):
    """How a search goes.

    Attributes:
        beams: hypotheses kept a request.
        length_penalty: α; hypotheses are ranked by log-probability ÷ length^α.
        stopping: "exact" goes on until no running hypothesis can enter the best, whatever it may still become; "soon"
            until none would at its present length, which is what translation systems do: several times faster, and
            with α = 0 the same.
    """

    beams: int = Field(4, ge=1)
    length_penalty: float = Field(1.0, ge=0)
    stopping: Literal["exact", "soon"] = "exact"


@dataclass
class Pool:
    """The best finished hypotheses of one request, at most `beam.beams`; none is longer than `longest` tokens."""

    beam: Beam
    longest: int
    results: list[tuple[float, Result]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        ranked = result.logprob / len(result.tokens) ** self.beam.length_penalty
        self.results = sorted([*self.results, (ranked, result)], key=lambda pair: -pair[0])[: self.beam.beams]

    def takes(self, logprob: float, length: int) -> bool:
        """A hypothesis of this log-probability and length would enter."""
        full = len(self.results) == self.beam.beams
        return not full or logprob / length**self.beam.length_penalty > self.results[-1][0]

    def best(self) -> list[Result]:
        """The finished texts, best first."""
        if not self.results:
            raise TextwrightError("every token is banned for at least one text: lower no_repeat_ngram or the minimum")
        return [result for _, result in self.results]

    def closed(self, best_running: float, written: int) -> bool:
        """No running hypothesis enters any more: not even if all its further tokens were certain, or ("soon") not as
        it stands, with `written` tokens and one more to end it."""
        length = self.longest if self.beam.stopping == "exact" else written + 1
        return not self.takes(best_running, length)


@torch.no_grad()
def beam_search(
    model: LanguageModel, requests: Sequence[Request], end: int | None, beam: Beam, *, banned: Sequence[int] = ()
) -> list[list[Result]]:
    """The `beam.beams` best texts of every request, best first.

    Scores are those of the processed distribution, so with every switch of `Sampling` off the search maximises the
    model's own log-probability; a search at least as wide as the number of texts is exhaustive.

    Raises:
        ConfigError: prompt and new tokens do not fit the model's window, which a beam cannot slide.
    """
    check_window(model, requests, "beam search")
    search = _Search(model, requests, end, beam, banned)
    logits, state = read(model, [request.prompt for request in requests], [request.source for request in requests])
    state, logits = state.select(search.owners), logits[search.owners]
    while True:
        parents = search.expand(logits)
        places = search.open_places()
        if not len(places):
            return [pool.best() for pool in search.pools]
        search.rows = search.rows.select(places)
        newest = search.rows.tokens.gather(1, search.rows.lengths[:, None] - 1)
        output = model(newest, state=state.select(parents[places]))
        state, logits = output.after, checked(output.logits[:, 0].float())


class _Search:
    """The rows of all open groups, and a pool of finished hypotheses for every request."""

    def __init__(
        self, model: LanguageModel, requests: Sequence[Request], end: int | None, beam: Beam, banned: Sequence[int]
    ) -> None:
        self.end, self.group = end, beam.beams
        self.pools = [Pool(beam, request.max_new_tokens) for request in requests]
        self.vocab = model.head.weight.shape[0]
        self.stops = StopTables(self.vocab, model.device)
        self.owners = torch.arange(len(requests), device=model.device).repeat_interleave(self.group)
        rows = begin_rows(requests, 0, model.device)
        starts = torch.tensor([self.stops.start(request.stop) for request in requests]).to(rows.lengths)
        self.rows = replace(rows, automaton=starts).select(self.owners)
        self.rows.score.view(-1, self.group)[:, 1:] = NEVER  # the beams begin alike: only the first one branches
        self.processors = active(self.rows, end, banned)
        self.stopped = any(request.stop is not None for request in requests)

    def expand(self, logits: Tensor) -> Tensor:
        """Grow every group by one token; gives the row that each new row came from.

        Children that end the text and children that go on are ranked apart: neither crowds the other out.
        """
        for process in self.processors:
            logits = process(logits, self.rows)
        logprobs = logits.log_softmax(-1)
        several = self._ends()
        if several is not None:
            self._harvest(*self._best(logprobs.masked_fill(~several, NEVER)))
            logprobs.masked_fill_(several, NEVER)
        elif self.end is not None:
            self._harvest(*self._best(logprobs[:, self.end : self.end + 1], self.end))
            logprobs[:, self.end] = NEVER
        best, parents, tokens = self._best(logprobs)
        survivors = write(self.rows.select(parents), tokens, torch.zeros_like(best), self.stops)
        self.rows = replace(survivors, score=best)
        return parents

    def _ends(self) -> Tensor | None:
        """(rows, vocab) bool: the text ends with this token; None where none does but `end`, as at most steps."""
        rows = self.rows
        last = rows.written + 1 >= rows.limits[:, 1]
        if not self.stopped and not bool(last.any()):
            return None
        ends = last[:, None].repeat(1, self.vocab)
        if self.stopped:
            ends |= self.stops.accepts(rows.automaton) & (rows.written >= rows.limits[:, 0])[:, None]
        if self.end is not None:
            ends[:, self.end] = True
        return ends

    def _best(self, logprobs: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """The best `group` children of every group, from log-probabilities (rows, n) of the tokens `first`, `first` + 1
        and so on: score, parent row and token.

        Only the best `group` children of a row can be among them, so the rest is never added up.
        """
        likely, places = largest(logprobs, min(self.group, logprobs.shape[1]))
        # A row whose every token is banned has no distribution (nan): it dies out.
        likely, tokens = likely.nan_to_num(nan=NEVER, neginf=NEVER), places + first
        scores = (self.rows.score[:, None] + likely).view(-1, self.group * likely.shape[1])
        best, places = scores.topk(self.group, -1)
        base = torch.arange(len(best), device=best.device)[:, None] * self.group
        parents = (places // likely.shape[1] + base).flatten()
        return best.flatten(), parents, tokens[parents, (places % likely.shape[1]).flatten()]

    def _harvest(self, best: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Put the best children that end here into their pools, if they are good enough."""
        places = self.rows.request[parents].tolist()
        lengths = (self.rows.written[parents] + 1).tolist()
        offers = zip(best.tolist(), places, lengths, strict=True)
        good = [score > NEVER and self.pools[place].takes(score, length) for score, place, length in offers]
        if not any(good):
            return
        kept = torch.tensor(good, device=best.device).nonzero().squeeze(1)
        best, parents, tokens = best[kept], parents[kept], tokens[kept]
        children = write(self.rows.select(parents), tokens, torch.zeros_like(best), self.stops)
        reasons = finished(children, tokens, self.end, self.stops)
        for place, (reason, score) in enumerate(zip(reasons, best.tolist(), strict=True)):
            start, stop = int(children.prompts[place]), int(children.lengths[place])
            text = tuple(children.tokens[place, start:stop].tolist())
            assert reason is not None
            self.pools[int(children.request[place])].add(Result(text, score, reason))

    def open_places(self) -> Tensor:
        """Rows of the groups whose pool may still change."""
        best = self.rows.score.view(-1, self.group).amax(-1).tolist()
        firsts = self.rows.request[:: self.group].tolist(), self.rows.written[:: self.group].tolist()
        groups = zip(best, *firsts, strict=True)
        still = [score > NEVER and not self.pools[place].closed(score, written) for score, place, written in groups]
        return torch.tensor(still, device=self.rows.tokens.device).repeat_interleave(self.group).nonzero().squeeze(1)


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`values.topk(count)` of (rows, n), several times faster on a CPU for long rows.

    The largest values lie in the blocks whose maxima are the largest: the others are looked at once, for their maximum.
    """
    rows, width = values.shape
    blocks = width // BLOCK
    if blocks <= 2 * count:
        return values.topk(count, -1)
    chosen = values[:, : blocks * BLOCK].view(rows, blocks, BLOCK).amax(-1).topk(count, -1).indices
    inside = torch.arange(BLOCK, device=values.device)
    rest = torch.arange(blocks * BLOCK, width, device=values.device).expand(rows, -1)
    columns = torch.cat([(chosen[:, :, None] * BLOCK + inside).flatten(1), rest], 1)
    best, places = values.gather(1, columns).topk(count, -1)
    return best, columns.gather(1, places)
