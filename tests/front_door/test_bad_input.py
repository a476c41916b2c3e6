"""Bad input: an exit code other than 0, one or two lines that say what to do, nothing lost, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from door import POEM, TINY, Run

from textwright.cli.chat import _said
from textwright.errors import DataError


@pytest.fixture
def copy(trained: dict[str, Path], tmp_path: Path) -> Path:
    """A run that may be damaged."""
    shutil.copytree(trained["transformer"], tmp_path / "copy")
    return tmp_path / "copy"


# texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("poem.txt", "empty")),
        (b"  \n\n \t ", ("poem.txt",)),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 20, ("binary",)),
        (b"one short line\n", ("characters",)),
    ],
    ids=["empty", "blank", "binary", "one short line"],
)
def test_texts_that_cannot_be_learned_from(run: Run, tmp_path: Path, content: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "poem.txt").write_bytes(content)
    out = tmp_path / "run"
    run("train", tmp_path / "poem.txt", "--steps", "3", "--out", out, *TINY).fails(*words)
    assert not out.exists()


@pytest.mark.parametrize("family", ["transformer", "lstm"])
@pytest.mark.parametrize("content", ["a" * 400, "a" * 90, POEM], ids=["one character", "few of it", "two lines"])
def test_poor_texts_are_learned_all_the_same(run: Run, tmp_path: Path, content: str, family: str) -> None:
    """One character repeated, or a text shorter than the context, is a text."""
    (tmp_path / "poor.txt").write_text(content, encoding="utf-8")
    words = ("--model", family, "--steps", "3", "--out", tmp_path / "run", *TINY)
    result = run("train", tmp_path / "poor.txt", *words)
    assert result.code == 0, result.err
    assert run("generate", tmp_path / "run", "--max-new-tokens", "30").code == 0


def test_a_missing_text_names_what_is_there(run: Run, text: Path, tmp_path: Path) -> None:
    run("train", text.with_name("poen.txt"), "--out", tmp_path / "run").fails("poem.txt")


def test_a_wrong_encoding_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_bytes("床前明月光，疑是地上霜。".encode("gb18030") * 50)
    words = ("--set", "source.encoding=utf-8", "--out", tmp_path / "run")
    run("train", tmp_path / "poem.txt", *words).fails("utf-8", "gb18030")
    (tmp_path / "poem.txt").write_text("床前明月光，疑是地上霜。" * 50, encoding="utf-8")
    words = ("--set", "source.encoding=latin-1", "--out", tmp_path / "run")  # which can decode anything
    run("train", tmp_path / "poem.txt", *words).fails("looks like utf-8")


def test_a_jsonl_without_the_field(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "abc", "title": "x"}\n' * 99)
    run("train", tmp_path / "x.jsonl", "--set", "source.field=txt", "--out", tmp_path / "run").fails("body", "title")


# options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "lsmt"), "lstm"),
        (("--tokenizer", "chars"), "char"),
        (("--minutes", "1", "--steps", "3"), "exactly one of"),
        (("--minutes", "-1"), "greater than 0"),
        (("--set", "training.learning_rate=1"), "training.learning_rate"),
        (("--set", "training.optimizer.learning_rat=1"), "learning_rate"),
        (("--set", "model.width=-8"), "greater than 0"),
        (("--set", "model.width=wide"), "wide"),
        (("--set", "model.width"), "key.path=value"),
        (("--set", "training.device=tpu"), "cpu"),
        (("--valid", "nowhere.txt"), "nowhere.txt"),
        (("--minutes", "inf"), "finite"),
        (("--seed", "99999999999999999999"), "seed"),
        (("--set", "training=5"), "training"),
        (("--set", "model.window=64", "--set", "training.context=128"), "larger than model.window"),
        (("--set", "training.schedule.decay=0.5"), "training.schedule.decay"),
        (("--set", "source.field=body"), "source.field"),
    ],
)
def test_wrong_options_are_refused(run: Run, text: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    out = tmp_path / "run"
    run("train", text, "--out", out, *words).fails(message)
    assert not (out / "config.json").exists()


@pytest.mark.parametrize(
    ("option", "share"), [("--valid", "valid_fraction"), ("--valid", "test_fraction"), ("--test", "test_fraction")]
)
def test_a_share_of_what_is_not_split_is_refused(run: Run, text: Path, tmp_path: Path, option: str, share: str) -> None:
    words = ("train", text, option, text, "--set", f"{share}=0.1", "--steps", "1", "--out", tmp_path / "run")
    run(*words).fails("nothing is split off", share)
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_is_refused(run: Run, text: Path) -> None:
    result = run("train", text, "--mdoel", "lstm")
    assert result.code == 2
    assert "--model" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strategy", "gredy"), "greedy"),
        (("--top-p", "0"), "top_p"),
        (("--temperature", "-1"), "temperature"),
        (("--strategy", "greedy", "--temperature", "1"), "does not use temperature"),
        (("--strategy", "greedy", "--n", "2"), "one text"),
        (("--strategy", "beam", "--seed", "1"), "does not use seed"),
        (("--strategy", "beam", "--beams", "2", "--n", "3"), "--beams 3"),
        (("--strategy", "beam", "--max-new-tokens", "40"), "window of 16"),
        (("--strategy", "beam", "--stream", "--max-new-tokens", "4"), "--stream"),
        (("--beams", "2"), "--strategy beam"),
        (("--stop", ""), "stop string"),
        (("--min-new-tokens", "9", "--max-new-tokens", "3"), "maximum"),
        (("--stream", "--json"), "--json"),
    ],
)
def test_contradictory_generation_is_refused(
    run: Run, trained: dict[str, Path], words: tuple[str, ...], message: str
) -> None:
    run("generate", trained["transformer"], *words).fails(message)


def test_prompts_nobody_thought_of(run: Run, trained: dict[str, Path]) -> None:
    for family in trained:
        unseen = run("generate", trained[family], "--prompt", "漢 The 🙂", "--max-new-tokens", "5")
        assert unseen.code == 0
        assert "never seen: '漢', '🙂'" in unseen.err
        assert run("generate", trained[family], "--prompt", "", "--max-new-tokens", "5").code == 0
        long = run("generate", trained[family], "--prompt", "The fool. " * 30, "--max-new-tokens", "40")
        assert long.code == 0
        assert ("only the last 16 are read" in long.err) == (family == "transformer")


def test_stride_without_a_window_is_refused(run: Run, trained: dict[str, Path]) -> None:
    run("evaluate", trained["lstm"], "--stride", "4").fails("--stride")


# checkpoints ----------------------------------------------------------------------------------------------------------


def test_a_missing_run(run: Run, tmp_path: Path) -> None:
    run("generate", tmp_path / "nowhere").fails("does not exist")
    run("generate", tmp_path).fails("config.json")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "generation.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "garbage"])
def test_damaged_files_are_named(run: Run, copy: Path, file: str, damage: str) -> None:
    path = copy / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "garbage": b"\x00\xff{]" * 99}[damage])
    run("generate", copy).fails(file)


def test_a_changed_weight_is_noticed(run: Run, copy: Path) -> None:
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-9] ^= 4
    (copy / "model.safetensors").write_bytes(data)
    run("generate", copy).fails("was changed after it was written")


def test_a_pickle_is_refused(run: Run, copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    run("generate", copy).fails("can run code and are refused")


def test_a_newer_format_says_how_to_upgrade(run: Run, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": 99, "surprise": 1}))
    run("generate", copy).fails("format 99", "pip install -U textwright")


def test_a_configuration_that_does_not_fit_the_weights(run: Run, copy: Path) -> None:
    text = (copy / "config.json").read_text().replace('"width": 16', '"width": 32')
    (copy / "config.json").write_text(text)
    run("generate", copy).fails("does not fit", "expected")


def test_a_tokenizer_of_another_run(run: Run, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("".join(map(chr, range(0x4E00, 0x5000))) * 3, encoding="utf-8")
    run("train", tmp_path / "big.txt", "--tokenizer", "char", "--steps", "1", "--out", tmp_path / "big", *TINY)
    shutil.copy(tmp_path / "big" / "tokenizer.json", copy / "tokenizer.json")
    run("generate", copy).fails("different runs")


def test_a_folder_of_something_else_is_not_written_into(run: Run, text: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run("train", text, "--steps", "2", "--out", tmp_path, *TINY).fails("not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_data_folder_of_the_user_is_never_emptied(run: Run, tmp_path: Path) -> None:
    """`--out` beside the text: the run would keep its own `data` there."""
    poems = tmp_path / "data" / "poems.txt"
    poems.parent.mkdir()
    poems.write_text(POEM * 20)
    run("train", poems, "--steps", "2", "--out", tmp_path, *TINY).fails("not empty")
    assert poems.read_text() == POEM * 20


def test_a_text_that_changed_is_not_continued(run: Run, tmp_path: Path) -> None:
    poem = tmp_path / "poem.txt"
    poem.write_text(POEM * 20)
    words = ("train", poem, "--out", tmp_path / "run", *TINY, "--steps")
    assert run(*words, "2").code == 0
    poem.write_text(POEM * 21)
    run(*words, "4").fails("has changed", "another --out")
    other = tmp_path / "other.txt"
    other.write_text(POEM * 20)
    words = ("train", poem, "--test", other, "--out", tmp_path / "tested", *TINY, "--steps")
    assert run(*words, "2").code == 0
    other.write_text(POEM * 21)
    run(*words, "4").fails("has changed", "another --out")


def test_a_run_is_no_text_to_learn_from(run: Run, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text(POEM * 20)
    for name in ("first", "second"):
        result = run("train", tmp_path, "--tokenizer", "byte", "--steps", "2", "--out", tmp_path / name, *TINY)
        assert result.code == 0, result.err
        assert "1 documents" in result.out


def test_damaged_training_state_is_named(run: Run, copy: Path, text: Path) -> None:
    (save,) = (copy / "training").glob("step-*")
    (save / "optimizer.safetensors").write_bytes(b"half")
    asked = json.loads((copy / "config.json").read_text())["asked"]
    settings = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "model.window=16")
    more = ("--set", "training.evaluations=2", "--set", "training.save_seconds=0")
    words = ("--tokenizer", "char", "--steps", "14", "--out", copy, *settings, *more)
    run("train", asked["source"]["path"], *words).fails("optimizer.safetensors")


# processes ------------------------------------------------------------------------------------------------------------


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "textwright", *map(str, words)]


def limit_files() -> None:
    """No file may grow past 64 KB: writing weights fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_disk_that_fills_up_loses_nothing(text: Path, tmp_path: Path) -> None:
    """A run is continued where nothing large can be written; then there is room again."""
    words = ("train", text, "--tokenizer", "char", "--out", tmp_path / "run", "--set", "model.width=128", "--steps")
    subprocess.run(command(*words, "3"), check=True, capture_output=True)
    files = [path for path in (tmp_path / "run").rglob("*.safetensors") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    full = subprocess.run(command(*words, "6"), capture_output=True, text=True, preexec_fn=limit_files, check=False)
    assert full.returncode != 0
    assert "Traceback" not in full.stderr
    assert "cannot write" in full.stderr
    assert "make room" in full.stderr
    assert {path: path.read_bytes() for path in files} == before
    assert not list((tmp_path / "run").rglob("*.tmp"))
    again = subprocess.run(command(*words, "6"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Going on after step 3" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(text: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ("train", text, "--tokenizer", "char", "--steps", "4000", "--out", tmp_path / "run", *TINY)
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run" / "training").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "everything is saved" in out
    assert "To go on: textwright train" in out
    (save,) = (tmp_path / "run" / "training").glob("step-*")
    assert json.loads((save / "progress.json").read_text())["finished"] == ""


def test_a_second_training_in_the_same_folder_is_refused(run: Run, text: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".textwright.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("train", text, "--steps", "2", "--out", tmp_path / "run", *TINY).fails("another training runs")


def test_a_closed_pipe_is_no_error(trained: dict[str, Path]) -> None:
    words = command("generate", trained["lstm"], "--stream", "--max-new-tokens", "2000", "--seed", "1")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_terminal_that_knows_only_ascii_is_no_error(trained: dict[str, Path]) -> None:
    words = command("generate", trained["lstm"], "--prompt", "漢字", "--max-new-tokens", "3")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


def test_a_folder_without_rights(text: Path, run: Run, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    run("train", text, "--steps", "2", "--out", tmp_path / "run").fails("cannot")


def test_standard_input_in_another_encoding(
    run: Run, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed() -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好\n".encode("gbk")), encoding="utf-8"))

    typed()
    run("detect", trained["lstm"]).fails("standard input is not utf-8", "--input")
    typed()
    with pytest.raises(DataError, match="standard input is not utf-8"):
        next(_said())


def test_a_part_that_is_no_section(run: Run, text: Path, tmp_path: Path) -> None:
    run("train", text, "--set", "examples=true", "--out", tmp_path / "run").fails("examples")


def test_a_file_name_that_is_not_utf_8(run: Run, text: Path, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode("文.txt".encode("gbk"))
    name.write_bytes(text.read_bytes())
    run("train", name, "--steps", "1", "--out", tmp_path / "run").fails("not UTF-8", "renamed")


def test_no_steps_are_no_budget(run: Run, text: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    asked = f"run: {{source: {{path: {text}}}, training: {{budget: {{steps: 3}}}}}}"
    recipe.write_text(f"about: mine\nneeds: nothing\n{asked}\n")
    run("train", recipe, "--steps", "0", "--out", tmp_path / "run").fails("greater than 0")
