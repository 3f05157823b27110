"""Strict configuration: what YAML means, what an override may be, and what every fault is answered with."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import Field

from finetune.config import (
    configclass,
    field,
    json_schema,
    load,
    read_yaml,
    settings,
    to_tree,
    to_yaml,
    unescaped,
    yaml_value,
)
from finetune.errors import Exit, UserError


@configclass
class Loop:
    """A group of settings."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = field("auto", "peak rate")
    num_train_epochs: float = field(3.0, "passes")
    per_device_train_batch_size: Annotated[int, Field(gt=0)] = field(32, "rows of a batch")
    clip: bool = field(True, "clip or not")


@configclass
class Data:
    """Another group."""

    train: str | list[str] | None = field(None, "file or list")
    label: str = field("label", "column")
    skip: bool = field(False, "skip or not")


@configclass
class Config:
    """A tree as recipes have."""

    model: str = field("bert", "name")
    mode: Literal["linear", "cosine"] = field("linear", "one of two")
    seed: int = field(1, "number")
    seeds: list[int] | None = field(None, "numbers")
    limit: int | None = field(None, "number or nothing")
    share: Annotated[float, Field(ge=0, lt=1)] = field(0.1, "part of the whole")
    places: list[Annotated[int, Field(ge=1, le=9)]] | None = field(None, "small numbers")
    data: Data = field(Data, "files")
    train: Loop = field(Loop, "loop")


def loaded(*overrides: str, file: Path | None = None) -> Config:
    return load(Config, list(overrides), file)[0]


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(Config, list(overrides), file)
    assert caught.value.code == Exit.USAGE
    assert 1 <= len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# What YAML 1.2 says


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ('"012"', "012"),
        ("'NA'", "NA"),
        ("~user/x", "~user/x"),
        ("a=b", "a=b"),
    ],
)
def test_words_times_and_dates_stay_text(yaml_file: Any, written: str, value: str) -> None:
    assert loaded(file=yaml_file(f"data:\n  label: {written}\n")).data.label == value


@pytest.mark.parametrize(("written", "value"), [("1e-5", 1e-5), ("2", 2.0), ("1.5e3", 1500.0), (".5", 0.5)])
def test_numbers_are_numbers_also_without_a_point(yaml_file: Any, written: str, value: float) -> None:
    found = loaded(file=yaml_file(f"train:\n  learning_rate: {written}\n")).train.learning_rate
    assert found == value
    assert isinstance(found, float)


def test_a_leading_zero_is_no_octal_number(yaml_file: Any) -> None:
    assert loaded(file=yaml_file("seed: 012\n")).seed == 12
    assert loaded(file=yaml_file("seed: 0o12\n")).seed == 10


@pytest.mark.parametrize("written", ["true", "True", "1.5", "7"])
def test_a_number_or_truth_value_where_text_is_wanted_is_refused_with_the_quotes_to_add(
    yaml_file: Any, written: str
) -> None:
    message = refusal(file=yaml_file(f"seed: 1\ndata:\n  label: {written}\n"))
    assert ":3: data.label cannot be" in message
    assert "expected str" in message
    assert "put it in quotes" in message


@pytest.mark.parametrize(("written", "value"), [("true", True), ("yes", True), ("no", False), ("off", False)])
def test_yes_and_no_are_truth_values_only_where_one_is_wanted(yaml_file: Any, written: str, value: bool) -> None:
    assert loaded(file=yaml_file(f"data:\n  skip: {written}\n")).data.skip is value
    assert loaded(f"data.skip={written}").data.skip is value


@pytest.mark.parametrize("written", ["0.5", "[true]", "maybe", "null", "2"])
def test_what_is_no_truth_value_is_refused(yaml_file: Any, written: str) -> None:
    assert "expected bool" in refusal(file=yaml_file(f"data:\n  skip: {written}\n"))


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n", "---\n"])
def test_an_empty_file_is_all_defaults(yaml_file: Any, content: str) -> None:
    assert loaded(file=yaml_file(content)) == Config()


def test_a_byte_order_mark_is_skipped(yaml_file: Any) -> None:
    assert loaded(file=yaml_file(b"\xef\xbb\xbfseed: 4\n")).seed == 4


