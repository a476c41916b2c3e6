"""Runs leave for other engines: `textwright export`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from textwright.adapting import lora
from textwright.errors import CheckpointError, ConfigError
from textwright.interop.huggingface import Habits, Parity, check_huggingface, write_huggingface, write_weights
from textwright.interop.peft import check_peft, write_peft
from textwright.models.pretrained import PretrainedLM
from textwright.models.transformer import TransformerLM
from textwright.opening import as_writer, load
from textwright.run import ImportedRun, PairRun, TextRun, read_run, read_template
from textwright.text.corpus import open_prepared
from textwright.training.checkpoint import load_weights, write_folder
from textwright.training.state import newest, read_progress
from textwright.writer import TextModel

PROMPTS = ("The first thing she saw was", "文章千古事", "1 + 1 =")
PROMPT = 200  # characters of the validation text that one prompt has
NEW = 64  # tokens written after each
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "typical_p")


def export_huggingface(run: Path, out: Path, licence: str | None = None) -> Parity:
    """Write `out`, a folder that transformers' Auto classes open, and prove that it is the same model.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run cannot be held there, or what was written differs; then there is no `out`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another folder")
    model = as_writer(load(run, device="cpu"), run)
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
        card = model_card(model, run, out.name, found[0], licence)
        (folder / "README.md").write_text(card, encoding="utf-8")

    write_folder(out, write)
    return found[0]


def export_peft(run: Path, out: Path) -> Parity:
    """Write `out`, a folder that peft puts on the model the adapter of `run` was trained for, and prove that it does
    the same there.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the run has no adapter, or the model cannot be held there, or what was written differs.
    """
    if out.exists():
        raise ConfigError(f"{out} exists: give another folder")
    model = as_writer(load(run, device="cpu", apart=True), run)
    network, config = model.model, model.config
    if config.adapter is None or not isinstance(network, TransformerLM):
        raise CheckpointError(f"{run} has no adapter of a Transformer of ours: textwright finetune BASE TEXT --method lora")
    adapter, values = config.adapter, lora.tensors(network)
    texts = [[*model.generation.start, *model.tokenizer.encode(text)] for text in prompts_of(model, run)]
    prompts = [ids[: network.config.window] for ids in texts]
    found: list[Parity] = []

    def write(folder: Path) -> None:
        write_peft(folder, network, adapter, values, _origin(config))
        with TemporaryDirectory() as temporary:
            base = network.config.build()
            load_weights(base, run / "model.safetensors")
            write_weights(Path(temporary), base)
            difference = check_peft(folder, Path(temporary), network, prompts)
        found.append(Parity(len(prompts), sum(map(len, prompts)), difference))

    write_folder(out, write)
    return found[0]


def _origin(config: TextRun | ImportedRun) -> str:
    """Where the model came from that an adapter is for."""
    if isinstance(config, TextRun) and config.base is not None and (Path(config.base) / "config.json").exists():
        base = read_run(Path(config.base))
        return config.base if isinstance(base, PairRun) else _origin(base)
    return config.origin if isinstance(config, ImportedRun) else ""


def _habits(model: TextModel, run: Path) -> Habits:
    generation, sampling = model.generation, model.generation.sampling.dump()
    neutral = type(model.generation.sampling)().dump()
    drawing = {name: sampling[name] for name in NAMES if sampling[name] != neutral[name]}
    template, named = read_template(run), model.config.named
    return Habits(generation.start, generation.end, generation.unseen, drawing, template, named)


def prompts_of(model: TextModel, run: Path) -> tuple[str, ...]:
    """Real texts: from the run's validation text, or a few of ours that the vocabulary can hold."""
    if (run / "data").is_dir():
        tokens = open_prepared(run / "data").valid.tokens
        places = [len(tokens) * part // 4 for part in range(4)]
        texts = [model.tokenizer.decode(tokens[place : place + PROMPT].tolist())[:PROMPT] for place in places]
        return tuple(text.strip("\ufffd") for text in texts if text.strip())
    return tuple(text for text in PROMPTS if not model.tokenizer.unseen(text))


def model_card(model: TextModel, run: Path, name: str, parity: Parity, licence: str | None) -> str:
    """README.md: what a stranger must know."""
    config = model.config
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [textwright]"]
    front += [f"license: {licence}"] if licence else []
    lines = [*front, "---", f"# {name}", ""]
    lines += [f"{model.model.count_parameters():,} parameters, written by Textwright.", "", "## Use", "", "```python"]
    lines += [
        "from transformers import pipeline",
        f'pipe = pipeline("text-generation", "{name}")',
        'print(pipe("The")[0]["generated_text"])',
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


def _history(config: TextRun | ImportedRun, run: Path) -> list[str]:
    if isinstance(config, ImportedRun):
        return [f"Imported from {Path(config.origin).name} ({config.kind})."]
    lines = [f"Trained on {Path(config.source.path).name}, budget {config.training.budget}."]
    save = newest(run / "training")
    looks = [] if save is None else [look for look in read_progress(save).evaluations if look.best]
    if looks:
        lines.append(f"Validation loss {looks[-1].valid_loss:.4f} nats a token after {looks[-1].tokens:,} tokens.")
    return lines
