"""Models from elsewhere become runs: `textwright import`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from textwright.decoding import Sampling
from textwright.errors import CheckpointError, ConfigError, nearest
from textwright.interop.adopting import adopted, has_source
from textwright.interop.folder import Folder, find, read_folder
from textwright.interop.formats import FORMATS, native
from textwright.interop.gguf_file import read_gguf
from textwright.interop.huggingface_pairs import TARGET
from textwright.interop.pair_formats import PAIR_FORMATS, native_pairs
from textwright.interop.peft import read_peft
from textwright.interop.sentencepiece_file import marian_tokenizers
from textwright.interop.tables import UnlikeError
from textwright.models import LanguageModel, TransformerConfig
from textwright.models.base import Precision
from textwright.models.transformer import TransformerLM
from textwright.run import (
    ADAPTER,
    GenerationConfig,
    ImportedManifest,
    ImportedPairs,
    ImportedRun,
    PairGeneration,
    Task,
    TextRun,
    WithSource,
    read_generation,
    read_run,
    read_template,
    write_generation,
    write_manifest,
    write_template,
)
from textwright.run_model import begin_from, load_model
from textwright.selftest import TOLERANCE, Case, by_steps, frozen, ragged, select_and_concat
from textwright.text.conversations import ChatTemplate
from textwright.text.tokenizers import Tokenizer
from textwright.training.checkpoint import save_tensors, weights, write_file

Way = Literal["auto", "native", "transformers"]
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def import_model(
    place: str,
    out: Path,
    way: Way = "auto",
    task: Task | None = None,
    prefix: str = "",
    languages: tuple[str, str] | None = None,
    precision: Precision = "float32",
) -> LanguageModel:
    """A folder in the layout of the Hugging Face hub, a name there, or a GGUF file becomes the run `out`.

    Everything is read and checked before anything is written.

    Args:
        way: "native" for our own Transformer, "transformers" for the library's model behind our contract, "auto" for
            the first if it can be.
        task: of a model with a source: what it does.
        prefix: of a model with a source: what is put in front of every one.
        languages: of a model for many of them: the tokens that stand for the source's and the target's, which begin
            the one and the other.
        precision: of the weights of a Transformer of ours, which then are never held in a wider one.

    Raises:
        ConfigError: the place does not exist or cannot be reached, `out` is taken, or a task is missing or too many.
        CheckpointError: it holds no model that ours can be; the reason is named.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give another --out")
    path = find(place)
    folder = read_folder(path) if path.is_dir() else read_gguf(path)
    known = {**PAIR_FORMATS, **FORMATS}
    if way == "native" and folder.kind not in known:
        raise CheckpointError(f"{place} is a {folder.kind}: expected one of {', '.join(known)}, or --as transformers")
    ask = path.is_dir() and folder.kind not in known
    if folder.kind in PAIR_FORMATS or (ask and has_source(folder)):
        if precision != "float32":
            raise ConfigError(f"{place} is a {folder.kind}: --precision is for models without a source")
        return _import_pairs(place, folder, out, way, task, prefix, languages)
    if task is not None or prefix or languages:
        raise ConfigError(f"{place} is a {folder.kind}, which has no source: leave out --task, --prefix, --languages")
    tokenizer = read_tokenizer(folder)
    if way == "transformers" and not path.is_dir():
        raise ConfigError(f"{place} is a file of llama.cpp, and the transformers library runs none: leave out --as")
    model = _either(folder, "native" if not path.is_dir() else way, precision)
    generation = generation_of(folder, tokenizer, model.config.vocab)
    named = {name: word for name in ("bos_token", "eos_token") if (word := _word(folder, name)) is not None}
    given = {"origin": place, "kind": folder.kind, "precision": precision, "model": model.config.dump()}
    config = ImportedRun.parse({**given, "named": named})
    if folder.template is not None:  # one that cannot be read is told before anything is written
        ChatTemplate(folder.template, named)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    write_generation(out, generation)
    write_file(out / "model.safetensors", lambda path: save_tensors(path, weights(model)))
    if folder.template is not None:
        write_template(out, folder.template)
    write_manifest(out, ImportedManifest(config=config))
    return model