def test_null_is_nothing_where_nothing_is_allowed(yaml_file: Any) -> None:
    assert loaded(file=yaml_file("limit: null\nseeds: ~\n")) == Config()
    assert "seed cannot be None: expected int" in refusal(file=yaml_file("seed: null\n"))


def test_a_nested_key_may_be_written_with_dots(yaml_file: Any) -> None:
    assert loaded(file=yaml_file("data.label: kind\ntrain:\n  clip: false\n")).data.label == "kind"


def test_the_recipe_line_is_not_a_setting(yaml_file: Any) -> None:
    path = yaml_file("recipe: bert_classification\nseed: 3\n")
    assert loaded(file=path).seed == 3
    assert yaml_value(path, "recipe") == "bert_classification"
    assert yaml_value(path, "absent") is None


# What is refused


@pytest.mark.parametrize(
    "content",
    [
        "seed: 1\nmodel: a\nseed: 2\n",
        "data:\n  label: a\nmodel: x\ndata:\n  skip: true\n",
        "data:\n  label: a\n\ndata.label: b\n",
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(yaml_file: Any, content: str) -> None:
    message = refusal(file=yaml_file(content))
    again = 3 if content.startswith("seed") else 4
    assert f":{again}: " in message
    assert "twice" in message or "duplicate" in message


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("seed: !!python/object/apply:os.system ['true']\n", 1, "tag"),
        ("model: x\nseed: !custom 3\n", 2, "tag"),
        ("model: &a x\ndata:\n  label: *a\n", 1, "anchors"),
        ("model: x\nseeds: &a [1]\n", 2, "anchors"),
        ("data: &a {label: x}\n", 1, "anchors"),
        ("seeds: !!python/tuple [1]\n", 1, "tag"),
        ("data: !!python/object:os.x {label: x}\n", 1, "tag"),
        ("!!python/object:os.x {seed: 1}\n", 1, "tag"),
        ("<<: {seed: 1}\n", 1, ""),
        ("model: =\n", 1, "quotes"),
        ("seed: !!int ''\n", 1, ""),
        ("? [a, b]\n: 1\n", 1, "key"),
        ("- 1\n- 2\n", 1, "key: value"),
        ("just text\n", 1, "key: value"),
        ("seed: 1\n  model: x\n", 2, ""),
        ("seed: [1\n", 2, ""),
        ("seed: 1\nmodel: \"x\n", 3, ""),
        ("a: 1\n---\nb: 2\n", 2, ""),
    ],
)  # fmt: skip
def test_what_is_no_plain_mapping_is_refused_with_its_line(
    yaml_file: Any, content: str, line: int, reason: str
) -> None:
    message = refusal(file=yaml_file(content))
    assert f"config.yaml:{line}: " in message
    assert reason in message


@pytest.mark.parametrize("depth", [60, 400, 20_000])
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_deep_nesting_is_refused(yaml_file: Any, depth: int, bracket: str) -> None:
    opening = "[" if bracket == "[]" else "{a: "
    assert "nested too deeply" in refusal(file=yaml_file(f"seeds: {opening * depth}{bracket[1] * depth}\n"))


def test_an_alias_bomb_is_refused_at_its_first_anchor(yaml_file: Any) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "anchors" in refusal(file=yaml_file("\n".join(["a0: &a0 [x]", *levels])))


def test_a_mapping_bomb_is_refused_also_where_every_mapping_is_opened(yaml_file: Any) -> None:
    levels = [f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(9))}}}" for n in range(1, 9)]
    path = yaml_file("\n".join(["a0: &a0 {x: 1}", *levels]))
    with pytest.raises(UserError, match="anchors"):
        read_yaml(path)


def test_a_huge_file_is_refused_before_it_is_parsed(yaml_file: Any) -> None:
    assert "too large" in refusal(file=yaml_file("# " + "x" * 1_000_001))


def test_bytes_that_are_not_utf8_are_refused_with_their_place(yaml_file: Any) -> None:
    assert "byte 7 is not UTF-8" in refusal(file=yaml_file(b"model: \xff\n"))


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UserError) as caught:
            load(Config, [], path)
        assert caught.value.code == Exit.NO_INPUT


