"""Pairs: every format becomes one stream of sources and targets, in training and in use, and bad files are named."""

import csv
import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textwright.errors import ConfigError, DataError
from textwright.text import sources, squad
from textwright.text.pairs import (
    Pair,
    PairSource,
    compose_dialogue,
    compose_question,
    fingerprint_pairs,
    read_pairs,
    read_sources,
)
from textwright.text.parallel import parting

DATA = Path(os.environ.get("TEXTWRIGHT_DATA", Path(__file__).parents[2] / "../shared/data"))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"), max_size=12)
COUPLES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8).filter(
    lambda pairs: any(a.strip() and b.strip() for a, b in pairs)
)
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def saved(folder: Path, name: str, content: str | bytes | Sequence[Any]) -> str:
    """A file; a sequence is written as .jsonl; what ends in .gz is packed."""
    if not isinstance(content, str | bytes):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


def pairs(path: str, **options: Any) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in read_pairs(PairSource.parse({"path": path, **options}))]


def corpus(*parts: str) -> str:
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"needs {path} in the folder that TEXTWRIGHT_DATA names")
    return str(path)


# Parallel files


@many
@given(COUPLES, st.sampled_from(["utf-8", "utf-16", "utf-16-le", "gb18030"]), st.sampled_from(["\n", "\r\n"]))
def test_parallel_lines(tmp_path: Path, couples: list[tuple[str, str]], encoding: str, end: str) -> None:
    """Whatever a line holds but its end, such as a line separator, stays in it."""
    names = [
        saved(tmp_path, name, "".join(couple[side] + end for couple in couples).encode(encoding))
        for side, name in enumerate(("a.de", "a.en"))
    ]
    assert pairs(names[0], target=names[1], encoding=encoding) == couples


def test_lines_stay_whole_and_encodings_are_detected(tmp_path: Path) -> None:
    german = [
        "Zwei Männer\u2028stehen am Herd.",
        "Größere\x0bMädchen\x1cspielen\rweiter.",
        "Für Jürgen wäre das schön.",
    ]
    english = ["Two men", "Bigger girls", "For Jürgen"]
    path = saved(tmp_path, "a.de", "\r\n".join(german).encode("cp1252", "ignore"))
    got = pairs(path, target=saved(tmp_path, "a.en", "\n".join(english).encode("utf-16")))
    assert got == [(line.replace("\u2028", ""), other) for line, other in zip(german, english, strict=True)]
    got = pairs(saved(tmp_path, "a.de", "\n".join(german)), target=str(tmp_path / "a.en"))
    assert got == list(zip(german, english, strict=True))


def test_blank_lines_stay_pairs(tmp_path: Path) -> None:
    source = PairSource(path=saved(tmp_path, "a", "x\n\ny\n"), target=saved(tmp_path, "b", "1\n2\n3"), prefix="to b: ")
    assert list(read_pairs(source)) == [
        Pair("to b: x", "1", f"{source.path}:1"),
        Pair("", "2", f"{source.path}:2"),  # without the prefix, so that it is seen to be empty
        Pair("to b: y", "3", f"{source.path}:3"),
    ]


