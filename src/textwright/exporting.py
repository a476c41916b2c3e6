"""Runs leave for other engines: `textwright export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from textwright.adapting import lora
from textwright.adapting.packed import rounded
from textwright.adapting.prompt import Prompted
from textwright.errors import CheckpointError, ConfigError
from textwright.interop.gguf_out import Packing, check_gguf, write_gguf
from textwright.interop.huggingface import Habits, Parity, check_huggingface, write_huggingface, write_weights
from textwright.interop.huggingface_pairs import Example, PairHabits, check_pairs, write_pairs
from textwright.interop.onnx_step import check_step, leaf_names, write_step
from textwright.interop.peft import base_of, check_peft, write_peft, write_peft_prompt
from textwright.models.encdec import TransformerEncoderDecoder
from textwright.models.pretrained import PretrainedLM
from textwright.models.pretrained_pairs import PretrainedPairs
from textwright.models.rnn import RecurrentLM
from textwright.models.seq2seq import Seq2Seq
from textwright.models.transformer import TransformerLM
from textwright.opening import as_writer, load
from textwright.pair_model import PairModel
from textwright.run import Imported, ImportedRun, PairRun, TextRun, WithSource, read_run, read_template
from textwright.text.bitext import one_line, raw_pairs
from textwright.text.corpus import open_prepared
from textwright.text.segmenters import is_segmenter
from textwright.training.checkpoint import load_weights, write_file, write_folder, write_json
from textwright.training.state import newest, read_progress
from textwright.writer import TextModel

T = TypeVar("T")
PROMPTS = ("The first thing she saw was", "文章千古事", "1 + 1 =")
PROMPT = 200  # characters of the validation text that one prompt has
NEW = 64  # tokens written after each
USE = """from transformers import pipeline
pipe = pipeline("text-generation", "{name}")
print(pipe("The")[0]["generated_text"])"""
PAIR_USE = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
written = model.generate(**tokenizer(["A text."], return_tensors="pt", padding=True))
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""
APART_USE = PAIR_USE.replace("print(tokenizer", 'print(AutoTokenizer.from_pretrained("{name}", subfolder="target")')
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "typical_p")


def export_huggingface(run: Path, out: Path, licence: str | None = None) -> Parity:
    """Write `out`, a folder that transformers' Auto classes open, and prove that it is the same model.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run cannot be held there, or what was written differs; then there is no `out`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another folder")
    model = _opened(run)
    if isinstance(model, PairModel):
        return _export_pairs(model, run, out, licence)
    if not isinstance(model.model, TransformerLM | PretrainedLM):
        raise CheckpointError(
            f"{run} is a {model.config.model.family}, for which transformers has no class: --to onnx holds its step"
        )
    network = model.model
    habits, prompts = _habits(model, run), prompts_of(model, run)
    found: list[Parity] = []

    def write(folder: Path) -> None:
        write_huggingface(folder, network, model.tokenizer, habits)
        found.append(check_huggingface(folder, network, model.tokenizer, habits, prompts, NEW))
        card = model_card(model, run, out.name, found[0], licence, USE)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_folder(out, write)
    return found[0]


def _export_pairs(model: PairModel, run: Path, out: Path, licence: str | None) -> Parity:
    network, generation = model.model, model.generation
    if not isinstance(network, TransformerEncoderDecoder | PretrainedPairs):
        raise CheckpointError(f"{run} is a recurrent encoder-decoder, for which transformers has no class")
    if model.neighbours is not None:
        raise CheckpointError(f"{run} reads a source beside its neighbours, which no other library would look up")
    beams = generation.beams, generation.length_penalty
    habits = PairHabits(generation.start, generation.end, generation.unseen, *beams)
    tokenizers = model.source_tokenizer, model.tokenizer
    examples = _examples(model, run)
    found: list[Parity] = []

    def write(folder: Path) -> None:
        write_pairs(folder, network, tokenizers, habits)
        found.append(check_pairs(folder, network, habits, examples))
        same = tokenizers[0].same(tokenizers[1])
        card = model_card(model, run, out.name, found[0], licence, PAIR_USE if same else APART_USE)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_folder(out, write)
    return found[0]


def _opened(run: Path, *, apart: bool = False) -> TextModel | PairModel:
    """The run in float32, in which the engines are compared; a learned prompt leaves as what is `apart`, or not."""
    model = load(run, device="cpu", apart=apart)
    if isinstance(model.model, Prompted) and not apart:
        raise CheckpointError(f"{run} is a learned prompt, which leaves in the layout of peft alone: --to peft")
    model.model.float()
    return model


