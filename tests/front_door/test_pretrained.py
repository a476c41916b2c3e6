"""Models from elsewhere, and models for elsewhere, as a person moves them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from door import Run, data_folder
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library
from tokenizers.processors import TemplateProcessing

import textwright
from textwright.errors import CheckpointError
from textwright.exporting import export_huggingface
from textwright.fit import open_job
from textwright.interop import formats, huggingface
from textwright.run import ImportedRun
from textwright.text.batching import Cursor
from textwright.training.parallel import World

transformers = pytest.importorskip("transformers")
STORIES = data_folder() / ".." / "models" / "stories260K"
# Written by llama2.c from the same weights (its test_all.py); the README of the folder tells of it.
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture
def imported(theirs: Path, tmp_path: Path, run: Run) -> Path:
    result = run("import", theirs, "--out", tmp_path / "imported")
    assert result.code == 0, result.err
    assert "textwright generate" in result.err
    return tmp_path / "imported"


def greedy(run: Run, folder: Path, *words: Any) -> list[int]:
    result = run("generate", folder, "--strategy", "greedy", "--max-new-tokens", "20", "--json", *words)
    assert result.code == 0, result.err
    tokens: list[int] = json.loads(result.out)["outputs"][0]["tokens"]
    return tokens


def written(folder: Path, prompt: list[int], count: int) -> list[int]:
    """By transformers itself."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    row = torch.tensor([prompt])
    text: list[int] = model.generate(row, do_sample=False, max_new_tokens=count)[0, len(prompt) :].tolist()
    return text


def test_in_and_out_again(run: Run, theirs: Path, imported: Path, tmp_path: Path) -> None:
    """Greedy text by transformers == imported == exported, by transformers again == imported again."""
    model = textwright.load(imported)
    assert isinstance(model.config, ImportedRun)
    prompt = list(model.prompt_ids("The fox"))
    tokens = greedy(run, imported, "--prompt", "The fox")
    assert tokens == written(theirs, prompt, 20)[: len(tokens)]
    result = run("export", imported, tmp_path / "out", "--license", "mit")
    assert result.code == 0, result.err
    assert written(tmp_path / "out", prompt, 20)[: len(tokens)] == tokens
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("The fox").input_ids == prompt
    card = (tmp_path / "out" / "README.md").read_text()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    told = reader.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert tuple(told) == model.conversation_ids(["Hi"])
    assert "license: mit" in card and "Parity" in card
    assert run("import", tmp_path / "out", "--out", tmp_path / "again").code == 0
    assert greedy(run, tmp_path / "again", "--prompt", "The fox") == tokens


