"""Files by language: patterns with `{language}`, the splits of each language, and several of them as one."""

import dataclasses
import glob
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable

from finetune.data.columns import DataConfig, Files, LabelMap, Split, as_list, read_splits, split_labels
from finetune.data.read import shown
from finetune.errors import Exit, UserError

PLACEHOLDER = "{language}"
CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # it becomes part of file names
EXAMPLES = 8


@dataclass(frozen=True)
class Corpus:
    """The splits of each language: `sources` are trained on, `tests` scored, with the labels of the sources.

    `train` and `validation` also hold the other test languages that have a training file.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    train: dict[str, Split]
    validation: dict[str, Split]
    test: dict[str, Split]
    labels: LabelMap

    @property
    def targets(self) -> list[str]:
        """Return the test languages that are not trained on."""
        return [language for language in self.tests if language not in self.sources]

    def together(self, kind: str, languages: Iterable[str]) -> Split:
        """Return train, validation or test of several languages as one split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}[kind]
        return join(kind, {language: splits[language] for language in languages})

    def splits(self) -> dict[str, Split]:
        """Return every split under a name of its own, e.g. `it test`."""
        return {split.name: split for found in (self.train, self.validation, self.test) for split in found.values()}


def check_codes(setting: str, languages: Sequence[str]) -> tuple[str, ...]:
    """Return language codes; raises UserError (2) for none, for one given twice, and for what is no code."""
    if not languages:
        raise UserError(Exit.USAGE, f"{setting} names no language; give for example {setting}=[en,it]")
    for place, language in enumerate(languages):
        if not CODE.fullmatch(language):
            what = f"{setting}: {shown(language)} is no language code (letters, digits, - and _)"
            raise UserError(Exit.USAGE, f"{what}; give for example en or pt-BR")
        if language in languages[:place]:
            raise UserError(Exit.USAGE, f"{setting}: {language} is given twice; give each language once")
    return tuple(languages)


def expand(setting: str, pattern: str | list[str], language: str) -> list[str]:
    """Return the files of a language; raises UserError (2) where a pattern has no `{language}`."""
    patterns = as_list(pattern)
    for one in patterns:
        if PLACEHOLDER not in one:
            what = f"{setting}={one}: the pattern has no {PLACEHOLDER}, so every language would have the same file"
            raise UserError(Exit.USAGE, f"{what}\nwrite it where the language's code stands: x/{PLACEHOLDER}.csv")
    return [one.replace(PLACEHOLDER, language) for one in patterns]


def languages_of(setting: str, pattern: str | list[str]) -> list[str]:
    """Return the languages that have every file of a pattern, in alphabetical order."""
    expand(setting, pattern, "")
    found = [_matching(str(Path(one).expanduser())) for one in as_list(pattern)]
    return sorted(set.intersection(*found)) if found else []


def files_of(setting: str, pattern: str | list[str], language: str, asked: str) -> list[str]:
    """Return the files of a language that was asked for by `asked`; raises UserError (66) where one is missing."""
    files = expand(setting, pattern, language)
    for file in files:
        if not Path(file).expanduser().is_file():
            there = languages_of(setting, pattern)
            more = ", ..." if len(there) > EXAMPLES else ""
            known = f"there are files of {', '.join(there[:EXAMPLES])}{more}" if there else "no language has one"
            raise UserError(
                Exit.NO_INPUT, f"{file}: no such file, but {asked} asks for {language}; {known} ({setting})"
            )
    return files


def read_languages(config: DataConfig, sources: Sequence[str], tests: Sequence[str] | None, *, seed: int) -> Corpus:
    """Read the languages to train on and those to score; `tests` None: all that have a test file.

    A file is missed only where its language was asked for: training languages need train (and validation, where it is
    given), test languages need test. A test language with a training file gets its own train and validation too.
    Raises UserError: 2 for a pattern without `{language}`, 66 for a missing file, 65 for labels that differ between
    languages, else as `read_split`.
    """
    sources = check_codes("train_languages", sources)
    if config.name is not None and PLACEHOLDER not in f"{config.name} {config.config}":
        what = f"data.name={config.name}: say where the language stands"
        raise UserError(Exit.USAGE, f"{what}, for example data.config={PLACEHOLDER}")
    if config.name is None and not (config.train and config.test):
        missing = "test" if config.train else "train"
        raise UserError(Exit.USAGE, f"no data.{missing}; give data.{missing}='x/{PLACEHOLDER}.{missing}.csv'")
    if tests is None:
        tests = languages_of("data.test", config.test) if config.test else sources
        if not tests:
            what = f"data.test={', '.join(as_list(config.test))}: no language has such a file"
            raise UserError(Exit.NO_INPUT, f"{what}; mend the pattern, or name the languages: test_languages=[en,it]")
        tests = sorted(tests, key=lambda language: (language not in sources, language))
    tests = check_codes("test_languages", tests)
    found = {language: _read(config, language, sources, tests, seed) for language in dict.fromkeys([*sources, *tests])}
    kinds = {
        kind: {language: splits[kind] for language, splits in found.items() if kind in splits}
        for kind in ("train", "validation", "test")
    }
    for kind, asked in (("train", sources), ("test", tests)):
        lacking = [language for language in asked if language not in kinds[kind]]
        if lacking:  # of the Hub: a file would have been missed before
            raise UserError(Exit.NO_INPUT, f"data.name={config.name} has no {kind} split for {', '.join(lacking)}")
    kinds["test"] = {language: kinds["test"][language] for language in tests}
    labels = _learn_labels(kinds, sources, config.multi_label)
    return Corpus(sources, tests, kinds["train"], kinds["validation"], kinds["test"], labels)


