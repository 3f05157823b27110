"""Save a checkpoint's twin with random weights: the control that shows what its pretraining gave.

python tests/benchmarks/random_twin.py MODEL FOLDER [--seed 1]

MODEL is what `model=` takes; the twin has its shape, its tokenizer and a file of the same size.
"""

import argparse

import torch
import transformers
from transformers import AutoConfig

from finetune import pretrained


def main() -> None:
    """Write the twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    pretrained.quiet()
    source = pretrained.locate(asked.model)
    torch.manual_seed(asked.seed)
    shape = AutoConfig.from_pretrained(source.path, local_files_only=True)
    made_as = getattr(transformers, shape.architectures[0])  # with the output layer that the checkpoint has
    twin = made_as(shape).float()
    twin.save_pretrained(asked.folder)
    pretrained.load_tokenizer(source).save_pretrained(asked.folder)
    print(
        f"{asked.folder}: {sum(weight.numel() for weight in twin.parameters()):,} random parameters, seed {asked.seed}"
    )


if __name__ == "__main__":
    main()
