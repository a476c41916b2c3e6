"""The Python interface: `train`, `load`, and what they return."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from textwright import plan
from textwright.adapting.prompt import PromptConfig
from textwright.config import override
from textwright.errors import ConfigError, TrainingError, nearest
from textwright.fit import Audience, default_folder, fit
from textwright.models import PretrainedConfig, TransformerConfig
from textwright.opening import load, load_pairs, load_writer
from textwright.pair_model import PairModel
from textwright.run import PairRun, WithSource, merge, read_run
from textwright.text.examples import kind_of
from textwright.text.pair_source import files_of
from textwright.text.pair_source import kind_of as kind_of_pairs
from textwright.text.pairs import PairSource
from textwright.text.tokenizers import Tokenizer
from textwright.writer import TextModel

__all__ = ["PairModel", "TextModel", "finetune", "finetune_pairs", "load", "train", "train_pairs"]

CELLS = ("rnn", "gru", "lstm")
RATES = {"full": 1e-4, "prompt": 1e-2}  # of fine-tuning: weights that were trained long; a few that begin anywhere
ADAPTER_RATE = 1e-3  # for adapters, which begin at zero
METHODS: dict[str, dict[str, Any]] = {  # of fine-tuning: what learns, see `adapting`
    "full": {},
    "lora": {"adapter": {}},
    "rslora": {"adapter": {"stabilised": True}},
    "dora": {"adapter": {"magnitude": True}},
    "qlora": {"adapter": {"packed": "int4"}},
    "prompt": {"prompt": {}},
}
Learn = Literal["auto", "text", "answers", "preferences"]
WHOLE = 512  # tokens of an example
GENTLE = 0.1  # of the rate, for preferences
CONTEXT = 256  # tokens that fine-tuning reads at once


def train(
    source: str | Path,
    *,
    model: str = "transformer",
    tokenizer: str = "auto",
    valid: str | Path | None = None,
    test: str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    audience: Audience | None = None,
) -> TextModel:
    """Train a model on a text and open it. Called again with the same arguments, it goes on where it stopped.

    Args:
        source: a file, folder, glob, "builtin:python-docs" or "hf:NAME".
        model: "rnn", "gru", "lstm" or "transformer".
        tokenizer: "auto", "char", "byte", "word", "bpe", "spacy:LANG", "jieba", or a tokenizer.json.
        valid, test: a validation text of its own, and one that the finished model is measured on; without a validation
            text part of the source is held back.
        minutes, steps, epochs: the budget, one of them; 3 minutes when none is given.
        out: the run's folder, runs/NAME-MODEL by default.
        settings: anything else, by dotted path: {"model.width": 128, "training.optimizer.learning_rate": 3e-4}.
        audience: is told what happens; silent by default.

    Raises:
        TextwrightError: of some kind, for everything a user can mend.
    """
    own = None if valid is None else str(valid), None if test is None else str(test)
    request = asked(str(source), model, tokenizer, own[0], own[1], minutes, steps, epochs, seed)
    folder = Path(out) if out else default_folder(str(source), model)
    _complete(request, settings, folder, audience)
    return load_writer(folder)


def finetune(
    base: str | Path,
    source: str | Path,
    *,
    method: str = "full",
    learn: Learn = "auto",
    fields: tuple[str, str] | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    audience: Audience | None = None,
) -> TextModel:
    """Train a run's model on, on another text.

    Args:
        base: a run that was trained on a text or imported.
        method: "full" for all weights, "lora", "rslora" or "dora" for an adapter, "qlora" for one on weights of four
            bits, "prompt" for a few embeddings in front of every text.
        learn: "text": every token carries loss; "answers": `source` holds prompts with answers or conversations, and
            only what the model should say does; "preferences": of two answers one becomes likelier than the other;
            "auto": what the source looks like.
        fields: the columns of prompt and answer, where they have other names than usual.

    The other arguments, and what is raised, are those of `train`."""
    own = None if valid is None else str(valid), None if test is None else str(test)
    request = asked_on(Path(base), str(source), method, learn, fields, own[0], own[1], minutes, steps, epochs, seed)
    folder = Path(out) if out else tuned_folder(str(source), Path(base), method)
    _complete(request, settings, folder, audience)
    return load_writer(folder)


def tuned_folder(source: str, base: Path, method: str) -> Path:
    """Where a fine-tuned run goes unless told otherwise: runs/SOURCE-BASE, and the method if not all weights learn."""
    return default_folder(source, base.name if method == "full" else f"{base.name}-{method}")


def asked_on(
    base: Path,
    source: str,
    method: str,
    learn: Learn,
    fields: tuple[str, str] | None,
    valid: str | None,
    test: str | None,
    minutes: float | None,
    steps: int | None,
    epochs: float | None,
    seed: int,
    assignments: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A request for `fit` from the arguments of `finetune`: the base's model and tokenizer, a rate that suits weights
    which know something already, and contexts that a step can pay for."""
    config, learning = read_run(base), _learning(method)
    if isinstance(config, WithSource):
        raise ConfigError(f"{base} was trained to {config.task}, from pairs: fine-tune it with finetune_pairs")
    if fields is not None and learn == "text":
        raise ConfigError(
            "fields name the columns of prompt and answer, and every token of a text is learned: leave out one"
        )
    if learn == "auto":
        learn = kind_of(source) if fields is None else "answers"
    answers = learn != "text"
    tokenizer = str(base / "tokenizer.json")
    request = asked(source, config.model.family, tokenizer, valid, test, minutes, steps, epochs, seed)
    rate = RATES.get(method, ADAPTER_RATE) * (GENTLE if learn == "preferences" else 1)
    training: dict[str, Any] = {"optimizer": {"kind": "adamw", "learning_rate": rate, "weight_decay": 0.01}}
    model = config.model.dump()
    window = None
    if isinstance(config.model, TransformerConfig | PretrainedConfig):
        if config.model.window is None:
            raise ConfigError(f"{base} is a recurrent model of the transformers library: it writes and is not trained")
        room = PromptConfig().tokens if method == "prompt" else 0  # a shorter prompt may be asked for
        window = max(config.model.window - room, config.model.window // 2)
        training["context"] = min(window, CONTEXT)
    elif answers:
        training["softmax_samples"] = 0
        model["weight_drop"] = 0.0 if learning else model["weight_drop"]
    elif not learning:
        training["softmax_samples"] = plan.SAMPLES if config.model.vocab >= plan.MANY else 0
    else:
        training["softmax_samples"] = 0
        model["weight_drop"] = 0.0
    known: dict[str, Any] = {"base": str(base), "model": model, "training": training, "named": config.named, **learning}
    if answers:
        known["examples"] = {
            "kind": learn,
            "longest": min(WHOLE, window or WHOLE),
            **({} if fields is None else {"fields": list(fields)}),
        }
    return override(merge(request, known), assignments)


def finetune_pairs(
    base: str | Path,
    pairs: PairSource | Sequence[PairSource],
    *,
    method: str = "full",
    prefix: str | None = None,
    valid: PairSource | Sequence[PairSource] = (),
    test: PairSource | Sequence[PairSource] = (),
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    audience: Audience | None = None,
) -> PairModel:
    """Train a run's model that writes with a source on, on other pairs. Sources are composed as the base's were: what
    stood in front of every one of them still does.

    Args:
        base: a run that was trained on pairs, or imported with a task.
        method: as in `finetune`.
        prefix: put in front of every source that names none; None: what the base was trained with.

    The other arguments, and what is raised, are those of `train_pairs`."""
    sides = _listed(pairs), _listed(valid), _listed(test)
    request = asked_on_pairs(Path(base), *sides, method, prefix, minutes, steps, epochs, seed)
    folder = Path(out) if out else tuned_folder(sides[0][0].path, Path(base), method)
    _complete(request, settings, folder, audience)
    return load_pairs(folder)


def asked_on_pairs(
    base: Path,
    pairs: Sequence[PairSource],
    valid: Sequence[PairSource],
    test: Sequence[PairSource],
    method: str,
    prefix: str | None,
    minutes: float | None,
    steps: int | None,
    epochs: float | None,
    seed: int,
    assignments: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A request for `fit` from the arguments of `finetune_pairs`.

    Raises:
        ConfigError: the base writes without a source, or for several tasks and the pairs do not say which one.
    """
    config, learning = read_run(base), _learning(method)
    if not isinstance(config, WithSource):
        raise ConfigError(f"{base} goes on writing a text and has no source: textwright finetune {base} TEXT")
    first, second, third = (
        [_composed(source, config, base, prefix) for source in side] for side in (pairs, valid, test)
    )
    if isinstance(config, PairRun) and config.neighbours:
        raise ConfigError(f"{base} reads sources beside neighbours, and such a run is not fine-tuned: train it anew")
    request = asked_pairs(
        config.task, first, second, third, "transformer", str(base / "tokenizer.json"), minutes, steps, epochs, seed
    )
    rate = RATES.get(method, ADAPTER_RATE)
    known: dict[str, Any] = {
        **learning,
        "base": str(base),
        "model": config.model.dump(),
        "cut": config.cut,
        **({"language": config.language, "lowercase": config.lowercase} if config.task == "translate" else {}),
        "training": {
            "optimizer": {"kind": "adamw", "learning_rate": rate, "weight_decay": 0.01},
            "averaging": {"kind": "none"},
            "label_smoothing": config.training.label_smoothing if isinstance(config, PairRun) else 0.0,
        },
    }
    if not Tokenizer.load(base / "tokenizer.json").same(Tokenizer.load(base / "source_tokenizer.json")):
        known["source_tokenizer"] = {"kind": str(base / "source_tokenizer.json")}
    return override(merge(request, known), assignments)


def _learning(method: str) -> dict[str, Any]:
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}.{nearest(method, METHODS)}")
    return METHODS[method]


def _composed(source: PairSource, config: WithSource, base: Path, prefix: str | None) -> PairSource:
    """Pairs whose sources are composed as the base's were, unless they say how themselves."""
    prefixes = {pairs.prefix for pairs in config.pairs} if prefix is None else {prefix}
    if not source.prefix and len(prefixes) > 1:
        told = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise ConfigError(f"{base} has several tasks; say by a prefix which one these pairs are for: {told}")
    changes: dict[str, Any] = {} if source.prefix else {"prefix": prefixes.pop()}
    if source.turns is None and config.pairs[0].turns and kind_of_pairs(source, files_of(source.path)[0]) == "dialogue":
        changes["turns"] = config.pairs[0].turns
    return source.model_copy(update=changes)


def asked(
    source: str,
    model: str,
    tokenizer: str,
    valid: str | None,
    test: str | None,
    minutes: float | None,
    steps: int | None,
    epochs: float | None,
    seed: int,
    assignments: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The parts of a configuration that a call or a command line states."""
    given = {
        name: value for name, value in (("minutes", minutes), ("steps", steps), ("epochs", epochs)) if value is not None
    }
    request: dict[str, Any] = {
        "source": {"path": source},
        "tokenizer": {"kind": tokenizer},
        "model": {"family": model},
        "training": {"seed": seed, **({"budget": given} if given else {})},
    }
    for key, path in (("valid", valid), ("test", test)):
        if path is not None:
            request[key] = {"path": path}
    return override(request, assignments)


def train_pairs(
    task: str,
    pairs: PairSource | Sequence[PairSource],
    *,
    valid: PairSource | Sequence[PairSource] = (),
    test: PairSource | Sequence[PairSource] = (),
    model: str = "transformer",
    tokenizer: str = "auto",
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    audience: Audience | None = None,
) -> PairModel:
    """Train a model that writes with a source, and open it. The arguments are those of `train`, and:

    Args:
        task: "translate", "summarize", "answer", "chat" or "convert" (any text to any other); it decides about metrics.
        pairs, valid, test: `PairSource(path="train.de", target="train.en")`, or a table; several are read in order.
        model: "transformer", or "rnn", "gru", "lstm" for a recurrent encoder-decoder with attention.

    Raises:
        TextwrightError: of some kind, for everything a user can mend.
    """
    train_on, others = _listed(pairs), (_listed(valid), _listed(test))
    request = asked_pairs(task, train_on, others[0], others[1], model, tokenizer, minutes, steps, epochs, seed)
    folder = Path(out) if out else default_folder(train_on[0].path, f"{task}-{model}")
    _complete(request, settings, folder, audience)
    return load_pairs(folder)


def asked_pairs(
    task: str,
    pairs: Sequence[PairSource],
    valid: Sequence[PairSource],
    test: Sequence[PairSource],
    model: str,
    tokenizer: str,
    minutes: float | None,
    steps: int | None,
    epochs: float | None,
    seed: int,
    assignments: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A request for `fit` from the arguments of `train_pairs`."""
    family = {"family": "seq2seq", "cell": model} if model in CELLS else {"family": "encdec"}
    budget = {"minutes": minutes, "steps": steps, "epochs": epochs}
    given = {name: value for name, value in budget.items() if value is not None}
    request: dict[str, Any] = {
        "task": task,
        "pairs": [source.dump() for source in pairs],
        "tokenizer": {"kind": tokenizer},
        "model": family,
        "training": {"seed": seed, **({"budget": given} if given else {})},
    }
    for key, sources in (("valid_pairs", valid), ("test_pairs", test)):
        if sources:
            request[key] = [_alike(source, pairs).dump() for source in sources]
    return override(request, assignments)


def _alike(held: PairSource, pairs: Sequence[PairSource]) -> PairSource:
    """Pairs that are held back, with their sources composed as those of the training pairs unless they say how."""
    changes: dict[str, Any] = {}
    prefixes, turns = {source.prefix for source in pairs}, {source.turns for source in pairs}
    if len(prefixes) == 1 and "prefix" not in held.model_fields_set:
        changes["prefix"] = prefixes.pop()
    dialogue = kind_of_pairs(held, files_of(held.path)[0]) == "dialogue"
    if len(turns) == 1 and held.turns is None and dialogue:
        changes["turns"] = turns.pop()
    return held.model_copy(update=changes)


def _complete(
    request: Mapping[str, Any], settings: Mapping[str, Any] | None, folder: Path, audience: Audience | None
) -> None:
    """Train into the folder what a request with these settings asks for; raises TrainingError when interrupted."""
    asked = override(request, [f"{path}={json.dumps(value)}" for path, value in (settings or {}).items()])
    if not fit(asked, folder, audience or Audience()).complete:
        raise TrainingError(f"training was interrupted; the same call goes on from {folder}")


def _listed(sources: PairSource | Sequence[PairSource]) -> list[PairSource]:
    return [sources] if isinstance(sources, PairSource) else list(sources)
