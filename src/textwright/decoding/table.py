"""The table of options and strategies in docs/decoding.md, made from the code; `python -m textwright.decoding.table`
prints it."""

from __future__ import annotations

from textwright.decoding.beam import Beam
from textwright.decoding.contrastive import Contrastive
from textwright.decoding.settings import Sampling
from textwright.decoding.strategies import OPTIONS, STRATEGIES

# What the settings' own descriptions do not hold.
ABOUT = {
    "beams": "hypotheses kept for each text",
    "length_penalty": "α by which log-probabilities are divided: length^α",
    "length_norm": "average: length^α; gnmt: ((5 + length) / 6)^α",
    "stopping": "exact, soon or first: when a search ends",
    "patience": "with stopping first: so many times the beams must have ended",
    "coverage": "β; a text loses for what it did not look at in its source; needs attention",
    "groups": "parts of the beam that are searched one after the other",
    "diversity": "what a token loses for every earlier group that has just chosen it",
    "siblings": "what the second, third … child of one hypothesis loses, times its place",
    "draw": "draw different texts without replacement instead of searching",
    "candidates": "likely tokens that are compared",
    "contrast": "α, the weight of looking like the text so far",
    "samples": "texts that one is chosen among (16)",
    "seed": "what repeats the noise",
    "order": "the steps in the order they are applied in",
    "max_seconds": "the text ends after so long",
    "top_logprobs": "the likeliest tokens at every place",
    "alternatives": "write on from each of so many likeliest first tokens",
    "lookup": "guess that the text goes on as it did before: faster, the same text",
    "draft": "let a smaller model guess: faster, the same text",
    "draft_length": "tokens to guess at a time",
}
NEEDS = {
    "no_repeat_source_ngram": "a source, one vocabulary",
    "coverage": "a source, attention",
    "end_growth": "an end token",
    "end_growth_after": "an end token",
    "draft": "a run with the same tokenizer",
    "top_logprobs": "no source",
}


def markdown() -> str:
    """One row an option: what it does, which models it needs, and the strategies that use it; the others refuse it."""
    head = ["option", "what it does", "needs", *STRATEGIES]
    lines = [head, ["---"] * 3 + [":-:"] * len(STRATEGIES)]
    fields = [*Sampling.model_fields, *Beam.model_fields, *Contrastive.model_fields]
    for option in [*fields, *sorted(OPTIONS - set(fields))]:
        about = ABOUT.get(option) or Sampling.model_fields[option].description or ""
        used = ["yes" if option in strategy.options else "refused" for strategy in STRATEGIES.values()]
        lines.append([f"`{option}`", about, NEEDS.get(option, ""), *used])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    print(markdown())
