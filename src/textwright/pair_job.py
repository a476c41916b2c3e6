"""Tasks with a source: translate, summarise, answer, converse, convert."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from textwright import plan_pairs
from textwright.errors import ConfigError
from textwright.evaluating.languages import guess_language
from textwright.evaluating.scores import Score
from textwright.evaluating.tasks import items, judge, judges, references_of
from textwright.job import Job, Measures
from textwright.models import EncoderDecoder, EncoderDecoderConfig, LanguageModel
from textwright.models.seq2seq import Seq2SeqConfig
from textwright.pair_alignments import source_names
from textwright.pair_model import PairModel, cut
from textwright.reporting import Section, Table, alignment, table
from textwright.reporting.page import Block
from textwright.run import NEIGHBOURS, PairGeneration, PairRun, TextRun, read_generation, write_generation
from textwright.run_model import begin_from, learned_since
from textwright.text.batching import IGNORE, Batches
from textwright.text.bitext import Bitext, PairPlan, known_pairs, open_bitext, prepare_pairs, raw_pairs, shift_of
from textwright.text.buckets import Buckets, Sides
from textwright.text.corpus import Corpus, Progress, counted
from textwright.text.neighbours import Neighbours, as_tensors
from textwright.text.pairs import Pair, PairSource, fingerprint_pairs, unframed
from textwright.text.resegment import STRETCH, Resegmented, check_dropout
from textwright.training.checkpoint import save_tensors, write_file
from textwright.training.hardware import Hardware, autocast
from textwright.training.objective import Objective
from textwright.training.parallel import World
from textwright.training.records import Look

QUICK = 200  # validation pairs written for during training, greedily
QUICK_TOKENS = 30_000  # and target tokens whose loss is measured
JUDGED = 2000  # pairs that a finished model writes for, at most
SHOWN = 8  # of them in the report
AUDITED = 300  # characters of each side of the first pair
NOTHING = "nothing yet"


class PairJob(Job):
    """Args: config, and the run's folder, where the pairs were prepared."""

    requested = (
        "task",
        "pairs",
        "valid_pairs",
        "test_pairs",
        "source_tokenizer",
        "tokenizer",
        "filters",
        "cut",
        "neighbours",
        "valid_fraction",
        "test_fraction",
    )

    def __init__(self, config: PairRun, out: Path) -> None:
        self.config, self.out = config, out
        self.data: Bitext = open_bitext(out / "data")
        self.generation = read_generation(out, PairGeneration)
        self.epoch_tokens = self.data.train.target.facts.tokens
        self.kinds = _kinds(self.data)
        self.comparable = not (config.bpe_dropout or config.training.scheduled_sampling)
        self.valid = items(config.task, raw_pairs(out / "data" / "valid"))
        language = config.language or guess_language(pair.target for pair in self.valid[:500])
        self.judges = judges(config.task, language, lowercase=config.lowercase)

    @classmethod
    def request(cls, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A pointer needs one vocabulary for both sides, so the data depends on whether there is one."""
        pointer = {"copying": True} if asked.get("model", {}).get("copying") else {}
        return {**super().request(asked), **pointer}

    @staticmethod
    def check(asked: Mapping[str, Any]) -> None:
        given = bool(asked.get("valid_pairs")), bool(asked.get("valid_pairs") or asked.get("test_pairs"))
        for key, useless in zip(("valid_fraction", "test_fraction"), given, strict=True):
            if useless and key in asked:
                raise ConfigError(f"with validation or test pairs of their own nothing is split off: leave out {key}")
        plan_pairs.check(asked)
        judges(asked["task"], asked.get("language") or "en")  # a missing package or language is told now

    @staticmethod
    def fingerprint(asked: Mapping[str, Any]) -> str:
        return fingerprint_pairs(
            *(source for key in ("pairs", "valid_pairs", "test_pairs") for source in _sources(asked, key))
        )

    @staticmethod
    def prepare(asked: Mapping[str, Any], folder: Path, progress: Progress) -> None:
        # The settings that matter here, with their defaults; sizes are not known yet.
        config = plan_pairs.parsed(asked)
        plan = PairPlan(
            train=config.pairs,
            valid=config.valid_pairs,
            test=config.test_pairs,
            source_tokenizer=config.source_tokenizer,
            tokenizer=config.tokenizer,
            filters=config.filters,
            cut=partial(cut, config=config),
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            neighbours=config.neighbours,
            copying=_copies(config),
        )
        prepare_pairs(plan, folder, progress)

    @staticmethod
    def defaults(asked: Mapping[str, Any], folder: Path, hardware: Hardware, processes: int) -> dict[str, Any]:
        data = open_bitext(folder)
        shift = shift_of(data.source_tokenizer, data.tokenizer)
        situation = plan_pairs.PairSituation(
            vocab=data.tokenizer.size,
            source_vocab=shift + bool(data.facts.neighbours) * data.tokenizer.size if shift else None,
            tokens=data.train.target.facts.tokens,
            padded=data.facts.longer_side,
            longest_source=data.facts.longest_source,
            longest_target=data.facts.longest_target,
            hardware=hardware,
            processes=processes,
        )
        return plan_pairs.defaults(asked, situation)

    @staticmethod
    def describe_run(config: TextRun | PairRun, data: Path, out: Path) -> None:
        prepared = open_bitext(data)
        assert isinstance(config, PairRun)
        _check_fits(config, prepared)
        prepared.tokenizer.save(out / "tokenizer.json")
        prepared.source_tokenizer.save(out / "source_tokenizer.json")
        if config.neighbours:
            write_file(out / NEIGHBOURS, partial(save_tensors, tensors=as_tensors(*known_pairs(data))))
        if config.base is not None:
            _begin(Path(config.base), config, prepared, out)
            return
        end = prepared.tokenizer.end
        size = prepared.tokenizer.size
        seen = torch.stack([counted(corpus, size) for corpus in _written(config, prepared)]).sum(0)
        banned = tuple(token for token in range(size) if not seen[token] and token != end)
        write_generation(out, PairGeneration(start=(end,), end=end, unseen=banned, growth=prepared.facts.growth))

    def describe(self) -> str:
        train, count = self.data.train, self.config.neighbours
        beside = f", each source beside its {f'{count} ' if count > 1 else ''}nearest of them" if count else ""
        tokens = train.source.facts.tokens, train.target.facts.tokens
        return (
            f"pairs: {train.pairs:,} to train on ({self.data.facts.report.text()}){beside}, "
            f"{self.data.valid.pairs:,} to validate, {self.data.test.pairs:,} to test; "
            f"{tokens[0]:,} source tokens, {tokens[1]:,} target tokens of {self.kinds}\n"
            f"{self._left_out()}{self.audit()}"
        )

    def _left_out(self) -> str:
        """A line for each split that was held back and is not whole: its scores are those of fewer pairs."""
        held = zip(("to validate", "to test"), self.data.facts.held, strict=False)
        return "".join(f"of the pairs {what}: {report.text()}\n" for what, report in held if report.dropped)

    def audit(self) -> str:
        """The first training pair as the model meets it: what it reads, and each token that carries loss in [].

        Raises:
            ConfigError: the end of the text carries none, so the model would never learn to stop.
        """
        batch = Buckets(self.data.train, 1, self.generation.start, 0).gather(torch.tensor([0]), 0)
        assert batch.source is not None
        targets = [token for token in batch.targets[0].tolist() if token != IGNORE]
        if self.generation.end not in targets:
            raise ConfigError("the end of the first target carries no loss: the model would never learn to stop")
        names = source_names(self.data.source_tokenizer, self.data.tokenizer, batch.source[0].tolist())
        source = "|".join(names)
        marked = [f"[{_name(self.data.tokenizer, token)}]" for token in targets]
        return f"first pair: {source[:AUDITED]} -> {_shortened(marked, AUDITED)}"

    def sizes(self) -> list[tuple[str, object]]:
        train, facts = self.data.train, self.data.facts
        return [
            ("vocabulary", self.kinds),
            ("training pairs", train.pairs),
            ("left out", facts.report.text()),
            ("training targets, tokens", train.target.facts.tokens),
            ("neighbours of a source", facts.neighbours),
            ("longest source, tokens", facts.longest_source),
            ("longest target, tokens", facts.longest_target),
        ]

    def batches(self, model: LanguageModel, world: World) -> Batches:
        """Buckets of similar length; with BPE dropout, words in other pieces at every epoch."""
        config, data = self.config, self.data
        rate, seed = config.bpe_dropout, config.training.seed
        if not rate:
            return Buckets(data.train, config.training.batch_tokens, self.generation.start, seed)
        assert isinstance(model, EncoderDecoder)
        longest = (model.source_window, model.window)
        reader = Resegmented(data.train, (data.source_tokenizer, data.tokenizer), rate, seed, longest)
        budget = int(config.training.batch_tokens / (1 + STRETCH * rate))  # texts grow by being cut finer
        return Buckets(data.train, budget, self.generation.start, seed, reader)

    def validate(self, model: LanguageModel, *, trained: bool) -> Look:
        precision = self.config.training.precision
        loss = pair_loss(model, self.data.valid, self.generation.start, QUICK_TOKENS, precision)
        if not trained or self.config.task == "chat":  # a reply has many good answers: the loss says more
            return Look(loss)
        pairs = self.valid[:QUICK]
        with autocast(model.device, precision):
            texts = self._writer(model).write([pair.source for pair in pairs], strategy="greedy")
        first = self.judges[:1]
        (score,) = judge(first, [text[0].text for text in texts], references_of(pairs))
        return Look(loss, score.value if score.higher_is_better else -score.value)

    def sample(self, model: LanguageModel) -> str:
        pairs = self.valid[:3]
        texts = self._writer(model).write([pair.source for pair in pairs], strategy="greedy")
        return "\n".join(f"{pair.source} -> {text[0].text}" for pair, text in zip(pairs, texts, strict=True))

    def use(self, out: Path) -> str:
        more = {"chat": "", "answer": " --question TEXT --context TEXT"}.get(self.config.task, " TEXT")
        return f"textwright {self.config.task} {shlex.quote(str(out))}{more}"

    def measure(self, model: LanguageModel) -> Measures:
        name = "test" if self.data.test.pairs else "valid"
        pairs = items(self.config.task, raw_pairs(self.out / "data" / name))
        writer, judged = self._writer(model), pairs[:JUDGED]
        texts = [text[0] for text in writer.write([pair.source for pair in judged])]
        scores = judge(self.judges, [text.text for text in texts], references_of(judged))
        prefixes = [source.prefix for source in self.config.pairs]
        copied = judge(self.judges, [unframed(pair.source, prefixes) for pair in judged], references_of(judged))
        loss = pair_loss(model, getattr(self.data, name), self.generation.start, None, "float32")
        what = f"{len(judged):,} {name} pairs, {writer.generation.beams} beams"
        figures = score_table(scores, copied)
        facts: list[tuple[str, object]] = [(f"{name} {score.name}", round(score.value, 2)) for score in scores]
        sections = [
            Section(f"Scores on {what}", [f"Loss {loss:.4f} nats a token.", figures]),
            Section("Examples", [_examples(judged, [text.text for text in texts]), *_picture(writer, judged)]),
        ]
        return Measures([*facts, (f"{name} loss", round(loss, 4))], figures, sections)

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Beside which sources are read."""
        shift, count = shift_of(self.data.source_tokenizer, self.data.tokenizer), self.config.neighbours
        return Neighbours(*known_pairs(self.out / "data"), count, shift) if count else None

    def _writer(self, model: LanguageModel) -> PairModel:
        data = self.data
        parts = data.source_tokenizer, data.tokenizer, self.generation, self.config
        return PairModel(model, *parts, neighbours=self.neighbours).bare()


@torch.no_grad()
def pair_loss(model: LanguageModel, sides: Sides, start: Sequence[int], tokens: int | None, precision: str) -> float:
    """Mean loss (nats a target token) over the pairs, or over the first batches that hold so many tokens."""
    objective, total, count = Objective(model).eval(), 0.0, 0
    for batch in Buckets(sides, 4096, start, 0).in_order(tokens):
        batch = batch.to(model.device)
        with autocast(model.device, precision):
            total += float(objective(batch).plain)
        count += batch.count
    return total / count


def score_table(scores: Sequence[Score], copied: Sequence[Score] | None = None) -> Table:
    """A row for each metric, with what copying the source would score beside it."""
    headings = ["metric", "score", *(["copying the source"] if copied else []), "computed as"]
    others = [[round(score.value, 2)] for score in copied] if copied else [[] for _ in scores]
    rows = [
        (score.name, round(score.value, 2), *other, score.signature)
        for score, other in zip(scores, others, strict=True)
    ]
    return table(headings, rows)


def _examples(pairs: Sequence[Pair], texts: Sequence[str]) -> Table:
    step = max(1, len(pairs) // SHOWN)
    chosen = list(zip(pairs, texts, strict=True))[::step][:SHOWN]
    return table(["source", "reference", "written"], [(pair.source[:400], pair.target, text) for pair, text in chosen])


def _picture(writer: PairModel, pairs: Sequence[Pair]) -> list[Block]:
    """Where the model looked, for a source of a handy length."""
    sources = (pair.source for pair in pairs if 4 <= writer.own(writer.source_ids(pair.source)) <= 24)
    handy = next(sources, None)
    if handy is None or not writer.looks:
        return []
    for text in writer.write([handy], alignments=True):
        if (seen := text[0].alignment) is not None:
            title = "Where the model looked in the source (columns) for each token it wrote (rows)"
            return [alignment(seen.weights, seen.target, seen.source, title=title)]
    return []


def _written(config: PairRun, data: Bitext) -> list[Corpus]:
    """Where the tokens stand that a model can write: in the training targets, and for a pointer in the sources, too."""
    return [data.train.target, *([data.train.source] if _copies(config) else [])]


def _copies(config: PairRun) -> bool:
    return isinstance(config.model, Seq2SeqConfig | EncoderDecoderConfig) and config.model.copying


def _begin(base: Path, config: PairRun, prepared: Bitext, out: Path) -> None:
    """The run's own copy of a base's weights and habits; it may write what the new targets hold, and as long.

    Raises:
        ConfigError: the base's texts end otherwise than its tokenizer's.
    """
    then = read_generation(base, PairGeneration)
    if then.end != prepared.tokenizer.end:
        raise ConfigError(
            f"the texts of {base} end with token {then.end}, those of its tokenizer with {prepared.tokenizer.end}: "
            "such a model cannot be fine-tuned here"
        )
    longest = max(then.growth, prepared.facts.growth)
    now = learned_since(then, *_written(config, prepared))
    write_generation(out, now.model_copy(update={"growth": longest}))
    begin_from(base, out)


def _check_fits(config: PairRun, data: Bitext) -> None:
    """Raise ConfigError for settings that the prepared pairs do not fit."""
    if config.bpe_dropout:
        check_dropout(data.source_tokenizer)
        check_dropout(data.tokenizer)
    if isinstance(config.model, Seq2SeqConfig):
        return
    facts, model = data.facts, config.model
    given = 1 if config.base is None else len(read_generation(Path(config.base), PairGeneration).start)
    before = len(data.source_tokenizer.prefix)
    for side, longest, window, most in (
        ("source", facts.longest_source, model.source_window, f"cut={model.source_window - 1 - before}"),
        ("target", facts.longest_target + given - 1, model.window, f"filters.max_target={model.window - given}"),
    ):
        if longest > window and side == "source" and config.neighbours:
            fewer = f"read fewer neighbours: --set neighbours={config.neighbours - 1}"
            raise ConfigError(
                f"the longest source has {longest} tokens with its neighbours, model.source_window is {window}: "
                f"leave that out, or {fewer}"
            )
        if longest > window:
            key = "source_window" if side == "source" else "window"
            ours = config.base is None
            other = f"model.{key} is {window}: leave that out, or" if ours else f"the base takes {window}:"
            raise ConfigError(
                f"the longest {side} has {longest} tokens, {other} leave out long texts: --set {most} (of texts that "
                "are held back none is left out)"
            )


def _sources(asked: Mapping[str, Any], key: str) -> list[PairSource]:
    return [PairSource.parse(source, key) for source in asked.get(key, ())]


def _kinds(data: Bitext) -> str:
    target = f"{data.tokenizer.size:,} ({data.tokenizer.kind})"
    if data.source_tokenizer.same(data.tokenizer):
        return f"{target}, shared"
    return f"{target} from {data.source_tokenizer.size:,} ({data.source_tokenizer.kind})"


def _shortened(names: Sequence[str], characters: int) -> str:
    """The first of them and the last one, which is what the audit is for: whether the end carries loss."""
    *before, last = names
    told = "".join(before)
    return told + last if len(told) <= characters else f"{told[:characters]} … {last}"


def _name(tokenizer: Any, token: int) -> str:
    return "</s>" if token == tokenizer.end else tokenizer.decode([token])
