"""Fine-tune multilingual BERT on some languages and score it in others, beside TF-IDF, with a verdict for each.

Zero-shot transfer (Pires et al. 2019; Wu and Dredze 2019); the oracle is the same model trained on the language itself.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune import classifier, crosslingual, evaluation, hardware, optim
from finetune.adapters import AdapterConfig
from finetune.config import Seed, configclass, field, to_tree
from finetune.crosslingual import Row, Trained, Wanted
from finetune.data.columns import DataConfig, Split, digests
from finetune.data.encode import encode
from finetune.data.patterns import Corpus, read_languages
from finetune.report import card, languages, opening, scoring
from finetune.run import Run, environment
from finetune.trainer import TrainConfig, Trainer


@configclass
class Config:
    """Settings of the recipe."""

    model: str = field("google-bert/bert-base-multilingual-cased", "Hub name, local folder or mini-mbert")
    data: DataConfig = field(DataConfig, "files, as patterns with {language}, and columns")
    train_languages: list[str] = field(lambda: ["en"], "languages to train on, together")
    test_languages: list[str] | None = field(None, "languages to score; null: all that data.test has a file of")
    matrix: Literal["source", "full"] = field("source", "full: also each language alone, and all together")
    oracle: bool = field(False, "also train on each test language with a training file alone; part of matrix=full")
    few_shot: list[Annotated[int, Field(gt=0)]] = field(list, "also with so many rows of a test language added")
    max_length: Annotated[int, Field(gt=2)] = field(128, "tokens of a text; data.on_long says what happens beyond")
    peft: AdapterConfig = field(AdapterConfig, "few new weights in place of the checkpoint's own")
    frozen_layers: Annotated[int, Field(ge=0)] = field(0, "lowest layers, with the embeddings, that are not trained")
    freeze_embeddings: bool = field(False, "word embeddings are not trained, so that unseen languages keep theirs")
    layerwise_lr_decay: Annotated[float, Field(gt=0, le=1)] = field(1.0, "rate of a layer relative to the one above")
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = field(0.0, "mass moved off the gold label")
    baseline: Literal["auto", "none"] = field("auto", "auto: TF-IDF and majority class beside the model")
    train: TrainConfig = field(lambda: TrainConfig(metric_for_best_model="macro_f1"), "the loop, of each row")
    seed: Seed = field(1, "of head, order, dropout, held-out and few-shot rows")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Train on the training languages and score all, beside TF-IDF; then train the other rows of the matrix."""
    began = time.perf_counter()
    corpus = read_languages(config.data, config.train_languages, config.test_languages, seed=config.seed)
    plan = crosslingual.plan(corpus, Wanted(config.matrix, config.oracle, config.few_shot), config.seed)
    found = languages.say_plan(run, config.data, plan)
    ready = prepare(config, run, plan.source, corpus)
    found |= languages.say_diagnosis(run, corpus, ready.parts.tokenizer, config.max_length)
    found |= opening.say_lengths(run, ready.encoded, config.max_length, config.data.on_long)
    opening.say_model(run, ready.parts.described, ready.settings, config.train, len(ready.loop.plan(ready.examples)))
    if run.dry_run:
        return opening.say_estimate(run, ready.loop.estimate(ready.examples), ready.settings)

    beside = languages.run_baselines(run, plan, config.seed) if config.baseline == "auto" else None
    place = environment(config.seed, hardware.describe(config.train.use_cpu), digests(corpus.splits()))
    place |= {"model": ready.parts.source.identity}
    # Rows of other sizes get other numbers of epochs: `auto` can be resolved for a single row alone.
    epochs = config.train.num_train_epochs if plan.others else ready.settings.num_train_epochs
    resolved = replace(config, train=replace(ready.settings, num_train_epochs=epochs))
    tree = {"recipe": "mbert_crosslingual", **to_tree(resolved)}
    run.start(tree, place)
    trained = fit(run, plan.source, corpus, ready)
    run.save_model(ready.parts.save)
    found |= {"parameters": ready.parts.parameters, "trained_parameters": ready.trained}
    family, mattered = ready.parts.family, languages.mattered(ready.parts, plan, trained, config)
    del ready  # model and optimizer, before those of the other rows

    def train_row(part: Run, row: Row) -> Trained:
        of_row = prepare(config, part, row, corpus)
        part.start({**tree, **to_tree(replace(config, train=of_row.settings))}, place)
        return fit(part, row, corpus, of_row)

    others = crosslingual.train_rows(run, plan.others, train_row)
    outcome = languages.Found(plan, trained, others, beside, found, began, mattered)
    results = languages.conclude(run, outcome, "mbert_crosslingual", config.model, family)
    run.write_card(card.model_card(results, tree, place))
    return results


def prepare(config: Config, run: Run, row: Row, corpus: Corpus) -> classifier.Fitting:
    """Load the model for one row of the matrix and encode its texts; nothing is written."""
    labels, upwards = corpus.labels, classifier.greater_is_better(config.train.metric_for_best_model)
    parts = classifier.load(config.model, labels, config.seed, config.peft)
    classifier.read_so(parts, config.max_length, config.data.on_long)
    splits = {"train": row.train, "validation": row.validation, "test": corpus.together("test", row.columns)}
    encoded = {n: encode(s, parts.tokenizer, config.max_length, config.data.on_long) for n, s in splits.items()}
    settings = classifier.resolve(parts, config.train, len(row.train))
    trained = optim.freeze(parts.model, config.frozen_layers, word_embeddings=config.freeze_embeddings)
    loss = classifier.make_loss(labels, config.label_smoothing_factor, None)
    loop = Trainer(parts.model, settings, run, loss=loss, seed=config.seed, layer_decay=config.layerwise_lr_decay)
    examples = classifier.collate(encoded["train"], parts.tokenizer, labels.encode(row.train), row.train.where)
    return classifier.Fitting(parts, settings, encoded, examples, loop, trained, upwards)


def fit(run: Run, row: Row, corpus: Corpus, ready: classifier.Fitting) -> Trained:
    """Train the model of a row, keep the epoch with the best validation score, and let it predict its columns."""
    validate = partial(scoring.score_split, ready, "validation", row.validation)
    progress = ready.loop.fit(ready.examples, lambda: evaluation.values(validate()[0]), greater_is_better=ready.upwards)
    rates = opening.say_costs(run, progress, ready.loop.estimated_seconds)
    together, seconds = scoring.score_split(ready, "test", corpus.together("test", row.columns))
    columns = crosslingual.by_language(together, {language: corpus.test[language] for language in row.columns})
    return Trained(validate()[0], columns, {"train": progress.seconds, "evaluate": seconds}, rates)


def evaluate(config: Config, run: Run, data: Split) -> evaluation.Predictions:
    """Score the trained model on labelled data that training never saw, of any language."""
    return scoring.evaluate(run, data, config.train, max_length=config.max_length, on_long=config.data.on_long)


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Label texts of any language: one row each, in order, with a probability for every label."""
    return scoring.predict(run, inputs, config.train, max_length=config.max_length, on_long=config.data.on_long)
