"""The data doctor: look at the splits before a run and say what is wrong with them and what to do."""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sklearn
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.neighbors import NearestNeighbors

from finetune.data.columns import LabelMap, Split, natural_key, split_labels
from finetune.data.read import nearest, shown

SAMPLE_ROWS = 100_000
SAMPLE_CHARACTERS = 10_000_000  # of a sample: bounds the memory of its features to about 200 MB
CLIP = 500  # characters of a text that count for near duplicates and for telling tokens
NEAR = 0.9  # cosine of character n-grams from which two texts count as nearly the same
NEAR_COMPARISONS = 200_000_000  # pairs of texts, some 15 s on one core
NEAR_MEMORY = 64  # MB for one block of cosines
TOKENIZED_ROWS = 20_000
TELLING_ROWS = 20
TELLING_PRECISION = 0.98
TELLING_COVERAGE = 0.2
RARE = 10
SHOWN = 3
TEXTS = ("text", "text_pair", "source")  # what counts as the text of a row
ESCAPED = re.compile(r"\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|&(?:amp|lt|gt|quot|nbsp|#\d{2,6}|#x[0-9a-fA-F]{2,6});")
Level = Literal["good", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """What one check found: `action` is what to do, empty where there is nothing to do."""

    level: Level
    check: str
    message: str
    action: str = ""


def check(
    splits: dict[str, Split], labels: LabelMap | None, tokenizer: Any = None, max_length: int = 128, seed: int = 1
) -> list[Finding]:
    """Examine splits (train, validation, test; any may be absent) and return findings in the order of reading.

    `tokenizer` is a transformers fast tokenizer; without it lengths are not checked. `max_length` is in tokens.
    Near duplicates, tokens and telling words are looked for in a sample drawn by `seed`; its size is in the message.
    """
    keys = {name: _Keys.of(split) for name, split in splits.items()}
    findings = [_rows(splits)]
    findings += [finding for split in splits.values() if (finding := _skipped(split))]
    findings += [finding for split in splits.values() if (finding := _escaped(split))]
    repeated = [finding for name, split in splits.items() for finding in _duplicates(split, keys[name])]
    findings += repeated or [Finding("good", "duplicates", f"no text stands twice in {', '.join(splits)}")]
    train = splits.get("train")
    others = [split for name, split in splits.items() if name != "train"]
    if train is not None and others:
        neighbours = _Neighbours.of(train, seed)
        for split in others:
            findings += [_leakage(train, split, keys), _near(neighbours, split, keys, seed)]
    findings += _labels(splits, labels, seed)
    if tokenizer is not None:
        for split in splits.values():
            findings += _lengths(split, tokenizer, max_length, seed)
    return findings + _resolution(splits)


def leaks(train: Split, others: Iterable[Split]) -> list[np.ndarray]:
    """Return the rows of each other split whose text (and second text), or source, stands in train.

    Case and spaces aside.
    """
    of_train = _Keys.of(train).folded
    return [np.flatnonzero(np.isin(_Keys.of(other).folded, of_train)) for other in others]


def fold(text: str) -> str:
    """Return the text as leakage compares it: NFKC, case folded, runs of white space as one space."""
    if text.isascii():  # seven times as fast, same result
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class _Keys:
    """64-bit digests of the texts of a split, as written and folded: 16 bytes a row, (rows,) uint64 each."""

    exact: np.ndarray
    folded: np.ndarray

    @classmethod
    def of(cls, split: Split) -> "_Keys":
        exact, folded = bytearray(), bytearray()
        for texts in _columns(split):
            for parts in zip(*texts, strict=True):
                exact += _digest("\0".join(parts))
                folded += _digest("\0".join(map(fold, parts)))
        return cls(np.frombuffer(exact, np.uint64), np.frombuffer(folded, np.uint64))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _columns(split: Split) -> Iterator[list[list[str]]]:
    columns = [column for column in TEXTS if column in split.rows.column_names]
    for block in split.blocks(columns):
        yield [block[column].to_pylist() for column in columns]


def _labelled(split: Split | None) -> bool:
    return split is not None and "label" in split.rows.column_names


def _count(number: int, one: str, many: str) -> str:
    return f"1 {one}" if number == 1 else f"{number:,} {many}"


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.1f} %" if part == 0 or percent >= 0.1 else "under 0.1 %"


