"""Strict readers: rows of CSV, TSV, JSON Lines, Parquet and Hub data sets, byte for byte, each with its line number."""

import codecs
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from finetune import hub
from finetune.errors import Exit, UserError, did_you_mean, nearest

KNOWN = ".csv, .tsv, .jsonl, .json (each also .gz) and .parquet"
CARD = "README.md"  # of a data set on the Hub; nearly every one has it
INSTEAD = "give a local file: data.train=FILE.csv"
BLOCK_BYTES = 1 << 20
TABLE_ROWS = 1_000
LARGEST_FIELD = 2**31 - 1
Value = str | list[str] | None
Row = tuple[int, list[Value]]


@dataclass(frozen=True)
class Wanted:
    """Say which columns to take (role to column, `id` last) and how to decode a file.

    The setting of a role is data.<role>_column; the second and third columns of one setting are the roles source.1 and
    source.2. In JSON and Parquet a column may be a path: `answers.text` is `text` of the object, or of each object of
    the list, `answers`. Roles in `lists` may hold a list of texts; those in `optional` may be absent from a file.
    """

    columns: dict[str, str]
    id_required: bool = False
    multi_label: bool = False
    lists: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    encoding: str = "utf-8"
    delimiter: str | None = None
    max_bytes: float = 8e9


@dataclass(frozen=True)
class Source:
    """One file or Hub split: its name as the person gave it, the digest of its content, and its rows to come.

    `kind` says how the bytes are read: the suffix of a file, without .gz. `language` is what stands for `{language}` in
    the pattern that named the file.
    """

    name: str
    digest: str
    rows: Iterator[Row]
    kind: str = ""
    language: str | None = None

    @property
    def identity(self) -> str:
        """Return what decides the rows: the same bytes are other rows in another kind of file."""
        return f"{self.digest}{self.kind}"


def open_file(file: str, wanted: Wanted) -> Source:
    """Check that a data file is there and sound, and return its rows unread.

    Raises UserError: 66 where there is no such file, 65 where its kind is unknown or its packing is damaged.
    """
    path = Path(file).expanduser()
    suffix = _suffix(file)
    digest = _check_sound(file, path, wanted)
    reader: Callable[[str, Path, Wanted], Iterator[Row]]
    if suffix == ".parquet":
        reader = _parquet_rows
    elif suffix.removesuffix(".gz") in {".csv", ".tsv"}:
        reader = _csv_rows
    else:
        reader = _json_rows
    return Source(file, digest, _explained(file, path, wanted, reader), suffix.removesuffix(".gz"))


def is_text(file: str) -> bool:
    """Tell whether a file holds plain text, by its name: .txt or .txt.gz."""
    return file.lower().removesuffix(".gz").endswith(".txt")


def open_text(file: str, wanted: Wanted) -> Source:
    """Check that a plain text file is there and sound, and return its lines unread: one value a row, blank ones too.

    A line ends at a line feed; a carriage return before it is taken off. Raises UserError as `open_file` does.
    """
    path = Path(file).expanduser()
    return Source(file, _check_sound(file, path, wanted), _explained(file, path, wanted, _text_rows), ".txt")


def open_hub(name: str, config: str | None, revision: str | None, wanted: Wanted) -> dict[str, Source]:
    """Load a Hub data set and return the rows of its train, validation and test splits, unread.

    Raises UserError: 69 where the Hub cannot be reached and the data set is not on this machine, 66 where there is
    no such data set, 2 where its configuration must be named.
    """
    loaded, commit = _load_hub(name, config, revision)
    title = f"{name}/{config}" if config else name
    sources: dict[str, Source] = {}
    for role, names in {"train": ["train"], "validation": ["validation", "valid", "dev"], "test": ["test"]}.items():
        split = next((candidate for candidate in names if candidate in loaded), None)
        if split is not None:
            rows = loaded[split]
            tables = rows.with_format("arrow").iter(batch_size=TABLE_ROWS)
            label = f"{title}[{split}]"
            digest = f"{commit}:{rows._fingerprint}"
            sources[role] = Source(label, digest, _table_rows(label, tables, rows.features, wanted))
    return sources


def shown(value: Any, limit: int = 60) -> str:
    """Return a value in double quotes on one line, shortened to `limit` characters."""
    text = json.dumps(str(value)[: limit + 1], ensure_ascii=False)[1:-1].replace('\\"', '"')
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return f'"{text[: limit - 1]}…"' if len(text) > limit else f'"{text}"'


