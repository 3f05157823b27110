"""The texts of pretraining: files of each language and of pairs, held-out texts kept out, token numbers on disk."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from finetune.config import Seed, configclass, field
from finetune.data.columns import Files, Split, as_list, from_lines, gather
from finetune.data.patterns import PLACEHOLDER, check_codes
from finetune.data.read import Row, Source, Wanted, check_encoding, is_text, open_file, open_text, shown
from finetune.errors import Exit, UserError
from finetune.pretraining.stores import Encoder, Rows, Writer, cached, in_batches

ONE_LANGUAGE = "text"  # how the only language is called where none is named
LINES_IN_A_UNIT = 100  # what is held out in one piece: a document, or so many of its lines
UNITS_AT_ONCE = 64
MOST_HELD_OUT = 2_000  # English sentences, or documents of a language: enough for a validation
Share = Annotated[float, Field(gt=0, lt=1)]


@configclass
class CorpusConfig:
    """Which texts to learn from, and which never; `{language}` in a name stands for each of train_languages."""

    train: Files = field(None, "text: .txt (one sentence or paragraph a line, blank line between documents), also .gz")
    validation: Files = field(None, "text of validation; without it, part of the documents of train is held out")
    test: Files = field(None, "text that is scored once at the end")
    parallel: Files = field(None, "pairs: CSV, JSONL or Parquet with a column for each of two languages, also .gz")
    parallel_validation: Files = field(None, "pairs of validation; without it, part of the sentences is held out")
    held_out: Files = field(None, "files whose texts must not stand in train, e.g. the test sets of later work")
    held_out_columns: list[str] = field(lambda: ["text"], "columns of held_out that hold texts")
    on_leak: Literal["error", "drop"] = field(
        "error", "a line or pair that stands in held_out: refuse it, or leave out"
    )
    text_column: str = field("text", "column of the text, in files that are not .txt")
    source_language: str = field("en", "language of the first side of a pair, the one that a teacher reads")
    source_column: str | None = field(None, "column of the first side; null: the code source_language")
    target_column: str | None = field(None, "column of the second side; null: the code of its language")
    language_exponent: Annotated[float, Field(ge=0, le=1)] = field(
        0.7, "a language with n examples is seen in proportion to n to this power; 1: as it comes, 0: all alike"
    )
    encoding: str = field("utf-8", "encoding of text files")
    validation_share: Share = field(0.02, "part held out where no validation is given")
    validation_seed: Seed | None = field(None, "seed of what is held out; null: the run's seed")
    max_gigabytes: Annotated[float, Field(gt=0)] = field(8.0, "largest file once unpacked, in GB")

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, encoding: str) -> str:
        return check_encoding(encoding)


@dataclass(frozen=True)
class Documents:
    """The text of one language: units of some lines each, the tokens of a document end with [SEP]."""

    language: str
    rows: Rows
    lines: np.ndarray  # (units, 2) file and first line
    files: tuple[str, ...]
    figures: Mapping[str, Any]

    def where(self, unit: int) -> str:
        """Return the place of a unit, e.g. `mono.it.txt:42`."""
        file, line = self.lines[unit]
        return f"{self.files[file]}:{line}"


@dataclass(frozen=True)
class Pairs:
    """Sentences of the source language, each once, and for each other language its translations.

    `source_of` is (pairs,) numbers of source sentences; `lines` (pairs, 2) file and line.
    """

    source: Rows
    teacher: Rows | None  # the source sentences in the teacher's tokens
    target: Mapping[str, Rows]
    source_of: Mapping[str, np.ndarray]
    lines: Mapping[str, np.ndarray]
    files: Mapping[str, tuple[str, ...]]
    figures: Mapping[str, Any]

    def where(self, language: str, pair: int) -> str:
        """Return the place of a pair, e.g. `parallel.en-it.jsonl.gz:42`."""
        file, line = self.lines[language][pair]
        return f"{self.files[language][file]}:{line}"


@dataclass(frozen=True)
class HeldOut:
    """Texts that training must not see, compared by their letters and digits alone."""

    places: Mapping[bytes, str]
    identity: str
    on_leak: str

    def leaks(self, text: str, where: str) -> bool:
        """Tell whether a text is held out; raises UserError (65) with both places unless it may be dropped."""
        place = self.places.get(_fingerprint(text)) if self.places else None
        if place is not None and self.on_leak == "error":
            what = f"{where} stands in {place}, which data.held_out keeps out of training: {shown(text)}"
            raise UserError(Exit.BAD_DATA, f"{what}\ntake it out, or give data.on_leak=drop to leave such lines out")
        return place is not None


def check_languages(languages: Sequence[str], config: CorpusConfig) -> tuple[str, ...]:
    """Return the languages of a run; raises UserError (2) for no code, and for files that cannot tell them apart."""
    if languages:
        check_codes("train_languages", languages)
    for name in ("train", "validation", "test", "parallel", "parallel_validation"):
        for file in as_list(getattr(config, name)):
            several = len(languages) > (2 if name.startswith("parallel") else 1)
            if several and PLACEHOLDER not in file:
                raise UserError(
                    Exit.USAGE,
                    f"data.{name}={file} has no {PLACEHOLDER} "
                    f"where the code of each of the {len(languages)} languages goes\n"
                    f"give a pattern, e.g. data.{name}='{name}.{PLACEHOLDER}.txt'",
                )
            if not languages and PLACEHOLDER in file:
                raise UserError(Exit.USAGE, f"data.{name}={file}: which languages? give train_languages=[en,it]")
    return tuple(languages) or (ONE_LANGUAGE,)


def read_held_out(config: CorpusConfig) -> HeldOut:
    """Read the texts that must not be in train."""
    places: dict[bytes, str] = {}
    digests = []
    for file in as_list(config.held_out):
        source = _texts_of(file, config)
        digests.append(source.identity)
        for line, values in source.rows:
            for value in values:
                if isinstance(value, str) and (key := _fingerprint(value)):
                    places.setdefault(key, f"{file}:{line}")
    identity = hashlib.sha256(repr((digests, config.held_out_columns, config.on_leak)).encode()).hexdigest()
    return HeldOut(places, identity, config.on_leak)


def read_documents(name: str, language: str, config: CorpusConfig, encoder: Encoder, held: HeldOut) -> Documents:
    """Read the text of a language as token numbers; `name` is train, validation or test.

    Raises UserError: 66 for a file that is not there, 65 for one that cannot be read or holds a held-out text.
    """
    files = [file.replace(PLACEHOLDER, language) for file in as_list(getattr(config, name))]
    sources = [open_lines(file, config) for file in files]
    key: dict[str, Any] = {
        "kind": "documents",
        "files": [source.identity for source in sources],
        "tokens": encoder.identity(),
    }
    key |= {"reading": reading(config), "held_out": held.identity}

    def write(folder: Path) -> dict[str, Any]:
        dropped = _write_documents(folder, sources, encoder, held)
        return {"dropped": dropped, "words": encoder.words, "unknown": encoder.unknown}

    folder, figures = cached(key, write)
    lines = np.load(folder / "lines.npy", allow_pickle=False)
    found = {"tokens": int(Rows.read(folder, "text").offsets[-1]), "digests": _digests(sources)}
    return Documents(language, Rows.read(folder, "text"), lines, tuple(files), figures | found)


def read_pairs(
    name: str, languages: Sequence[str], config: CorpusConfig, encoders: tuple[Encoder, Encoder | None], held: HeldOut
) -> Pairs:
    """Read the pairs of each language with the source language; `encoders` are the student's and the teacher's.

    Raises UserError: 66 for a file that is not there, 65 with file:line where a side is missing or held out.
    """
    student, teacher = encoders
    files = {code: [file.replace(PLACEHOLDER, code) for file in as_list(getattr(config, name))] for code in languages}
    sources = {code: [open_file(file, _sides(code, config)) for file in files[code]] for code in languages}
    # A list: source sentences are numbered in the order of the languages, and by number some of them are held out.
    files_of = [[code, [one.identity for one in sources[code]]] for code in languages]
    key: dict[str, Any] = {"kind": "pairs", "files": files_of}
    key |= {"tokens": student.identity(), "teacher": None if teacher is None else teacher.identity()}
    key |= {"reading": reading(config), "held_out": held.identity}
    folder, figures = cached(key, lambda draft: _write_pairs(draft, sources, encoders, held))
    return Pairs(
        source=Rows.read(folder, "source"),
        teacher=None if teacher is None else Rows.read(folder, "teacher"),
        target={code: Rows.read(folder, f"target.{code}") for code in languages},
        source_of={code: np.load(folder / f"source_of.{code}.npy", allow_pickle=False) for code in languages},
        lines={code: np.load(folder / f"lines.{code}.npy", allow_pickle=False) for code in languages},
        files={code: tuple(files[code]) for code in languages},
        figures=figures | {"digests": _digests([one for code in languages for one in sources[code]])},
    )


def pair_texts(pairs: Pairs, language: str, numbers: np.ndarray, config: CorpusConfig) -> list[tuple[str, str]]:
    """Return source and target of some pairs as they stand in the files."""
    wanted = {tuple(pairs.lines[language][pair].tolist()): place for place, pair in enumerate(numbers)}
    texts = [("", "")] * len(numbers)
    for number, file in enumerate(pairs.files[language]):
        for line, (source, target) in open_file(file, _sides(language, config)).rows:
            if (number, line) in wanted:
                texts[wanted[number, line]] = (str(source), str(target))
    return texts


def texts_for_vocabulary(languages: Sequence[str], config: CorpusConfig, held: HeldOut) -> dict[str, list[Source]]:
    """Open for each language the files whose text a vocabulary is learnt from, pairs included, held-out texts not."""
    found: dict[str, list[Source]] = {}
    for code in languages:
        files = [file.replace(PLACEHOLDER, code) for file in as_list(config.train)]
        found[code] = [_without(held, open_lines(file, config)) for file in files]
    for code in [code for code in languages if code != config.source_language]:
        for file in as_list(config.parallel):
            for side, language in enumerate((config.source_language, code)):
                pairs = open_file(file.replace(PLACEHOLDER, code), _sides(code, config))
                found.setdefault(language, []).append(_without(held, pairs, side))
    return {code: sources for code, sources in found.items() if sources}


def _without(held: HeldOut, source: Source, side: int = 0) -> Source:
    """Keep one side of the rows of a source, and leave out those of which any side is held out."""

    def kept() -> Iterator[Row]:
        for line, values in source.rows:
            if not any(held.leaks(str(value or ""), f"{source.name}:{line}") for value in values):
                yield line, [values[side]]

    return dataclasses.replace(source, rows=kept())


def reading(config: CorpusConfig) -> str:
    """Return how texts are taken from their files, for the keys of caches."""
    columns = (config.text_column, config.source_language, config.source_column, config.target_column)
    return repr((*columns, config.encoding))


def open_lines(file: str, config: CorpusConfig) -> Source:
    """Open a file of text, one value a row; blank rows part documents, in a table every row is one."""
    wanted = Wanted({"text": config.text_column}, encoding=config.encoding, max_bytes=config.max_gigabytes * 1e9)
    if is_text(file):
        return open_text(file, wanted)
    source = open_file(file, wanted)
    return dataclasses.replace(source, rows=_parted(source.rows))


def _parted(rows: Iterator[Row]) -> Iterator[Row]:
    for line, values in rows:
        yield line, values
        yield line, [""]


def read_split(name: str, files: str | list[str], config: CorpusConfig) -> Split:
    """Read texts that a trained model is given: each line that is not blank, or each row of a table."""
    wanted = Wanted(
        {"text": config.text_column, "id": "id"}, encoding=config.encoding, max_bytes=config.max_gigabytes * 1e9
    )
    names = as_list(files)
    if not any(is_text(file) for file in names):
        return gather(name, [open_file(file, wanted) for file in names], wanted, "error")
    if len(names) > 1:
        raise UserError(Exit.USAGE, f"{', '.join(names)}: give one text file")
    texts = (str(values[0]) for _, values in open_text(names[0], wanted).rows)
    return from_lines(names[0], (text for text in texts if text.strip()))


def hold_out(rows: int, config: CorpusConfig, seed: int) -> np.ndarray:
    """Choose what is held out, a mask (rows,): a share, at least one and never all; a function of the seed."""
    wanted = min(max(1, round(rows * config.validation_share)), MOST_HELD_OUT, rows - 1)
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng([seed, rows]).permutation(rows)[:wanted]] = True
    return chosen


def check_unknown(language: str, words: int, unknown: int, whose: str) -> None:
    """Refuse a vocabulary that does not know the words of a language: raises UserError (65)."""
    if unknown > words / 2:
        raise UserError(
            Exit.BAD_DATA,
            f"{language}: {100 * unknown / words:.0f} % of the words are unknown to {whose}\n"
            "it does not know the script: give vocabulary.train=true, or a larger vocabulary.vocab_size",
        )


def _write_documents(folder: Path, sources: Sequence[Source], encoder: Encoder, held: HeldOut) -> int:
    """Write the units of all files, and the file and line where each begins; return the lines left out."""
    places: list[tuple[int, int]] = []
    dropped = 0
    end = int(encoder.tokenizer.sep_token_id)

    def kept(source: Source) -> Iterator[tuple[int, str]]:
        nonlocal dropped
        for line, values in source.rows:
            text = str(values[0] or "")
            if text.strip() and held.leaks(text, f"{source.name}:{line}"):
                dropped += 1
            else:
                yield line, text

    with Writer(folder, "text", encoder.vocab_size) as writer:
        for number, source in enumerate(sources):
            for units in in_batches(_units(kept(source)), UNITS_AT_ONCE):
                coded = iter(encoder.encode([text for lines, _ in units for _, text in lines]))
                for lines, ended in units:
                    tokens = [token for _ in lines for token in next(coded)]
                    writer.add([*tokens, end] if ended else tokens)
                    places.append((number, lines[0][0]))
    np.save(folder / "lines.npy", np.array(places, dtype=np.int32).reshape(-1, 2))
    return dropped


def _units(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[list[tuple[int, str]], bool]]:
    """Yield lines that belong together, and whether a document ends with them."""
    lines: list[tuple[int, str]] = []
    for line, text in rows:
        if not text.strip():
            if lines:
                yield lines, True
            lines = []
        elif len(lines) == LINES_IN_A_UNIT:
            yield lines, False
            lines = [(line, text)]
        else:
            lines.append((line, text))
    if lines:
        yield lines, True


class _Sides:
    """The pairs of one language on their way to the disk."""

    def __init__(self, folder: Path, language: str, vocab_size: int) -> None:
        self.folder, self.language = folder, language
        self.writer = Writer(folder, f"target.{language}", vocab_size)
        self.source_of: list[int] = []
        self.lines: list[tuple[int, int]] = []

    def finish(self) -> None:
        """Write which sentence and line each pair has."""
        np.save(self.folder / f"source_of.{self.language}.npy", np.array(self.source_of, dtype=np.int32))
        np.save(self.folder / f"lines.{self.language}.npy", np.array(self.lines, dtype=np.int32).reshape(-1, 2))


def _write_pairs(
    folder: Path, sources: Mapping[str, list[Source]], encoders: tuple[Encoder, Encoder | None], held: HeldOut
) -> dict[str, Any]:
    """Write all pairs, a source sentence once however many translations it has; return figures by language."""
    student, teacher = encoders
    known: dict[bytes, int] = {}
    figures: dict[str, Any] = {}
    first = Writer(folder, "source", student.vocab_size)
    second = None if teacher is None else Writer(folder, "teacher", teacher.vocab_size)
    of_source = [0, 0]
    for code, files in sources.items():
        sides, dropped = _Sides(folder, code, student.vocab_size), 0
        counted = [0, 0]
        with sides.writer:
            for batch in in_batches(_checked(files, held)):
                kept = [row for row in batch if row is not None]
                dropped += len(batch) - len(kept)
                new = _new_sentences([row[2] for row in kept], known)
                for count, texts, writer, encoder in (
                    (counted, [row[3] for row in kept], sides.writer, student),
                    (of_source, new, first, student),
                    (None, new, second, teacher),
                ):
                    if writer is not None and encoder is not None:
                        _append(texts, writer, encoder, count)
                sides.source_of += [known[_key(row[2])] for row in kept]
                sides.lines += [(row[0], row[1]) for row in kept]
        sides.finish()
        figures[code] = {"pairs": len(sides.lines), "dropped": dropped, "words": counted[0], "unknown": counted[1]}
    for writer in (first, second):
        if writer is not None:
            writer.__exit__(None, None, None)
    return {"languages": figures, "source": {"words": of_source[0], "unknown": of_source[1], "sentences": len(known)}}


def _append(texts: list[str], writer: Writer, encoder: Encoder, count: list[int] | None) -> None:
    before = (encoder.words, encoder.unknown)
    for row in encoder.encode(texts):
        writer.add(row)
    if count is not None:
        count[0] += encoder.words - before[0]
        count[1] += encoder.unknown - before[1]


def _checked(files: Sequence[Source], held: HeldOut) -> Iterator[tuple[int, int, str, str] | None]:
    """Yield (file, line, source, target) of each pair, None for one that is held out; refuse a missing side."""
    for number, source in enumerate(files):
        for line, (first, second) in source.rows:
            where = f"{source.name}:{line}"
            for side, text in (("first", first), ("second", second)):
                if not isinstance(text, str) or not text.strip():
                    what = f"{where}: the {side} side of the pair is missing or empty"
                    raise UserError(Exit.BAD_DATA, f"{what}; mend the pair or take it out")
            leaked = [held.leaks(str(text), where) for text in (first, second)]
            yield None if any(leaked) else (number, line, str(first), str(second))


def _new_sentences(texts: Sequence[str], known: dict[bytes, int]) -> list[str]:
    """Number the sentences that were not met before, and return them."""
    new = []
    for text in texts:
        key = _key(text)
        if key not in known:
            known[key] = len(known)
            new.append(text)
    return new


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _fingerprint(text: str) -> bytes:
    """Return a digest of a text's letters and digits, case folded; nothing where it has none."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(character for character in folded if character.isalnum())
    return _key(plain) if plain else b""