def _rows(splits: dict[str, Split]) -> Finding:
    parts = []
    for name, split in splits.items():
        parts.append(f"{len(split):,} {name}" + (f" ({split.held_out})" if split.held_out else ""))
    encodings = ", ".join(dict.fromkeys(split.encoding.upper() for split in splits.values()))
    return Finding("good", "rows", f"{' · '.join(parts)} rows read, {encodings}, ids all different")


def _skipped(split: Split) -> Finding | None:
    if not split.skipped:
        return None
    message = f"{_count(split.skipped, 'row', 'rows')} of {', '.join(split.files)} left out: no text or no label"
    return Finding("warning", "empty", message, "mend them, or see which: data.on_empty=error")


def _escaped(split: Split) -> Finding | None:
    """Look for characters that a program wrote as escapes or entities and nobody read back."""
    found, example = 0, ""
    for row, parts in enumerate(parts for texts in _columns(split) for parts in zip(*texts, strict=True)):
        match = next((match for text in parts if (match := ESCAPED.search(text))), None)
        if match is not None:
            found, example = found + 1, example or f"{split.where(row)} {match[0]}"
    if not found:
        return None
    rows = _count(found, "text has", "texts have")
    message = f"{split.name}: {rows} escapes in the place of characters ({_share(found, len(split))}), e.g. {example}"
    return Finding(
        "warning", "escapes", message, "read them back, e.g. json.loads or html.unescape, and write the file anew"
    )


def _duplicates(split: Split, keys: _Keys) -> list[Finding]:
    _, first, group = np.unique(keys.folded, return_index=True, return_inverse=True)
    first = first[group]  # (rows,) the first row with the same text
    repeats = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeats):
        return []
    findings = [_repeats(split, first, repeats)]
    if not _labelled(split):
        return findings
    codes = _codes(split)
    clashes = repeats[codes[repeats] != codes[first[repeats]]]
    if len(clashes):
        one, other = split.rows[int(first[clashes[0]])], split.rows[int(clashes[0])]
        example = (
            f"e.g. {split.where(first[clashes[0]])} {shown(one['label'])}, "
            f"{split.where(clashes[0])} {shown(other['label'])}"
        )
        texts = _count(len(np.unique(first[clashes])), "text carries", "texts carry")
        message = f"{split.name}: {texts} two labels or more, {example}"
        findings.append(Finding("warning", "conflicts", message, "decide on one label, or delete these rows"))
    return findings


def _repeats(split: Split, first: np.ndarray, repeats: np.ndarray) -> Finding:
    example = f"e.g. {split.where(first[repeats[0]])} = {split.where(repeats[0])}"
    rows = _count(len(repeats), "row repeats", "rows repeat")
    message = f"{split.name}: {rows} an earlier text ({_share(len(repeats), len(split))}), {example}"
    action = "delete the repeats unless they are meant: each counts as one more row"
    return Finding("warning", "duplicates", message, action)


def _codes(split: Split) -> np.ndarray:
    """Number the labels of a split by first appearance; the order of a multi-label row's labels does not matter."""
    numbers: dict[str, int] = {}
    codes = []
    for label in split.labels():
        whole = "|".join(sorted(split_labels(label))) if "|" in label else label
        codes.append(numbers.setdefault(whole, len(numbers)))
    return np.array(codes)


def _leakage(train: Split, other: Split, keys: dict[str, _Keys]) -> Finding:
    ours, theirs = keys["train"], keys[other.name]
    leaked = np.flatnonzero(np.isin(theirs.folded, ours.folded))
    if not len(leaked):
        return Finding("good", "leakage", f"no {other.name} text is in train, case and spaces set aside")
    exact = int(np.isin(theirs.exact, ours.exact).sum())
    place = int(np.flatnonzero(ours.folded == theirs.folded[leaked[0]])[0])
    detail = f"{exact:,} to the letter, {len(leaked) - exact:,} but for case and spaces"
    message = (
        f"{_count(len(leaked), f'{other.name} text is', f'{other.name} texts are')} in train "
        f"({_share(len(leaked), len(other))}; {detail}), e.g. {train.where(place)} = {other.where(leaked[0])}"
    )
    if other.held_out:
        return Finding("warning", "leakage", message, "delete the repeats in train; validation was held out of it")
    action = f"score without them: finetune evaluate RUN --data {other.files[0]} --drop-leaked"
    return Finding("warning", "leakage", message, action if other.name == "test" else "delete them from train")


