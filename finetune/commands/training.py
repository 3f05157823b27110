"""Train: once, once for each seed, at rising numbers of labels, and on the shipped data of the demos."""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune import config as configuration
from finetune import hardware, label_budget, pretrained, processes
from finetune.commands.runs import recipe_module
from finetune.config import flatten, read_yaml, to_tree
from finetune.data import columns
from finetune.data.columns import LabelMap, labels_of_rows, read_splits
from finetune.data.shipped import shipped
from finetune.errors import Exit, UserError, did_you_mean
from finetune.evaluation import Predictions
from finetune.label_budget import Contender
from finetune.report import languages, page
from finetune.report.budget import draw_budget
from finetune.report.card import model_card
from finetune.report.examples import example_lines
from finetune.report.results import combine, run_baselines
from finetune.report.text_results import judging_of
from finetune.run import Run, environment, read_json
from finetune.terminal import count
from recipes import PRESETS, RECIPES

DEMOS = {  # name -> recipe, shipped data, its files
    "languages": ("mbert_crosslingual", "tickets", "{{language}}.{}.csv"),
    "summarization": ("summarization", "dialogues", "{}.jsonl"),
    "generation": ("gpt2_generation", "stories", "{}.txt"),
}
DEMO_LANGUAGES = ("en", "it", "de", "es", "fr")
OF_AN_UPDATE = (
    "train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.max_tokens_per_batch"
)  # fmt: skip
OF_THE_PROCESSES = (*OF_AN_UPDATE, "train.sharding")  # may be others where a run goes on in another number of them
NEVER = 1_000_000_000  # updates between evaluations, so that there is one alone, at the end


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe by its name, with its module."""

    name: str
    module: ModuleType


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a training command treats its folder; with `restarts` a launcher may start it anew."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    restarts: bool = False


def train(recipe: str | None, overrides: list[str], file: str | None, options: TrainOptions) -> dict[str, Any]:
    """Run a recipe into its output folder, once or once for each seed, and return results.json."""
    pretrained.quiet()
    path = _config_file(file)
    name = recipe or (configuration.yaml_value(path, "recipe") if path else None)
    if name is None:
        raise UserError(Exit.USAGE, f"which recipe? finetune train RECIPE ...: {', '.join(RECIPES)}")
    module = recipe_module(name)
    config, notes = configuration.load(module.Config, overrides, path)
    if processes.world() > 1 and not hasattr(config, "train"):
        raise UserError(Exit.USAGE, f"{name} works in one process; leave out --processes")
    if config.output_dir is None:
        if options.resume:
            raise UserError(Exit.USAGE, "--resume: which run? give output_dir=RUN")
        if options.restarts:
            raise UserError(Exit.USAGE, "--max-restarts: give output_dir=RUN, where what is started anew goes on")
        moment = processes.by_main(lambda: datetime.datetime.now().strftime("%Y%m%d-%H%M%S"))
        config = dataclasses.replace(config, output_dir=f"runs/{name}-{moment}")
    if config.seeds and len(set(config.seeds)) < len(config.seeds):
        raise UserError(Exit.USAGE, f"seeds={config.seeds}: a seed is given twice")
    if processes.is_restart_of(_environment(Path(config.output_dir)).get("launch")):
        options = dataclasses.replace(options, resume=True, overwrite=False)
    if options.resume:
        config = _as_before(name, config, Path(config.output_dir))
    place = {"resume": options.resume, "overwrite": options.overwrite, "dry_run": options.dry_run}
    with Run(config.output_dir, **place, crew=processes.crew()) as run:
        for note in notes:
            run.say("note", note)
        budgets = _plan_budgets(config, run) if hasattr(config, "label_budget") and config.label_budget else None
        if config.seeds and not options.dry_run:
            results = _train_seeds(Recipe(name, module), config, run)
        else:
            results = module.train(config, run)
        if budgets is not None and not options.dry_run:
            results = _train_budgets(Recipe(name, module), config, budgets, run, results)
        if not options.dry_run and run.crew.is_main:
            run.write_report(page.run_page(run))
        return {"output_dir": str(config.output_dir), **results}


def demo(output_dir: str, options: TrainOptions, kind: str = "languages") -> dict[str, Any]:
    """Train on shipped data: labels in five languages, summaries of dialogues, or stories that GPT-2 goes on with."""
    recipe, folder, file = DEMOS[kind]
    data, place = shipped(folder), f"output_dir={output_dir}"
    files = [f"data.{name}={data / file.format(name)}" for name in ("train", "validation", "test")]
    if kind != "languages":
        return train(recipe, [*files, place], str(PRESETS / f"demo_{kind}.yaml"), options)
    languages = ["train_languages=[en]", f"test_languages=[{','.join(DEMO_LANGUAGES)}]"]
    return train(recipe, [*files, *languages, "model=mini-mbert", place], None, options)


def examples(output_dir: str, results: dict[str, Any]) -> list[str]:
    """Return some texts that a demo wrote as lines for a person; none of one that labels them."""
    return [] if "matrix" in results else example_lines(Run.open(output_dir), results)


def _config_file(file: str | None) -> Path | None:
    if file is None or Path(file).suffix in {".yaml", ".yml"} or Path(file).exists():
        return Path(file) if file else None
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if file not in presets:
        known = f"presets: {', '.join(presets)}"
        raise UserError(
            Exit.NO_INPUT, f"--config {file}: no such file or preset{did_you_mean(file, presets)} ({known})"
        )
    return presets[file]


def _as_before(recipe: str, config: Any, folder: Path) -> Any:
    """Return the configuration of a run to resume; `auto` takes what it stood for, any other change is refused."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return config
    began_as = configuration.yaml_value(stored, "recipe")
    if began_as != recipe:
        raise UserError(Exit.USAGE, f"--resume: the run in {folder} began with the recipe {began_as}, not {recipe}")
    before = {path: value for path, (value, _) in read_yaml(stored).items() if path not in {"recipe", "output_dir"}}
    now = flatten(to_tree(config))
    if (began_with := _environment(folder).get("processes", 1)) != processes.world():
        _check_same_updates(before, began_with, now)
        before |= {path: now[path] for path in OF_THE_PROCESSES}
    taken = {path: before.get(path) if now[path] == "auto" else now[path] for path in before if path in now}
    changed = [f"{path}: {before[path]} -> {value}" for path, value in taken.items() if value != before[path]]
    if changed:
        raise UserError(Exit.USAGE, "--resume with other settings than the run began with:\n" + "\n".join(changed[:2]))
    return configuration.build(type(config), {**before, "output_dir": now["output_dir"]}, {})


