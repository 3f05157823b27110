"""Starts several processes of a training on this machine by PyTorch's elastic launcher, and tells how they ended."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence

from finetune import terminal
from finetune.errors import Exit, UserError
from finetune.processes import OWN_LAUNCH, is_own

SECONDS_TO_SAVE = 600  # after a signal: a checkpoint is written before a process ends
CONSEQUENCES = (Exit.TERMINATED, Exit.LOST, -signal.SIGTERM)  # of another's end; the first of them may be a reason


def is_wanted(processes: int | None, restarts: int) -> bool:
    """Tell whether this process is to start others; raises UserError (2) for a launcher's other plans."""
    started = os.environ.get("WORLD_SIZE")
    if started is None and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        what = "accelerate launch was asked for several processes and started one, as it does with --cpu"
        raise UserError(
            Exit.USAGE, f"{what}\ngive: finetune train ... --processes N, or torchrun -m finetune train ..."
        )
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        what = "accelerate launch is configured for FSDP, which a training here does by itself"
        raise UserError(Exit.USAGE, f"{what}\ntake it out of `accelerate config`, and give sharding=fsdp")
    if started is None:
        return restarts > 0 or (processes or 1) > 1
    if processes is not None and int(started) != processes:
        raise UserError(Exit.USAGE, f"--processes {processes}, but the launcher started {started}; leave it out")
    if restarts > 0 and not is_own():
        raise UserError(Exit.USAGE, f"--max-restarts {restarts} is for the launcher that started this; give it there")
    return False


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `finetune ARGUMENTS` in several processes and return the exit code: of the first that failed by itself.

    Each process tells its own errors; one failure ends all. After one that was killed all start anew, as often as
    `restarts` says, and go on from the last checkpoint. Raises UserError (75) where none is left.
    """
    from finetune import hardware

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    logging.disable()  # of the launcher: the processes tell themselves what went wrong
    name = f"{OWN_LAUNCH}{uuid.uuid4().hex}"
    for number in range(restarts + 1):
        code, killed = _launch_once(name, processes, arguments)
        if code != Exit.LOST:
            return code
        if number < restarts:
            terminal.say(terminal.line("restart", f"{number + 1} of {restarts}: {killed}"))
    raise UserError(Exit.LOST, f"{killed}; go on with --resume")


def _launch_once(name: str, processes: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Return how the processes ended: an exit code, and of LOST which was killed."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=name, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "finetune", *arguments)
        except SignalException as error:
            return 128 + int(error.sigval), ""
        except ChildFailedError as error:
            # The launcher ends the others by SIGTERM, and they lose each other: that is no reason. One that saved and
            # ended as it was told to is one, whatever that signal did to others on their way out.
            rank, first = min(error.failures.items(), key=lambda item: (_consequence(item[1].exitcode), item[0]))
            if first.exitcode < 0:
                return Exit.LOST, f"process {rank} was killed ({signal.Signals(-first.exitcode).name})"
            return first.exitcode, f"process {rank} lost the others"
    return Exit.OK, ""


def _consequence(code: int) -> int:
    """Return 0 for an exit code that is a reason by itself, else how surely another process was the reason."""
    return CONSEQUENCES.index(code) + 1 if code in CONSEQUENCES else 0
