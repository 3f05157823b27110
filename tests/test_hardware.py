"""The machine: precision is chosen from what the CPU says it can do, never from a clock."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import hardware


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that pretends a CPU with or without bf16, and a GPU or none."""

    def pretend(*, onednn: bool = False, avx: bool = False, gpu: bool = False, gpu_bf16: bool = True) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_bf16)

    return pretend


@pytest.mark.parametrize(("onednn", "avx", "value"), [(True, True, "bf16"), (True, False, "no"), (False, False, "no")])
def test_auto_is_bf16_only_where_the_cpu_has_the_instructions(
    machine: Any, onednn: bool, avx: bool, value: str
) -> None:
    machine(onednn=onednn, avx=avx)
    choice = hardware.choose_precision("auto", use_cpu=True)
    assert choice.value == value
    assert "bf16" in choice.reason
    assert choice.warning == ""
    assert hardware.cpu_capability().endswith("+bf16") is (value == "bf16")


def test_precision_is_chosen_without_a_clock(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(onednn=True, avx=True)
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("a clock was read"))
    found = hardware.choose_precision("auto", use_cpu=True)
    monkeypatch.undo()
    assert found.value == "bf16"


def test_slow_bf16_is_given_when_asked_for_with_a_warning(machine: Any) -> None:
    machine()
    choice = hardware.choose_precision("bf16", use_cpu=True)
    assert choice.value == "bf16"
    assert "slower" in choice.warning
    assert hardware.choose_precision("no", use_cpu=True).warning == ""


@pytest.mark.parametrize(("native", "value"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_bf16_where_it_is_native_and_the_cpu_where_that_was_asked_for(
    machine: Any, native: bool, value: str
) -> None:
    machine(gpu=True, gpu_bf16=native)
    assert hardware.device_type(use_cpu=False) == "cuda"
    assert hardware.choose_precision("auto", use_cpu=False).value == value
    assert hardware.choose_precision("no", use_cpu=False).value == "no"
    assert hardware.device_type(use_cpu=True) == "cpu"
    assert hardware.choose_precision("auto", use_cpu=True).value == "no"


def test_the_device_is_told_in_a_few_words(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    for threads, told in ((1, "1 CPU thread"), (2, "2 CPU threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert hardware.describe() == f"{told}, {hardware.cpu_capability()}"


def test_memory_is_measured_in_bytes() -> None:
    peak = hardware.memory_peak(use_cpu=True)
    assert 1e8 < peak < hardware.memory_total()  # Python with torch is above 100 MB and below all there is
    assert hardware.memory_peak(use_cpu=True) >= peak


@pytest.mark.parametrize(("content", "quota"), [("max 100000\n", None), ("150000 100000\n", 1.5)])
def test_the_containers_share_of_cores_is_read(monkeypatch: pytest.MonkeyPatch, content: str, quota: float) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: content)
    assert hardware.cpu_quota() == quota


def test_the_containers_memory_limit_goes_before_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: "1000\n")
    assert hardware.memory_total() == 1000
    monkeypatch.setattr(Path, "read_text", lambda path: "max\n")
    assert hardware.memory_total() > 1e8


def test_load_and_threads_are_counts() -> None:
    assert hardware.load_average() >= 0
    assert hardware.threads() >= 1
