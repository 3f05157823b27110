"""Scores of texts against references, from sums over rows; every number carries its definition.

A metric is two functions: `statistics` says what each row adds to a few sums, `score_sums` turns sums into the score.
So the score of any choice of rows, a bootstrap replicate for example, costs one matrix product.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

DEFINITIONS: dict[str, str] = {
    "bleu": (
        "BLEU of the whole file, 0 to 100 (Papineni et al. 2002) as sacrebleu computes it: n-grams of 1 to 4 tokens, "
        "brevity penalty, exponential smoothing; diagnostics.signatures names the tokenizer (Post 2018)."
    ),
    "chrf": (
        "chrF2 of the whole file, 0 to 100 (Popović 2015) as sacrebleu computes it: F score of character n-grams of 1 "
        "to 6, white space left out, recall twice as heavy as precision; of several references the closest counts."
    ),
    "ter": (
        "Translation edit rate of the whole file in percent (Snover et al. 2006) as sacrebleu computes it: insertions, "
        "deletions, substitutions and shifts of words, over reference words; lower is better, above 100 is possible."
    ),
    "rouge1": (
        "Mean over rows of the F1 of words, 0 to 100 (Lin 2004); words of any script in lower case, no stemming, "
        "characters where a script has no spaces; of several references the best counts."
    ),
    "rouge2": "Mean over rows of the F1 of pairs of neighbouring words, 0 to 100; otherwise as rouge1.",
    "rougeL": ("Mean over rows of the F1 of the longest common subsequence of words, 0 to 100; otherwise as rouge1."),
    "rougeLsum": (
        "As rougeL, but each sentence of the reference is matched with all sentences of the text, and what they share "
        "is put together (Lin 2004, section 3.2); sentences end at . ! ? and their kin, and at line ends."
    ),
    "exact_match": (
        "Share of rows whose text is one of the references: question answering, after case, punctuation and articles "
        "are taken out (Rajpurkar et al. 2016); other tasks, to the letter but for white space."
    ),
    "token_f1": (
        "Mean over rows of the F1 of the bags of words of text and reference, 0 to 1, the best of the references; "
        "texts are prepared as for exact_match (Rajpurkar et al. 2016)."
    ),
}
LOWER_IS_BETTER = frozenset({"ter"})
BUCKETS = 5  # of length
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ANSWERS = ("exact_match", "token_f1")
ORDERS = 4  # of BLEU
BETA = 2.0  # of chrF
# Japanese and the others have no tokenizer in sacrebleu without further packages; characters are always there.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "lo": "char", "km": "char", "my": "char"}
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
# A letter, accent or digit of a script that parts its words with spaces: only there does one go on with a word.
WORD_START = re.compile(r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\U00020000-\U0003ffff]")
ARTICLES = {
    "en": "a an the",
    "de": "der die das den dem des ein eine einen einem einer eines",
    "es": "el la los las un una unos unas",
    "fr": "le la les l un une des",
    "it": "il lo la i gli le l un uno una",
    "nl": "de het een",
    "pt": "o a os as um uma uns umas",
}
ELIDING = ("fr", "it")  # the apostrophe ends a word: l'acqua is two
ABBREVIATIONS = {
    *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "fig", "al", "inc", "ltd", "co"),
    *("z.b", "d.h", "u.a", "bzw", "usw", "ca", "nr", "str", "hr", "fr", "sig", "dott", "ecc", "sra", "ud", "uds"),
    *("approx", "dept", "mme", "mlle", "m", "p.ex", "cf"),
}
ENDS = re.compile(r"(?:(?<![.!?…؟।])[.!?…؟।]++[\"'»”’)\]]*+(?=\s)|[。！？｡]+[」』”’）]*|\n)\s*")


@dataclass(frozen=True)
class RowStatistics:
    """What each row adds to the sums of one metric, (rows, sums), and how the metric was computed, in one line."""

    sums: np.ndarray
    signature: str


def statistics(
    names: Sequence[str],
    predicted: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    language: str | None = None,
    verbatim: bool = False,
) -> dict[str, RowStatistics]:
    """Return the statistics of each metric named; `references` has one text or more for each row.

    `language` is that of the references, an ISO 639-1 code: it chooses tokenizer and articles; without it the script of
    the references does, and articles are English. `verbatim`: exact_match and token_f1 take texts as they are.
    """
    found: dict[str, RowStatistics] = {}
    for name in names:
        if name in ANSWERS and not found.keys() & ANSWERS:
            found |= _answer_statistics(predicted, references, language, verbatim)
        elif name in ROUGE and not found.keys() & ROUGE:
            found |= _rouge_statistics([name for name in ROUGE if name in names], predicted, references)
        elif name not in (*ANSWERS, *ROUGE):
            found[name] = _sacrebleu_statistics(name, predicted, references, language)
    return {name: found[name] for name in names}


def score_sums(name: str, sums: np.ndarray) -> np.ndarray:
    """Return the score of sums (..., sums) of one metric, (...); of each row alone where these are the rows' own."""
    sums = np.asarray(sums, dtype=np.float64)
    known: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bleu": _bleu, "chrf": _chrf, "ter": _ter}
    if name in known:
        return known[name](sums)
    return _ratio(sums[..., 0], sums[..., 1]) * (100.0 if name in ROUGE else 1.0)