def _texts_of(file: str, config: CorpusConfig) -> Source:
    """Open a held-out file: the lines of a text, or those of `held_out_columns` that a table has."""
    wanted = Wanted({}, encoding=config.encoding, max_bytes=config.max_gigabytes * 1e9)
    if is_text(file):
        return open_text(file, wanted)
    first, *others = [f"held_out.{number}" for number in range(len(config.held_out_columns))]
    columns = dict(zip((first, *others), config.held_out_columns, strict=True))
    source = open_file(file, dataclasses.replace(wanted, columns=columns, optional=(first, *others)))
    return dataclasses.replace(source, rows=_with_text(source, config.held_out_columns))


def _with_text(source: Source, columns: Sequence[str]) -> Iterator[Any]:
    found = False
    for row in source.rows:
        found = found or any(value is not None for value in row[1])
        yield row
    if not found:
        what = f"data.held_out={source.name} has no text in the columns {', '.join(columns)}"
        raise UserError(Exit.BAD_DATA, f"{what}; give data.held_out_columns=[NAME]")


def _sides(language: str, config: CorpusConfig) -> Wanted:
    columns = {"source": config.source_column or config.source_language, "target": config.target_column or language}
    return Wanted(columns, encoding=config.encoding, max_bytes=config.max_gigabytes * 1e9)


def _digests(sources: Iterable[Source]) -> dict[str, str]:
    return {source.name: source.digest for source in sources}