def read_training(config: DataConfig, sources: Sequence[str], *, seed: int) -> Split:
    """Read again what a run was trained on: train of its training languages, without the rows held out."""
    without_test = dataclasses.replace(config, test=None)
    return join("train", {source: _read(without_test, source, sources, (), seed)["train"] for source in sources})


def is_pattern(files: Files) -> bool:
    """Tell whether files are given as a pattern with `{language}`."""
    return any(PLACEHOLDER in one for one in as_list(files))


def join(name: str, parts: Mapping[str, Split]) -> Split:
    """Put the rows of several languages one after the other; an id becomes `language:id`. One language stays as it is.

    The rows of a language are those from the sum of the lengths before it, in the order of `parts`.
    """
    splits = list(parts.values())
    if len(splits) == 1:
        return dataclasses.replace(splits[0], name=name)
    tables, files = [], 0
    for language, split in parts.items():
        rows = pa.concat_tables(list(split.blocks(split.rows.column_names)))
        ids = pa.array([f"{language}:{identity}" for identity in rows["id"].to_pylist()], pa.string())
        numbers = pa.array([files + number for number in rows["file"].to_pylist()], pa.int16())
        rows = rows.set_column(rows.column_names.index("id"), "id", ids)
        tables.append(rows.set_column(rows.column_names.index("file"), "file", numbers))
        files += len(split.files)
    made_of = repr([(language, split.rows._fingerprint) for language, split in parts.items()])
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    held_out = sorted({split.held_out for split in splits} - {""})
    return dataclasses.replace(
        splits[0],
        name=name,
        rows=datasets.Dataset(InMemoryTable(pa.concat_tables(tables)), fingerprint=fingerprint),
        files=tuple(file for split in splits for file in split.files),
        sha256={file: digest for split in splits for file, digest in split.sha256.items()},
        skipped=sum(split.skipped for split in splits),
        held_out=", ".join(held_out),
        numbered=any(split.numbered for split in splits),
    )


def _read(
    config: DataConfig, language: str, sources: Sequence[str], tests: Sequence[str], seed: int
) -> dict[str, Split]:
    source, test = language in sources, language in tests
    given: dict[str, Files] = {"train": config.train, "validation": config.validation, "test": config.test}
    asked = {
        "train": "train_languages" if source else None,
        "validation": "train_languages" if source else None,
        "test": "test_languages" if test else None,
    }
    files: dict[str, list[str] | None] = dict.fromkeys(given)
    for kind, pattern in given.items():
        reason = asked[kind]
        if pattern and reason is not None:
            files[kind] = files_of(f"data.{kind}", pattern, language, reason)
        elif pattern and kind != "test" and all(_exists(file) for file in expand(f"data.{kind}", pattern, language)):
            files[kind] = expand(f"data.{kind}", pattern, language)
    if files["train"] is None:
        files["validation"] = None  # of no use without train, and never shown to a model of another language
    of_language = dataclasses.replace(
        config,
        train=files["train"],
        validation=files["validation"],
        test=files["test"],
        name=config.name.replace(PLACEHOLDER, language) if config.name else None,
        config=config.config.replace(PLACEHOLDER, language) if config.config else None,
    )
    splits = read_splits(of_language, seed=seed, need_train=source)
    return {kind: dataclasses.replace(split, name=f"{language} {kind}") for kind, split in splits.items()}


def _learn_labels(kinds: Mapping[str, Mapping[str, Split]], sources: Sequence[str], multi_label: bool) -> LabelMap:
    """Return the labels of the training languages.

    Raises UserError (65), with the labels, where two training languages have different ones, or where a language has
    labels that training does not know.
    """
    known = {language: _labels(kinds["train"][language], multi_label) for language in sources}
    everything = set().union(*known.values())
    lacking = {language: everything - labels for language, labels in known.items() if everything - labels}
    if lacking:
        told = "; ".join(f"{language} has no {_listed(labels)}" for language, labels in lacking.items())
        advice = "give the labels one name in all languages, or leave the language out of train_languages"
        raise UserError(Exit.BAD_DATA, f"the training languages have different labels: {told}\n{advice}")
    strange: dict[str, set[str]] = {}
    for split in [split for found in kinds.values() for split in found.values()]:
        unknown = _labels(split, multi_label) - everything
        if unknown:
            strange[f"{split.name} ({split.files[0]})"] = unknown
    if strange:
        told = "; ".join(f"{name}: {_listed(labels)}" for name, labels in strange.items())
        what = f"labels that training in {', '.join(sources)} does not have: {told}"
        advice = f"training has {_listed(everything)}; give the labels one name everywhere"
        raise UserError(Exit.BAD_DATA, f"{what}\n{advice}")
    return LabelMap.learn(join("train", {language: kinds["train"][language] for language in sources}), multi_label)


def _exists(file: str) -> bool:
    return Path(file).expanduser().is_file()


def _matching(pattern: str) -> set[str]:
    """Return the codes for which there is a file."""
    parts = pattern.split(PLACEHOLDER)
    named = "(?P<language>[^/]+)".join(map(re.escape, parts[:2]))
    expression = re.compile("(?P=language)".join([named, *map(re.escape, parts[2:])]))
    files = glob.glob("*".join(map(glob.escape, parts)))
    codes = {match["language"] for file in files if (match := expression.fullmatch(file)) and Path(file).is_file()}
    return {code for code in codes if CODE.fullmatch(code)}


def _labels(split: Split, multi_label: bool) -> set[str]:
    whole = set(split.labels())
    return {part for label in whole for part in split_labels(label)} if multi_label else whole


def _listed(labels: Iterable[str]) -> str:
    names = [shown(label, 40) for label in sorted(labels)]
    return ", ".join(names[:EXAMPLES]) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")
