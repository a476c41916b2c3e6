"""How texts are written: the options that every writing verb shares."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from textwright.pair_model import PairModel
    from textwright.text.tokenizers import Tokenizer
    from textwright.writer import TextModel

Model = TypeVar("Model", "TextModel", "PairModel")

PANEL = "How it is written"
Strategy = Annotated[
    str | None,
    typer.Option(help="greedy, sample, beam, contrastive or mbr; see docs/decoding.md.", rich_help_panel=PANEL),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Options that go together: creative, precise, chat or translate; shown when used.", rich_help_panel=PANEL
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any option of docs/decoding.md; repeat for several.", rich_help_panel=PANEL
    ),
]
Avoid = Annotated[
    list[str] | None, typer.Option(help="A string that is never written; repeat for several.", rich_help_panel=PANEL)
]
Bias = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT=NUMBER", help="Make a word likelier, or less likely.", rich_help_panel=PANEL),
]
Prefix = Annotated[
    str | None,
    typer.Option(help="Of a model that was trained for several tasks: which one, by what stands in front of sources."),
]
SearchBeams = Annotated[int | None, typer.Option(min=1, help="Beams of the search (5); 1 is greedy.")]
SearchPenalty = Annotated[float | None, typer.Option(help="Ranked by log-probability ÷ length^this (1).")]
Language = Annotated[str | None, typer.Option(help="Of the targets, such as zh: chooses BLEU's tokenizer.")]
Lowercase = Annotated[
    bool | None,
    typer.Option("--lowercase/--case", help="Compare translations without case, or with it; by default as trained."),
]
Seed = Annotated[int | None, typer.Option(help="Repeats a sample; otherwise one is drawn.", rich_help_panel=PANEL)]
Temperature = Annotated[float | None, typer.Option(help="Below 1 safer, above 1 wilder.", rich_help_panel=PANEL)]
TopK = Annotated[int | None, typer.Option(help="Draw among the k most likely tokens.", rich_help_panel=PANEL)]
TopP = Annotated[
    float | None, typer.Option(help="Draw among the fewest tokens that reach this probability.", rich_help_panel=PANEL)
]
MinP = Annotated[
    float | None, typer.Option(help="Drop tokens below this share of the likeliest.", rich_help_panel=PANEL)
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: repeat less (prompt included).", rich_help_panel=PANEL)
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtracted once a token was written.", rich_help_panel=PANEL)
]
FrequencyPenalty = Annotated[
    float | None, typer.Option(help="Subtracted for every time it was.", rich_help_panel=PANEL)
]
NoRepeatNgram = Annotated[int | None, typer.Option(help="Never write the same n tokens twice.", rich_help_panel=PANEL)]
Beams = Annotated[
    int | None, typer.Option(min=1, help="Beams of --strategy beam (4; with a source 5).", rich_help_panel=PANEL)
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(help="Beams are ranked by log-probability ÷ length^this (1).", rich_help_panel=PANEL),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        min=2, help="With --strategy greedy: go on from each of so many likeliest next tokens.", rich_help_panel=PANEL
    ),
]
Lookup = Annotated[
    bool,
    typer.Option(
        "--lookup", help="Guess from what the text said before: faster, the same text.", rich_help_panel=PANEL
    ),
]
WHOLE = "What the whole text must be (one of these)"  # lists without panels show the help alone: it says so itself
Choice = Annotated[
    list[str] | None,
    typer.Option(help="The whole text is one of these strings; repeat for each.", rich_help_panel=WHOLE),
]
Word = Annotated[
    list[str] | None, typer.Option(help="The text holds all of these; repeat for each.", rich_help_panel=WHOLE)
]
InOrder = Annotated[
    bool, typer.Option("--in-order", help="The text holds every --word after the one before.", rich_help_panel=WHOLE)
]
Regex = Annotated[str | None, typer.Option(help="The whole text matches a regular expression.", rich_help_panel=WHOLE)]
JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The whole text is a JSON document of this schema.", rich_help_panel=WHOLE),
]
Grammar = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The whole text is one that a Lark grammar generates.", rich_help_panel=WHOLE),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="int8 or int4 weights: smaller and faster; the change is printed.", rich_help_panel=PANEL
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="RUN", help="A smaller run that guesses: faster, the same text.", rich_help_panel="Several models"
    ),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="RUN=WEIGHT", help="Another run that votes on every token.", rich_help_panel="Several models"
    ),
]
Fuse = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN=WEIGHT",
        help="Another run whose log-probabilities are added (shallow fusion).",
        rich_help_panel="Several models",
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Above 1: exaggerate what the prompt (or source) changes.", rich_help_panel="Several models"),
]
Negative = Annotated[
    str | None,
    typer.Option(help="A prompt (or source) that --guidance leads away from.", rich_help_panel="Several models"),
]
Dola = Annotated[
    bool, typer.Option("--dola", help="Contrast the layers of a Transformer.", rich_help_panel="Several models")
]


def opened(run: Path, quantize: str | None) -> TextModel | PairModel:
    """A run, with weights of fewer bits if asked for; what they change is told to standard error."""
    from textwright.opening import load
    from textwright.quantizing import load_quantized

    if quantize is None:
        return load(run)
    model, cost = load_quantized(run, quantize)
    typer.echo(f"textwright: {cost}", err=True)
    return model


def voting(
    model: Model, load: Callable[[str], Model], with_: Sequence[str] | None, fuse: Sequence[str] | None = None
) -> Model:
    """The model with the runs of --with and --fuse, RUN=WEIGHT, that choose its tokens with it."""
    for runs, option, is_fusion in ((with_, "--with", False), (fuse, "--fuse", True)):
        if runs:
            pairs = [weighted(run, option, "runs/other=0.5") for run in runs]
            model = model.together([(load(path), weight) for path, weight in pairs], fuse=is_fusion)
    return model


FLAGS = {
    "stop_ids": "--stop-id",
    "choices": "--choice",
    "words": "--word",
    "words_in_order": "--in-order",
    "task_prefix": "--prefix",
}
PARAMETERS = frozenset({"prompt", "sources", "turns", "progress", "alignments", "draft"})  # of methods, no settings


def options(
    assignments: Sequence[str] | None,
    avoid: Sequence[str] | None,
    bias: Sequence[str] | None,
    *,
    own: Collection[str] = (),
    **named: Any,
) -> dict[str, Any]:
    """What was asked for, without what was not.

    Args:
        own: what the verb has options of its own for, and `joined` refuses.
    """
    from textwright.config import override
    from textwright.errors import ConfigError
    from textwright.wishes import check_types

    asked = override({}, assignments or ())
    if wrong := sorted(PARAMETERS.intersection(asked)):
        raise ConfigError(f"--set {wrong[0]}=…: no setting; where a command has it, it is --{wrong[0]}")
    if any(isinstance(value, dict) for value in asked.values()):
        raise ConfigError("options of writing have no parts: --set top_n_sigma=1.5")
    check_types({name: value for name, value in asked.items() if name not in own}, "--set")
    if isinstance(asked.get("order"), str):
        asked["order"] = [step.strip() for step in asked["order"].split(",")]
    for name, value in named.items():
        if value is not None:
            if name in asked:
                raise ConfigError(f"{name} is given twice: as an option and with --set")
            asked[name] = value
    if avoid:
        asked = joined(asked, {"avoid": tuple(avoid)})
    if bias:
        asked["bias"] = dict(weighted(assignment, "--bias", "word=2.5") for assignment in bias)
    return asked


def joined(options: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, and what a verb has options of its own for.

    Raises:
        ConfigError: one of these was set, too.
    """
    from textwright.errors import ConfigError

    for name in own:
        if name in options:
            flag = FLAGS.get(name, "--" + name.replace("_", "-"))
            raise ConfigError(f"--set {name}=…: this has an option of its own, {flag}")
    return {**options, **own}


