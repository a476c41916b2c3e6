"""`textwright generate`: text from a run."""

from __future__ import annotations

import json as jsons
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from textwright.writer import Text, TextModel


def generate(
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train` wrote.")],
    prompt: Annotated[str, typer.Option(help="What to go on from; nothing: begin as the training texts did.")] = "",
    strategy: Annotated[str, typer.Option(help="sample, greedy or beam.")] = "sample",
    seed: Annotated[int | None, typer.Option(help="Repeats a sample; otherwise one is drawn and told.")] = None,
    n: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where a text is cut (256).")] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="No end before so many tokens.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; repeat for several.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Below 1 safer, above 1 wilder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the fewest tokens that reach this probability.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less (prompt included).")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Subtracted once a token was written.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Subtracted for every time it was.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="Never write the same n tokens twice.")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of --strategy beam (4).")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Beams are ranked by log-probability ÷ length^this (1).")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print while writing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document and nothing else.")] = False,
) -> None:
    """Write text with a trained model."""
    from textwright.errors import ConfigError
    from textwright.opening import load_writer as load

    if stream and (json or n > 1):
        raise ConfigError("--stream prints one text as it is written: leave out --json and --n")
    prompt = os.fsencode(prompt).decode("utf-8", "replace")  # where the locale is not UTF-8, the words still are
    asked = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "no_repeat_ngram": no_repeat_ngram,
    }
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    options |= {"strategy": strategy, "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens}
    options |= {"n": n, "stop": tuple(stop or ())}
    model = load(run)
    _notices(model, prompt)
    if stream:
        if beams is not None or length_penalty is not None:
            raise ConfigError("beams belong to --strategy beam, which cannot --stream")
        _stream(model, prompt, seed, options)
        return
    drawn = seed is None and strategy == "sample"
    if drawn:
        seed = secrets.randbelow(2**31)
    texts = model.generate(prompt, seed=seed, beams=beams, length_penalty=length_penalty, **options)
    if json:
        typer.echo(jsons.dumps({"prompt": prompt, "outputs": [_record(text) for text in texts]}, ensure_ascii=False))
        return
    for number, text in enumerate(texts, 1):
        if n > 1:
            typer.echo(f"--- {number} (log-probability {text.logprob:.2f}, ended by {text.finish_reason}) ---")
        typer.echo(prompt + text.text)
    if drawn:
        _tell_seed(seed)


def _stream(model: TextModel, prompt: str, seed: int | None, options: dict[str, Any]) -> None:
    drawn = seed is None and options["strategy"] == "sample"
    if drawn:
        seed = secrets.randbelow(2**31)
    sys.stdout.write(prompt)
    for chunk in model.stream(prompt, seed=seed, **options):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if drawn:
        _tell_seed(seed)


def _record(text: Text) -> dict[str, Any]:
    return {
        "text": text.text,
        "tokens": list(text.tokens),
        "finish_reason": text.finish_reason,
        "logprob": text.logprob,
        "seed": text.seed,
    }


def _notices(model: TextModel, prompt: str) -> None:
    """One line to standard error for what the model cannot read as it stands."""
    unseen = model.tokenizer.unseen(prompt)
    if unseen:
        shown = ", ".join(repr(part) for part in unseen[:8]) + (" …" if len(unseen) > 8 else "")
        _tell(f"the prompt has {len(unseen)} character(s) or word(s) the model has never seen: {shown}")
    window, length = model.model.window, len(model.prompt_ids(prompt))
    if window is not None and length > window:
        _tell(f"the prompt has {length} tokens, the model sees {window}: only the last {window} are read")


def _tell_seed(seed: int | None) -> None:
    _tell(f"seed {seed}: add --seed {seed} to get the same again")


def _tell(text: str) -> None:
    typer.echo(f"textwright: {text}", err=True)
