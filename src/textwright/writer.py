"""Text in, text out: a trained model with its tokenizer and presets."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from textwright.decoding import Beam, Event, Request, Result, generate
from textwright.decoding.combined import Dola, Ensemble, Guided
from textwright.decoding.steering import PLAIN
from textwright.decoding.strategies import Decoding, decode, decoding, stream
from textwright.errors import ConfigError
from textwright.evaluating.cache import CacheSettings, cached_panel
from textwright.evaluating.dynamic import DynamicSettings, dynamic_panel
from textwright.evaluating.perplexity import Panel, panel
from textwright.evaluating.risk import least_risk, likeness
from textwright.models import LanguageModel
from textwright.presets import preset as chosen
from textwright.progress import Told, untold
from textwright.run import GenerationConfig, ImportedRun, TextRun
from textwright.text.conversations import ChatTemplate, turns_of
from textwright.text.corpus import Corpus, counted, write
from textwright.text.sources import SourceConfig, read
from textwright.text.tokenizers import Tokenizer
from textwright.wishes import FREE, check_reply, constraint, steered, steering, stop_strings, taken

ROWS = 64  # texts written at once


@dataclass(frozen=True)
class Text:
    """A written text: without its prompt, cut before a stop string.

    Attributes:
        text: what was written.
        tokens: its ids, an end token included.
        finish_reason: "end", "stop" (a stop string), "length", "loop" (it went round in circles) or "time".
        logprob: log-probability (nats) of the tokens: the model's own; for beams, after the penalties asked for.
        seed: what repeats it; None where nothing is drawn.
        logprobs: of each token; none for a beam search, which knows their sum.
        tops: with `top_logprobs`, the likeliest tokens at the place of each one, as text, with log-probabilities.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprob: float
    seed: int | None
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[tuple[str, float], ...], ...] = ()


class Chunk(NamedTuple):
    """The next part of the text with this number; `finish_reason` is set on its last part."""

    number: int
    text: str
    finish_reason: str | None


