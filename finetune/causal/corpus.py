"""The texts of a language model: documents of plain text, or prompts with their completions, each with its place."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import ValidationInfo, field_validator

from finetune.config import configclass, field, unescaped
from finetune.data.columns import (
    DataFiles,
    DataRules,
    Files,
    Split,
    as_list,
    gather,
    gather_splits,
    in_order,
    part_off,
    seed_of_validation,
)
from finetune.data.read import Row, Source, Wanted, is_text, open_file, open_text
from finetune.errors import Exit, UserError


@configclass
class TextColumns(DataFiles):
    """Which columns hold documents, or prompts and completions. `id_column` is here for its place in lists."""

    text_column: str = field("text", "column of a document, in files that are not .txt")
    documents: Literal["blank_line", "line", "file"] = field(
        "blank_line", "what parts the documents of a .txt file: blank lines, line ends, or nothing"
    )
    prompt_column: str | None = field(None, "column of a prompt: the loss is of the completion alone")
    completion_column: str | None = field(None, "column of what follows the prompt")
    separator: str = field(
        "\\n", "what stands between prompt and completion; \\n is a line end, \\t a tab, \\\\ a backslash"
    )
    id_column: str | None


@configclass
class TextDataConfig(DataRules, TextColumns):
    """Which files or Hub data set to read, and where their texts stand."""

    on_long: Literal["truncate", "error", "skip"] = field(
        "truncate", "of prompts with completions above max_length: cut the prompt on its left, refuse, leave out"
    )
    on_empty: Literal["error", "skip"] = field("error", "what to do with rows without text, prompt or completion")

    @field_validator("completion_column")
    @classmethod
    def _goes_with_a_prompt(cls, completion: str | None, info: ValidationInfo) -> str | None:
        if (completion is None) != (info.data.get("prompt_column") is None):
            raise ValueError("data.prompt_column and data.completion_column go together; give both or neither")
        return completion

    @property
    def has_prompts(self) -> bool:
        """Tell whether rows are prompts with completions."""
        return self.prompt_column is not None

    @property
    def between(self) -> str:
        """Return what stands between a prompt and its completion; nothing where there are no prompts."""
        return unescaped(self.separator) if self.has_prompts else ""

    def after(self, prompt: str) -> str:
        """Return what stands between a prompt and what is written; nothing after an empty one, which begins a text."""
        return self.between if prompt else ""


def read_split(name: str, files: str | list[str], config: TextDataConfig, *, completed: bool = True) -> Split:
    """Read one split in the order of its files: column text, or source (prompts) and target (completions).

    With prompts and without `completed` the completions are not read. Raises UserError: 66 where a file is missing, 65
    with file:line for anything wrong in it.
    """
    wanted = _wanted(config, completed)
    return _gathered(name, _open(files, wanted, config), wanted, config)


def read_splits(config: TextDataConfig, *, seed: int) -> dict[str, Split]:
    """Read train, validation and test, as far as they are given; hold out documents of train where no validation is.

    Raises UserError: 2 where train is not given, 65 where train is one document, otherwise as `read_split`.
    """
    wanted = _wanted(config, completed=True)
    splits = gather_splits(
        config, wanted, lambda name, sources: _gathered(name, sources, wanted, config), need_train=True,
        opened=lambda files, wanted: _open(files, wanted, config),
    )  # fmt: skip
    if "validation" not in splits:
        splits |= _hold_out(splits["train"], config, seed_of_validation(config, seed))
    return in_order(splits)


def _wanted(config: TextDataConfig, completed: bool) -> Wanted:
    columns = {"text": config.text_column}
    if config.prompt_column is not None and config.completion_column is not None:
        columns = {"prompt": config.prompt_column} | ({"completion": config.completion_column} if completed else {})
    columns["id"] = config.id_column if config.id_column is not None else "id"
    return Wanted(
        columns, id_required=config.id_column is not None, encoding=config.encoding, delimiter=config.delimiter,
        max_bytes=config.max_gigabytes * 1e9,
    )  # fmt: skip


def _open(files: Files, wanted: Wanted, config: TextDataConfig) -> list[Source]:
    """Open files, their rows unread; of plain text a row is a document."""
    found = []
    for file in as_list(files):
        if not is_text(file):
            found.append(open_file(file, wanted))
            continue
        if config.has_prompts:
            what = f"{file} is plain text, without the column {config.prompt_column} of data.prompt_column"
            raise UserError(Exit.USAGE, f"{what}\ngive a CSV, JSONL or Parquet file, or leave data.prompt_column out")
        source = open_text(file, wanted)
        found.append(dataclasses.replace(source, rows=_documents(source.rows, config.documents)))
    return found


def _documents(rows: Iterator[Row], parted_by: str) -> Iterator[Row]:
    """Yield (first line, [text, no id]) of each document that is not blank; its lines are joined by line ends."""
    lines: list[str] = []
    first = 1
    for line, values in rows:
        text = str(values[0])
        blank = not text.strip()
        if parted_by == "line":
            if not blank:
                yield line, [text, None]
        elif blank and (parted_by == "blank_line" or not lines):
            if lines:
                yield first, ["\n".join(lines), None]
            lines = []
        else:
            first = first if lines else line
            lines.append(text)
    if lines:
        yield first, ["\n".join(lines).rstrip("\n"), None]


def _gathered(name: str, sources: list[Source], wanted: Wanted, config: TextDataConfig) -> Split:
    split = gather(name, sources, wanted, config.on_empty)
    names = {"prompt": "source", "completion": "target"}
    found = {old: new for old, new in names.items() if old in split.rows.column_names}
    return dataclasses.replace(split, rows=split.rows.rename_columns(found)) if found else split


def _hold_out(train: Split, config: TextDataConfig, seed: int) -> dict[str, Split]:
    """Draw documents, or rows, at random: a share of them, at least one and never all."""
    if len(train) < 2:
        unit = "row" if config.has_prompts else "document"
        what = f"{train.files[0]} is one {unit}, so none can be held out"
        parts = "" if config.has_prompts else " part documents by blank lines, give data.documents=line,"
        raise UserError(Exit.BAD_DATA, f"{what};{parts} or give data.validation=FILE")
    wanted = min(max(1, round(len(train) * config.validation_share)), len(train) - 1)
    chosen = np.zeros(len(train), dtype=bool)
    chosen[np.random.default_rng([seed, len(train)]).permutation(len(train))[:wanted]] = True
    return part_off(train, chosen, config, f"at random, seed {seed}")
