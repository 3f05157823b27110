"""The processes of one run: which one this is, work that they share out, and work that one does for all."""

import datetime
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

from finetune.run import Crew

# One process may work alone for long, on a baseline; of one that died the others hear at once, of a dead machine not.
LONGEST_WAIT = datetime.timedelta(hours=6)
OWN_LAUNCH = "finetune-"  # and a number that no other launch has
LOST = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe", re.IGNORECASE)
Item = TypeVar("Item")
Result = TypeVar("Result")
_store: list[Any] = []  # of the process group, once there is one


def join() -> None:
    """Meet the other processes that a launcher started; alone, or a second time, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    on_gpus = on_this_machine() <= torch.cuda.device_count()
    store, rank, world = next(distributed.rendezvous("env://"))
    _store.append(store)
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LONGEST_WAIT)


def is_own() -> bool:
    """Tell whether `finetune train --processes` or `--max-restarts` started this process."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OWN_LAUNCH)


def is_restart_of(launch: str | None) -> bool:
    """Tell whether these processes took the place of others of the same launch, by its name in environment.json.

    A launcher on a machine that came back counts from 0: it is enough that one of them counts.
    """
    own = os.environ.get("TORCHELASTIC_RUN_ID", "")
    counts = is_own() or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return summed(bool(own) and own == launch and counts)[0] > 0


def leave() -> None:
    """Part from the other processes once the work is done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def on_this_machine() -> int:
    """Return how many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Tell whether this is the process that speaks and writes."""
    return rank() == 0


def crew() -> Crew:
    """Return what a run folder needs to know of the processes."""
    return Crew(is_main(), wait)


def wait() -> None:
    """Wait until every process is here."""
    summed(0)


def summed(*values: float) -> list[float]:
    """Return the sum of each value over all processes, the same in each of them."""
    if world() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)  # on the CPU: items stay exact, and no GPU is waited for
    distributed.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def shared(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Work on items, each process on every world-th; return the results of all in the order of the items, to all.

    Every process must call this with the same items.
    """
    count = world()
    mine = [work(item) for item in items[rank() :: count]]
    if count == 1:
        return mine
    parts: list[list[Result]] = [[] for _ in range(count)]
    distributed.all_gather_object(parts, mine)
    return [parts[place % count][place // count] for place in range(len(items))]


def by_main(work: Callable[[], Result]) -> Result:
    """Let the main process alone do some work, and return its result in all; the work must not itself be shared out."""
    if world() == 1:
        return work()
    found = [work() if is_main() else None]
    distributed.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def first_to_tell() -> bool:
    """Tell whether this process is the first to report an error: all may meet the same one, which is told once."""
    if not _store:
        return os.environ.get("RANK", "0") == "0"
    try:
        return int(_store[0].add("told", 1)) == 1
    except RuntimeError:  # the launcher has gone
        return is_main()


def is_loss(error: BaseException) -> bool:
    """Tell whether an error says only that another process has gone, which has a reason of its own."""
    return world() > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
