"""`textwright generate`: text from a run."""

from __future__ import annotations

import json as jsons
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textwright.cli import ways

if TYPE_CHECKING:
    from textwright.writer import Text, TextModel


NAMED = (
    *("temperature", "top_k", "top_p", "min_p", "beams", "length_penalty", "top_logprobs", "max_seconds"),
    *("alternatives", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram"),
)


def generate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` wrote.")],
    prompt: Annotated[str, typer.Option(help="What to go on from; nothing: begin as the training texts did.")] = "",
    n: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where a text is cut (256).")] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="No end before so many tokens.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; repeat for several.")] = None,
    stop_id: Annotated[
        list[int] | None, typer.Option(help="The number of a token that ends the text; repeat for several.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="The text ends after so long.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print while writing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
    top_logprobs: Annotated[
        int | None, typer.Option(min=1, help="With --json: the likeliest tokens at every place.")
    ] = None,
    prompt_logprobs: Annotated[
        bool, typer.Option("--prompt-logprobs", help="With --json: how likely every token of the prompt was.")
    ] = False,
    strategy: ways.Strategy = None,
    preset: ways.Preset = None,
    seed: ways.Seed = None,
    temperature: ways.Temperature = None,
    top_k: ways.TopK = None,
    top_p: ways.TopP = None,
    min_p: ways.MinP = None,
    repetition_penalty: ways.RepetitionPenalty = None,
    presence_penalty: ways.PresencePenalty = None,
    frequency_penalty: ways.FrequencyPenalty = None,
    no_repeat_ngram: ways.NoRepeatNgram = None,
    beams: ways.Beams = None,
    length_penalty: ways.LengthPenalty = None,
    avoid: ways.Avoid = None,
    bias: ways.Bias = None,
    set: ways.Set = None,
    alternatives: ways.Alternatives = None,
    lookup: ways.Lookup = False,
    choice: ways.Choice = None,
    word: ways.Word = None,
    in_order: ways.InOrder = False,
    regex: ways.Regex = None,
    json_schema: ways.JsonSchema = None,
    grammar: ways.Grammar = None,
    draft: ways.Draft = None,
    with_: ways.With = None,
    fuse: ways.Fuse = None,
    guidance: ways.Guidance = None,
    negative: ways.Negative = None,
    dola: ways.Dola = False,
    quantize: ways.Quantize = None,
) -> None:
    """Write text with a trained model."""
    from textwright.errors import ConfigError
    from textwright.opening import as_writer, load_writer

    if stream and (json or n > 1):
        raise ConfigError("--stream prints one text as it is written: leave out --json and --n")
    prompt = os.fsencode(prompt).decode("utf-8", "replace")  # where the locale is not UTF-8, the words still are
    named = {name: context.params[name] for name in NAMED}
    own = {"strategy": strategy, "preset": preset, "n": n, "stop": tuple(stop or ()), "stop_ids": tuple(stop_id or ())}
    own |= {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    options = ways.options(set, avoid, bias, own=own, lookup=lookup or None, seed=seed, **named)
    if not json and ("top_logprobs" in options or prompt_logprobs):
        raise ConfigError("--top-logprobs and --prompt-logprobs are printed as JSON: add --json")
    seed = options.pop("seed", None)
    options = ways.joined(options, own)
    model = as_writer(ways.opened(run, quantize), run)
    _unseen(model, prompt)
    options = ways.joined(options, ways.demands(choice, word, in_order, regex, json_schema, grammar))
    ways.tell_preset(preset, model.tokenizer)
    model = _company(model, prompt, with_, fuse, guidance, negative, dola)
    if draft is not None:
        options["draft"] = load_writer(draft)
    drawn = ways.luck(seed, options, "sample", model.tokenizer)
    seed = seed if drawn is None else drawn
    read = {"prompt_logprobs": [list(pair) for pair in model.logprobs(prompt)]} if prompt_logprobs else {}
    if stream:
        chunks = model.stream(prompt, seed=seed, **options)
        _unread(model, prompt)
        sys.stdout.write(prompt)
        for chunk in chunks:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
    else:
        texts = model.generate(prompt, seed=seed, **options)
        _unread(model, prompt)
        if json:
            typer.echo(jsons.dumps({"prompt": prompt, **read, "outputs": [*map(_record, texts)]}, ensure_ascii=False))
            return
        for number, text in enumerate(texts, 1):
            if n > 1 or len(texts) > 1:
                typer.echo(f"--- {number} (log-probability {text.logprob:.2f}, ended by {text.finish_reason}) ---")
            typer.echo(prompt + text.text)
    if drawn is not None:
        ways.tell_seed(drawn)


def _company(
    model: TextModel,
    prompt: str,
    with_: Sequence[str] | None,
    fuse: Sequence[str] | None,
    guidance: float | None,
    negative: str | None,
    dola: bool,
) -> TextModel:
    """The model with the others that choose with it."""
    from textwright.errors import ConfigError
    from textwright.opening import load_writer

    if negative is not None and guidance is None:
        raise ConfigError("--negative does nothing without --guidance: add --guidance 1.5")
    if dola:
        model = model.dola()
    if guidance is not None:
        model = model.guided(prompt, guidance, negative or "")
    return ways.voting(model, load_writer, with_, fuse)


def _record(text: Text) -> dict[str, Any]:
    return {
        "text": text.text,
        "tokens": list(text.tokens),
        "finish_reason": text.finish_reason,
        "logprob": text.logprob,
        **({"logprobs": list(text.logprobs)} if text.logprobs else {}),
        # Pairs, because different tokens may look alike: parts of characters, control tokens.
        **({"top_logprobs": [[list(pair) for pair in top] for top in text.tops]} if text.tops else {}),
        "seed": text.seed,
    }


def _unseen(model: TextModel, prompt: str) -> None:
    """One line to standard error for what the model does not know."""
    unseen = model.tokenizer.unseen(prompt)
    if unseen:
        shown = ", ".join(repr(part) for part in unseen[:8]) + (" …" if len(unseen) > 8 else "")
        _tell(f"the prompt has {len(unseen)} character(s) or word(s) the model has never seen: {shown}")


def _unread(model: TextModel, prompt: str) -> None:
    """One line for what does not fit; most ways of writing refuse such a prompt."""
    window, length = model.network.window, len(model.prompt_ids(prompt))
    if window is not None and length > window:
        _tell(f"the prompt has {length} tokens, the model sees {window}: only the last {window} are read")


def _tell(text: str) -> None:
    typer.echo(f"textwright: {text}", err=True)
