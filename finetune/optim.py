"""Parameter groups, AdamW, learning-rate schedules, and the settings that `auto` stands for."""

import math
import re
from collections.abc import Iterable
from typing import Literal

import torch
import transformers
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from finetune.errors import Exit, UserError

LAYER = re.compile(r"\.(?:layer|layers|h|block|blocks)\.(\d+)\.")
EMBEDDINGS = re.compile(r"embed|(?:^|\.)(?:w[tp]e|shared)\.")  # of words, positions and segments, with their norms
WORD_EMBEDDINGS = re.compile(r"(?:^|\.)(?:word_embeddings|wte|embed_tokens|shared)\.weight$")
SCALES = re.compile(r"\.ia3_l\.")
HEAD = re.compile(r"\.modules_to_save\.")  # trained whole beside an adapter
PAPER_WIDTH = 768
PAPER_LEARNING_RATE = 2e-5
PAPER_EPOCHS = 3
MOST_EPOCHS = 10
FEWEST_UPDATES = 100
MANY_CLASSES = 50
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "noam"]


def auto_learning_rate(width: int, classes: int) -> float:
    """Return the learning rate for a pretrained encoder of a hidden size.

    2e-5 at 768 (Devlin et al. 2019, appendix A.3). Narrower models want more: 1e-4 at 384 was the best of
    {2e-5, 5e-5, 1e-4, 2e-4} on validation; the power law between the two is ours, and stops at 3e-4. A new head for
    many classes wants twice as much (2e-4 on banking77's validation rows, 77 classes).
    """
    rate = PAPER_LEARNING_RATE * (PAPER_WIDTH / width) ** 2.3 * (2 if classes >= MANY_CLASSES else 1)
    return float(f"{min(3e-4, rate):.1g}")


def auto_epochs(rows: int, batch_size: int, classes: int, width: int) -> int:
    """Return the number of epochs for a training set: 3 (Devlin et al. 2019) where that makes enough updates.

    A new head for many classes, a narrow model or few rows need more passes; 2 to 10 were tried on validation. Where 10
    passes are fewer than 100 updates, the updates count: with 10 of them a model says of every text what is commonest
    (MiniLM, 10 rows of sib200: test accuracy 0.25 after 10 updates, 0.46 after 100; Mosbach et al. 2021).
    """
    updates = max(1, -(-rows // batch_size))
    wanted = 200 * math.sqrt(PAPER_WIDTH / width) + 31 * classes
    return max(PAPER_EPOCHS, min(max(MOST_EPOCHS, math.ceil(FEWEST_UPDATES / updates)), round(wanted / updates)))


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """Return each parameter's depth: 0 for embeddings, i + 1 for layer i, one more for all above the layers."""
    found = {name: LAYER.search(name) for name in names}
    top = 1 + max((int(match[1]) + 1 for match in found.values() if match), default=0)
    return {
        name: int(match[1]) + 1 if match else 0 if EMBEDDINGS.search(name) else top for name, match in found.items()
    }


def freeze(model: nn.Module, layers: int, *, word_embeddings: bool = False) -> int:
    """Stop training the embeddings and the lowest `layers` layers; return how many parameters stay trained.

    `word_embeddings` stops those alone: a word of another language, which training does not see, keeps its distance to
    the words that it sees. Raises UserError (2) where the model has fewer layers, or no word embeddings known by name.
    """
    depths = layer_depths(name for name, _ in model.named_parameters())
    most = max(depths.values(), default=1) - 1
    if layers > most:
        raise UserError(Exit.USAGE, f"frozen_layers={layers}: the model has {most} layers; give {most} at most")
    words = {name for name in depths if word_embeddings and WORD_EMBEDDINGS.search(name)}
    if word_embeddings and not words:
        raise UserError(Exit.USAGE, "freeze_embeddings=true: no word embeddings are known in this model; give false")
    for name, parameter in model.named_parameters():
        if (layers > 0 and depths[name] <= layers) or name in words:
            parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float = 1.0, head_times: float = 1.0
) -> list[dict[str, object]]:
    """Split trained parameters by weight decay (none for biases, norms and IA3's scales around 1) and by layer.

    With `layer_decay` d < 1 a parameter n layers below the head learns at d**n of the rate (Howard and Ruder 2018,
    section 3.2, as used for BERT by Sun et al. 2019, section 5.3.2). A head beside an adapter learns at `head_times`
    times the rate.
    """
    depths = layer_depths(name for name, _ in model.named_parameters())
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim >= 2 and not SCALES.search(name) else 0.0
        rate = learning_rate * layer_decay ** (top - depths[name]) * (head_times if HEAD.search(name) else 1.0)
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())


def adamw(groups: list[dict[str, object]], betas: tuple[float, float], epsilon: float) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) in its fused form, which PyTorch has for CPU and CUDA."""
    return torch.optim.AdamW(groups, betas=betas, eps=epsilon, fused=True)


def schedule(
    name: Schedule, optimizer: torch.optim.Optimizer, *, warmup: int, updates: int, width: int | None = None
) -> LRScheduler:
    """Return the course of the learning rate over the updates of a run.

    `inverse_sqrt` rises to learning_rate in `warmup` updates and then falls with the square root of their number;
    `noam` is the same course at the height of Vaswani et al. 2017, section 5.3: learning_rate is the factor before
    width**-0.5 * min(step**-0.5, step * warmup**-1.5).
    """
    if name == "noam":
        if width is None:
            raise TypeError("the schedule noam needs the model's width")
        scale, top = width**-0.5, max(1, warmup)
        return LambdaLR(optimizer, lambda done: scale * min((done + 1) ** -0.5, (done + 1) * top**-1.5))
    steps = {"num_warmup_steps": max(1, warmup) if name == "inverse_sqrt" else warmup, "num_training_steps": updates}
    chosen: LRScheduler = transformers.get_scheduler(name, optimizer, **steps)
    return chosen
