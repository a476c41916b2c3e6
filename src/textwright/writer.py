"""Text in, text out: a trained model with its tokenizer and presets."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from textwright.decoding import Beam, Event, Request, Result, Sampling, StopStrings, beam_search, generate
from textwright.errors import ConfigError, nearest
from textwright.evaluating.perplexity import Panel, panel
from textwright.models import LanguageModel
from textwright.run import GenerationConfig, TextRun
from textwright.text.corpus import Corpus, counted, write
from textwright.text.sources import SourceConfig, read
from textwright.text.tokenizers import Tokenizer

STRATEGIES = ("sample", "greedy", "beam")


@dataclass(frozen=True)
class Text:
    """A written text: without its prompt, cut before a stop string.

    Attributes:
        text: what was written.
        tokens: its ids, an end token included.
        finish_reason: "end", "stop" (a stop string) or "length".
        logprob: log-probability (nats) of the tokens: the model's own; for beams, after the penalties asked for.
        seed: what repeats it; None where nothing is drawn.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    logprob: float
    seed: int | None


class Chunk(NamedTuple):
    """The next part of the text with this number; `finish_reason` is set on its last part."""

    number: int
    text: str
    finish_reason: str | None


class TextModel:
    """A model that writes.

    Attributes:
        model: the network, in evaluation mode.
        tokenizer: strings to ids and back.
        generation: where texts begin, and the preset for sampling.
        config: the run's configuration.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, generation: GenerationConfig, config: TextRun
    ) -> None:
        self.model, self.tokenizer, self.generation, self.config = model, tokenizer, generation, config

    def generate(
        self,
        prompt: str = "",
        *,
        strategy: str = "sample",
        n: int = 1,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        stop: Sequence[str] = (),
        beams: int | None = None,
        length_penalty: float | None = None,
        **sampling: float,
    ) -> list[Text]:
        """Write `n` texts that go on from the prompt.

        Args:
            prompt: may be empty: then the text begins as the training texts did.
            strategy: "sample", "greedy", or "beam" (the n best of a beam search, best first).
            seed: of the first text, the next one has seed + 1; None draws one. The same seed gives the same text.
            stop: strings that end a text; they are not part of it.
            beams, length_penalty: of beam search, see `decoding.Beam`.
            sampling: fields of `decoding.Sampling`, over the run's preset.

        Raises:
            ConfigError: an unknown option, or one that the strategy does not use.
        """
        requests = self._requests(prompt, strategy, n, seed, max_new_tokens, min_new_tokens, stop, sampling)
        if strategy == "beam":
            return self._beam(requests[0], n, stop, beams, length_penalty)
        self._refuse_beam(beams, length_penalty)
        streams = [TextStream(self.tokenizer, request.prompt, stop) for request in requests]
        for event in self._events(requests):
            streams[event.request].feed(event.token, event.logprob, event.finish)
        seeds = [None if strategy == "greedy" else request.seed for request in requests]
        return [stream.result(seed) for stream, seed in zip(streams, seeds, strict=True)]

    def stream(
        self,
        prompt: str = "",
        *,
        strategy: str = "sample",
        n: int = 1,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        stop: Sequence[str] = (),
        **sampling: float,
    ) -> Iterator[Chunk]:
        """As `generate`, part by part while it is written; the parts of a text joined are its whole text."""
        if strategy == "beam":
            raise ConfigError("a beam search knows its text only at the end: leave out --stream, or sample")
        requests = self._requests(prompt, strategy, n, seed, max_new_tokens, min_new_tokens, stop, sampling)
        streams = [TextStream(self.tokenizer, request.prompt, stop) for request in requests]
        for event in self._events(requests):
            part = streams[event.request].feed(event.token, event.logprob, event.finish)
            if part or event.finish:
                yield Chunk(event.request, part, event.finish)

    def evaluate(self, source: SourceConfig, *, stride: int | None = None) -> Panel:
        """Perplexities on a text, tokenised by this run's tokenizer; in float32 and constant memory."""
        with tempfile.TemporaryDirectory() as folder:
            corpus = write(Path(folder) / "corpus", read(source), self.tokenizer)
            return panel(self.model, corpus, self.tokenizer.end, stride=stride)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        return generate(self.model, requests, self.generation.end, banned=self.generation.unseen)

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """The ids a prompt is read as: those that begin a text, then its own."""
        return (*self.generation.start, *self.tokenizer.encode(prompt))

    def _requests(
        self,
        prompt: str,
        strategy: str,
        n: int,
        seed: int | None,
        max_new_tokens: int | None,
        min_new_tokens: int,
        stop: Sequence[str],
        sampling: dict[str, float],
    ) -> list[Request]:
        if strategy not in STRATEGIES:
            raise ConfigError(f"unknown strategy {strategy!r}.{nearest(strategy, STRATEGIES)}")
        ids = self.prompt_ids(prompt)
        longest = self._longest(strategy, len(ids)) if max_new_tokens is None else max_new_tokens
        if n < 1 or longest < 1 or not 0 <= min_new_tokens <= longest:
            raise ConfigError(
                f"expected n and max-new-tokens of at least 1 and a minimum between 0 and the maximum, "
                f"got n {n}, minimum {min_new_tokens}, maximum {longest}"
            )
        if strategy == "greedy" and n > 1:
            raise ConfigError("greedy decoding writes one text: use --strategy sample or beam for several")
        first = secrets.randbelow(2**31) if seed is None else seed
        settings = self._sampling(strategy, seed, sampling)
        if not all(stop):
            raise ConfigError("a stop string must not be empty")
        # Every word of the word tokenizer brings its space, also at the beginning of a line, where it is not shown.
        bare = [re.sub(r"\n(?=\S)", "\n ", string) if self.tokenizer.kind == "word" else string for string in stop]
        stops = StopStrings([string.encode() for string in bare], self.tokenizer.pieces) if stop else None
        return [Request(ids, settings, first + number, longest, min_new_tokens, stops) for number in range(n)]

    def _longest(self, strategy: str, prompt: int) -> int:
        """New tokens unless told otherwise: a beam search cannot go past the window."""
        usual, window = self.generation.max_new_tokens, self.model.window
        if strategy != "beam" or window is None:
            return usual
        if prompt > window:
            raise ConfigError(
                f"beam search needs a prompt of at most {window} tokens, got {prompt}: shorten the prompt"
            )
        return min(usual, window - prompt + 1)

    def _sampling(self, strategy: str, seed: int | None, asked: dict[str, float]) -> Sampling:
        if strategy == "sample":
            return Sampling.parse({**self.generation.sampling.dump(), **asked}, "sampling")
        given = {"seed", *asked} if seed is not None else set(asked)
        useless = sorted(given & {"seed", "temperature", "top_k", "top_p", "min_p"})
        if useless:
            raise ConfigError(
                f"strategy {strategy} draws nothing, so it does not use {', '.join(useless)}: leave it out"
            )
        return Sampling.parse({**asked, "temperature": 0.0 if strategy == "greedy" else 1.0}, "sampling")

    def _beam(
        self, request: Request, n: int, stop: Sequence[str], beams: int | None, length_penalty: float | None
    ) -> list[Text]:
        asked = {"beams": beams or max(4, n), "length_penalty": length_penalty}
        beam = Beam.parse({name: value for name, value in asked.items() if value is not None}, "beam search")
        if n > beam.beams:
            raise ConfigError(f"{n} texts need at least {n} beams, got {beam.beams}: --beams {n}")
        (results,) = beam_search(self.model, [request], self.generation.end, beam, banned=self.generation.unseen)
        return [self._text(request, result, stop) for result in results[:n]]

    def _text(self, request: Request, result: Result, stop: Sequence[str]) -> Text:
        stream = TextStream(self.tokenizer, request.prompt, stop)
        for token in result.tokens[:-1]:
            stream.feed(token, 0.0, None)
        stream.feed(result.tokens[-1], result.logprob, result.finish)
        return stream.result(None)

    def _refuse_beam(self, beams: int | None, length_penalty: float | None) -> None:
        if beams is not None or length_penalty is not None:
            raise ConfigError("beams and length_penalty belong to beam search: add --strategy beam")


class TextStream:
    """The text of one request while it is written: whole characters only, nothing that may belong to a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Iterable[int], stop: Sequence[str]) -> None:
        self._detokenizer = tokenizer.stream()
        for token in prompt:  # the prompt decides about the space before the first written word
            self._detokenizer.feed(token)
        self._stop = tuple(stop)
        self._held = ""
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._logprob = 0.0
        self._finish = ""

    def feed(self, token: int, logprob: float, finish: str | None) -> str:
        """The text that is certain after one more token."""
        self._tokens.append(token)
        self._logprob += logprob
        text = self._held + self._detokenizer.feed(token)
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
        return Text("".join(self._parts), tuple(self._tokens), self._finish, self._logprob, seed)

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
    stream = TextStream(tokenizer, request.prompt, ())
    events = generate(model, [request], generation.end, banned=generation.unseen)
    return "".join(stream.feed(event.token, event.logprob, event.finish) for event in events)
