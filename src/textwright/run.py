"""A run: one configuration, one folder, everything needed to repeat it, resume it and use it.

RUN/config.json         what was asked for, and what it was resolved to
RUN/tokenizer.json      opens with the `tokenizers` library, too; with a source there is a source_tokenizer.json
RUN/generation.json     where unprompted text begins, and how it is sampled unless told otherwise
RUN/chat_template.jinja how a conversation is spelled, of some imported models
RUN/model.safetensors   the best weights so far; with an adapter, the weights it is for
RUN/adapter.safetensors the best adapter so far
RUN/neighbours.safetensors  the training pairs, where sources are read beside the nearest of them
RUN/report.html         one offline page
RUN/data/               the text as token ids
RUN/training/           the training state that a resume needs
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import Field, model_validator

from textwright import __version__
from textwright.adapting.lora import LowRankConfig
from textwright.adapting.prompt import PromptConfig
from textwright.config import Config
from textwright.decoding import Sampling
from textwright.errors import CheckpointError, ConfigError, nearest
from textwright.models import (
    EncoderDecoderConfig,
    PairModelConfig,
    PretrainedConfig,
    PretrainedPairsConfig,
    Seq2SeqConfig,
    TextModelConfig,
    TransformerConfig,
)
from textwright.models.base import BaseConfig, Precision
from textwright.models.rnn import RecurrentConfig
from textwright.text.filters import Filters
from textwright.text.pairs import PairSource
from textwright.text.sources import RUN, SourceConfig
from textwright.text.tokenizers import Tokenizer, TokenizerConfig
from textwright.training.checkpoint import (
    read_json,
    write_file,
    write_json,
)
from textwright.training.settings import TextTraining, TrainingConfig

FORMAT = 2
TEMPLATE = "chat_template.jinja"
WEIGHTS = "model.safetensors"
NEIGHBOURS = "neighbours.safetensors"
ADAPTER = "adapter.safetensors"
Task = Literal["translate", "summarize", "answer", "chat", "convert"]
TASKS: tuple[str, ...] = ("write", *get_args(Task))


class BaseRun(Config):
    """What every run is made of.

    Attributes:
        base: a run whose weights and tokenizers training begins with, or None.
        adapter: what learns in the place of the base's weights, or None.
        prompt: what learns in front of every text, in the place of the base's weights, or None.
        frozen: in fine-tuning, weights that stay as they are in the base, by how their names begin, as in blocks.0.
        valid_fraction, test_fraction: share of the data that is held back where no file is given; None: the usual one.
    """

    base: str | None = None
    adapter: LowRankConfig | None = None
    prompt: PromptConfig | None = None
    frozen: tuple[str, ...] = ()
    valid_fraction: float | None = Field(None, gt=0, lt=1)
    test_fraction: float | None = Field(None, ge=0, lt=1)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)

    @property
    def unit(self) -> str:
        """What a loss is a mean over, and what is counted in training."""
        return "token"

    def check_base(self, *, recurrent: bool, **others: bool) -> None:
        """Raise ValueError for parts (`others` are names and whether they are given) that need a base, or that do not
        go together."""
        learn = [name for name, part in (("adapter", self.adapter), ("prompt", self.prompt)) if part is not None]
        given = {**dict.fromkeys(learn, True), "frozen": bool(self.frozen), **others}
        part = next((name for name, here in given.items() if here), "")
        if part and self.base is None:
            raise ValueError(f"{part} is for a model that has learned already: textwright finetune BASE …")
        if len(learn) > 1:
            raise ValueError("adapter and prompt both say what learns: leave out one of them")
        if learn and self.frozen:
            raise ValueError(f"with {learn[0]} all weights of the base are frozen: leave out frozen")
        if self.adapter is not None and self.adapter.packed and recurrent:
            raise ValueError("adapter.packed is for Transformers, and this is a recurrent model: leave it out")


class ExamplesConfig(Config):
    """How rows become examples.

    Attributes:
        fields: the columns of prompt and answer; None: told by their usual names.
        longest: tokens that an example may have; longer ones are left out, and told.
        kind: "answers" are to be said; of "preferences" one answer rather than the other (DPO).
        beta: of preferences: a larger one keeps the model nearer to the base (β of DPO).
    """

    kind: Literal["answers", "preferences"] = "answers"
    beta: float = Field(0.1, gt=0)
    fields: tuple[str, str] | None = None
    longest: int = Field(512, gt=1)


class TextRun(BaseRun):
    """A model that goes on writing a text.

    Attributes:
        named: control tokens that the base's chat template knows by name, as in bos_token.
        examples: the source holds prompts with answers, or conversations, and only answers carry loss.
    """

    task: Literal["write"] = "write"
    named: dict[str, str] = Field(default_factory=dict)
    examples: ExamplesConfig | None = None
    source: SourceConfig
    valid: SourceConfig | None = None
    test: SourceConfig | None = None
    model: TextModelConfig
    training: TextTraining

    @property
    def unit(self) -> str:
        return "pair" if self.examples is not None and self.examples.kind == "preferences" else "token"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        training = self.training
        window = self.model.window if isinstance(self.model, TransformerConfig | PretrainedConfig) else None
        told = f"model.window {window}"
        if window is not None and self.prompt is not None:
            window -= self.prompt.tokens
            told += f" less prompt.tokens, {window}"
        if window is not None and training.context > window:
            raise ValueError(f"training.context {training.context} is larger than {told}")
        if window is not None and self.examples is not None and self.examples.longest > window:
            raise ValueError(f"examples.longest {self.examples.longest} is larger than {told}")
        if isinstance(self.model, PretrainedConfig) and self.base is None:
            raise ValueError("a model of the transformers library is imported, then fine-tuned: textwright import NAME")
        if training.batch_tokens < training.context:
            raise ValueError(f"training.batch_tokens {training.batch_tokens} is less than a row of {training.context}")
        if training.varied_context and window is not None:
            raise ValueError("training.varied_context is for models that carry their state: leave it out")
        if training.softmax_samples >= self.model.vocab:
            raise ValueError(
                f"training.softmax_samples {training.softmax_samples} is no less than the vocabulary of "
                f"{self.model.vocab}: leave it out"
            )
        if training.embedding == "cooccurrence" and self.base is not None:
            raise ValueError("training.embedding is for a model that begins anew: leave it out where one is fine-tuned")
        if training.embedding == "cooccurrence" and self.model.vocab < 2 * self.model.embedded:
            raise ValueError(
                f"training.embedding from co-occurrence needs a vocabulary of at least twice a token's vector, "
                f"{2 * self.model.embedded}, not {self.model.vocab}: leave it out"
            )
        if training.softmax_samples and training.label_smoothing:
            raise ValueError("training.label_smoothing needs the whole softmax: leave out training.softmax_samples")
        if training.calibrate and not isinstance(self.model, RecurrentConfig):
            raise ValueError("training.calibrate is for recurrent models, whose head has a bias: leave it out")
        if training.r_drop or training.scheduled_sampling:
            raise ValueError(
                "training.r_drop and training.scheduled_sampling are for tasks with a source: leave them out"
            )
        if training.keep == "score":
            raise ValueError("a text has no score besides its loss: leave out training.keep")
        check_compile(training, self.model)
        recurrent = isinstance(self.model, RecurrentConfig)
        self.check_base(recurrent=recurrent, examples=self.examples is not None)
        if self.examples is not None and training.varied_context:
            raise ValueError("examples are read whole: leave out training.varied_context")
        parts: dict[str, Any] = {"adapter": self.adapter, "prompt": self.prompt, "examples": self.examples}
        parts["frozen"] = self.frozen or None
        part = next((name for name, given in parts.items() if given is not None), None)
        if training.softmax_samples and part is not None:
            raise ValueError(f"training.softmax_samples is for a head that learns: leave it out with {part}")
        if training.calibrate and part is not None:
            raise ValueError(f"training.calibrate is for a run that learns all weights from a text: not with {part}")
        if part in ("adapter", "prompt") and isinstance(self.model, RecurrentConfig) and self.model.weight_drop:
            raise ValueError(f"model.weight_drop is for recurrent weights that learn: leave it out with {part}")
        if self.prompt is not None and isinstance(self.model, PretrainedConfig):
            raise ValueError("a prompt is learned for models of ours, not for the transformers library's: leave it out")
        return self


class PairRun(BaseRun):
    """A model that writes a target for a source.

    Attributes:
        pairs, valid_pairs, test_pairs: files, one after the other.
        source_tokenizer: of the source, where it is not the target's.
        cut: the most tokens that are read of a source: its first ones, of a dialogue its last; None: all of them.
        bpe_dropout: share of merges left out at random in training (Provilkov et al. 2020).
        neighbours: how many of the most similar training pairs, targets included, a source is read beside.
        language: of the target, as in "zh", for the tokens of BLEU; None: told from the text.
        lowercase: metrics do not see case.
    """

    task: Task
    pairs: tuple[PairSource, ...] = Field(min_length=1)
    valid_pairs: tuple[PairSource, ...] = ()
    test_pairs: tuple[PairSource, ...] = ()
    source_tokenizer: TokenizerConfig | None = None
    filters: Filters = Field(default_factory=Filters)
    cut: int | None = Field(None, gt=0)
    bpe_dropout: float = Field(0.0, ge=0, lt=1)
    neighbours: int = Field(0, ge=0, le=8)
    language: str | None = None
    lowercase: bool = False
    model: PairModelConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.training.r_drop and not self.model.dropout:
            raise ValueError("training.r_drop compares two passes with different dropout: set model.dropout")
        if self.training.keep == "score" and self.task == "chat":
            raise ValueError("a reply has many good answers and no score: leave out training.keep")
        if self.prompt is not None:
            raise ValueError("a prompt is learned for models that go on writing a text: leave it out")
        if self.neighbours and self.bpe_dropout:
            raise ValueError("bpe_dropout cuts a source anew, and neighbours are found by its pieces: leave out one")
        if self.neighbours and self.base is not None:
            raise ValueError("a base has not learned to read a source beside neighbours: leave them out")
        if isinstance(self.model, PretrainedPairsConfig) and self.base is None:
            raise ValueError("a model of the transformers library is imported, then fine-tuned: textwright import NAME")
        check_compile(self.training, self.model)
        self.check_base(recurrent=isinstance(self.model, Seq2SeqConfig))
        return self


def check_compile(training: TrainingConfig, model: BaseConfig) -> None:
    """Raise ValueError where nothing, or with a source not all, would be compiled."""
    if training.compile and not isinstance(model, TransformerConfig):
        raise ValueError("training.compile is for our Transformers that go on writing a text: leave it out")


class ImportedRun(Config):
    """A model that was trained elsewhere and goes on writing a text.

    Attributes:
        origin: the folder or the name on the hub that it came from.
        kind: the architecture it is there.
        precision: of its weights, on the disk and in memory.
        adapter: what was put on it, or None.
        named: control tokens that its chat template knows by name, as in bos_token.
    """

    task: Literal["imported"] = "imported"
    origin: str
    kind: str
    precision: Precision = "float32"
    model: Annotated[TransformerConfig | PretrainedConfig, Field(discriminator="family")]
    adapter: LowRankConfig | None = None
    named: dict[str, str] = Field(default_factory=dict)


class ImportedPairs(Config):
    """A model that was trained elsewhere and writes a target for a source. The names are those of `PairRun`.

    Attributes:
        origin: the folder or the name on the hub that it came from.
        kind: the architecture it is there.
        pairs: how sources are composed, as if it had been trained on such pairs.
    """

    task: Task
    origin: str
    kind: str
    pairs: tuple[PairSource, ...] = Field(min_length=1)
    cut: int | None = Field(None, gt=0)
    language: str | None = None
    lowercase: bool = False
    model: Annotated[EncoderDecoderConfig | PretrainedPairsConfig, Field(discriminator="family")]


Imported = ImportedRun | ImportedPairs
WithSource = PairRun | ImportedPairs
RunConfig = Annotated[TextRun | PairRun, Field(discriminator="task")]


def parse_run(data: Mapping[str, Any], origin: str = "configuration") -> TextRun | PairRun:
    """A run from plain data; without a task it writes.

    Raises:
        ConfigError: of a `Config`, or an unknown task.
    """
    task = data.get("task", "write")
    if task not in TASKS:
        raise ConfigError(f"{origin}: there is no task {task!r}.{nearest(str(task), TASKS)}")
    return (TextRun if task == "write" else PairRun).parse(data, origin)


class GenerationConfig(Config):
    """How a run writes unless told otherwise.

    Attributes:
        start: token ids in front of every prompt, where the training text began a document or a line.
        end: the id that ends a text; None where it only ends a line of a longer one.
        unseen: ids that the training text never used: what cannot have been learned is never written. Among them are
            the single bytes of a character vocabulary that knows all its characters.
        also_end: further ids that end a text, of models that have several.
        sampling: the preset.
    """

    start: tuple[int, ...] = Field(min_length=1)
    end: int | None
    unseen: tuple[int, ...] = ()
    also_end: tuple[int, ...] = ()
    sampling: Sampling = Field(default_factory=lambda: Sampling(temperature=0.8, top_p=0.95))
    max_new_tokens: int = Field(256, gt=0)

    @property
    def first(self) -> int:
        """The id in front of a text's first token, in training and measuring, too."""
        return self.start[-1]


