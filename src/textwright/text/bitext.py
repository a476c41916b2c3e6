"""Pairs on disk: a folder for each split with the corpora of both sides, and the raw pairs that are judged on.

data/train/source  data/train/target          tokens, as in `corpus`; document i belongs to document i
data/train/read    …                          where sources are read beside their neighbours: what is read
data/valid/…       data/valid/pairs.jsonl     the same, and what was read, for metrics on text
data/test/…        data/facts.json            what was kept, and how long it is
data/characters.txt                           every character of the training sources
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch

from textwright.config import Config
from textwright.errors import CheckpointError, ConfigError, DataError
from textwright.text.buckets import Sides
from textwright.text.corpus import DOCUMENTS, Progress, fractions, lowest, open_corpus, writing
from textwright.text.filters import FilterReport, Filters, Sieve, looks_swapped
from textwright.text.neighbours import Neighbours, Ragged
from textwright.text.pair_source import files_of, kind_of
from textwright.text.pairs import Pair, PairSource, read_pairs, unframed
from textwright.text.segmenters import is_unspaced
from textwright.text.sides import CHARACTERS, characters
from textwright.text.sources import Piece
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train

BATCH = 2000  # pairs encoded at once
GROUPS = 100  # paragraphs or dialogues from which whole ones are held back
MANY = 10_000  # of these chance gives every split some
LOOK = 2000  # pairs by which sides and tokenizers are told
CLOSED = 300  # words of a side that has so few of them are tokens

PairStream = Callable[[], Iterator[Pair]]


class PairFacts(Config):
    """What was kept of the training pairs.

    Attributes:
        report: what was dropped.
        held: what was dropped of the pairs to validate and to test.
        longest_source, longest_target: tokens, the end included, in any split.
        growth: target tokens for each source token, in the pair that is longer than all but one in a thousand.
        longer_side: tokens of the longer side of every training pair, together: what batches are filled with.
        neighbours: that a source is read beside, see `neighbours`.
    """

    report: FilterReport
    held: tuple[FilterReport, ...] = ()
    longest_source: int
    longest_target: int
    growth: float
    longer_side: int
    neighbours: int = 0


class Bitext(NamedTuple):
    """Pairs for each purpose (`test` may be empty), with sources as they are read; source and target may share a
    tokenizer."""

    train: Sides
    valid: Sides
    test: Sides
    source_tokenizer: Tokenizer
    tokenizer: Tokenizer
    facts: PairFacts


class PairPlan(NamedTuple):
    """What to prepare: files for each split, tokenizers (no `source_tokenizer`: both sides share one), filters."""

    train: Sequence[PairSource]
    valid: Sequence[PairSource]
    test: Sequence[PairSource]
    source_tokenizer: TokenizerConfig | None
    tokenizer: TokenizerConfig
    filters: Filters
    cut: Callable[[list[int]], list[int]]  # what is read of a long source
    valid_fraction: float | None
    test_fraction: float | None
    neighbours: int = 0  # that a source is read beside
    copying: bool = False  # both sides need one vocabulary


def prepare_pairs(plan: PairPlan, folder: Path, progress: Progress) -> Bitext:
    """Train the tokenizers on the training pairs and write everything into `folder`.

    Raises:
        DataError: a file cannot be read, nothing is left, or the sides of two splits are mixed up.
    """
    dialogues = [source.path for source in plan.train if kind_of(source, files_of(source.path)[0]) == "dialogue"]
    if plan.neighbours and dialogues:
        raise ConfigError(f"{dialogues[0]}: the turns of a dialogue are each other's neighbours: leave out neighbours")
    splits = _splits(plan, progress)
    check_sides(plan.train, plan.valid)
    check_sides(plan.train, plan.test)
    source_tokenizer, tokenizer = _tokenizers(plan, splits[0], progress)
    written = []
    for name, pairs in zip(("train", "valid", "test"), splits, strict=True):
        filters = plan.filters if name == "train" else Filters()
        stream = _watched(pairs(), f"encoding {name}", progress)
        written.append(_write(folder / name, stream, source_tokenizer, tokenizer, filters, plan.cut))
    if not written[1].report.kept:
        raise DataError("nothing is left for the validation split: give --valid-pairs, or more pairs")
    if not written[0].report.kept:
        raise DataError("nothing is left to train on: hold back less, or give more pairs")
    longest_source = max(split.longest_source for split in written)
    if plan.neighbours:
        longest_source = _put_beside(folder, plan.neighbours, source_tokenizer, tokenizer, progress)
    train = open_sides(folder / "train", plan.neighbours)
    facts = PairFacts(
        report=written[0].report,
        held=tuple(split.report for split in written[1:]),
        longest_source=longest_source,
        longest_target=max(split.longest_target for split in written),
        growth=_growth(open_sides(folder / "train")),
        longer_side=int(torch.maximum(*train.lengths()).sum()),
        neighbours=plan.neighbours,
    )
    tokenizer.save(folder / "tokenizer.json")
    source_tokenizer.save(folder / "source_tokenizer.json")
    (folder / CHARACTERS).write_text("".join(sorted(written[0].characters)), "utf-8", "replace")
    (folder / "facts.json").write_text(facts.model_dump_json(indent=1), encoding="utf-8")
    return open_bitext(folder)


def open_bitext(folder: Path) -> Bitext:
    """Open what `prepare_pairs` wrote."""
    try:
        facts = PairFacts.model_validate_json((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; prepare it again") from None
    source_tokenizer, tokenizer = (
        Tokenizer.load(folder / f"{name}.json") for name in ("source_tokenizer", "tokenizer")
    )
    first, second, third = (open_sides(folder / name, facts.neighbours) for name in ("train", "valid", "test"))
    return Bitext(first, second, third, source_tokenizer, tokenizer, facts)


def open_sides(folder: Path, neighbours: int = 0) -> Sides:
    """The two corpora of a split; with neighbours, sources as they are read."""
    sides = Sides(open_corpus(folder / ("read" if neighbours else "source")), open_corpus(folder / "target"))
    if sides.source.facts.documents != sides.target.facts.documents:
        raise CheckpointError(f"{folder} is damaged: its sides have different numbers of texts; prepare it again")
    return sides


def shift_of(source_tokenizer: Tokenizer, tokenizer: Tokenizer) -> int:
    """What is added to the ids of targets in a source: nothing where both sides share a vocabulary."""
    return 0 if source_tokenizer.same(tokenizer) else source_tokenizer.size


def known_pairs(folder: Path) -> tuple[Ragged, Ragged]:
    """Sources and targets that were prepared for training."""
    source, target = open_sides(folder / "train")
    return Ragged(source.tokens, source.ends), Ragged(target.tokens, target.ends)


def raw_pairs(folder: Path) -> list[Pair]:
    """The pairs of a validation or test split as they were read."""
    with (folder / "pairs.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [Pair(source, target, where, tuple(others)) for source, target, where, others in rows]


# Splits ----------------------------------------------------------------------------------------------------------


def _splits(plan: PairPlan, progress: Progress) -> list[PairStream]:
    """Training, validation and test pairs; what has no files of its own is split off by a hash of its group or
    source, so that equal ones stay together. Of fewer groups than `GROUPS` a share of them may hold any share of the
    pairs: there the sources are told apart."""
    everything = partial(read_pairs, *plan.train)
    valid, test = (partial(read_pairs, *sources) if sources else None for sources in (plan.valid, plan.test))
    wanted = fractions(0.0 if valid else plan.valid_fraction, 0.0 if valid or test else plan.test_fraction)
    if valid or not any(wanted):
        return [everything, valid or _nothing, test or _nothing]
    tasks = frozenset(source.prefix for source in plan.train)
    prefixes = tasks if len(tasks) > 1 else frozenset()  # so that a run of one task keeps the splits it had
    by_source, by_group = (partial(_place, prefixes=prefixes, grouped=grouped) for grouped in (False, True))
    count = 0
    groups, sources, mixed = set[int](), set[int](), set[int]()
    for pair in _watched(everything(), "reading", progress):
        count += 1
        if pair.group and len(groups) < GROUPS:
            groups.add(by_group(pair))
        if len(sources) < MANY:
            sources.add(by_source(pair))
        if len(mixed) < MANY:
            mixed.add(by_group(pair))
    if count < DOCUMENTS:
        raise DataError(
            f"{count} pairs are too few to hold some back for validation: give --valid-pairs, or more pairs"
        )
    place, places = (by_group, mixed) if len(groups) == GROUPS else (by_source, sources)
    splits = 1 + sum(share > 0 for share in wanted)
    if len(places) < splits:  # what is equal stays together
        raise DataError(
            f"{count} pairs have too few different sources ({len(places)}) for {splits} splits: equal ones stay "
            "together. Give --valid-pairs, or more pairs"
        )
    first, second = _bounds(places, *wanted)
    parts = [partial(_between, everything, place, *ends) for ends in ((second, 2**64), (first, second), (0, first))]
    return [parts[0], parts[1], test or parts[2]]


def _place(pair: Pair, prefixes: frozenset[str], grouped: bool) -> int:
    """A hash of what must not be in two splits: the group, or the source, whichever task it is for."""
    kept = pair.group if grouped and pair.group else unframed(pair.source, prefixes)
    return int.from_bytes(hashlib.sha256(kept.encode("utf-8", "replace")).digest()[:8], "big")


def _bounds(places: set[int], valid: float, test: float) -> tuple[int, int]:
    """Below which hashes test and validation lie: by their shares or, where one would get none, so that it gets one."""
    first, second = int(test * 2**64), int((valid + test) * 2**64)
    empty = not any(place < first for place in places), not any(first <= place < second for place in places)
    few = len(places) < MANY  # else they are not all that there are
    if few and ((test and empty[0]) or (valid and empty[1])):
        return lowest(sorted(places), valid, test)
    return first, second


def _between(pairs: PairStream, place: Callable[[Pair], int], low: int, high: int) -> Iterator[Pair]:
    return (pair for pair in pairs() if low <= place(pair) < high)


def _nothing() -> Iterator[Pair]:
    return iter(())


def check_sides(train: Sequence[PairSource], held: Sequence[PairSource]) -> None:
    """Raises DataError when the sides of pairs that are held back have changed places. Each of their files is compared
    with the training pairs of its own task: those with the same words in front of their sources."""
    tasks = {source.prefix for source in train}
    for source in held:
        same = [one for one in train if one.prefix == source.prefix or len(tasks) == 1]
        sides = [_sides(same), _sides([source])]
        if same and looks_swapped(*map(characters, (side for pair in sides for side in pair))):
            first = next(read_pairs(source))
            raise DataError(
                f"the sides of {source.path} look swapped: its sources look like the training targets and its targets "
                f"like the training sources. First pair: {first.source[:60]!r} -> {first.target[:60]!r}. Name the "
                "source first"
            )


def _sides(named: Sequence[PairSource]) -> tuple[list[str], list[str]]:
    """The sides of the first pairs of each, without what is put in front of their sources."""
    bare = [source.model_copy(update={"prefix": ""}) for source in named]
    pairs = [pair for source in bare for pair in islice(read_pairs(source), -(-LOOK // len(bare)))]
    return [pair.source for pair in pairs], [pair.target for pair in pairs]


# Tokenizers ------------------------------------------------------------------------------------------------------


def _tokenizers(plan: PairPlan, pairs: PairStream, progress: Progress) -> tuple[Tokenizer, Tokenizer]:
    """Those of source and target: two where they were asked for, or where the sides are written differently."""

    def both() -> Iterator[tuple[str, str]]:
        return ((pair.source, pair.target) for pair in _watched(pairs(), "learning the vocabulary", progress))

    source, target = plan.source_tokenizer, plan.tokenizer
    if target.kind == "auto" or (source is not None and source.kind == "auto"):
        sides = _sides(plan.train)
        kinds, spaced = [_kind(side) for side in sides], {is_unspaced("".join(side)) for side in sides}
        if source is not None:
            source = _decided(source, kinds[0])
        elif plan.copying:
            kinds = ["char" if "char" in kinds else "bpe"] * 2
        elif "word" in kinds or kinds[0] != kinds[1] or len(spaced) > 1:
            source = _decided(target, kinds[0])
        target = _decided(target, kinds[1])
    if source is not None:
        return train(source, lambda: (pair[0] for pair in both())), train(target, lambda: (pair[1] for pair in both()))
    shared = train(target, lambda: chain.from_iterable(both()))
    return shared, shared


def _decided(asked: TokenizerConfig, kind: str) -> TokenizerConfig:
    return asked.model_copy(update={"kind": kind}) if asked.kind == "auto" else asked


def _kind(sample: list[str]) -> str:
    """What a side is made of: characters where words are not told apart or there is one word a text, words where there
    are few different ones (sounds, labels), otherwise pieces of words."""
    words = [text.split() for text in sample]
    count = sum(map(len, words))
    different = len({word for text in words for word in text})
    if is_unspaced("".join(sample)):
        return "char"
    if different <= CLOSED and count > 20 * different:
        return "word"
    return "char" if count <= 1.2 * len(sample) else "bpe"


# Writing ---------------------------------------------------------------------------------------------------------


class _Written(NamedTuple):
    report: FilterReport
    longest_source: int
    longest_target: int
    characters: set[str]  # of the sources


def _write(
    folder: Path,
    pairs: Iterator[Pair],
    source_tokenizer: Tokenizer,
    tokenizer: Tokenizer,
    filters: Filters,
    cut: Callable[[list[int]], list[int]],
) -> _Written:
    sieve, longest, some = Sieve(filters), [0, 0], False
    seen: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        writing(folder / "source", source_tokenizer) as sources,
        writing(folder / "target", tokenizer) as targets,
        (folder / "pairs.jsonl").open("w", encoding="utf-8") as raw,
    ):
        while batch := list(islice(pairs, BATCH)):
            some = True
            first = source_tokenizer.encode_many([one_line(pair.source, source_tokenizer) for pair in batch])
            second = tokenizer.encode_many([one_line(pair.target, tokenizer) for pair in batch])
            for pair, source, target in zip(batch, map(cut, first), second, strict=True):
                if not sieve.keeps(pair, len(source), len(target)):
                    continue
                source = [*source_tokenizer.prefix, *source]  # as sources are read in use
                sources.append(Piece(pair.source, last=True), source)
                targets.append(Piece(pair.target, last=True), target)
                longest = [max(longest[0], len(source) + 1), max(longest[1], len(target) + 1)]
                seen.update(pair.source)
                if folder.name != "train":
                    raw.write(json.dumps(pair[:4], ensure_ascii=False) + "\n")
    # Only of the training pairs one must be left: a split that was held back may turn out empty, and is told of above.
    report = sieve.report() if some and folder.name == "train" else sieve.counted()
    return _Written(report, longest[0], longest[1], seen)


def _put_beside(folder: Path, count: int, source_tokenizer: Tokenizer, tokenizer: Tokenizer, progress: Progress) -> int:
    """Write every split's sources beside their neighbours; the length of the longest."""
    shift = shift_of(source_tokenizer, tokenizer)
    known, longest, done = Neighbours(*known_pairs(folder), count, shift), 0, 0
    splits = {name: open_sides(folder / name) for name in ("train", "valid", "test")}
    tokens = sum(sides.source.facts.tokens for sides in splits.values())
    characters = sum(side.facts.characters for sides in splits.values() for side in sides)
    for name, (corpus, _) in splits.items():
        sources = Ragged(corpus.tokens, corpus.ends)
        with writing(folder / name / "read", source_tokenizer, shift + tokenizer.size) as writer:
            for start in range(0, len(sources), BATCH):
                part = [sources[number] for number in range(start, min(start + BATCH, len(sources)))]
                for ids in known.beside(part):
                    writer.append(Piece("", last=True), ids)
                    longest = max(longest, len(ids))
                done += sum(map(len, part))
                progress("looking for neighbours", characters * done / tokens)
    return longest


def one_line(text: str, tokenizer: Tokenizer) -> str:
    """The text as it is encoded: the line end of a `word` tokenizer ends a text, so inside it becomes a space."""
    return text.replace("\n", " ") if tokenizer.kind == "word" else text


def _growth(sides: Sides) -> float:
    source, target = sides.lengths()
    return float(torch.quantile((target / source).float()[: 2**20], 0.999))


def _watched(pairs: Iterator[Pair], what: str, progress: Progress) -> Iterator[Pair]:
    done = 0
    for pair in pairs:
        yield pair
        done += len(pair.source) + len(pair.target)
        progress(what, done)
