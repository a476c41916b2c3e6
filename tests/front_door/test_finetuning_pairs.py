"""A model that writes with a source, trained here or elsewhere, learns other pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from door import Run

from textwright.opening import load_pairs
from textwright.run import PairGeneration, read_generation
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train
from textwright.training.records import Progress
from textwright.training.state import newest, read_progress

SHORT = ("--steps", "30", "--set", "training.evaluations=2", "--set", "training.precision=float32")
PAIRS = [(str(number), "seven eight nine"[: 1 + number % 16].strip()) for number in range(700, 800)]


def progress(out: Path) -> Progress:
    save = newest(out / "training")
    assert save is not None
    return read_progress(save)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sides")
    for name, lines in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / "source", folder / "target"


@pytest.fixture(scope="module", params=["t5", "bart"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it. BART's tokenizer frames a text by two tokens, and its texts begin with two."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("foreign") / request.param
    folder.mkdir()
    tokenizer = train(TokenizerConfig(kind="bpe", vocabulary=300), lambda: iter(["seven eight nine 7 8 9\n"] * 9))
    tokenizer.save(folder / "tokenizer.json")
    end, first = tokenizer.end, 2
    torch.manual_seed(0)
    if request.param == "t5":
        sizes = {"d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
        special = {"pad_token_id": 1, "eos_token_id": end, "decoder_start_token_id": 1}
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=tokenizer.size + 4, feed_forward_proj="gated-gelu", **sizes, **special)
        ).save_pretrained(folder)
        return folder
    library = Library.from_file(str(folder / "tokenizer.json"))
    names = {id: name for name, id in tokenizer.entries.items()}
    library.post_processor = TemplateProcessing(
        single=f"{names[first]} $A {names[end]}", special_tokens=[(names[first], first), (names[end], end)]
    )
    library.save(str(folder / "tokenizer.json"))
    sizes = {"d_model": 24, "encoder_ffn_dim": 36, "decoder_ffn_dim": 36, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0}
    special = {"pad_token_id": 1, "bos_token_id": first, "eos_token_id": end, "decoder_start_token_id": end}
    config = transformers.BartConfig(vocab_size=tokenizer.size, **sizes, **heads, **special)
    model = transformers.BartForConditionalGeneration(config)
    model.generation_config.forced_bos_token_id = first
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(run: Run, foreign: Path, tmp_path: Path) -> Path:
    done = run("import", foreign, "--task", "convert", "--prefix", "say 7: ", "--out", tmp_path / "base")
    assert done.code == 0, done.err
    return tmp_path / "base"


def their_loss(foreign: Path, base: Path) -> float:
    """What transformers says of the same pairs: nats a token of all targets, forced beginnings left out."""
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(foreign).eval()
    ours, start = load_pairs(base), read_generation(base, PairGeneration).start
    total, count = 0.0, 0
    for source, target in PAIRS:
        ids = torch.tensor([ours.source_ids(source)])
        wanted = [*ours.tokenizer.encode(target), ours.tokenizer.end]
        read = torch.tensor([[*start, *wanted[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=read).logits
        logarithms = logits[0, len(start) - 1 :].log_softmax(-1)
        total -= float(logarithms.gather(1, torch.tensor(wanted)[:, None]).sum())
        count += len(wanted)
    return total / count


@pytest.mark.parametrize("method", ["full", "dora", "qlora"])
def test_a_model_from_elsewhere(
    run: Run, foreign: Path, base: Path, sides: tuple[Path, Path], tmp_path: Path, method: str
) -> None:
    """It begins at the loss that transformers has on the same pairs, learns, opens as what was trained, and leaves."""
    out = tmp_path / "out"
    rate = ("--set", f"training.optimizer.learning_rate={'3e-3' if method == 'full' else '3e-2'}")
    asked = ("finetune", base, "--pairs", *sides, "--valid-pairs", *sides, *SHORT, *rate, "--method", method)
    done = run(*asked, "--out", out)
    assert done.code == 0, done.err
    assert "parameters learn" in done.err
    assert (out / "adapter.safetensors").exists() == (method != "full")
    looks = [look.valid_loss for look in progress(out).evaluations]
    near = {"rel": 1e-5} if method != "qlora" else {"abs": 0.1}  # weights of four bits are others
    assert looks[0] == pytest.approx(their_loss(foreign, base), **near)
    assert looks[-1] < looks[0] - 0.1
    start = read_generation(out, PairGeneration).start
    assert len(start) == (2 if foreign.name == "bart" else 1) and start == read_generation(base, PairGeneration).start
    assert load_pairs(out).source_ids("789") == load_pairs(base).source_ids("789")

    again = ("finetune", out, "--pairs", *sides, "--valid-pairs", *sides, *SHORT, "--out", tmp_path / "again")
    assert run(*again).code == 0
    assert progress(tmp_path / "again").evaluations[0].valid_loss == pytest.approx(min(looks), rel=1e-4)
    for words in (
        ("convert", out, "789", "--max-new-tokens", "8"),
        ("evaluate", out, "--pairs", *sides),
        ("selftest", out),
        ("export", out, tmp_path / "there"),
    ):
        done = run(*words)
        assert done.code == 0, (words, done.err, done.out)
    if method == "full":
        assert run(*asked, "--out", out).code == 0  # the same command goes on, where nothing is left to do


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_of_ours(run: Run, spoken: Path, sides: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    """A recurrent one, with two vocabularies: what its tokenizers do not know is what they call unknown."""
    rate = ("--set", "training.optimizer.learning_rate=2e-2")
    asked = ("finetune", spoken, "--pairs", *sides, "--valid-pairs", *sides, *SHORT, *rate, "--method", method)
    done = run(*asked, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    looks = [look.valid_loss for look in progress(tmp_path / "out").evaluations]
    assert looks[-1] < looks[0] - 0.3
    for name in ("tokenizer", "source_tokenizer"):
        mine, first = (Tokenizer.load(folder / f"{name}.json") for folder in (tmp_path / "out", spoken))
        assert mine.same(first)
    assert run("convert", tmp_path / "out", "789").code == 0


def test_what_does_not_fit_is_told(
    run: Run, base: Path, spoken: Path, trained: dict[str, Path], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    run("finetune", base, *out).fails("--pairs SOURCES TARGETS")
    run("finetune", base, "--pairs", *sides, "--learn", "answers", *out).fails("--learn answers", "leave it out")
    run("finetune", base, "--pairs", *sides, "--method", "lorra", *out).fails("no method", "lora")
    run("finetune", spoken, "--pairs", *sides, "--method", "qlora", *out).fails("adapter.packed is for Transformers")
    run("finetune", trained["lstm"], "--pairs", *sides, *out).fails("--pairs is for a base with a source")
    run("finetune", trained["lstm"], *out).fails("say what", "textwright finetune")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_texts_longer_than_the_base_takes(run: Run, base: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.tsv"
    long.write_text("".join(f"{number}\t{'seven eight nine ' * 60}\n" for number in range(700, 800)))
    done = run("finetune", base, long, *SHORT, "--out", tmp_path / "out")
    if "relative" in (base / "config.json").read_text():  # T5 takes what we said it takes, 512
        assert done.code == 0, done.err
        return
    done.fails("the longest target has", "the base takes 64", "filters.max_target=62")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_prefix_of_its_own(run: Run, base: Path, sides: tuple[Path, Path], tmp_path: Path) -> None:
    for prefix, told in ((("--prefix", "8: "), "8: 789"), (("--prefix", ""), "789"), ((), "say 7: 789")):
        out = tmp_path / f"out{len(prefix)}{len(told)}"
        done = run("finetune", base, "--pairs", *sides, "--steps", "1", *prefix, "--out", out)
        assert done.code == 0, done.err
        assert load_pairs(out).framed("789") == told
