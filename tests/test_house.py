"""The plan of the house: who may import whom, what no file may do, and papers that match the rooms."""

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import config
from recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
# A file imports only from floors below its own; files of one package, and of the ground floor, also from each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("finetune", "finetune.errors", "finetune.deadline", "finetune.config", "finetune.terminal", "finetune.run"),
    ("finetune.text_metrics",),
    (
        "finetune.metrics",
        "finetune.significance",
        "finetune.optim",
        "finetune.hardware",
        "finetune.hub",
        "finetune.processes",
    ),
    ("finetune.data.*", "finetune.checkpoint", "finetune.memory"),
    ("finetune.adapters",),
    (
        *("finetune.baselines", "finetune.evaluation", "finetune.text_baselines", "finetune.text_evaluation"),
        *("finetune.ngrams", "finetune.text_quality"),
        *("finetune.pretrained", "finetune.cpu", "finetune.first_token", "finetune.language_diagnosis"),
    ),
    ("finetune.trainer", "finetune.label_budget", "finetune.bertscore"),
    ("finetune.classifier", "finetune.seq2seq.*"),
    ("finetune.pretraining.*",),
    ("finetune.causal.*",),
    (
        *("finetune.generation", "finetune.explain", "finetune.attribution", "finetune.crosslingual"),
        *("finetune.word_vectors", "finetune.attention_heads"),
    ),
    ("finetune.summaries.*",),
    ("finetune.report.*",),
    ("recipes.*", "finetune.export", "finetune.push", "finetune.trial"),
    ("finetune.playground",),
    ("finetune.commands.*", "finetune.launch"),
    ("finetune.cli",),
    ("finetune.__main__",),
)
GROUND = {
    "finetune": set(),
    "finetune.errors": set(),
    "finetune.deadline": set(),
    "finetune.terminal": set(),
    "finetune.config": {"finetune.errors"},
    "finetune.run": {"finetune", "finetune.config", "finetune.terminal", "finetune.errors"},
}
HEAVY = {"torch", "transformers", "accelerate", "datasets", "sklearn", "numpy", "scipy", "pandas", "matplotlib", "peft"}
CODE_CARRIERS = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
SOURCES = sorted([*ROOT.glob("finetune/**/*.py"), *ROOT.glob("recipes/**/*.py")])


