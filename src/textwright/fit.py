"""From what was asked to a trained run: prepare, plan, train, measure, report."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textwright.config import override
from textwright.errors import ConfigError, TextwrightError, TrainingError, nearest
from textwright.example_job import ExampleJob
from textwright.job import Job, Measures
from textwright.models import LanguageModel
from textwright.pair_job import PairJob
from textwright.preference_job import PreferenceJob
from textwright.report import write_report
from textwright.run import (
    NEIGHBOURS,
    TASKS,
    TEMPLATE,
    WEIGHTS,
    Manifest,
    PairRun,
    TextRun,
    locked,
    merge,
    parse_run,
    read_manifest,
    write_manifest,
)
from textwright.run_model import build_model, kept, load_model, restrict
from textwright.text.marked import FACTS, REJECTED
from textwright.text.sides import CHARACTERS
from textwright.text.sources import RUN
from textwright.text_job import TextJob
from textwright.training import hardware, parallel
from textwright.training.callbacks import Listener, Listeners, TensorBoard
from textwright.training.checkpoint import flush, load_weights, read_json, save_tensors, write_file, write_json
from textwright.training.compiling import compile_blocks
from textwright.training.loop import Trainer, is_memory
from textwright.training.records import Progress
from textwright.verdict import verdict

# Settings that may differ when a run goes on.
NEUTRAL = (
    "training.budget.",
    "training.accumulation",
    "training.device",
    "training.compile",
    "training.save_seconds",
    "training.log_every",
)


@dataclass(frozen=True)
class Outcome:
    """A finished (or interrupted) run."""

    folder: Path
    progress: Progress
    measures: Measures | None  # None when interrupted
    verdict: str
    how: str = ""  # the command that writes with it

    @property
    def complete(self) -> bool:
        return bool(self.progress.finished)


class Audience(Listener):
    """A listener who is also told of what comes before and after training."""

    def preparing(self, what: str, characters: float) -> None:
        """The text is being read."""

    def planned(self, manifest: Manifest, model: LanguageModel, job: Job) -> None:
        """Everything is decided; training is about to begin."""

    def measured(self, outcome: Outcome) -> None:
        """The run is finished and measured."""


def fit(asked: Mapping[str, Any], out: Path, audience: Audience, *, tensorboard: bool = False) -> Outcome:
    """Train what `asked` (parts of a run, see `run`) describes into the folder `out`, or go on where it stopped.

    Raises:
        TextwrightError: of some kind, for everything a user can mend.
    """
    job_of(asked).check(asked)
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
        if parallel.lost(error):
            raise TrainingError(
                "another process of this run ended or cannot be reached. Its message says why; if it has none: "
                f"{str(error).split('. ')[0]}"
            ) from None
        if not is_memory(error):
            raise
        raise TrainingError("out of memory: a smaller model (--set model.width=…) and another --out fit") from None
    finally:
        world.leave()


def job_of(asked: Mapping[str, Any]) -> type[Job]:
    """The kind of job a request is for.

    Raises:
        ConfigError: there is no such task.
    """
    task = asked.get("task", "write")
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r}.{nearest(str(task), TASKS)}")
    if task != "write":
        return PairJob
    examples = asked.get("examples")
    preferences = isinstance(examples, Mapping) and examples.get("kind") == "preferences"
    return TextJob if examples is None else PreferenceJob if preferences else ExampleJob


def open_job(config: TextRun | PairRun, out: Path) -> Job:
    """The job of a run whose data was prepared."""
    if isinstance(config, PairRun):
        return PairJob(config, out)
    if config.examples is None:
        return TextJob(config, out)
    return (PreferenceJob if config.examples.kind == "preferences" else ExampleJob)(config, out)


def _prepare(asked: Mapping[str, Any], out: Path, audience: Audience, world: parallel.World) -> None:
    if (out / "config.json").exists():
        _reopen(asked, out)
        return
    kind, training, data = job_of(asked), asked.get("training", {}), out / "data"
    place = hardware.choose(training.get("device", "auto"), training.get("precision", "auto"))
    print_ = kind.fingerprint(asked)
    request = {"fingerprint": print_, **kind.request(asked)}
    prepared = data / "request.json"  # written last: the data was prepared to the end, as it is asked for
    if not (prepared.exists() and read_json(prepared) == request):
        shutil.rmtree(data, ignore_errors=True)
        try:
            kind.prepare(asked, data, audience.preparing)
        except BaseException:  # half of it is of no use
            shutil.rmtree(data, ignore_errors=True)
            raise
        flush(data)  # before anything says that it is there
        write_json(prepared, request)
    defaults = kind.defaults(asked, data, place, world.size)
    config = parse_run(merge(defaults, asked))
    vocabulary = defaults["model"]["vocab"]
    if config.model.vocab < vocabulary or (config.model.vocab > vocabulary and config.base is None):
        raise ConfigError(f"model.vocab is {config.model.vocab}, the tokenizer has {vocabulary}: leave it out")
    kind.describe_run(config, data, out)
    write_manifest(out, Manifest(hardware=place.describe(), fingerprint=print_, asked=dict(asked), config=config))


def _foreign(out: Path) -> None:
    """Raise ConfigError for a folder with anything in it that is not ours: nothing there may be lost."""
    if (out / "config.json").exists() or not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder as --out")
    begun = {RUN, "data", "tokenizer.json", "source_tokenizer.json", "generation.json", WEIGHTS, NEIGHBOURS, TEMPLATE}
    corpora = {f"{name}{rest}" for name in ("train", "valid", "test") for rest in ("", ".partial")}
    data = (out / "data").iterdir() if (out / "data").is_dir() else ()
    strange = [path for path in out.iterdir() if path.name not in begun and not path.name.endswith(".tmp")]
    known = {
        *corpora,
        "tokenizer.json",
        "source_tokenizer.json",
        "request.json",
        "facts.json",
        FACTS,
        REJECTED,
        CHARACTERS,
    }
    strange += [path for path in data if path.name not in known]
    if [path for path in strange if not path.name.endswith(".tmp")]:
        raise ConfigError(f"{out} is not empty and holds no run: give another --out, or empty it")


def _reopen(asked: Mapping[str, Any], out: Path) -> None:
    """Check that an existing run is the one that is asked for; what changes no result is taken over."""
    manifest = read_manifest(out)
    if job_of(manifest.asked).fingerprint(manifest.asked) != manifest.fingerprint:
        raise ConfigError(f"the data has changed since the run in {out} began: give another --out to train on it anew")
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
        write_manifest(out, Manifest.parse(data))


def _train(out: Path, audience: Audience, world: parallel.World, *, tensorboard: bool) -> Outcome:
    manifest = read_manifest(out)
    config = manifest.config
    job = open_job(config, out)
    hardware.keep_memory()
    model = build_model(config, hardware.pick_device(config.training.device))
    if config.base is not None:
        load_weights(model, out / WEIGHTS)
        model = restrict(model, config)
    if config.training.compile:
        compile_blocks(model, model.device)
    audience.planned(manifest, model, job)
    listeners = [audience, _Sampler(job), *([TensorBoard(out / "tensorboard")] if tensorboard else [])]

    def keep(model: LanguageModel) -> None:
        name, values = kept(model, config)
        write_file(out / name, lambda path: save_tensors(path, values))

    trainer = Trainer(
        config.training,
        model,
        job.batches(model, world),
        job.epoch_tokens,
        out / "training",
        validate=lambda model: job.validate(model, trained=trainer.progress.step > 0),
        calibrate=lambda model: job.calibrate(model, trained=trainer.progress.step > 0),
        keep=keep,
        listener=Listeners(*listeners),
        world=world,
        sampler=job.sampler(model.device),
        begin=job.begin(),
    )
    progress = trainer.run()
    if not world.first:
        return Outcome(out, progress, None, "")
    told = verdict(progress, unit=config.unit, comparable=job.comparable)
    if progress.finished:
        best = load_model(out, config, hardware.pick_device(config.training.device))
        outcome = Outcome(out, progress, job.measure(best), told, job.use(out))
    else:
        outcome = Outcome(out, progress, None, f"Interrupted. {told}")
    write_report(out, manifest, model.count_parameters(), job, progress, outcome.measures, outcome.verdict)
    if outcome.complete:
        audience.measured(outcome)
    return outcome


class _Sampler(Listener):
    """Writes a sample at every evaluation. Where the model cannot write, its next loss tells why: training goes on."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def sample(self, model: LanguageModel) -> str:
        try:
            return self.job.sample(model)
        except TextwrightError as error:
            return f"({error})"


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
