"""Sources: files of every format and encoding, hostile ones included, become the same stream of pieces."""

import csv
import gzip
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textwright.errors import DataError, MissingExtraError
from textwright.text import sources
from textwright.text.sources import SourceConfig, alike, cut, decoded, detect, files, fingerprint, read

SIMPLIFIED = 5 * (
    "春天来了，小河边的柳树发出了新芽。孩子们在草地上放风筝，老人们坐在长椅上聊天。\n“今天的天气真好！”他说。\n"
)
TRADITIONAL = 5 * (
    "春天來了，小河邊的柳樹發出了新芽。孩子們在草地上放風箏，老人們坐在長椅上聊天。\n「今天的天氣真好！」他說。\n"
)
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 5
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.\n" * 5
GERMAN = "Zwei Männer stehen am Herd und bereiten Essen zu. Für größere Mädchen wäre das schön.\n" * 5


def texts(path: Path | str, **options: str) -> list[str]:
    """Whole documents of a source."""
    documents, parts = [], []
    for piece in read(SourceConfig.parse({"path": str(path), **options})):
        parts.append(piece.text)
        if piece.last:
            documents.append("".join(parts))
            parts = []
    assert not parts, "the last document does not end"
    return documents


def saved(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Encodings


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "utf-8"),
        (GERMAN, "utf-8-sig"),
        (GERMAN, "utf-16"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
        (GERMAN, "utf-32"),
        (GERMAN, "utf-32-be"),
        (GERMAN, "cp1252"),
        (SIMPLIFIED, "utf-8"),
        (SIMPLIFIED, "gb18030"),
        (SIMPLIFIED, "utf-16"),
        (SIMPLIFIED, "utf-16-le"),
        (SIMPLIFIED, "utf-16-be"),
        (TRADITIONAL, "big5"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (KOREAN, "euc_kr"),
    ],
)
def test_encoding_is_detected(tmp_path: Path, text: str, encoding: str) -> None:
    assert texts(saved(tmp_path, "a.txt", text.encode(encoding))) == [text]
    assert texts(tmp_path / "a.txt", encoding=encoding) == [text]


def test_big_endian_mark(tmp_path: Path) -> None:
    assert texts(saved(tmp_path, "a.txt", b"\xfe\xff" + SIMPLIFIED.encode("utf-16-be"))) == [SIMPLIFIED]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_mark_is_no_text_where_the_encoding_is_declared(tmp_path: Path, encoding: str) -> None:
    path = saved(tmp_path, "a.txt", "\ufeffhello".encode(encoding))
    assert texts(path, encoding=encoding) == ["hello"]


@pytest.mark.parametrize("length", range(1, 9))
def test_character_cut_at_the_end_of_the_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int) -> None:
    monkeypatch.setattr(sources, "CHUNK", length)
    text = "é中😀\r\n文匠"
    assert texts(saved(tmp_path, "a.txt", text)) == [text.replace("\r\n", "\n")]


def test_wrong_declared_encoding(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", b"abc" + SIMPLIFIED.encode("gb18030"))
    with pytest.raises(DataError, match=r"byte 3 is not valid utf-8, the declared encoding; it looks like gb18030"):
        texts(path, encoding="utf-8")
    with pytest.raises(DataError, match=r"byte 0 is not valid ascii, the declared encoding; it looks like utf-8"):
        texts(saved(tmp_path, "b.txt", "é"), encoding="ascii")


@pytest.mark.parametrize("name", ["utf-9", "base64", "rot13", "a\0b"])
def test_unknown_encoding(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="there is no encoding"):
        texts(saved(tmp_path, "a.txt", "hello"), encoding=name)


@pytest.mark.parametrize("chunk", [7, 1000, 1 << 20])
def test_bad_byte_far_into_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chunk: int) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    path = saved(tmp_path, "a.txt", "文".encode() * 1000 + b"\xff" + b"end")
    with pytest.raises(DataError, match=r"a\.txt.*byte 3000 is not valid"):
        texts(path, encoding="utf-8")


