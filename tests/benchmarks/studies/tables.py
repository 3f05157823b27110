"""How a study is told: Markdown on stdout, its figures as JSON and its pictures as SVG in data/studies/."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune import hardware
from finetune.report import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 6  # significant ones, of a figure in JSON


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine(use_cpu: bool) -> str:
    """Return where figures come from: device, version of PyTorch, and how busy the cores are."""
    load = hardware.load_average()
    return f"{hardware.describe(use_cpu)}, fp32, torch {torch.__version__}; {os.cpu_count()} cores, load {load:.1f}"


def save(folder: Path, name: str, figures: Mapping[str, Any], drawn: Mapping[str, "Figure"]) -> None:
    """Write NAME.json and the pictures, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rounded(figures), indent=1) + "\n", encoding="utf-8")
    for picture, figure in drawn.items():
        pictures.save_svg(figure, folder / f"{picture}.svg")
    print(f"\n{', '.join(str(folder / file) for file in [f'{name}.json', *(f'{p}.svg' for p in drawn)])}")


def rounded(value: Any) -> Any:
    """Return figures with `DIGITS` significant digits, at any depth."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value
