"""Examples: what rows mean, which tokens carry loss, and batches of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from textwright.errors import ConfigError, DataError
from textwright.example_job import answer_loss
from textwright.models import LSTMConfig, TransformerConfig
from textwright.text.batching import IGNORE, Cursor
from textwright.text.conversations import ChatTemplate
from textwright.text.examples import (
    PREFERENCES,
    Example,
    Speller,
    kind_of,
    read_examples,
    read_preferences,
    template_for,
)
from textwright.text.marked import (
    Marked,
    MarkedBuckets,
    held_back,
    in_memory,
    open_examples,
    open_marked,
    prepare_examples,
)
from textwright.text.tokenizers import ALPHABET, Tokenizer, TokenizerConfig, train

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    library = Library(models.BPE({**ALPHABET, "<|endoftext|>": 256}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    controls = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    library.add_special_tokens([AddedToken(name, special=True) for name in controls])
    return Tokenizer(library)


@pytest.fixture(scope="module")
def speller(tokenizer: Tokenizer) -> Speller:
    return Speller(ChatTemplate(CHATML, {}), tokenizer, (), tokenizer.entries["<|im_end|>"])


def said(*turns: str) -> Example:
    roles = ("user", "assistant")
    return Example(tuple({"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)), "here")


def file(folder: Path, *rows: Any, name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
        ({"question": "a", "answer": "b", "more": 1}, [("user", "a"), ("assistant", "b")]),
        ({"instruction": "a", "input": "x", "output": "b"}, [("user", "a\n\nx"), ("assistant", "b")]),
        ({"instruction": "a", "input": "", "output": "b"}, [("user", "a"), ("assistant", "b")]),
        (
            {"instruction": "a", "response": "b", "system": "s"},
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        ({"turns": ["a", "b", "c"]}, [("user", "a"), ("assistant", "b"), ("user", "c")]),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}]},
            [("system", "s"), ("assistant", "b")],
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            [("user", "a"), ("assistant", "b")],
        ),
    ],
)
def test_what_rows_mean(row: Any, want: list[tuple[str, str]], tmp_path: Path) -> None:
    path = file(tmp_path, row)
    (example,) = read_examples(path)
    assert [(message["role"], message["content"]) for message in example.messages] == want
    assert example.bare == (row.keys() == {"prompt", "completion"})
    assert kind_of(path) == "answers"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "a", "completion": " "}, "completion is empty"),
        ({"question": "", "answer": "a"}, "question is empty"),
        ({"messages": []}, "must be a list"),
        ({"messages": "hello"}, "must be a list"),
        ({"messages": [{"role": "user", "content": "a"}]}, "nobody answers"),
        ({"messages": [{"role": "user"}, "b"]}, "message 1 must be like"),
        ({"a": "x", "b": "y", "c": "z"}, "which two fields"),
        ({"instruction": "a", "reply": "b"}, "no field 'output'"),
    ],
)
def test_rows_that_are_no_examples(row: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told) as caught:
        list(read_examples(file(tmp_path, row)))
    assert "rows.jsonl:1" in str(caught.value)


def test_a_text_in_one_column_is_no_example(tmp_path: Path) -> None:
    assert kind_of(file(tmp_path, {"text": "a"})) == "text"
    (tmp_path / "a.txt").write_text("prompt completion")
    assert kind_of(str(tmp_path / "a.txt")) == "text"
    with pytest.raises(DataError, match="question"):
        list(read_examples(file(tmp_path, {"prompt": "a", "completion": "b"}), ("question", "answer")))
    (example,) = read_examples(file(tmp_path, {"q": "a", "a": "b"}), ("q", "a"))
    assert example.messages[1]["content"] == "b"


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "b", "c", True)),
        ({"question": "a", "chosen": "b", "rejected": "c"}, ("a", "b", "c", False)),
        ({"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"}, ("a\n\nx", "b", "c", False)),
        (
            {name: [{"role": "user", "content": "a"}, {"role": "assistant", "content": name}] for name in PREFERENCES},
            ("a", "chosen", "rejected", False),
        ),
        (
            {"prompt": [{"role": "user", "content": "a"}]}
            | {name: [{"role": "assistant", "content": name}] for name in PREFERENCES},
            ("a", "chosen", "rejected", False),
        ),
    ],
)
def test_what_rows_of_preferences_mean(row: Any, want: tuple[str, str, str, bool], tmp_path: Path) -> None:
    path = file(tmp_path, row)
    assert kind_of(path) == "preferences"
    ((chosen, rejected),) = read_preferences(path)
    said = [[message["content"] for message in one.messages] for one in (chosen, rejected)]
    assert said == [[want[0], want[1]], [want[0], want[2]]]
    assert chosen.bare == rejected.bare == want[3]
    with pytest.raises(DataError, match="no field 'rejected'"):
        list(read_preferences(file(tmp_path, {"prompt": "a", "chosen": "b"})))


words = st.text(st.sampled_from("ab \n<|im_end|>é文"), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(turns=st.lists(words, min_size=2, max_size=6))
def test_only_replies_carry_loss(turns: list[str], speller: Speller, tokenizer: Tokenizer) -> None:
    """Learned are each reply and its end; a model reads before a reply what it reads there when it writes."""
    assert speller.template is not None
    turns = turns[: len(turns) // 2 * 2]
    example = said(*turns)
    ids, learned = speller.spell(example)
    assert len(ids) == len(learned) and ids[-1] == tokenizer.end and not learned[-1]
    want = [[*tokenizer.encode(turn), speller.end] for turn in turns[1::2]]
    got, before = [], []
    for place, (id, loss) in enumerate(zip(ids, learned, strict=True)):
        if loss and not (place and learned[place - 1]):
            got.append([])
            before.append(ids[:place])
        if loss:
            got[-1].append(id)
    assert got == want
    for number, prompt in enumerate(before):
        assert prompt == speller.template.ids(example.messages[: 2 * number + 1], tokenizer)


def test_templates_that_cannot_be_learned_from(tokenizer: Tokenizer, speller: Speller) -> None:
    endless = Speller(ChatTemplate("{{ messages[-1].content }}", {}), tokenizer, (), speller.end)
    with pytest.raises(DataError, match="here: the model's chat template changes earlier words"):
        endless.spell(said("a", "b", "c", "d"))
    endless = Speller(
        ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}), tokenizer, (), speller.end
    )
    with pytest.raises(DataError, match="never learn to stop"):
        endless.spell(said("a", "b"))
    refusing = Speller(ChatTemplate("{{ raise_exception('no') }}", {}), tokenizer, (), speller.end)
    with pytest.raises(DataError, match=r"here: .*refuses"):
        refusing.spell(said("a", "b"))


def test_a_text_in_two_parts_needs_no_template(tokenizer: Tokenizer) -> None:
    plain = Speller(None, tokenizer, (256,), 256)
    ids, learned = plain.spell(said("ab", "c"))
    assert ids == [256, *tokenizer.encode("abc"), 256] and learned == [False, False, False, True, True]


@pytest.fixture(scope="module")
def spaced() -> Tokenizer:
    """As Llama 2's: a space in front of every text that is encoded, and before the first letter of each word."""
    letters = ["<unk>", "</s>", *"▁abcdefghijklmnopqrstuvwxyzOAE:\n"]
    library = Library(models.BPE({name: id for id, name in enumerate(letters)}, [], unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(library)


def test_no_space_is_put_between_a_prompt_and_its_answer(spaced: Tokenizer) -> None:
    example = Example(({"role": "user", "content": "Once upon"}, {"role": "assistant", "content": " a time"}), "x")
    spelled = Speller(None, spaced, (), spaced.end).spell(example)
    assert spelled.ids == [*spaced.encode("Once upon a time"), spaced.end]
    assert spelled.learned == [False] * len(spaced.encode("Once upon")) + [True] * 8
    turns = [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(("a", "b", "c", "d"))]
    template = ChatTemplate("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}", {})
    spans = template.spans(turns, spaced)
    assert [id for ids, _ in spans for id in ids] == template.ids(turns, spaced, reply=False)
    assert [spaced.decode(ids) for ids, reply in spans if reply] == ["a:b\n", "a:d\n"]


def test_rows_after_a_bare_one_are_bare(spaced: Tokenizer) -> None:
    three = tuple({"role": role, "content": "a"} for role in ("system", "user", "assistant"))
    with pytest.raises(DataError, match=r"file:3: expected a prompt and a completion .* got 3"):
        Speller(None, spaced, (), spaced.end).spell(Example(three, "file:3"))


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_template_for_models_that_have_none(kind: str) -> None:
    own = train(TokenizerConfig(kind=kind), lambda: iter(["hello there, who are you?\n"] * 5))
    plain = Speller(ChatTemplate(template_for(own), {}), own, (), own.end)
    ids, learned = plain.spell(said("hi", "yes", "hi", "no"))
    assert [id for id, loss in zip(ids, learned, strict=True) if loss] == [
        *own.encode("yes"), own.end, *own.encode("no"), own.end,
    ]  # fmt: skip
    text = own.decode([id for id in ids if id != own.end])
    assert text == "### user:\nhi\n\n### assistant:\nyes\n\n### user:\nhi\n\n### assistant:\nno\n\n"


def test_a_word_tokenizer_ends_replies_with_nothing() -> None:
    own = train(TokenizerConfig(kind="word"), lambda: iter(["hello there\n"] * 5))
    with pytest.raises(ConfigError, match="no token that ends a reply"):
        template_for(own)


# Batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marked(speller: Speller) -> Marked:
    examples = [said("q" * (n % 7 + 1), "a" * (n * 5 % 11 + 1)) for n in range(40)]
    return in_memory(examples, speller, None)[0]


def items(marked: Marked) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every example as what is read and what is to be said, by plain loops."""
    found, start = [], 0
    for end in marked.corpus.ends.tolist():
        ids, marks = marked.corpus.tokens[start:end].tolist(), marked.marks[start:end].tolist()
        targets = tuple(id if mark else IGNORE for id, mark in zip(ids[1:], marks[1:], strict=True))
        found.append((tuple(ids[:-1]), targets))
        start = end
    return found


def test_every_example_once_an_epoch_and_alone_in_its_row(marked: Marked) -> None:
    buckets = MarkedBuckets(marked, 120, 3)
    for epoch in range(2):
        rows, cursors = [], []
        for batch, cursor in buckets.batches(Cursor(epoch=epoch)):
            if cursor.epoch > epoch or len(rows) == 40:
                break
            cursors.append(cursor)
            lengths = [batch.tokens.shape[1]] * len(batch.tokens) if batch.lengths is None else batch.lengths.tolist()
            assert batch.tokens.numel() + len(batch.tokens) <= 120 or len(batch.tokens) == 1
            for tokens, targets, length in zip(batch.tokens, batch.targets, lengths, strict=True):
                rows.append((tuple(tokens[:length].tolist()), tuple(targets[:length].tolist())))
                assert (targets[length:] == IGNORE).all()
            assert batch.count == sum(target != IGNORE for _, row in rows[-len(lengths) :] for target in row)
        assert sorted(rows) == sorted(items(marked))
        again = next(buckets.batches(cursors[0]))[1]
        assert again == cursors[1]
    assert int(buckets.targets.sum()) == sum(target != IGNORE for _, row in items(marked) for target in row)


@pytest.mark.parametrize(
    "config",
    [
        LSTMConfig(vocab=259, width=16, layers=1),
        TransformerConfig(vocab=259, width=16, layers=1, heads=2, window=99),
    ],
)
def test_loss_of_answers_against_rows_read_alone(marked: Marked, config: Any) -> None:
    torch.manual_seed(0)
    model = config.build().eval()
    total, count = 0.0, 0
    for tokens, targets in items(marked):
        with torch.no_grad():
            logarithms = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        for place, target in enumerate(targets):
            if target != IGNORE:
                total, count = total - float(logarithms[place, target]), count + 1
    loss, tokens = answer_loss(model, marked, None, "float32")
    assert tokens == count
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert answer_loss(model, marked, 1, "float32")[1] == sum(target != IGNORE for target in items(marked)[0][1])


def test_on_disk_and_back(speller: Speller, tmp_path: Path) -> None:
    examples = [said("q" * (n + 1), f"a{n}") for n in range(60)]
    splits = held_back(lambda: ((example,) for example in examples), 0.2, 0.2)
    assert [len(list(split())) for split in splits] == [36, 12, 12]
    prepare_examples(splits, speller, 60, tmp_path / "data", lambda what, done: None)
    prepared, facts = open_examples(tmp_path / "data")
    fitting = [example for (example,) in splits[0]() if len(speller.spell(example).ids) <= 60]
    assert items(open_marked(tmp_path / "data" / "train")) == items(in_memory(fitting, speller, None)[0])
    lost = sum(len(speller.spell(example).ids) > 60 for example in examples)
    assert facts.long == lost > 0 and f"{lost} left out" in facts.left_out(60)
    assert prepared.train.facts.documents == facts.kept == len(fitting)
    with pytest.raises(DataError, match="none is left to train on"):
        prepare_examples(splits, speller, 5, tmp_path / "two", lambda what, done: None)
    with pytest.raises(DataError, match="too few"):
        held_back(lambda: ((example,) for example in examples[:5]), 0.2, 0.2)
    with pytest.raises(ConfigError, match="below 1 together"):
        held_back(lambda: ((example,) for example in examples), 0.5, 0.5)
    with pytest.raises(DataError, match="left out 60 of 60"):
        in_memory(examples, speller, 5)


def test_instructions_that_all_share_do_not_hold_them_together() -> None:
    """Split by questions: equal ones stay together, whoever the model is told to be."""
    system = {"role": "system", "content": "Be brief."}
    examples = [Example((system, *said(f"q{n // 2}", f"a{n}").messages), f"x:{n}") for n in range(80)]
    splits = [list(split()) for split in held_back(lambda: ((example,) for example in examples), 0.2, 0.2)]
    assert [len(split) for split in splits] == [48, 16, 16]
    asked = [{example.messages[1]["content"] for (example,) in split} for split in splits]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_shares_that_leave_one_example(speller: Speller, tmp_path: Path) -> None:
    examples = [said(f"q{n}", f"a{n}") for n in range(20)]
    splits = held_back(lambda: ((example,) for example in examples), 0.01, 0.97)
    with pytest.raises(DataError, match="none is left to validate on"):
        prepare_examples(splits, speller, 60, tmp_path / "data", lambda what, done: None)


def test_a_conversation_begins_as_texts_of_the_base_do(tokenizer: Tokenizer) -> None:
    """Where that is with a token that ends none."""
    begin = tokenizer.entries["<|im_start|>"]
    assert template_for(tokenizer, (begin,)) == "<|im_start|>" + template_for(tokenizer)
    assert template_for(tokenizer, (tokenizer.end,)) == template_for(tokenizer)
    spelled = Speller(ChatTemplate(template_for(tokenizer, (begin,)), {}), tokenizer, (), tokenizer.end).spell(
        said("Hi", "Yes")
    )
    assert spelled.ids[0] == begin and not spelled.learned[0]


def test_a_folder_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    assert kind_of(str(tmp_path)) == "text"


def test_templates_as_other_libraries_write_them() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}{{ '\n' }}{% endfor %}"
        "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}"
    )
    assert ChatTemplate(source, {}).text([{"role": "user", "content": "Hi"}]) == "user: Hi\n"
