"""The command line: what it imports, prints and promises in its help."""

import inspect
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import types
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from calling import FAST, call, done, private_cache, spawn, toy_files, train_toy
from pydantic import TypeAdapter

from finetune import cli, launch
from finetune.commands import checking, comparing, explaining, exporting, generating, runs, scoring, serving, training
from finetune.config import load, read_yaml, settings
from finetune.report.explanation import Shown
from recipes import RECIPES, bert_classification

HEAVY = ("torch", "transformers", "datasets", "sklearn", "pydantic", "matplotlib")
LIBRARY_NOISE = ("Warning", "warning:", "it/s]", "Some weights", "newly initialized", "huggingface/tokenizers", "\x1b[")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with private_cache(folder):
        return train_toy(folder, tiny_model)


def documented() -> list[str]:
    """Return every command line that a help text shows."""
    texts = [cli.HELP, *(inspect.getdoc(function) or "" for _, function in inspect.getmembers(cli, inspect.isfunction))]
    return [
        line.strip() for text in texts for line in text.splitlines() if re.match(r"\s*(echo .*\| )?finetune ", line)
    ]


def children_seconds() -> float:
    """Return the user CPU seconds of all child processes that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


# Help


def test_help_answers_within_four_tenths_of_a_second_of_cpu() -> None:
    spawn("--help")  # compiles
    spent = []
    for _ in range(3):
        before = children_seconds()
        outcome = spawn("--help")
        spent.append(children_seconds() - before)
        assert outcome.returncode == 0
        assert "Commands:" in outcome.stdout
    assert min(spent) < 0.4


@pytest.mark.parametrize(("module", "heavy"), [("cli", HEAVY), ("commands.checking", ("torch", "transformers"))])
def test_what_needs_no_model_imports_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, finetune.{module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_documented_command_line_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[str] = []

    def note(name: str) -> Callable[..., dict[str, object]]:
        def noted(*given: object, **named: object) -> dict[str, object]:
            called.append(name)
            return {}

        return noted

    noted = {training: ("train", "demo"), scoring: ("predict",), comparing: ("compare",), checking: ("check",)}
    for room, names in noted.items():
        for name in names:
            monkeypatch.setattr(room, name, note(name))
    for name in ("explain", "show_attention", "show_word"):
        monkeypatch.setattr(explaining, name, lambda *given, **named: Shown({}, lambda coloured: []))
    monkeypatch.setattr(
        scoring, "evaluate", lambda *given, **named: {"rows": 1, "left_out": 0, "scores": {}, "languages": {}}
    )
    monkeypatch.setattr(generating, "generate", lambda *given: [{"prompt": "a", "between": "", "texts": [" b"]}])
    monkeypatch.setattr(generating, "quality", lambda *given: {"figures": {}})
    found = {"languages": {}, "comparisons": {}, "diagnostics": {"system": "", "trained_on": "", "consistency": {}}}
    monkeypatch.setattr(scoring, "crosslingual", lambda *given, **named: found)
    merged = {"rows": 1, "largest_difference": 0.0, "tolerance": 1e-4, "bytes": 1, "private": True, "address": ""}
    monkeypatch.setattr(exporting, "export_model", lambda *given, **named: merged)
    monkeypatch.setattr(exporting, "export_weights", lambda *given: {"step": 1, "bytes": 1})
    monkeypatch.setattr(comparing, "report", lambda *given, **named: Path("a.html"))
    served = types.SimpleNamespace(url="http://127.0.0.1/", is_private=True, run=lambda: None)
    monkeypatch.setattr(serving, "playground", lambda *given: served)
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    launched: list[tuple[int, int]] = []

    def launching(count: int, restarts: int, arguments: Sequence[str]) -> int:
        launched.append((count, restarts))
        return 0

    monkeypatch.setattr(launch, "launch", launching)
    monkeypatch.chdir(tmp_path)
    lines = documented()
    assert len(lines) >= 12
    for line in lines:
        words = shlex.split(re.split(r"\s{3,}|\s>\s", line.split("| ")[-1])[0])
        assert words[0] == "finetune"
        outcome = call(*words[1:], stdin="a text\n")
        assert outcome.code == 0, (line, outcome.err)
    assert set(called) >= {"train", "predict", "compare", "check", "demo"}
    assert launched == [(2, 0)]


def test_every_command_documents_a_line_that_uses_it() -> None:
    first = {tuple(line.split("finetune ")[-1].split()[:2]) for line in documented()}
    names = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    for name in names - {"version"}:
        assert any(words[0] == name for words in first), name
    for command in cli.recipes_app.registered_commands:
        assert ("recipes", command.name) in first


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["evaluate"],
        ["crosslingual"],
        ["predict"],
        ["explain"],
        ["compare"],
        ["check"],
        ["doctor"],
        ["recipes", "show"],
    ],
)
def test_every_command_has_help_and_json(arguments: list[str]) -> None:
    shown = done(*arguments, "--help").out
    assert "--json" in shown
    assert "finetune " + " ".join(arguments) in shown
    examples = [
        line.strip() for line in getattr(cli, "_".join(arguments)).__doc__.splitlines() if "    finetune" in line
    ]
    assert set(examples) <= {line.strip() for line in shown.splitlines()}  # a line each, to be copied


def test_the_first_help_keeps_its_examples_a_line_each() -> None:
    shown = {line.strip() for line in done("--help").out.splitlines()}
    examples = [line for line in cli.HELP.splitlines() if line.startswith("finetune ")]
    assert len(examples) > 2
    assert set(examples) <= shown


# Recipes


def test_recipes_list_names_every_recipe() -> None:
    shown = done("recipes", "list").out
    assert max(map(len, shown.splitlines())) <= 80
    recipes = [line for line in shown.splitlines() if not line.startswith(("--config", " "))]
    assert [line.split()[0] for line in recipes] == list(RECIPES)
    assert done("recipes", "list", "--json").json == RECIPES
    assert "--config multi30k_transformer" in shown
    assert "--config long_texts" in shown
    for text in RECIPES.values():
        assert text in " ".join(shown.split())


@pytest.mark.parametrize("name", RECIPES)
def test_show_prints_every_setting_with_type_default_and_meaning(name: str) -> None:
    shown = done("recipes", "show", name).out
    rows = {row["key"]: row for row in done("recipes", "show", name, "--json").json}
    leaves = settings(runs.recipe_module(name).Config)
    assert list(rows) == [setting.path for setting in leaves]
    for setting in leaves:
        assert len(setting.help) > 5, setting.path
        written = {None: "null", True: "true", False: "false"}  # as YAML writes them
        plain = setting.default is None or isinstance(setting.default, bool)
        default = written[setting.default] if plain else setting.default
        assert f"{setting.path}={default}\n    {setting.help} ({setting.type_name})\n" in shown


def test_the_default_shown_is_the_default_used() -> None:
    config, _ = load(bert_classification.Config, [])
    for setting in settings(bert_classification.Config):
        value = config
        for part in setting.path.split("."):
            value = getattr(value, part)
        assert value == setting.default, setting.path


@pytest.mark.parametrize("name", RECIPES)
def test_the_schema_knows_every_setting(name: str) -> None:
    schema = done("recipes", "schema", name).json
    assert schema["$schema"].startswith("https://json-schema.org/")
    found = set()

    def walk(node: dict[str, object], prefix: str) -> None:
        properties = node["properties"]
        assert isinstance(properties, dict)
        assert node.get("additionalProperties") is False or prefix == ""
        for key, value in properties.items():
            reference = value.get("$ref", "")
            if reference:
                walk(schema["$defs"][reference.rsplit("/", 1)[-1]], f"{prefix}{key}.")
            else:
                found.add(f"{prefix}{key}")
                assert value["description"], key

    walk(schema, "")
    assert found == {"recipe", *(setting.path for setting in settings(runs.recipe_module(name).Config))}


def test_a_copied_recipe_is_the_recipe_and_runs_as_a_module(tmp_path: Path) -> None:
    shown = done("recipes", "copy", "bert_classification", tmp_path).out
    path = tmp_path / "bert_classification.py"
    assert shown == f"{path}\n"
    assert path.read_text() == Path(bert_classification.__file__).read_text()
    assert done("recipes", "copy", "tfidf_baseline", tmp_path / "mine.py").out == f"{tmp_path / 'mine.py'}\n"
    module: dict[str, object] = {"__name__": "mine"}
    exec(compile((tmp_path / "mine.py").read_text(), "mine.py", "exec"), module)
    assert callable(module["train"])


# Settings


def test_a_short_name_is_accepted_and_answered_with_the_full_one(tiny_model: Path, tmp_path: Path) -> None:
    short = ["lr=0.002", "epochs=1", "batch_size=16"]
    output = f"output_dir={tmp_path / 'run'}"
    outcome = done(
        "train", "bert_classification", *toy_files(tmp_path), f"model={tiny_model}", output, "max_length=32", *short
    )
    for text in (
        "lr is short for learning_rate",
        "epochs is short for num_train_epochs",
        "batch_size is short for per_device_train_batch_size",
    ):
        assert f"note      {text}\n" in outcome.err
    stored = read_yaml(tmp_path / "run" / "config.yaml")
    assert stored["train.learning_rate"][0] == 0.002
    assert stored["train.num_train_epochs"][0] == 1
    assert stored["train.per_device_train_batch_size"][0] == 16


def test_a_config_file_is_overridden_by_the_arguments(trained: Path, tmp_path: Path) -> None:
    done("train", "--config", trained / "config.yaml", f"output_dir={tmp_path / 'run'}", "seed=7", "max_steps=1")
    stored = read_yaml(tmp_path / "run" / "config.yaml")
    assert stored["seed"][0] == 7
    assert stored["train.max_steps"][0] == 1
    assert stored["max_length"][0] == 32


def test_without_output_dir_the_run_gets_a_name_of_recipe_and_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = toy_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    done("train", "bert_classification", *files, f"model={tiny_model}", *FAST, "max_steps=1")
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"bert_classification-\d{8}-\d{6}", run.name)


# What is printed


def test_train_prints_scores_verdict_and_place_on_stdout(trained: Path, tmp_path: Path) -> None:
    outcome = done("train", "--config", trained / "config.yaml", f"output_dir={tmp_path / 'run'}")
    heads = [line[:10].strip() for line in outcome.out.splitlines() if line[:1] != " "]
    assert [head for head in heads if head != "errors"] == ["test", "verdict", "saved"]
    assert f"finetune train --config {tmp_path / 'run'}/config.yaml" in outcome.out


def test_json_is_the_only_thing_on_stdout(trained: Path, tmp_path: Path) -> None:
    test = trained.parent / "test.csv"
    again = ["train", "--config", trained / "config.yaml", f"output_dir={tmp_path / 'run'}"]
    assert (
        done(*again, "--json").json["scores"] == json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    )
    assert set(done("evaluate", trained, "--data", test, "--json").json) >= {"accuracy", "macro_f1"}
    assert len(done("predict", trained, "--json", stdin="a\nb\n").json) == 2
    assert isinstance(done("compare", trained, tmp_path / "run", "--json").json, list)
    findings = done("check", f"data.train={trained.parent / 'train.csv'}", f"data.test={test}", "--json").json
    assert {"level", "message"} <= findings[0].keys()
    assert {"versions", "device", "mixed_precision"} <= done("doctor", "--json").json.keys()


def test_evaluate_prints_each_score_with_its_interval(trained: Path) -> None:
    lines = done("evaluate", trained, "--data", trained.parent / "test.csv").out.splitlines()
    assert lines[0] == "24 rows; in brackets the 95 % interval"
    assert len(lines) == 8
    for line in lines[1:]:
        assert re.fullmatch(r"\w+ +-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", line)
    assert len({line.index("[") - (line.split()[1][0] == "-") for line in lines[1:]}) == 1


def test_check_tells_levels_and_strict_makes_warnings_fail(trained: Path) -> None:
    train = f"data.train={trained.parent / 'train.csv'}"
    clean = [train, f"data.test={trained.parent / 'test.csv'}"]
    assert re.match(r"(good|warning) ", done("check", *clean).out)
    leaky = [train, f"data.test={trained.parent / 'train.csv'}"]
    assert "warning" in done("check", *leaky).out
    assert call("check", *leaky, "--strict").code == 65


def test_doctor_describes_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = done("doctor").out
    for head in ("versions", "device", "precision", "space", "hub", "minilm", "langid"):
        assert f"\n{head.ljust(10)}" in f"\n{shown}"
    assert "torch " in shown
    assert "offline (HF_HUB_OFFLINE)" in shown


def test_version_is_the_packages() -> None:
    from finetune import __version__

    assert done("version").out == f"{__version__}\n"


def test_a_process_of_its_own_prints_no_library_noise_and_no_colour(tiny_model: Path, tmp_path: Path) -> None:
    files = toy_files(tmp_path)
    command = ["train", "bert_classification", *files, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST]
    outcome = spawn(*command, "--json", environment={"PYTHONWARNINGS": None, "TOKENIZERS_PARALLELISM": None})
    assert outcome.returncode == 0, outcome.stderr
    json.loads(outcome.stdout)
    for noise in LIBRARY_NOISE:
        assert noise not in outcome.stderr, outcome.stderr
    heads = {line[:10].strip() for line in outcome.stderr.splitlines()}
    assert heads <= {"", "data", "model", "baseline", "epoch 1", "epoch 2", "trained"}, outcome.stderr
    stored = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert stored["command"].startswith("finetune train bert_classification data.train=")


def test_no_colour_without_a_terminal(trained: Path) -> None:
    for arguments in (["--help"], ["recipes", "list"], ["doctor"], ["predict", trained], ["trian"], ["train", "x=1"]):
        outcome = call(*arguments, stdin="a card\n")
        assert "\x1b" not in outcome.out + outcome.err


@pytest.mark.parametrize("unbuffered", ["1", None])
def test_a_reader_that_leaves_gets_no_traceback(unbuffered: str | None) -> None:
    variables = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    variables.pop("PYTHONUNBUFFERED", None)
    if unbuffered:
        variables["PYTHONUNBUFFERED"] = unbuffered
    reading, writing = os.pipe()
    os.close(reading)  # nobody will read: every write fails
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "finetune", "recipes", "list"],
            stdout=writing, stderr=subprocess.PIPE, text=True, env=variables, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writing)
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    outcome = call("evaluate", tmp_path / "no", "--data", "x.csv", "--debug")
    assert outcome.code == 66
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")


def test_the_schema_accepts_what_a_run_stores(trained: Path) -> None:
    stored = {path: value for path, (value, _) in read_yaml(trained / "config.yaml").items() if path != "recipe"}
    config, _ = load(bert_classification.Config, [], trained / "config.yaml")
    assert set(stored) == {setting.path for setting in settings(bert_classification.Config)}
    assert TypeAdapter(bert_classification.Config).dump_python(config)["max_length"] == 32
