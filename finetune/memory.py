"""Less memory for a training: activations worked out again in backward, and weights parted among the processes."""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune import processes
from finetune.errors import Exit, UserError

COPIES = 4  # of what is trained: weights, gradients, and the two moments of AdamW


def recompute_activations(model: nn.Module) -> None:
    """Let a model keep only what enters each of its layers, and work out the rest again in backward (Chen et al. 2016).

    Layers say by an attribute that they can, as in transformers. Raises UserError (2) for a model without such layers.
    """
    able: list[Any] = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if not able:
        what = "gradient_checkpointing=true: this model has no layers that are worked out one by one"
        raise UserError(Exit.USAGE, f"{what} (Transformers have)\nleave it out, or give smaller micro-batches")
    for module in able:  # not gradient_checkpointing_enable: it makes frozen embeddings ask for gradients
        module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
        module.gradient_checkpointing = True


def check_sharding(precision: str) -> None:
    """Refuse to part a model (2) in one process, or in fp16, whose scaled gradients overflow in one part alone."""
    if processes.world() == 1:
        what = "sharding=fsdp parts a model among processes, and there is one"
        raise UserError(Exit.USAGE, f"{what}\nstart several: finetune train ... --processes 2, or give sharding=none")
    if precision == "fp16":
        raise UserError(Exit.USAGE, "sharding=fsdp works in bf16 and fp32\ngive mixed_precision=no, or sharding=none")


class Shards:
    """A model in parts, one in each process: these are trained, and the whole model is empty meanwhile.

    `parts` is a copy of the whole model, parted by PyTorch's fully_shard (FSDP2), which gathers the weights of one
    layer at a time (Zhao et al. 2023). Scoring and writing take the whole model: they call more than `forward`, and not
    equally often in each process, where parts would wait for each other.
    """

    def __init__(self, whole: nn.Module, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.whole = whole.to(device)
        shared = {id(tensor): tensor for tensor in (*whole.parameters(), *whole.buffers())}
        self.parts = copy.deepcopy(whole, shared)
        mesh = init_device_mesh(device.type, (processes.world(),))
        for module in [*self.parts.modules()]:
            if isinstance(module, GradientCheckpointingLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(self.parts, mesh=mesh)

    def release(self) -> None:
        """Let the whole model's weights go."""
        for parameter in self.whole.parameters():
            parameter.data = parameter.data.new_empty(0)

    def gather(self) -> None:
        """Give the whole model the weights of all parts."""
        whole = dict(self.whole.named_parameters())
        for name, part in self.parts.named_parameters():
            whole[name].data = whole_of(part.detach())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have the whole model inside the block."""
        self.gather()
        yield
        self.release()

    def bytes_held(self) -> tuple[int, int]:
        """Return the memory of weights, gradients and moments: of this process, and where all were in one."""
        held = whole = 0
        for part in self.parts.parameters():
            copies = COPIES if part.requires_grad else 1
            held += copies * (part.to_local() if isinstance(part, DTensor) else part).nbytes
            whole += copies * part.nbytes
        return held, whole


def is_parted(model: nn.Module) -> bool:
    """Say whether a model is a part of one that several processes train."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_of(tensor: Tensor) -> Tensor:
    """Return a tensor whole; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
