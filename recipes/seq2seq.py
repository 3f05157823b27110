"""Train a sequence-to-sequence model from scratch, beside copying, retrieval and the like: translation and its kin.

The models are the project's own: a Transformer (Vaswani et al. 2017), or a recurrent encoder-decoder with or without
attention (Sutskever et al. 2014, Cho et al. 2014, Bahdanau et al. 2015, Luong et al. 2015).
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from finetune import hardware, text_evaluation
from finetune.adapters import AdapterConfig
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import Split, digests
from finetune.data.sequences import SequenceDataConfig, read_splits
from finetune.explain import Explanation, explained
from finetune.report import opening
from finetune.report.card import model_card
from finetune.report.results import Conclusion, System
from finetune.report.text_results import conclude, judge, run_baselines
from finetune.run import Run, environment
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.search import SearchConfig
from finetune.seq2seq.vocabulary import VocabularyConfig
from finetune.text_evaluation import TextPredictions, task_named
from finetune.trainer import TrainConfig, Trainer


@configclass
class Config:
    """Settings of the recipe."""

    model: str | None = field(None, "folder of one of these models that goes on being trained; null: random weights")
    peft: AdapterConfig = field(AdapterConfig, "few new weights in place of the model's own")
    task: str = field("translation", "what is scored: translation, summarization, dialogue, question_answering, ...")
    language: str | None = field(None, "of the targets, e.g. zh: how they are cut into words for the scores")
    data: SequenceDataConfig = field(SequenceDataConfig, "files and columns")
    vocabulary: VocabularyConfig = field(VocabularyConfig, "tokens, learnt from train")
    network: networks.NetworkConfig = field(networks.NetworkConfig, "the model")
    max_source_length: networks.Longest = field(256, "tokens of a source; data.on_long says what happens beyond")
    max_target_length: networks.Longest = field(256, "tokens of a target")
    label_smoothing_factor: networks.Probability = field(0.1, "probability spread over all tokens")
    search: SearchConfig = field(SearchConfig, "how texts are written at the end and by predict")
    baseline: Literal["auto", "none"] = field("auto", "auto: copying, retrieval and the like beside the model")
    train: TrainConfig = field(networks.loop_settings, "the loop")
    seed: Seed = field(1, "of first weights, order, dropout and held-out rows")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Train, keep the epoch with the best validation score of greedy decoding, and judge it beside the baselines."""
    began, task, asked = time.perf_counter(), task_named(config.task, config.language), config.train
    splits = read_splits(config.data, seed=config.seed)
    found = opening.say_pairs(run, config.data, splits)
    parts, lengths = networks.begin(config, splits["train"], task), networks.Lengths.of(config)
    config = replace(config, train=networks.resolve(asked, parts, task.decides))
    upwards = text_evaluation.greater_is_better(config.train.metric_for_best_model, task)
    encoded = networks.encode_splits(splits, parts.vocabularies, lengths, config.data.on_long)
    found |= opening.say_vocabularies(run, parts.vocabularies, splits, encoded, lengths, config.data.on_long)
    loss = networks.make_loss(config.label_smoothing_factor, config.network.scheduled_sampling)
    loop = Trainer(parts.model, config.train, run, loss=loss, seed=config.seed, width=parts.model.config.hidden_size)
    examples = networks.collate(encoded["train"], splits["train"].where)
    opening.say_model(run, parts.described, config.train, asked, len(loop.plan(examples)), "pair")
    if run.dry_run:
        return opening.say_estimate(run, loop.estimate(examples), config.train, "pair")

    beside = run_baselines(task, splits) if config.baseline == "auto" else []
    opening.say_text_baselines(run, beside, task)
    place = environment(config.seed, hardware.describe(config.train.use_cpu), digests(splits))
    run.start({"recipe": "seq2seq", **to_tree(config)}, place | {"model": parts.identity})

    took: dict[str, float] = {}

    def written(name: str, search: SearchConfig) -> TextPredictions:
        found = networks.write(parts, encoded[name].sources, search, config.train, config.seed)
        took[name] = found.seconds
        return judge(splits[name], [texts[0] for texts in found.texts], found.scores)

    def validate() -> dict[str, float]:
        scores = text_evaluation.values(written("validation", config.search.greedy()), task)
        return scores | {"loss": networks.mean_loss(parts, encoded["validation"], config.train)}

    progress = loop.fit(examples, validate, greater_is_better=upwards)
    rates = opening.say_costs(run, progress, loop.estimated_seconds, "target tokens")
    run.save_model(parts.save)
    judged = {name: written(name, config.search) for name in splits if name != "train"}
    seconds = {"train": progress.seconds, "evaluate": took[[*judged][-1]], "total": time.perf_counter() - began}
    results = conclude(run, Conclusion(
        recipe="seq2seq", model=parts.described, system=System(parts.name, judged, progress.seconds),
        baselines=beside, splits=splits, seconds=seconds, throughput=rates,
        diagnostics=found | {"parameters": parts.parameters},
    ), task)  # fmt: skip
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> TextPredictions:
    """Write a text for each source of a file that training never saw, beside its references."""
    rows = predict(config, run, data)
    return judge(data, [row["predicted"] for row in rows], [row["score"] for row in rows])


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Write a text for each source: one row each, in order; `hypotheses` are the n best where several are asked for."""
    parts = run.loaded(networks.load)
    lengths = networks.Lengths.of(config)
    encoded = networks.encode(inputs, parts.vocabularies, lengths, "truncate", with_targets=False)
    opening.say_cut(run, encoded.long, len(inputs), config.max_source_length, "truncate")
    settings = networks.resolve(config.train, parts, "loss")
    return networks.predicted_rows(inputs, networks.write(parts, encoded.sources, config.search, settings, config.seed))


def explain(config: Config, run: Run, source: str, target: str | None = None) -> Explanation:
    """Write a text for a source, or take `target` for it, and show where each of its tokens looked."""
    parts = run.loaded(networks.load)
    settings = networks.resolve(config.train, parts, "loss")
    write = partial(networks.write, parts, search=config.search, config=settings, seed=config.seed)
    return explained(parts, source, target, networks.Lengths.of(config), write)
