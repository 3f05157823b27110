"""Vocabularies learnt from the training texts: BPE, unigram, words or characters; reversible, the same each time.

Every tokenizer normalises first: Unicode NFC, runs of white space become one space, none at the ends, and the mark of
its kind (below) becomes its look-alike. What is left comes back letter for letter from the tokens, as long as none is
unknown. Pieces never mix letters with signs, so that no text can hold a special token.

- BPE (Sennrich et al. 2016) and unigram (Kudo 2018): a word begins with ▁, as in sentencepiece.
- word: a sign that touches a word or sign carries ￭ on that side, so words have one form: `Herd ￭.`, `(￭ a ￭)`.
- character: each code point is a token, the space as well.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune.config import configclass, field
from finetune.errors import Exit, UserError
from finetune.seq2seq.unigram import learn_pieces

PAD, UNK, BOS, EOS = range(4)
SPECIALS = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # by number
WORD_MARK, JOINT = "▁", "￭"
LOOK_ALIKES = {WORD_MARK: "_", JOINT: "■"}
# Letters with their accents, single digits, and runs of other signs: each with the ▁ before it.
PIECES = rf"{WORD_MARK}?[\p{{L}}\p{{M}}]+|{WORD_MARK}?\p{{N}}|{WORD_MARK}?[^{WORD_MARK}\p{{L}}\p{{M}}\p{{N}}]+"
# A sign for the word level: all but letters and digits, and the letters of scripts without spaces between words.
SIGN = r"(?:[^\w\s]|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
PERCENTILES = (50, 90, 99, 100)
Kind = Literal["bpe", "unigram", "word", "character"]


@configclass
class VocabularyConfig:
    """What the tokens are, and how many."""

    kind: Kind = field("bpe", "bpe and unigram: parts of words; word: words and signs; character")
    vocab_size: Annotated[int, Field(gt=4)] = field(8_000, "entries at most, with the four special ones")
    shared: bool = field(True, "one vocabulary for source and target; false: one each")
    lowercase: bool = field(False, "letters are made small, and stay so in the output")
    min_frequency: Annotated[int, Field(gt=0)] = field(
        2, "a word, or a pair that bpe joins, is seen so often; unigram and character do not use it"
    )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a vocabulary makes of some texts."""

    size: int
    unknown_rate: float  # of the tokens without bos and eos
    tokens_per_word: float  # words as white space parts them
    lengths: dict[int, int]  # percentile -> tokens of a text, bos and eos included

    def __str__(self) -> str:
        """Return one line for the log."""
        middle, *_, most = self.lengths.values()
        return (
            f"{self.size:,} entries · {100 * self.unknown_rate:.2f} % unknown · "
            f"{self.tokens_per_word:.2f} tokens a word · {middle} a text (most {most})"
        )


@dataclasses.dataclass(frozen=True)
class Vocabularies:
    """The tokenizers of source and target: one object where they are shared. pad 0, unk 1, bos 2, eos 3."""

    source: PreTrainedTokenizerFast
    target: PreTrainedTokenizerFast

    @property
    def shared(self) -> bool:
        """Return whether source and target have one vocabulary."""
        return self.source is self.target

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of each text, with eos."""
        return [[*row, EOS] for row in _encode(self.source, texts)]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token numbers of each text, from bos to eos."""
        return [[BOS, *row, EOS] for row in _encode(self.target, texts)]

    def decode_targets(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of token numbers, without special tokens."""
        return decode(self.target, rows)

    def save(self, folder: Path) -> None:
        """Write tokenizer files: a shared one into the folder itself, two into its folders source and target."""
        if self.shared:
            self.source.save_pretrained(folder)
        else:
            self.source.save_pretrained(folder / "source")
            self.target.save_pretrained(folder / "target")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises UserError: 66 where nothing is there, 65 where it is damaged."""
        if (folder / "source").is_dir():
            return cls(_load(folder / "source"), _load(folder / "target"))
        tokenizer = _load(folder)
        return cls(tokenizer, tokenizer)


def learn(sources: Sequence[str], targets: Sequence[str], config: VocabularyConfig) -> Vocabularies:
    """Learn the vocabularies from the training texts; the same texts give the same files.

    Raises UserError: 2 where vocab_size cannot hold each character that must have an entry, 65 without any text.
    """
    if config.shared:
        tokenizer = _train([*sources, *targets], config, "the training texts")
        return Vocabularies(tokenizer, tokenizer)
    return Vocabularies(_train(sources, config, "the sources"), _train(targets, config, "the targets"))


def decode(tokenizer: PreTrainedTokenizerFast, rows: Iterable[Sequence[int]]) -> list[str]:
    """Return the text of each row of token numbers, without special tokens."""
    texts: list[str] = tokenizer.backend_tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
    return texts


def statistics(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], rows: Sequence[Sequence[int] | np.ndarray]
) -> Statistics:
    """Describe `rows`, the token numbers of `texts` with their bos and eos."""
    counts = Counter(token for row in rows for token in row)
    tokens = sum(count for token, count in counts.items() if token not in {PAD, BOS, EOS})
    lengths = np.percentile([len(row) for row in rows], PERCENTILES, method="higher").astype(int).tolist()
    return Statistics(
        size=len(tokenizer),
        unknown_rate=counts[UNK] / max(1, tokens),
        tokens_per_word=tokens / max(1, sum(len(text.split()) for text in texts)),
        lengths=dict(zip(PERCENTILES, lengths, strict=True)),
    )


