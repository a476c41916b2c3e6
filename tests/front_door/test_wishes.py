"""Wishes about a text that hold to the end, are told when they cannot, and repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from door import Run

import textwright
from textwright.api import finetune, train
from textwright.errors import ConfigError
from textwright.models.quantized import Int8Linear, QuantizedCell
from textwright.quantizing import load_quantized


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the words of many short documents, one of which is unknown."""
    folder = tmp_path_factory.mktemp("lines")
    text = "".join(f"{one} {other}\n" for one in ("yes", "no", "maybe") for other in ("fox", "dog", "cat")) * 20
    (folder / "lines.txt").write_text(text + "rare fox\n", encoding="utf-8")
    settings = {
        "model.width": 16,
        "model.layers": 1,
        "training.evaluations": 1,
        "source.documents": "line",
        "tokenizer.min_frequency": 2,
    }
    train(folder / "lines.txt", model="lstm", tokenizer="word", steps=8, out=folder / "run", settings=settings)
    return folder / "run"


def test_the_end_of_a_text_is_not_shown(lines: Path) -> None:
    """With words it is the end of a line, which has a piece of its own."""
    model = textwright.load(lines)
    assert model.generation.end is not None and model.tokenizer.pieces[model.generation.end] == b"\n"
    (text,) = model.generate("", choices=["yes fox", "no dog"], seed=1)
    assert text.text in ("yes fox", "no dog") and text.finish_reason == "end"
    streamed = "".join(chunk.text for chunk in model.stream("", choices=["yes fox", "no dog"], seed=1))
    assert streamed == text.text


def test_a_bias_on_what_cannot_be_written_is_refused(run: Run, lines: Path, trained: dict[str, Path]) -> None:
    run("generate", lines, "--bias", "zorblax=5").fails("bias 'zorblax' would do nothing")
    run("generate", lines, "--bias", "rare=-inf").fails("bias 'rare' would do nothing")
    assert run("generate", lines, "--bias", "fox=5").code == 0
    assert run("generate", lines, "--bias", "rare fox=5").code == 0  # a prompt may begin it
    run("generate", trained["lstm"], "--bias", "日本=5").fails("bias '日本' would do nothing")


def test_guidance_needs_a_prompt(run: Run, trained: dict[str, Path]) -> None:
    run("generate", trained["lstm"], "--guidance", "2").fails("give a prompt")
    assert run("generate", trained["lstm"], "--guidance", "2", "--negative", "The").code == 0


def test_half_a_surrogate_pair_in_a_wish(run: Run, trained: dict[str, Path]) -> None:
    """Bytes of another encoding on the command line stand for a question mark, and are no crash."""
    short = ("--seed", "1", "--max-new-tokens", "30")
    assert run("generate", trained["lstm"], "--stop", "ca\udce9", *short).code == 0
    assert "?" not in run("generate", trained["lstm"], "--avoid", "\udce9", *short).out
    assert run("generate", trained["lstm"], "--choice", "ca\udce9", *short).out == "ca?\n"
    tokenizer = textwright.load(trained["lstm"]).tokenizer
    assert tokenizer.encode_marked("x\udce9") == tokenizer.encode("x?")


def test_nothing_asked_for_is_nothing(trained: dict[str, Path]) -> None:
    model = textwright.load(trained["lstm"])
    for name in ("stop", "avoid", "exempt", "choices", "words"):
        assert model.generate("T", seed=1, max_new_tokens=4, **{name: None}) == model.generate(
            "T", seed=1, max_new_tokens=4
        )


def test_the_seed_of_the_least_risk_repeats_it(trained: dict[str, Path]) -> None:
    model = textwright.load(trained["lstm"])
    how = {"strategy": "mbr", "samples": 4, "max_new_tokens": 8, "temperature": 2.0}
    for text in model.generate("T", seed=5, n=3, **how):
        (again,) = model.generate("T", seed=text.seed, **how)
        assert again == text


def test_what_a_smaller_company_reads_is_told(run: Run, trained: dict[str, Path]) -> None:
    """Of models that vote, the one with the smallest window decides what is read; the Transformer's is 16."""
    prompt = ("--prompt", "T" * 40, "--max-new-tokens", "2", "--seed", "1")
    assert "only the last" not in run("generate", trained["lstm"], *prompt).err
    told = run("generate", trained["lstm"], "--with", f"{trained['transformer']}=0.5", *prompt)
    assert told.code == 0, told.err
    assert "the model sees 16" in told.err


def test_a_prompted_model_is_packed_whole(trained: dict[str, Path], text: Path, tmp_path: Path) -> None:
    settings = {"training.evaluations": 1}
    finetune(trained["lstm"], text, method="prompt", steps=2, out=tmp_path / "run", settings=settings)
    model, _ = load_quantized(tmp_path / "run", "int8")
    kinds = [type(layer) for layer in model.model.modules()]
    assert kinds.count(QuantizedCell) == 1 and torch.nn.LSTM not in kinds
    assert model.model.head is model.model.get_submodule("model").head
    assert isinstance(model.model.head, Int8Linear)


def test_a_column_whose_name_is_a_number(tmp_path: Path) -> None:
    table = tmp_path / "years.jsonl"
    table.write_text('{"2024": "The quick brown fox."}\n' * 90, encoding="utf-8")
    settings = {"source.field": "2024", "model.width": 16, "model.layers": 1, "training.evaluations": 1}
    model = train(table, model="lstm", tokenizer="char", steps=2, out=tmp_path / "run", settings=settings)
    assert "q" in "".join(model.tokenizer.entries)
    with pytest.raises(ConfigError, match="--set"):
        train(table, model="lstm", steps=2, out=tmp_path / "other", settings={"": 1})