def module_name(path: Path) -> str:
    """Return the dotted name of a source file; a package's is that of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def own_imports(tree: ast.AST) -> set[str]:
    """Return the modules of ours that a file imports, at its top or inside a function."""
    return {name for name in imported(tree) if name.split(".")[0] in {"finetune", "recipes"}}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = inside & set(MODULES)
            yield from modules
            if len(modules) < len(inside):  # a name of the module itself
                yield str(node.module)


def floor_of(module: str) -> int | None:
    for floor, names in enumerate(FLOORS):
        for name in names:
            package = name.removesuffix(".*")
            if module == package or (name.endswith(".*") and module.startswith(f"{package}.")):
                return floor
    return None


def same_package(first: str, second: str) -> bool:
    packages = [name.removesuffix(".*") for floor in FLOORS for name in floor if name.endswith(".*")]
    return any(first.startswith(package) and second.startswith(package) for package in packages if package != "recipes")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_only_from_floors_below_its_own(module: str) -> None:
    floor = floor_of(module)
    assert floor is not None, f"{module} has no floor: put it on the plan"
    for other in own_imports(MODULES[module]):
        if module in GROUND:
            assert other in GROUND[module], f"{module} may not import {other}"
            continue
        below = floor_of(other)
        assert below is not None
        fine = below < floor or same_package(module, other)
        assert fine, f"{module} (floor {floor}) may not import {other} (floor {below})"


def test_the_imports_have_no_cycle() -> None:
    waiting = {module: own_imports(tree) - {module} for module, tree in MODULES.items()}
    while waiting:
        free = {module for module, needs in waiting.items() if not needs & set(waiting)}
        assert free, f"a cycle among {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in free}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_matplotlib_is_imported_by_what_draws_and_never_pyplot(module: str) -> None:
    guarded = [node for node in MODULES[module].body if not isinstance(node, ast.FunctionDef | ast.If)]
    at_the_top = {name for node in guarded for name in imported(node)}
    assert not [name for name in at_the_top if name.split(".")[0] == "matplotlib"]
    assert not [name for name in imported(MODULES[module]) if "pyplot" in name]


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_floor_imports_nothing_heavy(module: str) -> None:
    found = {name.split(".")[0] for name in imported(MODULES[module])}
    assert not found & HEAVY


def test_every_name_on_the_plan_exists() -> None:
    for name in (name for floor in FLOORS for name in floor):
        assert name.removesuffix(".*") in MODULES


def test_recipes_never_import_each_other() -> None:
    for module, tree in MODULES.items():
        if module.startswith("recipes."):
            assert not {name for name in own_imports(tree) if name.startswith("recipes")}


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_config_train_evaluate_predict_in_120_lines(path: Path) -> None:
    if path.stem == "__init__":
        return
    text = path.read_text(encoding="utf-8")
    names = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {"Config", "train", "evaluate", "predict"} <= names
    assert len(text.splitlines()) <= 120


def test_every_recipe_is_in_the_dict_and_the_other_way_round() -> None:
    assigned = next(node for node in ast.walk(MODULES["recipes"]) if isinstance(node, ast.Dict))
    named = {key.value for key in assigned.keys if isinstance(key, ast.Constant)}
    assert named == {path.stem for path in ROOT.glob("recipes/*.py")} - {"__init__"}


def test_no_source_holds_an_invisible_character() -> None:
    allowed = {"\n", " "}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert {char for char in text if not char.isprintable()} <= allowed, path


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [path for folder in ("finetune", "recipes", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in found if path.stem in drawers]


def faults(tree: ast.AST) -> list[str]:
    """Return what in a file could run code that a data or model file brings along."""
    found = [f"imports {name}" for name in imported(tree) if name.split(".")[0] in CODE_CARRIERS]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            found.append("imports from pickle")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            found += [f"pickle.{node.attr}"] * (node.attr != "UnpicklingError")  # naming the error reads nothing
        if isinstance(node, ast.Attribute) and node.attr == "register_for_checkpointing":
            found.append(node.attr)
        if isinstance(node, ast.Call):
            found += call_faults(node)
    return found


def call_faults(call: ast.Call) -> list[str]:
    settings = {keyword.arg: keyword.value for keyword in call.keywords}
    name = ast.unparse(call.func)
    found = []
    if name in {"eval", "exec", "compile", "__import__"}:
        found.append(f"{name}()")
    if name == "torch.load" and not is_constant(settings.get("weights_only"), {True}):
        found.append("torch.load without weights_only=True")
    if name.endswith("YAML") and not is_constant(settings.get("typ"), {"safe", "base"}):
        found.append("YAML() that builds objects")
    if "trust_remote_code" in settings and not is_constant(settings["trust_remote_code"], {False}):
        found.append("trust_remote_code")
    return found


def is_constant(node: ast.expr | None, allowed: set[object]) -> bool:
    if isinstance(node, ast.IfExp):
        return is_constant(node.body, allowed) and is_constant(node.orelse, allowed)
    return isinstance(node, ast.Constant) and node.value in allowed


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_runs_code_from_a_file_that_it_reads(module: str) -> None:
    assert faults(MODULES[module]) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads",
        "import joblib",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "import yaml\nyaml.load(f)",
        "ruamel.yaml.YAML()",
        "YAML(typ='unsafe')",
        "eval('1')",
        "exec(text)",
        "a.register_for_checkpointing(b)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
    ],
)
def test_the_scan_sees_each_forbidden_form(code: str) -> None:
    assert faults(ast.parse(code))


def test_the_scan_lets_safe_forms_pass() -> None:
    safe = (
        "torch.load(f, weights_only=True)\nYAML(typ='safe' if a else 'base')\nmodel.eval()\nf(trust_remote_code=False)"
    )
    assert faults(ast.parse(safe)) == []


def config_fields() -> list[tuple[str, str]]:
    """Return (class, field) of every configuration class."""
    return [
        (f"{module}.{node.name}", item.target.id)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(d) == "configclass" for d in node.decorator_list)
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def test_every_setting_is_read_somewhere() -> None:
    read = {
        node.attr
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    fields = config_fields()
    assert len(fields) > 50
    assert [field for field in fields if field[1] not in read] == []


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    for requirement in [*project["dependencies"], *extras]:
        reasons = [line.partition("#")[2] for line in text.splitlines() if f'"{requirement}"' in line]
        assert any(len(reason.split()) >= 2 for reason in reasons), f"{requirement} has no reason"


def readme_tree() -> set[str]:
    """Return the paths in README's tree: the fenced block with a line `finetune/`, two spaces a level.

    A line is a folder (`data/`) or Python files (`read.py columns.py`), then what they are for.
    """
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    block = next((b for b in blocks if any(re.match(r"finetune/(\s|$)", line) for line in b.splitlines())), "")
    folders: list[str] = []
    found: set[str] = set()
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip(" "))) // 2
        words = line.split()
        if words and words[0].endswith("/"):
            folders = [*folders[:depth], words[0]]
            found.add("".join(folders))
            continue
        for word in words:
            if not re.fullmatch(r"\w+\.py", word):
                break
            found.add("".join(folders[:depth]) + word)
    return found


def test_readme_draws_the_tree_that_is_there() -> None:
    drawn = readme_tree()
    assert "finetune/" in drawn, "README.md has no fenced block with a line that starts with finetune/"
    assert sorted(path for path in drawn if not (ROOT / path).exists()) == []
    sources = {str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"}
    assert sorted(sources - drawn) == []


@pytest.mark.parametrize("preset", sorted((ROOT / "recipes" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_read_into_its_recipe(preset: Path) -> None:
    recipe = config.yaml_value(preset, "recipe")
    assert recipe in RECIPES
    module = importlib.import_module(f"recipes.{recipe}")
    resolved, notes = config.load(module.Config, [], preset)
    assert notes == []
    assert resolved != module.Config()
