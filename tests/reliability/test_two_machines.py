"""Two machines, as two network namespaces with an address each: one is killed in mid-run, comes back, and all go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from calling import ROOT, toy_files

from finetune import checkpoint

pytestmark = pytest.mark.reliability
SECONDS = 250.0
PORT = 29511
LOOP = (
    "max_length=32", "train.learning_rate=3e-3", "train.mixed_precision=no", "train.use_cpu=true", "baseline=none",
    "train.num_train_epochs=40", "train.save_steps=5", "train.logging_steps=1", "train.per_device_train_batch_size=4",
)  # fmt: skip


def ip(*arguments: str) -> str:
    """Run the command `ip`."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def cable() -> Iterator[dict[str, str]]:
    """Join two new namespaces by a cable; yield the address of each by its name."""
    names = [f"ft{os.getpid()}{side}" for side in "ab"]
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in addresses.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("cable", "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield addresses
    finally:
        for name in names:
            with contextlib.suppress(PermissionError):
                kill(name)
                ip("netns", "del", name)


def kill(machine: str) -> None:
    """Kill everything that runs on a machine."""
    for pid in ip("netns", "pids", machine).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def start(machine: str, addresses: dict[str, str], errors: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start torchrun on a machine, a process of the run in it; the first machine is where they meet."""
    meeting = next(iter(addresses))
    torchrun = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two",
        f"--rdzv-endpoint={addresses[meeting]}:{PORT}", f"--rdzv-conf=is_host={machine == meeting}",
        f"--local-addr={addresses[machine]}",
        "--max-restarts=3", "-m", "finetune", *command,
    ]  # fmt: skip
    own = {"GLOO_SOCKET_IFNAME": "cable", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as README says of restarts
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **own}
    with errors.open("ab") as stream:
        return subprocess.Popen(
            ["ip", "netns", "exec", machine, sys.executable, *torchrun], env=environment,
            stdout=subprocess.DEVNULL, stderr=stream,
        )  # fmt: skip


def wait_for(folder: Path, step: int, watched: "subprocess.Popen[bytes]", errors: Path) -> None:
    """Wait for a checkpoint of an update, or a later one."""
    limit = time.monotonic() + SECONDS
    while max(checkpoint.saved(folder / "checkpoints"), default=0) < step:
        assert watched.poll() is None, errors.read_text()
        assert time.monotonic() < limit, errors.read_text()
        time.sleep(0.02)


@pytest.mark.timeout(900)
def test_a_machine_that_is_killed_comes_back_and_the_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    folder, errors = tmp_path / "run", tmp_path / "errors"
    files = toy_files(tmp_path)
    command = ["train", "bert_classification", f"model={tiny_model}", *files, f"output_dir={folder}", *LOOP]
    try:
        with cable() as addresses:
            run_with_a_loss(addresses, folder, errors, command)
    except (PermissionError, FileNotFoundError) as error:
        print(f"nothing was tested: network namespaces cannot be had here ({error})")  # noqa: T201
        return
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 241))
    assert "from update" in (folder / "train.log").read_text()
    assert json.loads((folder / "results.json").read_text())["scores"]["test"]


def run_with_a_loss(addresses: dict[str, str], folder: Path, errors: Path, command: list[str]) -> None:
    """Start both machines, kill the second in mid-run, start it again, and wait for the end of both."""
    first, second = addresses
    running = [start(machine, addresses, errors, command) for machine in addresses]
    try:
        wait_for(folder, 10, running[0], errors)
        kill(second)
        running[1].wait()
        running.append(start(second, addresses, errors, command))
        for process in (running[0], running[2]):
            assert process.wait(timeout=SECONDS) == 0, errors.read_text()
    finally:
        for machine in (first, second):
            kill(machine)
        for process in running:
            process.wait()