def _sample(split: Split, rows: np.ndarray, limit: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Draw at most `limit` of `rows`, as many as SAMPLE_CHARACTERS allow, each text clipped; return them in order."""
    drawn = np.random.default_rng(seed).permutation(rows)[:limit]
    chosen = split.select(drawn)
    texts = [" ".join(parts)[:CLIP] for columns in _columns(chosen) for parts in zip(*columns, strict=True)]
    fits = int(np.searchsorted(np.cumsum([len(text) for text in texts]), SAMPLE_CHARACTERS, side="right"))
    return drawn[:fits], texts[:fits]


@dataclass(frozen=True)
class _Neighbours:
    """A sample of train rows, to be asked for the nearest: cosine of TF-IDF of hashed character n-grams."""

    train: Split
    rows: np.ndarray
    hashed: HashingVectorizer
    weighted: TfidfTransformer
    search: NearestNeighbors

    @classmethod
    def of(cls, train: Split, seed: int) -> "_Neighbours":
        rows, texts = _sample(train, np.arange(len(train)), SAMPLE_ROWS, seed)
        hashed = HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 4), n_features=2**18, alternate_sign=False, norm=None, dtype=np.float32
        )
        counts = hashed.transform(texts)
        weighted = TfidfTransformer(sublinear_tf=True).fit(counts)
        features = weighted.transform(counts, copy=False)
        search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(features)
        return cls(train, rows, hashed, weighted, search)

    def close(self, texts: list[str]) -> list[tuple[int, int]]:
        """Return (place in `texts`, train row) for each text that a train text nearly repeats."""
        with sklearn.config_context(working_memory=NEAR_MEMORY):
            distances, matches = self.search.kneighbors(self.weighted.transform(self.hashed.transform(texts)))
        return [
            (int(place), int(self.rows[matches[place, 0]])) for place in np.flatnonzero(distances[:, 0] <= 1 - NEAR)
        ]


def _near(neighbours: _Neighbours, other: Split, keys: dict[str, _Keys], seed: int) -> Finding:
    fresh = np.flatnonzero(~np.isin(keys[other.name].folded, keys["train"].folded))
    known, train = len(neighbours.rows), len(neighbours.train)
    rows, texts = _sample(other, fresh, max(1, NEAR_COMPARISONS // known), seed)
    told = ""
    if len(rows) < len(fresh) or known < train:
        told = f" (sample: {len(rows):,} of {len(fresh):,} {other.name}, {known:,} of {train:,} train)"
    found = neighbours.close(texts) if texts else []
    if not found:
        return Finding("good", "near duplicates", f"no {other.name} text is nearly a train text{told}")
    place, match = max(found, key=lambda pair: len(texts[pair[0]]))
    message = (
        f"{_count(len(found), f'{other.name} text is', f'{other.name} texts are')} nearly a train text"
        f" ({_share(len(found), len(rows))} of those compared), "
        f"e.g. {neighbours.train.where(match)} ~ {other.where(rows[place])}{told}"
    )
    return Finding("warning", "near duplicates", message, "read a few; if they are copies, delete them from train")


def _labels(splits: dict[str, Split], labels: LabelMap | None, seed: int) -> list[Finding]:
    train = splits.get("train")
    others = {name: split for name, split in splits.items() if name != "train" and _labelled(split)}
    multi_label = labels is not None and labels.multi_label
    findings: list[Finding] = []
    known = set(labels.names) if labels is not None else None
    if train is not None and _labelled(train):
        counts = _label_counts(train, multi_label)
        known = set(counts) if known is None else known
        findings += [*_balance(train, counts), *_spelling(counts, multi_label), _telling(train, multi_label, seed)]
    if known is None or not others:
        return findings
    unseen = [finding for split in others.values() if (finding := _unseen(split, known, multi_label))]
    return findings + (unseen or [Finding("good", "unseen labels", f"every label of {', '.join(others)} is in train")])


def _label_counts(split: Split, multi_label: bool) -> Counter[str]:
    if not multi_label:
        return Counter(split.labels())
    return Counter(part for label in split.labels() for part in set(split_labels(label)))


def _balance(train: Split, counts: Counter[str]) -> list[Finding]:
    ordered = sorted(counts, key=lambda label: (counts[label], natural_key(label)))
    smallest, largest = ordered[0], ordered[-1]
    findings: list[Finding] = []
    rare = [label for label in ordered if counts[label] < RARE]
    if rare:
        some = ", ".join(f"{shown(label, 30)} {counts[label]}" for label in rare[:SHOWN])
        more = f" and {len(rare) - SHOWN:,} more" if len(rare) > SHOWN else ""
        message = f"{_count(len(rare), 'label has', 'labels have')} fewer than {RARE} train rows: {some}{more}"
        findings.append(Finding("warning", "rare labels", message, "add rows, or merge them into a wider label"))
    share = counts[largest] / len(train)
    if share >= 0.8:
        message = f"{share:.0%} of train is {shown(largest)}: always answering it scores an accuracy near {share:.2f}"
        findings.append(Finding("warning", "balance", message, "read macro-F1 beside accuracy"))
    size = f"smallest: {_count(counts[smallest], 'row', 'rows')} ({shown(smallest, 30)})"
    message = f"{len(counts):,} labels, {size}, largest: {counts[largest]:,} ({shown(largest, 30)})"
    return [*findings, Finding("good", "labels", message)]


def _spelling(counts: Counter[str], multi_label: bool) -> list[Finding]:
    findings = []
    joined = [label for label in counts if "|" in label]
    if joined and not multi_label:
        labels = _count(len(joined), "label holds", "labels hold")
        message = f"{labels} a |, e.g. {shown(joined[0])}: is each several labels?"
        findings.append(Finding("warning", "label spelling", message, "give data.multi_label=true"))
    spelt: dict[str, str] = {}
    for label in counts:
        other = spelt.setdefault(fold(label), label)
        if other != label:
            message = f"the labels {shown(other)} and {shown(label)} differ only in case or spaces"
            findings.append(Finding("warning", "label spelling", message, "write them the same way"))
            break
    return findings


def _unseen(split: Split, known: set[str], multi_label: bool) -> Finding | None:
    rows, name, where = 0, "", ""
    for row, label in enumerate(split.labels()):
        parts = split_labels(label) if multi_label else [label]
        missing = next((part for part in parts if part not in known), None)
        if missing is not None:
            rows += 1
            where, name = where or split.where(row), name or missing
    if not rows:
        return None
    guess = nearest(name, known)
    question = f", did you mean {shown(guess)}?" if guess else ""
    message = f"{_count(rows, f'{split.name} row has', f'{split.name} rows have')} a label that train does not have"
    action = "mend the label, or add train rows that have it"
    return Finding("failure", "unseen labels", f"{message}, e.g. {where} {shown(name)}{question}", action)


def _telling(train: Split, multi_label: bool, seed: int) -> Finding:
    """Look for words that alone give a label away, as left behind by a collecting or labelling program.

    A word counts where it stands in TELLING_ROWS rows or more, nearly all of one label, covers a good part of that
    label (a topic's own rare words do not), and would not come out like that by chance among so many words.
    """
    rows, texts = _sample(train, np.arange(len(train)), SAMPLE_ROWS, seed)
    chosen = train.select(rows).labels()
    gold = [split_labels(label) if multi_label else [label] for label in chosen]
    words = [set(text.casefold().split()) for text in texts]
    seen = Counter(word for row in words for word in row)
    frequent = {word for word, count in seen.items() if count >= TELLING_ROWS}
    sizes = Counter(label for row in gold for label in row)
    both = Counter(
        (word, label) for row, of in zip(words, gold, strict=True) for word in row & frequent for label in of
    )
    found = []
    for (word, label), count in both.items():
        chance = count * math.log(len(rows) / sizes[label]) > math.log(max(1, len(seen)) / 0.001)
        if count >= TELLING_PRECISION * seen[word] and count >= TELLING_COVERAGE * sizes[label] and chance:
            found.append((count, word, label))
    told = f" (sample: {len(rows):,} of {len(train):,} rows)" if len(rows) < len(train) else ""
    if not found:
        return Finding("good", "telling words", f"no word alone gives a label away{told}")
    found.sort(key=lambda item: (-item[0], item[1]))
    some = "; ".join(
        f"{shown(word, 30)} predicts {shown(label, 30)} ({100 * count / seen[word]:.0f} % of {seen[word]:,} rows)"
        for count, word, label in found[:SHOWN]
    )
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    message = f"one word alone tells the label: {some}{more}{told}"
    return Finding(
        "warning", "telling words", message, "is it written by the labelling? If so, delete it from the texts"
    )


def _lengths(split: Split, tokenizer: Any, max_length: int, seed: int) -> list[Finding]:
    rows = np.arange(len(split))
    if len(rows) > TOKENIZED_ROWS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:TOKENIZED_ROWS])
    lengths, unknown, silent = _tokenized(split.select(rows), tokenizer)
    told = f" (sample: {len(rows):,} of {len(split):,} rows)" if len(rows) < len(split) else ""
    tokens = int(lengths.sum())
    if silent > 0.5 * len(rows) or unknown > 0.5 * tokens:
        what = f"{split.name}: the tokenizer knows almost none of the text ({_share(unknown, max(1, tokens))} unknown)"
        return [
            Finding("failure", "tokens", what + told, "are its files missing? Give a folder that has tokenizer.json")
        ]
    middle, most, nearly_all = (int(value) for value in np.quantile(lengths, [0.5, 0.95, 0.99], method="higher"))
    cut = int((lengths > max_length).sum())
    message = (
        f"{split.name}: {middle:,} tokens a text (95 %: {most:,}, longest: {int(lengths.max()):,}) · "
        f"{_share(cut, len(rows))} cut at {max_length:,}{told}"
    )
    findings = [Finding("good", "lengths", message)]
    if cut > 0.01 * len(rows):
        enough = 2 ** math.ceil(math.log2(nearly_all))
        longer = f"max_length={enough} or " if max_length < enough <= 512 else ""  # BERT reads 512 tokens at most
        findings = [Finding("warning", "lengths", message, f"give {longer}data.on_long=window")]
    if unknown > 0.01 * tokens:
        message = f"{split.name}: {_share(unknown, tokens)} of the tokens are unknown to the tokenizer{told}"
        findings.append(Finding("warning", "tokens", message, "take a model made for this language or script"))
    return findings


def _tokenized(split: Split, tokenizer: Any) -> tuple[np.ndarray, int, int]:
    """Return tokens of each text, special ones included (rows,), unknown tokens, and texts that gave no token."""
    lengths: list[int] = []
    unknown = silent = 0
    for block in split.blocks(split.rows.column_names, size=1_000):
        texts = [block[column].to_pylist() for column in TEXTS if column in block.column_names]
        special = tokenizer.num_special_tokens_to_add(pair=len(texts) == 2)
        for numbers in tokenizer(*texts, truncation=False, verbose=False)["input_ids"]:
            lengths.append(len(numbers))
            silent += len(numbers) <= special
            unknown += numbers.count(tokenizer.unk_token_id)
    return np.array(lengths), unknown, silent


def _resolution(splits: dict[str, Split]) -> list[Finding]:
    from finetune.significance import resolution  # scipy's statistics cost a second: only where they are needed

    scored = splits.get("test") or splits.get("validation")
    if scored is None:
        return []
    points = 100 * resolution(len(scored))
    message = (
        f"smallest difference of accuracy that the {len(scored):,} {scored.name} rows can show: {points:.1f} points"
    )
    if points > 5:
        action = "differences below that need more rows to be shown: label more of them"
        return [Finding("warning", "resolution", message, action)]
    return [Finding("good", "resolution", message)]