def _check_same_updates(before: Mapping[str, Any], began_with: int, now: Mapping[str, Any]) -> None:
    """Refuse another number of processes (2) unless an update has as many examples, and tokens, as it had."""

    def update(settings: Mapping[str, Any], count: int) -> tuple[list[int | None], str]:
        rows, steps, tokens = (settings[path] for path in OF_AN_UPDATE)
        told = f"{count} {'process' if count == 1 else 'processes'} x {steps} x {rows}"
        return [count * steps * rows, None if tokens is None else count * steps * tokens], told

    (had, told), (has, asked) = update(before, began_with), update(now, processes.world())
    if had != has:
        what = f"--resume: an update of the run is {told} examples, and would be {asked}"
        raise UserError(Exit.USAGE, f"{what}\ngive --processes {began_with}, or settings with the same product")


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return dict(read_json(path)) if path.is_file() else {}


def _train_seeds(recipe: Recipe, config: Any, run: Run) -> dict[str, Any]:
    run.start({"recipe": recipe.name, **to_tree(config)}, environment(config.seeds[0], hardware.describe(), {}))
    parts: dict[int, Run] = {}
    for seed in config.seeds:
        folder = run.folder / f"seed-{seed}"
        if run.resume and (folder / "results.json").is_file():
            run.say("seed", f"{seed}: ended before, kept")
            parts[seed] = Run.open(folder)
            continue
        run.say("seed", str(seed))
        of_seed = dataclasses.replace(config, data=_shared_data(config), seed=seed, seeds=None, output_dir=str(folder))
        of_seed = dataclasses.replace(of_seed, label_budget=[]) if hasattr(config, "label_budget") else of_seed
        of_seed = _as_before(recipe.name, of_seed, folder) if run.resume else of_seed
        with run.part(folder) as part:
            recipe.module.train(of_seed, part)
            parts[seed] = part
    first = parts[config.seeds[0]].results()
    join = languages.combine if "matrix" in first else combine
    results = join(run, parts, judging_of(first))
    run.metric({"seeds": config.seeds, "scores": results["scores"]})
    run.write_card(model_card(results, to_tree(config), run.environment()))
    return results


