"""Ablate what may help a classifier in languages that it was not trained on; print a table, keep figures in a file.

python tests/benchmarks/transfer_methods.py sib200 [--model mini-mbert] [--seeds 1 2 3] [--output FOLDER]

Data: sib200, umsab or xsid from FINETUNE_BENCHMARK_DATA (default ../shared/data), trained on English. The reference has
the settings of mbert_crosslingual as they come. Each method changes one thing: what is frozen, dropout, the epoch that
is kept, centring of what the classifier reads, the model's own labels on the training texts of the other languages, or
more training languages (scored in the rest). A training that ended is kept and read back. Differences are paired by row
and seed over all the languages that no method was trained on, with 95 % intervals widened by Holm's procedure: on the
validation files, by which a default may be chosen, and on the test files, which decide nothing.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import zero_shot
from training_speed import ROOT

from finetune import crosslingual, evaluation, pretrained
from finetune.classifier import Fitting, predict
from finetune.crosslingual import Row
from finetune.data import patterns
from finetune.data.columns import DataConfig, Split
from finetune.data.encode import encode
from finetune.data.patterns import Corpus
from finetune.evaluation import Predictions
from finetune.report import scoring
from finetune.report.results import judge
from finetune.run import Run
from recipes.mbert_crosslingual import Config, prepare

LANGUAGES = {
    "sib200": ("en", "it", "de", "es", "fr"),
    "umsab": ("en", "it", "de", "es", "fr"),
    "xsid": ("en", "it", "de"),
}
REFERENCE = "as it comes"
SURE = 0.8  # least probability of a label that self-training believes
KINDS = ("validation", "test")
Cells = dict[str, Predictions]  # "validation it" or "test it" -> predictions of those rows


@dataclass(frozen=True)
class Training:
    """One training of the study: its name, settings that differ, and the languages that it is trained on."""

    name: str
    settings: Mapping[str, Any]
    languages: tuple[str, ...] = ("en",)


def trainings(languages: tuple[str, ...]) -> list[Training]:
    """Return the trainings of the study; more languages are the first half of the others."""
    frozen = Config().freeze_embeddings
    more = ("en", *languages[1 : 1 + len(languages[1:]) // 2])
    return [
        Training(REFERENCE, {}),
        Training("word embeddings " + ("trained" if frozen else "frozen"), {"freeze_embeddings": not frozen}),
        Training("lowest three layers frozen", {"frozen_layers": 3}),
        Training(f"trained on {'+'.join(more)}", {}, more),
    ]


def arguments() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(LANGUAGES))
    parser.add_argument("--model", default="mini-mbert")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "transfer")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, then print the table."""
    asked = arguments()
    pretrained.quiet()
    found: dict[str, dict[str, list[Predictions]]] = {}
    for seed in asked.seeds:
        for name, cells in of_seed(asked.data, asked.model, seed, asked.output / asked.data / f"seed-{seed}").items():
            for split, cell in cells.items():
                found.setdefault(name, {}).setdefault(split, []).append(cell)
    table = {kind: compare(found, kind) for kind in KINDS}
    (asked.output / f"{asked.data}.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    for kind, rows in table.items():
        print(kind)
        for row in rows:
            print(" | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))


def of_seed(data: str, model: str, seed: int, folder: Path) -> dict[str, Cells]:
    """Return what each method predicts in each language with one seed."""
    languages = LANGUAGES[data]
    files = Path(os.environ.get("FINETUNE_BENCHMARK_DATA", ROOT.parent / "shared" / "data")) / data
    names: dict[str, Any] = {name: str(files / f"{{language}}.{name}.csv") for name in ("train", "validation", "test")}
    found: dict[str, Cells] = {}
    for training in trainings(languages):
        config = Config(
            model=model,
            data=DataConfig(**names),
            train_languages=list(training.languages),
            test_languages=list(languages),
            seed=seed,
            **training.settings,
        )
        corpus = patterns.read_languages(config.data, training.languages, languages, seed=seed)
        place = folder / training.name.replace(" ", "-")
        rest = {language for language in languages if language not in training.languages} | {"en"}
        if training.name == REFERENCE:
            found |= kept(place / "test.json", corpus, partial(reference, config, corpus, place))
        else:
            scored = kept(place / "test.json", corpus, partial(plain, training.name, config, corpus, place))[
                training.name
            ]
            found[training.name] = {split: cell for split, cell in scored.items() if split.split()[1] in rest}
    return found


def plain(name: str, config: Config, corpus: Corpus, folder: Path) -> dict[str, Cells]:
    """Train as the recipe does, and predict every language."""
    ready, run = begin(config, corpus, source_row(corpus), folder)
    fit(ready, run, corpus, lambda epoch: None)
    return {name: scored_cells(ready, corpus)}


def reference(config: Config, corpus: Corpus, folder: Path) -> dict[str, Cells]:
    """Return the reference, other choices of the epoch, and centring, all from one training, and what learns of it."""
    ready, run = begin(config, corpus, source_row(corpus), folder / "run")
    epochs: list[Cells] = []
    fit(ready, run, corpus, lambda epoch: epochs.append(scored_cells(ready, corpus)))
    pooled = [mean([evaluation.values(cell)["macro_f1"] for split, cell in cells.items() if "validation" in split])
              for cells in epochs]  # fmt: skip
    found = {
        REFERENCE: scored_cells(ready, corpus),
        "the last epoch": epochs[-1],
        "the best epoch by all languages' validation": epochs[int(np.argmax(pooled))],
    }
    found |= centred(ready, corpus, config)
    if set(corpus.targets) <= set(corpus.train):  # else there are no texts that it could label
        found[f"self-training ({SURE:g})"] = self_trained(ready, config, corpus, folder / "self-training")
    return found


def centred(ready: Fitting, corpus: Corpus, config: Config) -> dict[str, Cells]:
    """Return the predictions of a trained model with each language's mean moved onto that of English."""
    found: dict[str, Cells] = {}
    for place in ("cls", "pooled"):
        texts = {language: corpus.train[language] if language in corpus.train else corpus.test[language]
                 for language in corpus.tests}  # fmt: skip
        means = {
            language: zero_shot.mean_vector(
                ready.parts, encode(split, ready.parts.tokenizer, config.max_length, "truncate"), ready.settings, place
            )
            for language, split in texts.items()
        }
        moved = zero_shot.shifts(means, corpus.sources)
        cells: Cells = {}
        for name, split in splits(corpus).items():
            coded = encode(split, ready.parts.tokenizer, config.max_length, "truncate")
            with zero_shot.centred(ready.parts, moved[name.split()[1]], place):
                cells[name] = judged(split, ready, predict(ready.parts, coded, ready.settings).probabilities)
        found[f"centring at {place}"] = cells
    return found


def self_trained(first: Fitting, config: Config, corpus: Corpus, folder: Path) -> Cells:
    """Return what a model predicts that was also trained on texts of the other languages as the first labels them."""
    cells: Cells = {}

    def train(splits: Any) -> Any:
        ready = first
        if len(splits) > 1:
            row = replace(source_row(corpus), train=patterns.join("train", {split.name: split for split in splits}))
            ready, run = begin(config, corpus, row, folder)
            fit(ready, run, corpus, lambda epoch: None)
            cells.update(scored_cells(ready, corpus))

        def score(split: Split) -> Any:
            coded = encode(split, ready.parts.tokenizer, config.max_length, config.data.on_long)
            return predict(ready.parts, coded, ready.settings).probabilities

        return score

    unlabelled = {language: corpus.train[language] for language in corpus.targets}
    zero_shot.self_train(source_row(corpus).train, unlabelled, list(corpus.test.values()), train, corpus.labels, SURE)
    return cells


def begin(config: Config, corpus: Corpus, row: Row, folder: Path) -> tuple[Fitting, Run]:
    """Load the model for a row, in a run of its own; one that was interrupted begins again."""
    run = Run(folder, overwrite=True)
    ready = prepare(config, run, row, corpus)
    everything = patterns.join("everything", splits(corpus))
    ready.encoded["everything"] = encode(everything, ready.parts.tokenizer, config.max_length, config.data.on_long)
    return ready, run


def fit(ready: Fitting, run: Run, corpus: Corpus, look: Callable[[int], None]) -> None:
    """Train to the epoch with the best validation score of English, as the recipe does, calling `look` each epoch."""
    row = source_row(corpus)
    epochs = iter(range(1_000))

    def validate() -> dict[str, float]:
        look(next(epochs))
        return evaluation.values(scoring.score_split(ready, "validation", row.validation)[0])

    with run:
        run.start({"recipe": "mbert_crosslingual"}, {"data_sha256": {}})
        ready.loop.fit(ready.examples, validate, greater_is_better=ready.upwards)


def source_row(corpus: Corpus) -> Row:
    """Return the row of the matrix that is trained on the training languages together."""
    return crosslingual.plan(corpus, crosslingual.Wanted(), 1).source


def splits(corpus: Corpus) -> dict[str, Split]:
    """Return validation and test of every test language by name, e.g. `test it`."""
    kinds = {"validation": corpus.validation, "test": corpus.test}
    return {f"{kind} {one}": found[one] for kind, found in kinds.items() for one in corpus.tests if one in found}


def scored_cells(ready: Fitting, corpus: Corpus) -> Cells:
    """Return what the model predicts now in every language."""
    everything = splits(corpus)
    together = scoring.score_split(ready, "everything", patterns.join("everything", everything))[0]
    return crosslingual.by_language(together, everything)


def judged(split: Split, ready: Fitting, probabilities: Any) -> Predictions:
    """Return probabilities as predictions."""
    return judge(split, ready.parts.labels.encode(split), probabilities, ready.parts.labels)


def kept(path: Path, corpus: Corpus, make: Callable[[], dict[str, Cells]]) -> dict[str, Cells]:
    """Return what `make` returns, from the file where it was kept."""
    if not path.is_file():
        found = make()
        rows = {name: {language: evaluation.to_rows(cell, [""] * len(cell.ids)) for language, cell in cells.items()}
                for name, cells in found.items()}  # fmt: skip
        path.write_text(json.dumps(rows), encoding="utf-8")
    stored = json.loads(path.read_text(encoding="utf-8"))
    labels = corpus.labels.names
    return {name: {language: evaluation.from_rows(rows, labels) for language, rows in cells.items()}
            for name, cells in stored.items()}  # fmt: skip


def compare(methods: Mapping[str, Mapping[str, list[Predictions]]], kind: str) -> list[dict[str, Any]]:
    """Return a row for each method: accuracy in English and on average elsewhere, and the difference elsewhere."""
    found = {
        name: {split.split()[1]: cell for split, cell in cells.items() if split.startswith(kind)}
        for name, cells in methods.items()
    }
    base = found[REFERENCE]
    pairs = {}
    for name, cells in found.items():
        others = [language for language in cells if language != "en"]
        pairs[name] = (together(cells, others), together(base, others))
    differences = evaluation.compare_all({name: pair for name, pair in pairs.items() if name != REFERENCE})
    table = []
    for name, cells in found.items():
        accuracy = {language: evaluation.score(cell)["accuracy"]["value"] for language, cell in cells.items()}
        f1 = {language: evaluation.score(cell)["macro_f1"]["value"] for language, cell in cells.items()}
        others = [language for language in cells if language != "en"]
        row: dict[str, Any] = {"method": name, "languages": "+".join(others), "en": accuracy["en"]}
        row["accuracy"] = sum(accuracy[one] for one in others) / len(others)
        row["macro_f1"] = sum(f1[one] for one in others) / len(others)
        if name in differences:
            row |= {key: differences[name][key] for key in ("difference", "low", "high", "p_value", "verdict")}
        table.append(row)
    return table


def together(cells: Mapping[str, list[Predictions]], languages: list[str]) -> list[Predictions]:
    """Return the predictions of several languages as one set for each seed, ids made different by language."""
    seeds = len(cells[languages[0]])
    return [joined([(language, cells[language][seed]) for language in languages]) for seed in range(seeds)]


def joined(parts: list[tuple[str, Predictions]]) -> Predictions:
    """Return predictions of several languages one after the other."""
    rows = [
        {**row, "id": f"{language} {row['id']}"}
        for language, cell in parts
        for row in evaluation.to_rows(cell, [""] * len(cell.ids))
    ]
    return evaluation.from_rows(rows, parts[0][1].labels)


if __name__ == "__main__":
    main()
