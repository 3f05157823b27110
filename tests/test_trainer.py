"""The loop: sums divided once, a resumed run equal to a straight one to the bit, and nothing good overwritten."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune import checkpoint, trainer
from finetune.data.batching import Batch, Examples, pad, share
from finetune.errors import Exit, Interrupted, UserError
from finetune.run import Run
from finetune.trainer import Progress, TrainConfig, Trainer

WORDS, TAGS = 20, 3
ROWS = 40


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand checkpoints are written here and no power fails: do not wait for each to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Tagger(nn.Module):
    """A tag for each word, in float64; small enough to train in milliseconds."""

    def __init__(self, dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings = nn.Embedding(WORDS, 8, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, TAGS, dtype=torch.float64)

    def forward(self, words: Tensor) -> Tensor:
        tags: Tensor = self.head(self.dropout(self.embeddings(words)))  # (batch, time, tags)
        return tags


def toy_examples(rows: int = ROWS, seed: int = 3) -> Examples:
    """Return rows of 1 to 9 words; the tag of a word is its number modulo 3, and some words have none (-100)."""
    random = np.random.default_rng(seed)
    words = [random.integers(0, WORDS, random.integers(1, 10)) for _ in range(rows)]
    tags = [np.where((random.random(len(row)) < 0.2) & (np.arange(len(row)) > 0), -100, row % TAGS) for row in words]

    def collate(chosen: np.ndarray) -> Batch:
        tensors = {"words": pad([words[row] for row in chosen], 0), "tags": pad([tags[row] for row in chosen], -100)}
        return Batch(tensors, int((tensors["tags"] != -100).sum()), chosen)

    return Examples(np.array([len(row) for row in words]), collate)


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch.tensors["words"]).flatten(0, 1)
    return functional.cross_entropy(logits, batch.tensors["tags"].flatten(), reduction="sum")


def config(**settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "learning_rate": 0.02, "num_train_epochs": 3.0, "per_device_train_batch_size": 4, "mixed_precision": "no",
        "use_cpu": True, "save_steps": 1, "logging_steps": 3,
    }  # fmt: skip
    return TrainConfig(**(defaults | settings))


class Crash(Exception):
    """Stands for whatever ends a process."""


@dataclasses.dataclass
class Training:
    """One run of the toy: its trainer, its progress, and what each update and evaluation saw."""

    folder: Path
    trainer: Trainer
    progress: Progress | None
    rates: list[float]
    weights: dict[int, dict[str, Tensor]]
    evaluated: list[int]

    @property
    def final(self) -> dict[str, Tensor]:
        return self.trainer.unwrapped().state_dict()

    def metrics(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl without what a clock measured."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        clocks = {"items_per_second", "seconds"}
        return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]

    def steps(self) -> list[int]:
        return sorted(checkpoint.saved(self.folder / "checkpoints"))


def train(
    folder: Path,
    settings: TrainConfig | None = None,
    *,
    rows: int = ROWS,
    seed: int = 1,
    model: nn.Module | None = None,
    resume: bool = False,
    at_update: Callable[[int], None] = lambda update: None,
    loss: trainer.LossFunction = summed_loss,
    scores: list[float] | None = None,
    greater_is_better: bool = False,
) -> Training:
    """Train the toy in `folder`; `at_update(n)` is called in the middle of update n (from 1)."""
    settings = settings or config()
    run = Run(folder, resume=resume, quiet=True)
    run.start({}, {"data_sha256": {}})
    examples, held_out = toy_examples(rows), toy_examples(12, seed=9).collate(np.arange(12))

    def watched(network: nn.Module, batch: Batch) -> Tensor:
        update = made.trainer.progress.step + 1
        if len(made.rates) < update:
            made.rates += [math.nan] * (update - 1 - len(made.rates))
            made.rates.append(made.trainer.optimizer.param_groups[0]["lr"])
        at_update(update)
        return loss(network, batch)

    def evaluate() -> dict[str, float]:
        step = made.trainer.progress.step
        made.evaluated.append(step)
        made.weights[step] = {name: value.clone() for name, value in made.final.items()}
        torch.rand(3)  # an evaluation that draws numbers must not change the training
        if scores is not None:
            return {"loss": scores[len(made.evaluated) - 1]}
        network = made.trainer.unwrapped().eval()
        with torch.no_grad():
            return {"loss": float(summed_loss(network, held_out) / held_out.items)}

    loop = Trainer(model or Tagger(), settings, run, loss=watched, seed=seed)
    made = Training(folder, loop, None, [], {}, [])
    with run:
        try:
            made.progress = loop.fit(examples, evaluate, greater_is_better=greater_is_better)
        except Crash:
            made.progress = None
    return made


def crash_at(update: int) -> Callable[[int], None]:
    def crash(current: int) -> None:
        if current == update:
            raise Crash

    return crash


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_same_run(one: Training, other: Training) -> None:
    assert equal(one.final, other.final)
    assert one.metrics() == other.metrics()
    assert one.steps() == other.steps()
    last = f"step-{one.steps()[-1]:06d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = (run.folder / "checkpoints" / last / name for run in (one, other))
        assert first.read_bytes() == second.read_bytes()
    assert one.progress is not None
    assert other.progress is not None
    clockless = dict.fromkeys(("seconds",), 0.0)
    states = [dataclasses.asdict(progress) | clockless for progress in (one.progress, other.progress)]
    assert json.loads(json.dumps(states[0])) == json.loads(json.dumps(states[1]))


# Resume


def resumed_and_straight(folder: Path, accumulation: int, moment: str) -> tuple[Training, Training]:
    settings = config(gradient_accumulation_steps=accumulation)
    updates = math.ceil(ROWS / (4 * accumulation))
    done = {"first step": 1, "mid-epoch": updates + updates // 2, "epoch end": updates}[moment]
    straight = train(folder / "straight", settings)
    broken = train(folder / "broken", settings, at_update=crash_at(done + 1))
    assert broken.progress is None
    assert broken.steps()[-1] == done
    resumed = train(folder / "broken", settings, resume=True, model=Tagger(seed=77))
    return resumed, straight


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("moment", ["first step", "mid-epoch", "epoch end"])
def test_a_resumed_run_equals_a_straight_one_to_the_bit(tmp_path: Path, moment: str, accumulation: int) -> None:
    assert_same_run(*resumed_and_straight(tmp_path, accumulation, moment))


@pytest.mark.parametrize("moment", ["first step", "mid-epoch"])
def test_without_the_seed_of_each_update_a_resumed_run_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(trainer, "_step_seed", lambda seed, step, rank: torch.initial_seed() + 1)
    resumed, straight = resumed_and_straight(tmp_path, 1, moment)
    assert not equal(resumed.final, straight.final)


def test_a_run_that_is_resumed_many_times_equals_a_straight_one(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight")
    for update in (2, 3, 9, 10, 11, 12, 30):
        train(tmp_path / "broken", resume=True, at_update=crash_at(update))
    assert_same_run(train(tmp_path / "broken", resume=True), straight)


def test_updates_after_the_last_checkpoint_are_made_again_and_logged_once(tmp_path: Path) -> None:
    settings = config(save_steps=7, logging_steps=1)
    straight = train(tmp_path / "straight", settings)
    train(tmp_path / "broken", settings, at_update=crash_at(20))
    resumed = train(tmp_path / "broken", settings, resume=True)
    assert resumed.rates[:14] == pytest.approx([math.nan] * 14, nan_ok=True)
    assert_same_run(resumed, straight)


def test_best_step_and_patience_survive_a_resume(tmp_path: Path) -> None:
    scores = [0.9, 0.5, 0.6, 0.7, 0.4]
    settings = config(num_train_epochs=5.0, early_stopping_patience=2)
    straight = train(tmp_path / "straight", settings, scores=scores)
    train(tmp_path / "broken", settings, scores=scores, at_update=crash_at(33))
    resumed = train(tmp_path / "broken", settings, scores=scores[3:], resume=True)
    assert_same_run(resumed, straight)
    assert resumed.progress is not None
    assert (resumed.progress.best_step, resumed.progress.step) == (20, 40)


def test_resuming_a_run_that_stopped_early_makes_no_further_update(tmp_path: Path) -> None:
    settings = config(num_train_epochs=5.0, early_stopping_patience=1)
    straight = train(tmp_path / "run", settings, scores=[0.5, 0.6])
    before = straight.metrics()
    again = train(tmp_path / "run", settings, resume=True)
    assert (again.evaluated, again.rates) == ([], [])
    assert again.metrics() == before
    assert equal(again.final, straight.final)


def test_resuming_a_finished_run_makes_no_further_update(tmp_path: Path) -> None:
    straight = train(tmp_path / "run")
    again = train(tmp_path / "run", resume=True, model=Tagger(seed=5))
    assert (again.evaluated, again.rates) == ([], [])
    assert equal(again.final, straight.final)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    straight = train(tmp_path / "straight")
    train(tmp_path / "broken", config(save_steps=50), at_update=crash_at(6))
    assert_same_run(train(tmp_path / "broken", resume=True), straight)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_costs_updates_but_changes_nothing(tmp_path: Path, name: str) -> None:
    settings = config(save_total_limit=2)
    straight = train(tmp_path / "straight", settings)
    train(tmp_path / "broken", settings, at_update=crash_at(15))
    damaged = tmp_path / "broken" / "checkpoints" / "step-000014" / name
    damaged.write_bytes(damaged.read_bytes()[:-9])
    resumed = train(tmp_path / "broken", settings, resume=True)
    assert_same_run(resumed, straight)
    log = (tmp_path / "broken" / "train.log").read_text()
    assert "step-000014 is damaged" in log
    assert name in log


def test_a_damaged_checkpoint_does_not_push_out_the_ones_that_are_written_after_it(tmp_path: Path) -> None:
    settings = config(save_steps=5)
    train(tmp_path / "run", settings, at_update=crash_at(16))
    (tmp_path / "run" / "checkpoints" / "step-000015" / "state.json").unlink()
    broken = train(tmp_path / "run", config(save_steps=2), resume=True, at_update=crash_at(14))
    assert 12 in broken.steps()
    assert 15 not in broken.steps()


def test_a_damaged_best_checkpoint_is_never_loaded_in_silence(tmp_path: Path) -> None:
    settings = config(save_total_limit=1)

    def damage(update: int) -> None:
        path = tmp_path / "run" / "checkpoints" / "step-000010" / "model.safetensors"
        if update == 30:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    with pytest.raises(UserError, match=r"step-000010 is damaged \(model.safetensors has changed") as caught:
        train(tmp_path / "run", settings, scores=[0.1, 0.2, 0.3], at_update=damage)
    assert caught.value.code == Exit.IO_FAILED


def test_where_no_checkpoint_is_whole_the_resume_ends_with_74(tmp_path: Path) -> None:
    train(tmp_path / "run", at_update=crash_at(3))
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/model.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole") as caught:
        train(tmp_path / "run", resume=True)
    assert caught.value.code == Exit.IO_FAILED


def test_a_checkpoint_of_another_model_is_refused_with_the_names_that_differ(tmp_path: Path) -> None:
    longer, wider = Tagger(), Tagger()
    longer.extra = nn.Linear(2, 2, dtype=torch.float64)
    wider.head = nn.Linear(8, TAGS + 1, dtype=torch.float64)
    train(tmp_path / "run", at_update=crash_at(3))
    for model, differing in ((longer, "extra.bias"), (wider, "head.weight")):
        with pytest.raises(UserError, match=rf"step-\d+: the checkpoint is of another model .*{differing}") as caught:
            train(tmp_path / "run", resume=True, model=model)
        assert caught.value.code == Exit.USAGE


# One update


@pytest.mark.parametrize("rows", [40, 37, 33])  # 37 and 33: the last update of an epoch is smaller, with unequal parts
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_four_micro_batches_of_4_make_the_update_of_one_batch_of_16(tmp_path: Path, rows: int, clip: float) -> None:
    common: dict[str, Any] = {"max_grad_norm": clip, "logging_steps": 1}
    whole = train(
        tmp_path / "16x1", config(per_device_train_batch_size=16, **common), rows=rows, model=Tagger(dropout=0)
    )
    parts = train(tmp_path / "4x4", config(gradient_accumulation_steps=4, **common), rows=rows, model=Tagger(dropout=0))
    for name, weight in whole.final.items():
        assert float((weight - parts.final[name]).abs().max()) < 1e-12
    losses = [[record["loss"] for record in run.metrics() if "loss" in record] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12, rel=0)
    assert len(losses[0]) == 3 * math.ceil(rows / 16)


def test_an_update_is_that_of_a_loop_written_by_hand(tmp_path: Path) -> None:
    settings = config(gradient_accumulation_steps=2, max_grad_norm=0.1, weight_decay=0.1, lr_scheduler_type="constant")
    made = train(tmp_path / "run", settings, model=Tagger(dropout=0), scores=[3.0, 2.0, 1.0])
    model, examples = Tagger(dropout=0), toy_examples()
    matrices = [model.embeddings.weight, model.head.weight]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": [model.head.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.999), eps=1e-8)
    for _, update in made.trainer.plan(examples):
        batch = examples.collate(update)
        optimizer.zero_grad()
        (summed_loss(model, batch) / batch.items).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    for name, weight in model.state_dict().items():
        assert float((weight - made.final[name]).abs().max()) < 1e-12


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_differ(tmp_path: Path) -> None:
    first, second, other = (train(tmp_path / str(n), seed=seed) for n, seed in enumerate([1, 1, 2]))
    assert_same_run(first, second)
    assert not equal(first.final, other.final)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_good(tmp_path: Path) -> None:
    seen: list[int] = []

    def bursting(model: nn.Module, batch: Batch) -> Tensor:
        value = summed_loss(model, batch)
        if len(seen) == 7:
            return value * math.nan
        return value

    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", config(save_steps=2), loss=bursting, at_update=seen.append)
    assert caught.value.code == Exit.DIVERGED
    rows = made_updates(1)[6]
    listed = ", ".join(str(row) for row in rows)
    assert f"loss is not finite (nan) at update 7 ({listed})" in str(caught.value)
    assert "lower learning_rate than 0.02" in str(caught.value)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 7, "loss": "nan", "examples": [str(row) for row in rows]}
    found, warnings = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert (found.step, warnings) == (6, [])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors("model").values())


def made_updates(seed: int) -> list[list[int]]:
    loop = Trainer(Tagger(), config(), Run("unused", quiet=True), loss=summed_loss, seed=seed)
    return [update.tolist() for _, update in loop.plan(toy_examples())]


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_change(tmp_path: Path) -> None:
    def steep(model: nn.Module, batch: Batch) -> Tensor:
        value = summed_loss(model, batch)
        return value + torch.sqrt((value - value.detach()) ** 2 + 0.0)  # its value is fine, its slope is 0 / 0

    model = Tagger()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"gradient is not finite .* at update 1") as caught:
        train(tmp_path / "run", model=model, loss=steep)
    assert caught.value.code == Exit.DIVERGED
    assert equal(before, model.state_dict())
    assert not (tmp_path / "run").exists()  # it failed before its first update


def test_a_learning_rate_that_is_far_too_high_is_told_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finite") as caught:
        train(tmp_path / "run", config(learning_rate=1e200, max_grad_norm=0.0))
    assert caught.value.code == Exit.DIVERGED


# Which checkpoint


def test_training_stops_when_patience_is_lost_and_the_best_weights_are_loaded(tmp_path: Path) -> None:
    settings = config(num_train_epochs=9.0, early_stopping_patience=2)
    made = train(tmp_path / "run", settings, scores=[0.5, 0.3, 0.3, 0.4, 0.1])
    assert made.progress is not None
    assert (made.progress.step, made.progress.best_step, made.progress.best_score) == (40, 20, 0.3)
    assert equal(made.final, made.weights[20])
    assert not equal(made.final, made.weights[40])


def test_the_last_losses_of_a_training_that_stops_early_are_recorded(tmp_path: Path) -> None:
    settings = config(num_train_epochs=9.0, early_stopping_patience=2, logging_steps=15)
    train(tmp_path / "run", settings, scores=[0.5, 0.3, 0.3, 0.4, 0.1])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records if "learning_rate" in one] == [15, 30, 40]


@pytest.mark.parametrize(
    ("greater", "scores", "best"),
    [
        (True, [0.1, 0.9, 0.5], 20),
        (False, [0.5, 0.1, 0.9], 20),
        (True, [math.nan, 0.2, math.nan], 20),
        (False, [math.nan, 0.2, math.nan], 20),
        (True, [0.5, 0.5, 0.5], 10),
        (True, [math.inf, 0.5, 0.5], 10),
        (True, [math.nan, math.nan, math.nan], 0),
    ],
)
def test_the_best_score_is_kept_and_nan_is_never_the_best(
    tmp_path: Path, greater: bool, scores: list[float], best: int
) -> None:
    made = train(tmp_path / "run", scores=scores, greater_is_better=greater)
    assert made.progress is not None
    assert made.progress.best_step == best
    assert equal(made.final, made.weights[best or 30])
    assert made.steps() == sorted({best or 30, 30})


@pytest.mark.parametrize(("limit", "kept"), [(1, [10, 30]), (3, [10, 28, 29, 30]), (100, list(range(1, 31)))])
def test_the_limit_keeps_the_latest_and_the_best(tmp_path: Path, limit: int, kept: list[int]) -> None:
    assert train(tmp_path / "run", config(save_total_limit=limit), scores=[0.1, 0.2, 0.3]).steps() == kept


def test_without_save_steps_the_best_and_the_last_are_saved_and_one_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(save_steps=None, save_total_limit=100)
    assert train(tmp_path / "a", settings, scores=[0.3, 0.2, 0.4]).steps() == [10, 20, 30]
    monkeypatch.setattr(trainer, "SECONDS_BETWEEN_SAVES", 0.0)
    assert train(tmp_path / "b", settings, scores=[0.3, 0.2, 0.4]).steps() == list(range(1, 31))


def test_evaluations_come_each_epoch_or_as_asked_and_at_the_end(tmp_path: Path) -> None:
    assert train(tmp_path / "a").evaluated == [10, 20, 30]
    assert train(tmp_path / "b", config(eval_steps=8)).evaluated == [8, 16, 24, 30]
    assert train(tmp_path / "c", config(max_steps=13)).evaluated == [10, 13]


# Which rows, and at which rate


def plan_of(seed: int = 1, rows: int = ROWS, **settings: Any) -> list[tuple[int, list[int]]]:
    loop = Trainer(Tagger(), config(**settings), Run("unused", quiet=True), loss=summed_loss, seed=seed)
    return [(epoch, update.tolist()) for epoch, update in loop.plan(toy_examples(rows))]


def test_the_order_of_rows_is_a_function_of_seed_and_epoch() -> None:
    assert plan_of(1) == plan_of(1)
    assert plan_of(1) != plan_of(2)
    by_epoch = [[update for number, update in plan_of() if number == epoch] for epoch in range(3)]
    assert by_epoch[0] != by_epoch[1]
    assert plan_of(num_train_epochs=5.0)[:30] == plan_of()  # a longer run begins in the same way
    for epoch in by_epoch:
        assert sorted(row for update in epoch for row in update) == list(range(ROWS))


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        ({"max_steps": 5}, 5),
        ({"max_steps": 23}, 23),
        ({"num_train_epochs": 0.5}, 5),
        ({"num_train_epochs": 0.01}, 1),
        ({"num_train_epochs": 1.25}, 13),
        ({"num_train_epochs": 2.0, "gradient_accumulation_steps": 3}, 8),
        ({"per_device_train_batch_size": 100, "num_train_epochs": 2.0}, 2),
    ],
)
def test_the_number_of_updates_is_the_one_that_was_asked_for(settings: dict[str, Any], updates: int) -> None:
    plan = plan_of(**settings)
    assert len(plan) == updates
    per_epoch = max((sum(epoch == 0 for epoch, _ in plan), 1))
    assert [epoch for epoch, _ in plan] == [number // per_epoch for number in range(updates)]


def test_max_steps_ends_the_run(tmp_path: Path) -> None:
    made = train(tmp_path / "run", config(max_steps=13, num_train_epochs=1.0))
    assert made.progress is not None
    assert made.progress.step == 13
    assert made.steps()[-1] == 13


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_a_micro_batch_holds_no_more_padded_tokens_than_the_budget(strategy: str) -> None:
    lengths = toy_examples().lengths
    plan = plan_of(max_tokens_per_batch=12, gradient_accumulation_steps=2, train_sampling_strategy=strategy)
    assert sorted(row for epoch, update in plan if epoch == 0 for row in update) == list(range(ROWS))
    for _, update in plan:
        assert lengths[update].max() * len(update) <= 24 or len(update) == 1
        for part in share(np.array(update), lengths, 0, 1, 2):
            assert len(part) <= 4


def closed_form(kind: str, step: int, updates: int) -> float:
    """Return the rate of an update (from 0) as the papers write it, with a tenth of the updates to warm up."""
    warm = math.ceil(0.1 * updates)
    if step < warm and kind != "constant":
        return 0.02 * step / warm
    part = (step - warm) / (updates - warm)
    falling = {"linear": 1 - part, "cosine": 0.5 * (1 + math.cos(math.pi * part))}
    return 0.02 * (falling | {"inverse_sqrt": math.sqrt(warm / max(step, 1))}).get(kind, 1.0)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rate_of_each_update_is_that_of_the_closed_form(tmp_path: Path, kind: str, accumulation: int) -> None:
    made = train(tmp_path / "run", config(lr_scheduler_type=kind, gradient_accumulation_steps=accumulation))
    updates = 30 // accumulation
    assert made.rates == pytest.approx([closed_form(kind, step, updates) for step in range(updates)], rel=1e-12)
    logged = {record["step"]: record["learning_rate"] for record in made.metrics() if "loss" in record}
    assert logged == pytest.approx({step: closed_form(kind, step, updates) for step in logged}, rel=1e-12)


# Signals


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.usefixtures("restored_handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_of_the_running_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    settings = config(save_steps=None)
    straight = train(tmp_path / "straight", settings)
    write = checkpoint.save

    def hasty(*arguments: Any) -> checkpoint.Checkpoint:
        os.kill(os.getpid(), number)  # a second signal, in the middle of saving
        return write(*arguments)

    def interrupt(update: int) -> None:
        if update == 5:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", hasty)
        with pytest.raises(Interrupted, match="stopped at update 5; go on with --resume") as caught:
            train(tmp_path / "run", settings, at_update=interrupt)
    assert caught.value.code == code
    assert list(checkpoint.saved(tmp_path / "run" / "checkpoints")) == [5]
    assert_same_run(train(tmp_path / "run", settings, resume=True), straight)


# Costs


def files_below(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def test_an_estimate_leaves_nothing_on_disk_and_counts_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", quiet=True, dry_run=True)
    with run:
        loop = Trainer(Tagger(), config(), run, loss=summed_loss, seed=1)
        found = loop.estimate(toy_examples())
    lengths = toy_examples().lengths
    padded = sum(lengths[update].max() * len(update) for _, update in loop.plan(toy_examples()))
    assert (found.updates, found.tokens) == (30, padded)
    assert found.seconds > 0
    assert found.memory > 1e6
    assert files_below(tmp_path) == []


def test_an_estimate_of_a_model_that_diverges_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with Run(tmp_path / "run", quiet=True, dry_run=True) as run:
        loop = Trainer(Tagger(), config(), run, loss=lambda model, batch: summed_loss(model, batch) * math.nan, seed=1)
        with pytest.raises(UserError, match="loss is not finite"):
            loop.estimate(toy_examples())
    assert files_below(tmp_path) == []


def test_auto_is_replaced_before_training_and_refused_in_it() -> None:
    asked = TrainConfig(mixed_precision="no", use_cpu=True)
    resolved = trainer.resolve(asked, width=768, rows=10_000, classes=2)
    assert (resolved.learning_rate, resolved.num_train_epochs) == (2e-5, 3)
    with pytest.raises(TypeError, match="auto"):
        Trainer(Tagger(), asked, Run("unused", quiet=True), loss=summed_loss, seed=1)


def test_the_last_updates_are_in_metrics_jsonl_too(tmp_path: Path) -> None:
    made = train(tmp_path / "run", config(logging_steps=7, max_steps=9))
    assert [record["step"] for record in made.metrics() if "loss" in record] == [7, 9]


@pytest.mark.parametrize(("load_best", "step"), [(True, 10), (False, 30)])
def test_a_run_ends_with_the_best_or_with_the_last_weights(tmp_path: Path, load_best: bool, step: int) -> None:
    settings = config(load_best_model_at_end=load_best, save_total_limit=5)
    made = train(tmp_path / "run", settings, scores=[0.9, 0.8, 0.7], greater_is_better=True)
    found = checkpoint.Checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:06d}", step).tensors("model")
    assert all(torch.equal(tensor, found[name]) for name, tensor in made.final.items())