def test_missing_line_is_found(tmp_path: Path) -> None:
    draws = random.Random(1)
    german = ["wort " * draws.randint(1, 20) + str(n) for n in range(300)]
    english = ["word " * (line.count("wort") + draws.randint(0, 2)) + str(n) for n, line in enumerate(german)]
    del english[123]
    source, target = saved(tmp_path, "a.de", "\n".join(german)), saved(tmp_path, "a.en", "\n".join(english))
    with pytest.raises(DataError, match=r"a\.de holds 300 lines and .*a\.en 299") as caught:
        pairs(source, target=target)
    number = int(str(caught.value).partition("near line ")[2].partition(";")[0])
    assert abs(number - 124) <= 2
    assert f"{target}:{number}: 'word" in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ("a\nb\nc\n", "1\n2\n", r"a\.de holds 3 lines and .*a\.en 2;(.|\n)*:3: 'c'(.|\n)*:3: \(the file has ended\)"),
        ("a\n" * 99, "1\n2\n", r"holds 99 lines and .* 2; .*are these the two sides of one text\?"),
        ("", "1\n2\n", r"a\.de is empty; expected a line for each of the 2 lines"),
        ("1\n2\n", "", r"a\.en is empty; expected a line for each of the 2 lines"),
        ("", "", "holds no pairs: it is empty"),
        ("\n\nx\n", "a\nb\n\n", "holds no pairs: .*one side of every pair is"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a\n", r"a\.de looks like a binary file; expected text"),
        ("a\n", b"PK\x03\x04 and so on", r"a\.en looks like a binary file; expected text"),
    ],
)
def test_files_that_are_no_two_sides(tmp_path: Path, left: str | bytes, right: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs(saved(tmp_path, "a.de", left), target=saved(tmp_path, "a.en", right))


@pytest.mark.parametrize(
    ("names", "sure", "near"),
    [
        (("multi30k/train.de", "multi30k/train.en"), 8, 10),
        (("tatoeba-cmn-eng/train.en", "tatoeba-cmn-eng/train.zh"), 6, 60),  # sorted by length: neighbours are alike
    ],
)
def test_where_real_corpora_part(tmp_path: Path, names: tuple[str, str], sure: int, near: int) -> None:
    source, target = (Path(corpus(name)) for name in names)
    whole = target.read_text(encoding="utf-8").split("\n")
    first = saved(tmp_path, "source", "\n".join(source.read_text(encoding="utf-8").split("\n")[:6000]))
    hits = 0
    for trial in range(8):
        place, lines = random.Random(trial).randrange(100, 5900), whole[:6000]
        del lines[place : place + (1, 5)[trial % 2]]
        cut = saved(tmp_path, "target", "\n".join(lines))
        with pytest.raises(DataError, match="seem to part near line") as caught:
            pairs(first, target=cut)
        found = int(str(caught.value).partition("near line ")[2].partition(";")[0].replace(",", ""))
        hits += abs(found - 1 - place) <= near
    assert hits >= sure


# Tables


@many
@given(COUPLES, st.sampled_from(["jsonl", "csv", "tsv"]), st.booleans(), st.integers(1, 9))
def test_tables(tmp_path: Path, couples: list[tuple[str, str]], kind: str, header: bool, chunk: int) -> None:
    texts = [[text.replace("\t", " ") if kind == "tsv" else text for text in couple] for couple in couples]
    texts = [couple for couple in texts if kind != "tsv" or "".join(couple).strip()]  # a blank line is no row
    path, options = (
        tmp_path / f"a.{kind}",
        {"fields": ["src", "tgt"]} if header or kind == "jsonl" else {"fields": [1, 2]},
    )
    rows = [["src", "tgt"], *texts] if header else texts
    if kind == "jsonl":
        saved(tmp_path, path.name, [dict(zip(("src", "tgt"), row, strict=True)) for row in texts])
    elif kind == "tsv":
        saved(tmp_path, path.name, "".join("\t".join(row) + "\n" for row in rows))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", 10 * chunk)
        assert pairs(str(path), encoding="utf-8", **options) == [tuple(couple) for couple in texts]


def test_tsv_is_not_quoted(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.tsv", '"quote\tK W OW1 T\n"\tQ\n"a "b""\t\'c\n')
    assert pairs(path) == [('"quote', "K W OW1 T"), ('"', "Q"), ('"a "b""', "'c")]
    assert pairs(saved(tmp_path, "b.csv", '"say ""a"", b","c\nd"\n')) == [('say "a", b', "c\nd")]


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.tsv", "0\ttext one\n1\ttext two\n", {"fields": [2, 1]}, [("text one", "0"), ("text two", "1")]),
        ("a.tsv", "0\ttext one\n", {"fields": ["2", "1"]}, [("text one", "0")]),
        ("a.tsv", "src\tn\ttgt\nx\t1\ty\n", {}, [("x", "y")]),
        ("a.txt", "x\ty\n", {"kind": "table"}, [("x", "y")]),
        ("a.txt", "x\ty\tz\n", {"fields": [3, 1]}, [("z", "x")]),
        ("a.csv", "n,question,answer\n1,x,y\n", {}, [("x", "y")]),
        ("a.csv", "n,title,body\n1,x,y\n", {"fields": ["body", "title"]}, [("y", "x")]),
        ("a.TSV.gz", "x\ty\n", {}, [("x", "y")]),
        (
            "a.jsonl",
            [{"text": "a\r\nb", "summary": None}, {"text": "c", "summary": "\ud83d"}],
            {},
            [("a\nb", ""), ("c", "?")],
        ),
        ("a.jsonl.gz", [{"id": 7, "src": "x", "tgt": "y"}], {}, [("x", "y")]),
        ("a.jsonl", [{"turns": 3, "input": "x", "output": "y"}], {"kind": "table"}, [("x", "y")]),
        (
            "a.jsonl",
            [{"question": "q", "context": "c", "answer": "a"}],
            {"kind": "table", "fields": ["question", "answer"]},
            [("q", "a")],
        ),
    ],
)
def test_columns(tmp_path: Path, name: str, content: Any, options: Any, expected: list[tuple[str, str]]) -> None:
    if name == "a.jsonl" and content[0].get("summary", "") is None:
        content = "\n".join(json.dumps(row) for row in content)  # half a surrogate pair, escaped
    assert pairs(saved(tmp_path, name, content), **options) == expected


