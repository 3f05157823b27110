"""Examine data before a training."""

from finetune import config as configuration
from finetune import hub
from finetune.data.check import Finding
from finetune.data.check import check as examine
from finetune.data.columns import DataConfig, LabelMap, read_splits
from finetune.errors import Exit, UserError


def check(overrides: list[str]) -> list[Finding]:
    """Examine data before training: the data doctor. `model=NAME` adds the checks in tokens."""
    hub.quiet()
    config, _ = configuration.load(CheckConfig, overrides)
    splits = read_splits(config.data, seed=1, need_train=False)
    if not splits:
        raise UserError(Exit.USAGE, "nothing to check; give data.train=FILE, and data.test=FILE where there is one")
    labels = LabelMap.learn(splits["train"], config.data.multi_label) if "train" in splits else None
    tokenizer = None
    if config.model is not None:
        from finetune import pretrained  # takes longer than all that is checked without it

        pretrained.quiet()
        tokenizer = pretrained.load_tokenizer(pretrained.locate(config.model))
    return examine(splits, labels, tokenizer, config.max_length)


@configuration.configclass
class CheckConfig:
    """Settings of `finetune check`."""

    data: DataConfig = configuration.field(DataConfig, "files and columns")
    model: str | None = configuration.field(None, "whose tokenizer counts tokens; null: no checks in tokens")
    max_length: int = configuration.field(128, "tokens of a text that the model will read")
