"""Sources with their targets: pairs of texts, several references a row, and dialogues that become one row a turn.

A file name may be a pattern with `{language}`, which stands for every language that has such a file; then, and where
rows name their language themselves, each row knows it.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from finetune.config import configclass, field, unescaped
from finetune.data.check import fold
from finetune.data.columns import (
    DataFiles,
    DataRules,
    Split,
    as_list,
    gather,
    gather_splits,
    in_order,
    part_off,
    seed_of_validation,
)
from finetune.data.patterns import PLACEHOLDER, languages_of
from finetune.data.read import Row, Source, Value, Wanted, open_file, shown
from finetune.errors import Exit, UserError


@configclass
class SequenceColumns(DataFiles):
    """Which columns hold source and target. `id_column` is here for its place in lists of settings."""

    source_column: str | list[str] = field("source", "column of the source, or a list: [question,context] are joined")
    target_column: str = field("target", "column of the target, or of a list of targets; answers.text reaches inside")
    references_column: str | None = field(None, "column of all references of a row, in files that have it")
    turns_column: str | None = field(None, "column of a list of turns: each becomes the target of those before it")
    context_turns: Annotated[int, Field(ge=1)] = field(3, "turns before the target that make a source")
    skip_turns: str | None = field(None, "regular expression: turns that it matches whole are left out and counted")
    separator: str = field(
        "\\n", "what stands between joined columns and turns; \\n is a line end, \\t a tab, \\\\ a backslash"
    )
    language_column: str | None = field(None, "column of a row's language: scores are told for each, too")
    id_column: str | None

    @field_validator("source_column")
    @classmethod
    def _is_list_of_columns(cls, columns: str | list[str]) -> str | list[str]:
        if not columns or len(set(_listed(columns))) < len(_listed(columns)):
            raise ValueError("name one column, or several different ones")
        return columns

    @field_validator("skip_turns")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern


@configclass
class SequenceDataConfig(DataRules, SequenceColumns):
    """Which files or Hub data set to read, where source and target stand, and what to do with rows that do not fit."""

    on_long: Literal["truncate", "error", "skip"] = field("truncate", "what to do with pairs above the longest length")
    on_empty: Literal["error", "skip"] = field("error", "what to do with rows without source or target")


@configclass
class SummaryDataConfig(DataRules, SequenceColumns):
    """The same of sources that may be much longer than what a model reads."""

    on_long: Literal["truncate", "error", "window", "lead_tail", "tail"] = field(
        "truncate",
        "of sources above max_source_length: cut the end, refuse, summarise windows and then what they give (training "
        "cuts), keep the first and the last half, or keep the end",
    )
    on_empty: Literal["error", "skip"] = field("error", "what to do with rows without source or target")


PairsConfig = SequenceDataConfig | SummaryDataConfig


@dataclasses.dataclass
class _TurnFilter:
    """Leaves out the turns that a pattern matches whole, and counts them."""

    pattern: re.Pattern[str] | None
    skipped: int = 0

    def __call__(self, turns: list[str]) -> list[str]:
        if self.pattern is None:
            return turns
        kept = [turn for turn in turns if not self.pattern.fullmatch(turn)]
        self.skipped += len(turns) - len(kept)
        return kept


def read_split(name: str, files: str | list[str], config: PairsConfig, *, with_targets: bool = True) -> Split:
    """Read one split from its files, in the order given; its rows have id, source, target, references, file and line.

    With data.language_column, or where files are patterns, they have language, too. Without targets a dialogue is one
    row, whose source are its last turns. Raises UserError: 66 where a file is missing, 65 with file:line for anything
    wrong in it.
    """
    wanted = _wanted(config, with_targets)
    return _shaped(name, _open(files, wanted), config, with_targets)


def read_splits(config: PairsConfig, *, seed: int, need_train: bool = True) -> dict[str, Split]:
    """Read train, validation and test, as far as they are given; hold out a part of train where no validation is.

    Raises UserError: 2 where train is needed and not given, or no file has the references column; otherwise as
    `read_split`.
    """
    wanted = _wanted(config, with_targets=True)
    splits = gather_splits(
        config, wanted, lambda name, sources: _shaped(name, sources, config, True), need_train=need_train, opened=_open
    )
    _check_references(splits, config)
    if "train" in splits and "validation" not in splits:
        splits |= _hold_out(splits["train"], config, seed_of_validation(config, seed))
    return in_order(splits)


def _open(files: str | list[str], wanted: Wanted) -> list[Source]:
    """Open files, their rows unread; a pattern is all files that fit it, each of the language in its name."""
    found = []
    for file in as_list(files):
        if PLACEHOLDER not in file:
            found.append(open_file(file, wanted))
            continue
        languages = languages_of("data", file)
        if not languages:
            raise UserError(Exit.NO_INPUT, f"{file}: no language has such a file; mend the pattern")
        for language in languages:
            source = open_file(file.replace(PLACEHOLDER, language), wanted)
            found.append(dataclasses.replace(source, language=language))
    return found


def _listed(columns: str | list[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else columns


def _wanted(config: PairsConfig, with_targets: bool) -> Wanted:
    columns: dict[str, str] = {}
    if config.turns_column is not None:
        columns["turns"] = config.turns_column
    else:
        for number, column in enumerate(_listed(config.source_column)):
            columns[f"source.{number}" if number else "source"] = column
        if with_targets:
            columns["target"] = config.target_column
            if config.references_column is not None:
                columns["references"] = config.references_column
    if with_targets and config.language_column is not None:
        columns["language"] = config.language_column
    columns["id"] = config.id_column if config.id_column is not None else "id"
    return Wanted(
        columns,
        id_required=config.id_column is not None,
        lists=("turns", "target", "references"),
        optional=("references",),
        encoding=config.encoding,
        delimiter=config.delimiter,
        max_bytes=config.max_gigabytes * 1e9,
    )


def _shaped(name: str, sources: list[Source], config: PairsConfig, with_targets: bool) -> Split:
    wanted = _wanted(config, with_targets)
    turns = _TurnFilter(None if config.skip_turns is None else re.compile(config.skip_turns))

    tells = with_targets and (config.language_column is not None or any(source.language for source in sources))

    def rows(source: Source) -> Iterator[Row]:
        for line, row in _rows_of(source, wanted, config, turns, with_targets):
            *texts, language, identity = row
            if source.language is not None and identity:
                identity = f"{source.language}:{identity}"
            yield line, [*texts, *([source.language or language] if tells else []), identity]

    shaped = [dataclasses.replace(source, rows=rows(source)) for source in sources]
    how = (config.context_turns, config.skip_turns, config.separator, [source.language for source in sources])
    made_of = repr((wanted.columns, *how))  # part of the split's fingerprint
    gold = dict.fromkeys(["target", "references", *(["language"] if tells else [])], made_of) if with_targets else {}
    # Of several files some may not tell their language; a column that is asked for has it in every row.
    optional = ("references",) if config.language_column is not None else ("references", "language")
    columns = {"source": made_of, **gold, "id": "id"}
    roles = dataclasses.replace(wanted, columns=columns, lists=("references",), optional=optional)
    split = gather(name, shaped, roles, config.on_empty)
    return dataclasses.replace(split, skipped_turns=turns.skipped)


def _rows_of(
    source: Source, wanted: Wanted, config: PairsConfig, turns: _TurnFilter, with_targets: bool
) -> Iterator[Row]:
    """Yield source, then with targets target and references, then language (none where no column has it) and id."""
    if config.turns_column is None:
        return _pair_rows(source, wanted, config, with_targets)
    return _turn_rows(source, config, turns, with_targets)


def _pair_rows(source: Source, wanted: Wanted, config: PairsConfig, with_targets: bool) -> Iterator[Row]:
    """Yield the rows of pairs; references are none where the target is the only one."""
    separator = unescaped(config.separator)
    parts = [place for place, role in enumerate(wanted.columns) if role.partition(".")[0] == "source"]
    roles = list(wanted.columns)
    for line, values in source.rows:
        texts = [values[place] for place in parts]
        joined = None if any(not text or str(text).isspace() for text in texts) else separator.join(map(str, texts))
        if not with_targets:
            yield line, [joined, None, values[-1]]
            continue
        target = values[roles.index("target")]
        given = values[roles.index("references")] if "references" in roles else None
        language = values[roles.index("language")] if "language" in roles else None
        yield line, [joined, *_target(target, given), language, values[-1]]


def _target(target: Value, given: Value) -> tuple[Value, Value]:
    """Return the text to train on, and the list of references, None where the target alone is the reference."""
    first = target if isinstance(target, str) or target is None else next(iter(target), None)
    if given is not None:
        return first, [given] if isinstance(given, str) else given
    return first, target if isinstance(target, list) and len(target) > 1 else None


def _turn_rows(source: Source, config: PairsConfig, kept: _TurnFilter, with_targets: bool) -> Iterator[Row]:
    """Yield a row for each turn but the first: its source are the turns before it, `context_turns` at most.

    A dialogue too short for that yields a row without source or target, so that it is counted with the empty ones.
    The id is that of the dialogue and the number of the target's turn, from 1, among those that are `kept`.
    """
    separator = unescaped(config.separator)
    for line, (turns, *language, identity) in source.rows:
        told = language[0] if language else None
        where = f"{source.name}:{line}"
        if turns is not None and not isinstance(turns, list):
            what = f"{where}: turns must be a list of texts, not {shown(turns)}"
            raise UserError(Exit.BAD_DATA, f"{what}; give data.turns_column=NAME of such a list")
        turns = kept(turns or [])
        ends = range(1, len(turns)) if with_targets else [len(turns)]
        for end in ends:
            before = turns[max(0, end - config.context_turns) : end]
            context = None if any(not turn.strip() for turn in before) else separator.join(before)
            if with_targets:
                yield line, [context, turns[end], None, told, f"{identity}:{end + 1}" if identity else None]
            else:
                yield line, [context, None, identity]
        if with_targets and len(turns) < 2:
            yield line, [turns[0] if turns else None, None, None, told, identity]


def _check_references(splits: dict[str, Split], config: PairsConfig) -> None:
    """Refuse a references column that no file has: a misspelt one would go unnoticed, because files may lack it."""
    if config.references_column is None or config.turns_column is not None:
        return
    if all(split.rows.data.column("references").null_count == len(split) for split in splits.values()):
        files = ", ".join(file for split in splits.values() for file in split.files)
        message = f"no file has the column {config.references_column} of data.references_column ({files})"
        raise UserError(Exit.USAGE, f"{message}; correct its name, or leave the setting out")


def _hold_out(train: Split, config: PairsConfig, seed: int) -> dict[str, Split]:
    """Draw rows at random; rows of one dialogue, or with the same source, stay together."""
    groups = _groups(train)
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    wanted = max(1, round(len(train) * config.validation_share))
    taken = order[np.cumsum(sizes[order]) <= wanted]
    if not len(taken) and len(sizes) > 1:
        taken = order[[int(np.argmin(sizes[order]))]]
    chosen = np.isin(groups, taken)
    if not chosen.any() or chosen.all():
        message = f"{train.files[0]} has too few different sources to hold some out; give data.validation=FILE"
        raise UserError(Exit.BAD_DATA, message)
    together = "dialogues whole" if config.turns_column is not None else "repeated sources together"
    return part_off(train, chosen, config, f"at random, {together}, seed {seed}")


def _groups(train: Split) -> np.ndarray:
    """Number the groups of rows that may not be parted, (rows,): linked by file and line, or by source as `fold`ed."""
    lines: dict[tuple[int, int], int] = {}
    sources: dict[str, int] = {}
    first: list[tuple[int, int]] = []  # (row, the first row that it is linked to)
    places = zip(train.rows["file"][:], train.rows["line"][:], strict=True)
    for row, (place, source) in enumerate(zip(places, train.sources(), strict=True)):
        first.append((row, lines.setdefault(place, row)))
        first.append((row, sources.setdefault(fold(source), row)))
    ones, others = np.array(first).T
    links = sparse.coo_array((np.ones(len(ones), dtype=bool), (ones, others)), shape=(len(train), len(train)))
    return np.asarray(connected_components(links, directed=False)[1])
