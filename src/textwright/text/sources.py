"""Where text comes from: files, folders, tables and built-in samples become a lazy stream of pieces.

Memory does not depend on the size of the source. Encodings are always explicit: declared, or detected and checked.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import charset_normalizer

from textwright.config import Config
from textwright.errors import DataError, MissingExtraError

PIECE = 1_000_000  # characters of one document that are handed on at once
CHUNK = 1 << 20  # bytes read from a file at once; the first chunk is also what an encoding is detected on

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
MARKS = (  # the UTF-32 mark begins with the UTF-16 one, so it is asked first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
PLAUSIBLE = ["gb18030", "big5", "utf_16_le", "utf_16_be", "shift_jis", "euc_jp", "euc_kr", "cp1252", "cp1251"]
BINARY = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"%PDF-")


RUN = ".textwright.lock"  # marks the folder of a run


class SourceConfig(Config):
    """One source of text. Files packed as .gz are unpacked while they are read; the suffix before .gz says what is in
    them.

    Attributes:
        path: a file, a folder, a glob, `builtin:python-docs` or `hf:NAME[:CONFIG][:SPLIT]`.
        field: the column of a table that holds the text.
        encoding: detected unless it is given.
        documents: what one document of a plain text file is: the file, each line, or each paragraph (blank lines
            between them); blank ones are skipped.
    """

    path: str
    field: str | None = None
    encoding: str | None = None
    documents: Literal["file", "line", "paragraph"] = "file"


class Piece(NamedTuple):
    """A stretch of a document; `last` is True when it ends the document."""

    text: str
    last: bool


def read(source: SourceConfig) -> Iterator[Piece]:
    r"""The pieces of a source in a fixed order, line ends as "\n", one document after the other.

    Long documents come in pieces of about `PIECE` characters, cut where a tokenizer cannot notice if there is such a
    place: after a line end, or before a space, that stands between two visible characters.

    Raises:
        DataError: the source is missing, unreadable, binary, wrongly encoded, malformed or without any text.
    """
    blank = True
    for piece in _pieces(source):
        blank = blank and not piece.text.strip()
        yield piece
    if blank:
        raise DataError(f"{source.path} holds no text: it is empty or only white space")


def files(source: SourceConfig) -> list[Path]:
    """The files of a source in reading order; none for `builtin:` and `hf:`.

    A folder gives the readable files at any depth, sorted by path; hidden ones and binary ones are left out.
    """
    name, path = source.path, Path(source.path).expanduser()
    if name.startswith(("builtin:", "hf:")):
        return []
    if path.is_dir():
        runs = [mark.parent for mark in path.rglob(RUN)]  # what we wrote ourselves is no text to learn from
        inside = [file for file in sorted(path.rglob("*")) if _visible(file, path)]
        found = [file for file in inside if _supported(file) and not any(file.is_relative_to(run) for run in runs)]
    elif path.exists():
        return [path]
    elif glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = [Path(match) for match in matches if Path(match).is_file()]
    else:
        raise DataError(f"There is no file or folder {name!r}.{_neighbours(path)}")
    if not found:
        kinds = ", ".join((".txt", *TABLES))
        raise DataError(f"{name!r} holds no readable text files; expected plain text in any encoding or {kinds}")
    return found


def suffix(path: Path) -> str:
    """The suffix that says what is in a file, in small letters: ".jsonl" for both a.jsonl and a.JSONL.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def alike(path: str, trained: SourceConfig, field: str | None = None) -> SourceConfig:
    """Another source that is read as one was in training: tables by the same column, and documents of plain text told
    apart in the same way; in any encoding. `field` names another column."""
    bare = SourceConfig(path=path)
    tables = {suffix(file) in TABLES for file in files(bare)}
    table, plain = path.startswith("hf:") or tables == {True}, tables == {False}
    column = field or (trained.field if table else None)
    return bare.model_copy(update={"field": column, "documents": trained.documents if plain else bare.documents})