def _train(texts: Sequence[str], config: VocabularyConfig, whose: str) -> PreTrainedTokenizerFast:
    tokenizer = _untrained(config)
    characters = {character for text in texts for character in tokenizer.normalizer.normalize_str(text)}
    if not characters:
        raise UserError(Exit.BAD_DATA, f"{whose} are empty: there is no vocabulary to learn")
    _refuse_small(characters, config, whose)
    _learn(tokenizer, texts, config)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIALS['eos_token']}", special_tokens=[(SPECIALS["eos_token"], EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, split_special_tokens=True, clean_up_tokenization_spaces=False, **SPECIALS
    )


def _untrained(config: VocabularyConfig) -> Tokenizer:
    """Return a tokenizer with its normalizer, pre-tokenizer and decoder, and an empty model."""
    unknown = SPECIALS["unk_token"]
    if config.kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    elif config.kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tidy = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if config.lowercase:
        tidy.insert(0, normalizers.Lowercase())
    if config.kind == "word":
        tidy += [normalizers.Replace(JOINT, LOOK_ALIKES[JOINT]), *_join_marks()]
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        joined = [decoders.WordPiece(prefix=JOINT, cleanup=False), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*joined, decoders.Replace(f"{JOINT} ", ""), decoders.Replace(JOINT, "")])
    elif config.kind == "character":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tidy.append(normalizers.Replace(WORD_MARK, LOOK_ALIKES[WORD_MARK]))
        words = pre_tokenizers.Metaspace(replacement=WORD_MARK, prepend_scheme="always")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex(PIECES), "isolated")])
        tokenizer.decoder = decoders.Metaspace(replacement=WORD_MARK, prepend_scheme="always")
    tokenizer.normalizer = normalizers.Sequence(tidy)
    return tokenizer


def _join_marks() -> list[normalizers.Normalizer]:
    """Return the steps that part signs from what they touch: on the left from anything, on the right from a word."""
    left = normalizers.Replace(Regex(rf"(?<=\S)(?={SIGN})"), f" {JOINT}")
    right = normalizers.Replace(Regex(rf"(?<={SIGN})(?!{SIGN})(?=\w)"), f"{JOINT} ")
    return [left, right]


def _learn(tokenizer: Tokenizer, texts: Sequence[str], config: VocabularyConfig) -> None:
    specials = list(SPECIALS.values())
    if config.kind == "unigram":
        words: Counter[str] = Counter()
        for text in texts:
            pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
            words.update(piece for piece, _ in pieces)
        learnt = learn_pieces(words, config.vocab_size - len(specials))
        tokenizer.model = models.Unigram([*((special, 0.0) for special in specials), *learnt], unk_id=UNK)
        tokenizer.add_special_tokens(specials)
        return
    make = trainers.BpeTrainer if config.kind == "bpe" else trainers.WordLevelTrainer
    least = 1 if config.kind == "character" else config.min_frequency
    trainer = make(vocab_size=config.vocab_size, min_frequency=least, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))


def _refuse_small(characters: set[str], config: VocabularyConfig, whose: str) -> None:
    """Refuse a size without room for each character: a character of the training texts must never be unknown."""
    if config.kind == "word":
        return
    alphabet = characters if config.kind == "character" else (characters - {" "}) | {WORD_MARK}
    smallest = len(SPECIALS) + len(alphabet)
    if config.vocab_size < smallest:
        raise UserError(
            Exit.USAGE,
            f"vocab_size={config.vocab_size:,} has no room for the {len(alphabet):,} different characters of {whose}; "
            f"give at least {smallest:,}",
        )


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    coded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)
    rows: list[list[int]] = coded["input_ids"]
    return rows


def _load(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise UserError(Exit.NO_INPUT, f"{folder}: no tokenizer.json; give a folder that a seq2seq run saved")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust parser raises Exception itself
        reason = str(error).strip().partition("\n")[0]
        raise UserError(Exit.BAD_DATA, f"{folder}: the tokenizer cannot be read: {reason[:200]}") from None
    if tokenizer.convert_tokens_to_ids(list(SPECIALS.values())) != [PAD, UNK, BOS, EOS]:
        raise UserError(Exit.BAD_DATA, f"{folder}: the tokenizer is not of a seq2seq run: its special tokens differ")
    return tokenizer
