"""How a run degenerates: what it writes greedily, by plain sampling and by its own preset, beside real text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from textwright.decoding import Request, Sampling, generate
from textwright.errors import CheckpointError, ConfigError, MissingExtraError
from textwright.evaluating.degeneration import LEAST, Degeneration, measure, stream, unit_of, units
from textwright.evaluating.sacre import sacrebleu
from textwright.evaluating.verbatim import copied
from textwright.presets import dry_allowed
from textwright.progress import Told, untold
from textwright.reporting import Table, table
from textwright.text.corpus import Prepared, open_prepared
from textwright.text.passages import Passage, passages, text_of
from textwright.wishes import stop_strings
from textwright.writer import ROWS, TextModel, TextStream

TEXTS, LENGTH = 20, 256  # of each kind; tokens of each
PROMPT = 4  # words, or characters in scripts without spaces, that a text goes on from
HELD_OUT, TRAINING = "held-out text", "training text"

FAR = 3  # times the figure of real text
AT_LEAST = {"rep_4": 1.0, "overlap": 3.0}  # percent that real text is taken to have, for it may have none
BLEU_APART = 15.0  # percentage points above real text's


@dataclass(frozen=True)
class DegenerationReport:
    """The panel of every way of writing.

    Attributes:
        length, seed: of the texts, as they were asked for.
        unit: "words" or "characters": what figures count.
        panels: by way of writing; `reference` among them, the last one.
        reference: the name of the real text; None where there is none any more.
        advice: what is far worse than in real text, and the option that helps.
        notes: what was compared, and what was left out.
    """

    length: int
    seed: int
    unit: str
    panels: dict[str, Degeneration]
    reference: str | None
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """One column a way of writing, one row a figure."""
        rows = {
            "texts": "texts",
            f"{self.unit} a text": "units",
            "rep-2, %": "rep_2",
            "rep-3, %": "rep_3",
            "rep-4, %": "rep_4",
            f"longest loop, {self.unit}": "loop",
            "its repetitions": "loop_times",
            "distinct-1, %": "distinct_1",
            "distinct-2, %": "distinct_2",
            "self-BLEU": "self_bleu",
            f"verbatim, {LEAST[self.unit]} {self.unit} or more, %": "overlap",
            f"longest verbatim span, {self.unit}": "longest_copy",
        }
        panels = [panel._asdict() for panel in self.panels.values()]
        cells = [(heading, *(_rounded(panel[name]) for panel in panels)) for heading, name in rows.items()]
        return table(["", *self.panels], cells, caption=f"Texts of at most {self.length} tokens, seed {self.seed}")

    def dump(self) -> dict[str, Any]:
        """Plain data."""
        panels = {name: panel._asdict() for name, panel in self.panels.items()}
        asked = {"length": self.length, "seed": self.seed, "unit": self.unit, "least": LEAST[self.unit]}
        return {**asked, "reference": self.reference, "panels": panels, "advice": self.advice, "notes": self.notes}


def degeneration_report(
    model: TextModel, run: Path, *, n: int = TEXTS, length: int = LENGTH, seed: int = 0, progress: Told = untold
) -> DegenerationReport:
    """Write texts in three ways and measure them beside real text of the same length.

    Every way goes on from the same beginnings, taken from the run's held-out text or, where that is too short, from
    its training text; real text is what follows them there. Without the run's data the texts begin as they like, and
    there is neither real text nor overlap. Where beginnings are equal, greedy decoding writes one text for them.

    Args:
        model: the run, opened.
        run: its folder.
        n: texts of each kind; fewer where the run's text is short.
        length: tokens of each, at most.
        seed: of the first text that is drawn; the next one has seed + 1.
        progress: is told how many more tokens are written.

    Raises:
        ConfigError: n or length below 1.
    """
    if n < 1 or length < 1:
        raise ConfigError(f"expected n and length of at least 1, got n {n} and length {length}")
    data, notes = _data(run)
    reference, real = (None, []) if data is None else _real(data, n, length)
    if reference is not None and len(real) < n:
        notes.append(f"the run's text is short: {len(real)} texts of each kind instead of {n}")
    prompts = [passage.prompt for passage in real] or [""] * n
    texts = _written(model, prompts, length, seed, progress)
    if reference is not None:
        texts[reference] = [passage.rest for passage in real]
    notes += _told(model, reference)
    try:
        sacrebleu("self-BLEU")
        has_bleu = True
    except MissingExtraError as error:
        has_bleu = False
        notes.append(str(error))
    unit = unit_of(chain.from_iterable(texts.values()))
    copies = _copies(texts, data)
    panels = {name: measure(some, unit, copies.get(name), bleu=has_bleu) for name, some in texts.items()}
    allowed = dry_allowed(model.tokenizer)
    advice = [] if reference is None else advise(panels, reference, allowed)
    return DegenerationReport(length, seed, unit, panels, reference, advice, notes)


def _data(run: Path) -> tuple[Prepared | None, list[str]]:
    try:
        return open_prepared(run / "data"), []
    except CheckpointError as error:
        return None, [f"without the run's text there is nothing real to compare with, and no overlap: {error}"]


def _real(data: Prepared, n: int, length: int) -> tuple[str | None, list[Passage]]:
    """Real text and what it is called: held out, because training text lies verbatim in itself."""
    look = partial(passages, tokenizer=data.tokenizer, count=n, length=length, words=PROMPT, split=units)
    for corpus in (data.test, data.valid):
        found = look(corpus)
        if len(found) == n:
            return HELD_OUT, found
    found = look(data.train)
    return (TRAINING, found) if found else (None, [])


def _written(model: TextModel, prompts: Sequence[str], length: int, seed: int, progress: Told) -> dict[str, list[str]]:
    """Texts by way of writing."""
    write = partial(_texts, model, length=length, seed=seed, progress=progress)
    return {
        "greedy": write(list(dict.fromkeys(prompts)), Sampling(temperature=0.0)),
        "temperature 1": write(prompts, Sampling()),
        "preset": write(prompts, model.generation.sampling),
    }


def _texts(
    model: TextModel, prompts: Sequence[str], sampling: Sampling, length: int, seed: int, progress: Told
) -> list[str]:
    """What `TextModel.generate` writes for each prompt, many of them at once."""
    ids = [model.prompt_ids(prompt) for prompt in prompts]
    stop = stop_strings(model.tokenizer, (), "stop", frozenset(), model.generation.also_end)
    requests = [Request(one, sampling, seed + number, length, stop=stop) for number, one in enumerate(ids)]
    streams = [TextStream(model.tokenizer, request) for request in requests]
    texts = [""] * len(prompts)
    own = model.generation
    for event in generate(model.network, requests, own.end, banned=own.unseen, max_rows=ROWS):
        texts[event.request] += streams[event.request].feed(event)
        progress(1)
    return texts


def _copies(texts: Mapping[str, Sequence[str]], data: Prepared | None) -> dict[str, list[list[int]]]:
    """`copied` of all texts but the training text itself, in one pass over it."""
    names = [name for name in texts if name != TRAINING]
    if data is None:
        return {}
    source = stream(text_of(data.train, data.tokenizer))
    found = iter(copied([units(text) for name in names for text in texts[name]], source))
    return {name: [next(found) for _ in texts[name]] for name in names}


def _told(model: TextModel, reference: str | None) -> list[str]:
    asked = ", ".join(f"{name} {value:g}" for name, value in model.generation.sampling.asked().items())
    notes = [f"preset: {asked or 'the same as temperature 1'}"]
    if reference == TRAINING:
        notes.append("the held-out text is too short: the real text is training text, and its overlap is left out")
    return notes


def advise(panels: Mapping[str, Degeneration], reference: str, allowed: int) -> list[str]:
    """A line for each figure that is far worse than real text's, with what helps.

    Args:
        allowed: tokens that a text of this tokenizer may repeat without going round in circles.
    """
    real = panels[reference]
    found = []
    for name, panel in panels.items():
        if panel.rep_4 > FAR * max(real.rep_4, AT_LEAST["rep_4"]):
            which = f"rep-4 is {panel.rep_4:.1f} %, in {reference} {real.rep_4:.1f} %"
            dry = f"--set dry_multiplier=0.8 --set dry_allowed={allowed}"
            found.append(f"{name}: {which}: {dry} (or --no-repeat-ngram {allowed})")
        if panel.self_bleu is not None and real.self_bleu is not None and panel.self_bleu > real.self_bleu + BLEU_APART:
            which = f"the texts are alike, self-BLEU is {panel.self_bleu:.1f}, in {reference} {real.self_bleu:.1f}"
            found.append(f"{name}: {which}: {'--strategy sample' if name == 'greedy' else 'a higher --temperature'}")
        if panel.overlap is not None and panel.overlap > FAR * max(real.overlap or 0, AT_LEAST["overlap"]):
            which = f"{panel.overlap:.1f} % stand verbatim in the training text"
            compared = "" if real.overlap is None else f", of {reference} {real.overlap:.1f} %"
            found.append(f"{name}: {which}{compared}: train with more dropout or on more text; --temperature")
    return found


def _rounded(value: float | None) -> float | None:
    return round(value, 1) if isinstance(value, float) else value
