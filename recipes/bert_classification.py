"""Fine-tune a pretrained encoder to classify texts or text pairs, beside TF-IDF, and say which one to trust.

[CLS] goes through the pretrained pooler and a linear head (Devlin et al. 2019, 4.1 and A.3); GPT-2 and others work too.
"""

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune import classifier, evaluation, hardware, optim
from finetune.adapters import AdapterConfig
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import DataConfig, LabelMap, Split, digests, read_splits
from finetune.data.encode import encode
from finetune.report import opening, scoring
from finetune.report.card import model_card
from finetune.report.results import Conclusion, System, conclude, judge, run_baselines
from finetune.run import Run, environment
from finetune.trainer import TrainConfig, Trainer

Fraction = Annotated[float, Field(ge=0, lt=1)]


@configclass
class Config:
    """Settings of the recipe."""

    model: str = field("google-bert/bert-base-uncased", "Hub name, local folder, mini-mbert or minilm")
    data: DataConfig = field(DataConfig, "files and columns")
    max_length: Annotated[int, Field(gt=2)] = field(128, "tokens of a text; data.on_long says what happens beyond")
    peft: AdapterConfig = field(AdapterConfig, "few new weights in place of the checkpoint's own")
    frozen_layers: Annotated[int, Field(ge=0)] = field(0, "lowest layers, with the embeddings, that are not trained")
    layerwise_lr_decay: Annotated[float, Field(gt=0, le=1)] = field(1.0, "rate of a layer relative to the one above")
    label_smoothing_factor: Fraction = field(0.0, "probability mass that the loss moves off the gold label")
    class_weights: Literal["none", "balanced"] = field("none", "balanced: rare labels weigh more in the loss")
    baseline: Literal["auto", "none"] = field("auto", "auto: TF-IDF and majority class beside the model")
    train: TrainConfig = field(lambda: TrainConfig(metric_for_best_model="macro_f1"), "the loop")
    seed: Seed = field(1, "of head, order, dropout and held-out rows")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    label_budget: list[int] = field(list, "also train on so many rows, beside TF-IDF, e.g. [10,30,100,300,1000]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Fine-tune, keep the epoch with the best validation score, and judge it beside the baselines."""
    began = time.perf_counter()
    upwards = classifier.greater_is_better(config.train.metric_for_best_model)
    splits = read_splits(config.data, seed=config.seed)
    labels = LabelMap.learn(splits["train"], config.data.multi_label)
    targets = {name: labels.encode(split) for name, split in splits.items()}
    found = opening.say_data(run, config.data, splits, labels)
    parts = classifier.load(config.model, labels, config.seed, config.peft)
    classifier.read_so(parts, config.max_length, config.data.on_long)
    encoded = {n: encode(s, parts.tokenizer, config.max_length, config.data.on_long) for n, s in splits.items()}
    found |= opening.say_lengths(run, encoded, config.max_length, config.data.on_long)

    asked = config.train
    config = replace(config, train=classifier.resolve(parts, asked, len(splits["train"])))
    trained = optim.freeze(parts.model, config.frozen_layers)
    weights = classifier.class_weights(targets["train"], labels) if config.class_weights == "balanced" else None
    loss = classifier.make_loss(labels, config.label_smoothing_factor, weights)
    loop = Trainer(parts.model, config.train, run, loss=loss, seed=config.seed, layer_decay=config.layerwise_lr_decay)
    examples = classifier.collate(encoded["train"], parts.tokenizer, targets["train"], splits["train"].where)
    opening.say_model(run, parts.described, config.train, asked, len(loop.plan(examples)))
    if run.dry_run:
        return opening.say_estimate(run, loop.estimate(examples), config.train)

    beside = run_baselines(splits, targets, labels, config.seed) if config.baseline == "auto" else []
    opening.say_baselines(run, beside)
    place = environment(config.seed, hardware.describe(config.train.use_cpu), digests(splits))
    place |= {"model": parts.source.identity}
    run.start({"recipe": "bert_classification", **to_tree(config)}, place)

    def scored(name: str) -> tuple[evaluation.Predictions, float]:
        result = classifier.predict(parts, encoded[name], config.train)
        return judge(splits[name], targets[name], result.probabilities, labels), result.seconds

    progress = loop.fit(examples, lambda: evaluation.values(scored("validation")[0]), greater_is_better=upwards)
    rates = opening.say_costs(run, progress, loop.estimated_seconds)
    run.save_model(parts.save)
    judged = {name: scored(name) for name in splits if name != "train"}
    last = "test" if "test" in judged else "validation"
    mattered = scoring.mattered(parts, splits[last], judged[last][0], config)
    results = conclude(
        run,
        Conclusion(
            recipe="bert_classification",
            model=config.model,
            system=System(parts.family, {name: part for name, (part, _) in judged.items()}, progress.seconds),
            baselines=beside,
            splits=splits,
            seconds={"train": progress.seconds, "evaluate": judged[last][1], "total": time.perf_counter() - began},
            throughput=rates,
            diagnostics=found | {"parameters": parts.parameters, "trained_parameters": trained},
            mattered=mattered,
        ),
    )
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> evaluation.Predictions:
    """Score the trained model on labelled data that training never saw."""
    return scoring.evaluate(run, data, config.train, max_length=config.max_length, on_long=config.data.on_long)


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Label texts: one row each, in order, with a probability for every label."""
    return scoring.predict(run, inputs, config.train, max_length=config.max_length, on_long=config.data.on_long)
