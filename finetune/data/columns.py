"""Which files and columns make a data set: splits with a place for every row, and the map from labels to numbers.

What all kinds of data share is here too: the settings `DataFiles` and `DataRules`, and `gather`, which makes a split of
the rows of any readers. Sources with targets are in `finetune.data.sequences`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.table import InMemoryTable
from pydantic import Field, field_validator

from finetune.config import Seed, configclass, field
from finetune.data.read import Source, Value, Wanted, check_encoding, open_file, open_hub, shown
from finetune.data.subset import nested_rows, rarest_labels
from finetune.errors import Exit, UserError, nearest

CHUNK_ROWS = 50_000
CHUNK_CHARACTERS = 50_000_000
EXAMPLES = 5
Files = str | list[str] | None


@configclass
class DataFiles:
    """Which files or Hub data set to read."""

    train: Files = field(None, "training file, or a list: CSV, TSV, JSONL (also .gz) or Parquet")
    validation: Files = field(None, "validation file or list; without one, a part of train is held out")
    test: Files = field(None, "test file or list, scored once at the end")
    name: str | None = field(None, "data set on the Hugging Face Hub, in place of files")
    config: str | None = field(None, "configuration of the Hub data set, e.g. a language")
    revision: str | None = field(None, "branch, tag or commit of the Hub data set")


@configclass
class DataRules(DataFiles):
    """How to decode the files, and what to do with rows that do not fit: the same for all kinds of data.

    `on_long` and `on_empty` are what every kind decides for itself, in its own words.
    """

    id_column: str | None = field(None, "column of the row's id; without it `id` if unique, else the row number from 0")
    encoding: str = field("utf-8", "encoding of text files")
    delimiter: str | None = field(None, "column separator; none: comma in .csv, tab in .tsv")
    on_long: str
    on_empty: Literal["error", "skip"]
    on_leak: Literal["warn", "error"] = field("warn", "what to do when test texts stand in train")
    validation_share: float = field(0.1, "part of train held out where no validation is given; between 0 and 1")
    validation_seed: Seed | None = field(None, "seed of the rows held out; null: the run's seed, of several the first")
    max_gigabytes: float = field(8.0, "largest file once unpacked, in GB")

    @field_validator("validation_share")
    @classmethod
    def _is_share(cls, share: float) -> float:
        if not 0 < share < 1:
            raise ValueError("give a share between 0 and 1, for example 0.1")
        return share

    @field_validator("max_gigabytes")
    @classmethod
    def _is_positive(cls, size: float) -> float:
        if not size > 0:
            raise ValueError("give a size above 0")
        return size

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, encoding: str) -> str:
        return check_encoding(encoding)

    @field_validator("delimiter")
    @classmethod
    def _is_delimiter(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and delimiter != "\\t" and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError("give one character, for example ';' or '\\t'")
        return delimiter


@configclass
class TextColumns(DataFiles):
    """Which columns hold text and label. `id_column` is here for its place in lists of settings."""

    text_column: str = field("text", "column of the text")
    text_pair_column: str | None = field(None, "column of a second text, for pairs of texts")
    label_column: str = field("label", "column of the label")
    id_column: str | None
    multi_label: bool = field(False, "a row has any number of labels, separated by |")


# Settings are listed in the order files, columns, rules: dataclasses takes the fields of the last base first.
@configclass
class DataConfig(DataRules, TextColumns):
    """Which files or Hub data set to read, which columns, and what to do with rows that do not fit."""

    on_long: Literal["truncate", "error", "window"] = field("truncate", "what to do with texts above max_length")
    on_empty: Literal["error", "skip"] = field("error", "what to do with rows without text or label")
    train_rows: Annotated[int, Field(gt=0)] | None = field(
        None, "train on so many rows, stratified, drawn by the seed; fewer rows are among them; null: all"
    )


@dataclass(frozen=True)
class Split:
    """Rows of one split, each with the file and line that it came from.

    `rows` has the columns id, text, text_pair (pairs only), label (labelled only; labels of a multi-label row are
    joined by |), file (index into `files`) and line (from 1; for Parquet and Hub data the number of the row). Rows of
    `finetune.data.sequences` have source, target and references in place of text and label, and language where it is
    known.
    `sha256` is file -> digest of its bytes as stored, or revision and fingerprint of Hub data. `numbered` says that the
    ids are row numbers, because the data have none: then equal ids of two files mean nothing.
    """

    name: str
    rows: datasets.Dataset
    files: tuple[str, ...]
    sha256: dict[str, str]
    skipped: int = 0
    skipped_turns: int = 0  # of dialogues, by data.skip_turns
    held_out: str = ""
    encoding: str = "utf-8"
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Return the place of a row, e.g. `train.csv:42`."""
        found = self.rows[int(row)]
        return f"{self.files[found['file']]}:{found['line']}"

    def blocks(self, columns: list[str], size: int = CHUNK_ROWS) -> Iterator[pa.Table]:
        """Yield `columns` as Arrow tables of at most `size` rows, in order."""
        yield from self.rows.select_columns(columns).with_format("arrow").iter(batch_size=size)

    def ids(self) -> list[str]:
        """Return the id of each row."""
        return self._values("id")

    def texts(self) -> list[str]:
        """Return the text of each row."""
        return self._values("text")

    def pairs(self) -> list[str] | None:
        """Return the second text of each row, or None where the rows are not pairs."""
        return self._values("text_pair") if "text_pair" in self.rows.column_names else None

    def labels(self) -> list[str]:
        """Return the label of each row; raises UserError (65) where the split was read without labels."""
        if "label" not in self.rows.column_names:
            raise UserError(Exit.BAD_DATA, f"{self.files[0]} was read without labels; give data.label_column=NAME")
        return self._values("label")

    def sources(self) -> list[str]:
        """Return the source of each row of a sequence-to-sequence split."""
        return self._values("source")

    def targets(self) -> list[str]:
        """Return the target of each row, its first reference; raises UserError (65) where it was read without."""
        if "target" not in self.rows.column_names:
            raise UserError(Exit.BAD_DATA, f"{self.files[0]} was read without targets; give data.target_column=NAME")
        return self._values("target")

    def references(self) -> list[list[str]]:
        """Return all references of each row, one or more; the target is one of them."""
        stored = self._values("references")
        return [several or [target] for several, target in zip(stored, self.targets(), strict=True)]

    def languages(self) -> list[str | None] | None:
        """Return the language of each row, or None where the split does not say."""
        return self._values("language") if "language" in self.rows.column_names else None

    def select(self, indices: Iterable[int] | np.ndarray) -> "Split":
        """Return the split with these rows only, in this order."""
        return dataclasses.replace(self, rows=self.rows.select(indices))

    def _values(self, column: str) -> list[Any]:
        return [value for block in self.blocks([column]) for value in block[column].to_pylist()]


