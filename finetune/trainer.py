"""The training loop, on accelerate.Accelerator: summed losses divided once, exact resume, the best epoch kept."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field
from torch import Tensor, nn

from finetune import adapters, checkpoint, hardware, memory, optim, processes, terminal
from finetune.config import configclass, field
from finetune.data.batching import Batch, Examples, Order, Strategy, evaluation_batches, padded_tokens, share
from finetune.errors import Exit, Interrupted, UserError
from finetune.run import Run

SECONDS_BETWEEN_SAVES = 60.0
UPDATES_OF_AN_ESTIMATE = 6
TOKENS_OF_A_SIDE = 64  # a batch for scoring holds per_device_eval_batch_size pairs of twice that, or fewer longer ones
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
LossFunction = Callable[[nn.Module, Batch], Tensor]
EvaluateFunction = Callable[[], dict[str, float]]


@configclass
class TrainConfig:
    """Settings of the loop, named as in transformers.TrainingArguments."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = field("auto", "peak rate; auto: by model width")
    num_train_epochs: Annotated[float, Field(gt=0)] | Literal["auto"] = field(
        "auto", "passes; auto: by rows and classes"
    )
    max_steps: Positive | Literal[-1] = field(-1, "stop after so many updates; -1: after num_train_epochs")
    per_device_train_batch_size: Positive = field(32, "examples of a micro-batch")
    per_device_eval_batch_size: Positive = field(64, "examples of a batch in scoring, at most")
    gradient_accumulation_steps: Positive = field(1, "micro-batches of an update")
    max_tokens_per_batch: Positive | None = field(
        None, "padded tokens of a micro-batch, at most; null: no token budget"
    )
    train_sampling_strategy: Strategy = field("group_by_length", "group_by_length: similar lengths share an update")
    lr_scheduler_type: optim.Schedule = field(
        "linear", "course of the rate after warm-up; noam: learning_rate is a factor (Vaswani et al. 2017)"
    )
    warmup_ratio: Share = field(0.1, "share of the updates in which the rate rises")
    weight_decay: Annotated[float, Field(ge=0)] = field(0.01, "AdamW's decay; biases and norms have none")
    adam_beta1: Share = field(0.9, "AdamW's decay of the mean of gradients")
    adam_beta2: Share = field(0.999, "AdamW's decay of the mean of squared gradients")
    adam_epsilon: Annotated[float, Field(gt=0)] = field(1e-8, "AdamW's epsilon")
    max_grad_norm: Annotated[float, Field(ge=0)] = field(1.0, "clip the gradient to this norm; 0: no clipping")
    metric_for_best_model: str = field("loss", "validation score that chooses the checkpoint to keep")
    load_best_model_at_end: bool = field(
        True, "end with the weights of the best validation score; false: with the last ones, e.g. few noisy rows"
    )
    early_stopping_patience: Positive | None = field(None, "stop after so many evaluations without a better score")
    eval_steps: Positive | None = field(None, "updates between evaluations; null: each epoch")
    save_steps: Positive | None = field(
        None, "updates between checkpoints; null: with the best score, or once a minute"
    )
    save_total_limit: Positive = field(1, "latest checkpoints kept beside the best")
    logging_steps: Positive = field(10, "updates between records in metrics.jsonl")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = field(
        "auto", "auto: bf16 where the hardware multiplies it"
    )
    gradient_checkpointing: bool = field(
        False, "keep what enters each layer and work out the rest again in backward: less memory, more time"
    )
    sharding: Literal["none", "fsdp"] = field(
        "none", "fsdp: each of several processes holds a part of weights, gradients and moments; none: all of them"
    )
    use_cpu: bool = field(False, "train on the CPU even where there is a GPU")


