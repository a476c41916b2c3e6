"""The task of answering as examples do: a text goes on, and only what the model should say carries loss."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from textwright import plan
from textwright.decoding import Request, generate
from textwright.errors import ConfigError, DataError
from textwright.job import Job, Measures
from textwright.models import LanguageModel
from textwright.progress import Told, untold
from textwright.reporting import Section, Table, table
from textwright.run import (
    ExamplesConfig,
    GenerationConfig,
    ImportedRun,
    PairRun,
    TextRun,
    read_generation,
    read_run,
    read_template,
    write_generation,
    write_template,
)
from textwright.run_model import begin_from, learned_since
from textwright.text.batching import Batch, Batches
from textwright.text.conversations import ChatTemplate
from textwright.text.corpus import Corpus, Progress
from textwright.text.examples import Speller, read_examples, read_preferences, template_for
from textwright.text.marked import (
    Marked,
    MarkedBuckets,
    Rows,
    held_back,
    in_memory,
    open_examples,
    open_marked,
    prepare_examples,
)
from textwright.text.sources import SourceConfig, files, fingerprint
from textwright.text.tokenizers import Tokenizer
from textwright.training.hardware import Hardware, autocast
from textwright.training.objective import Objective
from textwright.training.parallel import World
from textwright.training.records import Look
from textwright.writer import TextModel, TextStream

SPLITS = ("train", "valid", "test")
LOOK = 5e11  # operations of a look during training, the prompts not counted: large models look at fewer answers
MEASURE = 5e12  # and at the end
LEAST = 1_024  # tokens of answers that are looked at whatever the model's size
SAMPLE = 100  # tokens of a sample
WIDE = 4096  # tokens of a batch that is only measured


class ExampleJob(Job):
    """Args: config, and the run's folder, where the examples were prepared."""

    requested = ("base", "examples", "source", "valid", "test", "valid_fraction", "test_fraction")

    def __init__(self, config: TextRun, out: Path) -> None:
        self.config, self.out = config, out
        self.data, self.facts = open_examples(out / "data")
        self.marked = {name: open_marked(out / "data" / name) for name in SPLITS}
        self.generation = read_generation(out, GenerationConfig)
        assert config.examples is not None
        self.longest = config.examples.longest
        self.training = MarkedBuckets(self.marked["train"], config.training.batch_tokens, config.training.seed)
        self.epoch_tokens = int(self.training.targets.sum())
        self.kinds = f"{config.model.vocab:,} ({self.data.tokenizer.kind})"

    @staticmethod
    def check(asked: Mapping[str, Any]) -> None:
        if asked.get("base") is None:
            raise ConfigError("examples are for a model that has learned already: textwright finetune BASE …")
        given = bool(asked.get("valid")), bool(asked.get("valid") or asked.get("test"))
        for key, useless in zip(("valid_fraction", "test_fraction"), given, strict=True):
            if useless and key in asked:
                raise ConfigError(f"with examples of their own nothing is split off for it: leave out {key}")
        for key in ("source", "valid", "test"):
            source = SourceConfig.parse(asked.get(key) or {"path": ""}, key)
            if source.field is not None or source.documents != "file":
                name = "documents" if source.field is None else "field"
                raise ConfigError(f"examples are rows with columns of their own (--fields): leave out {key}.{name}")
        examples = asked["examples"]
        if isinstance(examples, Mapping) and "beta" in examples and examples.get("kind") != "preferences":
            raise ConfigError("examples.beta is about preferences, and these are answers: leave it out")
        plan.check(asked)

    @staticmethod
    def fingerprint(asked: Mapping[str, Any]) -> str:
        sources = [SourceConfig.parse(asked[key], key) for key in ("source", "valid", "test") if asked.get(key)]
        for source in sources:
            files(source)  # a missing one is told now
        return hashlib.sha256("".join(map(fingerprint, sources)).encode()).hexdigest()

    @staticmethod
    def prepare(asked: Mapping[str, Any], folder: Path, progress: Progress) -> None:
        examples = ExamplesConfig.parse(asked["examples"], "examples")
        texts = [_reader(asked, key, examples) for key in ("source", "valid", "test")]
        valid, test = asked.get("valid_fraction"), asked.get("test_fraction")
        if not asked.get("valid"):
            first, second, third = held_back(texts[0], valid, 0.0 if asked.get("test") else test)
            texts = [first, second, texts[2] if asked.get("test") else third]
        first_row = next(texts[0](), None)
        if first_row is None:
            raise DataError(f"{asked['source']['path']} holds no examples")
        speller = speller_of(Path(asked["base"]), plain=first_row[0].bare)
        prepare_examples((texts[0], texts[1], texts[2]), speller, examples.longest, folder, progress)

    @staticmethod
    def defaults(asked: Mapping[str, Any], folder: Path, hardware: Hardware, processes: int) -> dict[str, Any]:
        facts = open_examples(folder)[0].train.facts
        return plan.defaults(asked, plan.Situation(facts, hardware, processes))

    @staticmethod
    def describe_run(config: TextRun | PairRun, data: Path, out: Path) -> None:
        assert isinstance(config, TextRun) and config.base is not None
        base, facts = Path(config.base), open_examples(data)[1]
        Tokenizer.load(base / "tokenizer.json").save(out / "tokenizer.json")
        generation = learned_since(read_generation(base, GenerationConfig), open_examples(data)[0].train)
        allowed = tuple(id for id in generation.unseen if id != facts.end)
        write_generation(out, generation.model_copy(update={"end": facts.end, "unseen": allowed}))
        if facts.template is not None:
            write_template(out, facts.template)
        begin_from(base, out)

    def describe(self) -> str:
        facts, tokens = self.facts, self.data.train.facts.tokens
        return (
            f"examples: {facts.kept:,} to train on ({facts.left_out(self.longest)}), "
            f"{self.data.valid.facts.documents:,} to validate, {self.data.test.facts.documents:,} to test; {tokens:,} "
            f"tokens of {self.kinds}, of which {self.epoch_tokens:,} are answers and carry loss\n{self.audit()}"
        )

    def audit(self) -> str:
        """The first training example as the model meets it: each token that carries loss stands in []."""
        return f"first example: {self._shown(self.training.gather(torch.tensor([0]), 0), self.data.train)[:600]!r}"

    def _shown(self, batch: Batch, corpus: Corpus) -> str:
        names = {id: name for name, id in self.data.tokenizer.entries.items()}

        def shown(id: int) -> str:
            return self.data.tokenizer.decode([id]) or names.get(id, "")

        learned = (batch.targets[0] >= 0).tolist()
        text = shown(int(batch.tokens[0, 0]))
        ids = [*batch.tokens[0, 1:].tolist(), int(corpus.tokens[corpus.ends[0] - 1])]
        for id, counts in zip(ids, learned, strict=True):
            text += f"[{shown(id)}]" if counts else shown(id)
        return text

    def sizes(self) -> list[tuple[str, object]]:
        return [
            ("vocabulary", self.kinds),
            ("training examples", self.facts.kept),
            ("left out", self.facts.left_out(self.longest)),
            ("training answers, tokens", self.epoch_tokens),
            ("longest example, tokens", self.facts.longest),
        ]

    def batches(self, model: LanguageModel, world: World) -> Batches:
        return self.training

    def validate(self, model: LanguageModel, *, trained: bool) -> Look:
        return Look(self._loss(model, "valid", LOOK)[0])

    def sample(self, model: LanguageModel) -> str:
        """The answer to the first validation example."""
        marked = self.marked["valid"]
        first = int(marked.marks.nonzero()[0])
        request = Request(tuple(marked.corpus.tokens[:first].tolist()), self.generation.sampling, 0, SAMPLE)
        stream = TextStream(self.data.tokenizer, request)
        events = generate(model, [request], self.generation.end, banned=self.generation.unseen)
        return "".join(stream.feed(event) for event in events)

    def use(self, out: Path) -> str:
        folder = shlex.quote(str(out))
        return f"textwright chat {folder}" if self.facts.template else f"textwright generate {folder} --prompt TEXT"

    def measure(self, model: LanguageModel) -> Measures:
        names = [name for name in ("valid", "test") if self.marked[name].corpus.facts.documents]
        losses = {name: self._loss(model, name, MEASURE) for name in names}
        figures = answer_table(losses)
        facts: list[tuple[str, object]] = [
            (f"{name} loss of answers, nats a token", round(loss, 4)) for name, (loss, _) in losses.items()
        ]
        return Measures(facts, figures, [Section("Answers", [figures, self.audit()])])

    def _loss(self, model: LanguageModel, name: str, operations: float) -> tuple[float, int]:
        """Mean loss of the answers of a split that so many operations can read, and the tokens of these answers."""
        tokens = max(LEAST, int(operations / (2 * model.count_parameters())))
        return answer_loss(model, self.marked[name], tokens, self.config.training.precision)