@dataclass(frozen=True)
class LabelMap:
    """The labels of the training data in natural order; a label's number is its place."""

    names: tuple[str, ...]
    multi_label: bool = False

    @classmethod
    def learn(cls, split: Split, multi_label: bool = False) -> "LabelMap":
        """Collect the labels of the training split; raises UserError (65) for fewer than two."""
        whole = set(split.labels())
        found = {part for label in whole for part in split_labels(label)} if multi_label else whole
        if len(found) < 2:
            only = f"has one label only, {shown(next(iter(found)))}" if found else "has no label"
            raise UserError(Exit.BAD_DATA, f"{split.files[0]} {only}; a classifier needs rows of two labels or more")
        return cls(tuple(sorted(found, key=natural_key)), multi_label)

    def encode(self, split: Split) -> np.ndarray:
        """Return label numbers: (rows,) int64, or for multi-label (rows, labels) float32 of 0 and 1.

        Raises UserError (65) for labels that the training data does not have, with place and nearest known label.
        """
        numbers = {name: number for number, name in enumerate(self.names)}
        parts = labels_of_rows(split, self.multi_label)
        unseen = [row for row, names in enumerate(parts) if any(name not in numbers for name in names)]
        if unseen:
            name = next(name for name in parts[unseen[0]] if name not in numbers)
            raise UserError(Exit.BAD_DATA, self._unseen(split.where(unseen[0]), name, len(unseen)))
        if not self.multi_label:
            return np.array([numbers[label] for (label,) in parts], dtype=np.int64)
        encoded = np.zeros((len(parts), len(self.names)), dtype=np.float32)
        for row, names in enumerate(parts):
            encoded[row, [numbers[name] for name in names]] = 1.0
        return encoded

    def _unseen(self, where: str, name: str, total: int) -> str:
        guess = nearest(name, self.names)
        question = f"; did you mean {shown(guess)}?" if guess else ""
        rows = "1 such row" if total == 1 else f"{total:,} such rows"
        advice = "mend the label or add training rows that have it"
        return f"{where}: label {shown(name)} is not in the training data{question} ({rows}); {advice}"


