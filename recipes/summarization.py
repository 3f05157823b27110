"""Write summaries, or other texts after sources: BART, T5 and their kin, GPT-2, BERT with GPT-2, or from scratch.

The family is that of the model, or of `architecture`: an encoder joined to a decoder, one of the project's own.
"""

import time
from dataclasses import replace
from typing import Any, Literal

from finetune import adapters, bertscore, hardware, text_evaluation
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import Split, digests
from finetune.data.sequences import SummaryDataConfig, read_splits
from finetune.generation import GenerationConfig, Written, predicted_rows
from finetune.report import opening
from finetune.report import summaries as report
from finetune.report.card import model_card
from finetune.report.results import Conclusion, System
from finetune.report.text_results import conclude, judge, run_baselines
from finetune.run import Run, environment
from finetune.seq2seq import encoder_decoder as networks
from finetune.seq2seq.vocabulary import VocabularyConfig
from finetune.summaries import families, writer
from finetune.text_evaluation import TextPredictions, task_named
from finetune.trainer import TrainConfig, Trainer


@configclass
class Config:
    """Settings of the recipe."""

    model: str | None = field(None, "BART, T5, GPT-2 ...: Hub name, folder or mini-gpt2; none: see architecture")
    architecture: Literal["auto", "seq2seq", "bert2gpt"] = field(
        "auto", "auto: that of model; seq2seq: from scratch, of vocabulary and network; bert2gpt: encoder and decoder"
    )
    encoder: str = field("google-bert/bert-base-uncased", "bert2gpt: the checkpoint that reads")
    decoder: str = field("openai-community/gpt2", "bert2gpt: the checkpoint that writes")
    peft: adapters.AdapterConfig = field(adapters.AdapterConfig, "few new weights in place of the checkpoint's own")
    task: str = field("summarization", "what is scored: summarization, translation, dialogue, question_answering, ...")
    language: str | None = field(None, "of the targets, e.g. zh: how they are cut into words for the scores")
    data: SummaryDataConfig = field(SummaryDataConfig, "files and columns")
    model_language: str | None = field(None, "mBART needs it: code of the language of sources and targets, de_DE")
    source_prefix: str = field("auto", "text before each source; auto: what the model's config says for summaries (T5)")
    prompt_end: str = field("\\nTL;DR:", "GPT-2: text between a source and its target; as data.separator")
    vocabulary: VocabularyConfig = field(VocabularyConfig, "seq2seq: tokens, learnt from train")
    network: networks.NetworkConfig = field(networks.NetworkConfig, "seq2seq: the model")
    max_source_length: networks.Longest | Literal["auto"] = field("auto", "tokens of a source; auto: 512 at most")
    max_target_length: networks.Longest | Literal["auto"] = field("auto", "tokens of a target; auto: 128 at most")
    label_smoothing_factor: networks.Probability = field(0.1, "probability spread over all tokens")
    generation: GenerationConfig = field(families.writing_settings, "how texts are written at the end and by predict")
    baseline: Literal["auto", "none"] = field("auto", "auto: lead, extracts, retrieval and the like beside the model")
    bertscore_model: str | None = field(None, "BERTScore beside ROUGE, by this BERT: mini-mbert, Hub name or folder")
    train: TrainConfig = field(families.loop_settings, "the loop")
    seed: Seed = field(1, "of new weights, order, dropout, held-out rows and samples")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Train, keep the epoch with the best validation score of greedy texts, and judge it beside the baselines."""
    began, task, asked = time.perf_counter(), task_named(config.task, config.language), config.train
    splits = read_splits(config.data, seed=config.seed)
    found = opening.say_pairs(run, config.data, splits)
    model = families.begin(config, splits["train"])
    meter = bertscore.load(config.bertscore_model, use_cpu=asked.use_cpu)
    config = replace(
        config, train=families.resolve(asked, model, task.decides), source_prefix=model.prefix,
        max_source_length=model.lengths.source, max_target_length=model.lengths.target,
    )  # fmt: skip
    upwards = text_evaluation.greater_is_better(config.train.metric_for_best_model, task)
    coded = {name: writer.encode(model, split, config.data.on_long) for name, split in splits.items()}
    found |= report.say_coded(run, coded, model.lengths, config.data.on_long)
    loop = Trainer(model.model, config.train, run, loss=model.loss, seed=config.seed, width=model.width)
    examples, parameters = coded["train"].examples, sum(part.numel() for part in model.model.parameters())
    opening.say_model(run, model.described, config.train, asked, len(loop.plan(examples)), "pair")
    if run.dry_run:
        return opening.say_estimate(run, loop.estimate(examples), config.train, "pair")

    beside = run_baselines(task, splits) if config.baseline == "auto" else []
    opening.say_text_baselines(run, beside, task)
    place = environment(config.seed, hardware.describe(config.train.use_cpu), digests(splits))
    run.start({"recipe": families.RECIPE, **to_tree(config)}, place | {"model": model.identity})
    took: dict[str, Written] = {}

    def written(name: str, how: GenerationConfig) -> TextPredictions:
        found = took[name] = writer.write(model, splits[name], config.data.on_long, how, config.seed)
        return judge(splits[name], [texts[0] for texts in found.texts], [scores[0] for scores in found.scores])

    def validate() -> dict[str, float]:
        scores = text_evaluation.values(written("validation", families.greedy(config.generation)), task)
        return scores | {"loss": writer.mean_loss(model, coded["validation"], config.train)}

    progress = loop.fit(examples, validate, greater_is_better=upwards)
    rates = opening.say_costs(run, progress, loop.estimated_seconds, "target tokens")
    remembered = families.remembered(config, model, config.data.on_long)
    run.save_model(lambda folder: model.save(folder, remembered, config.generation))
    judged = {name: written(name, config.generation) for name in splits if name != "train"}
    report.say_left_long(run, took)
    seconds = {"train": progress.seconds, "evaluate": took[[*judged][-1]].seconds, "total": time.perf_counter() - began}
    results = conclude(run, Conclusion(
        recipe=families.RECIPE, model=model.described, system=System(model.name, judged, progress.seconds),
        baselines=beside, splits=splits, seconds=seconds, throughput=rates,
        diagnostics=found | {"parameters": parameters}, meter=meter,
    ), task)  # fmt: skip
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> TextPredictions:
    """Write a text for each source of a file that training never saw, beside its references."""
    rows = predict(config, run, data)
    return judge(data, [row["predicted"] for row in rows], [row["score"] for row in rows])


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Write a text for each source: one row each, in order; `hypotheses` are all where several are asked for."""
    model, on_long = run.loaded(lambda folder: families.load(config, folder)), config.data.on_long
    written = writer.write(model, inputs, on_long, config.generation, config.seed)
    report.say_written(run, written, len(inputs), model.lengths.source, on_long)
    return predicted_rows(inputs.ids(), inputs.sources(), written)