class TextModel:
    """A model that writes.

    Attributes:
        model: the run's network, in evaluation mode.
        network: what chooses the tokens: the same, or a model made of several (`together`, `guided`, `dola`).
        tokenizer: strings to ids and back.
        generation: where texts begin, and the preset for sampling.
        config: the run's configuration.
        template: how a conversation is spelled, of models that were trained to hold one.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        generation: GenerationConfig,
        config: TextRun | ImportedRun,
        network: LanguageModel | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.template = template
        self.model, self.tokenizer, self.generation, self.config = model, tokenizer, generation, config
        self.network = model if network is None else network

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        strategy: str | None = None,
        preset: str | None = None,
        n: int = 1,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        draft: TextModel | None = None,
        **options: Any,
    ) -> list[Text]:
        """Write `n` texts that go on from the prompt.

        Args:
            prompt: may be empty: then the text begins as the training texts did. Token ids are read as they are.
            strategy: one of `decoding.STRATEGIES`; "sample" unless the preset says otherwise. Of a beam search, the n
                best texts, best first; of greedy `alternatives`, those after the likeliest first tokens.
            preset: one of `presets.PRESETS`; without one, a sample is drawn by the run's own.
            seed: of the first text, the next one has seed + 1; None draws one. The same seed gives the same text.
            draft: a smaller run with the same tokenizer, which guesses; changes the speed, not the text.
            options: of the strategy (see docs/decoding.md), and of the text: `stop` and `stop_ids` (strings and tokens
                that end it, without being part of it), `avoid` (strings that never occur in it), `bias` (text ->
                logit), `breakers`, `exempt`, `max_seconds`, `top_logprobs`, and at most one of `choices`, `words`,
                `words_in_order`, `regex`, `json_schema`, `grammar`, which the whole text obeys (see
                `wishes.constraint`).

        Raises:
            ConfigError: an unknown option, one that the strategy does not use, or two that contradict each other.
        """
        how, requests, stop = self._asked(
            prompt, strategy, preset, n, seed, max_new_tokens, min_new_tokens, draft, options
        )
        if how.strategy == "mbr":
            return self._least_risk(how, requests, stop)
        if how.strategy == "beam" or how.alternatives:
            (results,) = decode(self.network, requests[:1], self.generation.end, how, banned=self.generation.unseen)
            drawn = requests[0].seed if how.beam.draw else None
            count = how.alternatives or n
            return [self._text(requests[0], result, stop, drawn) for result in results[:count]]
        streams = [TextStream(self.tokenizer, request, stop) for request in requests]
        for event in self._events(requests, how):
            streams[event.request].feed(event)
        seeds = [request.seed if how.strategy == "sample" else None for request in requests]
        return [stream.result(seed) for stream, seed in zip(streams, seeds, strict=True)]

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        strategy: str | None = None,
        preset: str | None = None,
        n: int = 1,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        draft: TextModel | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """As `generate`, part by part while it is written; the parts of a text joined are its whole text."""
        how, requests, stop = self._asked(
            prompt, strategy, preset, n, seed, max_new_tokens, min_new_tokens, draft, options
        )
        if how.strategy in ("beam", "mbr"):
            raise ConfigError(f"strategy {how.strategy} knows its text only at the end: leave out --stream, or sample")
        if how.alternatives:
            raise ConfigError("alternatives are written whole: leave out --stream")
        return self._parts(how, requests, stop)

    def _parts(self, how: Decoding, requests: Sequence[Request], stop: Sequence[str]) -> Iterator[Chunk]:
        streams = [TextStream(self.tokenizer, request, stop) for request in requests]
        for event in self._events(requests, how):
            part = streams[event.request].feed(event)
            if part or event.finish:
                yield Chunk(event.request, part, event.finish)

    def logprobs(self, text: str) -> list[tuple[str, float]]:
        """The tokens of a text, and the log-probability (nats) of each after those before it.

        Raises:
            ConfigError: the text is empty, or longer than the model's window.
        """
        ids, begun = self.prompt_ids(text), len(self.generation.start)
        if len(ids) == begun:
            raise ConfigError("log-probabilities need a text")
        if self.network.window is not None and len(ids) > self.network.window:
            raise ConfigError(f"the text has {len(ids)} tokens, the model sees {self.network.window}: shorten it")
        tokens = torch.tensor([ids], device=self.network.device)
        with torch.no_grad():
            rows = self.network(tokens).logits[0].float().log_softmax(-1)
        values = rows[begun - 1 : -1].gather(1, tokens[0, begun:, None]).squeeze(1).tolist()
        pieces = [self.tokenizer.pieces[token].decode("utf-8", "replace") for token in ids[begun:]]
        return list(zip(pieces, values, strict=True))

    def together(self, others: Sequence[tuple[TextModel, float]], *, fuse: bool = False) -> TextModel:
        """This model and others, which choose every token by a vote: weights of probabilities, this one having what is
        left to 1; or, to `fuse`, weights of log-probabilities beside this one's 1.

        Raises:
            ConfigError: another tokenizer, or weights that do not fit.
        """
        for other, _ in others:
            self._check_tokenizer(other, "models that choose together")
        weights = [weight for _, weight in others]
        own = 1.0 if fuse else 1 - sum(weights)
        networks = [self.network, *(other.network for other, _ in others)]
        return self._with(Ensemble(networks, [own, *weights], "logarithms" if fuse else "probabilities"))

    def guided(self, prompt: str, scale: float, negative: str = "") -> TextModel:
        """This model for texts that go on from this prompt, whose influence is exaggerated; away from `negative`."""
        other = self.tokenizer.encode(negative)
        if not other and len(self.prompt_ids(prompt)) <= len(self.generation.start):
            raise ConfigError("guidance exaggerates what a prompt changes, and there is none: give a prompt")
        ids = (*self.generation.start, *other) if other else ()
        return self._with(Guided(self.network, scale, prompt=len(self.prompt_ids(prompt)), negative=ids))

    def dola(self) -> TextModel:
        """This model with its layers contrasted; see `decoding.combined.Dola`."""
        return self._with(Dola(self.network))

    def evaluate(
        self,
        source: SourceConfig,
        *,
        stride: int | None = None,
        cache: CacheSettings | None = None,
        dynamic: DynamicSettings | None = None,
        progress: Told = untold,
    ) -> Panel:
        """Perplexities on a text, tokenised by this run's tokenizer; in float32 and constant memory. See `measure`."""
        with tempfile.TemporaryDirectory() as folder:
            corpus = write(Path(folder) / "corpus", read(source), self.tokenizer)
            return self.measure(corpus, stride=stride, cache=cache, dynamic=dynamic, progress=progress)

    def measure(
        self,
        corpus: Corpus,
        *,
        stride: int | None = None,
        cache: CacheSettings | None = None,
        dynamic: DynamicSettings | None = None,
        progress: Told = untold,
    ) -> Panel:
        """Perplexities on a text that is tokenised already: of the model itself, with a cache, or learning on.

        Args:
            progress: is told how many more tokens are done.
        """
        first = self.generation.first
        if cache is not None:
            return cached_panel(self.model, corpus, first, cache, progress)
        if dynamic is not None:
            return dynamic_panel(self.model, corpus, first, dynamic, progress)
        return panel(self.model, corpus, first, stride=stride, progress=progress)

    def _with(self, network: LanguageModel) -> TextModel:
        return TextModel(self.model, self.tokenizer, self.generation, self.config, network, self.template)

    def _check_tokenizer(self, other: TextModel, who: str) -> None:
        if not self.tokenizer.same(other.tokenizer):
            raise ConfigError(f"{who} need one tokenizer, and these two runs have different ones")

    def _events(self, requests: Sequence[Request], how: Decoding) -> Iterator[Event]:
        return stream(self.network, requests, self.generation.end, how, self.generation.unseen, ROWS)

    def reply(self, turns: Sequence[str], *, system: str | None = None, **options: Any) -> Text:
        """The next turn of a conversation, by a model that was trained to hold one.

        Args:
            turns: what was said so far, a person first. What was said longest ago is forgotten where the window ends.
            system: what the model is told before.
            options: of `generate`.

        Raises:
            ConfigError: the model has no chat template; or as `generate`.
            DataError: the template refuses the conversation.
        """
        check_reply(options)
        ids = self.conversation_ids(turns, system, options.get("max_new_tokens"))
        return self.generate(ids, **options)[0]

    def stream_reply(self, turns: Sequence[str], *, system: str | None = None, **options: Any) -> Iterator[Chunk]:
        """As `reply`, part by part while it is written."""
        check_reply(options)
        return self.stream(self.conversation_ids(turns, system, options.get("max_new_tokens")), **options)

    def conversation_ids(
        self, turns: Sequence[str], system: str | None = None, room: int | None = None
    ) -> tuple[int, ...]:
        """The ids a conversation is read as, with room for a reply (at most half a window); see `reply`."""
        if self.template is None:
            raise ConfigError("this model knows no turns: it goes on writing a text, textwright generate RUN")
        window, kept = self.network.window, list(turns)
        while True:
            ids = self.template.ids(turns_of(kept, system), self.tokenizer)
            if window is None or len(kept) == 1:
                return tuple(ids)
            if len(ids) <= window - min(room or self.generation.max_new_tokens, window // 2):
                return tuple(ids)
            kept = kept[2:]

    def prompt_ids(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """The ids a prompt is read as: those that begin a text, then its own; ids stay as they are."""
        if not isinstance(prompt, str):
            return tuple(prompt)
        return (*self.generation.start, *self.tokenizer.encode(prompt))

    def _asked(
        self,
        prompt: str | Sequence[int],
        strategy: str | None,
        preset: str | None,
        n: int,
        seed: int | None,
        max_new_tokens: int | None,
        min_new_tokens: int,
        draft: TextModel | None,
        options: dict[str, Any],
    ) -> tuple[Decoding, list[Request], Sequence[str]]:
        """How to write, the texts to write, and their stop strings."""
        named, given = chosen(preset, self.tokenizer) if preset else ("sample", self.generation.sampling.dump())
        strategy = strategy or named
        free = taken(options, FREE)
        words = taken(options, {"stop": (), "stop_ids": (), "avoid": (), "bias": {}, "breakers": None, "exempt": ()})
        if draft is not None:
            self._check_tokenizer(draft, "a model and its draft")
            if draft.config.model.vocab != self.config.model.vocab:
                raise ConfigError(
                    f"a model and its draft need one vocabulary, got {self.config.model.vocab:,} and "
                    f"{draft.config.model.vocab:,} tokens"
                )
        asked = {**options, **({} if seed is None else {"seed": seed}), **({} if draft is None else {"draft": True})}
        how = decoding(strategy, asked, given, None if draft is None else draft.network)
        ids = self.prompt_ids(prompt)
        longest = self._longest(how, len(ids)) if max_new_tokens is None else max_new_tokens
        if n < 1 or longest < 1 or not 0 <= min_new_tokens <= longest:
            raise ConfigError(
                f"expected n and max-new-tokens of at least 1 and a minimum between 0 and the maximum, "
                f"got n {n}, minimum {min_new_tokens}, maximum {longest}"
            )
        if n > 1 and how.alternatives:
            raise ConfigError("alternatives says how many texts there are: leave out n")
        if n > 1 and strategy in ("greedy", "contrastive"):
            raise ConfigError(
                f"strategy {strategy} writes one text: use --strategy sample or beam for several"
                + (f", or greedy with --alternatives {n}" if strategy == "greedy" else "")
            )
        if strategy == "beam" and n > how.beam.beams:
            if "beams" in asked:
                raise ConfigError(f"{n} texts need at least {n} beams, got {how.beam.beams}: --beams {n}")
            how = replace(how, beam=Beam.parse({**how.beam.dump(), "beams": n}, "beam search"))
        never = frozenset(self.generation.unseen)
        stop, avoid, ids_that_end = words.pop("stop"), words.pop("avoid"), tuple(words.pop("stop_ids"))
        whole = constraint(self.tokenizer, self.generation.end, never, **free)
        if whole is None:
            ids_that_end = (*self.generation.also_end, *ids_that_end)
        steered_by = steering(self.tokenizer, never, **words) if steered(how, words) else PLAIN
        if whole is None and min_new_tokens:
            steered_by = replace(steered_by, late=self.generation.also_end)
        request = Request(
            ids,
            how.sampling,
            secrets.randbelow(2**31) if seed is None else seed,
            longest,
            min_new_tokens,
            stop_strings(self.tokenizer, stop, "stop", never, ids_that_end),
            avoid=stop_strings(self.tokenizer, avoid, "avoid", never),
            constraint=whole,
            steering=steered_by,
            top_logprobs=options.get("top_logprobs", 0),
            max_seconds=options.get("max_seconds"),
        )
        count = n * how.samples if strategy == "mbr" else n
        return how, [replace(request, seed=request.seed + number) for number in range(count)], stop

    def _longest(self, how: Decoding, prompt: int) -> int:
        """New tokens unless told otherwise: only plain sampling goes past the window."""
        usual, window = self.generation.max_new_tokens, self.network.window
        slides = how.strategy in ("sample", "greedy", "mbr") and how.drafter is None and self.network.slides
        if slides or window is None:
            return usual
        room = how.room(window, prompt)
        if room < 1:
            raise ConfigError(
                f"strategy {how.strategy} needs a prompt of at most {prompt + room - 1} tokens, got {prompt}: shorten "
                "the prompt"
            )
        return min(usual, room)

    def _least_risk(self, how: Decoding, requests: Sequence[Request], stop: Sequence[str]) -> list[Text]:
        """Of each `how.samples` samples the one that is most like all of them."""
        alike = likeness()  # a missing package is told before anything is written
        found = decode(self.network, requests, self.generation.end, how, banned=self.generation.unseen, rows=ROWS)
        texts = [
            self._text(request, result, stop, request.seed) for request, (result,) in zip(requests, found, strict=True)
        ]
        groups = [texts[start : start + how.samples] for start in range(0, len(texts), how.samples)]
        best = [group[least_risk([text.text for text in group], alike)] for group in groups]
        # Its seed is that of the first sample, which repeats them all.
        return [replace(text, seed=group[0].seed) for text, group in zip(best, groups, strict=True)]

    def _text(self, request: Request, result: Result, stop: Sequence[str], seed: int | None) -> Text:
        stream, last = TextStream(self.tokenizer, request, stop), len(result.tokens) - 1
        logprobs = result.logprobs or [0.0] * len(result.tokens)
        for place, (token, logprob) in enumerate(zip(result.tokens, logprobs, strict=True)):
            top = result.tops[place] if result.tops else ()
            stream.feed(Event(0, token, logprob, result.finish if place == last else None, top))
        text = stream.result(seed)
        return text if result.logprobs else replace(text, logprob=result.logprob, logprobs=())  # a search has the sum


class TextStream:
    """The text of one request while it is written: whole characters only, nothing that may belong to a stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._detokenizer = tokenizer, tokenizer.stream()
        for token in request.prompt:  # it decides about the space before the first written word
            self._detokenizer.feed(token)
        self._stop, self._ends = tuple(stop), () if request.stop is None else request.stop.ids
        self._held = ""
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[tuple[tuple[int, float], ...]] = []
        self._finish = ""

    def feed(self, event: Event) -> str:
        """The text that is certain after one more token."""
        _, token, logprob, finish, top = event
        self._tokens.append(token)
        self._logprobs.append(logprob)
        self._tops.append(top)
        ended = finish == "end" or (finish == "stop" and token in self._ends)
        text = self._held + ("" if ended else self._detokenizer.feed(token))
        if finish is None:
            kept = self._unsure(text)
            part, self._held = text[: len(text) - kept], text[len(text) - kept :]
        else:
            self._finish = finish
            text += self._detokenizer.flush()
            found = [text.index(string) for string in self._stop if string in text] if finish == "stop" else []
            part = text[: min(found)] if found else text
        self._parts.append(part)
        return part

    def result(self, seed: int | None) -> Text:
        """The finished text."""
        shown = [tuple((self._piece(id), value) for id, value in top) for top in self._tops if top]
        logprobs = tuple(self._logprobs)
        return Text(
            "".join(self._parts), tuple(self._tokens), self._finish, sum(logprobs), seed, logprobs, tuple(shown)
        )

    def _piece(self, token: int) -> str:
        return self._tokenizer.pieces[token].decode("utf-8", "replace")

    def _unsure(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max((len(string) - 1 for string in self._stop), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(string.startswith(text[-n:]) for string in self._stop)), 0)


def generation_config(tokenizer: Tokenizer, corpus: Corpus) -> GenerationConfig:
    """What follows from the training text: the ids it never used, and where its texts begin and end.

    They begin as documents do or, where there was only one, at its lines. The word tokenizer has one token for the end
    of a line and of a document; a single document is full of it, so there it ends nothing.
    """
    line, documents = tokenizer.encode("\n"), corpus.facts.documents
    whole = len(line) == 1 and line[0] not in tokenizer.fallback
    start = tuple(line) if documents < 2 and whole else (tokenizer.end,)
    end = None if documents < 2 and line == [tokenizer.end] else tokenizer.end
    unseen = (counted(corpus, tokenizer.size) == 0).nonzero().flatten().tolist()
    return GenerationConfig(start=start, end=end, unseen=tuple(id for id in unseen if id != end))


def sample_text(model: LanguageModel, tokenizer: Tokenizer, generation: GenerationConfig, tokens: int) -> str:
    """A short text with a fixed seed, to watch a model learn."""
    request = Request(generation.start, generation.sampling, 0, tokens)
    stream = TextStream(tokenizer, request)
    events = generate(model, [request], generation.end, banned=generation.unseen)
    return "".join(stream.feed(event) for event in events)