def labels_of_rows(split: Split, multi_label: bool) -> list[list[str]]:
    """Return the labels of each row: one, or any number where rows are multi-label."""
    return [split_labels(label) if multi_label else [label] for label in split.labels()]


def split_labels(label: str) -> list[str]:
    """Return the labels of a multi-label row; none for an empty text."""
    return [part.strip() for part in label.split("|") if part.strip()]


def natural_key(label: str) -> tuple[Any, ...]:
    """Return a sort key that puts numbers first and in numeric order ("2" before "10", "a2" before "a10")."""
    if re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", label):
        return (0, float(label), label)
    parts = re.split(r"([0-9]+)", label)
    # A run of digits compares by length, then digits: numeric order without int(), which refuses 4,301 digits.
    keys = [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)]
    return (1, keys, label)


def read_split(name: str, files: str | list[str], config: DataConfig, *, labelled: bool = True) -> Split:
    """Read one split from its files, in the order given.

    Raises UserError: 66 where a file is missing, 65 with file:line for anything wrong in it.
    """
    wanted = _wanted(config, labelled)
    return gather(name, open_files(files, wanted), wanted, config.on_empty)


def as_list(files: Files) -> list[str]:
    """Return one file, several or none as a list."""
    return [] if files is None else [files] if isinstance(files, str) else files


def open_files(files: str | list[str], wanted: Wanted) -> list[Source]:
    """Open the files of one split in the order given, their rows unread."""
    return [open_file(file, wanted) for file in as_list(files)]


def from_lines(name: str, lines: Iterable[str], column: Literal["text", "source"] = "text") -> Split:
    """Make a split without labels or targets of lines of text, e.g. from standard input.

    Raises UserError (65) for an empty line.
    """
    try:
        texts = [line.rstrip("\r\n") for line in lines]
    except UnicodeError as error:
        raise UserError(Exit.BAD_DATA, f"{name} is not UTF-8 ({error}); give a file, with --encoding") from None
    empty = next((number for number, text in enumerate(texts, 1) if not text.strip()), None)
    if empty is not None or not texts:
        raise UserError(Exit.BAD_DATA, f"{name}:{empty or 1} is empty; give one text a line")
    return from_columns(name, {column: texts})


def from_columns(name: str, columns: Mapping[str, Sequence[str]]) -> Split:
    """Make a split without labels or targets of texts by role (text, text_pair, source), one or more, all as long."""
    size = len(next(iter(columns.values())))
    table = pa.table(
        {
            "id": pa.array([str(number) for number in range(size)], pa.string()),
            **{role: pa.array(texts, pa.string()) for role, texts in columns.items()},
            "file": pa.array([0] * size, pa.int16()),
            "line": pa.array([number + 1 for number in range(size)], pa.int32()),
        }
    )
    digest = hashlib.sha256("\n".join(text for texts in columns.values() for text in texts).encode()).hexdigest()
    rows = datasets.Dataset(InMemoryTable(table), fingerprint=digest[:16])
    return Split(name, rows, (name,), {name: digest}, numbered=True)


def digests(splits: Mapping[str, Split]) -> dict[str, str]:
    """Return what identifies the data of all splits: file -> sha256."""
    return {file: digest for split in splits.values() for file, digest in split.sha256.items()}