def _examples(model: PairModel, run: Path) -> list[Example]:
    """Real sources of the run's validation pairs, or a few of ours, and what is written for them."""
    pairs = raw_pairs(run / "data" / "valid") if (run / "data").is_dir() else []
    sources = list(dict.fromkeys(pair.source for pair in pairs if pair.source.strip()))
    if sources:
        model = model.bare()  # these have their prefix
    texts = sources[:: max(1, len(sources) // 8)][:8] or [
        text for text in PROMPTS if not model.source_tokenizer.unseen(text)
    ]
    room = min(NEW, (model.model.window or NEW) - len(model.generation.start))
    examples = []
    for text in texts:
        read = one_line(model.framed(text), model.source_tokenizer)
        if model.config.cut is not None and len(model.source_tokenizer.encode(read)) > model.config.cut:
            continue  # only its beginning would be read
        (written,) = model.write([text], strategy="greedy", max_new_tokens=room)[0]
        examples.append(Example(read, tuple(model.source_ids(text)), written.tokens))
    return list(_enough(examples, run))


def export_peft(run: Path, out: Path) -> Parity:
    """Write `out`, a folder that peft puts on the model the adapter of `run` was trained for, and prove that it does
    the same there.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run has no adapter, or the model cannot be held there, or what was written differs.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another folder")
    model = as_writer(_opened(run, apart=True), run)
    network, config = model.model, model.config
    inner = network.model if isinstance(network, Prompted) else network
    if not isinstance(inner, TransformerLM) or not (config.adapter or isinstance(network, Prompted)):
        raise CheckpointError(
            f"{run} has no adapter of our own Transformer: finetune BASE TEXT --method lora makes one"
        )
    texts = [[*model.generation.start, *model.tokenizer.encode(text)] for text in prompts_of(model, run)]
    prompts = [ids[: network.window] for ids in texts]
    found: list[Parity] = []

    def write(folder: Path) -> None:
        if isinstance(network, Prompted):
            write_peft_prompt(folder, network, _origin(config))
        elif config.adapter is not None:
            write_peft(folder, inner, config.adapter, lora.tensors(inner), _origin(config))
        with TemporaryDirectory() as temporary:
            base = inner.config.build()
            load_weights(base, run / "model.safetensors")
            if config.adapter is not None and config.adapter.packed is not None:
                rounded(base, config.adapter.packed)  # what it was trained on, and is compared on
            write_weights(Path(temporary), base)
            changed = network if isinstance(network, Prompted) else inner
            difference = check_peft(folder, Path(temporary), changed, prompts)
        found.append(Parity(len(prompts), sum(map(len, prompts)), difference))

    write_folder(out, write)
    return found[0]


def export_gguf(run: Path, out: Path, packing: Packing) -> str:
    """Write the file `out` for llama.cpp, and compare what that reads in it, where it is installed; what was compared
    is given back in words.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run cannot be held there, or what was written differs; then there is no `out`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another file")
    model = as_writer(_opened(run), run)
    network = model.model
    if not isinstance(network, TransformerLM):
        raise CheckpointError(f"{run} is a {model.config.model.family}, and GGUF is for Transformers of Llama's shape")
    prompts = [(text, model.tokenizer.encode(text)) for text in prompts_of(model, run)]
    found: list[str] = []

    def write(path: Path) -> None:
        write_gguf(path, out.stem, network, model.tokenizer, _habits(model, run), packing)
        found.append(check_gguf(path, network, prompts, packing))

    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, write)
    return found[0]


def export_onnx(run: Path, out: Path) -> Parity:
    """Write `out`, a folder with one step of a recurrent model as ONNX, its tokenizer, and a page that shows how to
    write with it; and prove by onnxruntime that it is the same.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run is no recurrent model, or what was written differs; then there is no `out`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another folder")
    opened = _opened(run)
    if isinstance(opened.model, Seq2Seq):  # torch's exporter fixes the length that a recurrent layer reads
        raise CheckpointError(f"{run} is a recurrent encoder-decoder, whose encoder no ONNX file holds for any length")
    model = as_writer(opened, run)
    network, tokenizer = model.model, model.tokenizer
    if not isinstance(network, RecurrentLM):
        raise CheckpointError(
            f"{run} is a {model.config.model.family}; --to onnx holds the step of rnn, gru and lstm: --to huggingface"
        )
    if is_segmenter(tokenizer.kind):
        raise CheckpointError(f"no tokenizer.json holds {tokenizer.kind}, which finds words by a library of its own")
    texts = [[*model.generation.start, *tokenizer.encode(text)] for text in prompts_of(model, run)]
    found: list[Parity] = []

    def write(folder: Path) -> None:
        write_step(folder / "model.onnx", network)
        tokens, difference = check_step(folder / "model.onnx", network, texts, NEW)
        found.append(Parity(len(texts), tokens, difference))
        tokenizer.save(folder / "tokenizer.json")
        generation = model.generation
        habits = {"start": generation.start, "end": generation.end, "unseen": generation.unseen}
        write_json(folder / "generation.json", habits)
        (folder / "README.md").write_text(step_page(network, out.name, found[0]), encoding="utf-8")

    write_folder(out, write)
    return found[0]


def step_page(model: RecurrentLM, name: str, parity: Parity) -> str:
    """README.md beside a step in ONNX: the program in it writes a text."""
    leaves = leaf_names(model)
    shape = f"(1, {model.config.layers}, {model.config.width})"
    after = ", ".join(f"state[{leaf!r}]" for leaf in leaves)
    return f"""# {name}