def fingerprint(source: SourceConfig) -> str:
    """sha256 over the bytes of the files in order (unpacked ones), or over the texts of a source without files."""
    digest = hashlib.sha256()
    paths = files(source)
    for path in paths:
        for chunk in _bytes(path):
            digest.update(chunk)
    if not paths:
        for piece in _pieces(source):
            digest.update(piece.text.encode() + b"\0" * piece.last)
    return digest.hexdigest()


def _pieces(source: SourceConfig) -> Iterator[Piece]:
    useless = {"builtin:": ("field", "encoding", "documents"), "hf:": ("encoding", "documents")}
    for beginning, names in useless.items():
        if source.path.startswith(beginning):
            for name in names:
                if getattr(source, name) != SourceConfig.model_fields[name].default:
                    raise DataError(f"{source.path}: leave out source.{name}, which is for files")
    if source.path.startswith("builtin:"):
        yield from _builtin(source.path)
    elif source.path.startswith("hf:"):
        yield from _whole(_texts(_hub_rows(source.path), source.field, source.path))
    for path in files(source):
        yield from _file(path, source)


def _file(path: Path, source: SourceConfig) -> Iterator[Piece]:
    kind = suffix(path)
    if kind in TABLES and source.documents != "file":
        raise DataError(f"{path}: every row is a document already: leave out source.documents")
    if kind not in TABLES and source.field is not None:
        raise DataError(f"{path} is plain text, without fields: leave out source.field")
    if kind == ".json":
        raise DataError(f'{path}: .json is not read; expected .jsonl, one object a line, such as {{"text": "..."}}')
    if kind == ".parquet":
        yield from _whole(_texts(parquet_rows(path), source.field, str(path)))
    elif kind in (".csv", ".tsv"):
        yield from _whole(_texts(_csv_rows(path, source.encoding), source.field, str(path)))
    elif kind in TABLES:
        yield from _whole(_texts(json_rows(path, source.encoding), source.field, str(path)))
    elif source.documents == "file":
        yield from cut(decoded(path, source.encoding))
    else:
        yield from _whole(_parts(lines(decoded(path, source.encoding)), source.documents))


# Which files -----------------------------------------------------------------------------------------------------


