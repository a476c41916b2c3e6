"""Beam search over groups of rows (Graves 2012; Sutskever et al. 2014), on any model.

A request owns `beams` rows. They share every processor with sampling, and stop strings travel with them, because both
live in `Rows` and one `select` reorders the search and the model's state alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from textwright.config import Config
from textwright.decoding.engine import Result, check_requests, check_window, checked, finished, read, refuse, write
from textwright.decoding.largest import largest
from textwright.decoding.processors import ORDER, active
from textwright.decoding.rows import Request, Rows, begin_rows
from textwright.decoding.rules import Rules
from textwright.errors import ConfigError, TextwrightError
from textwright.models.base import EncoderDecoder, LanguageModel, Source
from textwright.models.state import State
from textwright.noise import mix, uniform

NEVER = float("-inf")
LUCK = 0x4C75636B  # a drawn beam's noise is not the noise tokens are drawn with


class Beam(Config):
    """How a search goes.

    Attributes:
        beams: hypotheses kept a request.
        length_penalty: α of the norm by which log-probabilities are divided before they are ranked.
        length_norm: "average": length^α; "gnmt": ((5 + length) / 6)^α (Wu et al. 2016, eq. 14).
        stopping: "exact" goes on until no running hypothesis can enter the best, whatever it may still become; "soon"
            until none would at its present length, which is what translation systems do: several times faster, and
            with α = 0 the same; "first" until enough hypotheses have ended, where they compete with the running ones.
        patience: with "first", enough are so many times the beams (Kasai et al. 2024).
        coverage: β; adds β Σ_i log min(Σ_t a_ti, 1) to a finished text's rank, a_ti being what the model looked at
            (Wu et al. 2016, eq. 14): a source that was not read to its end loses.
        groups: parts of the beam that are searched one after the other (Vijayakumar et al. 2018, alg. 1).
        diversity: λ; what a token loses for every time an earlier group has just chosen it.
        siblings: γ; the n-th best child of a hypothesis loses n γ (Li et al. 2016, eq. 6).
        draw: choose at random instead of the best: stochastic beam search, which draws different texts without
            replacement, each step by the model's probabilities (Kool et al. 2019, alg. 1).
    """

    beams: int = Field(4, ge=1)
    length_penalty: float = Field(1.0, ge=0)
    length_norm: Literal["average", "gnmt"] = "average"
    stopping: Literal["exact", "soon", "first"] = "exact"
    patience: float = Field(1.0, gt=0)
    coverage: float = Field(0.0, ge=0)
    groups: int = Field(1, ge=1)
    diversity: float = Field(0.0, ge=0)
    siblings: float = Field(0.0, ge=0)
    draw: bool = False

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.beams % self.groups:
            raise ValueError(f"{self.beams} beams cannot be parted into {self.groups} equal groups")
        if (self.groups > 1) != (self.diversity > 0):
            raise ValueError("groups need a diversity, or they are all the same, and diversity needs groups")
        if self.patience != 1 and self.stopping != "first":
            raise ValueError(f"patience belongs to stopping first, not to {self.stopping}")
        if self.draw and (self.groups > 1 or self.siblings or self.coverage or self.stopping == "first"):
            raise ValueError("a drawn beam ranks by chance: leave out groups, siblings, coverage and stopping first")
        return self

    def divisor(self, length: int) -> float:
        """What a log-probability of so many tokens is divided by."""
        return float(((5 + length) / 6 if self.length_norm == "gnmt" else length) ** self.length_penalty)


@dataclass
class Pool:
    """The best finished hypotheses of one request, at most `beam.beams`; none is longer than `longest` tokens."""

    beam: Beam
    longest: int
    results: list[tuple[float, Result]] = field(default_factory=list)
    ended: int = 0

    def rank(self, score: float, length: int) -> float:
        """A drawn text is ranked by its perturbed log-probability as it stands."""
        return score if self.beam.draw else score / self.beam.divisor(length)

    def add(self, result: Result, rank: float) -> None:
        self.ended += 1
        self.results = sorted([*self.results, (rank, result)], key=lambda pair: -pair[0])[: self.beam.beams]

    def takes(self, rank: float) -> bool:
        """A hypothesis of this rank would enter."""
        return len(self.results) < self.beam.beams or rank > self.results[-1][0]

    def best(self) -> list[Result]:
        """The finished texts, best first."""
        if not self.results:
            raise TextwrightError("every token is banned for at least one text: lower no_repeat_ngram or the minimum")
        return [result for _, result in self.results]

    def closed(self, best_running: float, written: int) -> bool:
        """No running hypothesis enters any more: not even if all its further tokens were certain, or ("soon") not as
        it stands, with `written` tokens and one more to end it; or ("first") enough have ended."""
        if self.beam.stopping == "first":
            return self.ended >= self.beam.beams * self.beam.patience
        length = self.longest if self.beam.stopping == "exact" else written + 1
        return not self.takes(self.rank(best_running, length))


@dataclass(frozen=True)
class Searched(State):
    """The rows, and (R,) float64 what each is chosen by: its log-probability, or for a drawn beam that and its luck."""

    rows: Rows
    ranks: Tensor


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    requests: Sequence[Request],
    end: int | None,
    beam: Beam,
    *,
    banned: Sequence[int] = (),
    order: Sequence[str] = ORDER,
) -> list[list[Result]]:
    """The `beam.beams` best texts of every request, best first.

    Scores are those of the processed distribution, so with every switch of `Sampling` off the search maximises the
    model's own log-probability; a search at least as wide as the number of texts is exhaustive.

    Raises:
        ConfigError: prompt and new tokens do not fit the model's window, which a beam cannot slide; or a request asks
            for what a search does not do.
    """
    check_requests(model, requests, order)
    _check(requests)
    if beam.coverage and not isinstance(model, EncoderDecoder):
        raise ConfigError("coverage is of a source, and this model reads none: leave it out")
    check_window(model, requests, "beam search")
    search = _Search(model, requests, end, beam, banned, order)
    logits, state = read(model, [request.prompt for request in requests], [request.source for request in requests])
    state, logits = state.select(search.owners), logits[search.owners]
    while True:
        parents = search.expand(logits)
        places = search.open_places()
        if not len(places):
            return [pool.best() for pool in search.pools]
        search.now = search.now.select(places)
        rows = search.now.rows
        newest = rows.tokens.gather(1, rows.lengths[:, None] - 1)
        output = model(newest, state=state.select(parents[places]))
        state, logits = output.after, checked(output.logits[:, 0].float())


def _check(requests: Sequence[Request]) -> None:
    """Raise ConfigError for what a search would ignore."""
    refuse(requests, "beam search", ("xtc_probability", "mirostat", "loop_limit", "top_logprobs", "max_seconds"))
    if any(request.sampling.temperature == 0 for request in requests):
        raise ConfigError("beam search ranks by probability, which temperature 0 has none of: leave it at 1")


class _Search:
    """The rows of all open requests, and a pool of finished hypotheses for each of them."""

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        end: int | None,
        beam: Beam,
        banned: Sequence[int],
        order: Sequence[str],
    ) -> None:
        self.model, self.end, self.beam = model, end, beam
        self.pools = [Pool(beam, request.max_new_tokens) for request in requests]
        self.vocab = model.head.out_features
        self.rules = Rules(self.vocab, model.device)
        self.owners = torch.arange(len(requests), device=model.device).repeat_interleave(beam.beams)
        rows = self.rules.place(begin_rows(requests, 0, model.device), requests).select(self.owners)
        # The beams of a group begin alike: only the first one branches.
        first = torch.arange(len(rows.score), device=model.device) % (beam.beams // beam.groups) == 0
        rows = replace(rows, score=torch.where(first, 0.0, NEVER).double())
        self.now = Searched(rows, rows.score)
        self.processors = active(rows, self.rules, end, banned, order)
        self.stopped = any(request.stop is not None for request in requests)

    def expand(self, logits: Tensor) -> Tensor:
        """Grow every request's beam by one token; gives the row that each new row came from.

        Children that end the text and children that go on are ranked apart: neither crowds the other out.
        """
        for process in self.processors:
            logits = process(logits, self.now.rows)
        logprobs = logits.log_softmax(-1)
        gains = self._luck(logprobs) if self.beam.draw else logprobs
        several = self._ends()
        size = self.beam.beams // self.beam.groups
        grown: list[Children] = []
        chosen = torch.zeros(len(logits) // self.beam.beams, self.vocab, device=logits.device)
        for group in range(self.beam.groups):
            # Rows of this group: of every request, `size` neighbours.
            rows = torch.arange(len(logits), device=logits.device).view(-1, self.beam.groups, size)[:, group].flatten()
            offered, likely = (gains, logprobs) if self.beam.groups == 1 else (gains[rows], logprobs[rows])
            if group:
                offered = offered - self.beam.diversity * chosen.repeat_interleave(size, 0)
            ended, going = self._grow(rows, offered, likely, None if several is None else several[rows], size)
            self._harvest(ended, going)
            grown.append(going)
            if group + 1 < self.beam.groups:
                chosen += _chosen(ended, going, size, self.vocab)
        parents, tokens, ranks, scores = (_interleaved(leaves, size) for leaves in zip(*grown, strict=True))
        written = write(self.now.rows.select(parents), tokens, torch.zeros_like(ranks), self.rules)
        self.now = Searched(replace(written, score=scores), ranks)
        return parents

    def _grow(
        self, rows: Tensor, gains: Tensor, logprobs: Tensor, ends: Tensor | None, size: int
    ) -> tuple[Children | None, Children]:
        """The best children of some rows that end the text, and those that go on."""
        if ends is not None:
            ended = self._best(rows, gains.masked_fill(~ends, NEVER), logprobs, size)
            return ended, self._best(rows, gains.masked_fill(ends, NEVER), logprobs, size)
        if self.end is None:
            return None, self._best(rows, gains, logprobs, size)
        column = slice(self.end, self.end + 1)
        ended = self._best(rows, gains[:, column], logprobs[:, column], size, self.end)
        gains = gains.index_fill(1, torch.tensor([self.end], device=gains.device), NEVER)
        return ended, self._best(rows, gains, logprobs, size)

    def _best(self, rows: Tensor, gains: Tensor, logprobs: Tensor, size: int, first: int = 0) -> Children:
        """The best `size` children of every `size` neighbours among the given rows (n,), whose `gains` and `logprobs`
        (n, m) are those of the tokens `first`, `first` + 1 and so on.

        Only the best `size` children of a row can be among them, so the rest is never added up.
        """
        gained, places = largest(gains, min(size, gains.shape[1]))
        # A row whose every token is banned has no distribution (nan): it dies out.
        gained = gained.nan_to_num(nan=NEVER, neginf=NEVER).double()
        width = gained.shape[1]
        if self.beam.siblings:
            gained = gained - self.beam.siblings * torch.arange(width, device=gains.device)
        best, picks = (self.now.ranks[rows][:, None] + gained).view(-1, size * width).topk(size, -1)
        row = (picks // width + torch.arange(len(best), device=best.device)[:, None] * size).flatten()
        token = places[row, (picks % width).flatten()]
        alive, parents = best.flatten() > NEVER, rows[row]
        # Diversity and siblings decide who is chosen here, and are forgotten.
        ranks = self.now.ranks[parents] + (gains if self.beam.draw else logprobs)[row, token].double()
        scores = self.now.rows.score[parents] + logprobs[row, token].double()
        return Children(parents, token + first, torch.where(alive, ranks, NEVER), torch.where(alive, scores, NEVER))

    def _luck(self, logprobs: Tensor) -> Tensor:
        """(rows, vocab): what a drawn beam adds to a row's rank: Gumbel noise on the children's log-probabilities,
        shifted so that the largest child is as large as its parent (Kool et al. 2019, alg. 1, appendix B.3)."""
        rows = self.now.rows
        tokens = torch.arange(self.vocab, device=logprobs.device)
        # The noise belongs to the request and to the text so far, whose hash the beams of a request differ by.
        noise = uniform(mix(rows.seed + LUCK + _hashed(rows))[:, None], tokens).clamp(min=1e-12)
        perturbed = rows.score[:, None] + logprobs.double() - (-noise.log()).log()
        highest = perturbed.amax(-1, keepdim=True)
        # The first row of a search has no luck yet: its children keep theirs.
        parent = torch.where(rows.written[:, None] == 0, highest, self.now.ranks[:, None])
        v = parent - perturbed + torch.log1p(-(perturbed - highest).exp())
        moved = parent - v.clamp(min=0) - torch.log1p((-v.abs()).exp())
        moved = torch.where(perturbed == highest, parent, moved)
        return (moved - self.now.ranks[:, None]).masked_fill(logprobs == NEVER, NEVER)

    def _ends(self) -> Tensor | None:
        """(rows, vocab) bool: the text ends with this token; None where none does but `end`, as at most steps."""
        rows = self.now.rows
        last = rows.written + 1 >= rows.limits[:, 1]
        if not self.stopped and not bool(last.any()):
            return None
        ends = last[:, None].repeat(1, self.vocab)
        if self.stopped:
            ends |= self.rules.stops.accepts(rows.automaton) & (rows.written >= rows.limits[:, 0])[:, None]
        if self.end is not None:
            ends[:, self.end] = True
        return ends

    def _harvest(self, ended: Children | None, going: Children) -> None:
        """Put the best children that end here into their pools, if they are good enough."""
        if ended is None:
            return
        rows, size = self.now.rows, self.beam.beams // self.beam.groups
        possible = ended.ranks > NEVER
        if self.beam.stopping == "first":
            # An end counts when it is among the best of all children, those that go on included.
            both = torch.cat([ended.ranks.view(-1, size), going.ranks.view(-1, size)], 1)
            possible &= ended.ranks >= both.topk(size, -1).values[:, -1].repeat_interleave(size)
        owners = rows.request[ended.parents].tolist()
        lengths = (rows.written[ended.parents] + 1).tolist()
        ranks = [self.pools[n].rank(*pair) for n, *pair in zip(owners, ended.ranks.tolist(), lengths, strict=True)]
        offers = zip(possible.tolist(), owners, ranks, strict=True)
        every = self.beam.stopping == "first"  # each end counts there, also one that is worse than all before
        kept = [place for place, (live, n, rank) in enumerate(offers) if live and (every or self.pools[n].takes(rank))]
        if not kept:
            return
        places = torch.tensor(kept, device=ended.ranks.device)
        children = write(
            rows.select(ended.parents[places]),
            ended.tokens[places],
            torch.zeros_like(ended.ranks[places]),
            self.rules,
        )
        reasons = finished(children, ended.tokens[places], self.end, self.rules)
        missed = self._missed(children)
        scores = ended.scores[places].tolist()
        for place, (number, reason, score) in enumerate(zip(kept, reasons, scores, strict=True)):
            start, stop = int(children.prompts[place]), int(children.lengths[place])
            text = tuple(children.tokens[place, start:stop].tolist())
            assert reason is not None
            rank = ranks[number] + missed[place]
            if every or self.pools[owners[number]].takes(rank):
                self.pools[owners[number]].add(Result(text, score, reason), rank)

    def _missed(self, children: Rows) -> list[float]:
        """What each finished text loses for the parts of its source that it did not look at."""
        if not self.beam.coverage:
            return [0.0] * len(children.lengths)
        assert isinstance(self.model, EncoderDecoder)
        source = Source(children.source, children.source_lengths)
        read = children.lengths - 1  # step t chooses token t + 1, so the last token of a text looks at nothing
        looked = self.model.attention(children.tokens[:, : int(read.max())], read, source)
        if looked is None:
            raise ConfigError("this model has no attention, so its coverage is not known: leave out coverage")
        step = torch.arange(looked.shape[1], device=looked.device)
        chooses = (step >= children.prompts[:, None] - 1) & (step < read[:, None])
        seen = (looked.float() * chooses[..., None]).sum(1).clamp(min=1e-6, max=1.0).log()
        inside = torch.arange(looked.shape[2], device=looked.device) < children.source_texts[:, None]
        values: list[float] = (self.beam.coverage * (seen * inside).sum(1)).tolist()
        return values

    def open_places(self) -> Tensor:
        """Rows of the requests whose pool may still change."""
        rows, each = self.now.rows, self.beam.beams
        best = self.now.ranks.view(-1, each).amax(-1).tolist()
        firsts = rows.request[::each].tolist(), rows.written[::each].tolist()
        groups = zip(best, *firsts, strict=True)
        still = [score > NEVER and not self.pools[place].closed(score, written) for score, place, written in groups]
        return torch.tensor(still, device=rows.tokens.device).repeat_interleave(each).nonzero().squeeze(1)


class Children(NamedTuple):
    """Hypotheses grown by one token: the row each came from, the token, what it is chosen by, its log-probability."""

    parents: Tensor
    tokens: Tensor
    ranks: Tensor
    scores: Tensor


def _chosen(ended: Children | None, going: Children, size: int, vocab: int) -> Tensor:
    """(requests, vocab): how often the best `size` children of a group, whether they end or go on, chose each token."""
    several = [going] if ended is None else [ended, going]
    ranks, tokens = (torch.cat([getattr(c, leaf).view(-1, size) for c in several], 1) for leaf in ("ranks", "tokens"))
    best, places = ranks.topk(size, -1)
    counts = torch.zeros(len(best), vocab, device=best.device)
    return counts.scatter_add(1, tokens.gather(1, places), (best > NEVER).float())


def _interleaved(groups: Sequence[Tensor], size: int) -> Tensor:
    """One leaf (requests · size,) of every group -> (requests · groups · size,), the groups of a request together."""
    return groups[0] if len(groups) == 1 else torch.stack([group.view(-1, size) for group in groups], 1).flatten()


def _hashed(rows: Rows) -> Tensor:
    """(R,) int64, a function of what was written."""
    value = torch.zeros_like(rows.lengths)
    place = torch.arange(rows.tokens.shape[1], device=value.device)
    written = (place >= rows.prompts[:, None]) & (place < rows.lengths[:, None])
    for column in range(int(rows.prompts.min()), int(rows.lengths.max())):
        value = torch.where(written[:, column], mix(value + rows.tokens[:, column] + 1), value)
    return value
