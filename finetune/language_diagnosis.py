"""What a tokenizer and a training set make of each language, beside the gap that a model has in it."""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune.data.columns import Split
from finetune.data.encode import MAX_UNKNOWN_RATE, TEXTS_AT_ONCE
from finetune.errors import Exit, UserError
from finetune.text_metrics import UNSPACED, words

SAMPLE_ROWS = 20_000  # of a split, drawn by the seed: more would say the same
LANGID_ROWS = 1_000  # of a file, some 0.3 s
MIX_SHOWN = 4
MOST = 0.5
FEW_LANGUAGES = 8  # below so many a rank correlation may well be chance
FIGURES = {
    "subwords_per_word": "subwords that hold a letter or digit, for each word (fertility)",
    "unknown_rate": "share of the subwords that are the unknown token",
    "cut_share": "share of the rows with more than max_length tokens",
    "token_overlap": "share of the subwords of words that occur in the training texts",
    "type_overlap": "the same of different subwords, each counted once",
    "mean_tokens": "mean tokens of a row, with the special ones, before anything is cut",
}
# Codes that the identifier mixes up, or that are one language under several codes: none of them is a wrong file.
ALIKE = (
    {"no", "nb", "nn", "da"}, {"hr", "sr", "bs"}, {"id", "ms"}, {"zh", "yue", "wuu"}, {"he", "iw"}, {"fil", "tl"},
    {"en", "pcm"}, {"es", "gl", "an", "ext"}, {"de", "lb"}, {"cs", "sk"}, {"af", "nl"},
)  # fmt: skip
LANGID_HINT = "the language of the files was not looked at: pip install 'finetune-recipes[langid]'"


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of some texts; `subwords` counts those that hold a letter, a digit or their marks."""

    rows: int
    lengths: np.ndarray  # (rows,) tokens with the special ones
    subwords: Counter[int]
    words: int
    characters: int  # of `words`, those that are one character of a script without spaces
    tokens: int  # without the special ones
    unknown: int


def diagnose(
    tests: Mapping[str, Split], training: Sequence[Split], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, dict[str, Any]]:
    """Return for each language what its test texts are to the tokenizer and beside the training texts.

    Each holds "rows", "counted" (what a word is: `words`, or `characters` where most of the text is in a script without
    spaces, where every character counts as one), and the figures of FIGURES, which says what each means. Fertility
    follows Rust et al. 2021, section 3.3, with Unicode words in place of a treebank's.
    """
    known: set[int] = set()
    for split in training:
        known |= read(split, tokenizer).subwords.keys()
    found = {}
    for language, split in tests.items():
        reading = read(split, tokenizer)
        shared = {token: number for token, number in reading.subwords.items() if token in known}
        found[language] = {
            "rows": reading.rows,
            "counted": "characters" if reading.characters > MOST * reading.words else "words",
            "subwords_per_word": reading.subwords.total() / max(1, reading.words),
            "unknown_rate": reading.unknown / max(1, reading.tokens),
            "cut_share": float((reading.lengths > max_length).mean()),
            "token_overlap": sum(shared.values()) / max(1, reading.subwords.total()),
            "type_overlap": len(shared) / max(1, len(reading.subwords)),
            "mean_tokens": float(reading.lengths.mean()),
        }
    return found


def check_known(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a vocabulary that does not know a script; raises UserError (65) naming the languages."""
    unknown = {
        language: of["unknown_rate"] for language, of in figures.items() if of["unknown_rate"] > MAX_UNKNOWN_RATE
    }
    if unknown:
        listed = ", ".join(f"{language} {100 * rate:.0f} %" for language, rate in unknown.items())
        raise UserError(
            Exit.BAD_DATA,
            f"most tokens are unknown to the model's vocabulary: {listed}\n"
            "leave these languages out, or give a multilingual model",
        )