def test_bad_byte_after_the_sample(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", b"hello\n" * 200_000 + b"\xe4\xb8")
    with pytest.raises(DataError, match=r"a\.txt begins as utf-8 but byte 1200000 is not valid utf-8"):
        texts(path)


# Hostile and missing files


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"PK\x03\x04 and so on",
        b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07abc\x94.",
        gzip.compress(GERMAN.encode()),
        b"text\0text\0\0text",
        bytes(range(256)) * 10,
        b"\0" * 100,
    ],
)
def test_binary_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="looks like a binary file"):
        texts(saved(tmp_path, "a.txt", content))


@given(st.binary(max_size=200))
def test_detection_never_fails(sample: bytes) -> None:
    name = detect(sample)
    assert name is None or b"".decode(name) == ""


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff", "\u3000\n"])
@pytest.mark.parametrize("unit", ["file", "line", "paragraph"])
def test_no_text(tmp_path: Path, content: str, unit: str) -> None:
    with pytest.raises(DataError, match="holds no text"):
        texts(saved(tmp_path, "a.txt", content), documents=unit)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    saved(tmp_path, "stories.txt", "a")
    with pytest.raises(DataError, match=r"There is no file or folder .*Did you mean '.*stories\.txt'"):
        texts(tmp_path / "storys.txt")
    with pytest.raises(DataError, match="does not exist either"):
        texts(tmp_path / "nowhere" / "a.txt")


def test_unreadable_file(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", "hello")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("needs a user whom file permissions bind")
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        texts(path)


def test_json_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.jsonl"):
        texts(saved(tmp_path, "a.json", "[]"))


# Folders and globs


def test_folder_is_sorted_and_skips_what_is_not_text(tmp_path: Path) -> None:
    saved(tmp_path, "b.txt", "two")
    saved(tmp_path, "a/z.md", "one")
    saved(tmp_path, "c.jsonl", '{"text": "three"}\n')
    saved(tmp_path, "a/.hidden.txt", "no")
    saved(tmp_path, ".git/config", "no")
    saved(tmp_path, "d.png", b"\x89PNG\r\n\x1a\n\0")
    saved(tmp_path, "e.txt", "")
    assert texts(tmp_path) == ["one", "two", "three"]
    assert texts(tmp_path / "*.txt") == ["two"]
    assert texts(tmp_path / "**" / "*.md") == ["one"]
    assert [path.name for path in files(SourceConfig(path=str(tmp_path / "*.txt")))] == ["b.txt", "e.txt"]


@pytest.mark.parametrize("name", [".", "*.txt"])
def test_nothing_readable(tmp_path: Path, name: str) -> None:
    saved(tmp_path, "d.png", b"\x89PNG\r\n\x1a\n\0")
    with pytest.raises(DataError, match="no readable text files"):
        texts(tmp_path / name)


def test_file_name_with_magic_characters(tmp_path: Path) -> None:
    assert texts(saved(tmp_path, "a[1].txt", "hello")) == ["hello"]


# Packed files


def test_gz_is_read_by_the_suffix_before_it(tmp_path: Path) -> None:
    saved(tmp_path, "a.txt.gz", gzip.compress(SIMPLIFIED.encode("gb18030")))
    saved(tmp_path, "b.JSONL.GZ", gzip.compress(b'{"text": "one"}\n') + gzip.compress(b'{"text": "two"}\n'))
    saved(tmp_path, "c.tsv.gz", gzip.compress(b"n\ttext\n1\tthree\n"))
    saved(tmp_path, "d.json.gz", gzip.compress(b"[]"))
    saved(tmp_path, "e.tar.gz", gzip.compress(b"name\0\0\0and what is in it"))
    assert texts(tmp_path) == [SIMPLIFIED, "one", "two", "three"]
    assert fingerprint(SourceConfig(path=str(saved(tmp_path, "f.txt", "one")))) == fingerprint(
        SourceConfig(path=str(saved(tmp_path, "g.gz", gzip.compress(b"one"))))
    )
    with pytest.raises(DataError, match=r"a\.txt\.gz cannot be unpacked: .*; expected a whole gzip file: fetch"):
        texts(saved(tmp_path, "a.txt.gz", gzip.compress(GERMAN.encode())[:-9]))


# Plain text


def test_line_ends(tmp_path: Path) -> None:
    assert texts(saved(tmp_path, "a.txt", b"a\r\nb\rc\n\r\nd\r")) == ["a\nb\nc\n\nd\n"]


def test_lines_and_paragraphs(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.txt", "one\ntwo\n\n \nthree\u2028still\x0bthree\n")
    assert texts(path, documents="line") == ["one", "two", "three\u2028still\x0bthree"]
    assert texts(path, documents="paragraph") == ["one\ntwo", "three\u2028still\x0bthree"]


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 9), st.integers(1, 9))
def test_cutting_loses_nothing(text: str, size: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PIECE", size)
        pieces = list(cut(text[i : i + chunk] for i in range(0, len(text), chunk)))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) <= size for piece in pieces)
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab\ncd\n\nef gh", ["ab\n", "cd\n\nef gh"]),  # not at the blank line
        ("ab cdefghijk", ["ab", " cdefghijk"]),
        ("ab\n\ncdefghijk", ["ab\n\n", "cdefghijk"]),
        ("abcdefghijklm", ["abcdefghij", "klm"]),
    ],
)
def test_where_documents_are_cut(monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]) -> None:
    monkeypatch.setattr(sources, "PIECE", 10)
    assert [piece.text for piece in cut([text])] == expected


