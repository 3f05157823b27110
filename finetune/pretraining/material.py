"""Everything that a pretraining run reads, put together: what is learnt from, what is held out, what is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from transformers import PreTrainedTokenizerBase

from finetune.data.batching import Examples
from finetune.data.columns import Files, as_list
from finetune.errors import Exit, UserError, did_you_mean
from finetune.pretraining import corpus, examples
from finetune.pretraining.alignment import expected_counts
from finetune.pretraining.corpus import CorpusConfig, Documents, Pairs
from finetune.pretraining.distillation import Teacher, Vectors
from finetune.pretraining.examples import Frame, Part
from finetune.pretraining.scoring import Bitext, Masked, Unigram
from finetune.pretraining.stores import Encoder, Rows

KINDS = ("mlm", "tlm", "distil")
Chosen = dict[str, np.ndarray]  # language -> numbers of pairs
TOKENS_AT_ONCE = 1 << 24
EVERYTHING = 1.0  # the exponent at which no example is repeated


@dataclass(frozen=True)
class Plan:
    """What a run is asked to learn, from which languages and files; checked, nothing read yet."""

    kinds: tuple[str, ...]
    languages: tuple[str, ...]
    data: CorpusConfig
    seed: int

    @property
    def partners(self) -> tuple[str, ...]:
        """Return the languages that are paired with the source language."""
        return tuple(code for code in self.languages if code != self.data.source_language)

    @cached_property
    def held(self) -> corpus.HeldOut:
        """Return the texts that must not be in train; they are read once."""
        return corpus.read_held_out(self.data)

    @property
    def held_out_seed(self) -> int:
        """Return the seed of what is held out."""
        return self.seed if self.data.validation_seed is None else self.data.validation_seed

    @property
    def unread(self) -> tuple[str, ...]:
        """Return the settings of texts that no part of the objective reads: the vocabulary may be learnt from them."""
        train = self.data.train and "mlm" not in self.kinds
        parallel = self.data.parallel and not {"tlm", "distil"} & set(self.kinds)
        return tuple(name for name, idle in (("data.train", train), ("data.parallel", parallel)) if idle)

    @property
    def main(self) -> str:
        """Return the kind by which the run is judged."""
        return next(kind for kind in KINDS if kind in self.kinds)


@dataclass(frozen=True)
class Material:
    """What a run learns from and is judged on."""

    train: Examples
    parts: list[Part]
    masked: dict[str, dict[str, Masked]]  # split -> kind -> rows with hidden places
    bitexts: list[Bitext]
    unigram: Unigram
    vectors: Vectors | None
    digests: dict[str, str]
    figures: dict[str, Any]

    def remember(self, updates: Sequence[tuple[int, np.ndarray]]) -> None:
        """Let the teacher work out the vectors that some updates need, (epoch, example numbers) each."""
        if self.vectors is None:
            return
        examples, start = np.concatenate([update for _, update in updates]), 0
        for part in self.parts:
            if part.sources is not None:
                mine = examples[(examples >= start) & (examples < start + len(part))] - start
                self.vectors.remember(np.unique(part.sources[mine]))
            start += len(part)


def plan(objective: str, languages: Sequence[str], data: CorpusConfig, teacher: str | None, seed: int) -> Plan:
    """Check what a run is asked for before anything is read; raises UserError (2)."""
    kinds = tuple(part.strip() for part in objective.split("+"))
    for kind in kinds:
        if kind not in KINDS:
            guess = did_you_mean(kind, KINDS)
            what = f"objective={objective}: there is no {kind or 'empty part'}{guess}"
            raise UserError(Exit.USAGE, f"{what}\ngive mlm, tlm or distil, or several joined by +, e.g. mlm+tlm")
    if len(set(kinds)) < len(kinds):
        raise UserError(Exit.USAGE, f"objective={objective} names a part twice; name each once")
    _check_given(kinds, data, teacher)
    asked = Plan(kinds, corpus.check_languages(languages, data), data, seed)
    if {"tlm", "distil"} & set(kinds) and not asked.partners:
        what = f"data.parallel pairs {data.source_language} with other languages, and train_languages names none"
        raise UserError(Exit.USAGE, f"{what}; give e.g. train_languages=[{data.source_language},it]")
    return asked


def _check_given(kinds: Sequence[str], data: CorpusConfig, teacher: str | None) -> None:
    """Refuse an objective without what it reads, and what none of its parts reads."""
    objective = "+".join(kinds)
    for needs, name, given in (
        ({"mlm"}, "data.train=FILE", data.train),
        ({"tlm", "distil"}, "data.parallel=FILE", data.parallel),
        ({"distil"}, "teacher=NAME", teacher),
    ):
        if needs & set(kinds) and not given:
            raise UserError(Exit.USAGE, f"objective={objective} needs {name}: give it, or another objective")
    settings: list[tuple[set[str], str, Files]] = [
        ({"distil"}, "teacher", teacher),
        ({"mlm"}, "data.validation", data.validation),
        ({"mlm"}, "data.test", data.test),
        ({"tlm", "distil"}, "data.parallel_validation", data.parallel_validation),
    ]
    for reads, setting, value in settings:
        if value and not reads & set(kinds):
            for_which = " or ".join(kind for kind in KINDS if kind in reads)
            what = f"{setting}={', '.join(as_list(value))} is for objective={for_which}, and this one is {objective}"
            raise UserError(Exit.USAGE, f"{what}; leave it out, or add it: +{for_which.split()[0]}")


def read(asked: Plan, tokenizer: PreTrainedTokenizerBase, frame: Frame, teacher: Teacher | None) -> Material:
    """Read all files as token numbers, hold part of them out, and cut the rest into examples.

    Raises UserError: 66 for a file that is not there, 65 for one that cannot be used, with its line where there is one.
    """
    found = _Gathering(asked, tokenizer, frame)
    if "mlm" in asked.kinds:
        found.add_documents()
    if {"tlm", "distil"} & set(asked.kinds):
        found.add_pairs(teacher)
    return Material(
        examples.join(found.parts), found.parts, found.masked, found.bitexts, Unigram.of(found.counts), found.vectors,
        found.digests, found.figures,
    )  # fmt: skip


def entry_translations(
    asked: Plan, new: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase
) -> list[sparse.csr_matrix]:
    """Return for each language how often entries of a new vocabulary stand for those of a model, from pairs.

    The source language is paired with itself. Pairs that are held out have no say. Raises UserError (2) without pairs.
    """
    if not asked.data.parallel or not asked.partners:
        what = "vocabulary.embeddings=aligned learns from pairs of translations what entries mean"
        raise UserError(Exit.USAGE, f"{what}; give data.parallel=FILE, or vocabulary.embeddings=copied")
    encoders = Encoder(new), Encoder(own)
    pairs = corpus.read_pairs("parallel", asked.partners, asked.data, encoders, asked.held)
    assert pairs.teacher is not None
    out = np.zeros(len(pairs.source), dtype=bool)
    if not asked.data.parallel_validation and len(out) > 1:
        out = corpus.hold_out(len(out), asked.data, asked.held_out_seed)
    shape, sentences = (len(new), len(own)), np.arange(len(pairs.source))
    found = [expected_counts(pairs.source, pairs.teacher, sentences, np.flatnonzero(~out), shape)]
    for code in asked.partners:
        of_source = pairs.source_of[code]
        learnt = np.flatnonzero(~out[of_source])
        found.append(expected_counts(pairs.target[code], pairs.teacher, of_source, learnt, shape))
    return found


class _Gathering:
    """The material of a run on its way."""

    def __init__(self, asked: Plan, tokenizer: PreTrainedTokenizerBase, frame: Frame) -> None:
        self.asked, self.data, self.tokenizer, self.frame = asked, asked.data, tokenizer, frame
        self.parts: list[Part] = []
        self.masked: dict[str, dict[str, Masked]] = {}
        self.bitexts: list[Bitext] = []
        self.vectors: Vectors | None = None
        self.digests: dict[str, str] = {}
        self.figures: dict[str, Any] = {"languages": {code: {} for code in asked.languages}}
        self.counts = np.zeros(len(tokenizer))

    def add_documents(self) -> None:
        """Take the text of each language: train, validation (or a part of train), and test where it is given."""
        train = {code: self._documents("train", code, self.asked.held) for code in self.asked.languages}
        chosen = {"train": {code: (found, np.arange(len(found.rows))) for code, found in train.items()}}
        nothing = corpus.HeldOut({}, "", "drop")
        for name in ("validation", "test"):
            if as_list(getattr(self.data, name)):
                read = {code: self._documents(name, code, nothing) for code in self.asked.languages}
                chosen[name] = {code: (found, np.arange(len(found.rows))) for code, found in read.items()}
        if "validation" not in chosen:
            chosen |= self._part_off(train)
        for code, (found, units) in chosen["train"].items():
            corpus.check_unknown(code, found.figures["words"], found.figures["unknown"], "the vocabulary")
            examples.check_size(found, units, self.frame.max_length)
            self._count(found.rows, units)
            told = {name: found.figures[name] for name in ("words", "unknown", "dropped")}
            self.figures["languages"][code] |= told | {"tokens": int(found.rows.lengths[units].sum())}
        for name, documents in chosen.items():
            exponent = self.data.language_exponent if name == "train" else EVERYTHING
            part = examples.blocks(documents, self.frame, exponent, self.asked.seed)
            if name == "train":
                self.parts.append(part)
            else:
                self._hide(name, part)

    def add_pairs(self, teacher: Teacher | None) -> None:
        """Take the pairs of each language with the source language, and hold out some source sentences with them."""
        train = self._pairs("parallel", teacher, self.asked.held)
        other, chosen, held = self._pairs_out(train, teacher)
        self._tell_pairs(train, chosen, held)
        exponent, seed = self.data.language_exponent, self.asked.seed
        if "tlm" in self.asked.kinds:
            self.parts.append(examples.translations(train, chosen, self.frame, exponent, seed))
            self._hide("validation", examples.translations(other, held, self.frame, EVERYTHING, seed))
            of_source = np.concatenate([train.source_of[code][numbers] for code, numbers in chosen.items()])
            self._count(train.source, of_source)
            for code, numbers in chosen.items():
                self._count(train.target[code], numbers)
        if "distil" in self.asked.kinds:
            assert teacher is not None
            assert train.teacher is not None
            self.vectors = Vectors(teacher, train.teacher)
            self.parts.append(examples.sentences(train, chosen, self.frame, exponent, seed, self.vectors))
            self.bitexts = [self._bitext(other, code, held[code], teacher) for code in self.asked.partners]

    def _pairs_out(self, train: Pairs, teacher: Teacher | None) -> tuple[Pairs, Chosen, Chosen]:
        """Return the pairs of validation, and by language the numbers of pairs to learn from and to hold out."""
        if self.data.parallel_validation:
            other = self._pairs("parallel_validation", teacher, corpus.HeldOut({}, "", "drop"))
            chosen, held = (
                {code: np.arange(len(of_source)) for code, of_source in pairs.source_of.items()}
                for pairs in (train, other)
            )
            return other, chosen, held
        out = self._sentences_out(train)
        held = {code: np.flatnonzero(out[of_source]) for code, of_source in train.source_of.items()}
        chosen = {code: np.flatnonzero(~out[of_source]) for code, of_source in train.source_of.items()}
        return train, chosen, held

    def _tell_pairs(self, train: Pairs, chosen: Chosen, held: Chosen) -> None:
        """Note how many pairs there are; refuse too few, and a vocabulary that does not know a language."""
        for code, found in train.figures["languages"].items():
            if not len(chosen[code]) or not len(held[code]):
                what = f"{train.files[code][0]}: {found['pairs']:,} pairs are too few to learn from and hold some out"
                raise UserError(Exit.BAD_DATA, f"{what}; give more, or data.parallel_validation=FILE")
            corpus.check_unknown(code, found["words"], found["unknown"], "the vocabulary")
            figures = self.figures["languages"][code]
            for name in ("words", "unknown"):  # of the documents too, where there are any
                figures[name] = figures.get(name, 0) + found[name]
            figures |= {"pairs": len(chosen[code]), "dropped_pairs": found["dropped"]}
            figures["cut_pairs"] = self._too_long(train, code, chosen[code])
        source = train.figures["source"]
        corpus.check_unknown(self.data.source_language, source["words"], source["unknown"], "the vocabulary")
        self.figures["source_sentences"] = source["sentences"]

    def _too_long(self, train: Pairs, code: str, numbers: np.ndarray) -> int:
        """Count the pairs that lose their end: side by side for tlm, else each text alone."""
        first, second = train.source.lengths[train.source_of[code][numbers]], train.target[code].lengths[numbers]
        length = first + second + 3 if "tlm" in self.asked.kinds else np.maximum(first, second) + 2
        return int((length > self.frame.max_length).sum())

    def _count(self, rows: Rows, learnt: np.ndarray) -> None:
        """Count the tokens of the rows that are learnt from; what is held out has no say in the cheap system."""
        for start in range(0, len(rows.tokens), TOKENS_AT_ONCE):
            self.counts += np.bincount(rows.tokens[start : start + TOKENS_AT_ONCE], minlength=len(self.counts))
        for row in np.setdiff1d(np.arange(len(rows)), learnt).tolist():
            np.subtract.at(self.counts, rows[row], 1)
        self.counts[self.tokenizer.all_special_ids] = 0  # they are never hidden

    def _documents(self, name: str, code: str, held: corpus.HeldOut) -> Documents:
        found = corpus.read_documents(name, code, self.data, Encoder(self.tokenizer), held)
        self.digests |= found.figures["digests"]
        return found

    def _pairs(self, name: str, teacher: Teacher | None, held: corpus.HeldOut) -> Pairs:
        encoders = Encoder(self.tokenizer), None if teacher is None else Encoder(teacher.tokenizer)
        found = corpus.read_pairs(name, self.asked.partners, self.data, encoders, held)
        self.digests |= found.figures["digests"]
        return found

    def _part_off(self, train: Mapping[str, Documents]) -> dict[str, dict[str, tuple[Documents, np.ndarray]]]:
        kept, out = {}, {}
        for code, found in train.items():
            if len(found.rows) < 2:
                what = f"{found.files[0]} is one document, so none can be held out"
                raise UserError(Exit.BAD_DATA, f"{what}; part documents by blank lines, or give data.validation=FILE")
            chosen = corpus.hold_out(len(found.rows), self.data, self.asked.held_out_seed)
            kept[code] = (found, np.flatnonzero(~chosen))
            out[code] = (found, np.flatnonzero(chosen))
            lengths = found.rows.lengths
            told = {"held_out_units": int(chosen.sum()), "held_out_tokens": int(lengths[chosen].sum())}
            self.figures["languages"][code] |= told
        return {"train": kept, "validation": out}

    def _sentences_out(self, pairs: Pairs) -> np.ndarray:
        """Choose source sentences to hold out, with all their translations: a mask (sentences,)."""
        if len(pairs.source) < 2:
            what = f"{next(iter(pairs.files.values()))[0]} has one source sentence, so none can be held out"
            raise UserError(Exit.BAD_DATA, f"{what}; give more pairs, or data.parallel_validation=FILE")
        out = corpus.hold_out(len(pairs.source), self.data, self.asked.held_out_seed)
        self.figures["held_out_sentences"] = int(out.sum())
        return out

    def _hide(self, name: str, part: Part) -> None:
        self.masked.setdefault(name, {})[part.kind] = Masked.of(part, self.frame, self.asked.held_out_seed)

    def _bitext(self, pairs: Pairs, code: str, numbers: np.ndarray, teacher: Teacher) -> Bitext:
        """Gather held-out pairs, one for each source sentence: two right answers cannot both be the nearest."""
        assert pairs.teacher is not None
        _, first = np.unique(pairs.source_of[code][numbers], return_index=True)
        numbers = numbers[np.sort(first)][: corpus.MOST_HELD_OUT]
        self.figures["languages"][code]["candidates"] = len(numbers)
        of_source = pairs.source_of[code][numbers]
        return Bitext(
            language=code,
            ids=[pairs.where(code, int(pair)) for pair in numbers],
            source=[self.frame.around(pairs.source[row]) for row in of_source],
            target=[self.frame.around(pairs.target[code][pair]) for pair in numbers],
            texts=corpus.pair_texts(pairs, code, numbers, self.data),
            teacher=teacher.encode(pairs.teacher, of_source).astype(np.float32),
        )
