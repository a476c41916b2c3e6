"""`textwright translate`, `summarize` and `convert`: one text for every source, as the run was trained to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textwright.cli import ways

if TYPE_CHECKING:
    from textwright.pair_model import PairModel

VERBS = {
    "translate": "Translate a text, the lines of a file, or the lines of standard input.",
    "summarize": "Summarise a text, or the rows of a table.",
    "convert": "Turn texts into others, as the run was trained to: spellings into sounds, sentences into labels.",
}


def transform(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A folder that `textwright train --task …` wrote.")],
    text: Annotated[str | None, typer.Argument(help="One source; without it, --input or standard input.")] = None,
    input: Annotated[Path | None, typer.Option(help="A file: every line is a source, or every row of a table.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Standard input is one source, line ends and all.")] = False,
    n_best: Annotated[int, typer.Option(min=1, help="How many texts for each source.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Where a text is cut.")] = None,
    max_ratio: Annotated[float | None, typer.Option(help="The same, for every token of its source.")] = None,
    min_ratio: Annotated[float | None, typer.Option(help="Tokens a text has at least for each of its source.")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="What every written text begins with (nothing is put in front of sources).")
    ] = None,
    prefix_share: Annotated[
        float | None, typer.Option(help="Begin with --prefix not always, but with that much more probability.")
    ] = None,
    strategy: ways.Strategy = None,
    preset: ways.Preset = None,
    seed: ways.Seed = None,
    beams: ways.Beams = None,
    length_penalty: ways.LengthPenalty = None,
    temperature: ways.Temperature = None,
    top_p: ways.TopP = None,
    avoid: ways.Avoid = None,
    bias: ways.Bias = None,
    set: ways.Set = None,
    alternatives: ways.Alternatives = None,
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
    replace_unknown: Annotated[
        bool, typer.Option("--replace-unknown", help="Put the source word the model looked at for an unknown one.")
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores", help="Log-probability ÷ length^α behind each text; JSON always has it.")
    ] = False,
    alignments: Annotated[
        bool, typer.Option("--alignments", help="Where the model looked: source-target pairs of tokens, or weights.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw where it looked: a .svg or .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a source and nothing else.")] = False,
) -> None:
    from textwright.cli import sources
    from textwright.opening import as_pairs, load_pairs

    model = as_pairs(ways.opened(run, quantize), run, context.info_name)
    named: dict[str, Any] = {
        "beams": beams,
        "length_penalty": length_penalty,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    named |= {"max_new_tokens": max_new_tokens, "max_ratio": max_ratio, "min_ratio": min_ratio}
    options = ways.options(
        set, avoid, bias, prefix=prefix, prefix_share=prefix_share, alternatives=alternatives, **named
    )
    own = {"strategy": strategy, "preset": preset, "n_best": n_best, "replace_unknown": replace_unknown}
    options = ways.joined(options, own)
    options = ways.joined(options, ways.demands(choice, word, in_order, regex, json_schema, grammar))
    ways.tell_preset(preset, model.tokenizer)
    model = _company(model, with_, fuse, guidance, negative, dola)
    if draft is not None:
        options["draft"] = load_pairs(draft)
    read = sources.read(model, text, input, whole=whole)
    drawn = ways.luck(options.get("seed"), options, "beam", model.tokenizer)
    if drawn is not None:
        options["seed"] = drawn
    sources.write(model, run, read, sources.Printing(scores, alignments, picture, json), **options)
    if drawn is not None and not json:  # which has it beside each text
        ways.tell_seed(drawn)


def _company(
    model: PairModel,
    with_: Sequence[str] | None,
    fuse: Sequence[str] | None,
    guidance: float | None,
    negative: str | None,
    dola: bool,
) -> PairModel:
    """The model with the others that choose with it."""
    from textwright.errors import ConfigError
    from textwright.opening import load_pairs

    if (negative is None) != (guidance is None):
        raise ConfigError("--guidance leads away from a source: --guidance 1.5 --negative TEXT")
    if dola:
        model = model.dola()
    if guidance is not None and negative is not None:
        model = model.guided(guidance, negative)
    return ways.voting(model, load_pairs, with_, fuse)
