"""Sources read beside their nearest training pairs, from the command to the texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from door import Run
from test_pairs import SMALL

from textwright import plan_pairs
from textwright.errors import DataError
from textwright.models import Source
from textwright.opening import load_pairs
from textwright.text.bitext import open_bitext


@pytest.mark.parametrize("model", SMALL)
def test_a_run_reads_neighbours_everywhere_alike(run: Run, files: dict[str, Path], tmp_path: Path, model: str) -> None:
    """In training, at the command line and where it was moved to: the same ids; and the verbs work."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    words = ["train", files["train.tsv"], "--task", "convert", "--model", model, "--out", out, *SMALL[model]]
    done = run(*words, "--steps", "6", "--set", "neighbours=2", "--set", "training.evaluations=2")
    assert done.code == 0, done.err
    data = open_bitext(out / "data")
    first = next(line for line in done.out.splitlines() if line.startswith("first pair: "))
    assert first.count("</s>") >= 6  # three sources, two targets, and the target's own end

    again = run(*words, "--steps", "8", "--set", "neighbours=2", "--set", "training.evaluations=2")
    assert "Going on after step 6" in again.out
    other = run(*words, "--steps", "8", "--set", "neighbours=1")
    other.fails("neighbours", "another --out")

    (out / "data").rename(tmp_path / "gone")
    out.rename(moved)
    opened = load_pairs(moved)
    source = data.valid.source.tokens[: int(data.valid.source.ends[0])].tolist()
    own = source[: source.index(data.source_tokenizer.end)]
    assert opened.source_ids(data.source_tokenizer.decode(own)) == source
    assert len(source) > 2 * len(own)

    result = run("convert", moved, "7321", "--alignments", "--json")
    assert result.code == 0, result.err
    seen = json.loads(result.out)["outputs"][0]["alignment"]
    names = seen["source"]
    assert names[:5] == ["7", "3", "2", "1", "</s>"]
    assert names.count("</s>") == 5
    assert seen["own"] == 5
    pairs = run("convert", moved, "7321", "--alignments").out.split("\t")[-1].split()
    assert all(int(pair.split("-")[0]) < 5 for pair in pairs)
    ratios = ("--min-ratio", "1", "--max-ratio", "1", "--json")
    least = json.loads(run("convert", moved, "7321", *ratios).out)
    assert len(least["outputs"][0]["tokens"]) == 5  # of its own tokens, not of its neighbours'
    assert run("selftest", moved).code == 0
    assert run("evaluate", moved, "--pairs", files["test.digits"], files["test.words"]).code == 0
    if model == "transformer":
        long = tmp_path / "long.tsv"
        long.write_text("1 2\tone two\n" + "1 " * 500 + "\tone\n", encoding="utf-8")
        run("evaluate", moved, "--data", long).fails(f"{long}:2", "reads up to")