def speller_of(base: Path, *, plain: bool) -> Speller:
    """How examples are spelled for the run `base`: by its chat template, or a plain one if it has none; there texts in
    two parts (`plain`) need none.

    Raises:
        ConfigError: the base's tokenizer has no token that ends a reply.
    """
    config, generation = read_run(base), read_generation(base, GenerationConfig)
    assert isinstance(config, TextRun | ImportedRun)
    tokenizer = Tokenizer.load(base / "tokenizer.json")
    source = read_template(base)
    if source is not None and generation.end is not None:
        return Speller(ChatTemplate(source, config.named), tokenizer, (), generation.end)
    template = None if plain else ChatTemplate(template_for(tokenizer, generation.start), config.named)
    return Speller(template, tokenizer, generation.start, tokenizer.end)


def measure_answers(
    model: TextModel, run: Path, data: str | None, fields: tuple[str, str] | None, progress: Told = untold
) -> tuple[str, tuple[float, int], str]:
    """What was measured, the mean loss of its answers and their tokens (see `answer_loss`, in float32), and what was
    left out, in words.

    Args:
        data: examples; None: what the run held back.
        progress: is told how many more tokens are done.

    Raises:
        DataError: there is no example that fits the model.
    """
    if data is None:
        name = "test" if open_marked(run / "data" / "test").corpus.facts.documents else "valid"
        return name, answer_loss(model.network, open_marked(run / "data" / name), None, "float32", progress), ""
    examples = list(read_examples(data, fields))
    if not examples:
        raise DataError(f"{data} holds no examples")
    speller = speller_of(run, plain=all(example.bare for example in examples))
    read, long = in_memory(examples, speller, model.network.window)
    return data, answer_loss(model.network, read, None, "float32", progress), long


