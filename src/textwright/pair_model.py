"""Source in, text out: a trained encoder-decoder with its tokenizers and presets."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from textwright.decoding import Beam, Request, Result
from textwright.decoding.combined import Dola, Ensemble, Guided, Unaided
from textwright.decoding.engine import padded
from textwright.decoding.steering import PLAIN
from textwright.decoding.strategies import Decoding, decode, decoding
from textwright.errors import ConfigError, DataError
from textwright.evaluating.risk import least_risk, likeness
from textwright.models import EncoderDecoder, LanguageModel
from textwright.models.base import Source
from textwright.pair_alignments import END, Alignment, aligned, source_names
from textwright.presets import preset as chosen
from textwright.progress import Told, untold
from textwright.run import PairGeneration, WithSource
from textwright.text.bitext import one_line
from textwright.text.dialogues import TURNS, compose_dialogue
from textwright.text.neighbours import Neighbours
from textwright.text.pair_source import PairSource, holds_contexts
from textwright.text.squad import compose_question
from textwright.text.tokenizers import Tokenizer
from textwright.wishes import FREE, check_reply, constraint, steered, steering, stop_strings, taken

WORDS: dict[str, Any] = {
    **FREE,
    "avoid": (),
    "bias": {},
    "breakers": None,
    "exempt": (),
    "prefix": "",
    "prefix_share": None,
}
ROWS = 640  # texts written at once: most of a small model's step is the same for one row and for hundreds
FEW = 160  # of them whatever their sources
READ = 64 * ROWS  # tokens of their sources, beyond which they are fewer: each holds keys and values of its own

T = TypeVar("T")


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
        model: the run's network, in evaluation mode.
        network: what chooses the tokens: the same, or a model made of several (`together`, `guided`, `dola`).
        voters: the others it is made of.
        source_tokenizer, tokenizer: of the source and of what is written; one object where they are the same.
        generation: presets.
        config: the run's configuration.
        neighbours: the pairs beside which a source is read, or None.
    """

    def __init__(
        self,
        model: LanguageModel,
        source_tokenizer: Tokenizer,
        tokenizer: Tokenizer,
        generation: PairGeneration,
        config: WithSource,
        neighbours: Neighbours | None = None,
    ) -> None:
        assert isinstance(model, EncoderDecoder)
        self.network: LanguageModel = model
        self.voters: tuple[PairModel, ...] = ()
        self.model, self.source_tokenizer, self.tokenizer = model, source_tokenizer, tokenizer
        self.generation, self.config, self.neighbours = generation, config, neighbours

    def write(
        self,
        sources: Sequence[str],
        *,
        strategy: str | None = None,
        preset: str | None = None,
        n_best: int = 1,
        max_new_tokens: int | None = None,
        min_ratio: float = 0.0,
        max_ratio: float | None = None,
        seed: int | None = None,
        draft: PairModel | None = None,
        alignments: bool = False,
        replace_unknown: bool = False,
        progress: Told = untold,
        **options: Any,
    ) -> list[list[Written]]:
        """The `n_best` texts for every source, best first; or greedy `alternatives`, as many as there are.

        Args:
            sources: raw texts, none of them empty. What the training put in front of every source is added.
            strategy: one of `decoding.STRATEGIES`; a beam search as the run's presets say unless told otherwise.
            preset: one of `presets.PRESETS`.
            max_new_tokens: where a text is cut; by default some more than training texts had for such a source.
            min_ratio, max_ratio: tokens a text has at least and at most for every token of its source, as far as
                the model's window and max_new_tokens let it.
            seed: of the first sample, the next one has seed + 1; None draws one.
            draft: a smaller run with the same tokenizers, which guesses; changes the speed, not the texts.
            alignments: say where the model looked.
            replace_unknown: write the source word the model looked at for every unknown one (Jean et al. 2015).
            progress: is told how many more sources are done.
            options: of the strategy (see docs/decoding.md), and of the text: `prefix` (what it begins with),
                `prefix_share` (begin so with that much more probability, instead of always), `avoid`, `bias`,
                `breakers`, `exempt`, and at most one of `choices`, `words`, `words_in_order`, `regex`,
                `json_schema`, `grammar`, which the whole text obeys.

        Raises:
            DataError: a source is empty, or longer than the model reads.
            ConfigError: an unknown option, or one that the strategy does not use.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"expected max_new_tokens of at least 1, got {max_new_tokens}")
        if max_new_tokens is not None and max_ratio is not None:
            raise ConfigError("max_new_tokens and max_ratio both say where a text is cut: leave out one of them")
        if not (0 <= min_ratio < math.inf and (max_ratio is None or 0 < max_ratio < math.inf)):
            raise ConfigError(f"expected ratios of tokens above 0, got min_ratio {min_ratio:g}, max_ratio {max_ratio}")
        if max_ratio is not None and min_ratio > max_ratio:
            raise ConfigError(f"no text has a min_ratio of {min_ratio:g} and a max_ratio of {max_ratio:g}")
        if replace_unknown and self.tokenizer.unknown is None:
            raise ConfigError("this model's vocabulary can write every text: leave out replace_unknown")
        if (alignments or replace_unknown) and not self.looks:
            raise ConfigError("this model has no attention: leave out alignments and replace_unknown")
        words = taken(options, WORDS)
        how = self._how(strategy, preset, n_best, seed, draft, options)
        ids = [self.checked(f"source {number}", source, draft) for number, source in enumerate(sources, 1)]
        first = secrets.randbelow(2**31) if seed is None else seed
        if options.get("top_logprobs"):
            raise ConfigError("top_logprobs are shown of texts without a source: leave it out")
        plain = replace(self._wishes(how, words, first), max_seconds=options.get("max_seconds"))
        window = self.network.window
        room = math.inf if window is None else how.room(window, len(plain.prompt))
        if draft is not None and draft.network.window is not None:
            room = min(room, how.room(draft.network.window, len(plain.prompt)))
        requests = [self._request(plain, source, room, max_new_tokens, min_ratio, max_ratio) for source in ids]
        found: list[list[Written]] = [[]] * len(sources)
        for batch in self._batches(ids, self._rows(how, n_best)):
            results = self._decode([requests[place] for place in batch], how, n_best)
            for place, texts in zip(batch, results, strict=True):
                found[place] = texts
            progress(len(batch))
        if alignments or replace_unknown:
            found = [aligned(self, *pair, replace_unknown) for pair in zip(sources, found, strict=True)]
        return found

    def together(self, others: Sequence[tuple[PairModel, float]], *, fuse: bool = False) -> PairModel:
        """This model and others, which choose every token by a vote; see `TextModel.together`. Where this one reads its
        sources beside neighbours, the others read them beside the same ones, or without any. They share a task: the
        same words in front of its sources.

        Raises:
            ConfigError: other tokenizers, tasks or neighbours, or weights that do not fit.
        """
        who = "models that choose together"
        voters, weights = [other for other, _ in others], [weight for _, weight in others]
        for other in voters:
            self._check_tokenizers(other, who)
            if not set(self.prefixes) & set(other.prefixes):  # they would read ids that one of them never saw
                found = " and ".join(repr(", ".join(model.prefixes)) for model in (self, other))
                raise ConfigError(f"{who} put the same in front of a source, and these two runs put {found} there")
            if other.neighbours is None:
                continue  # it reads a source without them
            if self.neighbours is None:
                raise ConfigError(f"{who}: name the run that reads a source beside neighbours first")
            self._check_neighbours(other, who)
        own = 1.0 if fuse else 1 - sum(weights)
        networks = [self.network, *(self._reader(other) for other in voters)]
        model = self._with(Ensemble(networks, [own, *weights], "logarithms" if fuse else "probabilities"))
        model.voters = (*self.voters, *voters, *(voter for other in voters for voter in other.voters))
        return model

    def guided(self, scale: float, negative: str) -> PairModel:
        """This model with the influence of its source exaggerated, away from the source `negative`."""
        return self._with(Guided(self.network, scale, negative=self.checked("the negative source", negative)))

    def dola(self) -> PairModel:
        """This model with its layers contrasted; see `decoding.combined.Dola`."""
        return self._with(Dola(self.network))

    def reply(
        self, turns: Sequence[str], *, task_prefix: str | None = None, preset: str | None = "chat", **options: Any
    ) -> Written:
        """The next turn of a dialogue, from the turns before it: drawn, unless told otherwise, because the likeliest
        reply is mostly the dullest one (Holtzman et al. 2020). Options are those of `write`; for the prefix see
        `asked`."""
        check_reply(options)
        task = self.task_prefix(task_prefix)
        limit, window = self.alike(task)[0].turns or TURNS, self.model.source_window
        source = self.for_task(task, compose_dialogue(turns, limit))
        while limit > 1 and window is not None and len(self.source_ids(source)) > window:
            limit -= 1  # what was said longest ago is forgotten first
            source = self.for_task(task, compose_dialogue(turns, limit))
        return self.write([source], preset=preset, **options)[0][0]

    def answer(self, question: str, context: str = "", *, task_prefix: str | None = None, **options: Any) -> Written:
        """The answer to a question about a text. Options are those of `write`; for the rest see `asked`."""
        return self.write([self.asked(question, context, task_prefix)], **options)[0][0]

    def asked(self, question: str, context: str = "", task_prefix: str | None = None) -> str:
        """The source of a question.

        Args:
            context: the text that holds the answer; "" where the training pairs had questions alone.
            task_prefix: of the task, where the model has several.

        Raises:
            ConfigError: no context, and the model learned from nothing but questions about one; or see the method
                `task_prefix`.
        """
        task = self.task_prefix(task_prefix)
        if not context.strip() and all(map(holds_contexts, self.alike(task))):
            raise ConfigError("this model learned to answer questions about a text: give the context, too")
        return self.for_task(task, compose_question(question, context) if context.strip() else question)

    def for_task(self, prefix: str, source: str) -> str:
        """A source with the prefix of one of several tasks; a single one is put in front of every source anyway. What
        is empty stays so, to be noticed."""
        return prefix + source if len(self.prefixes) > 1 and source.strip() else source

    def source_ids(self, source: str) -> list[int]:
        """The ids a raw source is read as: its tokens, with its prefix, as far as they are read, and the end; in front
        of them what the tokenizer's own rules put there, after them as many of its neighbours as the model can read."""
        return self._beside(self._own_ids(source))

    def _own_ids(self, source: str) -> list[int]:
        framed = self.framed(source)
        tokens = cut(self.source_tokenizer.encode(one_line(framed, self.source_tokenizer)), self.config)
        return [*self.source_tokenizer.prefix, *tokens, self.source_tokenizer.end]

    def _beside(self, ids: list[int], draft: PairModel | None = None) -> list[int]:
        """A source and as many of its neighbours as everybody who reads them can."""
        if self.neighbours is None:
            return ids
        windows = [reader.model.source_window for reader, _ in self._readers(draft) if reader.neighbours is not None]
        return self.neighbours.beside([ids], min(filter(None, windows), default=None))[0]

    def names(self, source: str, ids: Sequence[int]) -> list[str]:
        """What the ids of a raw source stand for: its words as they were given, also those the tokenizer lacks."""
        surfaces = self.source_tokenizer.surfaces(one_line(self.framed(source), self.source_tokenizer))
        begin = [""] * len(self.source_tokenizer.prefix)
        names = [*begin, *cut(surfaces, self.config), END][: len(ids)]
        return names + source_names(self.source_tokenizer, self.tokenizer, ids[len(names) :])

    def own(self, ids: Sequence[int]) -> int:
        """How many of the ids of a source are its own, its end included; the others are its neighbours'."""
        return len(ids) if self.neighbours is None else list(ids).index(self.source_tokenizer.end) + 1

    def framed(self, source: str) -> str:
        """The source with what the training put in front of every one of them."""
        prefixes = self.prefixes
        if len(prefixes) == 1:
            return prefixes[0] + source
        if not source.startswith(tuple(prefix for prefix in prefixes if prefix)) and "" not in prefixes:
            raise ConfigError(f"this model has several tasks; begin every source with one of: {', '.join(prefixes)}")
        return source

    @property
    def prefixes(self) -> list[str]:
        """What the training put in front of sources: several of them are several tasks."""
        return sorted({pairs.prefix for pairs in self.config.pairs})

    def alike(self, prefix: str) -> list[PairSource]:
        """The training pairs of the task with this prefix; the first ones say how a file of the same kind is read."""
        return [source for source in self.config.pairs if source.prefix == prefix]

    def task_prefix(self, given: str | None) -> str:
        """What stands in front of the sources of one of the model's tasks; with one task it need not be given.

        Raises:
            ConfigError: none is given where there are several, or one that the model was not trained with.
        """
        prefixes = self.prefixes
        told = ", ".join(map(repr, prefixes))
        if given is None and len(prefixes) > 1:
            raise ConfigError(f"this model has several tasks: say which one by --prefix and one of {told}")
        if given is not None and given not in prefixes:
            raise ConfigError(f"prefix {given!r}: this model was trained with {told}")
        return prefixes[0] if given is None else given

    @property
    def looks(self) -> bool:
        """The model has attention."""
        token, length = padded([[0]], self.model.device)
        with torch.no_grad():
            return self.model.attention(token, None, Source(token, length)) is not None

    def bare(self) -> PairModel:
        """The same for sources that were read with their prefix."""
        pairs = tuple(source.model_copy(update={"prefix": ""}) for source in self.config.pairs)
        model = copy(self)
        model.config = self.config.model_copy(update={"pairs": pairs})
        return model

    # -- how -------------------------------------------------------------------------------------------------------

    def checked(self, where: str, source: str, draft: PairModel | None = None) -> list[int]:
        """The ids of a source; raises DataError, naming `where` it stands, for an empty or an overlong one."""
        return self._beside(self.fits(where, source, draft), draft)

    def fits(self, where: str, source: str, draft: PairModel | None = None) -> list[int]:
        """The same without neighbours, which take long to find: of them what does not fit is left out anyway."""
        if not source.strip():
            raise DataError(f"{where} is empty: there is nothing to write from")
        ids = self._own_ids(source)
        for reader, who in self._readers(draft):
            window = reader.model.source_window
            if window is not None and len(ids) > window:
                raise DataError(
                    f"{where} has {len(ids):,} tokens, {who} reads up to {window:,}: split or shorten it "
                    f"({source[:40]!r} …)"
                )
        return ids

    def _readers(self, draft: PairModel | None) -> list[tuple[PairModel, str]]:
        """Who reads a source, in words."""
        voters = [(voter, "a model that votes") for voter in self.voters]
        return [(self, "this model"), *voters, *([] if draft is None else [(draft, "its draft")])]

    def _with(self, network: LanguageModel) -> PairModel:
        model = copy(self)
        model.network = network
        return model

    def _reader(self, other: PairModel) -> LanguageModel:
        """What reads this model's sources as the other model reads its own."""
        unaided = self.neighbours is not None and other.neighbours is None
        return Unaided(other.network, self.source_tokenizer.end) if unaided else other.network

    def _check_tokenizers(self, other: PairModel, who: str) -> None:
        pairs = (self.tokenizer, other.tokenizer), (self.source_tokenizer, other.source_tokenizer)
        if not all(mine.same(theirs) for mine, theirs in pairs):
            raise ConfigError(f"{who} need the same tokenizers, and these two runs have different ones")

    def _check_neighbours(self, other: PairModel, who: str) -> None:
        mine, theirs = self.neighbours, other.neighbours
        if (mine is None) != (theirs is None) or (mine is not None and theirs is not None and not mine.same(theirs)):
            raise ConfigError(f"{who} must read a source beside the same neighbours, and these two runs do not")

    def _how(
        self,
        strategy: str | None,
        preset: str | None,
        n_best: int,
        seed: int | None,
        draft: PairModel | None,
        options: dict[str, Any],
    ) -> Decoding:
        usual = {"beams": self.generation.beams, "length_penalty": self.generation.length_penalty, "stopping": "soon"}
        named, given = chosen(preset, self.tokenizer) if preset else ("beam", usual)
        strategy = strategy or named
        ranked = {"draw", "length_penalty", "coverage", "patience"} & options.keys()
        if n_best == 1 and options.get("beams", given.get("beams")) == 1 and not ranked:
            given = {**given, "stopping": "first"}  # one beam ends where greedy does: where the end is the likeliest
        if draft is not None:
            self._check_tokenizers(draft, "a model and its draft")
            self._check_neighbours(draft, "a model and its draft")
        asked = {**options, **({} if seed is None else {"seed": seed}), **({} if draft is None else {"draft": True})}
        how = decoding(strategy, asked, given, None if draft is None else draft.network)
        if n_best > 1 and how.alternatives:
            raise ConfigError("alternatives says how many texts there are: leave out n_best")
        if n_best < 1 or (n_best > 1 and strategy not in ("beam", "sample")):
            raise ConfigError(
                f"strategy {strategy} writes one text for a source, got n_best {n_best}"
                + (f"; for others, --alternatives {n_best}" if strategy == "greedy" and n_best > 1 else "")
            )
        if how.sampling.no_repeat_source_ngram and self.config.model.source_vocab is not None:
            raise ConfigError(
                "no_repeat_source_ngram needs one vocabulary for both sides, and this model has two: leave it out"
            )
        if strategy == "beam" and n_best > how.beam.beams:
            if "beams" in options:
                raise ConfigError(
                    f"{n_best} texts need at least {n_best} beams, got {how.beam.beams}: --beams {n_best}"
                )
            how = replace(how, beam=Beam.parse({**how.beam.dump(), "beams": n_best}, "beam search"))
        return how

    def _wishes(self, how: Decoding, words: dict[str, Any], seed: int) -> Request:
        """What all texts have in common."""
        never = frozenset(self.generation.unseen)
        free = taken(words, FREE)
        avoid = words.pop("avoid")
        words["prefix"] = self.tokenizer.encode(words["prefix"])
        return Request(
            self.generation.start,
            how.sampling,
            seed,
            avoid=stop_strings(self.tokenizer, avoid, "avoid", never),
            constraint=constraint(self.tokenizer, self.generation.end, never, whole=True, **free),
            steering=steering(self.tokenizer, never, **words) if steered(how, words) else PLAIN,
        )

    def _request(
        self, plain: Request, source: list[int], room: float, longest: int | None, least: float, most: float | None
    ) -> Request:
        read = self.own(source)
        fewest = math.ceil(least * read)
        if most is not None:
            cut = min(math.ceil(most * read), room)
        elif longest is not None:
            cut = longest
        else:
            usual = max(int(self.generation.growth * read), fewest, len(plain.steering.forced)) + 10
            cut = min(usual if plain.constraint is None else max(usual, Request.max_new_tokens), room)
        return replace(
            plain,
            max_new_tokens=int(cut),
            min_new_tokens=min(int(cut), fewest),
            source=tuple(source),
            source_text=read - 1,
        )

    def _rows(self, how: Decoding, n_best: int) -> int:
        """Rows that one source needs."""
        return {"beam": how.beam.beams, "mbr": how.samples, "contrastive": how.contrastive.candidates}.get(
            how.strategy, how.alternatives or n_best
        )

    def _batches(self, ids: list[list[int]], rows: int) -> Iterator[list[int]]:
        """Places of sources of similar length, the longest first."""
        order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
        while order:
            most = min(ROWS, max(FEW, READ // len(ids[order[0]])))
            size = max(1, most // rows)
            yield order[:size]
            order = order[size:]

    def _decode(self, requests: list[Request], how: Decoding, n: int) -> list[list[Written]]:
        """The best texts of every request."""
        count = {"sample": n, "mbr": how.samples}.get(how.strategy, 1)
        several = [replace(request, seed=request.seed + k) for request in requests for k in range(count)]
        alike = likeness() if how.strategy == "mbr" else None  # a missing package is told before anything is written
        found = decode(self.network, several, self.generation.end, how, banned=self.generation.unseen, rows=ROWS)
        if how.strategy == "beam" or how.alternatives:
            most, draws = how.alternatives or n, how.strategy == "beam" and how.beam.draw
            return [
                [self._written(result, how, request.seed if draws else None) for result in results[:most]]
                for request, results in zip(requests, found, strict=True)
            ]
        drawn = how.strategy in ("sample", "mbr")
        texts = [
            self._written(result, how, request.seed if drawn else None)
            for request, (result,) in zip(several, found, strict=True)
        ]
        groups = [texts[start : start + count] for start in range(0, len(texts), count)]
        if alike is not None:
            best = [group[least_risk([text.text for text in group], alike)] for group in groups]
            # Its seed is that of the first sample, which repeats them all.
            return [[replace(text, seed=group[0].seed)] for text, group in zip(best, groups, strict=True)]
        return groups

    def _written(self, result: Result, how: Decoding, seed: int | None = None) -> Written:
        text = self.tokenizer.decode(self.shown(result.tokens))
        divisor = how.beam.divisor(len(result.tokens))
        return Written(text, result.tokens, result.logprob, result.logprob / divisor, result.finish, seed)

    def shown(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens without the end."""
        return tokens[:-1] if tokens[-1] == self.generation.end else tokens


def cut(tokens: list[T], config: WithSource) -> list[T]:
    """What is read of a source: its first tokens, of a dialogue its last ones."""
    if config.cut is None or len(tokens) <= config.cut:
        return tokens
    return tokens[-config.cut :] if config.task == "chat" else tokens[: config.cut]