def _plan_budgets(config: Any, run: Run) -> label_budget.Plan:
    """Check label_budget against the training rows, and say what it will cost."""
    seeds = _all_seeds(config)
    train_rows = read_splits(_shared_data(config), seed=seeds[0])["train"]
    planned = label_budget.plan(config.label_budget, labels_of_rows(train_rows, config.data.multi_label))
    for rows, reason in planned.left_out.items():
        run.say("budget", f"{rows:,} rows are left out: {reason}")
    trainings = count(len(planned.budgets) * len(seeds), "more training")
    run.say("budget", f"{', '.join(f'{rows:,}' for rows in planned.budgets)} rows: {trainings}, after the run itself")
    return planned


def _train_budgets(
    recipe: Recipe, config: Any, planned: label_budget.Plan, run: Run, results: dict[str, Any]
) -> dict[str, Any]:
    """Train again on each budget with each seed, TF-IDF beside it, and add the curves to the results of the run.

    A training ends with its last weights: choosing them on validation would use labels beyond the budget. What it
    leaves is its scores and predictions; one that ended before is kept.
    """
    judged, seeds = results["diagnostics"]["judged_on"], _all_seeds(config)

    def fine_tuned(rows: int, seed: int) -> Predictions:
        folder = run.budget_folder(rows, seed)
        if not (folder / "results.json").is_file():
            run.say("budget", f"{rows:,} rows, seed {seed}")
            _train_budget(recipe, config, rows, seed, run)
        part = Run.open(folder)
        found: Predictions = judging_of(part.results()).read(part.read_predictions(judged))
        return found

    def cheap(rows: int, seed: int) -> Predictions:
        splits = read_splits(_budget_data(config, rows), seed=seed)
        labels = LabelMap.learn(splits["train"], config.data.multi_label)
        targets = {name: labels.encode(split) for name, split in splits.items()}
        found: Predictions = run_baselines(splits, targets, labels, seed)[0].predictions[judged]
        return found

    systems = Contender(results["diagnostics"]["system"], fine_tuned), Contender("TF-IDF", cheap)
    found = label_budget.measure(planned, seeds, *systems)
    results["diagnostics"]["budget"] = found
    if run.crew.is_main:
        draw_budget(found, run.picture_file("label_budget"))
    run.write_results(results)
    run.write_card(model_card(results, to_tree(config), run.environment()))
    return results


def _train_budget(recipe: Recipe, config: Any, rows: int, seed: int, run: Run) -> None:
    folder = run.budget_folder(rows, seed)
    settings = dataclasses.replace(config.train, load_best_model_at_end=False, eval_steps=NEVER)
    own = dataclasses.replace(config, data=_budget_data(config, rows), train=settings, seed=seed, seeds=None)
    own = dataclasses.replace(own, label_budget=[], baseline="none", output_dir=str(folder))
    own = _as_before(recipe.name, own, folder) if run.resume else own
    with run.part(folder) as part:
        recipe.module.train(own, part)
        part.drop_weights()


def _shared_data(config: Any) -> Any:
    """Return the settings of data with which all seeds hold out the same rows, or they could not be scored together."""
    held = columns.seed_of_validation(config.data, _all_seeds(config)[0])
    return dataclasses.replace(config.data, validation_seed=held)


def _budget_data(config: Any, rows: int) -> Any:
    """Return the settings of data for a budget; every budget and seed holds out the same rows for validation."""
    return dataclasses.replace(_shared_data(config), train_rows=rows)


def _all_seeds(config: Any) -> list[int]:
    return list(config.seeds or [config.seed])
