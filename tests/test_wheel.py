"""What is installed from the wheel works alone, far from a checkout."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from calling import FAST, ROOT, toy_files


def python(*arguments: object, folder: Path, path: Path | None) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with one place to import from beside its own packages."""
    variables: Mapping[str, str] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        variables = {**variables, "PYTHONPATH": str(path)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    python(*pip, "-w", folder, ROOT, folder=folder, path=None)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty folder."""
    target = tmp_path_factory.mktemp("installed")
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", "--target"]
    python(*pip, target, wheel, folder=target, path=None)
    return target


def test_the_wheel_holds_library_recipes_data_and_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"finetune", "recipes"}
    checkpoints = [f"checkpoints/{path.name}" for path in (ROOT / "data" / "checkpoints").iterdir()]
    assert "checkpoints/mini-mbert" in checkpoints
    for folder in ("tickets", "dialogues", "stories", *checkpoints):
        shipped = {Path(name).name for name in names if name.startswith(f"finetune/shipped/{folder}/")}
        assert shipped == {path.name for path in (ROOT / "data" / folder).iterdir()}
    assert any(name.endswith("LICENSE") for name in names)
    sources = {str(path.relative_to(ROOT)) for top in ("finetune", "recipes") for path in (ROOT / top).rglob("*.py")}
    sources |= {f"finetune/report/page.{kind}" for kind in ("html.j2", "css", "js")}
    assert sources <= set(names)


def test_the_installed_program_lists_its_recipes_and_finds_the_shipped_data(installed: Path, tmp_path: Path) -> None:
    listed = python("-m", "finetune", "recipes", "list", folder=tmp_path, path=installed)
    assert "bert_classification" in listed.stdout
    code = "import finetune.data.shipped as it; print(it.shipped('tickets'), it.__file__, sep='\\n')"
    data, module = python("-c", code, folder=tmp_path, path=installed).stdout.splitlines()
    assert Path(module).is_relative_to(installed)
    assert Path(data) == installed / "finetune" / "shipped" / "tickets"
    assert (Path(data) / "en.train.csv").is_file()


def test_the_installed_program_trains(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    files = toy_files(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    run = ["train", "bert_classification", *files, f"model={tiny_model}", f"output_dir={tmp_path / 'run'}", *FAST]
    done = python("-m", "finetune", *run, folder=empty, path=installed)
    assert "verdict" in done.stdout
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert list(empty.iterdir()) == []
