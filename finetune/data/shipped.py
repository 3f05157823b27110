"""Where the data and checkpoints lie that come with the project."""

from pathlib import Path

from finetune.errors import Exit, UserError

CHECKPOINTS = ("mini-mbert", "mini-gpt2")  # names that `model=` takes


def shipped(name: str) -> Path:
    """Return a folder that comes with the project: finetune/shipped/ in an installed wheel, data/ in a checkout.

    Raises UserError (66) where it is not there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "shipped" / name, package.parent / "data" / name):
        if folder.is_dir():
            return folder
    raise UserError(
        Exit.NO_INPUT, f"{name}, which finetune-recipes ships, is not installed; reinstall finetune-recipes"
    )
