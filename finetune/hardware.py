"""What the machine can do: device, precision, memory, threads."""

import dataclasses
import os
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from finetune.errors import Exit, UserError
from finetune.terminal import count

Precision = Literal["no", "bf16", "fp16"]
KINDS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class PrecisionChoice:
    """The arithmetic that a run uses, why, and a warning where the person asked for a slow one."""

    value: Precision
    reason: str
    warning: str = ""


def cpu_capability() -> str:
    """Return the CPU's vector instructions as PyTorch names them, with bf16 where it is native: `AVX512+bf16`."""
    return torch.backends.cpu.get_cpu_capability() + ("+bf16" if cpu_has_bf16() else "")


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 natively.

    The instruction sets are asked, never a clock: emulated bf16 is six times slower than fp32 on AVX2, and a timing
    on a busy machine could choose it, so that two runs of one command would differ.
    """
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported()
    return bool(supported)


def choose_precision(requested: str, use_cpu: bool) -> PrecisionChoice:
    """Resolve `mixed_precision=auto|no|bf16|fp16` for this machine; raises UserError (2) for fp16 on a CPU."""
    if device_type(use_cpu) == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        best: Precision = "bf16" if native else "fp16"
        return PrecisionChoice(best if requested == "auto" else _named(requested), f"{best} is native on this GPU")
    if requested == "auto":
        if cpu_has_bf16():
            return PrecisionChoice("bf16", "bf16 instructions here")
        return PrecisionChoice("no", "no bf16 instructions here")
    if requested == "fp16":
        raise UserError(Exit.USAGE, "mixed_precision=fp16 needs a GPU; give mixed_precision=auto")
    warning = ""
    if requested == "bf16" and not cpu_has_bf16():
        warning = "this CPU has no bf16 instructions: bf16 was measured 6 times slower than fp32 on such a CPU"
    return PrecisionChoice(_named(requested), "as asked", warning)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the block in which a model computes in a resolved `mixed_precision`; within it a weight is cast once."""
    kind = KINDS[precision]
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)


def device_type(use_cpu: bool) -> str:
    """Return `cuda` where a GPU is at hand and not declined, else `cpu`."""
    return "cuda" if torch.cuda.is_available() and not use_cpu else "cpu"


def describe(use_cpu: bool = False) -> str:
    """Return the device in a few words: `2 CPU threads, AVX512+bf16` or the GPU's name."""
    if device_type(use_cpu) == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{count(torch.get_num_threads(), 'CPU thread')}, {cpu_capability()}"


def memory_total() -> int:
    """Return the memory that this process may use, in bytes: the smaller of the machine's and the container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def memory_peak(use_cpu: bool = False) -> int:
    """Return the largest memory used so far, in bytes: the GPU's allocations, else this process's resident set."""
    if device_type(use_cpu) == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def threads() -> int:
    """Return how many threads PyTorch computes with."""
    return torch.get_num_threads()


def cores() -> int:
    """Return how many cores this process may use."""
    return max(1, min(len(os.sched_getaffinity(0)), int(cpu_quota() or sys.maxsize)))


def load_average() -> float:
    """Return the number of processes that wanted a core over the last minute."""
    return os.getloadavg()[0]


def cpu_quota() -> float | None:
    """Return the container's share of cores, or None where there is no limit."""
    limit = Path("/sys/fs/cgroup/cpu.max")
    if not limit.is_file():
        return None
    quota, period = limit.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _named(requested: str) -> Precision:
    return {"no": "no", "bf16": "bf16", "fp16": "fp16"}[requested]  # type: ignore[return-value]