def _import_pairs(
    place: str,
    folder: Folder,
    out: Path,
    way: Way,
    task: Task | None,
    prefix: str,
    languages: tuple[str, str] | None,
) -> LanguageModel:
    if task is None:
        raise ConfigError(
            f"{place} is a {folder.kind}, which writes with a source: say what it does with --task "
            f"{', '.join(get_args(Task))}"
        )
    if folder.kind == "marian" and not (folder.path / "tokenizer.json").exists():
        source_tokenizer, tokenizer = marian_tokenizers(folder.path)
    else:
        source_tokenizer = tokenizer = read_tokenizer(folder)
        if (other := folder.path / TARGET / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(other)
    if languages is not None:
        source_tokenizer = _begun(source_tokenizer, languages[0])
        _begun(tokenizer, languages[1])  # is there such a token
    model = _either_pairs(folder, way)
    generation = pair_generation_of(folder, tokenizer, model.config.vocab)
    if languages is not None:
        start = (generation.start[0], tokenizer.entries[languages[1]])
        generation = generation.model_copy(update={"start": start})
    pairs = [{"path": place, "prefix": prefix}]
    given = {"task": task, "origin": place, "kind": folder.kind, "pairs": pairs, "model": model.config.dump()}
    config = ImportedPairs.parse(given)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    source_tokenizer.save(out / "source_tokenizer.json")
    write_generation(out, generation)
    write_file(out / "model.safetensors", lambda path: save_tensors(path, weights(model)))
    write_manifest(out, ImportedManifest(config=config))
    return model


def _either(folder: Folder, way: Way, precision: Precision) -> LanguageModel:
    """Our Transformer, or the library's model where ours lacks something and nobody asked for it."""
    if way == "native" or (way == "auto" and folder.kind in FORMATS):
        try:
            return native(folder, precision)
        except UnlikeError:
            if way == "native":
                raise
    if precision != "float32":
        raise ConfigError(
            f"{folder.path} is kept as the library's own {folder.kind}, in float32: leave out --precision"
        )
    return _adopted(folder)


def _either_pairs(folder: Folder, way: Way) -> LanguageModel:
    """As `_either`."""
    if way == "native" or (way == "auto" and folder.kind in PAIR_FORMATS):
        try:
            return native_pairs(folder)
        except UnlikeError:
            if way == "native":
                raise
    return _adopted(folder)


def _begun(tokenizer: Tokenizer, name: str) -> Tokenizer:
    if name not in tokenizer.entries:
        known = [entry for entry in tokenizer.controls if entry not in ("</s>", "<s>", "<pad>", "<unk>", "<mask>")]
        raise ConfigError(f"--languages: the vocabulary has no token {name!r}.{nearest(name, known)}")
    return tokenizer.begun_by(name)


def _adopted(folder: Folder) -> LanguageModel:
    """The model in a folder as the transformers library runs it, behind our contract, which is checked on it."""
    model = adopted(folder)
    with torch.no_grad():
        case = Case.of(model, TOLERANCE)
        for check in (by_steps, ragged, frozen, select_and_concat):
            if not (told := check(case)).holds:
                raise CheckpointError(
                    f"{folder.path} is a {folder.kind}, and that breaks our contract ({told.name}: {told.detail})"
                )
    return model


def import_adapter(place: Path, base: Path, out: Path) -> None:
    """An adapter as peft writes it, for the model of the run `base`, becomes the run `out`: that model with it.

    Raises:
        ConfigError: `out` is taken, or `base` is no Transformer that goes on writing a text.
        CheckpointError: the folder holds no such adapter, or not one for this model.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give another --out")
    config = read_run(base)
    if isinstance(config, WithSource) or not isinstance(config.model, TransformerConfig):
        raise ConfigError(f"{base} is no Transformer that goes on writing a text, and adapters of peft are for these")
    if isinstance(config, TextRun) and config.prompt is not None:
        raise ConfigError(f"{base} is a learned prompt, and the adapter is for a model: give its base, {config.base}")
    model = load_model(base, config, torch.device("cpu"))
    assert isinstance(model, TransformerLM)
    adapter, values = read_peft(place, model)
    out.mkdir(parents=True, exist_ok=True)
    begin_from(base, out)
    shutil.copyfile(base / "tokenizer.json", out / "tokenizer.json")
    write_generation(out, read_generation(base, GenerationConfig))
    if (template := read_template(base)) is not None:
        write_template(out, template)
    write_file(out / ADAPTER, lambda path: save_tensors(path, values))
    precision = config.precision if isinstance(config, ImportedRun) else "float32"
    given = {
        "origin": str(place),
        "kind": "adapter",
        "precision": precision,
        "model": config.model.dump(),
        "adapter": adapter.dump(),
    }
    write_manifest(out, ImportedManifest(config=ImportedRun.parse({**given, "named": config.named})))


def read_tokenizer(folder: Folder) -> Tokenizer:
    """The folder's tokenizer.

    Raises:
        CheckpointError: it is missing or damaged, or has ids that the model has not.
    """
    tokenizer, vocabulary = folder.tokenizer(), folder.config.get("vocab_size")
    if isinstance(vocabulary, int) and tokenizer.size > vocabulary:
        raise CheckpointError(
            f"the tokenizer of {folder.path} has {tokenizer.size} ids, the model has {vocabulary}: they belong to "
            "different models"
        )
    return tokenizer


def generation_of(folder: Folder, tokenizer: Tokenizer, vocabulary: int) -> GenerationConfig:
    """Where texts begin and end there, and how they are drawn.

    A text begins with what the tokenizer's rules put in front of it. Where they say nothing, it begins as the training
    texts did: after the token that begins a text, for vocabularies of SentencePiece, else after the one between texts.
    """
    first, last = (_id(folder, tokenizer, name) for name in ("bos", "eos"))
    between = tokenizer.end if tokenizer.bytewise or first is None else first
    unused, end = _unseen(folder, tokenizer, vocabulary), tokenizer.end if last is None else last
    said = folder.generation.get("eos_token_id", folder.config.get("eos_token_id"))
    ends = {id for id in said if isinstance(id, int) and 0 <= id < vocabulary} if isinstance(said, list) else set()
    return GenerationConfig(
        start=tokenizer.prefix or (between,),
        end=end,
        also_end=tuple(sorted(ends - {end} - unused)),
        unseen=tuple(sorted(unused - {end})),
        sampling=_sampling(folder.generation, vocabulary),
    )


def pair_generation_of(folder: Folder, tokenizer: Tokenizer, vocabulary: int) -> PairGeneration:
    """Where texts with a source begin and end there, and how they are searched for.

    Raises:
        CheckpointError: nothing says which token starts the decoder, or which one ends a text.
    """
    said = {**folder.config, **folder.generation}
    end, start = _id(folder, tokenizer, "eos"), said.get("decoder_start_token_id")
    if end is None or not isinstance(start, int):
        raise CheckpointError(f"{folder.path} does not say with which tokens texts begin and end")
    forced = said.get("forced_bos_token_id")
    padding = {said["pad_token_id"]} - {end} if isinstance(said.get("pad_token_id"), int) else set()
    unused = _unseen(folder, tokenizer, vocabulary)
    given = {"beams": said.get("num_beams"), "length_penalty": said.get("length_penalty")}
    return PairGeneration.parse(
        {
            "start": [start] if forced is None else [start, int(forced)],
            "end": end,
            "unseen": sorted(unused | padding),
            **{name: value for name, value in given.items() if value is not None},
        },
        f"{folder.path}: what it says of generation",
    )


def _unseen(folder: Folder, tokenizer: Tokenizer, vocabulary: int) -> set[int]:
    """Ids that are never written: those without an entry, and those that are suppressed there."""
    suppressed = folder.generation.get("suppress_tokens") or ()
    spare = set(range(vocabulary)) - set(tokenizer.entries.values())
    return spare | {id for id in suppressed if isinstance(id, int) and 0 <= id < vocabulary}


def _id(folder: Folder, tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a control token: what tokenizer_config.json names it or, without that, what config.json says."""
    word = _word(folder, f"{name}_token")
    if word in tokenizer.entries:
        return tokenizer.entries[word]
    said = folder.generation.get(f"{name}_token_id", folder.config.get(f"{name}_token_id"))
    return said[0] if isinstance(said, list) and said else said if isinstance(said, int) else None


def _word(folder: Folder, name: str) -> str | None:
    """A control token as tokenizer_config.json spells it."""
    said = folder.tokens.get(name)
    word = said.get("content") if isinstance(said, dict) else said
    return word if isinstance(word, str) else None


def _sampling(generation: Mapping[str, Any], vocabulary: int) -> Sampling:
    given = {name: generation[name] for name in SAMPLED if generation.get(name) is not None}
    if not (generation.get("do_sample") and given):
        return Sampling.parse({"temperature": 0.8, "top_p": 0.95})
    return Sampling.parse({"top_k": min(50, vocabulary), **given})  # without a top_k transformers draws from 50
