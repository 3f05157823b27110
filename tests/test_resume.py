"""The promise of --resume, through the command line and with real kills."""

import signal
from pathlib import Path

import numpy as np
from killing import Case, classifier, end_after, language_model, pretraining, summaries

from finetune import checkpoint


def test_a_run_that_is_killed_three_times_ends_with_the_model_of_an_uninterrupted_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    killed_and_straight(classifier(tmp_path / "straight", tiny_model), classifier(tmp_path / "killed", tiny_model), 3)


def test_a_pretraining_that_is_killed_hides_the_same_tokens_and_ends_with_the_same_model(tmp_path: Path) -> None:
    killed_and_straight(pretraining(tmp_path / "straight"), pretraining(tmp_path / "killed"), 1)


def test_a_language_model_that_is_killed_ends_with_the_model_of_an_uninterrupted_one(tmp_path: Path) -> None:
    killed_and_straight(language_model(tmp_path / "straight"), language_model(tmp_path / "killed"), 1)


def test_summaries_by_a_language_model_that_is_killed_are_those_of_an_uninterrupted_one(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    family = f"model={tiny_gpt2}"
    killed_and_straight(summaries(tmp_path / "straight", family), summaries(tmp_path / "killed", family), 1)


def killed_and_straight(one: Case, killed: Case, kills: int) -> None:
    """Kill a run some times and compare how it ends with the same run left alone."""
    straight = one.finish()
    for seconds in np.random.default_rng(11).uniform(0.0, 0.25, kills):
        code, errors = end_after(killed, float(seconds))
        assert code == -signal.SIGKILL, errors
        found, warnings = checkpoint.newest(killed.folder / "checkpoints")
        assert found is not None
        assert warnings == []
    assert not (killed.folder / "results.json").exists()
    assert killed.finish() == straight
    log = (killed.folder / "train.log").read_text()
    assert log.count("from update ") == kills
    assert not list(killed.folder.rglob(".tmp-*"))
