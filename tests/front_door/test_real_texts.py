"""Real corpora, where they are at hand: counts that the literature knows, Chinese that comes out as Chinese."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from door import Run, data_folder


def corpus(*parts: str) -> Path:
    path = data_folder().joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in TEXTWRIGHT_DATA ({os.environ.get('TEXTWRIGHT_DATA', 'not set')})")
    return path


def test_wikitext_2_has_the_known_vocabulary_and_test_tokens(run: Run, tmp_path: Path) -> None:
    folder = corpus("wikitext-2")
    out = tmp_path / "run"
    valid = tmp_path / "valid.txt"  # a part: the words are those of the training text, and the loss is no matter here
    valid.write_text("".join((folder / "valid.txt").read_text(encoding="utf-8").splitlines(True)[:100]), "utf-8")
    words = ("--valid", valid, "--tokenizer", "word", "--model", "lstm", "--steps", "2", "--out", out)
    small = ("--set", "model.width=8", "--set", "training.evaluations=1", "--set", "training.batch_tokens=64")
    result = run("train", folder / "train.txt", *words, *small)
    assert result.code == 0, result.err
    assert "tokens of 33,278 (word)" in result.out
    panel = json.loads(run("evaluate", out, "--data", folder / "test.txt", "--json").out)
    assert panel["tokens"] == 245_569
    assert panel["word_perplexity"] == pytest.approx(panel["token_perplexity"])


def test_tang_poems_are_written_without_spaces(run: Run, tmp_path: Path) -> None:
    poems = corpus("tang-poems", "valid.txt")
    out = tmp_path / "run"
    small = ("--set", "model.width=32", "--set", "model.layers=1", "--set", "training.evaluations=1")
    result = run("train", poems, "--steps", "60", "--out", out, *small)
    assert result.code == 0, result.err
    (output,) = json.loads(run("generate", out, "--json", "--seed", "1").out)["outputs"]
    assert " " not in output["text"]
    assert "�" not in output["text"]
