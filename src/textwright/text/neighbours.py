"""The training pairs whose sources are most like a given one: a source may be read beside them.

A model that sees how similar sources were rendered need not remember them: Bulté and Tezcan 2019, "Neural Fuzzy
Repair", put the targets of similar sources behind a source. What is read here is, in token ids,

    source </s> first neighbour </s> its target </s> second neighbour </s> its target </s> …

How alike two sources are is told by the runs of tokens that they share, rare ones counting more:

    likeness(q, d) = Σ_g [g in q and in d] w_g ÷ √(Σ_g [g in d] w_g)        w_g = log(sources ÷ sources with g)

over all runs g of up to six tokens, where the beginning and the end of a source count as tokens. The second neighbour
is the one that is most like what the first one does not share with the source, and so on: *reinvesting* is read beside
*reinvest* and *vesting*. A source that is itself among the pairs is never its own neighbour, in training as in use.
All are compared with all, so the time grows with the square of the number of pairs.

Axes: D texts that are known, B texts that are asked for, M (run, text) entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from textwright.errors import CheckpointError
from textwright.noise import mix

LONGEST = 6  # tokens of a run
COMMON = 3000  # texts with a run from which on it is too common to be looked up


@dataclass(frozen=True)
class Ragged:
    """Texts of different lengths, one after the other.

    Attributes:
        tokens: (tokens,) ids of any integer type, the end of each text included.
        ends: (texts,) int64, the index after the last token of each.
    """

    tokens: Tensor
    ends: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Ragged:
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        return cls(torch.tensor([token for text in texts for token in text], dtype=torch.long), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        start = int(self.ends[number - 1]) if number else 0
        ids: list[int] = self.tokens[start : int(self.ends[number])].tolist()
        return ids

    def owners(self) -> Tensor:
        """(tokens,) the text that each token belongs to."""
        return torch.arange(len(self)).repeat_interleave(self.lengths())

    def lengths(self) -> Tensor:
        return self.ends.diff(prepend=torch.zeros(1, dtype=torch.long))


class Neighbours:
    """Training pairs, found by the runs of their sources. Memory: some 16 bytes for each token of a source and
    length of run.

    Args:
        sources, targets: of the training; text i of one belongs to text i of the other.
        count: neighbours that a source is read beside.
        shift: what is added to the ids of targets, so that they differ from those of sources; 0 where both share a
            vocabulary.
    """

    def __init__(self, sources: Ragged, targets: Ragged, count: int, shift: int) -> None:
        self.sources, self.targets, self.count, self.shift = sources, targets, count, shift
        hashes, owners = _runs(sources)
        known, sizes = torch.unique_consecutive(hashes, return_counts=True)
        weights = (len(sources) / sizes).log()
        every = weights.repeat_interleave(sizes)
        self._scale = torch.zeros(len(sources)).index_add_(0, owners, every).clamp(min=1e-6).rsqrt()
        rare = sizes <= COMMON
        self._known, self._sizes, self._weights = known[rare], sizes[rare], weights[rare]
        self._owners = owners[rare.repeat_interleave(sizes)]
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._wholes, self._order = _whole(sources).sort()

    def same(self, other: Neighbours) -> bool:
        """Every source is read beside the same texts."""
        own, theirs = (as_tensors(index.sources, index.targets) for index in (self, other))
        return self.count == other.count and all(torch.equal(own[name], theirs[name]) for name in own)

    def beside(self, sources: Sequence[Sequence[int]], most: int | None = None) -> list[list[int]]:
        """Each source, which ends with its end id, and its neighbours: as many of them as fit into `most` ids."""
        found = self.nearest(Ragged.of(sources)).tolist()
        return [self._composed(list(source), numbers, most) for source, numbers in zip(sources, found, strict=True)]

    def nearest(self, sources: Ragged) -> Tensor:
        """(B, count) numbers of the nearest pairs, the nearest first; -1 where no further one shares anything."""
        found = torch.full((len(sources), self.count), -1)
        hashes, askers = _runs(sources)
        themselves = self._themselves(sources)
        for place in range(self.count):
            found[:, place] = best = self._most_alike(hashes, askers, themselves)
            # What was found is not looked for again.
            shown, owners = _runs(Ragged.of([self.sources[number] for number in best.clamp(min=0).tolist()]))
            left = ~torch.isin(mix(hashes + askers), mix(shown + owners))
            hashes, askers = hashes[left], askers[left]
        return found

    def _most_alike(self, hashes: Tensor, askers: Tensor, themselves: Sequence[Tensor]) -> Tensor:
        """(B,) the known text that is most like the runs (M,) of each text, -1 where none is; askers (M,) says whose
        runs they are, `themselves` what none of them may find."""
        best = torch.full((len(themselves),), -1)
        if not len(self._known):
            return best
        places = torch.searchsorted(self._known, hashes).clamp(max=len(self._known) - 1)
        hit = self._known[places] == hashes
        asking, order = askers[hit].sort(stable=True)
        theirs = torch.split(places[hit][order], torch.bincount(asking, minlength=len(best)).tolist())
        likeness = torch.zeros(len(self.sources))  # one text at a time: so it stays in the cache
        for asker, here in enumerate(theirs):
            if not len(here):
                continue
            sizes, starts = self._sizes[here], self._starts[here]
            with_one = [self._owners[a:b] for a, b in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)]
            owners = torch.cat(with_one)
            likeness.zero_().index_add_(0, owners, self._weights[here].repeat_interleave(sizes))
            likeness *= self._scale
            likeness[themselves[asker]] = 0.0
            if (most := likeness.max()) > 0:  # telling where it stands would take ten times as long
                best[asker] = owners[likeness[owners] == most].min()
        return best

    def _themselves(self, sources: Ragged) -> list[Tensor]:
        """For each text that is asked for, the known ones that are equal to it."""
        wholes = _whole(sources)
        first, after = (torch.searchsorted(self._wholes, wholes, right=right).tolist() for right in (False, True))
        return [self._order[a:b] for a, b in zip(first, after, strict=True)]

    def _composed(self, source: list[int], numbers: list[int], most: int | None) -> list[int]:
        read, end = source, source[-1]
        for number in numbers:
            if number < 0:
                break
            target = [token + self.shift for token in self.targets[number][:-1]]
            longer = [*read, *self.sources[number][:-1], end, *target, end]
            if most is not None and len(longer) > most:
                break
            read = longer
        return read


def as_tensors(sources: Ragged, targets: Ragged) -> dict[str, Tensor]:
    """Pairs as they are stored."""
    sides = {"sources": sources, "targets": targets}
    tokens = {f"{name}.tokens": side.tokens.int() for name, side in sides.items()}
    return tokens | {f"{name}.ends": side.ends for name, side in sides.items()}


def from_tensors(tensors: Mapping[str, Tensor], vocabularies: tuple[int, int]) -> tuple[Ragged, Ragged]:
    """The inverse of `as_tensors`, for vocabularies of so many ids.

    Raises:
        CheckpointError: the tensors are no such pairs.
    """
    try:
        names = "sources", "targets"
        sources, targets = (Ragged(tensors[f"{name}.tokens"], tensors[f"{name}.ends"]) for name in names)
        for side, vocabulary in ((sources, vocabularies[0]), (targets, vocabularies[1])):
            whole = int(side.ends[-1]) == len(side.tokens) and int(side.lengths().min()) > 0
            if not whole or not 0 <= int(side.tokens.min()) <= int(side.tokens.max()) < vocabulary:
                raise ValueError
        if len(sources) != len(targets):
            raise ValueError
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError):
        raise CheckpointError("the stored neighbours are damaged or another run's: restore them from a copy") from None
    return sources, targets


def _runs(texts: Ragged) -> tuple[Tensor, Tensor]:
    """Every run of every text, once: hashes (M,) in ascending order, and the texts (M,) they are in."""
    owners = texts.owners()
    values = torch.full((len(owners) + len(texts),), -1, dtype=torch.long)  # -1: a beginning
    values[torch.arange(len(owners)) + owners + 1] = texts.tokens.long()
    owners = torch.arange(len(texts)).repeat_interleave(texts.lengths() + 1)
    run, hashes, inside = mix(values), [mix(values)], [owners]
    for length in range(2, LONGEST + 1):
        run = mix(run[: len(values) - length + 1] + values[length - 1 :])
        first, last = owners[: len(run)], owners[length - 1 :]
        hashes.append(run[first == last])
        inside.append(first[first == last])
    found, order = torch.cat(hashes).sort(stable=True)
    texts_of = torch.cat(inside)[order]
    again = torch.zeros(len(found), dtype=torch.bool)
    again[1:] = (found[1:] == found[:-1]) & (texts_of[1:] == texts_of[:-1])
    return found[~again], texts_of[~again]


def _whole(texts: Ragged) -> Tensor:
    """(texts,) a hash of each as a whole."""
    owners = texts.owners()
    places = torch.arange(len(owners)) - (texts.ends - texts.lengths())[owners]
    return torch.zeros(len(texts), dtype=torch.long).index_add_(0, owners, mix(mix(places) + texts.tokens.long()))
