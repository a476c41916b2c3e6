"""docs/settings.md, made from the code: every setting of a run, what it may be, its default and its meaning;
`python -m textwright.settings_table` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from textwright.adapting.lora import LowRankConfig
from textwright.adapting.prompt import PromptConfig
from textwright.config import Config
from textwright.models import EncoderDecoderConfig, Seq2SeqConfig, TransformerConfig
from textwright.models.alignment import (
    AdditiveAlignment,
    DotAlignment,
    GeneralAlignment,
    MultiHeadAlignment,
    NoAlignment,
)
from textwright.models.base import BaseConfig
from textwright.models.blocks import BlockConfig
from textwright.models.rnn import RecurrentConfig, RNNConfig
from textwright.run import BaseRun, ExamplesConfig, PairRun
from textwright.text.filters import Filters
from textwright.text.pair_source import PairSource
from textwright.text.sources import SourceConfig
from textwright.text.tokenizers import TokenizerConfig
from textwright.training import optimizer, settings

INTRODUCTION = """# Settings

What `train` and `finetune` take as `--set KEY=VALUE` (`generate` and its like: [decoding.md](decoding.md)), and what
a recipe holds under `run:`, there as a tree: `model: {width: 128}`. A wrong key, value or combination is refused, and
told with what is meant. "–" and "None" mean that nothing is set; to unset a setting write `null`.

Many defaults below are not what a run gets: the plan chooses sizes, optimiser, rates, schedule and precision from the
data, the machine and the budget, and `RUN/config.json` shows what it chose. Rows after `…kind=NAME` are for that kind
alone; where neither you nor the plan names one it is `general` (attention), `adamw`, `cosine` and `none` (averaging).

`valid` and `test` are told like `source`, `source_tokenizer` like `tokenizer`; `pairs`, `valid_pairs` and `test_pairs`
are lists, which a recipe holds and the options `--pairs`, `--fields` and `--prefix` make. This page is made from the
code (`python -m textwright.settings_table`)."""

SKIPPED = {"family", "vocab", "source_vocab", "base", "task", "named"}  # follow from other options and the data

# Title; what stands before its settings' names, what they are settings of, and what they share with an earlier table.
PARTS: tuple[tuple[str, tuple[tuple[str, type[Config], type[Config] | None], ...]], ...] = (
    ("Data", (("source", SourceConfig, None), ("tokenizer", TokenizerConfig, None), ("", BaseRun, None))),
    ("Pairs", (("pairs", PairSource, None), ("", PairRun, BaseRun), ("filters", Filters, None))),
    ("Every model", (("model", BaseConfig, None),)),
    (
        "Recurrent models: rnn, gru, lstm",
        (("model", RecurrentConfig, BaseConfig), ("model", RNNConfig, RecurrentConfig)),
    ),
    ("Transformers, with a source or without", (("model", BlockConfig, BaseConfig),)),
    ("Transformers with a source", (("model", EncoderDecoderConfig, TransformerConfig),)),
    (
        "Recurrent models with a source",
        (
            ("model", Seq2SeqConfig, BaseConfig),
            *(
                ("model.attention", kind, None)
                for kind in (GeneralAlignment, AdditiveAlignment, DotAlignment, MultiHeadAlignment, NoAlignment)
            ),
        ),
    ),
    ("Training", (("training.budget", settings.Budget, None), ("training", settings.TrainingConfig, None))),
    ("Training on a text", (("training", settings.TextTraining, settings.TrainingConfig),)),
    (
        "Optimisers",
        tuple(
            ("training.optimizer", kind, None)
            for kind in (optimizer.AdamConfig, optimizer.MuonConfig, optimizer.SGDConfig)
        ),
    ),
    (
        "Schedules of the rate",
        (
            ("training.schedule", optimizer.Schedule, None),
            *(
                ("training.schedule", kind, optimizer.Schedule)
                for kind in (
                    optimizer.CosineSchedule,
                    optimizer.LinearSchedule,
                    optimizer.WSDSchedule,
                    optimizer.InverseSqrtSchedule,
                    optimizer.ConstantSchedule,
                    optimizer.PlateauSchedule,
                )
            ),
        ),
    ),
    (
        "Averages of weights",
        tuple(
            ("training.averaging", kind, None)
            for kind in (
                settings.NoAveraging,
                settings.EMAAveraging,
                settings.TailAveraging,
                settings.TriggeredAveraging,
            )
        ),
    ),
    (
        "Fine-tuning",
        (("examples", ExamplesConfig, None), ("adapter", LowRankConfig, None), ("prompt", PromptConfig, None)),
    ),
)


def markdown() -> str:
    """The whole page."""
    return "\n\n".join([INTRODUCTION, *(f"## {title}\n\n{_table(tables)}" for title, tables in PARTS)]) + "\n"


def _table(tables: tuple[tuple[str, type[Config], type[Config] | None], ...]) -> str:
    lines = ["| setting | may be | default | what it is |", "|---|---|---|---|"]
    for prefix, config, known in tables:
        told = _told(config)
        fields = dict(_fields(config, known))
        for name in sorted(fields, key="kind".__ne__):  # which of several settings this is stands before the others
            field, key = fields[name], f"{prefix}.{name}" if prefix else name
            about, values, default = field.description or told.get(name), _values(field.annotation), _default(field)
            if about is None and name == "kind":
                about = (config.__doc__ or "").split("\n\n")[0]
                if field.annotation is not None and len(get_args(field.annotation)) == 1:
                    key, values, default = f"{key}={field.default}", "", ""
            assert about, f"{config.__name__}.{name} is not described"
            cells = f"`{key}`", values, default, " ".join(about.split()).removesuffix(".")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _fields(config: type[Config], known: type[Config] | None) -> Iterator[tuple[str, FieldInfo]]:
    """Those that are no settings with settings of their own."""
    for name, field in config.model_fields.items():
        nested = any(isinstance(part, type) and issubclass(part, Config) for part in _parts(field.annotation))
        if not nested and name not in SKIPPED and (known is None or name not in known.model_fields):
            yield name, field


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


def _values(annotation: Any) -> str:
    parts = list(_parts(annotation))
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    several = any(get_origin(part) is tuple for part in parts)
    (word,) = {words[part] for part in parts if part in words}
    return f"a list, each {word}" if several else word


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or value in ((), ""):
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _told(config: type[Config]) -> dict[str, str]:
    """What the docstring's attributes are said to be; one entry may be about several."""
    text = "\n".join(one.__doc__ or "" for one in config.__mro__ if issubclass(one, Config))
    found: dict[str, str] = {}
    for names, about in re.findall(r"^ {8}([a-z_]+(?:, [a-z_]+)*): ((?:.+\n?)(?: {12}.+\n?)*)", text, re.MULTILINE):
        found |= {name: found.get(name, about) for name in names.split(", ")}
    return found


if __name__ == "__main__":
    print(markdown(), end="")
