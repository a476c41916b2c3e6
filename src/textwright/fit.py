"""From what was asked to a trained run: prepare, plan, train, measure, report."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textwright import plan
from textwright.config import override
from textwright.errors import ConfigError, TrainingError
from textwright.evaluating.perplexity import Panel, head, panel, score
from textwright.models import LanguageModel
from textwright.report import write_report
from textwright.run import (
    GenerationConfig,
    Manifest,
    RunConfig,
    build_model,
    load_model,
    locked,
    merge,
    read_generation,
    read_manifest,
    write_run,
)
from textwright.text.batching import Batches, Streams, Windows
from textwright.text.corpus import Corpus, Facts, Prepared, open_prepared, prepare
from textwright.text.sources import RUN, SourceConfig, files, fingerprint
from textwright.text.tokenizers import TokenizerConfig
from textwright.training import hardware, parallel
from textwright.training.callbacks import Listener, Listeners, TensorBoard
from textwright.training.checkpoint import read_json, save_tensors, weights, write_file, write_json
from textwright.training.loop import Trainer, is_memory
from textwright.training.records import EvaluationRecord, Progress
from textwright.verdict import verdict
from textwright.writer import generation_config, sample_text

QUICK = 50_000  # validation tokens looked at during training; the whole text is measured at the end
FIRST = 2_000  # and before training, when any model is equally ignorant
SAMPLE = 200  # tokens of a sample
# Settings that may differ when a run goes on.
NEUTRAL = (
    "training.budget.",
    "training.accumulation",
    "training.device",
    "training.save_seconds",
    "training.log_every",
)


@dataclass(frozen=True)
class Outcome:
    """A finished (or interrupted) run."""

    folder: Path
    progress: Progress
    panels: dict[str, Panel]  # by split; empty when interrupted
    verdict: str

    @property
    def complete(self) -> bool:
        return bool(self.progress.finished)


class Audience(Listener):
    """A listener who is also told of what comes before and after training."""

    def preparing(self, what: str, characters: float) -> None:
        """The text is being read."""

    def planned(self, manifest: Manifest, model: LanguageModel, data: Prepared) -> None:
        """Everything is decided; training is about to begin."""

    def measured(self, outcome: Outcome) -> None:
        """The run is finished and measured."""


def fit(asked: Mapping[str, Any], out: Path, audience: Audience, *, tensorboard: bool = False) -> Outcome:
    """Train what `asked` (parts of a `RunConfig`) describes into the folder `out`, or go on where it stopped.

    Raises:
        TextwrightError: of some kind, for everything a user can mend.
    """
    check(asked)
    world = parallel.join()
    try:
        if not world.first:
            if not world.agree([0.0])[0]:  # the first process prepares
                raise TrainingError("the first process could not begin: its message says why")
            return _train(out, Audience(), world, tensorboard=False)
        prepared = False
        try:
            _foreign(out)
            with locked(out):
                _prepare(asked, out, audience, world)
                prepared = bool(world.agree([1.0])[0])
                return _train(out, audience, world, tensorboard=tensorboard)
        finally:
            if not prepared:
                world.agree([0.0])
    except (RuntimeError, MemoryError) as error:
        if not is_memory(error):
            raise
        raise TrainingError("out of memory: a smaller model (--set model.width=…) and another --out fit") from None
    finally:
        world.leave()


def check(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError for unknown keys and impossible values, before any work is done."""
    place = hardware.Hardware(torch.device("cpu"), "float32", 1e11)
    situation = plan.Situation(Facts(vocabulary=256, tokens=1_000_000), place)
    useless = [key for key in ("valid_fraction", "test_fraction") if key in asked and asked.get("valid")]
    if useless:
        raise ConfigError(f"with a validation text nothing is split off: leave out {useless[0]}")
    RunConfig.parse(merge(plan.neutral(asked), asked))  # types first: the plan computes with what was asked for
    RunConfig.parse(merge(plan.defaults(asked, situation), asked))