@dataclasses.dataclass
class Progress:
    """The numbers of a run that a checkpoint carries."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    items: int = 0
    tokens: int = 0
    window: list[tuple[float, int, float]] = dataclasses.field(default_factory=list)
    """Summed loss, items and gradient norm of each update since the last record in metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will cost, extrapolated by padded tokens from a few measured updates; memory and disk in bytes."""

    updates: int
    tokens: int
    seconds: float
    memory: int
    disk: int
    held: tuple[int, int] | None
    """Bytes of weights, gradients and moments: of a process where they are sharded, and where they are not."""


class Trainer:
    """Train a model with two hooks: `loss(model, batch)`, the SUM over the batch's items, and `evaluate()`.

    `width` is the model's hidden size, which the schedule `noam` needs.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        run: Run,
        *,
        loss: LossFunction,
        seed: int,
        layer_decay: float = 1.0,
        width: int | None = None,
    ) -> None:
        if not isinstance(config.learning_rate, float):
            raise TypeError("learning_rate=auto must be resolved before training")
        if config.sharding == "fsdp":
            memory.check_sharding(config.mixed_precision)
        self.config, self.run, self.loss, self.seed, self.width = config, run, loss, seed, width
        self.accelerator = accelerator(config)
        if config.gradient_checkpointing:
            memory.recompute_activations(model)
        self._shards: memory.Shards | None = None
        if config.sharding == "fsdp":
            self._shards = memory.Shards(model, self.accelerator.device)
        trained = model if self._shards is None else self._shards.parts
        betas = (config.adam_beta1, config.adam_beta2)
        groups = optim.parameter_groups(
            trained, config.learning_rate, config.weight_decay, layer_decay, adapters.head_times(model)
        )
        optimizer = optim.adamw(groups, betas, config.adam_epsilon)
        if self._shards is not None:  # as `prepare`, without DDP; Accelerate's own FSDP plugin does nothing on CPUs
            self.model = self.accelerator.prepare_model(trained, device_placement=False, evaluation_mode=True)
            self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        else:
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
            if processes.world() > 1:
                self.model.broadcast_buffers = False  # tables of positions and the like, the same in all
        self.progress = Progress()
        self.estimated_seconds: float | None = None
        self._after_first: tuple[int, float] | None = None
        self._signal: Exit | None = None
        self._saved_at = time.monotonic()

    def fit(self, examples: Examples, evaluate: EvaluateFunction, *, greater_is_better: bool = True) -> Progress:
        """Train to the end or to early stopping, then put the best checkpoint's weights into the model.

        Raises UserError 70 where the loss is not finite, Interrupted after a signal, with a checkpoint on disk.
        """
        plan = self.plan(examples)
        scheduler = self._scheduler(len(plan))
        if self._shards is not None:
            self._shards.release()
        self._restore(scheduler)
        self.model.train()
        with self._signals(), terminal.progress(processes.is_main()) as bar:
            task = bar.add_task("", total=len(plan), completed=self.progress.step, note="")
            ended = self._patience_lost()  # a run that had stopped early and is resumed
            for step in range(self.progress.step, self.progress.step if ended else len(plan)):
                started = time.perf_counter()
                epoch, update = plan[step]
                self._update(step, update, examples)
                scheduler.step()
                self._count(step + 1, examples, update, time.perf_counter() - started)
                self._estimate_rest(plan, examples)
                self._tell(bar, task, plan, epoch)
                self._log(epoch, float(scheduler.get_last_lr()[0]), last=step + 1 == len(plan))
                if self._evaluation_due(plan):
                    self._evaluate(evaluate, epoch, greater_is_better)
                stopping = self._patience_lost()
                if stopping and self.progress.window:  # what the plan's end would have logged
                    self._log(epoch, float(scheduler.get_last_lr()[0]), last=True)
                interrupted, overdue = self._agree()
                if interrupted is not None or overdue or self._save_due(last=stopping or step + 1 == len(plan)):
                    self._save()
                if interrupted is not None:
                    raise Interrupted(interrupted, f"stopped at update {step + 1}; go on with --resume")
                if stopping:
                    break
        if self._shards is not None:
            self._shards.gather()
        self._load_best()
        return self.progress

    def plan(self, examples: Examples) -> list[tuple[int, np.ndarray]]:
        """Return (epoch, example numbers) of every update of the run; a function of the seed alone."""
        config = self.config
        micro_batches = config.gradient_accumulation_steps * self.accelerator.num_processes
        tokens = config.max_tokens_per_batch
        order = Order(
            self.seed,
            config.per_device_train_batch_size * micro_batches,
            config.train_sampling_strategy,
            tokens * micro_batches if tokens is not None else None,
        )
        epochs = float(config.num_train_epochs)
        plan: list[tuple[int, np.ndarray]] = []
        for epoch in range(math.ceil(epochs) if config.max_steps < 0 else config.max_steps):
            updates = order.epoch(examples.lengths, epoch, examples.groups)
            part = min(1.0, epochs - epoch) if config.max_steps < 0 else 1.0
            plan.extend((epoch, update) for update in updates[: math.ceil(part * len(updates))])
            if 0 <= config.max_steps <= len(plan):
                return plan[: config.max_steps]
        return plan

    def estimate(self, examples: Examples, updates: int = 3) -> Estimate:
        """Measure real updates, after one to warm up, and extrapolate; the model is changed, nothing is written."""
        plan = self.plan(examples)
        costs = np.array([self._padded_tokens(update, examples.lengths) for _, update in plan])
        by_cost = np.argsort(costs)
        if self._shards is not None:
            self._shards.release()
        chosen = [by_cost[int(share * (len(plan) - 1))] for share in np.linspace(0.25, 0.75, updates)]
        self.model.train()
        self._update(0, plan[by_cost[-1]][1], examples)  # the largest first: the peak of memory
        started = time.perf_counter()
        for index in chosen:
            self._update(0, plan[index][1], examples)
        rate = costs[chosen].sum() / (time.perf_counter() - started)
        total = int(costs.sum())
        peak = hardware.memory_peak(self.config.use_cpu)
        if self.accelerator.device.type == "cpu":
            peak *= processes.on_this_machine()  # which share it
        held = None
        if self._shards is not None:
            held = self._shards.bytes_held()
            self._shards.gather()  # its size is told, too
        return Estimate(len(plan), total, total / rate, peak, self._disk(), held)

    def _disk(self) -> int:
        """Return the bytes of model/ and of the checkpoints, the best one among them, with two moments each, in fp32.

        Of a model with an adapter only what is trained is saved.
        """
        model = self.unwrapped()
        saved = sum(tensor.numel() for tensor in _unique_tensors(model).values())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return 4 * (saved + (1 + self.config.save_total_limit) * (saved + 2 * trained))

    def unwrapped(self) -> nn.Module:
        """Return the model without the wrappers of accelerate, and whole; empty while its parts are trained."""
        if self._shards is not None:
            return self._shards.whole
        model: nn.Module = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return model

    def _trained(self) -> nn.Module:
        """Return what is trained without the wrappers of accelerate: the model, or its parts."""
        return self.unwrapped() if self._shards is None else self._shards.parts

    # One update

    def _update(self, step: int, update: np.ndarray, examples: Examples) -> None:
        """Make one optimizer step: the summed losses of all micro-batches over the number of their items."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(
            _step_seed(self.seed, step, rank)
        )  # no random state to save: dropout is a function of the step
        accumulation = self.config.gradient_accumulation_steps
        parts = share(update, examples.lengths, rank, world, accumulation)
        # With fewer rows than others a process works on one of theirs, without weight: in backward all must meet, and
        # with parts of a model in each micro-batch. The first process has most of them.
        most = 1 if self._shards is None else len(share(update, examples.lengths, 0, world, accumulation))
        idle = [update[:1]] * (most - len(parts))
        weights = [1.0] * len(parts) + [0.0] * len(idle)
        batches = [examples.collate(part) for part in (*parts, *idle)]
        weighted = [weight * batch.items for weight, batch in zip(weights, batches, strict=True)]
        items = int(processes.summed(sum(weighted))[0])
        losses = []
        for number, (weight, batch) in enumerate(zip(weights, batches, strict=True), 1):
            with self._synchronised(last=number == len(batches)):
                loss = self.loss(self.model, batch) * (weight * world / items)  # DDP averages over processes: undo it
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        norm = self._clip()
        total = processes.summed(float(torch.stack(losses).sum()) / world)[0]
        if not math.isfinite(total) or not math.isfinite(norm):
            self._diverged(step, total, [examples.name(int(row)) for row in update])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.window.append((total * items, items, norm))

    @contextmanager
    def _synchronised(self, *, last: bool) -> Iterator[None]:
        if last or self._shards is not None:  # gradients that wait for each other would be whole ones
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def _clip(self) -> float:
        if self.config.max_grad_norm == 0:
            return 0.0
        norm = memory.whole_of(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        return 0.0 if self.config.mixed_precision == "fp16" else float(norm)  # fp16 overflows are the scaler's business

    def _diverged(self, step: int, loss: float, names: list[str]) -> None:
        self.run.metric({"step": step + 1, "loss": loss, "examples": names})
        what = "loss is not finite" if not math.isfinite(loss) else "gradient is not finite"
        raise UserError(
            Exit.DIVERGED,
            f"{what} ({loss}) at update {step + 1} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})\n"
            f"earlier checkpoints stay as they are; try a lower learning_rate than {self.config.learning_rate:g}",
        )

    # Between updates

    def _count(self, step: int, examples: Examples, update: np.ndarray, seconds: float) -> None:
        progress = self.progress
        progress.step = step
        progress.seconds += seconds
        progress.items += self.progress.window[-1][1]
        progress.tokens += int(examples.lengths[update].sum())
        self.run.updated = True

    def _tell(self, bar: Any, task: Any, plan: list[tuple[int, np.ndarray]], epoch: int) -> None:
        progress = self.progress
        loss, items, _ = progress.window[-1]
        rates = f"{progress.items / progress.seconds:.0f} items/s · {progress.tokens / progress.seconds:,.0f} tokens/s"
        where = f"epoch {epoch + 1}/{plan[-1][0] + 1}"
        bar.update(task, completed=progress.step, description=where, note=f"loss {loss / items:.3f} · {rates}")

    def _estimate_rest(self, plan: list[tuple[int, np.ndarray]], examples: Examples) -> None:
        """Extrapolate the seconds of the run from its first updates (the very first warms up), by tokens."""
        progress = self.progress
        if progress.step == 1:
            self._after_first = (progress.tokens, progress.seconds)
        elif progress.step == UPDATES_OF_AN_ESTIMATE and self._after_first is not None:
            tokens, seconds = self._after_first
            total = sum(int(examples.lengths[update].sum()) for _, update in plan)
            rate = (progress.tokens - tokens) / (progress.seconds - seconds)
            self.estimated_seconds = seconds + (total - tokens) / rate

    def _log(self, epoch: int, learning_rate: float, *, last: bool) -> None:
        if self.progress.step % self.config.logging_steps and not last:
            return
        losses, items, norms = (sum(column) for column in zip(*self.progress.window, strict=True))
        record = {"step": self.progress.step, "epoch": epoch, "loss": losses / items, "learning_rate": learning_rate}
        timing = {"items_per_second": self.progress.items / self.progress.seconds, "seconds": self.progress.seconds}
        self.run.metric(record | {"grad_norm": norms / len(self.progress.window)} | timing)
        self.progress.window = []

    def _evaluation_due(self, plan: list[tuple[int, np.ndarray]]) -> bool:
        step = self.progress.step
        if step == len(plan):
            return True
        if self.config.eval_steps is not None:
            return step % self.config.eval_steps == 0
        return plan[step][0] != plan[step - 1][0]

    def _evaluate(self, evaluate: EvaluateFunction, epoch: int, greater_is_better: bool) -> None:
        with nullcontext() if self._shards is None else self._shards.gathered():
            scores = evaluate()
        self.model.train()
        self.run.metric({"step": self.progress.step, "epoch": epoch, "validation": scores})
        name, progress = self.config.metric_for_best_model, self.progress
        score, best = scores[name], progress.best_score
        better = not math.isnan(score) and (best is None or (score > best if greater_is_better else score < best))
        earlier = "" if best is None else f"{best:.3f} → "
        self.run.say(f"epoch {epoch + 1}", f"validation {name} {earlier}{score:.3f}{' (best)' if better else ''}")
        if better:
            progress.best_score, progress.best_step, progress.evaluations_without_gain = score, progress.step, 0
        else:
            progress.evaluations_without_gain += 1

    def _patience_lost(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_gain >= patience

    # Checkpoints

    def _agree(self) -> tuple[Exit | None, bool]:
        """Return what all processes do after this update: leave for a signal to any of them, save by the main's clock.

        Signals and clocks are not the same everywhere, and a process that goes on alone waits for ever.
        """
        overdue = time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES and processes.is_main()
        ends = [self._signal == code for code in (Exit.TERMINATED, Exit.INTERRUPTED)]
        terminated, interrupted, due = processes.summed(*ends, self.config.save_steps is None and overdue)
        stop = Exit.TERMINATED if terminated else Exit.INTERRUPTED if interrupted else None
        return stop, bool(due)

    def _save_due(self, *, last: bool) -> bool:
        if last or self.progress.best_step == self.progress.step:
            return True
        return self.config.save_steps is not None and self.progress.step % self.config.save_steps == 0

    def _save(self) -> None:
        if processes.is_main() or self._shards is not None:
            optimizer, numbers = checkpoint.pack_optimizer(self.optimizer.optimizer)
            tensors = {"model": _unique_tensors(self._trained()), "optimizer": optimizer}
            state = {"progress": dataclasses.asdict(self.progress), "optimizer": numbers}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            save = checkpoint.save if self._shards is None else checkpoint.save_parts
            save(self.run.checkpoints, self.progress.step, tensors, state)
        if processes.is_main():
            # A later step is a damaged one that was skipped on resume: it goes, and pushes no good one out.
            steps = sorted(step for step in checkpoint.saved(self.run.checkpoints) if step <= self.progress.step)
            checkpoint.prune(self.run.checkpoints, {self.progress.best_step, *steps[-self.config.save_total_limit :]})
        processes.wait()
        self._saved_at = time.monotonic()

    def _restore(self, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
        if not self.run.resume:
            return
        found, warnings = processes.by_main(lambda: checkpoint.newest(self.run.checkpoints))
        for warning in warnings:
            self.run.say("warning", f"{warning}; the checkpoint before it is used")
        if found is None:
            self.run.say("resume", "no checkpoint yet: training starts from the beginning")
            self.run.rewind_metrics(0)
            return
        state = found.state()
        self.progress = Progress(**state["progress"])
        _load_tensors(self._trained(), found)
        moments = found.tensors("optimizer") if self._shards is None else self._moments_of_parts(found)
        checkpoint.unpack_optimizer(self.optimizer.optimizer, moments, state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        scheduler.last_epoch = self.progress.step  # the rates themselves came back with the optimizer's groups
        self.run.rewind_metrics(self.progress.step)
        self.run.updated = True
        self.run.say("resume", f"from update {self.progress.step}")

    def _moments_of_parts(self, found: checkpoint.Checkpoint) -> dict[str, Tensor]:
        """Read this process's parts of a checkpoint's moments; what is not parted, as their steps, is whole."""
        trained = [parameter.detach() for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {
            name: torch.zeros_like(trained[int(name.partition(".")[0])]) if shape else torch.zeros(())
            for name, shape in found.shapes("optimizer").items()
        }
        found.read_parts("optimizer", moments)
        return moments

    def _load_best(self) -> None:
        if not self.config.load_best_model_at_end or self.progress.best_step in {0, self.progress.step}:
            return
        best = self.run.checkpoints / f"step-{self.progress.best_step:06d}"
        fault = checkpoint.verify(best)
        if fault is not None:
            raise UserError(Exit.IO_FAILED, f"{best} is damaged ({fault}): the best weights are lost; train again")
        _load_tensors(self.unwrapped(), checkpoint.Checkpoint(best, self.progress.best_step))

    # Helpers

    def _scheduler(self, updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        warmup = math.ceil(self.config.warmup_ratio * updates)
        # Not prepared: a prepared scheduler steps once per process (accelerate 1.15).
        return optim.schedule(
            self.config.lr_scheduler_type, self.optimizer.optimizer, warmup=warmup, updates=updates, width=self.width
        )

    def _padded_tokens(self, update: np.ndarray, lengths: np.ndarray) -> int:
        world, accumulation = self.accelerator.num_processes, self.config.gradient_accumulation_steps
        parts = [part for rank in range(world) for part in share(update, lengths, rank, world, accumulation)]
        return sum(padded_tokens(lengths[part]) for part in parts)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGTERM and SIGINT; the loop saves and leaves at the end of the update."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = Exit.TERMINATED if number == signal.SIGTERM else Exit.INTERRUPTED

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread, e.g. in a notebook server: the owner of the signals decides
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def resolve(config: TrainConfig, *, width: int, rows: int, classes: int) -> TrainConfig:
    """Return the settings with every `auto` replaced: rate and epochs by model and data, precision by hardware."""
    rate, epochs = config.learning_rate, config.num_train_epochs
    return dataclasses.replace(
        config,
        learning_rate=optim.auto_learning_rate(width, classes) if rate == "auto" else rate,
        num_train_epochs=(optim.auto_epochs(rows, update_size(config), classes, width) if epochs == "auto" else epochs),
        mixed_precision=hardware.choose_precision(config.mixed_precision, config.use_cpu).value,
    )


@torch.inference_mode()
def mean_loss(model: nn.Module, loss: LossFunction, examples: Examples, config: TrainConfig) -> float:
    """Return the loss of an item, over all examples, in eval mode."""
    sides = 1 if examples.lengths.ndim == 1 else examples.lengths.shape[1]
    size = config.per_device_eval_batch_size

    def score(chosen: np.ndarray) -> tuple[float, int]:
        batch = examples.collate(chosen)
        return float(loss(model, batch)), batch.items

    model.eval()
    with hardware.autocast(next(model.parameters()).device, config.mixed_precision):
        found = processes.shared(
            evaluation_batches(examples.lengths, size, size * sides * TOKENS_OF_A_SIDE), score
        )  # fmt: skip
    return sum(total for total, _ in found) / sum(items for _, items in found)


def update_size(config: TrainConfig) -> int:
    """Return the examples of an update, of all processes together."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * processes.world()