def test_references(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "summary": "x", "references": ["x", "y", "", "y"]},
        {"text": "b", "summary": "z", "references": []},
    ]
    path = saved(tmp_path, "a.jsonl", rows)
    assert [(p.target, p.others) for p in read_pairs(PairSource(path=path))] == [("x", ("y",)), ("z", ())]
    listed = read_pairs(PairSource(path=path, fields=("text", "references")))
    assert [(p.target, p.others) for p in listed] == [("x", ("y",)), ("", ())]
    assert [p.others for p in read_pairs(PairSource(path=path, fields=("text", "summary")))] == [(), ()]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.tsv", "a\tb\nc\n", {}, r"a\.tsv:2 has 1 column; expected 2, as in the first line"),
        ("a.tsv", "a\tb\n\nc\td\te\n", {}, r"a\.tsv:3 has 3 columns; expected 2"),
        ("a.tsv", "a\tb\tc\n", {}, r"a\.tsv:1: which two fields .* fields=\[1,2\]: 1, 2, 3"),
        ("a.tsv", "a\n", {}, r"a\.tsv:1 has one field, 1; expected one for the source and one for the target"),
        ("a.tsv", "a\tb\n", {"fields": [1, 3]}, r"a\.tsv:1 has no column '3'; its columns are 1, 2$"),
        ("a.tsv", "a\tb\n", {"fields": ["x", "b"]}, r"no column 'x'; its columns are a, b; .* numbers, fields=\[1,2\]"),
        ("a.tsv", "source\ttarget\n", {"fields": [1, 2]}, r"a\.tsv:1 looks like a header: give names instead"),
        ("a.csv", 'a,"b\n', {}, r"a\.csv:1: .*stands in quotation marks"),
        ("a.tsv", "", {}, "holds no pairs: it is empty"),
        ("a.jsonl", "", {}, "holds no pairs: it is empty"),
        ("a.jsonl", [[1]], {}, r"a\.jsonl:1: expected an object"),
        ("a.jsonl", '{"src": ', {}, r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", [{"text": "a", "keywords": "b"}], {}, r"a\.jsonl:1: which two fields .*: text, keywords"),
        (
            "a.jsonl",
            [{"src": "a", "tgt": "b", "text": "c", "summary": "d"}],
            {},
            r"which two fields .*: src, tgt, text",
        ),
        ("a.jsonl", [{"src": "a", "tgt": 5}], {}, r"a\.jsonl:1: the field 'tgt' must hold text, got int"),
        ("a.jsonl", [{"src": ["a"], "tgt": "b"}], {}, r"the field 'src' must hold one text, got list"),
        ("a.jsonl", [{"src": "a", "tgt": ["b", 5]}], {}, r"the field 'tgt' must hold text, got int"),
        ("a.jsonl", [{"src": "a", "tgt": "b"}, {"src": "a"}], {}, r"a\.jsonl:2: there is no field 'tgt'"),
        ("a.jsonl", [{"body": "a", "x": "b"}], {"fields": ["bodi", "x"]}, r"no field 'bodi'\. Did you mean 'body'\?"),
        ("a.json", "{}", {"fields": ["a", "b"]}, r"\.json is no table; expected \.jsonl"),
        ("a.txt", "hello\n", {}, r"is plain text, which holds one side; name the file of the other one, target=FILE"),
        ("a.jsonl", [], {"target": "."}, r"\. is a folder; expected a file for each side"),
        (".", None, {}, r"is a folder; expected a file for each side, or one with both\. In it: no files"),
        ("b.jsonl", None, {}, r"There is no file or folder .*b\.jsonl'"),
        ("a.jsonl.gz", b"", {"encoding": "utf-9"}, "there is no encoding 'utf-9'"),
        ("a.parquet", b"", {"encoding": "utf-8"}, "leave out encoding"),
    ],
)
def test_bad_tables(tmp_path: Path, name: str, content: Any, options: Any, message: str) -> None:
    path = saved(tmp_path, name, content) if content is not None else str(tmp_path / name)
    with pytest.raises(DataError, match=message):
        pairs(path, **options)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    table = pyarrow.table({"src": ["a", "b"], "tgt": [["x", "y"], ["z"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(str(tmp_path / "a.parquet")) == [("a", "x"), ("b", "z")]


# Dialogues


@given(st.lists(st.sampled_from(["a", "b | c", "", " ", "中文"]), max_size=9), st.integers(1, 4))
def test_composed_context(turns: list[str], limit: int) -> None:
    said = [turn for turn in turns if turn.strip()]
    assert compose_dialogue(turns, limit) == " | ".join(said[-limit:])


@many
@given(st.lists(st.sampled_from(["Hi.", "中文", "", "so\nlong"]), min_size=2, max_size=9), st.integers(1, 4))
def test_dialogue(tmp_path: Path, turns: list[str], limit: int) -> None:
    path = saved(tmp_path, "a.jsonl", [{"topic": "x", "turns": ["Hello!", "Hi."]}, {"turns": turns}])
    source = PairSource(path=path, turns=limit)
    got = list(read_pairs(source))
    expected = [(compose_dialogue(turns[:n], limit), turns[n], f"{path}:2 turn {n + 1}") for n in range(1, len(turns))]
    assert [pair[:3] for pair in got] == [("Hello!", "Hi.", f"{path}:1 turn 2"), *expected]
    assert [s.text for s in read_sources(path, source)] == [
        "Hello! | Hi."[-3 if limit == 1 else 0 :],
        compose_dialogue(turns, limit),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": "Hello!"}, r"a\.jsonl:2: 'turns' must be a list of strings, such as .*, got str"),
        ({"turns": ["a", 5]}, r"a\.jsonl:2: turn 2 must be a string, such as .*, got int"),
        ({"turns": [{"role": "user"}]}, r"turn 1 must be a string, .*, got dict"),
        ({"chat": []}, r"a\.jsonl:2: a dialogue has the field 'turns', such as .*; the fields are chat"),
    ],
)
def test_bad_dialogues(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = saved(tmp_path, "a.jsonl", [{"turns": ["Hello!", "Hi."]}, row])
    with pytest.raises(DataError, match=message):
        pairs(path)


# Questions

ARTICLE = {
    "paragraphs": [
        {
            "context": "Mary wrote it.",
            "qas": [
                {
                    "id": "7a",
                    "question": "Who?",
                    "answers": [{"text": t, "answer_start": 0} for t in ("Mary", "M.", "M.")],
                },
                {"question": "When?", "answers": []},
            ],
        }
    ]
}


def test_squad(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.json", json.dumps({"version": {"data": [1]}, "data": [{"paragraphs": []}, ARTICLE]}))
    who, when = compose_question("Who?", "Mary wrote it."), compose_question("When?", "Mary wrote it.")
    assert list(read_pairs(PairSource(path=path, prefix="squad "))) == [
        Pair("squad " + who, "Mary", f"{path}: article 2, question 7a", ("M.",), "Mary wrote it."),
        Pair("squad " + when, "", f"{path}: article 2, question 2", (), "Mary wrote it."),
    ]
    assert [s.text for s in read_sources(path, PairSource(path="gone.json"))] == [who, when]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"answer": "a"}, ("a", ())),
        ({"answers": ["a", "b"]}, ("a", ("b",))),
        ({"answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, ("a", ("b",))),
        ({"answers": [{"text": "a"}]}, ("a", ())),
        ({"answers": "a"}, ("a", ())),
    ],
)
def test_squad_line_by_line(tmp_path: Path, answer: dict[str, Any], expected: tuple[str, tuple[str, ...]]) -> None:
    path = saved(tmp_path, "a.jsonl", [{"question": "q", "context": "c", **answer}])
    assert list(read_pairs(PairSource(path=path))) == [
        Pair("question: q context: c", expected[0], f"{path}:1", expected[1], "c")
    ]


@many
@given(st.data(), st.integers(1, 50))
def test_articles_are_read_one_by_one(tmp_path: Path, data: st.DataObject, chunk: int) -> None:
    """In chunks of any size all articles come out; a text cut anywhere is an error in words."""
    value = st.recursive(
        st.none() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x), max_leaves=5
    )
    whole = {data.draw(TEXT) + "x": data.draw(value), "data": data.draw(st.lists(value)), "z": data.draw(value)}
    text = json.dumps(whole, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        path = Path(saved(tmp_path, "a.json", text))
        assert list(squad._articles(path, "utf-8")) == whole["data"]
        saved(tmp_path, "a.json", text[: data.draw(st.integers(0, len(text) - 1))])
        with pytest.raises(DataError, match=r"is not JSON|has no list"):
            list(squad._articles(path, "utf-8"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"is not JSON near '\[\]': '\{' is missing; expected \{\"data\""),
        ("", r"is not JSON at its end"),
        ("{}", r"has no list 'data'; expected .*\.jsonl"),
        ('{"data": {}}', r"has no list 'data'"),
        ('{"src": "a"}\n{"src": "b"}', r"has no list 'data'"),
        ('{"data": []} x', r"something follows the object"),
        ('{"data": [' + "[" * 100_000, r"nested too deeply|is not JSON"),
        ('{"data": [5]}', r"article 1: there is no 'paragraphs'; expected"),
        ('{"data": [{"paragraphs": 5}]}', r"'paragraphs' must be a list, got int"),
        ('{"data": [{"paragraphs": [{"qas": [{}]}]}]}', r"article 1, question 1: there is no 'question'"),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}', r"there is no 'context'"),
        ('{"data": [{"paragraphs": [{"context": 5, "qas": [{"question": "q"}]}]}]}', r"expected text, got int"),
        (b"\x89PNG\r\n\x1a\n\0", "looks like a binary file"),
    ],
)
def test_bad_squad(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pairs(saved(tmp_path, "a.json", content))


# Options, and several sources


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 2, "target": "b"}, "target and turns exclude each other"),
        ({"fields": ["a", "b"], "target": "b"}, "target and fields exclude each other"),
        ({"turns": 2, "kind": "squad"}, "turns belongs to kind 'dialogue', not 'squad': leave out one"),
        ({"fields": ["a", "b"], "kind": "dialogue"}, "fields belongs to kind 'table', not 'dialogue'"),
        ({"target": "b", "kind": "table"}, "target belongs to kind 'lines', not 'table'"),
        ({"kind": "lines"}, "needs the file of the other side: target=FILE"),
        ({"fields": ["a", "a"]}, "both sides would be the field 'a'"),
        ({"fields": ["a"]}, r"fields"),
        ({"fields": "a"}, r"fields"),
        ({"path": "hf:wmt14"}, r"pairs are read from files: save the data set as \.jsonl first"),
        ({"turns": 0}, "turns"),
        ({"kind": "parallel"}, "kind: input should be 'auto', 'lines', 'table', 'dialogue' or 'squad', got 'parallel'"),
        ({"feilds": 0}, "unknown key 'feilds'.* 'fields'"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairSource.parse({"path": "a", **options})


@pytest.mark.parametrize(("name", "other"), [("a.de", "a.de"), ("a.*", "b.en"), ("a.de", "a.*")])
def test_a_side_is_one_file(tmp_path: Path, name: str, other: str) -> None:
    for file in ("a.de", "a.fr", "b.en"):
        saved(tmp_path, file, "x\n")
    with pytest.raises(DataError, match="must be two files, one for each side"):
        pairs(str(tmp_path / name), target=str(tmp_path / other))
    with pytest.raises(DataError, match=r"b\.jsonl is no plain text; if it holds both sides"):
        pairs(str(tmp_path / "a.de"), target=saved(tmp_path, "b.jsonl", "x"))


def test_several_sources_and_globs(tmp_path: Path) -> None:
    saved(tmp_path, "1.tsv", "a\tb\n")
    saved(tmp_path, "2.tsv", "c\td\n")
    first = PairSource(path=str(tmp_path / "*.tsv"), prefix="spell: ")
    second = PairSource(path=saved(tmp_path, "x", "e\n"), target=saved(tmp_path, "y", "f\n"))
    assert [pair[:2] for pair in read_pairs(second, first)] == [("e", "f"), ("spell: a", "b"), ("spell: c", "d")]
    assert PairSource.parse(first.dump()) == first


def test_fingerprint(tmp_path: Path) -> None:
    x, y = saved(tmp_path, "x", "1\n"), saved(tmp_path, "y", "2\n")
    here, there = PairSource(path=x, target=y), PairSource(path=y, target=x)
    assert len(fingerprint_pairs(here)) == 64
    assert fingerprint_pairs(here) == fingerprint_pairs(PairSource(path=saved(tmp_path, "x.gz", "1\n"), target=y))
    assert len({fingerprint_pairs(*s) for s in ([here], [there], [here, there], [there, here])}) == 4
    saved(tmp_path, "y", "3\n")
    assert fingerprint_pairs(there) != fingerprint_pairs(here)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.tsv.gz", "a.json.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed"])
def test_damaged_gz(tmp_path: Path, name: str, damage: str) -> None:
    data = bytearray(gzip.compress(random.Random(0).randbytes(900).hex().encode()))
    data = {"cut": data[:-20], "flipped": data[:99] + b"\xff" * 9 + data[108:], "not packed": b"plain\n"}[damage]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name} cannot be unpacked: .*; expected a whole gzip file"):
        pairs(str(tmp_path / name), **({"target": saved(tmp_path, "b.txt", "x")} if ".txt" in name else {}))