# Tables


def test_jsonl(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "a\r\nb"}, {"id": 2, "text": ""}, {"id": 3, "text": None}, {"id": 4, "text": "中"}]
    path = saved(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    assert texts(path) == ["a\nb", "中"]
    assert texts(saved(tmp_path, "b.jsonl", '{"body": "x \\ud83d", "n": 1}')) == ["x ?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": ', r"a\.jsonl:2 is not JSON"),
        ("[1]", r"a\.jsonl:2: expected an object"),
        ('{"text": 5}', r"a\.jsonl:2: the field 'text' must hold text, got int"),
        ('{"body": "x"}', r"a\.jsonl:2: there is no field 'text'; the fields are body"),
        ("[" * 100_000, r"a\.jsonl:2 is not JSON"),
    ],
)
def test_bad_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(saved(tmp_path, "a.jsonl", '{"text": "fine"}\n' + line))


def test_which_field(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jsonl", '{"title": "t", "body": "b"}\n')
    assert texts(path, field="body") == ["b"]
    with pytest.raises(DataError, match=r"--set source\.field=NAME .*: title, body"):
        texts(path)
    with pytest.raises(DataError, match=r"no field 'bodi'; the fields are title, body"):
        texts(path, field="bodi")


@pytest.mark.parametrize(("suffix", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
def test_csv_and_tsv(tmp_path: Path, suffix: str, dialect: str) -> None:
    with (tmp_path / f"a.{suffix}").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect)
        writer.writerows([["n", "text"], ["1", 'she said, "hi"\tthere\nand left'], ["2", "文" * 200_000]])
    assert texts(tmp_path / f"a.{suffix}") == ['she said, "hi"\tthere\nand left', "文" * 200_000]


def test_broken_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv:3: .*written twice"):
        texts(saved(tmp_path, "a.csv", 'n,text\n1,fine\n2,"never closed\n'))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "body": ["a\r\nb", None, "中"]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a\nb", "中"]
    with pytest.raises(DataError, match="cannot be read as parquet"):
        texts(saved(tmp_path, "b.parquet", "no parquet"))


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"textwright\[parquet\]"):
        texts(saved(tmp_path, "a.parquet", ""))
    with pytest.raises(MissingExtraError, match=r"textwright\[hub\]"):
        texts("hf:wikitext")


# Built in and hub


def test_builtin() -> None:
    documents = texts("builtin:python-docs")
    assert len(documents) > 50
    assert documents == texts("builtin:python-docs")
    with pytest.raises(DataError, match="builtin:python-docs"):
        texts("builtin:shakespeare")


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("hf:a/b", ("a/b", "train")),
        ("hf:a/b:validation", ("a/b", "validation")),
        ("hf:a/b:small", ("a/b", "small", "train")),
        ("hf:a/b:small:test", ("a/b", "small", "test")),
    ],
)
def test_hub(monkeypatch: pytest.MonkeyPatch, name: str, call: tuple[str, ...]) -> None:
    def load(*parts: str, split: str, streaming: bool) -> list[dict[str, str]]:
        assert ((*parts, split), streaming) == (call, True)
        return [{"text": "one"}, {"text": "two"}]

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert texts(name) == ["one", "two"]


