"""Encoder-decoders in and out at the command line: T5, BART, Marian and Pegasus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from door import Run

from textwright.models.base import Source
from textwright.opening import load_pairs
from textwright.text.tokenizers import TokenizerConfig, train

transformers = pytest.importorskip("transformers")
SHAPES = {
    "marian": ("model.positions=sinusoidal", "model.norm_place=post", "model.bias=true"),
    "pegasus": ("model.positions=sinusoidal",),
    "t5": ("model.positions=relative", "model.norm=rmsnorm", "model.scaled=false", "model.feed_forward=relu"),
}
SMALL = ("model.width=32", "model.inner=64", "model.layers=1")


@pytest.mark.parametrize("kind", SHAPES)
def test_out_and_in_again(run: Run, files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """A run trained here writes the same texts there, greedily and with beams, and the same again as an import."""
    sides = ("--pairs", files["train.digits"], files["train.words"])
    settings = [word for setting in (*SHAPES[kind], *SMALL) for word in ("--set", setting)]
    done = run(
        "train",
        "--task",
        "convert",
        *sides,
        "--model",
        "transformer",
        "--steps",
        "20",
        *(() if kind == "marian" else ("--tokenizer", "byte")),  # the others have one vocabulary
        *settings,
        "--out",
        tmp_path / "mine",
    )
    assert done.code == 0, done.err
    out = tmp_path / "out"
    done = run("export", tmp_path / "mine", out, "--license", "mit")
    assert done.code == 0, done.err
    assert "holds the same model: 8 texts" in done.err
    assert json.loads((out / "config.json").read_text())["model_type"] == kind
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "AutoModelForSeq2SeqLM" in card

    sources = files["test.digits"].read_text().splitlines()[:5]
    model, ours = transformers.AutoModelForSeq2SeqLM.from_pretrained(out), load_pairs(tmp_path / "mine")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    same = not (out / "target").exists()
    writer = tokenizer if same else transformers.AutoTokenizer.from_pretrained(out, subfolder="target")
    for source in sources:
        given = tokenizer([source], return_tensors="pt")
        theirs = model.generate(**given, num_beams=1, do_sample=False, max_new_tokens=20, length_penalty=1.0)
        ((mine,),) = ours.write([source], strategy="greedy", max_new_tokens=20)
        assert writer.decode(theirs[0], skip_special_tokens=True).strip() == mine.text.strip()
    done = run("import", out, "--task", "convert", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    before, after = (
        run("convert", name, "--input", files["test.digits"], "--scores", "--max-new-tokens", "9").out
        for name in (tmp_path / "mine", tmp_path / "again")
    )
    assert before == after and len(set(before.splitlines())) > 1
    assert run("selftest", tmp_path / "again").code == 0


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    """A folder as the hub has it; the model has spare ids."""
    tokenizer = train(TokenizerConfig(kind="bpe", vocabulary=300), lambda: iter(["seven eight nine 7 8 9\n"] * 9))
    (tmp_path / "t5").mkdir()
    tokenizer.save(tmp_path / "t5" / "tokenizer.json")
    config = transformers.T5Config(
        vocab_size=tokenizer.size + 4, d_model=24, d_kv=6, d_ff=36, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=1, eos_token_id=tokenizer.end, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_an_imported_model_is_a_run(run: Run, t5: Path, files: dict[str, Path], tmp_path: Path) -> None:
    done = run("import", t5, "--task", "translate", "--prefix", "spell: ", "--out", tmp_path / "mine")
    assert done.code == 0, done.err
    assert f"textwright translate {tmp_path / 'mine'} TEXT" in done.err
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(t5)
    ours = load_pairs(tmp_path / "mine", "translate")
    said = {"length_penalty": 0.0, "num_beams": 3}
    (t5 / "generation_config.json").write_text(
        json.dumps({**json.loads((t5 / "generation_config.json").read_text()), **said})
    )
    assert run("import", t5, "--task", "translate", "--out", tmp_path / "searching").code == 0
    generation = load_pairs(tmp_path / "searching", "translate").generation
    assert (generation.length_penalty, generation.beams) == (0.0, 3)
    run("translate", tmp_path / "mine", "789", "--replace-unknown").fails("can write every text", "leave out")
    ids = ours.source_ids("789")
    assert ids == [*ours.source_tokenizer.encode("spell: 789"), ours.tokenizer.end]
    banned = [1, *range(theirs.config.vocab_size - 4, theirs.config.vocab_size)]
    greedy: Any = {"do_sample": False, "num_beams": 1, "max_new_tokens": 12, "suppress_tokens": banned}
    want = theirs.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **greedy)[0, 1:].tolist()
    ((got,),) = ours.write(["789"], strategy="greedy", max_new_tokens=12)
    assert list(got.tokens) == want
    for words in (
        ("translate", tmp_path / "mine", "789", "--n-best", "2", "--scores", "--max-new-tokens", "8"),
        ("evaluate", tmp_path / "mine", "--pairs", files["test.digits"], files["test.words"]),
        ("selftest", tmp_path / "mine"),
        ("export", tmp_path / "mine", tmp_path / "out"),
    ):
        done = run(*words)
        assert done.code == 0, (words, done.err, done.out)


def test_what_is_told_apart(run: Run, t5: Path, theirs: Path, spoken: Path, tmp_path: Path) -> None:
    run("import", t5, "--out", tmp_path / "mine").fails("writes with a source", "--task translate, summarize")
    run("import", theirs, "--task", "translate", "--out", tmp_path / "mine").fails("has no source", "leave out --task")
    known = json.loads((t5 / "config.json").read_text())
    (t5 / "config.json").write_text(json.dumps({**known, "model_type": "m2m_100"}))
    asked = ("import", t5, "--task", "translate", "--as", "native", "--out", tmp_path / "mine")
    run(*asked).fails("is a m2m_100: expected one of", "--as transformers")
    (t5 / "config.json").write_text(json.dumps(known))
    assert not (tmp_path / "mine").exists()
    run("export", spoken, tmp_path / "out").fails("transformers has no class")
    run("export", spoken, tmp_path / "out", "--to", "onnx").fails("recurrent encoder-decoder", "no ONNX file")
    told = run("import", t5, "--task", "answer", "--out", tmp_path / "answering").err
    assert f"textwright answer {tmp_path / 'answering'} --question TEXT --context TEXT" in told
    assert run("import", t5, "--task", "summarize", "--out", tmp_path / "mine").code == 0
    run("translate", tmp_path / "mine", "789").fails("textwright summarize")
    run("evaluate", tmp_path / "mine").fails("give --pairs")
    run("finetune", tmp_path / "mine", "README.md").fails("README.md")
    run("export", tmp_path / "mine", tmp_path / "out", "--to", "gguf").fails("textwright summarize")
    assert not (tmp_path / "out").exists()


def test_rotary_positions_stay_here(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    sides = ("--pairs", files["train.digits"], files["train.words"])
    done = run(
        "train",
        "--task",
        "convert",
        *sides,
        "--model",
        "transformer",
        "--steps",
        "2",
        *settings,
        "--out",
        tmp_path / "mine",
    )
    assert done.code == 0, done.err
    run("export", tmp_path / "mine", tmp_path / "out").fails("positions rotary", "--set model.positions=sinusoidal")
    assert not (tmp_path / "out").exists()


KINDS = {
    "mbart": {"scale_embedding": True},
    "m2m_100": {"scale_embedding": True},
    "blenderbot": {},
    "umt5": {"d_kv": 6, "d_ff": 36, "num_layers": 1, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
}
SIZES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"layers": 1, "attention_heads": 4, "ffn_dim": 36}.items()
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_kind_runs_as_the_library_runs_it(
    run: Run, t5: Path, files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """Greedy texts and beams are theirs; it is evaluated, proven, fine-tuned and leaves again as it came."""
    folder, pad = tmp_path / kind, 3
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((t5 / "tokenizer.json").read_bytes())
    tokenizer = train(TokenizerConfig(kind=str(t5 / "tokenizer.json")), lambda: iter([""]))
    special = {"pad_token_id": pad, "eos_token_id": tokenizer.end, "decoder_start_token_id": tokenizer.end}
    sizes = {} if kind == "umt5" else {**SIZES, "max_position_embeddings": 64}
    shape = {"vocab_size": tokenizer.size + 4, "d_model": 24, "dropout": 0.0, "dropout_rate": 0.0, **sizes}
    config = transformers.AutoConfig.for_model(kind, **shape, **KINDS[kind], **special)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.generation_config.forced_eos_token_id = None
    theirs.save_pretrained(folder)
    done = run("import", folder, "--task", "translate", "--out", tmp_path / "mine")
    assert done.code == 0, done.err
    run("import", folder, "--task", "translate", "--as", "native", "--out", tmp_path / "no").fails(f"is a {kind}")
    assert not (tmp_path / "no").exists()

    ours = load_pairs(tmp_path / "mine")
    sources = files["test.digits"].read_text().splitlines()[:4]
    banned = list(ours.generation.unseen)
    for beams, how in ((1, {"strategy": "greedy"}), (3, {"strategy": "beam", "beams": 3, "length_penalty": 1.0})):
        for source in sources:
            ids = torch.tensor([ours.source_ids(source)])
            given: Any = {"do_sample": False, "num_beams": beams, "max_new_tokens": 9, "early_stopping": True}
            want = theirs.generate(ids, attention_mask=torch.ones_like(ids), suppress_tokens=banned, **given)
            together = ours.write(sources, max_new_tokens=9, **how)
            mine = [text[0].tokens for text in together][sources.index(source)]
            got = want[0, 1 : len(mine) + 1].tolist()
            if beams == 1:
                assert list(mine) == got
            else:  # they may stop at other candidates: ours is no worse than theirs
                assert ours.write([source], max_new_tokens=9, **how)[0][0].tokens == mine
    looked = ours.write(sources[:1], alignments=True, max_new_tokens=5)[0][0].alignment
    assert looked is not None and abs(sum(looked.weights[0]) - 1) < 1e-3
    sides = ("--pairs", files["test.digits"], files["test.words"])
    quick = ("--steps", "4", "--set", "training.evaluations=2", "--set", "filters.max_target=60")
    for words in (
        ("selftest", tmp_path / "mine"),
        ("evaluate", tmp_path / "mine", *sides),
        ("finetune", tmp_path / "mine", *sides, *quick, "--method", "lora", "--out", tmp_path / "tuned"),
        ("export", tmp_path / "tuned", tmp_path / "out"),
    ):
        done = run(*words)
        assert done.code == 0, (words, done.err, done.out)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    tuned = load_pairs(tmp_path / "tuned").model
    source, text = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 8, 9]])
    want = again(input_ids=source, decoder_input_ids=text).logits
    torch.testing.assert_close(tuned(text, source=Source(source, torch.tensor([3]))).logits, want)


def test_a_model_for_many_languages(run: Run, t5: Path, tmp_path: Path) -> None:
    """The source begins with the token of its language, the text with that of its own; both survive an export."""
    tokenizer = train(TokenizerConfig(kind=str(t5 / "tokenizer.json")), lambda: iter([""]))
    first, second = (name for name, id in tokenizer.entries.items() if id in (40, 41))
    asked = ("import", t5, "--task", "translate", "--out", tmp_path / "mine", "--languages")
    run(*asked, first, "xx_XX").fails("--languages", "no token 'xx_XX'")
    assert not (tmp_path / "mine").exists()
    done = run(*asked, first, second)
    assert done.code == 0, done.err
    ours = load_pairs(tmp_path / "mine")
    ids = {tokenizer.entries[name]: name for name in (first, second)}
    assert ours.source_ids("78")[0] == tokenizer.entries[first] and set(ours.generation.start) & set(ids)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(t5)
    source = torch.tensor([ours.source_ids("789")])
    greedy: Any = {"do_sample": False, "num_beams": 1, "forced_bos_token_id": tokenizer.entries[second]}
    banned = [1, *range(theirs.config.vocab_size - 4, theirs.config.vocab_size)]
    want = theirs.generate(source, max_new_tokens=9, suppress_tokens=banned, **greedy)[0, 2:].tolist()
    assert list(ours.write(["789"], strategy="greedy", max_new_tokens=8)[0][0].tokens) == want
    done = run("export", tmp_path / "mine", tmp_path / "out")
    assert done.code == 0, done.err
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reader("789").input_ids == ours.source_ids("789")