def test_an_imported_model_is_a_run(run: Run, imported: Path, text: Path) -> None:
    result = run("selftest", imported)
    assert result.code == 0, result.out + result.err
    result = run("evaluate", imported, "--data", text, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["loss"] > 0
    run("evaluate", imported).fails("was imported", "--data FILE")
    (sampled,) = textwright.load(imported).generate("The", n=1, seed=1, max_new_tokens=30)
    assert max(sampled.tokens) < textwright.load(imported).tokenizer.size  # spare ids are never written


def test_a_conversation(run: Run, imported: Path, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*lines: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    asked = ("chat", imported, "--seed", "1", "--max-new-tokens", "5", "--system", "Be kind.")
    said("Hi", "The quick brown fox " * 9)  # longer than the window: what was said first is forgotten
    first = run(*asked)
    assert first.code == 0, first.err
    assert first.out
    said("Hi", "The quick brown fox " * 9)
    assert run(*asked).out == first.out
    model = textwright.load(imported)
    told = model.tokenizer.decode(model.conversation_ids(["Hi", "Hello", "Bye"], "Be kind."))
    assert told == "system: Be kind.\nuser: Hi\nassistant: Hello\nuser: Bye\n"
    long = model.conversation_ids(["Hi" * 90, "Hello", "Bye"], None, 5)
    assert model.tokenizer.decode(long) == "user: Bye\n"
    for strategy in ("beam", "contrastive"):  # which cannot forget: the line is taken back, the talk goes on
        said("Hi", "The quick brown fox " * 30, "Bye")
        talk = run(*asked[:2], "--max-new-tokens", "5", "--strategy", strategy)
        assert talk.code == 0, talk.err
        assert "It was not said" in talk.err
        assert len(talk.out.splitlines()) >= 2
    said("refuse")
    run("chat", imported).fails("refuses this conversation", "I will not")
    said("Hi")
    run("chat", trained["lstm"]).fails("was trained on a text")


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_trained_run_leaves(run: Run, trained: dict[str, Path], family: str, tmp_path: Path) -> None:
    result = run("export", trained[family], tmp_path / "out")
    if family == "lstm":
        result.fails("for which transformers has no class")
        assert not (tmp_path / "out").exists()
        return
    assert result.code == 0, result.err
    model = textwright.load(trained[family])
    ids = list(model.prompt_ids("The fox"))
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reader("The fox").input_ids == ids
    tokens = greedy(run, trained[family], "--prompt", "The fox", "--max-new-tokens", "9")
    text = written(tmp_path / "out", ids, 9)
    assert text[: len(tokens)] == tokens
    assert reader.decode(text, skip_special_tokens=True) == model.tokenizer.decode(text)


def test_a_copy_that_differs_is_not_written(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = huggingface.foreign

    def wrong(model: Any) -> Any:
        config, tensors = write(model)
        return config, {name: tensor.flip(0).contiguous() for name, tensor in tensors.items()}

    monkeypatch.setattr(huggingface, "foreign", wrong)
    with pytest.raises(CheckpointError, match="the exported model differs"):
        export_huggingface(trained["transformer"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_moved(run: Run, theirs: Path, trained: dict[str, Path], text: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    run("import", theirs, "--out", taken).fails("is not empty", "--out")
    run("export", trained["transformer"], taken).fails("exists")
    run("export", tmp_path / "nowhere", tmp_path / "out").fails("does not exist")
    run("import", text, "--out", tmp_path / "out").fails("is a file")
    run("import", tmp_path / "nowhere", "--out", tmp_path / "out").fails("does not exist")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(run: Run, theirs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(theirs, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    weights = {
        name: tensor[:200] if len(tensor) == config["vocab_size"] else tensor for name, tensor in weights.items()
    }
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    run("import", folder, "--out", tmp_path / "out").fails("belong to different models")
    (folder / "tokenizer.json").unlink()
    run("import", folder, "--out", tmp_path / "out").fails("holds no tokenizer.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs the folder models beside the one that TEXTWRIGHT_DATA names")
@pytest.mark.parametrize("way", ["native", "transformers"])
def test_a_known_story(run: Run, way: str, tmp_path: Path) -> None:
    """The same greedy 400 characters three times: here, exported and opened by transformers, and by transformers."""
    assert run("import", STORIES, "--as", way, "--out", tmp_path / "run").code == 0
    result = run("generate", tmp_path / "run", "--strategy", "greedy", "--max-new-tokens", "200")
    story = result.out.strip()
    assert story.startswith(STORY)
    assert len(story) > 400
    assert run("export", tmp_path / "run", tmp_path / "out").code == 0
    for folder in (STORIES, tmp_path / "out"):
        reader = transformers.AutoTokenizer.from_pretrained(folder)
        text = reader.decode(written(folder, [1], 200), skip_special_tokens=True)
        assert text.strip()[:400] == story[:400]


@pytest.fixture(scope="module")
def neox(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kind that our own Transformer cannot be: half of each head is turned."""
    folder = tmp_path_factory.mktemp("neox")
    for file in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(theirs / file, folder / file)
    known = json.loads((theirs / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = {name: known[name] for name in (*names, "bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**shape, max_position_embeddings=64, rotary_pct=0.5, attention_dropout=0.1)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def test_any_other_kind_runs_as_the_library_runs_it(run: Run, neox: Path, text: Path, tmp_path: Path) -> None:
    result = run("import", neox, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    tokens = greedy(run, tmp_path / "run", "--prompt", "The fox")
    assert tokens == written(neox, list(textwright.load(tmp_path / "run").prompt_ids("The fox")), 20)[: len(tokens)]
    result = run("selftest", tmp_path / "run")
    assert result.code == 0, result.out + result.err
    run("import", neox, "--as", "native", "--out", tmp_path / "other").fails("is a gpt_neox: expected one of")
    for method in ("full", "lora"):
        out = tmp_path / method
        asked = ("--method", method, "--steps", "6", "--set", "training.evaluations=2", "--out", out)
        result = run("finetune", tmp_path / "run", text, *asked)
        assert result.code == 0, result.err
        assert run("export", out, tmp_path / f"{method}-out").code == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lora-out").eval()
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(ids).logits, textwright.load(tmp_path / "lora").model(ids).logits)


def copied(folder: Path, into: Path, file: str, **changes: Any) -> Path:
    """The folder with another file of settings."""
    shutil.copytree(folder, into)
    said = json.loads((into / file).read_text()) if (into / file).exists() else {}
    (into / file).write_text(json.dumps({**said, **changes}))
    return into


def test_a_kind_of_ours_with_something_we_lack_runs_as_the_library_runs_it(
    run: Run, theirs: Path, tmp_path: Path
) -> None:
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    folder = copied(theirs, tmp_path / "stretched", "config.json", rope_parameters=stretched)
    run("import", folder, "--as", "native", "--out", tmp_path / "run").fails("rope_type linear")
    run("import", folder, "--precision", "bfloat16", "--out", tmp_path / "run").fails("leave out --precision")
    result = run("import", folder, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    tokens = greedy(run, tmp_path / "run", "--prompt", "The fox")
    assert tokens == written(folder, list(textwright.load(tmp_path / "run").prompt_ids("The fox")), 20)[: len(tokens)]


def variant(neox: Path, folder: Path, kind: str, **more: Any) -> Path:
    """A model of another kind, of the same sizes and with the same tokenizer."""
    folder.mkdir()
    shutil.copyfile(neox / "tokenizer.json", folder / "tokenizer.json")
    known = json.loads((neox / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), known["eos_token_id"])
    config = transformers.AutoConfig.for_model(kind, **{name: known[name] for name in names}, **ids, **more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def test_a_factor_in_front_of_the_head_is_kept(run: Run, neox: Path, text: Path, tmp_path: Path) -> None:
    """Granite divides its logits; without that every probability would be another one."""
    folder = variant(neox, tmp_path / "granite", "granite", logits_scaling=8.0)
    result = run("import", folder, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    ids = torch.tensor([[1, 2, 3, 4]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(textwright.load(tmp_path / "run").model(ids).logits, theirs(ids).logits)
    asked = ("--steps", "4", "--set", "training.evaluations=2", "--out", tmp_path / "tuned")
    result = run("finetune", tmp_path / "run", text, *asked)
    assert result.code == 0, result.err
    result = run("export", tmp_path / "tuned", tmp_path / "out")
    assert result.code == 0, result.err
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(textwright.load(tmp_path / "tuned").model(ids).logits, theirs(ids).logits)


def test_more_than_a_factor_in_front_of_the_logits_is_refused(run: Run, neox: Path, tmp_path: Path) -> None:
    """Gemma 2 bends its logits."""
    folder = variant(neox, tmp_path / "gemma", "gemma2", final_logit_softcapping=2.0, num_key_value_heads=4, head_dim=6)
    run("import", folder, "--out", tmp_path / "run").fails("more than a linear head")
    assert not (tmp_path / "run").exists()


def test_texts_begin_behind_their_first_token(run: Run, theirs: Path, tmp_path: Path) -> None:
    """Where that is another one than ends them, as in Llama 2: generation, measuring and training alike."""
    folder = tmp_path / "llama2"
    shutil.copytree(theirs, folder)
    library = Library.from_file(str(theirs / "tokenizer.json"))
    begin, end = 260, library.token_to_id("<|end|>")
    library.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    library.save(str(folder / "tokenizer.json"))
    for file in ("config.json", "generation_config.json"):
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**said, "bos_token_id": begin, "eos_token_id": end}))
    assert run("import", folder, "--out", tmp_path / "run").code == 0
    model = textwright.load(tmp_path / "run")
    assert (model.generation.start, model.generation.end) == ((begin,), end)
    lines = ["The fox.", "A friend, a foe."]
    data = tmp_path / "lines.jsonl"
    data.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    total, count = 0.0, 0
    for line in lines:
        ids = [begin, *model.tokenizer.encode(line), end]
        with torch.no_grad():
            rows = model.model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        total -= float(rows.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    result = run("evaluate", tmp_path / "run", "--data", data, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["loss"] == pytest.approx(total / count, rel=1e-4)
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"text": f"{n} {lines[n % 2]}"}) + "\n" for n in range(90)))
    asked = ("--steps", "1", "--set", "training.evaluations=1", "--out", tmp_path / "tuned")
    result = run("finetune", tmp_path / "run", many, *asked)
    assert result.code == 0, result.err
    config = textwright.load(tmp_path / "tuned").config
    job = open_job(config, tmp_path / "tuned")
    batch, _ = next(job.batches(model.model, World()).batches(Cursor()))
    assert (batch.tokens[:, 0] == begin).all()


def test_documents_of_another_end(run: Run, theirs: Path, tmp_path: Path) -> None:
    """A model whose replies end with one token learns texts that end with another: it stops at both."""
    library = Library.from_file(str(theirs / "tokenizer.json"))
    between, reply = library.token_to_id("<|end|>"), 261
    folder = copied(theirs, tmp_path / "spoken", "generation_config.json", eos_token_id=reply)
    assert run("import", folder, "--out", tmp_path / "run").code == 0
    assert textwright.load(tmp_path / "run").generation.end == reply
    data = tmp_path / "many.jsonl"
    data.write_text("".join(json.dumps({"text": f"{n} foxes"}) + "\n" for n in range(90)))
    asked = ("--steps", "1", "--set", "training.evaluations=1", "--out", tmp_path / "tuned")
    result = run("finetune", tmp_path / "run", data, *asked)
    assert result.code == 0, result.err
    generation = textwright.load(tmp_path / "tuned").generation
    assert (generation.end, generation.also_end) == (reply, (between,))


def test_a_model_that_no_adapter_is_made_for(run: Run, neox: Path, text: Path, tmp_path: Path) -> None:
    """GPT-2 as the library runs it has layers of a kind of its own."""
    folder = variant(neox, tmp_path / "gpt2", "gpt2", scale_attn_by_inverse_layer_idx=True, n_positions=64)
    assert run("import", folder, "--out", tmp_path / "run").code == 0
    run("finetune", tmp_path / "run", text, "--method", "lora", "--steps", "1").fails("no layers that an adapter")


def test_the_folder_one_stands_in_has_a_name(
    run: Run, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(theirs, tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert run("import", ".").code == 0
    assert (tmp_path / "mine" / "runs" / "mine" / "config.json").exists()


def test_how_it_draws_goes_along(run: Run, theirs: Path, tmp_path: Path) -> None:
    drawn = {"do_sample": True, "repetition_penalty": 1.3, "typical_p": 0.9, "top_k": 0}
    folder = copied(theirs, tmp_path / "drawn", "generation_config.json", **drawn)
    assert run("import", folder, "--out", tmp_path / "run").code == 0
    result = run("export", tmp_path / "run", tmp_path / "out")
    assert result.code == 0, result.err
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: said[name] for name in drawn} == drawn
    folder = copied(theirs, tmp_path / "usual", "generation_config.json", do_sample=True, temperature=0.6)
    assert run("import", folder, "--out", tmp_path / "other").code == 0
    sampling = textwright.load(tmp_path / "other").generation.sampling
    assert (sampling.temperature, sampling.top_k) == (0.6, 50)  # what transformers draws from, unless told otherwise


def test_several_tokens_that_end_a_text(run: Run, theirs: Path, tmp_path: Path) -> None:
    """As transformers stops at any of them, and they leave with the model."""
    plain = written(theirs, [5, 6, 7], 12)
    last = next(token for token in plain[3:] if token not in plain[:3])
    ends = [json.loads((theirs / "config.json").read_text())["eos_token_id"], last]
    folder = copied(theirs, tmp_path / "several", "generation_config.json", eos_token_id=ends)
    assert run("import", folder, "--out", tmp_path / "run").code == 0
    model = textwright.load(tmp_path / "run")
    (text,) = model.generate([5, 6, 7], strategy="greedy", max_new_tokens=12)
    assert list(text.tokens) == plain[: plain.index(last) + 1] and text.finish_reason == "stop"
    result = run("export", tmp_path / "run", tmp_path / "out")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == ends
    assert model.generate([5, 6, 7], choices=["the fox"], max_new_tokens=30)[0].text == "the fox"


def test_kinds_with_a_recurrent_state(run: Run, neox: Path, text: Path, tmp_path: Path) -> None:
    """Mamba is taken and writes; RWKV, whose steps mix rows in that library, is refused by name."""
    known = json.loads((neox / "config.json").read_text())
    shape = {name: known[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    for kind, config in {
        "mamba": transformers.MambaConfig(**shape, state_size=4),
        "rwkv": transformers.RwkvConfig(**shape, attention_hidden_size=24),
    }.items():
        (tmp_path / kind).mkdir()
        shutil.copyfile(neox / "tokenizer.json", tmp_path / kind / "tokenizer.json")
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
    run("import", tmp_path / "rwkv", "--out", tmp_path / "no").fails("Rwkv", "mixes the rows")
    assert not (tmp_path / "no").exists()
    result = run("import", tmp_path / "mamba", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    tokens = greedy(run, tmp_path / "run", "--prompt", "The fox")
    prompt = list(textwright.load(tmp_path / "run").prompt_ids("The fox"))
    assert tokens == written(tmp_path / "mamba", prompt, 20)[: len(tokens)]
    run("finetune", tmp_path / "run", text, "--steps", "2").fails("is not trained")


def test_what_the_library_cannot_open(run: Run, neox: Path, tmp_path: Path) -> None:
    def broken(**changes: Any) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(neox, folder)
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **changes}))
        return folder

    def refused(folder: Path, *told: str) -> None:
        run("import", folder, "--out", tmp_path / "out").fails(*told)
        assert not (tmp_path / "out").exists()

    refused(broken(model_type="no_such_kind"), "is a no_such_kind", "no language model")
    refused(broken(model_type="vit"), "is a vit")
    several = broken()
    (several / "config.json").write_text(json.dumps({"model_type": "gemma3"}))  # of several parts
    refused(several, "is a gemma3", "no language model")
    refused(broken(hidden_size="24"), "no language model")
    refused(broken(num_hidden_layers=3), "is missing")
    refused(broken(num_hidden_layers=1), "has no place")
    refused(broken(hidden_size=28), "another shape")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_an_adapter_goes_out_and_in(run: Run, imported: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuned, out = tmp_path / "tuned", tmp_path / "adapter"
    rate = ("--set", "training.optimizer.learning_rate=3e-2", "--set", "training.evaluations=2")
    result = run("finetune", imported, text, "--method", "dora", "--steps", "9", *rate, "--out", tuned)
    assert result.code == 0, result.err
    result = run("export", tuned, out, "--to", "peft")
    assert result.code == 0, result.err
    assert {file.name for file in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    result = run("import", out, "--base", imported, "--out", tmp_path / "again")
    assert result.code == 0, result.err
    assert run("export", tmp_path / "again", tmp_path / "third", "--to", "peft").code == 0
    assert base_named(out) == base_named(tmp_path / "third") == textwright.load(imported).config.origin
    ids = torch.tensor([[5, 6, 7]])
    mine, again, plain = (textwright.load(run).model(ids).logits for run in (tuned, tmp_path / "again", imported))
    torch.testing.assert_close(again, mine, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mine, plain, atol=1e-2)
    prompted = ("--method", "prompt", "--set", "prompt.tokens=2", "--steps", "2", "--out", tmp_path / "prompted")
    assert run("finetune", imported, text, *prompted).code == 0
    run("import", out, "--base", tmp_path / "prompted", "--out", tmp_path / "no").fails("is a learned prompt")
    run("export", imported, tmp_path / "none", "--to", "peft").fails("has no adapter")
    run("export", tuned, tmp_path / "none", "--to", "peft", "--license", "mit").fails("leave out --license")
    run("import", theirs_less(out), "--base", imported, "--out", tmp_path / "no").fails("holds no whole adapter")
    assert not (tmp_path / "no").exists()


def base_named(adapter: Path) -> str:
    name: str = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    return name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_on_four_bits_goes_out_for_the_run_it_was_trained_on(
    run: Run, imported: Path, text: Path, tmp_path: Path
) -> None:
    """Compared on the rounded weights; and its base is the tuned run, not what that came from."""
    pytest.importorskip("peft")
    quick = ("--steps", "3", "--set", "training.evaluations=2")
    assert run("finetune", imported, text, *quick, "--out", tmp_path / "tuned").code == 0
    result = run("finetune", tmp_path / "tuned", text, "--method", "qlora", *quick, "--out", tmp_path / "four")
    assert result.code == 0, result.err
    result = run("export", tmp_path / "four", tmp_path / "out", "--to", "peft")
    assert result.code == 0, result.err
    assert base_named(tmp_path / "out") == str(tmp_path / "tuned")


def theirs_less(adapter: Path) -> Path:
    (adapter / "adapter_model.safetensors").unlink()
    return adapter


def test_a_recurrent_model_steps_elsewhere(run: Run, trained: dict[str, Path], tmp_path: Path) -> None:
    """The program on the page that is written beside the model writes the same greedy text."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    result = run("export", trained["lstm"], out, "--to", "onnx")
    assert result.code == 0, result.err
    program = (out / "README.md").read_text().split("```python")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", program, "The fox", "30"], cwd=out, capture_output=True, text=True, check=True
    )
    words = ("--strategy", "greedy", "--max-new-tokens", "30", "--json", "--prompt", "The fox")
    tokens = json.loads(run("generate", trained["lstm"], *words).out)["outputs"][0]["tokens"]
    assert json.loads(done.stdout.splitlines()[0])[: len(tokens)] == tokens
    assert "<|end|>" not in done.stdout
    run("export", trained["transformer"], tmp_path / "no", "--to", "onnx").fails("is a transformer", "--to huggingface")
    run("export", trained["lstm"], tmp_path / "no").fails("is a lstm", "--to onnx")
    run("export", trained["lstm"], tmp_path / "no", "--to", "gguf").fails("is a lstm")
    run("export", trained["lstm"], tmp_path / "no", "--packing", "f16").fails("--to gguf")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("has", [True, False])
def test_half_the_size_has_a_price_where_there_is_no_bfloat16(
    run: Run, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr("textwright.training.hardware.has_bfloat16", lambda device: has)
    for precision in ("float32", "bfloat16"):
        result = run("import", theirs, "--precision", precision, "--out", tmp_path / precision)
        assert result.code == 0, result.err
        assert ("writing will be slow" in result.err + result.out) is (precision == "bfloat16" and not has)


def test_weights_of_half_the_size(run: Run, theirs: Path, imported: Path, text: Path, tmp_path: Path) -> None:
    """bfloat16 on the disk and in memory; what is learned from there, and what leaves, is float32."""
    small = tmp_path / "small"
    result = run("import", theirs, "--precision", "bfloat16", "--out", small)
    assert result.code == 0, result.err
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (small, imported)]
    assert sizes[0] < 0.6 * sizes[1]
    model = textwright.load(small).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for words in (
        ("generate", small, "--prompt", "The", "--max-new-tokens", "5"),
        ("evaluate", small, "--data", text, "--stride", "32"),
        ("selftest", small),
        ("finetune", small, text, "--steps", "2", "--method", "lora", "--out", tmp_path / "tuned"),
        ("export", small, tmp_path / "out"),
    ):
        result = run(*words)
        assert result.code == 0, (words, result.out, result.err)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for mine, other in zip(model.parameters(), imported_weights(again, model), strict=True):
        assert torch.equal(mine.float(), other)
    run("import", theirs, "--as", "transformers", "--precision", "bfloat16", "--out", tmp_path / "no").fails("float32")


def imported_weights(theirs: Any, model: Any) -> list[torch.Tensor]:
    """Their weights in the places and the order of ours."""
    table = formats.form_of(model.config).table(model.config)
    tensors = dict(theirs.state_dict())
    found = {part.ours: torch.cat([tensors[name] for name in part.theirs]) for part in table}
    return [found[name] for name, _ in model.named_parameters()]