def test_hub_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: str, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand a long story")

    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(DataError, match=r"^hf:a cannot be loaded \(Couldn't reach the Hub\); check .*connection$"):
        texts("hf:a")


def test_fingerprint(tmp_path: Path) -> None:
    first = fingerprint(SourceConfig(path=str(saved(tmp_path, "a.txt", "hello"))))
    assert first == fingerprint(SourceConfig(path=str(tmp_path)))
    saved(tmp_path, "b.txt", "more")
    assert first != fingerprint(SourceConfig(path=str(tmp_path)))
    assert len(fingerprint(SourceConfig(path="builtin:python-docs"))) == 64


def test_a_first_row_without_text_does_not_choose_another_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "one", "text": null}\n{"id": "two", "text": "real"}\n', encoding="utf-8")
    assert [piece.text for piece in read(SourceConfig(path=str(path)))] == ["real"]


@pytest.mark.parametrize("setting", [{"documents": "line"}, {"encoding": "utf-8"}, {"field": "text"}])
def test_what_a_source_without_files_would_ignore_is_refused(setting: dict[str, str]) -> None:
    (name,) = setting
    with pytest.raises(DataError, match=f"leave out source.{name}"):
        list(read(SourceConfig.parse({"path": "builtin:python-docs", **setting})))


def test_another_source_is_read_as_the_trained_one(tmp_path: Path) -> None:
    """The column for tables, documents for plain text, whether they are named one by one, by a folder or by a glob."""
    trained = SourceConfig(path="x", field="body")
    lines = SourceConfig(path="x", documents="line")
    for name in ("a.csv", "b.csv"):
        saved(tmp_path / "tables", name, "title,body\nt,b\n")
    saved(tmp_path / "texts", "a.txt", "one\ntwo\n")
    for path in (tmp_path / "tables", tmp_path / "tables" / "*.csv", tmp_path / "tables" / "a.csv"):
        assert {piece.text for piece in read(alike(str(path), trained))} == {"b"}
        assert alike(str(path), lines).documents == "file"
    for path in (tmp_path / "texts", tmp_path / "texts" / "*.txt", tmp_path / "texts" / "a.txt"):
        assert alike(str(path), trained).field is None
        assert len(list(read(alike(str(path), lines)))) == 2
    assert alike("builtin:python-docs", lines) == SourceConfig(path="builtin:python-docs")
    assert alike("hf:some/name", trained).field == "body"


@pytest.mark.parametrize("first", ["", "1"])
def test_a_long_text_is_told_whatever_character_its_sample_ends_in(tmp_path: Path, first: str) -> None:
    """Characters of two bytes, and one of one byte in front of them or none."""
    text = first + "床前明月光，疑是地上霜。\n" * 50_000
    path = saved(tmp_path, "long.txt", text.encode("gb18030"))
    assert "".join(decoded(path, None)) == text


def test_parts_with_nuls_between_them_are_no_utf_16(tmp_path: Path) -> None:
    path = saved(tmp_path, "list.txt", b"Hello, you.\0Next one.\0" * 5000)
    with pytest.raises(DataError, match="looks like a binary file"):
        list(decoded(path, None))
    for script in ("Plain words, and more.\n", "Русский текст, и ещё.\n", "床前明月光，疑是地上霜。\n"):
        for name in ("utf-16-le", "utf-16-be"):
            assert "".join(decoded(saved(tmp_path, "wide.txt", (script * 99).encode(name)), None)) == script * 99


def test_a_comma_in_a_text_without_quotation_marks_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.csv", b"text\nHello\nHello, world\n")
    with pytest.raises(DataError, match=r"a\.csv:3 has more columns than the header names, first ' world'"):
        list(read(SourceConfig(path=str(path))))