@pytest.mark.parametrize(
    ("key", "close"),
    [("sed", "seed"), ("data.lable", "data.label"), ("train.clipp", "train.clip"), ("Model", "model")],
)
def test_an_unknown_key_is_answered_with_the_nearest(yaml_file: Any, key: str, close: str) -> None:
    assert f"unknown setting {key}; did you mean {close}?" in refusal(f"{key}=1")
    assert f":1: unknown setting {key}; did you mean {close}?" in refusal(file=yaml_file(f"{key}: 1\n"))


def test_a_group_is_answered_with_its_settings() -> None:
    assert "unknown setting data; " in refusal("data=x.csv")


def test_an_unlike_key_is_answered_without_a_guess() -> None:
    assert refusal("zzzzzz=1") == "unknown setting zzzzzz"


@pytest.mark.parametrize("override", ["seed", "=1", "", "--seed"])
def test_an_argument_without_key_or_value_is_refused_with_an_example(override: str) -> None:
    assert "is not KEY=VALUE; write for example" in refusal(override)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("seed=x", "int"),
        ("seed=1.5", "int"),
        ("seed=[1]", "int"),
        ("train.clip=maybe", "bool"),
        ("mode=cubic", "linear|cosine"),
        ("train.learning_rate=fast", "float | auto"),
        ("limit=x", "int | null"),
        ("seeds=1", "[int] | null; give seeds=[1]"),
        ("seeds=[a]", "[int] | null"),
        ("seed=!!int", "int"),
    ],
)
def test_a_wrong_type_is_answered_with_the_expected_one(override: str, wanted: str) -> None:
    assert f"expected {wanted}" in refusal(override)


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("train.learning_rate=0", "must be above 0"),
        ("train.learning_rate=-1", "must be above 0"),
        ("batch_size=0", "must be above 0"),
        ("share=-1", "must be 0 or more"),
        ("share=1.0", "must be below 1"),
        ("places=[1,10]", "must be 9 or less"),
    ],
)
def test_a_number_beyond_its_bound_is_answered_with_the_bound(override: str, bound: str) -> None:
    message = refusal(override)
    assert message.startswith(f"{override}: ")
    assert message.endswith(f": {bound}")


@pytest.mark.parametrize("text", ["[" * 5_000, "[" * 60 + "]" * 60, "[" + "x" * 1_000_001])
def test_a_value_that_would_exhaust_the_parser_is_refused(text: str) -> None:
    assert "too large" in refusal(f"seeds={text}")


# Overrides


def test_an_override_goes_before_the_file_and_the_file_before_the_default(yaml_file: Any) -> None:
    path = yaml_file("seed: 2\nlimit: 5\n")
    config = loaded("seed=3", file=path)
    assert (config.seed, config.limit, config.mode) == (3, 5, "linear")
    assert loaded("seed=3", "seed=4", file=path).seed == 4


@pytest.mark.parametrize(
    "text",
    ["001", "NA", "no", "1e-5", "true", "a=b=c", "x/{language}.csv", "a: b", "# x", "'q'", " ", "", "-rf", "ünïcode"],
)
def test_text_is_kept_to_the_letter(text: str) -> None:
    assert loaded(f"data.label={text}").data.label == text
    assert loaded(f"data.train={text}").data.train == text


def test_lists_are_written_in_brackets_and_their_texts_are_kept() -> None:
    assert loaded("data.train=[a.csv, 001, no, 1e5]").data.train == ["a.csv", "001", "no", "1e5"]
    assert loaded("seeds=[1,2,3]").seeds == [1, 2, 3]


@pytest.mark.parametrize("text", ["[SEP]", "[0-9]+", "["])
def test_brackets_are_text_where_a_setting_is_no_list(text: str) -> None:
    assert loaded(f"data.label={text}").data.label == text


@pytest.mark.parametrize("text", ["null", "none", "None"])
def test_null_unsets_a_setting(text: str) -> None:
    assert loaded("limit=3", f"limit={text}").limit is None
    assert loaded("data.train=x", f"data.train={text}").data.train is None