def test_what_does_not_go_with_neighbours_is_refused(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", files["train.tsv"], "--task", "convert", "--out", out, *SMALL["transformer"], "--steps", "4"]
    run(*words, "--set", "neighbours=1", "--set", "bpe_dropout=0.1").fails("bpe_dropout", "leave out one")
    run(*words, "--set", "neighbours=-1").fails("neighbours")
    narrow = ("--set", "neighbours=2", "--set", "model.source_window=8")
    run(*words, *narrow).fails("with its neighbours", "--set neighbours=1")
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"turns": ["hello", "hi", "how are you"]}\n' * 40, encoding="utf-8")
    run("train", "--task", "chat", chats, "--out", tmp_path / "talk", "--set", "neighbours=1").fails("dialogue")
    assert not (out / "config.json").exists()
    assert run(*words, "--set", "neighbours=1").code == 0
    run("finetune", out, "--pairs", files["train.digits"], files["train.words"]).fails("neighbours")
    run("export", out, tmp_path / "export").fails("neighbours")
    plain = tmp_path / "plain"
    assert run(*words[:5], plain, *words[6:]).code == 0
    run("convert", plain, "7", "--with", f"{out}=0.5").fails("name the run", "neighbours first")
    run("convert", out, "7", "--draft", plain).fails("neighbours", "these two runs do not")
    (out / "neighbours.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    run("convert", out, "7").fails("neighbours are damaged")
    (out / "neighbours.safetensors").unlink()
    run("convert", out, "7").fails("neighbours.safetensors")


def test_runs_with_and_without_neighbours_vote(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    """Each reads a source as it does alone, and every token is chosen by the mean of their probabilities."""
    runs = {"beside": SMALL["transformer"], "plain": SMALL["gru"]}
    for name, model in (("beside", "transformer"), ("plain", "gru")):
        words = ["train", files["train.tsv"], "--task", "convert", "--model", model, *runs[name], "--steps", "6"]
        extra = ("--set", "neighbours=1") if name == "beside" else ()
        assert run(*words, *extra, "--out", tmp_path / name).code == 0
    beside, plain = (load_pairs(tmp_path / name) for name in ("beside", "plain"))
    start = beside.generation.start
    together = beside.together([(plain, 0.25)])
    sources = ["7321864", "8"]  # the second one ends where the first one goes on
    for source, (text,) in zip(sources, together.write(sources, beams=1), strict=True):
        logprob = 0.0
        for place, token in enumerate(text.tokens):
            read = torch.tensor([[*start, *text.tokens[:place]]])
            share = torch.zeros(beside.model.head.out_features)
            for model, weight in ((beside, 0.75), (plain, 0.25)):
                ids = torch.tensor([model.source_ids(source)])
                logits = model.model(read, source=Source(ids, torch.tensor([ids.shape[1]]))).logits[0, -1]
                share += weight * logits.detach().softmax(-1)
            share[list(beside.generation.unseen)] = 0  # ids that no training text holds are never written
            logprob += float((share[token] / share.sum()).log())
        assert text.logprob == pytest.approx(logprob, abs=1e-4)

    vote = ("--with", f"{tmp_path / 'plain'}=0.25")
    asked = ("evaluate", tmp_path / "beside", "--pairs", files["test.digits"], files["test.words"])
    (want,) = run("convert", tmp_path / "beside", "7321", *vote, "--beams", "1").out.splitlines()
    assert want == together.write(["7321"], beams=1)[0][0].text
    told = json.loads(run(*asked, *vote, "--beams", "1", "--json", "--outputs", tmp_path / "outputs").out)
    assert told["search"] == "greedy, 2 models vote"
    texts = (tmp_path / "outputs").read_text().splitlines()
    digits = files["test.digits"].read_text().splitlines()
    assert texts[:5] == [text.text for (text,) in together.write(digits[:5], beams=1)]

    run(*asked, "--with", f"{tmp_path / 'plain'}=1.5").fails("got -0.5, 1.5", "less than 1 together")
    plain.model.source_window = 5
    assert together.write(["7321"])  # with its end, whatever its neighbours add
    with pytest.raises(DataError, match="source 1 has 6 tokens, a model that votes reads up to 5"):
        together.write(["73218"])
    narrow = load_pairs(tmp_path / "beside")
    narrow.model.source_window = 7  # it reads this source, but not with a neighbour: so nobody does
    assert len(beside.source_ids("732186")) > 7 == len(narrow.source_ids("732186"))
    asked: dict[str, Any] = {"sources": ["732186"], "strategy": "greedy"}
    ((both,),) = beside.together([(narrow, 0.5)]).write(**asked)
    ((drafted,),) = beside.write(**asked, draft=narrow)
    assert both.text == drafted.text == narrow.write(**asked)[0][0].text


@pytest.mark.parametrize("width", [64, 100, 128, 352, 400])
def test_heads_follow_the_width_that_is_asked_for(width: int) -> None:
    asked = {"task": "convert", "pairs": [{"path": "a.tsv"}], "model": {"width": width}}
    plan_pairs.check({**asked, "training": {"budget": {"minutes": 600.0}}})
