"""Files of SentencePiece read without it: the same ids as SentencePiece, and transformers' Marian tokenizer, give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textwright.api import finetune_pairs
from textwright.errors import CheckpointError
from textwright.exporting import export_huggingface
from textwright.importing import import_model
from textwright.interop.folder import find
from textwright.interop.sentencepiece_file import marian_tokenizers, read_sentencepiece
from textwright.opening import load_pairs
from textwright.text.pairs import PairSource
from textwright.text.tokenizers import Tokenizer
from textwright.wishes import FREE, constraint

sentencepiece = pytest.importorskip("sentencepiece")
SIDES = {
    "source": "Die Katze saß auf der Matte, und der Hund schlief. Zwölf Boxkämpfer jagen Viktor quer über den Deich.",
    "target": "The cat sat on the mat, and the dog slept. The quick brown fox jumps over the lazy dog; how wise!",
}
CODE = ">>eng<<"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marian")
    names = ["</s>", "<unk>"]
    for side, text in SIDES.items():
        (path / f"{side}.txt").write_text("\n".join(text.split(". ") * 20))
        sentencepiece.SentencePieceTrainer.train(
            input=str(path / f"{side}.txt"), model_prefix=str(path / side), vocab_size=70, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
        (path / f"{side}.model").rename(path / f"{side}.spm")
        model = sentencepiece.SentencePieceProcessor(str(path / f"{side}.spm"))
        names += [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    names = [*dict.fromkeys(names), CODE, "<pad>"]
    (path / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(names)}))
    return path


@pytest.fixture(scope="module")
def read(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    return marian_tokenizers(folder)


@pytest.fixture(scope="module")
def processors(folder: Path) -> list[sentencepiece.SentencePieceProcessor]:
    return [sentencepiece.SentencePieceProcessor(str(folder / f"{side}.spm")) for side in SIDES]


def test_a_choice_is_spelled_as_texts_are(read: tuple[Tokenizer, Tokenizer]) -> None:
    """Their first piece brings a space that is not shown: it may stand where a text begins, and nowhere else."""
    target = read[1]
    ids = target.encode("The cat")
    assert target.pieces[ids[0]].startswith(b" ")
    for wish in ({"choices": ["The cat"]}, {"regex": "The (cat|dog)"}):
        for whole in (True, False):
            rule = constraint(target, target.end, frozenset(), whole=whole, **{**FREE, **wish})
            assert rule is not None
            state, fits = rule.start, True
            for place, token in enumerate(ids):
                fits = fits and bool(rule.within(state, 20 - place)[token])
                state = rule.move(state, token) if fits else state
            assert (fits and rule.complete(state)) == whole


def test_a_name_on_the_hub_brings_them(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        for file in folder.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(file, tmp_path / file.name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert marian_tokenizers(find("owner/name"))[0].encode("Katze")


LETTERS = st.text("aeinrstdß Katze.,ü☃漢　ﬁ\tZ½", max_size=40)  # some unknown, some normalised to others


@given(text=LETTERS)
def test_sources_are_read_as_there(
    folder: Path, read: tuple[Tokenizer, Tokenizer], processors: list[sentencepiece.SentencePieceProcessor], text: str
) -> None:
    ids = json.loads((folder / "vocab.json").read_text())
    want = [ids.get(piece, ids["<unk>"]) for piece in processors[0].encode(text, out_type=str)]
    assert read[0].encode(text) == want


@given(text=st.sampled_from(SIDES["target"].split()).flatmap(lambda word: st.just(f"the {word} sat  on {word} ")))
def test_targets_too_and_back(
    folder: Path, read: tuple[Tokenizer, Tokenizer], processors: list[sentencepiece.SentencePieceProcessor], text: str
) -> None:
    ids = json.loads((folder / "vocab.json").read_text())
    pieces = processors[1].encode(text, out_type=str)
    assert read[1].encode(text) == [ids[piece] for piece in pieces]
    assert read[1].decode(read[1].encode(text)) == processors[1].decode_pieces(pieces) == " ".join(text.split())


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
def test_as_transformers_has_it(folder: Path, read: tuple[Tokenizer, Tokenizer]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="de"
    )
    for text in (*SIDES.values(), f"{CODE} Die Katze", "Ünbekänntes ☃ Zeug"):
        assert [*read[0].encode(text), read[0].end] == theirs(text).input_ids
    ids = read[1].encode(SIDES["target"])
    assert read[1].decode(ids) == theirs.decode(ids)
    assert read[0].end == read[1].end == theirs.eos_token_id
    assert read[0].unknown == theirs.unk_token_id


def test_control_tokens_in_a_text_are_text(read: tuple[Tokenizer, Tokenizer]) -> None:
    for text in ("Hund <pad> </s>", "</s>", "<unk>", "<pad></s><pad>"):
        for tokenizer in read:
            controls = {tokenizer.entries[name] for name in ("</s>", "<pad>")}
            assert controls.isdisjoint(tokenizer.encode(text)) and tokenizer.encode(text)


def test_damaged_files_are_told(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "source.spm").read_bytes()
    for name, data in {"short": whole[: len(whole) // 2], "text": b"no model at all", "empty": b""}.items():
        path = tmp_path / f"{name}.spm"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_sentencepiece(path)
    with pytest.raises(CheckpointError, match=r"vocab\.json cannot be read"):
        marian_tokenizers(tmp_path)
    (tmp_path / "vocab.json").write_text('["a"]')
    with pytest.raises(CheckpointError, match="no vocabulary of Marian"):
        marian_tokenizers(tmp_path)
    (tmp_path / "vocab.json").write_text('{"<unk>": 0}')
    with pytest.raises(CheckpointError, match=r"source\.spm cannot be read"):
        marian_tokenizers(tmp_path)
    other = tmp_path / "bpe"
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "source.txt"), model_prefix=str(other), vocab_size=60, model_type="bpe", minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="no unigram"):
        read_sentencepiece(other.with_suffix(".model"))


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning")
def test_a_model_with_such_files(folder: Path, tmp_path: Path) -> None:
    """It comes in, writes what it writes there, learns pairs, and leaves with a tokenizer a side."""
    transformers = pytest.importorskip("transformers")
    ids = json.loads((folder / "vocab.json").read_text())
    sizes = {"d_model": 24, "encoder_ffn_dim": 36, "decoder_ffn_dim": 36, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64}
    special = {"pad_token_id": ids["<pad>"], "eos_token_id": 0, "decoder_start_token_id": ids["<pad>"]}
    config = transformers.MarianConfig(vocab_size=len(ids), forced_eos_token_id=None, **sizes, **heads, **special)
    torch.manual_seed(0)
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)  # not to sinusoids
    for name in ("source.spm", "target.spm", "vocab.json"):
        shutil.copyfile(folder / name, tmp_path / name)
    theirs.save_pretrained(tmp_path)
    import_model(str(tmp_path), tmp_path / "run", task="translate")
    ours = load_pairs(tmp_path / "run")
    reader = transformers.MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="de"
    )
    for text in ("Die Katze saß.", f"{CODE} Der Hund schlief"):
        given = reader([text], return_tensors="pt")
        bad = [[ids["<pad>"]]]
        want = theirs.generate(**given, num_beams=1, do_sample=False, max_new_tokens=12, bad_words_ids=bad)[0, 1:]
        (mine,) = ours.write([text], strategy="greedy", max_new_tokens=12)[0]
        assert list(mine.tokens) == want.tolist()
        assert mine.text == reader.decode(want, skip_special_tokens=True)
    for wish in ({"choices": ["The cat"]}, {"regex": "The (cat|dog)"}):
        ((text,),) = ours.write(["Die Katze saß."], **wish)
        assert text.text in ("The cat", "The dog")
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"Die Katze saß {number}\tThe cat sat {number}\n" for number in range(60)))
    tuned = finetune_pairs(tmp_path / "run", PairSource(path=str(table)), steps=2, out=tmp_path / "tuned")
    assert not tuned.source_tokenizer.same(tuned.tokenizer)
    export_huggingface(tmp_path / "tuned", tmp_path / "out")
    assert (tmp_path / "out" / "target" / "tokenizer.json").exists()
