"""The promise of --resume, through the command line and with real kills."""

import signal
from pathlib import Path

import numpy as np
from killing import classifier, end_after

from finetune import checkpoint


def test_a_run_that_is_killed_three_times_ends_with_the_model_of_an_uninterrupted_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    straight = classifier(tmp_path / "straight", tiny_model).finish()
    killed = classifier(tmp_path / "killed", tiny_model)
    for seconds in np.random.default_rng(11).uniform(0.0, 0.25, 3):
        code, errors = end_after(killed, float(seconds))
        assert code == -signal.SIGKILL, errors
        found, warnings = checkpoint.newest(killed.folder / "checkpoints")
        assert found is not None
        assert warnings == []
    assert not (killed.folder / "results.json").exists()
    assert killed.finish() == straight
    log = (killed.folder / "train.log").read_text()
    assert log.count("from update ") == 3
    assert not list(killed.folder.rglob(".tmp-*"))
