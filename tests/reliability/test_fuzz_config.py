"""Whatever a file or an argument says, the answer is a configuration or one line with exit code 2."""

import time
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.config import configclass, field, load, read_yaml, to_tree, to_yaml
from finetune.errors import Exit, UserError

pytestmark = pytest.mark.reliability
SLOW = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@configclass
class Group:
    """A group."""

    label: str = field("label", "text")
    rate: float | Literal["auto"] = field("auto", "number or auto")
    files: str | list[str] | None = field(None, "text or texts")


@configclass
class Config:
    """A tree of every kind of setting."""

    model: str = field("bert", "text")
    seed: int = field(1, "number")
    seeds: list[int] | None = field(None, "numbers")
    clip: bool = field(True, "truth")
    data: Group = field(Group, "group")


NAMES = st.sampled_from("model seed seeds clip data data.label rate files lable << recipe".split())  # noqa: SIM905
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
TREES = st.dictionaries(NAMES | st.text(), VALUES | st.dictionaries(NAMES, VALUES, max_size=3), max_size=5)
PIECES = st.sampled_from(
    ["seed: ", "data:\n  ", "&a ", "*a", "!!python/object ", "- ", "[", "]", "{", "}", "\n", "? ", ": ", "|\n", "'",
     '"', "#", "\t", "<<: ", "%YAML 1.1\n", "---\n", "...\n", "1e-5", "no", "\x00", "\ufeff", "0o9", "0x",
     ".inf", "-", "=", "!!int ", "!!float x", "!!binary ", "2024-99-99", "1_000", "0b", "+", "1:99"]
)  # fmt: skip


def answered(file: Path, overrides: list[str]) -> Config | None:
    """Return the configuration, or None after a refusal in due form; anything else fails the test."""
    began = time.perf_counter()
    try:
        found: Config | UserError = load(Config, overrides, file)[0]
    except UserError as error:
        found = error
    assert time.perf_counter() - began < 1.0
    if isinstance(found, UserError):
        assert found.code == Exit.USAGE
        assert str(found).strip()
        return None
    return found


@SLOW
@given(pieces=st.lists(PIECES | st.text(max_size=5), max_size=25))
def test_any_text_is_a_configuration_or_a_refusal(tmp_path: Path, pieces: list[str]) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_bytes("".join(pieces).encode("utf-8", "surrogatepass"))
    answered(file, [])


@SLOW
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_a_refusal(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(raw)
    answered(file, [])


@SLOW
@given(tree=TREES)
def test_any_tree_is_a_configuration_or_a_refusal(tmp_path: Path, tree: dict[str, Any]) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_text(to_yaml(tree), encoding="utf-8")
    answered(file, [])


@SLOW
@given(key=NAMES | st.text(), value=st.text() | st.lists(PIECES, max_size=10).map("".join))
def test_any_argument_is_a_configuration_or_a_refusal(tmp_path: Path, key: str, value: str) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("")
    answered(file, [f"{key}={value}"])


@SLOW
@given(
    label=st.text(),
    model=st.text(),
    files=st.none() | st.text() | st.lists(st.text(), max_size=3),
    seed=st.integers(),
)
def test_any_configuration_is_written_and_read_back_the_same(
    tmp_path: Path, label: str, model: str, files: Any, seed: int
) -> None:
    config = Config(model=model, seed=seed, data=Group(label=label, files=files))
    file = tmp_path / "round.yaml"
    file.write_bytes(to_yaml(to_tree(config)).encode())
    assert answered(file, []) == config
    assert read_yaml(file)["model"][0] == model
