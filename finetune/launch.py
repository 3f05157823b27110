"""Starts several processes of a training on this machine by PyTorch's elastic launcher, and tells how they ended."""

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence

from finetune.errors import Exit, UserError

SECONDS_TO_SAVE = 600  # after a signal: a checkpoint is written before a process ends


def is_wanted(processes: int | None, restarts: int) -> bool:
    """Tell whether this process is to start others; raises UserError (2) where a launcher started another number."""
    started = os.environ.get("WORLD_SIZE")
    if started is None and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        what = "accelerate launch was asked for several processes and started one, as it does with --cpu"
        raise UserError(
            Exit.USAGE, f"{what}\ngive: finetune train ... --processes N, or torchrun -m finetune train ..."
        )
    if started is None:
        return restarts > 0 or (processes or 1) > 1
    if processes is not None and int(started) != processes:
        raise UserError(Exit.USAGE, f"--processes {processes}, but the launcher started {started}; leave it out")
    return False


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `finetune ARGUMENTS` in several processes and return the exit code: of the first that failed by itself.

    Each process tells its own errors; one that is killed is told of here. One failure ends all, or starts all anew as
    often as `restarts` says; then they go on from the last checkpoint.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from finetune import hardware

    def by_itself(failure: ProcessFailure) -> tuple[bool, int]:
        return failure.exitcode in {Exit.LOST, Exit.TERMINATED, -15}, failure.timestamp

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # the processes tell what went wrong themselves
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=restarts,
            rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "finetune", *arguments)
        except ChildFailedError as error:
            rank, first = min(error.failures.items(), key=lambda item: by_itself(item[1]))
            if first.exitcode < 0:
                raise UserError(
                    Exit.LOST, f"process {rank} was killed ({first.signal_name()}); go on with --resume"
                ) from None
            return int(first.exitcode)
        except SignalException as error:
            return 128 + int(error.sigval)
    return int(Exit.OK)