def _visible(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _supported(file: Path) -> bool:
    if suffix(file) in TABLES:
        return True
    if suffix(file) == ".json":
        return False
    if detect(next(_bytes(file), b"")) is None:
        if suffix(file) == ".txt":  # others may well be binary; this one was meant to be read
            raise DataError(f"{file} looks like a binary file; expected text: move it away, or --set source.encoding=…")
        return False
    return True


def _neighbours(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" The folder {str(path.parent)!r} does not exist either."
    close = get_close_matches(path.name, names, n=3, cutoff=0.5)
    return " Did you mean " + " or ".join(repr(str(path.with_name(name))) for name in close) + "?" if close else ""


# Bytes to characters ---------------------------------------------------------------------------------------------


def decoded(path: Path, encoding: str | None, translate: bool = True) -> Iterator[str]:
    r"""The text of a file in chunks of about a megabyte, line ends as "\n"; as they stand unless `translate`."""
    sample = next(_bytes(path), b"")
    used = encoding or detect(sample)
    if (
        encoding
        and not encoding.lower().startswith(("utf", "ascii"))
        and detect(sample) == "utf-8"
        and not sample.isascii()
    ):
        raise DataError(f"{path} looks like utf-8, not {encoding}: leave out source.encoding")
    if used is None:
        raise DataError(f"{path} looks like a binary file; expected text")
    decoder = _decoder(used, path)
    newlines = io.IncrementalNewlineDecoder(decoder, translate)
    position = waiting = 0
    try:
        for chunk in _bytes(path):
            waiting = len(decoder.getstate()[0])
            text = newlines.decode(chunk)
            yield text if position else text.removeprefix("\ufeff")  # a mark that the declared encoding keeps
            position += len(chunk)
        waiting = len(decoder.getstate()[0])
        yield newlines.decode(b"", final=True)
    except UnicodeError as error:
        offset = position - waiting + (error.start if isinstance(error, UnicodeDecodeError) else 0)
        raise DataError(_undecodable(path, offset, encoding, used)) from None


def _decoder(encoding: str, path: Path) -> codecs.IncrementalDecoder:
    try:
        "a".encode(encoding)  # refuses codecs that do not give text, such as base64
        return codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError):
        raise DataError(f"{path}: there is no encoding {encoding!r}; expected one such as utf-8 or gb18030") from None


def detect(sample: bytes) -> str | None:
    """The encoding of a text that begins with `sample`; None where it looks like a binary file.

    A whole file is checked again while it is read, so a wrong guess is an error and never a wrong character in UTF-8.
    """
    for mark, name in MARKS:
        if sample.startswith(mark):
            return name
    if sample.startswith(BINARY):
        return None
    if b"\0" in sample:
        return None if _separated(sample) else _wide(sample)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # incremental: a character cut at the end is no error
        return "utf-8"
    except UnicodeDecodeError:
        whole = sample
        if len(sample) >= CHUNK:  # it may end within a character; a line end or a space is no part of another one
            whole = sample[: 1 + max(sample.rfind(b"\n"), sample.rfind(b" "))] or sample
        text = charset_normalizer.from_bytes(whole, cp_isolation=PLAUSIBLE, preemptive_behaviour=False).best()
        return text.encoding if text else None


def _separated(sample: bytes) -> bool:
    """Text in UTF-8 with NULs between its parts, which UTF-16 would read as other characters: half the bytes of Latin
    letters in UTF-16 are NULs, and those of other scripts are no characters in UTF-8, or control characters."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return 4 * sample.count(0) < len(sample) and not _controls(text.replace("\0", ""))


def _controls(text: str) -> bool:
    return any(ord(c) < 32 and c not in "\t\n\r\f\x1b" for c in set(text))


def _wide(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by how much ordinary punctuation each reading gives."""
    scores: dict[str, int] = {}
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and not _controls(text):
            scores[name] = sum(text.count(c) for c in " \n.,\u3000\u3001\u3002\uff0c")
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best and scores[best] else None


def _undecodable(path: Path, offset: int, declared: str | None, used: str) -> str:
    if declared is None:
        return f"{path} begins as {used} but byte {offset} is not valid {used}; mend the file or declare its encoding"
    detected = detect(next(_bytes(path), b""))
    hint = f"it looks like {detected}" if detected else "it looks like a binary file"
    return f"{path}: byte {offset} is not valid {declared}, the declared encoding; {hint}"


def _bytes(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks, unpacked if its name ends in .gz."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        advice = "fetch it again, or take .gz off its name if it is not packed"
        raise DataError(f"{path} cannot be unpacked: {error}; expected a whole gzip file: {advice}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


# Plain text ------------------------------------------------------------------------------------------------------


def cut(chunks: Iterable[str]) -> Iterator[Piece]:
    """One document as pieces of about `PIECE` characters."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > PIECE:
            end = _place(rest, start, start + PIECE)
            yield Piece(rest[start:end], last=False)
            start = end
        rest = rest[start:]
    if rest:
        yield Piece(rest, last=True)


def _place(text: str, start: int, end: int) -> int:
    """The last place in `text[start:end]` where a cut does the least harm; there must be a character at `end`."""
    for mark, offset in (("\n", 1), (" ", 0)):
        at = text.rfind(mark, start + 1, end)
        while at > start:
            if not (text[at - 1].isspace() or text[at + 1].isspace()):
                return at + offset
            at = text.rfind(mark, start + 1, at)
    return text.rfind("\n", start, end) + 1 or end


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines with their line end; only "\\n" ends a line (str.splitlines knows a dozen more)."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _parts(lines: Iterable[str], unit: str) -> Iterator[str]:
    """Lines or paragraphs without the line end after them; blank ones are left out."""
    part = ""
    for line in lines:
        if line.strip():
            part += line
        if part and (unit == "line" or not line.strip()):
            yield part.removesuffix("\n")
            part = ""
    if part:
        yield part.removesuffix("\n")


# Tables ----------------------------------------------------------------------------------------------------------

MORE = "(more)"  # the name of columns that the header does not name

Rows = Iterator[tuple[str, Mapping[str, Any]]]  # (where the row stands, its fields)


def _whole(texts: Iterable[str]) -> Iterator[Piece]:
    for text in texts:
        if text.strip():
            yield from cut([text])


def _texts(rows: Rows, field: str | None, origin: str) -> Iterator[str]:
    """The text of every row, with the line ends that plain files have; empty fields are left out."""
    for where, row in rows:
        field = field or _only_text(row, origin)
        if field not in row:
            raise DataError(f"{where}: there is no field {field!r}; the fields are {', '.join(map(str, row))}")
        if not isinstance(value := row[field], str | None):
            raise DataError(f"{where}: the field {field!r} must hold text, got {type(value).__name__}")
        yield plain(value or "")


def plain(text: str) -> str:
    r"""The text of a field with line ends as "\n" and "?" for half a surrogate pair, which JSON can smuggle in."""
    return text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()


def _only_text(row: Mapping[str, Any], origin: str) -> str:
    names = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in row or len(names) == 1:
        return "text" if "text" in row else names[0]
    raise DataError(
        f"{origin}: which field holds the text? Give one of them, --set source.field=NAME (evaluate: --field NAME): "
        f"{', '.join(map(str, row))}"
    )


def json_rows(path: Path, encoding: str | None) -> Rows:
    for number, line in enumerate(lines(decoded(path, encoding)), 1):
        where = f"{path}:{number}"
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}; expected one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f'{where}: expected an object such as {{"text": "..."}}, got {type(row).__name__}')
        if row:
            yield where, row


def _csv_rows(path: Path, encoding: str | None) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than a long article; C long is 32 bits on Windows
    delimiter = "\t" if suffix(path) == ".tsv" else ","
    reader = csv.DictReader(lines(decoded(path, encoding)), delimiter=delimiter, restkey=MORE, strict=True)
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if more := [cell for cell in row.get(MORE) or () if cell]:  # empty where every row ends with a comma
                between = "tab" if delimiter == "\t" else "comma"
                raise DataError(
                    f"{where} has more columns than the header names, first {more[0]!r}: a text with a {between} "
                    "in it stands in quotation marks"
                )
            yield where, row
    except csv.Error as error:
        where = f"{path}:{reader.reader.line_num}"
        raise DataError(f"{where}: {error}; a quotation mark in a field is written twice") from None


def parquet_rows(path: Path) -> Rows:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError("Reading .parquet files", "parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from ((str(path), row) for row in batch.to_pylist())
    except (OSError, ValueError) as error:  # pyarrow's own errors are subclasses of these
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


# Sources without files -------------------------------------------------------------------------------------------


def _builtin(name: str) -> Iterator[Piece]:
    if name != "builtin:python-docs":
        raise DataError(f"There is no source {name!r}; the built-in one is builtin:python-docs")
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    yield from _whole(topics[key] for key in sorted(topics))


def _hub_rows(name: str) -> Rows:
    """Rows of `hf:NAME[:CONFIG][:SPLIT]`; a single part after the name is a split if it is the usual name of one."""
    try:
        load: Callable[..., Iterable[Mapping[str, Any]]] = importlib.import_module("datasets").load_dataset
    except ImportError:
        raise MissingExtraError("Reading Hugging Face data sets", "hub") from None
    data, *parts = name.removeprefix("hf:").split(":")
    split = parts.pop() if len(parts) > 1 or (parts and parts[0] in ("train", "validation", "test")) else "train"
    try:
        for number, row in enumerate(load(data, *parts, split=split, streaming=True)):
            yield f"{name} row {number}", row
    except Exception as error:  # the library raises a dozen kinds, most of them about the network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be loaded ({reason}); check the name and the connection") from None