def _prepare(asked: Mapping[str, Any], out: Path, audience: Audience, world: parallel.World) -> None:
    if (out / "config.json").exists():
        _reopen(asked, out)
        return
    training = asked.get("training", {})
    place = hardware.choose(training.get("device", "auto"), training.get("precision", "auto"))
    source = SourceConfig.parse(asked["source"], "source")
    for other in (source, *filter(None, (_alike(asked, key) for key in ("valid", "test")))):
        files(other)  # a missing one is told now, not when the vocabulary is learned
    print_ = fingerprint(source)
    data = _data(asked, out, print_, audience)
    situation = plan.Situation(data.train.facts, place, world.size)
    config = RunConfig.parse(merge(plan.defaults(asked, situation), asked))
    if config.model.vocab != data.tokenizer.size:
        raise ConfigError(f"model.vocab is {config.model.vocab}, the tokenizer has {data.tokenizer.size}: leave it out")
    manifest = Manifest(hardware=place.describe(), fingerprint=print_, asked=dict(asked), config=config)
    write_run(out, manifest, data.tokenizer, generation_config(data.tokenizer, data.train))


def _foreign(out: Path) -> None:
    """Raise ConfigError for a folder with anything in it that is not ours: nothing there may be lost."""
    if (out / "config.json").exists() or not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder as --out")
    begun = {RUN, "data", "tokenizer.json", "generation.json"}
    corpora = {f"{name}{rest}" for name in ("train", "valid", "test") for rest in ("", ".partial")}
    data = (out / "data").iterdir() if (out / "data").is_dir() else ()
    strange = [path for path in out.iterdir() if path.name not in begun and not path.name.endswith(".tmp")]
    strange += [path for path in data if path.name not in {*corpora, "tokenizer.json", "request.json"}]
    if [path for path in strange if not path.name.endswith(".tmp")]:
        raise ConfigError(f"{out} is not empty and holds no run: give another --out, or empty it")


def _data(asked: Mapping[str, Any], out: Path, print_: str, audience: Audience) -> Prepared:
    folder, keys = out / "data", ("source", "valid", "test", "tokenizer", "valid_fraction", "test_fraction")
    request = {"fingerprint": print_, **{key: asked[key] for key in keys if key in asked}}
    prepared = folder / "request.json"  # written last: the text was prepared to the end, as it is asked for
    if prepared.exists() and read_json(prepared) == request:
        return open_prepared(folder)
    shutil.rmtree(folder, ignore_errors=True)
    source = SourceConfig.parse(asked["source"], "source")
    others = [_alike(asked, key) for key in ("valid", "test")]
    fractions = {key: asked[key] for key in keys[4:] if key in asked}
    tokenizer = TokenizerConfig.parse(asked.get("tokenizer", {}), "tokenizer")
    data = prepare(source, others[0], others[1], tokenizer, folder, progress=audience.preparing, **fractions)
    write_json(prepared, request)
    return data


def _alike(asked: Mapping[str, Any], key: str) -> SourceConfig | None:
    """A validation or test source: read as the training source is, unless it says otherwise."""
    return SourceConfig.parse({**asked["source"], **asked[key]}, key) if asked.get(key) else None


def _reopen(asked: Mapping[str, Any], out: Path) -> None:
    """Check that an existing run is the one that is asked for; what changes no result is taken over."""
    manifest = read_manifest(out)
    if fingerprint(manifest.config.source) != manifest.fingerprint:
        path = manifest.config.source.path
        raise ConfigError(f"{path} has changed since the run in {out} began: give another --out to train on it anew")
    old, new = _flat(manifest.asked), _flat(asked)
    taken = {key: value for key, value in new.items() if key.startswith(NEUTRAL) and old.get(key) != value}
    different = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    changed = sorted(key for key in different if not key.startswith(NEUTRAL))
    if changed:
        was, wanted = (flat.get(changed[0], "chosen for you") for flat in (old, new))
        raise ConfigError(
            f"{out} holds a run with {changed[0]} = {was}, you ask for {wanted}: give another --out to start anew, or "
            "the same options to go on"
        )
    if taken:
        data = manifest.dump()
        if any(key.startswith("training.budget.") for key in taken):
            data["config"]["training"]["budget"] = {}
        data["config"] = override(data["config"], [f"{key}={value}" for key, value in taken.items()])
        data["asked"] = dict(asked)
        write_json(out / "config.json", Manifest.parse(data).dump())