def score(
    name: str, predicted: Sequence[str], references: Sequence[Sequence[str]], language: str | None = None
) -> float:
    """Return one metric of a whole file, as its definition says."""
    found = statistics([name], predicted, references, language=language)
    return float(score_sums(name, found[name].sums.sum(axis=0)))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: letters, digits and their marks, whatever the script.

    Where a script has no spaces each character is a word. For ASCII the same words as rouge_score's own tokenizer.
    """
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    found: list[str] = []
    current = before = ""
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = _kind(character)
        if kind == "format":  # joiners, which are written or left out
            continue
        if kind == "mark" or (kind == before == "letter"):
            current += character
            continue
        found.append(current)
        current = character if kind in {"letter", "alone"} else ""
        before = kind
    return [word for word in [*found, current] if word]


def by_length(texts: Sequence[str], edges: Sequence[int] | None = None) -> list[tuple[dict[str, int], np.ndarray]]:
    """Part texts by their words: ({"from", "to" (both included), "rows"}, which texts these are) of each bucket.

    `edges` are the highest lengths of all buckets but the last; without them there are up to five buckets of about as
    many texts each.
    """
    lengths = np.array([len(words(text)) for text in texts])
    if edges is None:
        quantiles = np.quantile(lengths, np.arange(1, BUCKETS) / BUCKETS, method="inverted_cdf")
        edges = sorted({int(edge) for edge in quantiles} - {int(lengths.max())})
    bucket = np.searchsorted(np.asarray(edges), lengths)  # (texts,)
    parts = [np.flatnonzero(bucket == number) for number in np.unique(bucket)]
    return [
        ({"from": int(lengths[part].min()), "to": int(lengths[part].max()), "rows": len(part)}, part) for part in parts
    ]


def sentences(text: str) -> list[str]:
    """Split a text after . ! ? and their kin of other scripts, and at line ends.

    A full stop after an abbreviation, a single letter or a number of one or two digits (German ordinals) ends nothing.
    """
    found, start = [], 0
    for end in ENDS.finditer(text):
        piece = text[start : end.start()]
        last = piece.rsplit(maxsplit=1)[-1].lstrip("(\"'«“").lower() if piece.strip() else ""
        short = last in ABBREVIATIONS or (len(last) == 1 and last.isalpha()) or (len(last) < 3 and last.isdigit())
        if short and end.group().strip() == "." and "\n" not in end.group():
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]


def normalise_answer(text: str, language: str | None = None) -> str:
    """Take case, punctuation of any script, articles and repeated white space out of an answer (SQuAD's evaluation).

    Articles are those of `language` (English where none is given, none where it is not in ARTICLES).
    """
    language = _primary(language or "en")
    text = unicodedata.normalize("NFC", text).lower()
    if language in ELIDING:
        text = re.sub("['’]", " ", text)
    text = "".join(character for character in text if not _is_punctuation(character))
    articles = set(ARTICLES.get(language, "").split())
    return " ".join(word for word in text.split() if word not in articles)


def tokenizer_for(language: str | None, references: Sequence[Sequence[str]]) -> str:
    """Return the name of sacrebleu's tokenizer for a language, or without one for the script of the references.

    13a looks for spaces and finds one word in a Chinese sentence: identical texts then score 0.
    """
    if language is not None:
        return TOKENIZERS.get(_primary(language), "13a")
    kinds = Counter(_script(character) for row in references[:200] for character in row[0][:200])
    alone = kinds["han"] + kinds["other"]
    if alone <= kinds["spaced"]:
        return "13a"
    return "zh" if kinds["other"] < 0.05 * alone else "char"  # kana in between: Japanese


def _primary(language: str) -> str:
    """Return the first part of a language code: pt of pt-BR."""
    return language.lower().replace("_", "-").split("-")[0]


def _sacrebleu_statistics(
    name: str, predicted: Sequence[str], references: Sequence[Sequence[str]], language: str | None
) -> RowStatistics:
    from sacrebleu import metrics

    tokenizer = tokenizer_for(language, references)
    if name == "bleu":
        metric: Any = metrics.BLEU(tokenize=tokenizer, force=True)
    elif name == "chrf":
        metric = metrics.CHRF()
    else:
        unspaced = tokenizer != "13a"
        metric = metrics.TER(normalized=unspaced, asian_support=unspaced)
    most = max(map(len, references))
    streams = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    # What sacrebleu's own significance tests start from; a test compares the sums with its corpus_score.
    sums = metric._extract_corpus_statistics(list(predicted), streams)
    return RowStatistics(np.array(sums, dtype=np.float64), str(metric.get_signature()))


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Return BLEU; the sums are text length, reference length, then right and all n-grams of each order."""
    length, reference = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]  # (..., orders)
    # Orders without a hit count as 1/2, 1/4, ... of one hit (Chen and Cherry 2014, method 3)
    smoothed = np.where(right > 0, right, 0.5 ** np.cumsum(right == 0, axis=-1))
    whole = np.asarray((total > 0).all(axis=-1) & (right > 0).any(axis=-1))
    precision = np.where(whole[..., None], _ratio(smoothed, total), 1.0)
    penalty = np.exp(np.minimum(0.0, 1 - reference / np.maximum(length, 1)))
    return np.where(whole, 100 * penalty * np.exp(np.log(precision).mean(axis=-1)), 0.0)