def _suffix(file: str) -> str:
    path = Path(file.lower())
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix not in {".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json.gz", ".parquet"}:
        if Path(file).expanduser().is_dir():
            raise UserError(Exit.NO_INPUT, f"{file} is a folder; give the data file in it")
        raise UserError(Exit.BAD_DATA, f"{file}: unknown kind of file {suffix or '(no extension)'}; known are {KNOWN}")
    return suffix


def _check_sound(file: str, path: Path, wanted: Wanted) -> str:
    """Return the digest of a file's bytes; refuse one that is absent, empty, or not a sound gzip file."""
    if not path.is_file():
        raise UserError(Exit.NO_INPUT, _absent(file, path))
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if path.stat().st_size == 0:
            raise _empty(file)
        if path.suffix.lower() == ".gz":
            _check_gzip(file, path, wanted.max_bytes)
    except OSError as error:
        raise UserError(Exit.NO_INPUT, f"{file} cannot be read: {error.strerror or error}") from None
    return digest


def _absent(file: str, path: Path) -> str:
    if path.is_dir():
        return f"{file} is a folder; give the data file in it"
    if path.exists():
        return f"{file} is not a regular file; write its content to a file first"
    if not path.parent.is_dir():
        return f"{file}: no such file; there is no folder {path.parent}"
    try:
        guess = nearest(path.name, os.listdir(path.parent))
    except OSError:
        guess = None
    return f"{file}: no such file" + (f"; did you mean {Path(file).with_name(guess)}?" if guess else "")


def _empty(file: str) -> UserError:
    return UserError(Exit.BAD_DATA, f"{file} is empty; give a file with rows")


def _no_rows(file: str) -> UserError:
    return UserError(Exit.BAD_DATA, f"{file} has column names but no rows; give a file with rows")


def _check_gzip(file: str, path: Path, limit: float) -> None:
    # Unpacked once ahead of the reader: a bomb of one endless line would fill the memory before its line ends.
    unpacked = 0
    try:
        with gzip.open(path) as stream:
            while block := stream.read(BLOCK_BYTES):
                unpacked += len(block)
                if unpacked > limit:
                    advice = f"if that is right, give data.max_gigabytes={max(1, round(limit / 1e9)) * 2}"
                    raise UserError(Exit.BAD_DATA, f"{file} unpacks to more than {limit / 1e9:g} GB; {advice}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"not a sound gzip file ({error})"
        raise UserError(Exit.BAD_DATA, f"{file} is {reason}; copy or pack it again") from None


def _open_text(path: Path, encoding: str, newline: str) -> IO[str]:
    # utf-8-sig also reads files without a byte order mark
    codec = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding=codec, newline=newline)
    return path.open(encoding=codec, newline=newline)


def _explained(
    file: str, path: Path, wanted: Wanted, reader: Callable[[str, Path, Wanted], Iterator[Row]]
) -> Iterator[Row]:
    try:
        yield from reader(file, path, wanted)
    except UnicodeError:
        raise _undecodable(file, path, wanted.encoding) from None
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(Exit.BAD_DATA, f"{file} is not a sound Parquet file: {reason}") from None
    except OSError as error:
        raise UserError(Exit.IO_FAILED, f"{file} cannot be read: {error.strerror or error}") from None


def _undecodable(file: str, path: Path, encoding: str) -> UserError:
    """Find the first byte that is not `encoding`; offsets count from 0 in the unpacked file."""
    if path.suffix.lower() == ".parquet":
        return UserError(Exit.BAD_DATA, f"{file} holds text that is not UTF-8; write the file again from clean text")
    decoder = codecs.getincrementaldecoder(encoding)()
    read, line, start = 0, 1, b""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        while True:
            block = stream.read(BLOCK_BYTES)
            start = start or block[:2]
            read += len(block)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                offset = read - len(error.object) + error.start
                line += error.object[: error.start].decode(encoding, "ignore").count("\n")
                bad = error.object[error.start]
                break
            except UnicodeError as error:
                return UserError(Exit.BAD_DATA, f"{file} cannot be read as {encoding}: {error}")
            if not block:
                return UserError(Exit.BAD_DATA, f"{file} changed while it was read; start again")
    advice = f"if the file is in another encoding, name it: {_likely_encoding(start, bad)}"
    return UserError(Exit.BAD_DATA, f"{file}:{line}: byte 0x{bad:02X} at offset {offset:,} is not {encoding}; {advice}")


def _likely_encoding(start: bytes, bad: int) -> str:
    if start in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        return "data.encoding=utf-16"
    # 0x80 to 0x9F are control codes in Latin-1, but quotes, dashes and the euro sign on Windows
    return "data.encoding=cp1252" if 0x80 <= bad <= 0x9F else "data.encoding=latin-1"