def read_splits(config: DataConfig, *, seed: int, need_train: bool = True) -> dict[str, Split]:
    """Read train, validation and test, as far as they are given; hold out a part of train where no validation is.

    Raises UserError: 2 where train is needed and not given, otherwise as `read_split`.
    """
    wanted = _wanted(config, labelled=True)
    splits = gather_splits(
        config, wanted, lambda name, sources: gather(name, sources, wanted, config.on_empty), need_train=need_train
    )
    if "train" in splits and "validation" not in splits:
        splits |= _hold_out(splits["train"], config, seed_of_validation(config, seed))
    if "train" in splits and config.train_rows is not None:
        labels = labels_of_rows(splits["train"], config.multi_label)
        splits["train"] = splits["train"].select(nested_rows(labels, config.train_rows, seed))
    return in_order(splits)


def gather_splits(
    config: DataRules,
    wanted: Wanted,
    read: Callable[[str, list[Source]], Split],
    *,
    need_train: bool,
    opened: Callable[[str | list[str], Wanted], list[Source]] = open_files,
) -> dict[str, Split]:
    """Open the files of train, validation and test, as far as they are given, and `read` each into a split."""
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    files = {name: value for name, value in given.items() if value}
    if need_train and "train" not in files and config.name is None:
        raise UserError(Exit.USAGE, "no training data; give data.train=FILE (CSV, TSV, JSONL or Parquet)")
    hub = open_hub(config.name, config.config, config.revision, wanted) if config.name else {}
    if need_train and "train" not in files and "train" not in hub:
        raise UserError(Exit.USAGE, f"data.name={config.name} has no train split; give data.train=FILE")
    splits: dict[str, Split] = {}
    for name in given:
        if name in files:
            splits[name] = read(name, opened(files[name], wanted))
        elif name in hub:
            splits[name] = read(name, [hub[name]])
    return splits


def in_order(splits: dict[str, Split]) -> dict[str, Split]:
    """Return the splits that are there as train, validation, test."""
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def _wanted(config: DataConfig, labelled: bool) -> Wanted:
    columns = {"text": config.text_column}
    if config.text_pair_column is not None:
        columns["text_pair"] = config.text_pair_column
    if labelled:
        columns["label"] = config.label_column
    columns["id"] = config.id_column if config.id_column is not None else "id"
    return Wanted(
        columns,
        id_required=config.id_column is not None,
        multi_label=config.multi_label,
        encoding=config.encoding,
        delimiter=config.delimiter,
        max_bytes=config.max_gigabytes * 1e9,
    )


