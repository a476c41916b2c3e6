"""What is shipped: the wheel, the README's commands, the languages, the words that must not stand in files."""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from door import Run

from textwright import settings_table

ROOT = Path(__file__).parents[2]


def commands(name: str) -> list[str]:
    """The `textwright` command lines in a document's shell blocks."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("textwright ")]


def test_every_command_of_the_readme_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path, theirs: Path
) -> None:
    """In order, on a small text, with their budgets cut down to a few steps, and a small model for one of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n"))
    (tmp_path / "my.txt").write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    for name, pairs in (("train", 40), ("val", 6)):
        (tmp_path / f"{name}.de").write_text("Ein Hund läuft am Strand .\n" * pairs, encoding="utf-8")
        (tmp_path / f"{name}.en").write_text("A dog is running on the beach .\n" * pairs, encoding="utf-8")
    said = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A small model."}]
    (tmp_path / "chats.jsonl").write_text(
        f"{json.dumps({'messages': said})}\n" * 3
        + "".join(json.dumps({"turns": [f"Hello {n}", "Hi."]}) + "\n" for n in range(60)),
        encoding="utf-8",
    )
    lines = commands("README.md")
    assert len(lines) >= 5
    for line in lines:
        words = [word.strip("'\"") for word in re.findall(r"'[^']*'|\"[^\"]*\"|\S+", line)][1:]
        for budget in ("--minutes", "--steps", "--epochs"):
            if words[0] in ("train", "finetune") and budget in words:
                place = words.index(budget)
                words[place : place + 2] = ["--steps", "4"]
        if words[0] == "import":
            words[1] = str(theirs)
        if words[0] == "verify-resume":
            words = ["verify-resume", "--kills", "1", "--steps", "4"]
        result = run(*words)
        assert result.code == 0, f"{line}: {result.err}"


def test_both_readmes_show_the_same_commands() -> None:
    strip = [re.sub(r'"[^"]*"', "TEXT", line) for line in commands("README.md")]
    assert strip == [re.sub(r'"[^"]*"', "TEXT", line) for line in commands("README.zh.md")]


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    """Built from the sources, it holds every module, the page's template and the type marker; and it runs."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    source = ROOT / "src"
    files = [path for path in source.rglob("*") if path.suffix in (".py", ".html", ".css", ".typed") and path.is_file()]
    expected = {path.relative_to(source).as_posix() for path in files if "egg-info" not in str(path)}
    assert expected <= names
    code = "import textwright, sys; print(textwright.__file__); sys.argv=['textwright', '--help']\n"
    code += "from textwright.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "site") in result.stdout
    assert "verify-resume" in result.stdout


def test_constraints_pin_what_the_project_asks_for() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    declared = re.search(r"\ndependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert declared is not None
    names = {re.split(r"[><=]", name)[0].lower() for name in re.findall(r'"([^"]+)"', declared[1])}
    assert len(names) <= 10
    assert names <= pinned


def test_budgets_of_the_design() -> None:
    """Functions: median at most 10 lines, 95th percentile 50, none over 100. Files: median 150, none over 500."""
    from statistics import median

    functions, files = [], []
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        files.append(text.count("\n"))
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        functions += [node.end_lineno - node.lineno + 1 for node in nodes if node.end_lineno]
    functions.sort()
    assert median(functions) <= 10
    assert functions[int(0.95 * (len(functions) - 1))] <= 50
    assert functions[-1] <= 100
    assert median(files) <= 150
    assert max(files) <= 500


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)


def programs(name: str) -> list[str]:
    """What the blocks do, without their remarks."""
    return [ast.dump(ast.parse(re.sub(r'"""[^"]+"""', "pass", block))) for block in blocks(name)]


def test_the_evening_with_the_models_is_true() -> None:
    """All its blocks, one after the other; the Chinese ones are the same program with other remarks."""
    graph = torch.is_grad_enabled()
    try:
        exec("\n".join(blocks("models.md")), {"__name__": "models"})
    finally:
        torch.set_grad_enabled(graph)
    assert programs("models.md") == programs("models.zh.md")


def test_the_page_about_python_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python.md")), {"__name__": "python"})
    assert (tmp_path / "for-transformers" / "model.safetensors").is_file()
    assert programs("python.md") == programs("python.zh.md")


def test_the_page_of_settings_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_table.markdown(), "run: python -m textwright.settings_table > docs/settings.md"


def test_benchmark_tables_are_those_of_the_results() -> None:
    show = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    tables = show["tables"]()
    assert tables.count("| **textwright") >= 4
    assert show["BEGIN"] + "\n" + tables + "\n" + show["END"] in (ROOT / "docs" / "benchmarks.md").read_text("utf-8")


def test_the_recipes_are_listed_by_either_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = run("recipes", "list")
    assert told.code == 0, told.err
    assert told.out == run("recipes").out
    assert "wikitext-2-lstm-60" in told.out and "seed" in told.out
    run("recipes", "nowhere").fails("nowhere")
