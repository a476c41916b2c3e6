"""RUN/report.html: what a run learned, how well, how fast, and from which configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from textwright.evaluating.perplexity import Panel
from textwright.job import Job, Measures
from textwright.reporting import Code, Sample, Section, Series, heatmap, lines, page, table
from textwright.reporting.page import Block
from textwright.reporting.tables import Table
from textwright.run import Manifest
from textwright.training.checkpoint import write_file
from textwright.training.records import EvaluationRecord, Progress
from textwright.training.settings import TextTraining


def write_report(
    folder: Path,
    manifest: Manifest,
    parameters: int,
    job: Job,
    progress: Progress,
    measures: Measures | None,
    verdict: str,
) -> None:
    """Write the page, atomically."""
    family = manifest.config.model.family
    html = page(
        folder.name,
        f"{manifest.config.task} · {family} · {parameters:,} parameters",
        _facts(progress, measures, parameters, manifest.config.unit),
        [
            Section("Verdict", [verdict]),
            Section("Learning", [*_learning(progress, manifest.config.unit), *_apart(manifest)]),
            *(measures.sections if measures else []),
            Section("Samples", _samples(progress)),
            Section("Speed and size", [_sizes(manifest, parameters, job, progress)]),
            Section("Configuration", [_configuration(manifest)]),
        ],
    )
    write_file(folder / "report.html", lambda path: path.write_text(html, encoding="utf-8"))


def _facts(progress: Progress, measures: Measures | None, parameters: int, unit: str) -> list[tuple[str, object]]:
    facts = measures.facts if measures else []
    return [*facts, ("parameters", parameters), _speed(progress, unit), ("minutes", progress.seconds / 60)]


def _speed(progress: Progress, unit: str) -> tuple[str, object]:
    return f"{unit}s a second", round(progress.tokens / max(progress.seconds, 1e-9))


def _learning(progress: Progress, unit: str) -> list[Block]:
    steps, looks = progress.steps, progress.evaluations
    losses = lines(
        [
            Series("training", [r.step for r in steps], [r.loss for r in steps]),
            Series("validation", [r.step for r in looks], [r.valid_loss for r in looks]),
        ],
        x="step",
        y=f"nats a {unit}",
        title="Loss",
        log_y=True,
        marks=[(progress.best_step, "best")],
    )
    if not steps:
        return [losses]
    rate = lines(
        [Series("learning rate", [r.step for r in steps], [r.learning_rate for r in steps])],
        x="step",
        y="learning rate",
        title="Learning rate",
    )
    scored = [look for look in looks if look.valid_score is not None]
    scores = [_scores(scored)] if scored else []
    names = list(steps[-1].layers)
    norms = heatmap(
        [[record.layers.get(name, math.nan) for record in steps] for name in names],
        names,
        [record.step for record in steps],
        x="step",
        title="Gradient norm of each layer",
    )
    return [losses, *scores, rate, norms]


def _apart(manifest: Manifest) -> list[Block]:
    """Why the two curves of the loss are not the same measure."""
    told: list[Block] = []
    if manifest.config.model.dropout:
        told.append("The training loss is measured with dropout, the validation loss without: it may be lower.")
    if isinstance(training := manifest.config.training, TextTraining) and training.calibrate:
        told.append("The validation loss is that of a model that was fitted to a part of that text, by two numbers.")
    return told


def _scores(looks: Sequence[EvaluationRecord]) -> Block:
    series = Series("validation", [look.step for look in looks], [look.valid_score or 0.0 for look in looks])
    return lines([series], x="step", y="score", title="Score of the task, greedy decoding")


def panel_table(panels: Mapping[str, Panel]) -> Table:
    """One column a text, one row a figure."""
    rows = [
        ("tokens", *(panel.tokens for panel in panels.values())),
        ("loss, nats a token", *(panel.loss for panel in panels.values())),
        ("perplexity of a token", *(panel.token_perplexity for panel in panels.values())),
        ("perplexity of a word", *(panel.word_perplexity for panel in panels.values())),
        ("bits a byte", *(panel.bits_per_byte for panel in panels.values())),
        ("bits a character", *(panel.bits_per_character for panel in panels.values())),
        ("tokens outside the vocabulary, %", *(100 * panel.unknown for panel in panels.values())),
        ("context", *(panel.context for panel in panels.values())),
    ]
    return table(["", *panels], rows)


def _samples(progress: Progress) -> list[Block]:
    looks = [record for record in progress.evaluations if record.sample]
    chosen = [looks[0], looks[len(looks) // 2], looks[-1]] if len(looks) > 2 else looks
    return [Sample(record.sample, f"after {record.step:,} steps, loss {record.valid_loss:.3f}") for record in chosen]


def _sizes(manifest: Manifest, parameters: int, job: Job, progress: Progress) -> Table:
    rows = [
        ("machine", manifest.hardware),
        ("parameters", parameters),
        *job.sizes(),
        (f"{manifest.config.unit}s seen", progress.tokens),
        ("epochs", progress.seen / job.epoch_tokens),
        ("steps", progress.step),
        _speed(progress, manifest.config.unit),
        ("minutes", progress.seconds / 60),
        ("ended because", progress.finished),
    ]
    return table(["", ""], rows)


def _configuration(manifest: Manifest) -> Code:
    text = yaml.safe_dump(manifest.config.dump(), sort_keys=False, allow_unicode=True)
    return Code(
        f"# Textwright {manifest.textwright}, source SHA-256 {manifest.fingerprint}\n{text}", "Resolved, as YAML"
    )