def accelerator(config: TrainConfig) -> Accelerator:
    """Return the Accelerator of a run; a second run in one process may use another precision.

    Raises UserError (2) where there are more processes than GPUs for them.
    """
    AcceleratorState._reset_state()
    use_cpu = config.use_cpu or not torch.cuda.is_available()
    if not use_cpu and processes.on_this_machine() > max(1, torch.cuda.device_count()):
        have = terminal.count(torch.cuda.device_count(), "GPU")
        what = f"{processes.on_this_machine()} processes for {have}"
        raise UserError(Exit.USAGE, f"{what}; give one process for each, or train.use_cpu=true")
    # A checkpoint may have parts that its loss does not read, and pretraining changes its loss from update to update.
    wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=use_cpu, mixed_precision=config.mixed_precision, kwargs_handlers=[wrapping])


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors, each once (tied embeddings have two names).

    Of one with an adapter only what is trained: the rest comes from its base.
    """
    adapted = adapters.is_adapted(model)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad or not adapted}
    if not adapted:
        names |= {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def _load_tensors(model: nn.Module, found: checkpoint.Checkpoint) -> None:
    """Put a checkpoint's weights into the model; raises UserError (2) where they are of another shape."""
    own, shapes = _unique_tensors(model), found.shapes("model")
    strange = sorted(own.keys() ^ shapes.keys()) or [name for name in own if own[name].shape != shapes[name]]
    if strange:
        what = f"{found.folder}: the checkpoint is of another model (they differ in {', '.join(strange[:3])})"
        raise UserError(Exit.USAGE, f"{what}\ngive the settings that the run began with, or another output_dir")
    if memory.is_parted(model):
        found.read_parts("model", own)
    else:
        model.load_state_dict(found.tensors("model"), strict=False)