def gather(name: str, sources: list[Source], wanted: Wanted, on_empty: str) -> Split:
    """Read the rows of sources, one after the other, into a split that has a column for each role of `wanted`.

    Raises UserError (65) with file:line for rows that lack a value, unless on_empty is skip, and for repeated ids.
    """
    gathered = _Gathered(wanted)
    for number, source in enumerate(sources):
        gathered.source = source.name
        for line, values in source.rows:
            gathered.add(number, line, values)
    gathered.finish(on_empty)
    files = tuple(source.name for source in sources)
    table = gathered.table(files)
    digests = {source.name: source.digest for source in sources}
    # Without a fingerprint of our own, `datasets` would pickle and hash the whole table to make one.
    made_of = repr((name, files, digests, wanted, on_empty))
    fingerprint = hashlib.sha256(made_of.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    rows = datasets.Dataset(InMemoryTable(table), fingerprint=fingerprint)
    skipped = sum(gathered.empty.values())
    return Split(name, rows, files, digests, skipped, encoding=wanted.encoding, numbered=gathered.numbered)


class _Gathered:
    """Rows on their way from Python to Arrow, which needs a tenth of the memory."""

    def __init__(self, wanted: Wanted) -> None:
        self.roles = list(wanted.columns)
        self.wanted = wanted
        self.source = ""
        self.position = 0  # rows met, skipped ones included, so that a row number is the row's place in the file
        self.characters = 0
        self.all_characters = 0
        self.values: list[list[Value]] = []
        self.places: list[tuple[int, int, int]] = []  # file, line, position
        self.batches: list[pa.RecordBatch] = []
        self.empty: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.numbered = False  # settled by `table`

    def add(self, file: int, line: int, values: list[Value]) -> None:
        """Take one row, or count it among the empty ones."""
        place = (file, line, self.position)
        self.position += 1
        for role, value in zip(self.roles, values, strict=True):
            if _is_blank(value) and self._must_have(role, value):
                self.empty[role] = self.empty.get(role, 0) + 1
                examples = self.examples.setdefault(role, [])
                if len(examples) < EXAMPLES:
                    examples.append(f"{self.source}:{line}")
                return
            self.characters += len(value) if isinstance(value, str) else sum(map(len, value or ()))
        self.values.append(values)
        self.places.append(place)
        if len(self.values) == CHUNK_ROWS or self.characters > CHUNK_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Move the rows held so far into Arrow."""
        self.all_characters += self.characters
        if self.all_characters > self.wanted.max_bytes:
            limit = f"{self.wanted.max_bytes / 1e9:g} GB"
            advice = "split the data, or raise data.max_gigabytes"
            raise UserError(Exit.BAD_DATA, f"{self.source}: the rows hold more than {limit} of text; {advice}")
        try:
            arrays = [self._column(place) for place in range(len(self.roles))]
        except UnicodeEncodeError:
            raise self._surrogate() from None
        for place, kind in enumerate((pa.int16(), pa.int32(), pa.int64())):
            arrays.append(pa.array([where[place] for where in self.places], kind))
        self.batches.append(pa.RecordBatch.from_arrays(arrays, names=[*self.roles, "file", "line", "position"]))
        self.values, self.places, self.characters = [], [], 0

    def finish(self, on_empty: str) -> None:
        """Close the last chunk; raises UserError (65) for empty rows that may not be skipped, or where none is left."""
        if self.values:
            self.flush()
        if self.empty and on_empty == "error":
            role, places = next(iter(self.examples.items()))
            counts = ", ".join(f"{count:,} without {role}" for role, count in self.empty.items())
            total = sum(self.empty.values())
            rows = "1 row is" if total == 1 else f"{total:,} rows are"
            more = ", ..." if self.empty[role] > len(places) else ""
            message = f"{rows} empty ({counts}): {', '.join(places)}{more}"
            with_gold = not {"label", "target"}.isdisjoint(self.roles)  # rows to predict are never left out
            skip = ", or leave them out: data.on_empty=skip (evaluate: --on-empty skip)" if with_gold else ""
            raise UserError(Exit.BAD_DATA, f"{message}. Mend them{skip}")
        if not self.batches:
            raise UserError(Exit.BAD_DATA, f"{self.source}: no row is left once empty ones are skipped")

    def table(self, files: tuple[str, ...]) -> pa.Table:
        """Return all rows with their ids settled; raises UserError (65) for ids of `data.id_column` that repeat."""
        table = pa.Table.from_batches(self.batches)
        ids = table["id"]
        unique = ids.null_count == 0 and pc.count_distinct(ids).as_py() == len(ids)
        if not unique and self.wanted.id_required:
            raise _repeated_id(table, files)
        usable = unique and not pc.any(pc.equal(ids, "")).as_py()
        self.numbered = not usable
        settled = ids if usable else pc.cast(table["position"], pa.string())
        order = ["id", *(role for role in self.roles if role != "id"), "file", "line"]
        return table.set_column(table.column_names.index("id"), "id", settled).select(order)

    def _column(self, place: int) -> pa.Array:
        kind = pa.list_(pa.string()) if self.roles[place] in self.wanted.lists else pa.string()
        return pa.array([row[place] for row in self.values], kind)

    def _must_have(self, role: str, value: Value) -> bool:
        if role == "id":
            return self.wanted.id_required
        if role in self.wanted.optional:
            return value is not None
        # A row of multi-label data may have none of the labels; a label that is missing altogether is a fault.
        return not (role == "label" and self.wanted.multi_label and value is not None)

    def _surrogate(self) -> UserError:
        """Find the first text with half a character: JSON can write one (\\ud800), UTF-8 cannot."""
        for row, (_, line, _) in zip(self.values, self.places, strict=True):
            for role, value in zip(self.roles, row, strict=True):
                half = re.search("[\ud800-\udfff]", "".join(value or ()))
                if half:
                    what = f"{role} holds half a character (\\u{ord(half[0]):04x}, a lone surrogate)"
                    advice = "write the file again with whole characters"
                    return UserError(Exit.BAD_DATA, f"{self.source}:{line}: {what}; {advice}")
        raise AssertionError("Arrow refused a text that UTF-8 accepts")


def _is_blank(value: Value) -> bool:
    if isinstance(value, list):
        return not value or any(_is_blank(item) for item in value)
    return not value or value.isspace()


def _repeated_id(table: pa.Table, files: tuple[str, ...]) -> UserError:
    first: dict[str, int] = {}
    repeats: list[int] = []
    values = table["id"].to_pylist()
    for row, value in enumerate(values):
        if first.setdefault(value, row) != row:
            repeats.append(row)

    def where(row: int) -> str:
        return f"{files[table['file'][row].as_py()]}:{table['line'][row].as_py()}"

    again = repeats[0]
    rows = "1 row repeats" if len(repeats) == 1 else f"{len(repeats):,} rows repeat"
    what = f"id {shown(values[again])} stands at {where(first[values[again]])} and {where(again)}"
    return UserError(Exit.BAD_DATA, f"{what} ({rows} an id); mend the ids, or leave out data.id_column")


def _hold_out(train: Split, config: DataConfig, seed: int) -> dict[str, Split]:
    labels = train.labels()
    groups = rarest_labels(labels_of_rows(train, True)) if config.multi_label else labels
    chosen = _stratified(groups, config.validation_share, seed)
    if config.multi_label:
        _keep_every_label(labels, chosen)
    if not chosen.any():
        message = f"{train.files[0]} has too few rows of each label to hold some out; give data.validation=FILE"
        if len(set(labels)) == len(labels):
            alone = f"every row has a label of its own, e.g. {shown(labels[0])}"
            message = f"{message}\n{alone}: if these are texts, give the labels' column, data.label_column=NAME"
        raise UserError(Exit.BAD_DATA, message)
    return part_off(train, chosen, config, f"stratified, seed {seed}")


def part_off(train: Split, chosen: np.ndarray, config: DataRules, how: str) -> dict[str, Split]:
    """Make validation of the rows of train that are `chosen` (a mask), and say how; what was skipped stays train's."""
    share = f"{config.validation_share:.1%}".replace(".0%", "%").replace("%", " %")
    held = train.select(np.flatnonzero(chosen))
    told = f"{share} of train, {how}"
    held = dataclasses.replace(held, name="validation", held_out=told, skipped=0, skipped_turns=0)
    return {"train": train.select(np.flatnonzero(~chosen)), "validation": held}


def seed_of_validation(config: DataRules, seed: int) -> int:
    """Return the seed of the rows held out, of a run with this seed."""
    return seed if config.validation_seed is None else config.validation_seed


def _stratified(groups: list[str], share: float, seed: int) -> np.ndarray:
    """Choose rows (a mask) so that each group gives its share, largest remainders first, and keeps one row."""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    counts = np.bincount(codes)
    generator = np.random.default_rng(seed)
    quota = counts * share
    given = np.floor(quota).astype(np.int64)  # below counts, because share is below 1
    room = counts - 1 - given
    wanted = max(1, round(len(groups) * share)) - int(given.sum())
    ranked = np.lexsort((generator.random(len(counts)), -(quota - given)))
    given[[group for group in ranked if room[group] > 0][: max(0, wanted)]] += 1
    shuffled = generator.permutation(len(groups))
    by_group = shuffled[np.argsort(codes[shuffled], kind="stable")]
    first = np.concatenate(([0], np.cumsum(counts)[:-1]))
    chosen = np.zeros(len(groups), dtype=bool)
    for start, count in zip(first, given, strict=True):
        chosen[by_group[start : start + count]] = True
    return chosen


def _keep_every_label(labels: list[str], chosen: np.ndarray) -> None:
    kept = {part for row in np.flatnonzero(~chosen) for part in split_labels(labels[row])}
    for row in np.flatnonzero(chosen):
        parts = set(split_labels(labels[row]))
        if parts - kept:
            chosen[row] = False
            kept |= parts
