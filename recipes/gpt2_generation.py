"""Fine-tune GPT-2 (or its kin) to write: on plain text, or on prompts with completions, beside an n-gram model.

Plain text is packed into blocks in which no token sees another document; of a prompt with its completion, the loss is
of the completion alone. Judged in bits per byte, which does not depend on the tokenizer.
"""

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune import generation, hardware
from finetune.adapters import AdapterConfig
from finetune.causal import corpus, routes
from finetune.causal.corpus import TextDataConfig
from finetune.causal.model import DropoutConfig, from_checkpoint, loss
from finetune.causal.perplexity import Tally
from finetune.causal.routes import Reading
from finetune.causal.tokenizer import TextEncoder
from finetune.config import Seed, configclass, field, to_tree
from finetune.data.columns import Split, digests
from finetune.generation import GenerationConfig, check_longest, predicted_rows
from finetune.pretrained import starting
from finetune.report import language_model as report
from finetune.report import opening, writing
from finetune.report.card import model_card
from finetune.report.results import System
from finetune.run import Run, environment
from finetune.trainer import TrainConfig, Trainer


@configclass
class Config:
    """Settings of the recipe."""

    model: str = field("openai-community/gpt2", "Hub name, local folder or mini-gpt2")
    data: TextDataConfig = field(TextDataConfig, "files and columns")
    peft: AdapterConfig = field(AdapterConfig, "few new weights in place of the checkpoint's own")
    network: DropoutConfig = field(DropoutConfig, "dropout, and how weights are saved")
    max_length: Annotated[int, Field(gt=1)] = field(256, "tokens of a block or row, and of a window in scoring")
    stride: Annotated[int, Field(gt=0)] | None = field(None, "tokens between windows in scoring; null: max_length / 2")
    generation: GenerationConfig = field(GenerationConfig, "how texts are written by predict and generate")
    samples: Annotated[int, Field(ge=0)] = field(20, "texts written after training, described beside human ones")
    baseline: Literal["auto", "none"] = field("auto", "auto: an n-gram model beside the neural one")
    train: TrainConfig = field(routes.fine_tuning_loop, "the loop")
    seed: Seed = field(1, "of order, dropout, held-out documents and samples")
    seeds: list[Seed] | None = field(None, "train once with each, e.g. [1,2,3]")
    output_dir: str | None = field(None, "run folder; default runs/<recipe>-<date>-<time>")


def train(config: Config, run: Run) -> dict[str, Any]:
    """Fine-tune, keep the weights with the best validation score, and judge them beside the n-gram model."""
    began, asked = time.perf_counter(), config.train
    splits = corpus.read_splits(config.data, seed=config.seed)
    figures = opening.say_texts(run, config.data, splits)
    start = from_checkpoint(starting(config.model, config.peft), config.network)
    check_longest(config.generation, start.context)
    reading = Reading.of(config.max_length, config.stride, config.data, start.context)
    found = routes.material(splits, TextEncoder(start.tokenizer), reading)
    figures |= report.say_material(run, start, found, reading)
    config = replace(config, train=routes.resolve(asked, start, routes.FINE_TUNING_EPOCHS))
    loop = Trainer(start.model, config.train, run, loss=loss, seed=config.seed)
    opening.say_model(run, start.described, config.train, asked, len(loop.plan(found.train)), "example")
    if run.dry_run:
        return opening.say_estimate(run, loop.estimate(found.train), config.train, "example")

    beside = report.run_baselines(run, found) if config.baseline == "auto" else []
    place = environment(config.seed, hardware.describe(config.train.use_cpu), digests(splits))
    run.start({"recipe": "gpt2_generation", **to_tree(config)}, place | {"model": start.identity})

    judge = routes.Judge(start, found.texts, reading, config.train.mixed_precision)
    progress = loop.fit(found.train, judge.validate, greater_is_better=False)
    rates = opening.say_costs(run, progress, loop.estimated_seconds, "predicted tokens")
    generation.write_so(start, config.generation)
    kept = reading.settings() | generation.remembered(config.generation, GenerationConfig())
    run.save_model(lambda folder: start.save(folder, config.network, kept))
    tallies, seconds = judge.final()
    sampling = writing.Sampling(config.samples, config.generation, config.seed)
    figures |= writing.try_out(run, judge, splits, routes.affordable(found.learnt)[0], sampling)
    results = report.conclude(run, report.Judged(
        "gpt2_generation", System(start.kind, tallies, progress.seconds), beside, splits, reading,
        {"train": progress.seconds, "evaluate": seconds, "total": time.perf_counter() - began}, rates,
        figures | {"model": start.described, "parameters": start.parameters},
    ))  # fmt: skip
    run.write_card(model_card(results, to_tree(config), place))
    return results


def evaluate(config: Config, run: Run, data: Split) -> Tally:
    """Score how well the model predicts texts that training never saw."""
    return routes.score_texts(run.model, data, config.max_length, config.stride, config.data, config.train)


def predict(config: Config, run: Run, inputs: Split) -> list[dict[str, Any]]:
    """Go on from each text, or write the completion of each prompt: one row each, in order."""
    given = routes.asked_of(inputs, config.data)
    return predicted_rows(inputs.ids(), given, writing.go_on(run, config, given))