def _train(out: Path, audience: Audience, world: parallel.World, *, tensorboard: bool) -> Outcome:
    manifest = read_manifest(out)
    config, data = manifest.config, open_prepared(out / "data")
    generation = read_generation(out)
    hardware.keep_memory()
    device = hardware.pick_device(config.training.device)
    model = build_model(config, device)
    audience.planned(manifest, model, data)
    sampler = _Sampler(data, generation)
    listeners = [audience, sampler, *([TensorBoard(out / "tensorboard")] if tensorboard else [])]
    end = data.tokenizer.end

    def validate(model: LanguageModel) -> float:
        part = head(data.valid, QUICK if trainer.progress.step else FIRST)
        total, tokens, _ = score(model, part, end, stride=model.window, precision=config.training.precision)
        return total / tokens

    def keep(model: LanguageModel, record: EvaluationRecord) -> None:
        write_file(out / "model.safetensors", lambda path: save_tensors(path, weights(model)))

    trainer = Trainer(
        config.training,
        model,
        batches(config, data.train, model, end, world),
        data.train.facts.tokens,
        out / "training",
        validate=validate,
        keep=keep,
        listener=Listeners(*listeners),
        world=world,
    )
    progress = trainer.run()
    if not world.first:
        return Outcome(out, progress, {}, "")
    if not progress.finished:
        outcome = Outcome(out, progress, {}, f"Interrupted. {verdict(progress)}")
        write_report(out, manifest, model.count_parameters(), data, progress, {}, outcome.verdict)
        return outcome
    return _measure(out, manifest, data, progress, audience)


def _measure(out: Path, manifest: Manifest, data: Prepared, progress: Progress, audience: Audience) -> Outcome:
    config = manifest.config
    model = load_model(out, config, hardware.pick_device(config.training.device))
    splits: dict[str, Corpus] = {"validation": data.valid, "test": data.test}
    panels = {name: panel(model, corpus, data.tokenizer.end) for name, corpus in splits.items() if corpus.facts.tokens}
    outcome = Outcome(out, progress, panels, verdict(progress))
    write_report(out, manifest, model.count_parameters(), data, progress, panels, outcome.verdict)
    audience.measured(outcome)
    return outcome


def batches(config: RunConfig, corpus: Corpus, model: LanguageModel, end: int, world: parallel.World) -> Batches:
    """Contiguous streams for models whose memory does not grow, shuffled windows for the others."""
    training = config.training
    if model.window is not None:
        return Windows(corpus, training.context, training.batch_tokens, end, training.seed)
    streams = Streams(corpus, max(1, training.batch_tokens // training.context), training.context, end, training.seed)
    if streams.rows % world.size:
        raise ConfigError(
            f"{streams.rows} rows cannot be shared by {world.size} processes: "
            "set training.batch_tokens and another --out"
        )
    return streams


class _Sampler(Listener):
    """Writes a sample at every evaluation."""

    def __init__(self, data: Prepared, generation: GenerationConfig) -> None:
        self.tokenizer, self.generation = data.tokenizer, generation

    def sample(self, model: LanguageModel) -> str:
        return sample_text(model, self.tokenizer, self.generation, SAMPLE)


def default_folder(source: str, family: str) -> Path:
    """runs/NAME-FAMILY."""
    name = re.sub(r"[^\w.-]+", "-", Path(source.rstrip("/")).stem if "*" not in source else source).strip("-.")
    return Path("runs") / f"{name or 'text'}-{family}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