def _chrf(sums: np.ndarray) -> np.ndarray:
    """Return chrF2; the sums are n-grams of the text, of the reference, and shared, for each order in turn."""
    text, reference, shared = (sums[..., place::3] for place in range(3))  # (..., orders)
    both = (text > 0) & (reference > 0)
    orders = both.sum(axis=-1)
    precision = _ratio(np.where(both, _ratio(shared, text), 0.0).sum(axis=-1), orders)
    recall = _ratio(np.where(both, _ratio(shared, reference), 0.0).sum(axis=-1), orders)
    return 100 * _ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)


def _ter(sums: np.ndarray) -> np.ndarray:
    """Return TER in percent; the sums are edits and reference words."""
    edits, reference = sums[..., 0], sums[..., 1]
    return 100 * np.where(reference > 0, _ratio(edits, reference), edits > 0)


class _Words:
    """What rouge_score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words(text)


def _rouge_statistics(
    names: list[str], predicted: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, RowStatistics]:
    """Return for each name the best F1 of a row and 1: the score is the mean."""
    from importlib.metadata import version

    from rouge_score.rouge_scorer import RougeScorer  # 2 s of CPU: only here

    # Its own tokenizer keeps a-z and 0-9 only, so that identical Russian texts score 0.
    scorer = RougeScorer(names, tokenizer=_Words())
    sums = {name: np.ones((len(predicted), 2)) for name in names}
    lines = lru_cache(maxsize=None)(lambda text: "\n".join(sentences(text)))
    for row, (text, several) in enumerate(zip(predicted, references, strict=True)):
        found = [scorer.score(lines(reference), lines(text)) for reference in several]
        for name in names:
            sums[name][row, 0] = max(one[name].fmeasure for one in found)
    signature = f"words:unicode|stemming:no|references:best|rouge-score:{version('rouge-score')}"
    return {name: RowStatistics(sums[name], signature) for name in names}


def _answer_statistics(
    predicted: Sequence[str], references: Sequence[Sequence[str]], language: str | None, verbatim: bool
) -> dict[str, RowStatistics]:
    """Return for exact_match and token_f1 the best of a row's references and 1: the score is the mean."""

    def prepared(text: str) -> str:
        return " ".join(text.split()) if verbatim else normalise_answer(text, language)

    exact, overlap = np.ones((len(predicted), 2)), np.ones((len(predicted), 2))
    for row, (text, several) in enumerate(zip(predicted, references, strict=True)):
        said, golds = prepared(text), [prepared(reference) for reference in several]
        exact[row, 0] = said in golds
        overlap[row, 0] = max(_bag_f1(_split(said), _split(gold)) for gold in golds)
    signature = "texts:verbatim" if verbatim else f"texts:squad|articles:{language or 'en'}"
    return {"exact_match": RowStatistics(exact, signature), "token_f1": RowStatistics(overlap, signature)}


def _bag_f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    return 2 * (Counter(said) & Counter(gold)).total() / (len(said) + len(gold))


def _split(text: str) -> list[str]:
    """Return the words between spaces, and the characters of those in a script without any (MLQA's segmentation)."""
    if text.isascii():
        return text.split()
    return "".join(f" {c} " if _kind(c) == "alone" else c for c in text).split()


@lru_cache(maxsize=20_000)
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category.startswith("M"):
        return "mark"
    if category == "Cf":
        return "format"
    if category[0] not in "LN":
        return "other"
    return "alone" if unicodedata.name(character, "").startswith(UNSPACED) else "letter"


@lru_cache(maxsize=20_000)
def _script(character: str) -> str:
    kind = _kind(character)
    if kind == "alone":
        return "han" if unicodedata.name(character, "").startswith("CJK") else "other"
    return "spaced" if kind == "letter" else "none"


@lru_cache(maxsize=20_000)
def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide, with 0 where the divisor is 0."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    shape = np.broadcast_shapes(above.shape, below.shape)
    return np.asarray(np.divide(above, below, out=np.zeros(shape), where=below > 0))
