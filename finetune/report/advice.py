"""What to do next, from the evidence of a run: one rule a function, most useful first; none is a matter of taste."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.report import long_rows
from finetune.report.long_rows import MANY_CUT
from finetune.report.results import Judging
from finetune.terminal import count, difference, is_percentage, points

STILL_RISING = 0.01  # between the last two budgets, beyond which more labels would help
SURE = 0.9  # of a mistake that is worth a second look at its gold label
LOST = 0.01  # of a validation score after the best
OVERCONFIDENT = 0.05
MANY_UNKNOWN = 0.01
WEAK_CLASS = 0.15  # F1 below the mean of the classes
FAR = 0.1  # behind the best language or the other lengths
MUCH_SPLIT = 1.25  # times as many subwords a word as in the language that is best
HEAVY = 1.5  # times as much repetition as in human texts
ALIKE = 0.5  # of the variety of human texts
LEAST_ROWS = 20


@dataclass(frozen=True)
class Advice:
    """A thing to do, why, and a command where there is one."""

    what: str
    why: str
    command: str = ""


@dataclass(frozen=True)
class Evidence:
    """What advice is drawn from: results.json, records of metrics.jsonl, scores by length, where the run is."""

    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    lengths: Sequence[Mapping[str, float]]
    judging: Judging
    folder: str
    length: str  # the setting that says how long a run trains

    @property
    def told(self) -> Mapping[str, Any]:
        """Return the diagnostics."""
        return dict(self.results["diagnostics"])


def advise(found: Evidence) -> list[Advice]:
    """Return what to do next, most useful first."""
    return [one for rule in RULES for one in rule(found)]


def _verdict(found: Evidence) -> Iterator[Advice]:
    """Say what the verdict means for the choice of a model."""
    comparison = found.results.get("comparison")
    if comparison is None or "matrix" in found.results:
        return
    baseline = short(found.results["baseline"]["name"])
    if comparison["verdict"] == "worse":
        yield Advice(f"Keep {baseline} for now", f"it is better on the same rows: {difference(comparison)}.")
    elif comparison["verdict"] == "no difference shown":
        least, metric = found.told.get("resolution"), comparison["metric"]
        why = f"the difference is {difference(comparison)}."
        if least is not None and metric == "accuracy":
            why += f" This test set can show differences from {100 * least:.1f} points up: more test rows would tell."
        yield Advice(f"Take {baseline}, which is cheaper, or score both on more test rows", why)


def _unfinished(found: Evidence) -> Iterator[Advice]:
    """Say that training ended while it still helped, or went on for too long."""
    metric = found.judging.chooses
    values = [(one["step"], float(one["validation"][metric])) for one in found.records if _validated(one, metric)]
    if len(values) < 2:
        return
    sign = -1 if found.judging.lower_is_better else 1
    best = max(range(len(values)), key=lambda place: sign * values[place][1])
    gain = sign * (values[-1][1] - values[-2][1])
    told = f"{metric} on validation: {values[-2][1]:.3f}, then {values[-1][1]:.3f} after {values[-1][0]:,} updates"
    if best == len(values) - 1 and gain > 0:
        yield Advice("Train longer", f"the last validation was still the best ({told}).", f"{found.length}=...")
    elif best < len(values) // 2 and sign * (values[best][1] - values[-1][1]) > LOST:
        told = f"{metric} on validation was best after {values[best][0]:,} of {values[-1][0]:,} updates"
        yield Advice("Train shorter, or regularise more", f"{told}; the rest was spent for nothing.")


def _labels(found: Evidence) -> Iterator[Advice]:
    """Say what more labelled rows would bring, where a label-budget curve was measured."""
    budget = found.told.get("budget")
    if budget is None:
        return
    name, curve = next(iter(budget["curves"].items()))
    if len(curve) < 2:
        return
    before, last = (point[budget["metric"]]["value"] for point in curve[-2:])
    told = f"the curve of {name} went from {before:.3f} at {curve[-2]['rows']:,} rows to {last:.3f} at"
    told += f" {curve[-1]['rows']:,}"
    if last - before > STILL_RISING:
        yield Advice("Label more rows", f"{told}, and still rises.")
    else:
        yield Advice("Do not label more of the same", f"{told}: it is flat.")


def _pair(found: Evidence) -> Iterator[Advice]:
    """Name the hardest pair of labels."""
    pair, table = found.told.get("most_confused"), found.told.get("confusion")
    if not pair or table is None:
        return
    wrong = sum(map(sum, table["matrix"])) - sum(row[place] for place, row in enumerate(table["matrix"]))
    one, two = pair["labels"]
    share = f"{pair['rows']:,} of {count(wrong, 'mistake')} ({100 * pair['rows'] / wrong:.0f} %)"
    what = f"Tell {one} and {two} apart: sharpen what they mean, or label more rows of both"
    yield Advice(what, f"{share} take one for the other, more than of any other pair.")


def _class(found: Evidence) -> Iterator[Advice]:
    """Name the weakest class."""
    classes = [one for one in found.told.get("per_class", []) if one["support"]]
    if len(classes) < 3:
        return
    mean = sum(one["f1"] for one in classes) / len(classes)
    worst = min(classes, key=lambda one: float(one["f1"]))
    if mean - worst["f1"] > WEAK_CLASS:
        told = f"its F1 is {worst['f1']:.2f}, that of all classes {mean:.2f} ({count(worst['support'], 'test row')})."
        yield Advice(f"Give the model more of {worst['label']}", told)


def _languages(found: Evidence) -> Iterator[Advice]:
    """Say which language is worst, and what goes with it."""
    languages = found.results.get("languages", {})
    if "matrix" not in found.results or len(languages) < 2:
        return
    accuracy = {code: of["accuracy"]["value"] for code, of in languages.items()}
    best, worst = max(accuracy, key=lambda code: accuracy[code]), min(accuracy, key=lambda code: accuracy[code])
    if accuracy[best] - accuracy[worst] <= FAR:
        return
    lost = f"the accuracy in {worst} is {points(accuracy[best] - accuracy[worst]).lstrip('+')} points below {best}"
    figures = found.told["languages"]["figures"]
    split = {code: of["subwords_per_word"] for code, of in figures.items()}
    if worst in split and best in split and split[worst] > MUCH_SPLIT * split[best]:
        why = f"{lost}, and its words are cut into {split[worst]:.1f} pieces, against {split[best]:.1f} in {best}."
        what = f"Look for a vocabulary that knows the language {worst} better: it may lose to fertility"
    else:
        why = f"{lost}; how its words are cut does not explain it"
        why += f" ({split[worst]:.1f} pieces a word, against {split[best]:.1f})." if worst in split else "."
        what = f"Add some labelled rows of the language {worst}, or translations of the training rows"
    yield Advice(what, why, "few_shot=[30,100]")


def _lost_languages(found: Evidence) -> Iterator[Advice]:
    """Name the languages in which the cheap system is better."""
    lost = [code for code, one in found.results.get("comparisons", {}).items() if one["verdict"] == "worse"]
    if lost:
        # By language a classifier stands beside TF-IDF, which comes first, whichever baseline is the strongest.
        cheap = found.results["baselines"][0] if "matrix" in found.results else found.results["baseline"]
        name = short(cheap["name"])
        told = "; ".join(f"{code}: {difference(found.results['comparisons'][code])}" for code in lost)
        yield Advice(f"Use {name} for {', '.join(lost)}", f"it is better there ({told}).")


def _length(found: Evidence) -> Iterator[Advice]:
    """Say that short or long texts are harder."""
    buckets = [bucket for bucket in found.lengths if bucket["rows"] >= LEAST_ROWS]
    if len(buckets) < 2 or "low" not in buckets[0]:
        return
    metric = metric_of(buckets[0])
    worst = min(buckets, key=lambda bucket: bucket[metric])
    best = max(buckets, key=lambda bucket: bucket[metric])
    scale = 100 if is_percentage(metric) else 1
    if best[metric] - worst[metric] > FAR * scale and worst["high"] < best["low"]:
        told = [f"{metric} {one[metric]:.{1 if scale > 1 else 3}f} at {one['from']:g} to {one['to']:g} words"
                for one in (worst, best)]  # fmt: skip
        which = "long" if worst["from"] > best["from"] else "short"
        yield Advice(f"Look at the {which} texts", f"{told[0]}, {told[1]}.")


def _confidence(found: Evidence) -> Iterator[Advice]:
    """Say that probabilities are too high, and that sure mistakes may be wrong labels."""
    score = found.results["scores"][found.told["judged_on"]].get("ece")
    bins = found.told.get("calibration", [])
    if score and score["value"] > OVERCONFIDENT:
        rows = sum(one["rows"] for one in bins)
        gap = sum(one["rows"] * (one["confidence"] - one["accuracy"]) for one in bins) / max(1, rows)
        way = "high" if gap > 0 else "low"
        what = f"Do not take its probabilities at their word: they are too {way}"
        yield Advice(what, f"confidence and accuracy lie {100 * score['value']:.1f} points apart (ECE).")
    sure = [one for one in found.told.get("errors", []) if one.get("probability", 0) >= SURE]
    if sure:
        told = f"{count(len(sure), 'mistake')} with a probability of {SURE} or more, e.g. {sure[0]['id']}"
        yield Advice("Read the surest mistakes: some gold labels may be wrong", f"{told}; they lead the list below.")


def _data(found: Evidence) -> Iterator[Advice]:
    """Say what in the data makes the scores doubtful."""
    leaked = {name: number for name, number in found.told.get("leaked_rows", {}).items() if number}
    if leaked:
        told = ", ".join(f"{number:,} of {name}" for name, number in leaked.items())
        command = f"finetune evaluate {found.folder} --data TEST_FILE --drop-leaked"
        yield Advice("Score without the texts that stand in train too", f"{told}.", command)
    unknown = {name: rate for name, rate in found.told.get("unknown_rate", {}).items() if rate > MANY_UNKNOWN}
    if unknown:
        told = ", ".join(f"{100 * rate:.1f} % of {name}" for name, rate in unknown.items())
        yield Advice("Take a model whose vocabulary knows these texts", f"unknown tokens: {told}.")
    for what, why, command in long_rows.advised(found.told):
        yield Advice(what, why, command)


def _writing(found: Evidence) -> Iterator[Advice]:
    """Say what is wrong with written texts as such."""
    if found.told.get("empty", 0) > MANY_CUT:
        yield Advice("Look at the empty texts", f"{100 * found.told['empty']:.0f} % of the texts have no word.")
    figures = found.told.get("summaries") or found.told.get("written")
    if figures and figures["own"]["repetition"] > max(0.02, HEAVY * figures["human"]["repetition"]):
        own, human = (100 * figures[side]["repetition"] for side in ("own", "human"))
        why = f"{own:.0f} % of the words repeat what was just said, {human:.0f} % in human texts."
        yield Advice("Forbid repetition when writing, or train longer", why, "no_repeat_ngram_size=3")
    if figures and figures["own"].get("distinct_2", 1.0) < ALIKE * figures["human"].get("distinct_2", 0.0):
        own, human = (100 * figures[side]["distinct_2"] for side in ("own", "human"))
        why = f"{own:.0f} % of its pairs of words are different, {human:.0f} % in human texts: the texts are alike."
        yield Advice("Train longer: it does not look at what it is given", why)
    ratio = found.told.get("length_ratio")
    if ratio is not None and not 1 / HEAVY < ratio < HEAVY:
        what = "Look at where texts end"
        yield Advice(what, f"they have {ratio:.1f} times as many words as the references.")


def _seeds(found: Evidence) -> Iterator[Advice]:
    """Ask for more seeds, where one could be luck."""
    comparison = found.results.get("comparison")
    if "seeds" in found.results or comparison is None or "parameters" not in found.told:
        return
    if any(abs(comparison[end]) < abs(comparison["difference"]) / 2 for end in ("low", "high")):
        why = f"the interval speaks of the test rows alone ({difference(comparison)}); another seed may differ as much."
        yield Advice("Train with three seeds", why, "seeds=[1,2,3]")


def _validated(record: Mapping[str, Any], metric: str) -> bool:
    return "step" in record and metric in record.get("validation", {})


def metric_of(bucket: Mapping[str, float]) -> str:
    """Return the metric that a bucket of rows by length has."""
    return next(name for name in bucket if name not in {"from", "to", "rows", "low", "high"})


def short(name: str) -> str:
    """Return the name of a system without what stands in brackets."""
    return name.partition(" (")[0]


RULES = (
    _verdict, _lost_languages, _labels, _languages, _unfinished, _pair, _class, _writing, _length, _confidence, _data,
    _seeds,
)  # fmt: skip