class PairGeneration(Config):
    """How a run with a source writes unless told otherwise.

    Attributes:
        start: token ids in front of every text.
        end: the id that ends a text.
        unseen: ids that no training target used; they are never written.
        beams, length_penalty: of the beam search; one beam is greedy decoding.
        growth: a text is cut after growth · source tokens + 10.
    """

    start: tuple[int, ...]
    end: int
    unseen: tuple[int, ...] = ()
    beams: int = Field(5, gt=0)
    length_penalty: float = Field(1.0, ge=0)
    growth: float = Field(2.0, gt=0)


class Manifest(Config):
    """config.json."""

    format: int = FORMAT
    textwright: str = __version__
    hardware: str
    fingerprint: str = Field(description="SHA-256 of the training data's bytes")
    asked: dict[str, Any]
    config: RunConfig


class ImportedManifest(Config):
    """config.json of a model that was trained elsewhere."""

    format: int = FORMAT
    textwright: str = __version__
    config: Annotated[Imported, Field(discriminator="task")]


def read_run(folder: Path) -> TextRun | WithSource | ImportedRun:
    """What the run is. The errors of `read_manifest`."""
    return _read(folder).config


def read_manifest(folder: Path) -> Manifest:
    """config.json of a run that was trained here.

    Raises:
        CheckpointError: the folder is no run, is damaged, was written by a newer version, or was imported.
    """
    manifest = _read(folder)
    if isinstance(manifest, ImportedManifest):
        raise CheckpointError(
            f"{folder} was imported from {manifest.config.origin}, not trained here: it generates and evaluates"
        )
    return manifest