One step of a recurrent model: `token` and {" and ".join(f"`{leaf}`" for leaf in leaves)} in, `logits` and what is
remembered after it out. {parity.texts} texts, {parity.tokens:,} tokens read and written greedily: onnxruntime's logits
are within {parity.difference:.1g} of the original's.

```python
import json
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

step = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file("tokenizer.json")
habits = json.load(open("generation.json"))
state = {{name: np.zeros({shape}, np.float32) for name in {leaves!r}}}
prompt = habits["start"] + tokenizer.encode(sys.argv[1], add_special_tokens=False).ids
written = []
for place in range(len(prompt) + int(sys.argv[2]) - 1):
    token = prompt[place] if place < len(prompt) else written[-1]
    logits, {after} = step.run(None, {{"token": np.array([token]), **state}})
    if place >= len(prompt) - 1:
        logits[:, habits["unseen"]] = -np.inf
        written.append(int(logits[0].argmax()))
        if written[-1] == habits["end"]:
            break
print(json.dumps(written))
print(sys.argv[1] + tokenizer.decode([token for token in written if token != habits["end"]]))
```
"""


def _origin(config: TextRun | ImportedRun) -> str:
    """The model that an adapter is for: where its base came from, or the base itself if that was trained, too."""
    if isinstance(config, ImportedRun):
        return base_of(Path(config.origin))
    if config.base is None or not (Path(config.base) / "config.json").exists():
        return config.base or ""
    base = read_run(Path(config.base))
    return base.origin if isinstance(base, ImportedRun) and base.adapter is None else config.base


def _habits(model: TextModel, run: Path) -> Habits:
    generation, sampling = model.generation, model.generation.sampling.dump()
    neutral = type(model.generation.sampling)().dump()
    # Without a top_k transformers draws from 50.
    drawing = {name: sampling[name] for name in NAMES if name == "top_k" or sampling[name] != neutral[name]}
    template, named = read_template(run), model.config.named
    return Habits(
        generation.start, generation.end, generation.unseen, drawing, template, generation.also_end, named=named
    )


def prompts_of(model: TextModel, run: Path) -> tuple[str, ...]:
    """Real texts: from the run's validation text, or a few of ours that the vocabulary can hold."""
    if (run / "data").is_dir():
        tokens = open_prepared(run / "data").valid.tokens
        places = [len(tokens) * part // 4 for part in range(4)]
        texts = [model.tokenizer.decode(tokens[place : place + PROMPT].tolist())[:PROMPT] for place in places]
        return _enough([text.strip("\ufffd") for text in texts if text.strip()], run)
    texts = [text for text in PROMPTS if not model.tokenizer.unseen(text)]
    return _enough(texts, run)


def _enough(texts: Sequence[T], run: Path) -> tuple[T, ...]:
    """The texts on which both programs are compared.

    Raises:
        CheckpointError: there is none.
    """
    if not texts:
        raise CheckpointError(
            f"{run} has no validation text that fits, and its vocabulary holds none of ours: nothing could be compared"
        )
    return tuple(texts)


def model_card(
    model: TextModel | PairModel, run: Path, name: str, parity: Parity, licence: str | None, use: str
) -> str:
    """README.md: what a stranger must know.

    Args:
        use: a program, with the place of the model's name.
    """
    config = model.config
    tag = "text2text-generation" if isinstance(model, PairModel) else "text-generation"
    front = ["---", "library_name: transformers", f"pipeline_tag: {tag}", "tags: [textwright]"]
    front += [f"license: {licence}"] if licence else []
    lines = [*front, "---", f"# {name}", ""]
    lines += [f"{model.model.count_parameters():,} parameters, written by Textwright.", "", "## Use", "", "```python"]
    lines += [
        use.format(name=name),
        "```",
        "",
        "## Data and results",
        "",
        *_history(config, run),
        "",
        "## Parity",
        "",
        f"{parity.texts} texts, {parity.tokens:,} tokens read and written greedily: the same ids and tokens as in the",
        f"original; the largest difference of a logit is {parity.difference:.1g}.",
        "",
        "## Licence",
        "",
        licence or "Not stated. Whoever publishes this model must say under which licence, and what its data allow.",
        "",
    ]
    return "\n".join(lines)


def _history(config: TextRun | ImportedRun | WithSource, run: Path) -> list[str]:
    if isinstance(config, Imported):
        return [f"Imported from {Path(config.origin).name} ({config.kind})."]
    data = config.pairs[0].path if isinstance(config, PairRun) else config.source.path
    began = "" if config.base is None else f", beginning with {Path(config.base).name}"
    lines = [f"Trained on {Path(data).name}{began}, budget {config.training.budget}."]
    if isinstance(config, PairRun) and (prefixes := sorted({pairs.prefix for pairs in config.pairs} - {""})):
        lines.append(f"Every source begins with one of: {', '.join(prefixes)}")
    save = newest(run / "training")
    looks = [] if save is None else [look for look in read_progress(save).evaluations if look.best]
    if looks:
        best, unit = looks[-1], config.unit
        lines.append(f"Validation loss {best.valid_loss:.4f} nats a {unit} after {best.tokens:,} {unit}s.")
    return lines