def read(split: Split, tokenizer: PreTrainedTokenizerBase, seed: int = 1) -> Reading:
    """Tokenize the texts of a split, without cutting any; at most SAMPLE_ROWS rows, drawn by the seed."""
    if len(split) > SAMPLE_ROWS:
        split = split.select(np.sort(np.random.default_rng(seed).permutation(len(split))[:SAMPLE_ROWS]))
    columns = [split.texts(), *([pairs] if (pairs := split.pairs()) is not None else [])]
    lengths = np.full(len(split), tokenizer.num_special_tokens_to_add(pair=len(columns) > 1))
    subwords: Counter[int] = Counter()
    unknown = 0
    for texts in columns:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            coded = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
            for row, (text, ids, spans) in enumerate(
                zip(part, coded["input_ids"], coded["offset_mapping"], strict=True)
            ):
                lengths[start + row] += len(ids)
                unknown += ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
                subwords.update(token for token, (low, high) in zip(ids, spans, strict=True) if _spells(text[low:high]))
    found = [word for texts in columns for text in texts for word in words(text)]
    return Reading(
        rows=len(split),
        lengths=lengths,
        subwords=subwords,
        words=len(found),
        characters=sum(_is_unspaced(word[0]) for word in found),
        tokens=int(lengths.sum()) - len(split) * tokenizer.num_special_tokens_to_add(pair=len(columns) > 1),
        unknown=unknown,
    )


def language_mix(splits: Mapping[str, Sequence[Split]], seed: int = 1) -> dict[str, dict[str, dict[str, float]]] | None:
    """Return language -> file -> share of its rows that seem to be in each language, commonest first.

    `splits` holds the splits of each language. Identified by py3langid (the extra [langid]); None without it. At most
    LANGID_ROWS rows of a file are looked at. One row proves nothing: a name or a greeting has many languages.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    known = set(identifier.labels)
    mix: dict[str, dict[str, dict[str, float]]] = {}
    for language, of_language in splits.items():
        if _base(language) not in known:  # every row would seem to be something else
            continue
        for split in of_language:
            for file, texts in _texts_by_file(split, seed).items():
                counts = Counter(identifier.classify(text)[0] for text in texts)
                shares = {code: number / len(texts) for code, number in counts.most_common(MIX_SHOWN)}
                mix.setdefault(language, {})[file] = shares
    return mix


def wrong_files(mix: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return a sentence for each file of which most rows seem to be in another language than it is given for."""
    found = []
    for language, files in mix.items():
        for file, shares in files.items():
            code, share = next(iter(shares.items()))
            if share > MOST and not _alike(code, _base(language)):
                found.append(f"{file} is given for {language}, and {100 * share:.0f} % of its rows seem to be {code}")
    return found


def correlations(figures: Mapping[str, Mapping[str, Any]], gaps: Mapping[str, float]) -> dict[str, Any]:
    """Return Spearman's rank correlation of each figure with the gap of its language, over the languages with both.

    {"gap with": {figure: rho}, "n", "note"}; a figure that is the same everywhere has none, and below three languages
    there are none at all. `gaps` are to the oracle or to the training language; a larger gap is a worse language.
    """
    from scipy.stats import ConstantInputWarning, spearmanr

    both = [language for language in figures if language in gaps]
    found: dict[str, float] = {}
    for name in FIGURES if len(both) > 2 else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            rho = spearmanr([figures[language][name] for language in both], [gaps[language] for language in both])[0]
        if np.isfinite(rho):
            found[name] = float(rho)
    return {"spearman_with_gap": found, "n": len(both), "note": _caution(len(both))}


def _caution(languages: int) -> str:
    if languages < 3:
        have = "1 language has" if languages == 1 else f"{languages} languages have"
        return f"{have} a gap: too few for a correlation"
    if languages < FEW_LANGUAGES:
        return f"{languages} languages are few: read these correlations as a hint where to look, not as a cause"
    return f"{languages} languages; a correlation is no cause"


def _texts_by_file(split: Split, seed: int) -> dict[str, list[str]]:
    """Return some texts of each file, drawn by the seed; the rows of a pair are its two texts together."""
    of_file = np.array([value for block in split.blocks(["file"]) for value in block["file"].to_pylist()])
    random = np.random.default_rng(seed)
    found = {}
    for number, file in enumerate(split.files):
        rows = random.permutation(np.flatnonzero(of_file == number))[:LANGID_ROWS]
        if len(rows):
            chosen = split.select(np.sort(rows))
            pairs = chosen.pairs() or [""] * len(chosen)
            found[file] = [f"{text} {pair}" for text, pair in zip(chosen.texts(), pairs, strict=True)]
    return found


def _base(language: str) -> str:
    """Return the language of a code with a region or script: `pt` of `pt-BR` and `zh` of `zh_Hans`."""
    return language.replace("_", "-").split("-")[0].lower()


def _alike(one: str, other: str) -> bool:
    return one == other or any({one, other} <= group for group in ALIKE)


def _spells(piece: str) -> bool:
    return any(map(_in_word, piece))


@lru_cache(maxsize=20_000)
def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


@lru_cache(maxsize=20_000)
def _is_unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