def _text_rows(file: str, path: Path, wanted: Wanted) -> Iterator[Row]:
    with _open_text(path, wanted.encoding, newline="\n") as lines:
        for line, text in enumerate(lines, 1):
            yield line, [text.rstrip("\r\n")]


def _csv_rows(file: str, path: Path, wanted: Wanted) -> Iterator[Row]:
    """Yield rows of a CSV or TSV file; a row's line is the one where it starts."""
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    delimiter = {None: "\t" if tabs else ",", "\\t": "\t"}.get(wanted.delimiter, wanted.delimiter)
    assert delimiter is not None
    csv.field_size_limit(LARGEST_FIELD)
    with _open_text(path, wanted.encoding, newline="") as lines:
        records = _records(file, csv.reader(lines, delimiter=delimiter, strict=True))
        first, header = next(((line, record) for line, record in records if record), (0, []))
        if not header:
            raise _empty(file)
        picks = _picks(f"{file}:{first}", header, wanted)
        rows = 0
        for line, record in _even(file, header, records, delimiter):
            rows += 1
            yield line, [None if pick is None else record[pick] for pick in picks]
        if not rows:
            raise _no_rows(file)


def _records(file: str, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise UserError(Exit.BAD_DATA, f"{file}:{line}: {_quoting(str(error))}") from None
        if record is None:
            return
        yield line, record


def _quoting(reason: str) -> str:
    if "unexpected end" in reason:
        return 'a quote in the row that starts here is never closed; close it, or write a quote inside a text as ""'
    if "expected after" in reason:
        return 'in the row that starts here, text goes on after a closing quote; write a quote inside a text as ""'
    return reason


def _even(
    file: str, header: list[str], records: Iterator[tuple[int, list[str]]], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    blank: list[int] = []
    for line, record in records:
        if len(record) == len(header):
            # In a file of one column a blank line is an empty text; only blank lines at the end mean nothing.
            yield from ((empty, [""]) for empty in blank)
            blank.clear()
            yield line, record
        elif record:
            raise _ragged(f"{file}:{line}", header, record, delimiter)
        elif len(header) == 1:
            blank.append(line)


def _ragged(where: str, header: list[str], record: list[str], delimiter: str) -> UserError:
    names = ", ".join(header[:10]) + (", ..." if len(header) > 10 else "")
    fields = "1 field" if len(record) == 1 else f"{len(record)} fields"
    what = f"{where} has {fields} where the header has {len(header)} ({names}): {shown(delimiter.join(record))}"
    separator = {",": "commas", "\t": "tabs", ";": "semicolons"}.get(delimiter, f"the separator {delimiter!r}")
    advice = f"Quote texts that hold {separator}." if len(record) > len(header) else "Add what is missing."
    return UserError(Exit.BAD_DATA, f"{what}. {advice}")


def _picks(where: str, header: list[str], wanted: Wanted) -> list[int | None]:
    """Return the position of each wanted column, None for one that the file need not have and does not."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(Exit.BAD_DATA, f"{where} has the column {shown(twice[0])} twice; rename one of them")
    picks: list[int | None] = []
    for role, column in wanted.columns.items():
        if column not in header and not _may_lack(role, wanted):
            raise UserError(Exit.BAD_DATA, _no_column(where, header, role, column))
        picks.append(header.index(column) if column in header else None)
    return picks


def _check_nested(where: str, names: list[str], wanted: Wanted) -> None:
    """Check like `_picks` where columns may be paths: the first part of a path must be there."""
    tops = {role: _top(column, names) for role, column in wanted.columns.items()}
    _picks(where, names, dataclasses.replace(wanted, columns=tops))


def _may_lack(role: str, wanted: Wanted) -> bool:
    return role in wanted.optional or (role == "id" and not wanted.id_required)


def _top(column: str, names: Iterable[str]) -> str:
    """Return the column that holds the value: itself, or for a path its first part."""
    return column if column in names else column.partition(".")[0]


def _reach(row: dict[str, Any], column: str, where: str) -> Any:
    """Return the value of a column or at the end of a path; of a list, the value in each of its objects."""
    if column in row or "." not in column:
        return row.get(column)
    top, *names = column.split(".")
    value = row.get(top)
    for name in names:
        if isinstance(value, list):
            value = [_member(item, name, column, where) for item in value]
        else:
            value = _member(value, name, column, where)
    return value


def _member(value: Any, name: str, column: str, where: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(Exit.BAD_DATA, f"{where}: {column} asks for {name} of {shown(value)}, which is no object")
    if name not in value:
        names = ", ".join(shown(key, 30)[1:-1] for key in list(value)[:10])
        what = f"{where}: {column}: there is no {name}{did_you_mean(name, value)} (there: {names})"
        raise UserError(Exit.BAD_DATA, what)
    return value[name]


def _no_column(where: str, header: list[str], role: str, column: str) -> str:
    if len(header) == 1:
        for separator in (";", "\t", "|", ","):
            if separator in header[0]:
                given = "'\\t'" if separator == "\t" else f"'{separator}'"
                only = f"{where} has one column only, {shown(header[0])}, and no {column}"
                return f"{only}; if {given} separates the columns, give data.delimiter={given}"
    names = ", ".join(shown(name, 30)[1:-1] for name in header[:10]) + (", ..." if len(header) > 10 else "")
    guess = nearest(column, header)
    question = f"; did you mean {guess}?" if guess else ""
    setting = f"data.{role.partition('.')[0]}_column"
    return f"{where} has no column {column}{question} (columns: {names}). Give {setting}={guess or 'NAME'}"


def _json_rows(file: str, path: Path, wanted: Wanted) -> Iterator[Row]:
    """Yield rows of a JSON Lines file; blank lines are passed over, as every reader of the format does."""
    roles = wanted.columns.items()
    first = True
    with _open_text(path, wanted.encoding, newline="\n") as lines:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{file}:{line}"
            value = _json_object(where, text)
            if first:
                _check_nested(where, list(value), wanted)
                first = False
            yield line, [_as_text(_reach(value, column, where), role, where, wanted) for role, column in roles]
    if first:
        raise _empty(file)


def _json_object(where: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(": line ")[0]
        what = f"{where} is not a JSON object on one line: {reason}: {shown(text.strip())}"
        raise UserError(Exit.BAD_DATA, what) from None
    if not isinstance(value, dict):
        what = f"{where} is not a JSON object: {shown(text.strip())}"
        raise UserError(Exit.BAD_DATA, f'{what}; write one {{"text": ..., "label": ...}} a line')
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is given twice")
    return value


def _as_text(value: Any, role: str, where: str, wanted: Wanted) -> Value:
    if value is None or isinstance(value, str):
        return value
    if role in wanted.lists and isinstance(value, list):
        return _texts(value, role, where)
    if role in {"label", "id"} and isinstance(value, bool):
        return "true" if value else "false"
    if role in {"label", "id"} and isinstance(value, int):
        return str(value)
    if role == "label" and isinstance(value, list):
        return _joined(value, where, wanted.multi_label)
    kinds = "text, a whole number or true/false" if role in {"label", "id"} else "text"
    advice = "; put it in quotes" if isinstance(value, bool | int | float) else ""
    raise UserError(Exit.BAD_DATA, f"{where}: {role} must be {kinds}, not {shown(value)[1:-1]}{advice}")


def _texts(values: list[Any], role: str, where: str) -> list[str]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            what = f"{where}: {role} is a list, and its item {number} is not text but {shown(value)[1:-1]}"
            raise UserError(Exit.BAD_DATA, f"{what}; give a list of texts, or the path to one, e.g. answers.text")
    return values


def _joined(values: list[Any], where: str, multi_label: bool) -> str:
    if not multi_label:
        raise UserError(Exit.BAD_DATA, f"{where}: label is a list; give data.multi_label=true, or one label a row")
    for value in values:
        if not isinstance(value, str) or not value.strip() or "|" in value:
            what = f"{where}: each label of a list must be text without |, not {shown(value)}"
            raise UserError(Exit.BAD_DATA, what)
    return "|".join(values)


def _parquet_rows(file: str, path: Path, wanted: Wanted) -> Iterator[Row]:
    """Yield rows of a Parquet file; a row's line is its number, from 1.

    Not `datasets.load_dataset`: its cache is keyed by name and modification time, so an edited file that keeps its
    time gives the old rows, and a truncated cache file fails for ever.
    """
    with pq.ParquetFile(path) as stored:
        names = stored.schema_arrow.names
        _check_nested(file, names, wanted)
        if stored.metadata.num_rows == 0:
            raise _no_rows(file)
        tops = dict.fromkeys(_top(column, names) for column in wanted.columns.values())
        columns = [name for name in tops if name in names]
        fields = [stored.schema_arrow.field(name) for name in columns]
        features = datasets.Features.from_arrow_schema(pa.schema(fields, metadata=stored.schema_arrow.metadata))
        tables = (pa.Table.from_batches([batch]) for batch in stored.iter_batches(TABLE_ROWS, columns=columns))
        yield from _table_rows(file, tables, features, wanted)


def _table_rows(file: str, tables: Iterable[pa.Table], features: Any, wanted: Wanted) -> Iterator[Row]:
    line = 0
    for table in tables:
        if line == 0:
            _check_nested(file, table.column_names, wanted)
        columns = [_text_column(table, features, role, file, line, wanted) for role in wanted.columns]
        for values in zip(*columns, strict=True):
            line += 1
            yield line, list(values)
    if line == 0:
        raise _no_rows(file)


def _text_column(table: pa.Table, features: Any, role: str, file: str, before: int, wanted: Wanted) -> list[Value]:
    column = wanted.columns[role]
    top = _top(column, table.column_names)
    if top not in table.column_names:
        return [None] * table.num_rows
    values = table[top].to_pylist()
    if isinstance(features[top], datasets.ClassLabel):
        names = features[top].names  # -1 marks a row whose label is withheld
        values = [names[value] if value is not None and value >= 0 else None for value in values]
    found: list[Value] = []
    for line, value in enumerate(values, before + 1):
        where = f"{file}:{line}"
        found.append(_as_text(_reach({top: value}, column, where), role, where, wanted))
    return found


def _load_hub(name: str, config: str | None, revision: str | None) -> tuple[Any, str]:
    """Return the splits of a data set, and the commit that they are of."""
    if Path(name).exists():
        raise UserError(Exit.USAGE, f"data.name={name} is a file or folder here; give the data as data.train=FILE")
    place = hub.Place(f"data.name={name}", "dataset", name, revision or hub.MAIN)
    reason = commit = None
    try:
        found = hub.ask(place)
        commit = found.commit
        if CARD in found.files:
            with hub.download_errors(place):
                hub.remember(place, CARD)
    except hub.Unreachable as error:
        reason = str(error)
    loaded = _load_datasets(place, config, commit, reason)
    if commit is None:
        commit = _commit_of(loaded)
        if revision and commit not in {revision, _commit_before(place)}:
            what = f"the cache holds revision {commit[:12]}, which may not be {revision}"
            raise hub.not_here(place, f"{reason}; {what}", INSTEAD)
    return loaded, commit


def _load_datasets(place: hub.Place, config: str | None, commit: str | None, reason: str | None) -> Any:
    offline, bars = datasets.config.HF_HUB_OFFLINE, datasets.is_progress_bar_enabled()
    try:
        # Spare the library its minutes of retries: without the Hub, only its cache on this machine can help.
        datasets.config.HF_HUB_OFFLINE = offline or reason is not None
        datasets.disable_progress_bars()
        # The commit, not the name of a branch: for a branch it also asks another server for what it knows of the data.
        return datasets.load_dataset(place.name, config, revision=commit)
    except Exception as error:  # the library, its HTTP client and its parsers have no error class in common
        raise _hub_error(place, error, reason) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
        if bars:
            datasets.enable_progress_bars()


def _commit_before(place: hub.Place) -> str | None:
    """Return the commit that a revision stood for when the Hub was last asked, as far as the cache knows it."""
    folder = hub.cached(place, CARD)
    return folder.name if folder is not None else None


def _commit_of(loaded: Any) -> str:
    """Return the commit of a data set as the library's cache has it: the name of the folder of its files."""
    files = [file["filename"] for rows in loaded.values() for file in rows.cache_files]
    return Path(files[0]).parent.name if files else "unknown"


def _hub_error(place: hub.Place, error: Exception, reason: str | None) -> UserError:
    message = f"{place.setting}: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    if reason:
        return hub.not_here(place, reason, INSTEAD)
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):  # also of one that is there, but gated
        return UserError(Exit.NO_INPUT, f"{message}\n{hub.how_to_log_in()}")
    if isinstance(error, datasets.exceptions.DatasetsError | pa.ArrowException):
        return UserError(Exit.BAD_DATA, f"{place.setting} cannot be read: {hub.first_line(error)}")
    if isinstance(error, ValueError | RuntimeError):
        return UserError(Exit.USAGE, f"{message}; give data.config=NAME if one is asked for")
    return hub.broken_off(place, hub.first_line(error))


def check_encoding(encoding: str) -> str:
    """Return `encoding`; raises ValueError where Python does not know it as a text encoding."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError):
        raise ValueError("not a text encoding; try utf-8, latin-1 or cp1252") from None
    return encoding
