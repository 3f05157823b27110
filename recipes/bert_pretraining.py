"""Pretrain BERT: on text of several languages, on pairs of translations, or by a teacher's sentence vectors.

Masked tokens (Devlin et al. 2019), translations side by side (TLM: Conneau and Lample 2019), translation distillation
(Reimers and Gurevych 2020); from random weights, with the vocabulary of a checkpoint, or with a new one in its body.
"""

import time
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from finetune import hardware
from finetune.adapters import AdapterConfig
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import Split
from finetune.pretrained import starting_if_any
from finetune.pretraining import material, routes
from finetune.pretraining.corpus import CorpusConfig
from finetune.pretraining.examples import Frame
from finetune.pretraining.masking import MaskingConfig
from finetune.pretraining.model import ShapeConfig, loss
from finetune.pretraining.vocabulary import VocabularyConfig
from finetune.report import opening
from finetune.report import pretraining as report
from finetune.report.card import model_card
from finetune.report.results import System
from finetune.run import Run, environment
from finetune.trainer import TrainConfig, Trainer


@configclass
class Config:
    """Settings of the recipe."""

    objective: str = field("mlm", "mlm: masked tokens, tlm: of translations, distil: a teacher's vectors; joined by +")
    model: str | None = field(None, "BERT checkpoint to begin with: Hub name, folder or minilm; null: random weights")
    teacher: str | None = field(None, "sentence encoder of objective=distil: Hub name, folder or minilm")
    train_languages: list[str] = field(list, "codes that stand for {language} in the names of files, e.g. [en,it]")
    data: CorpusConfig = field(CorpusConfig, "files and columns")
    peft: AdapterConfig = field(AdapterConfig, "few new weights in place of the checkpoint's own")
    vocabulary: VocabularyConfig = field(VocabularyConfig, "tokens")
    network: ShapeConfig = field(ShapeConfig, "the model")
    masking: MaskingConfig = field(MaskingConfig, "which tokens are hidden")
    max_length: Annotated[int, Field(gt=7)] = field(128, "tokens of a block of text, of a pair, or of a sentence")
    train: TrainConfig = field(routes.loop_settings, "the loop")
    seed: Seed = field(1, "of first weights, order, masks, dropout and what is held out")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Pretrain, keep the weights with the best validation score, and judge them beside cheap systems."""
    began, asked = time.perf_counter(), config.train
    plan = material.plan(config.objective, config.train_languages, config.data, config.teacher, config.seed)
    teacher = routes.load_teacher(config.teacher, config.max_length, asked.use_cpu)
    source = starting_if_any(config.model, config.peft)
    start = routes.begin(plan, source, config.vocabulary, config.network, config.max_length)
    routes.ready(start, teacher, config.max_length, config.masking)
    report.say_start(run, start)
    found = material.read(plan, start.tokenizer, Frame.of(start.tokenizer, config.max_length, config.masking), teacher)
    figures = report.say_material(run, plan, found)
    config = replace(config, train=routes.resolve(asked, start, plan))
    loop = Trainer(start.model, config.train, run, loss=loss, seed=config.seed)
    opening.say_model(run, start.described, config.train, asked, len(loop.plan(found.train)), "example")
    if run.dry_run:
        return opening.say_estimate(run, loop.estimate(found.train), config.train, "example")

    judge = routes.Judge(start, found, plan, config.train.mixed_precision)
    beside = report.say_baselines(run, judge.baselines(), plan.main)
    place = environment(config.seed, hardware.describe(config.train.use_cpu), found.digests)
    place |= {"model": start.identity, "teacher": None if teacher is None else teacher.source.identity}
    run.start({"recipe": "bert_pretraining", **to_tree(config)}, place)
    found.remember(loop.plan(found.train))

    progress = loop.fit(found.train, judge.validate, greater_is_better=routes.upwards(config.train))
    rates = opening.say_costs(run, progress, loop.estimated_seconds, "items")
    run.save_model(lambda folder: start.save(folder, plan.kinds, config.network))
    tallies, others, seconds = judge.final()
    results = report.conclude(run, report.Judged(
        plan, System("BERT", tallies, progress.seconds), beside, others,
        {"train": progress.seconds, "evaluate": seconds, "total": time.perf_counter() - began}, rates,
        figures | {"model": start.described, "parameters": start.parameters},
    ))  # fmt: skip
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> Any:
    """Score the guesses at hidden places of a text that training never saw."""
    return routes.score_texts(run.model, data, config.max_length, config.masking, config.train)


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Fill each [MASK] with the most probable token: one row each, in order, with the five best of each place."""
    return routes.fill(run.model, inputs, config.max_length)
