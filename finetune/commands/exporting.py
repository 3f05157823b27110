"""Hand a run's model on: as a folder, merged, to the Hub, or its weights alone."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from finetune import adapters, export, pretrained, push, terminal
from finetune.commands.runs import read_rows, trained
from finetune.data.sequences import PairsConfig
from finetune.errors import Exit, UserError
from finetune.run import Run


def export_weights(run: str, output: str, checkpoint: str) -> dict[str, Any]:
    """Write the weights of a run's checkpoint, `last` or that of an update, into one safetensors file.

    Returns {"output", "step", "bytes"}.
    """
    step = export.weights(Run.open(run).checkpoints, checkpoint, Path(output))
    return {"output": output, "step": step, "bytes": Path(output).stat().st_size}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Where an exported model goes: a folder, the Hub (its name there; None: it stays here), or both.

    `merge` makes a plain model of base and adapter, compared with the adapter on the run's test rows, or on `data`.
    `private` None: private where the repository is new.
    """

    output: str | None = None
    merge: bool = False
    data: str | None = None
    push: str | None = None
    private: bool | None = None


def export_model(run: str, options: ExportOptions) -> dict[str, Any]:
    """Write a run's model with its card into a folder of its own, or to the Hub; return {"output_dir", "bytes"}.

    A merged model has {"rows", "largest_difference", "tolerance"}, one on the Hub {"repository", "address", "private",
    "commit"}, too.
    """
    if options.output is None and options.push is None:
        raise UserError(Exit.USAGE, "where to? give --output FOLDER, --push OWNER/NAME on the Hub, or both")
    if options.private is not None and options.push is None:
        raise UserError(Exit.USAGE, "--private and --public are of --push OWNER/NAME, which is missing")
    if options.data is not None and not options.merge:
        raise UserError(Exit.USAGE, "--data has the texts on which --merge compares; give --merge too, or leave it out")
    pretrained.quiet()
    folder, _, config = trained(run, ())
    target = None if options.push is None else push.greet(options.push, options.private)
    with tempfile.TemporaryDirectory() as temporary:
        model, found = folder.model, dict[str, Any]()
        if options.output is not None:
            found["output_dir"] = options.output
        if options.output is not None or options.merge:
            model = Path(temporary) / "model" if options.output is None else Path(options.output)
            found |= _export(folder, config, model, options)
        found["bytes"] = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
        if target is not None:
            folder.say("push", f"{terminal.size(found['bytes'])} to {target.name}")
            found |= _push(folder, model, target, options)
    return found


def _export(folder: Run, config: Any, model: Path, options: ExportOptions) -> dict[str, Any]:
    if not options.merge:
        export.copy(folder.model, model)
        return {}
    texts = _texts_of(folder, config, options.data)
    difference = export.merge(folder.model, model, texts)
    return {"rows": len(texts.texts), "largest_difference": difference, "tolerance": adapters.TOLERANCE}


def _push(folder: Run, model: Path, target: push.Target, options: ExportOptions) -> dict[str, Any]:
    if adapters.is_adapter(model):
        base, identity = adapters.base_of(model)
        if identity is not None and not identity.startswith("revision:"):
            what = f"the adapter stands on {base} of this machine, which others lack"
            folder.say("warning", f"{what}; --merge takes it along")
    if options.output is not None:  # the folder is written: a second time it would be in the way
        seen = {True: " --private", False: " --public", None: ""}[options.private]
        again = f"the folder is written; go on with: finetune export {options.output} --push {options.push}{seen}"
        target = dataclasses.replace(target, again=again)
    return dataclasses.asdict(push.push(model, target))


def _texts_of(run: Run, config: Any, data: str | None) -> export.Texts:
    """Return the texts of a file, or of the test rows that a run predicted; raises UserError (2) where it has none."""
    if data is not None:
        split = read_rows("test", data, config.data)
        pairs = isinstance(config.data, PairsConfig)
        return export.Texts(split.sources() if pairs else split.texts(), split.targets() if pairs else split.pairs())
    judged = run.results()["diagnostics"]["judged_on"] if run.config_file.is_file() else None
    rows = [] if judged is None else run.read_predictions(judged)
    name = next((name for name in ("source", "text") if rows and name in rows[0]), None)
    if name is None:
        what = f"{run.folder} keeps no test texts to compare the merged model on"
        raise UserError(Exit.USAGE, f"{what}; give some: --data FILE")
    beside = "gold" if name == "source" else "text_pair" if "text_pair" in rows[0] else None
    told = None if beside is None else [row[beside] for row in rows]
    one_each = (
        None if told is None else [one if isinstance(one, str) else one[0] for one in told]
    )  # of several references
    return export.Texts([row[name] for row in rows], one_each)
