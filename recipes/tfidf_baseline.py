"""TF-IDF word and character n-grams under a linear model: the baseline that an expensive model has to beat, alone."""

import time
from typing import Any

from finetune import baselines, evaluation
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import DataConfig, LabelMap, Split, digests, read_splits
from finetune.report import opening, scoring
from finetune.report.card import model_card
from finetune.report.results import Conclusion, System, conclude, judge, judged_split, predicted_rows
from finetune.run import Run, environment

TOP_FEATURES = 15


@configclass
class Config:
    """Settings of the recipe."""

    data: DataConfig = field(DataConfig, "files and columns")
    seed: Seed = field(1, "of the folds and of held-out rows")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Choose the linear model on folds of train, fit it once on all of train, score it beside the majority class."""
    began = time.perf_counter()
    splits = read_splits(config.data, seed=config.seed)
    labels = LabelMap.learn(splits["train"], config.data.multi_label)
    targets = {name: labels.encode(split) for name, split in splits.items()}
    found = opening.say_data(run, config.data, splits, labels)
    place = environment(config.seed, "CPU", digests(splits))
    if run.dry_run:
        return {"rows": {name: len(split) for name, split in splits.items()}}

    started = time.perf_counter()
    source = splits["train"]
    model = baselines.fit_tfidf(
        source.texts(), targets["train"], labels.names,
        pairs=source.pairs(), multi_label=labels.multi_label, seed=config.seed,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    run.start({"recipe": "tfidf_baseline", **to_tree(config)}, place)
    run.updated = True
    run.save_model(model.save)
    others = {name: split for name, split in splits.items() if name != "train"}
    started = time.perf_counter()
    judged = {
        name: judge(s, targets[name], model.predict_proba(s.texts(), s.pairs()), labels) for name, s in others.items()
    }
    evaluating, last = time.perf_counter() - started, judged_split(judged)
    run.metric({"validation": evaluation.values(judged["validation"])})
    constant = baselines.majority(targets["train"], labels.names, multi_label=labels.multi_label)
    floor = {name: judge(s, targets[name], constant.predict_proba(s.texts()), labels) for name, s in others.items()}
    results = conclude(
        run,
        Conclusion(
            recipe="tfidf_baseline",
            model=model.name,
            system=System(model.name, judged, seconds),
            baselines=[System(constant.name, floor, 0.0)],
            splits=splits,
            seconds={"train": seconds, "evaluate": evaluating, "total": time.perf_counter() - began},
            throughput={"train_examples_per_second": len(source) / seconds},
            diagnostics=found | {"top_features": model.top_features(TOP_FEATURES)},
            mattered=scoring.mattered(model, others[last], judged[last], config),
        ),
    )
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> evaluation.Predictions:
    """Score the fitted baseline on labelled data that training never saw."""
    model = run.loaded(baselines.TfidfModel.load)
    labels = LabelMap(model.labels, model.multi_label)
    return judge(data, labels.encode(data), model.predict_proba(data.texts(), data.pairs()), labels)


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Label texts: one row each, in order, with a probability for every label."""
    model = run.loaded(baselines.TfidfModel.load)
    probabilities = model.predict_proba(inputs.texts(), inputs.pairs())
    return predicted_rows(inputs, probabilities, LabelMap(model.labels, model.multi_label))
