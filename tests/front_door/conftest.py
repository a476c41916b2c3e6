"""The command line as a person meets it: arguments in, exit code, standard output and standard error out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numbers_task
import pytest
from door import POEM, Result, Run

from textwright.cli import main as cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process: as `textwright`, only without the seconds of a start."""

    def call(*words: str | Path) -> Result:
        monkeypatch.setattr(cli.warnings, "simplefilter", lambda *_, **__: None)  # in tests warnings stay errors
        monkeypatch.setattr(sys, "argv", ["textwright", *map(str, words)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text(POEM * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """One small finished run of each kind."""
    from textwright.api import train

    folder = tmp_path_factory.mktemp("runs")
    settings = {"model.width": 16, "model.layers": 1, "training.evaluations": 2, "training.save_seconds": 0}
    for family in ("transformer", "lstm"):
        more = {"model.window": 16} if family == "transformer" else {}
        train(text, model=family, tokenizer="char", steps=12, out=folder / family, settings={**settings, **more})
    return {family: folder / family for family in ("transformer", "lstm")}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return numbers_task.write(tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Path:
    """A model that spells numbers out, trained by the command in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "spoken"
    sides = ("--pairs", files["train.digits"], files["train.words"])
    tests = ("--test-pairs", files["test.digits"], files["test.words"])
    settings = ("model.width=96", "model.dropout=0", "training.evaluations=2", "training.batch_tokens=512")
    command = ["train", "--task", "convert", *sides, *tests, "--model", "gru", "--epochs", "14", "--out", out]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run([sys.executable, "-m", "textwright", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if messages[0].content == 'refuse' %}{{ raise_exception('I will not') }}{% endif %}"
)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer that knows fewer ids than the model has."""
    transformers = pytest.importorskip("transformers")
    import torch

    from textwright.text.tokenizers import TokenizerConfig, train

    folder = tmp_path_factory.mktemp("theirs")
    tokenizer = train(TokenizerConfig(kind="bpe", vocabulary=290), lambda: iter([POEM * 9]))
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
    config = transformers.LlamaConfig(
        **sizes,
        vocab_size=tokenizer.size + 6,
        max_position_embeddings=160,
        bos_token_id=tokenizer.end,
        eos_token_id=tokenizer.end,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        model.lm_head.weight[tokenizer.size :] = 0.0  # never the likeliest
    model.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