@torch.no_grad()
def answer_loss(
    model: LanguageModel, marked: Marked, tokens: int | None, precision: str, progress: Told = untold
) -> tuple[float, int]:
    """Mean loss (nats a token) of what carries loss, or of the first texts that hold so many such tokens; and how many
    these were."""
    objective, total, count = Objective(model).eval(), 0.0, 0
    for batch in MarkedBuckets(marked, WIDE, 0).in_order(tokens):
        batch = batch.to(model.device)
        with autocast(model.device, precision):
            total += float(objective(batch).plain)
        count += batch.count
        progress(batch.count)
    return total / count, count


def answer_table(losses: Mapping[str, tuple[float, int]]) -> Table:
    """A row for each split."""
    rows = [(name, count, round(loss, 4), round(math.exp(loss), 3)) for name, (loss, count) in losses.items()]
    return table(["answers", "tokens", "loss, nats a token", "perplexity of a token"], rows)


def _reader(asked: Mapping[str, Any], key: str, how: ExamplesConfig) -> Rows:
    if not asked.get(key):
        return lambda: iter(())
    source = SourceConfig.parse(asked[key], key)
    if how.kind == "preferences":
        return lambda: read_preferences(source.path, how.fields, source.encoding)
    return lambda: ((example,) for example in read_examples(source.path, how.fields, source.encoding))