def demands(
    choice: Sequence[str] | None,
    word: Sequence[str] | None,
    in_order: bool,
    regex: str | None,
    json_schema: Path | None,
    grammar: Path | None,
) -> dict[str, Any]:
    """What the whole text must be, as `wishes.constraint` wants it."""
    from textwright.errors import ConfigError

    if in_order and not word:
        raise ConfigError("--in-order is about words: add --word for each of them")
    asked: dict[str, Any] = {"choices": tuple(choice or ()), "regex": regex}
    asked["words_in_order" if in_order else "words"] = tuple(word or ())
    if json_schema is not None:
        try:
            asked["json_schema"] = json.loads(json_schema.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{json_schema} is not JSON: {error}") from None
    if grammar is not None:
        try:
            asked["grammar"] = grammar.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{grammar} is no text in UTF-8: {error.reason} at byte {error.start}") from None
    return {name: value for name, value in asked.items() if value is not None and value != ()}


def weighted(assignment: str, option: str, example: str) -> tuple[str, float]:
    """NAME=NUMBER, of any size, but a number."""
    from textwright.errors import ConfigError

    name, _, number = assignment.rpartition("=")
    try:
        if name and not math.isnan(value := float(number)):
            return name, value
    except ValueError:
        pass
    raise ConfigError(f"{option} expects NAME=NUMBER, got {assignment!r}: {option} {example}")


def luck(seed: int | None, options: Mapping[str, Any], usual: str, tokenizer: Tokenizer) -> int | None:
    """A seed where chance has a part in the texts and none was given; `usual` is the strategy where nothing is said."""
    from textwright.presets import preset

    named = preset(options["preset"], tokenizer)[0] if options.get("preset") else usual
    strategy = options.get("strategy") or named
    if seed is not None or not (strategy in ("sample", "mbr") or (strategy == "beam" and options.get("draw"))):
        return None
    return secrets.randbelow(2**31)


def tell_seed(seed: int) -> None:
    """How to get the same again, to standard error."""
    typer.echo(f"textwright: seed {seed}: add --seed {seed} to get the same again", err=True)


def tell_preset(name: str | None, tokenizer: Tokenizer) -> None:
    """What a preset stands for, to standard error."""
    from textwright.presets import preset

    if name is not None:
        strategy, options = preset(name, tokenizer)
        listed = ", ".join(f"{option} {value}" for option, value in options.items())
        typer.echo(f"textwright: preset {name}: strategy {strategy}, {listed}", err=True)