def test_null_is_text_where_a_setting_cannot_be_nothing() -> None:
    assert loaded("data.label=None").data.label == "None"


def test_only_escapes_that_are_known_are_turned() -> None:
    assert unescaped(r"\n\t|\\n\\\t \x \ ") == "\n\t|\\n\\\t \\x \\ "


def test_a_short_name_works_and_is_answered_with_the_full_one(yaml_file: Any) -> None:
    config, notes = load(Config, ["lr=3e-4", "epochs=2", "train.batch_size=8"])
    assert (config.train.learning_rate, config.train.num_train_epochs) == (3e-4, 2.0)
    assert config.train.per_device_train_batch_size == 8
    assert notes == [
        "lr is short for learning_rate",
        "epochs is short for num_train_epochs",
        "batch_size is short for per_device_train_batch_size",
    ]
    assert load(Config, [], yaml_file("train:\n  lr: 1e-3\n"))[1] == ["lr is short for learning_rate"]


def test_the_last_part_of_a_path_is_enough_where_it_is_unique() -> None:
    assert loaded("clip=false").train.clip is False
    assert load(Config, ["clip=false"])[1] == []


def test_a_name_of_a_setting_goes_before_the_same_name_in_a_group() -> None:
    assert "unknown setting" not in refusal("seed=x")
    assert loaded("data.train=t.csv").data.train == "t.csv"


# Out and in again


def test_what_is_written_reads_back_to_the_same_configuration(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    odd = [
        "no",
        "001",
        "1e-5",
        "null",
        "~",
        "a: b",
        "# c",
        "x\ny",
        "\ttab",
        "'",
        '"',
        "",
        " ",
        "ü\u2028",
        "\x85",
        "12:30",
        "true",
    ]
    odd += [
        "2024-01-01",
        "[x]",
        "{x}",
        "&a",
        "*a",
        "!b",
        "%c",
        "@d",
        "`e",
        "|",
        ">",
        "-",
        "?",
        "=",
        "<<",
        "0x1F",
        "\U0001f600",
    ]
    for trial in range(60):
        pick = [odd[index] for index in random.integers(0, len(odd), 5)]
        config = Config(
            model=pick[0],
            mode=random.choice(["linear", "cosine"]).item(),
            seed=int(random.integers(-(2**62), 2**62)),
            seeds=[int(n) for n in random.integers(0, 99, 3)] if trial % 2 else None,
            limit=None if trial % 3 else int(random.integers(0, 9)),
            data=Data(train=[pick[1], pick[2]] if trial % 4 else pick[1], label=pick[3], skip=bool(trial % 2)),
            train=Loop(
                learning_rate=float(10.0 ** random.uniform(-12, 3)), num_train_epochs=float(random.uniform(0, 9))
            ),
        )  # fmt: skip
        path = tmp_path / "round.yaml"
        path.write_text(to_yaml({"recipe": "r", **to_tree(config)}), encoding="utf-8")
        assert loaded(file=path) == config


def test_settings_lists_every_leaf_with_type_default_and_help() -> None:
    found = {setting.path: setting for setting in settings(Config)}
    assert len(found) == 14
    assert all(setting.help for setting in found.values())
    assert found["data.train"].type_name == "str | [str] | null"
    assert found["mode"].type_name == "linear|cosine"
    assert found["train.per_device_train_batch_size"].default == 32


def test_the_schema_has_every_field_with_its_help() -> None:
    schema = json_schema(Config)
    described = {name: set(part["properties"]) for name, part in schema["$defs"].items()}
    assert described == {"Data": {"train", "label", "skip"}, "Loop": set(to_tree(Loop()))}
    assert set(schema["properties"]) == {*to_tree(Config()), "recipe"}
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"] == "number"


def test_every_unread_mapping_is_opened_where_nothing_is_known(yaml_file: Any) -> None:
    assert read_yaml(yaml_file("a:\n  b:\n    c: 1\nd: [x]\n")) == {"a.b.c": (1, 3), "d": (["x"], 4)}


def test_an_unknown_name_in_code_is_refused() -> None:
    with pytest.raises(ValueError, match="sead"):
        Config(sead=1)  # type: ignore[call-arg]