def _read(folder: Path) -> Manifest | ImportedManifest:
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist: expected a folder that `textwright train` wrote")
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no config.json: expected a folder that `textwright train` wrote")
    data = read_json(path)
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path} has no format number: expected a file that `textwright train` wrote")
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version of Textwright reads up to {FORMAT}: pip install -U textwright"
        )
    if version < 2:  # there was one task only
        data = {**data, "format": FORMAT, "config": {"task": "write", **data["config"]}}
    imported = isinstance(data.get("config"), dict) and "origin" in data["config"]
    try:
        return (ImportedManifest if imported else Manifest).parse(data, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_manifest(folder: Path, manifest: Manifest | ImportedManifest) -> None:
    """Written last of what describes a run, because it is what makes a folder a run."""
    write_json(folder / "config.json", manifest.dump())


def write_generation(folder: Path, generation: Config) -> None:
    """How the run writes: a `GenerationConfig` or a `PairGeneration`."""
    write_json(folder / "generation.json", generation.dump())


def write_template(folder: Path, template: str) -> None:
    """How a conversation is spelled, as Jinja: the chat template of an imported model."""
    write_file(folder / TEMPLATE, lambda path: path.write_text(template, encoding="utf-8"))


def read_template(folder: Path) -> str | None:
    """The chat template, of a run that has one."""
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None


G = TypeVar("G", bound=Config)


def read_generation(folder: Path, kind: type[G]) -> G:
    """generation.json of a run."""
    path = folder / "generation.json"
    try:
        return kind.parse(read_json(path), str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def load_tokenizer(folder: Path, vocabulary: int, name: str = "tokenizer", *, spare: bool = False) -> Tokenizer:
    """A tokenizer of a run; with `spare`, the model may have more ids than the tokenizer.

    Raises:
        CheckpointError: when it does not fit the model.
    """
    tokenizer = Tokenizer.load(folder / f"{name}.json")
    if spare:
        tokenizer.reserve(vocabulary)
    if tokenizer.size != vocabulary:
        raise CheckpointError(
            f"{folder / name}.json has {tokenizer.size} ids, the model has {vocabulary}: they belong to different runs"
        )
    return tokenizer


def merge(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """`asked` over `defaults`, section by section."""
    result = dict(defaults)
    for key, value in asked.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second training out of the folder. The lock is the system's: it is gone when the process is. A folder that
    was made here, and in which nothing began, is gone as well."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / RUN, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another training runs in {folder}: wait for it, or give another --out") from None
        for rest in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            rest.unlink()
        try:
            yield
        finally:
            if new and [path.name for path in folder.glob("*")] == [RUN]:
                shutil.rmtree(folder)
    finally:
        os.close(handle)