def test_memory_does_not_depend_on_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 10_000)
    long = {"paragraphs": [ARTICLE["paragraphs"][0] | {"context": "x" * 2000}]}
    files = [
        saved(tmp_path, "a.json", json.dumps({"data": [long] * 500})),
        saved(tmp_path, "a.jsonl.gz", [{"src": "x" * 500, "tgt": "y" * 500}] * 1000),
        saved(tmp_path, "a.tsv", f"{'x' * 500}\t{'y' * 500}\n" * 1000),
    ]
    for path in files:
        next(read_pairs(PairSource(path=path)))  # what is made once stays
        tracemalloc.start()
        count = sum(1 for _ in read_pairs(PairSource(path=path)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 1000
        assert peak < 300_000, path  # the files hold a megabyte each


# In use


@pytest.mark.parametrize(
    ("name", "content", "trained", "expected"),
    [
        ("a.txt", "x\n\ny", {"path": "a.de", "target": "a.en", "prefix": "de: "}, ["de: x", "", "de: y"]),
        ("a.txt", "x\ty\n", {"path": "a.tsv"}, ["x\ty"]),
        ("a.txt", "x\ty\n", {"path": "a.txt", "kind": "table"}, ["x"]),
        ("a.tsv", "x\ny\n", {"path": "a.tsv"}, ["x", "y"]),
        ("a.tsv", "x\tX\ny\tY\n", {"path": "a.tsv"}, ["x", "y"]),
        ("a.tsv", "0\tx\n", {"path": "a.tsv", "fields": [2, 1]}, ["x"]),
        ("a.tsv", "id\ttext\n1\tx\n", {"path": "a.tsv"}, ["x"]),
        ("a.csv", "body\nx\n", {"path": "a.csv", "fields": ["body", "title"]}, ["x"]),
        ("a.jsonl", [{"text": "x"}], {"path": "a.jsonl", "fields": ["text", "title"]}, ["x"]),
        ("a.jsonl", [{"text": "x", "n": 1}], {"path": "a.tsv", "fields": [2, 1]}, ["x"]),
        ("a.jsonl", [{"any": "x"}], {"path": "a.jsonl"}, ["x"]),
        ("a.jsonl", [{"question": "q", "context": "c"}], {"path": "a.json"}, ["question: q context: c"]),
        ("a.jsonl", [{"question": "q", "context": "c"}], {"path": "a.jsonl", "fields": ["question", "answer"]}, ["q"]),
        ("a.jsonl", [{"turns": ["a", "b", "c"]}], {"path": "a.jsonl", "turns": 2}, ["b | c"]),
        ("a.txt", "", {"path": "a.jsonl", "kind": "dialogue"}, []),
    ],
)
def test_sources_of_a_file(tmp_path: Path, name: str, content: Any, trained: Any, expected: list[str]) -> None:
    """The file that the model was trained on need not be there any more."""
    path = saved(tmp_path, name, content)
    assert [source.text for source in read_sources(path, PairSource.parse(trained))] == expected


def test_sources_that_cannot_be_told(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: which field holds the source\? Call it 'source'; the fields are a, b"
    ):
        list(read_sources(path, PairSource(path="a.tsv")))
    with pytest.raises(DataError, match=r"Call it 'body'"):
        list(read_sources(path, PairSource(path="a.tsv", fields=("body", "x"))))
    with pytest.raises(DataError, match="There is no file or folder"):
        list(read_sources(str(tmp_path / "b.txt"), PairSource(path="a.tsv")))


@pytest.mark.parametrize(
    ("name", "options", "count", "first"),
    [
        ("multi30k/val.de", {"target": "multi30k/val.en"}, 1014, "A group of men are loading cotton onto a truck"),
        ("tatoeba-cmn-eng/test.en", {"target": "tatoeba-cmn-eng/test.zh"}, 1501, "不会吧。"),
        ("cmudict-g2p/valid.tsv", {}, 6671, None),
        ("scitldr/test.jsonl", {}, 618, None),
        ("csl-title/test.jsonl", {}, 1000, "双官能团活性艳蓝的应用性能"),
        ("csl-title/dev.keywords.jsonl", {"fields": ["text", "keywords"]}, 1000, None),
        ("xquad/xquad.en.json", {}, 1190, "308"),
        ("cmrc2018/cmrc2018_dev.json", {}, 3219, "光荣和ω-force"),
        ("self-dialogue/test.jsonl.gz", {"turns": 2}, 12375, "Yes it was great."),
        ("sentence-polarity/test.tsv", {"fields": [2, 1]}, 564, "0"),
        ("gsm8k/test.jsonl", {"prefix": "solve: "}, 1319, None),
    ],
)
def test_real_corpora(name: str, options: dict[str, Any], count: int, first: str | None) -> None:
    if "target" in options:
        options = options | {"target": corpus(options["target"])}
    source = PairSource.parse({"path": corpus(name), **options})
    got = list(read_pairs(source))
    assert len(got) == count
    assert all(pair.source.strip() for pair in got)
    assert first in (None, got[0].target)
    if "turns" not in options:
        again = read_sources(source.path, source)
        assert [s.text for s in again] == [pair.source for pair in got]


def test_parting_of_short_sides() -> None:
    assert parting(torch.zeros(3, 5), torch.zeros(3, 4)) == 4
    assert parting(torch.zeros(3, 40), torch.zeros(3, 39)) <= 39


def test_a_context_is_not_dropped_in_silence(tmp_path: Path) -> None:
    """A table of questions: only .jsonl is read with contexts."""
    path = tmp_path / "questions.csv"
    path.write_text("question,context,answer\nWho?,A fox came.,a fox\n")
    with pytest.raises(DataError, match=r"has a context besides question and answer.*\.jsonl"):
        list(read_pairs(PairSource(path=str(path))))
    (pair,) = read_pairs(PairSource(path=str(path), fields=("question", "answer")))
    assert (pair.source, pair.target) == ("Who?", "a fox")
