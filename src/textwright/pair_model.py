"""Source in, text out: a trained encoder-decoder with its tokenizers and presets."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch

from textwright.decoding import Beam, Request, Result, Sampling, beam_search, collect, generate
from textwright.decoding.engine import padded
from textwright.errors import ConfigError, DataError, nearest
from textwright.models import EncoderDecoder, LanguageModel
from textwright.models.base import Source
from textwright.run import PairGeneration, PairRun
from textwright.text.bitext import one_line
from textwright.text.dialogues import TURNS, compose_dialogue
from textwright.text.tokenizers import Tokenizer

STRATEGIES = ("beam", "greedy", "sample")
ROWS = 160  # texts written at once

T = TypeVar("T")
Progress = Callable[[int], None]  # (sources done)


class Alignment(NamedTuple):
    """Where the model looked: weights[t][s] is the share of source token s while it chose target token t."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Written:
    """A text written for a source.

    Attributes:
        text: what was written; unknown words are replaced by the source words they were written for, if asked for.
        tokens: its ids, the end included.
        logprob: log-probability (nats) of the tokens.
        score: what beams are ranked by: logprob ÷ length^α.
        finish_reason: "end" or "length".
        seed: what repeats it; None where nothing is drawn.
        alignment: if asked for, and if the model has attention.
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    score: float
    finish_reason: str
    seed: int | None = None
    alignment: Alignment | None = None


class PairModel:
    """A model that writes with a source.

    Attributes:
        model: the network, in evaluation mode.
        source_tokenizer, tokenizer: of the source and of what is written; one object where they are the same.
        generation: presets.
        config: the run's configuration.
    """

    def __init__(
        self,
        model: LanguageModel,
        source_tokenizer: Tokenizer,
        tokenizer: Tokenizer,
        generation: PairGeneration,
        config: PairRun,
    ) -> None:
        assert isinstance(model, EncoderDecoder)
        self.model, self.source_tokenizer, self.tokenizer = model, source_tokenizer, tokenizer
        self.generation, self.config = generation, config

    def write(
        self,
        sources: Sequence[str],
        *,
        strategy: str = "beam",
        n_best: int = 1,
        beams: int | None = None,
        length_penalty: float | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        alignments: bool = False,
        replace_unknown: bool = False,
        progress: Progress | None = None,
        **sampling: float,
    ) -> list[list[Written]]:
        """The `n_best` texts for every source, best first.

        Args:
            sources: raw texts, none of them empty. What the training put in front of every source is added.
            strategy: "beam", "greedy" or "sample".
            beams, length_penalty: of a beam search; the run's presets by default.
            max_new_tokens: where a text is cut; by default some more than training texts had for such a source.
            seed: of the first sample, the next one has seed + 1; None draws one.
            alignments: say where the model looked.
            replace_unknown: write the source word the model looked at for every unknown one (Jean et al. 2015).
            progress: is told how many sources are done.
            sampling: fields of `decoding.Sampling`, for the strategy "sample".

        Raises:
            DataError: a source is empty, or longer than the model reads.
            ConfigError: an unknown option, or one that the strategy does not use.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"expected max_new_tokens of at least 1, got {max_new_tokens}")
        if beams is not None and beams < 1:
            raise ConfigError(f"expected at least 1 beam, got {beams}")
        if strategy not in STRATEGIES:
            raise ConfigError(f"unknown strategy {strategy!r}.{nearest(strategy, STRATEGIES)}")
        self._check_options(strategy, n_best, beams, length_penalty, seed, sampling)
        ids = [self.checked(f"source {number}", source) for number, source in enumerate(sources, 1)]
        first = secrets.randbelow(2**31) if seed is None else seed
        temperature = {} if strategy == "sample" else {"temperature": 0.0 if strategy == "greedy" else 1.0}
        settings = Sampling.parse({**sampling, **temperature}, "sampling")
        requests = [self._request(source, settings, first, max_new_tokens) for source in ids]
        beam = self._search(n_best, beams, length_penalty)
        found: list[list[Result]] = [[]] * len(sources)
        for batch in self._batches(ids, beam.beams if strategy == "beam" else n_best):
            chosen = [requests[place] for place in batch]
            results = self._beams(chosen, beam, n_best) if strategy == "beam" else self._rows(chosen, n_best)
            for place, result in zip(batch, results, strict=True):
                found[place] = result
            if progress:
                progress(len(batch))
        alpha = beam.length_penalty
        texts = [[self._written(result, alpha) for result in results] for results in found]
        if strategy == "sample":
            texts = [[replace(text, seed=first + n) for n, text in enumerate(group)] for group in texts]
        if alignments or (replace_unknown and self.tokenizer.unknown is not None):
            texts = [self._look(*pair, replace_unknown) for pair in zip(sources, texts, strict=True)]
        return texts

    def reply(
        self, turns: Sequence[str], *, strategy: str = "sample", seed: int | None = None, **options: Any
    ) -> Written:
        """The next turn of a dialogue, from the turns before it. Samples are drawn at temperature 0.7 and top_p 0.9
        unless told otherwise: the likeliest reply is mostly the dullest one (Holtzman et al. 2020)."""
        if strategy == "sample":
            options = {"temperature": 0.7, "top_p": 0.9, **options}
        limit, window = self.config.pairs[0].turns or TURNS, self.model.source_window
        source = compose_dialogue(turns, limit)
        while limit > 1 and window is not None and len(self.source_ids(source)) > window:
            limit -= 1  # what was said longest ago is forgotten first
            source = compose_dialogue(turns, limit)
        return self.write([source], strategy=strategy, seed=seed, **options)[0][0]

    def source_ids(self, source: str) -> list[int]:
        """The ids a raw source is read as: its prefix, its tokens as far as they are read, and the end."""
        framed = self.framed(source)
        ids = self.source_tokenizer.encode(one_line(framed, self.source_tokenizer))
        return [*cut(ids, self.config), self.source_tokenizer.end]

    def framed(self, source: str) -> str:
        """The source with what the training put in front of every one of them."""
        prefixes = sorted({pairs.prefix for pairs in self.config.pairs})
        if len(prefixes) == 1:
            return prefixes[0] + source
        if not source.startswith(tuple(prefix for prefix in prefixes if prefix)) and "" not in prefixes:
            raise ConfigError(f"this model has several tasks; begin every source with one of: {', '.join(prefixes)}")
        return source

    @property
    def looks(self) -> bool:
        """The model has attention."""
        source = Source(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long))
        with torch.no_grad():
            return self.model.attention(torch.zeros(1, 1, dtype=torch.long), None, source) is not None

    def bare(self) -> PairModel:
        """The same for sources that were read with their prefix."""
        pairs = tuple(source.model_copy(update={"prefix": ""}) for source in self.config.pairs)
        config = self.config.model_copy(update={"pairs": pairs})
        return PairModel(self.model, self.source_tokenizer, self.tokenizer, self.generation, config)

    # -- how -------------------------------------------------------------------------------------------------------

    def checked(self, where: str, source: str) -> list[int]:
        """The ids of a source; raises DataError, naming `where` it stands, for an empty or an overlong one."""
        if not source.strip():
            raise DataError(f"{where} is empty: there is nothing to write from")
        ids, window = self.source_ids(source), self.model.source_window
        if window is not None and len(ids) > window:
            raise DataError(
                f"{where} has {len(ids):,} tokens, this model reads up to {window:,}: split or shorten it "
                f"({source[:40]!r} …)"
            )
        return ids

    def _check_options(
        self,
        strategy: str,
        n_best: int,
        beams: int | None,
        length_penalty: float | None,
        seed: int | None,
        sampling: dict[str, float],
    ) -> None:
        if strategy != "beam" and (beams is not None or length_penalty is not None):
            raise ConfigError("beams and length_penalty belong to beam search: leave them out, or --strategy beam")
        if strategy != "sample" and (sampling or seed is not None):
            useless = sorted([*sampling, *(["seed"] if seed is not None else [])])
            raise ConfigError(
                f"strategy {strategy} draws nothing, so it does not use {', '.join(useless)}: leave it out"
            )
        if n_best < 1 or (strategy == "greedy" and n_best > 1):
            raise ConfigError(f"expected one text or more, of greedy decoding just one, got n_best {n_best}")

    def _request(self, source: list[int], settings: Sampling, seed: int, longest: int | None) -> Request:
        usual = int(self.generation.growth * len(source)) + 10
        fits = usual if self.model.window is None else self.model.window - len(self.generation.start) + 1
        return Request(self.generation.start, settings, seed, longest or min(usual, fits), source=tuple(source))

    def _search(self, n_best: int, beams: int | None, length_penalty: float | None) -> Beam:
        width = beams or max(self.generation.beams, n_best)
        if n_best > width:
            raise ConfigError(f"{n_best} texts need at least {n_best} beams, got {width}: --beams {n_best}")
        penalty = self.generation.length_penalty if length_penalty is None else length_penalty
        return Beam.parse({"beams": width, "length_penalty": penalty, "stopping": "soon"}, "beam search")

    def _batches(self, ids: list[list[int]], rows: int) -> Iterator[list[int]]:
        """Places of sources of similar length, the longest first."""
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        size = max(1, ROWS // rows)
        return (order[start : start + size] for start in range(0, len(order), size))

    def _beams(self, requests: list[Request], beam: Beam, n_best: int) -> list[list[Result]]:
        found = beam_search(self.model, requests, self.generation.end, beam, banned=self.generation.unseen)
        return [results[:n_best] for results in found]

    def _rows(self, requests: list[Request], n: int) -> list[list[Result]]:
        several = [replace(request, seed=request.seed + k) for request in requests for k in range(n)]
        events = generate(self.model, several, self.generation.end, banned=self.generation.unseen, max_rows=ROWS)
        results = collect(events)
        return [results[start : start + n] for start in range(0, len(results), n)]

    def _written(self, result: Result, alpha: float) -> Written:
        text = self.tokenizer.decode(self._shown(result.tokens))
        score = result.logprob / len(result.tokens) ** alpha
        return Written(text, result.tokens, result.logprob, score, result.finish)

    def _shown(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return tokens[:-1] if tokens[-1] == self.generation.end else tokens

    # -- where it looked -------------------------------------------------------------------------------------------

    def _look(self, source: str, texts: list[Written], replace_unknown: bool) -> list[Written]:
        """The texts of one source with their alignments and, if asked for, without unknown words."""
        weights = self._weights(source, texts)
        if weights is None:
            raise ConfigError("this model has no attention: leave out alignments and replace_unknown")
        ids = self.source_ids(source)
        surfaces = self.source_tokenizer.surfaces(one_line(self.framed(source), self.source_tokenizer))
        names = [*cut(surfaces, self.config), "</s>"][: len(ids)]
        aligned = []
        for text, rows in zip(texts, weights, strict=True):
            looked = rows[: len(text.tokens), : len(ids)]
            if replace_unknown and self.tokenizer.unknown in text.tokens:
                spelled = {
                    place: names[int(looked[place, :-1].argmax())]
                    for place, token in enumerate(text.tokens)
                    if token == self.tokenizer.unknown and len(ids) > 1
                }
                text = replace(text, text=self.tokenizer.decode(self._shown(text.tokens), spelled))
            target = tuple("</s>" if t == self.generation.end else self.tokenizer.decode([t]) for t in text.tokens)
            table = tuple(tuple(round(value, 4) for value in row) for row in looked.tolist())
            aligned.append(replace(text, alignment=Alignment(tuple(names), target, table)))
        return aligned

    @torch.no_grad()
    def _weights(self, source: str, texts: list[Written]) -> torch.Tensor | None:
        """(texts, time, places)."""
        read = [(*self.generation.start, *text.tokens[:-1]) for text in texts]
        tokens, lengths = padded(read, self.model.device)
        places = padded([self.source_ids(source)] * len(texts), self.model.device)
        looked = self.model.attention(tokens, lengths, Source(*places))
        return None if looked is None else looked[:, len(self.generation.start) - 1 :].float()


def cut(tokens: list[T], config: PairRun) -> list[T]:
    """What is read of a source: its first tokens, of a dialogue its last ones."""
    if config.cut is None or len(tokens) <= config.cut:
        return tokens
    return tokens[-config.cut :] if config.task == "chat" else tokens[: config.cut]
