"""Files by language: what a pattern stands for, what is missed and what is not, and several languages as one split."""

from pathlib import Path
from unittest import mock

import pytest
from calling import write_csv

from finetune.data import columns, patterns
from finetune.data.columns import DataConfig, Split, from_lines, read_split
from finetune.data.patterns import Corpus, check_codes, expand, files_of, join, languages_of, read_languages
from finetune.errors import Exit, UserError

ROWS = [("1", "my card", "a"), ("2", "my parcel", "b"), ("3", "the card", "a"), ("4", "the parcel", "b")]


def write(folder: Path, *names: str) -> DataConfig:
    """Write the same rows into `<name>.csv` for each name, e.g. `en.train`, and return settings that read them."""
    for name in names:
        language = name.split(".")[0]
        write_csv(folder / f"{name}.csv", [(identity, f"{text} {language}", label) for identity, text, label in ROWS])
    return DataConfig(
        train=f"{folder}/{{language}}.train.csv",
        validation=f"{folder}/{{language}}.validation.csv",
        test=f"{folder}/{{language}}.test.csv",
    )


def read(config: DataConfig, sources: list[str], tests: list[str] | None) -> Corpus:
    return read_languages(config, sources, tests, seed=1)


# Patterns


def test_a_pattern_stands_for_the_file_of_each_language() -> None:
    assert expand("data.test", "x/{language}/{language}.csv", "it") == ["x/it/it.csv"]
    assert expand("data.test", ["a/{language}.csv", "b/{language}.csv"], "it") == ["a/it.csv", "b/it.csv"]


@pytest.mark.parametrize("pattern", ["x/en.csv", "x/{lang}.csv", ["x/{language}.csv", "y.csv"]])
def test_a_pattern_without_the_language_is_refused_with_an_example(pattern: str | list[str]) -> None:
    with pytest.raises(UserError, match=r"data\.test=.*no \{language\}(.|\n)*x/\{language\}\.csv") as caught:
        expand("data.test", pattern, "it")
    assert caught.value.code == Exit.USAGE


def test_the_languages_of_a_pattern_are_those_that_have_every_file(tmp_path: Path) -> None:
    for name in ("a[1]/it/it.csv", "a[1]/de/de.csv", "a[1]/de/it.csv", "a[1]/es/fr.csv", "b/de.csv", "b/no.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "pt.csv").mkdir()
    nested = f"{tmp_path}/a[1]/{{language}}/{{language}}.csv"
    assert languages_of("data.test", nested) == ["de", "it"]
    assert languages_of("data.test", [nested, f"{tmp_path}/b/{{language}}.csv"]) == ["de"]
    assert languages_of("data.test", f"{tmp_path}/b/{{language}}.csv") == ["de", "no"]
    assert languages_of("data.test", f"{tmp_path}/c/{{language}}.csv") == []


def test_a_missing_file_names_the_language_who_asked_and_what_there_is(tmp_path: Path) -> None:
    config = write(tmp_path, "en.test", "it.test")
    assert config.test is not None
    with pytest.raises(UserError, match=r"pt\.test\.csv: no such file, but --languages asks for pt") as caught:
        files_of("data.test", config.test, "pt", "--languages")
    assert caught.value.code == Exit.NO_INPUT
    assert "there are files of en, it" in str(caught.value)


def test_a_pattern_that_no_file_fits_is_missing_input(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "en.validation")
    with pytest.raises(UserError, match=r"data\.test=.*test\.csv: no language has such a file") as caught:
        read(config, ["en"], None)
    assert caught.value.code == Exit.NO_INPUT


@pytest.mark.parametrize("code", ["", "../x", "a/b", "-rf", "en it", "e\0n", "x" * 33])
def test_what_cannot_be_part_of_a_file_name_is_no_language_code(code: str) -> None:
    with pytest.raises(UserError, match="no language code") as caught:
        check_codes("test_languages", ["en", code])
    assert caught.value.code == Exit.USAGE


def test_a_language_given_twice_and_no_language_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="test_languages: it is given twice") as caught:
        check_codes("test_languages", ["it", "en", "it"])
    assert caught.value.code == Exit.USAGE
    with pytest.raises(UserError, match="train_languages names no language"):
        check_codes("train_languages", [])
    assert check_codes("test_languages", ["no", "pt-BR", "zh_Hant"]) == ("no", "pt-BR", "zh_Hant")


# Reading


def test_only_the_files_of_languages_that_were_asked_for_are_missed(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "en.validation", "en.test", "it.test", "de.test", "de.train", "es.train")
    corpus = read(config, ["en"], ["en", "it", "de"])
    assert (corpus.sources, corpus.tests, corpus.targets) == (("en",), ("en", "it", "de"), ["it", "de"])
    assert list(corpus.train) == ["en", "de"]  # the training file of de is there: an oracle; es was not asked for
    assert corpus.validation["de"].held_out
    assert not corpus.validation["en"].held_out
    assert list(corpus.test) == ["en", "it", "de"]
    assert corpus.labels.names == ("a", "b")
    assert sorted(corpus.splits()) == [
        "de test", "de train", "de validation", "en test", "en train", "en validation", "it test",
    ]  # fmt: skip
    for sources, tests, missing in (
        (["it"], ["en"], "it.train.csv: no such file, but train_languages asks for it"),
        (["de"], ["en"], "de.validation.csv: no such file, but train_languages asks for de"),
        (["en"], ["en", "fr"], "fr.test.csv: no such file, but test_languages asks for fr"),
    ):
        with pytest.raises(UserError, match=missing) as caught:
            read(config, sources, tests)
        assert caught.value.code == Exit.NO_INPUT


def test_without_test_languages_every_language_with_a_file_is_scored_the_training_language_first(
    tmp_path: Path,
) -> None:
    config = write(tmp_path, "it.train", "it.validation", "it.test", "de.test", "en.test")
    assert read(config, ["it"], None).tests == ("it", "de", "en")


def test_validation_of_another_language_is_not_read_without_its_training_file(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "en.validation", "it.validation", "it.test")
    assert list(read(config, ["en"], ["it"]).validation) == ["en"]


def test_train_and_test_must_be_given(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train")
    for given in (DataConfig(train=config.train), DataConfig(test=config.train)):
        with pytest.raises(UserError, match=r"no data\.(train|test); give data\.") as caught:
            read(given, ["en"], None)
        assert caught.value.code == Exit.USAGE


def test_labels_that_training_does_not_have_are_listed_with_their_languages(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "en.validation", "en.test")
    write_csv(tmp_path / "it.test.csv", [("1", "la carta", "A"), ("2", "il pacco", "b"), ("3", "il conto", "c")])
    write_csv(tmp_path / "de.test.csv", [("1", "die Karte", "a"), ("2", "das Paket", "d")])
    with pytest.raises(UserError) as caught:
        read(config, ["en"], ["en", "it", "de"])
    assert caught.value.code == Exit.BAD_DATA
    message = str(caught.value)
    assert f'it test ({tmp_path}/it.test.csv): "A", "c"; de test ({tmp_path}/de.test.csv): "d"' in message
    assert 'training has "a", "b"' in message
    assert len(message.splitlines()) <= 3


def test_training_languages_with_different_labels_are_refused_and_a_test_set_may_lack_a_label(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "en.validation", "it.validation")
    rows = [*ROWS, ("5", "il conto", "c"), ("6", "la carta", "c")]
    write_csv(tmp_path / "it.train.csv", rows)
    write_csv(tmp_path / "en.test.csv", ROWS[:1])
    with pytest.raises(UserError, match='different labels: en has no "c"') as caught:
        read(config, ["en", "it"], ["en"])
    assert caught.value.code == Exit.BAD_DATA
    assert read(config, ["en"], ["en"]).labels.names == ("a", "b")


def test_a_hub_data_set_is_read_by_the_configuration_of_each_language(tmp_path: Path) -> None:
    write(tmp_path, "en.train", "it.train", "en.test", "it.test")
    asked: list[tuple[str, str | None]] = []

    def hub(name: str, config: str | None, revision: str | None, wanted: columns.Wanted) -> dict[str, columns.Source]:
        asked.append((name, config))
        files = {kind: tmp_path / f"{config}.{kind}.csv" for kind in ("train", "test")}
        return {kind: columns.open_file(str(file), wanted) for kind, file in files.items() if file.is_file()}

    with mock.patch.object(columns, "open_hub", hub):
        corpus = read(DataConfig(name="team/intents", config="{language}"), ["en"], ["en", "it"])
        with pytest.raises(UserError, match=r"data\.name=team/intents: say where the language stands"):
            read(DataConfig(name="team/intents"), ["en"], ["en", "it"])
        (tmp_path / "it.test.csv").unlink()
        with pytest.raises(UserError, match="no test split for it") as caught:
            read(DataConfig(name="team/intents", config="{language}"), ["en"], ["en", "it"])
    assert caught.value.code == Exit.NO_INPUT
    assert asked[:2] == [("team/intents", "en"), ("team/intents", "it")]
    assert [text.split()[-1] for text in corpus.test["it"].texts()] == ["it"] * 4


# Several languages as one split


def split_of(folder: Path, language: str, rows: list[tuple[str, str, str]]) -> Split:
    return read_split("test", str(write_csv(folder / f"{language}.csv", rows)), DataConfig())


def test_joined_rows_keep_text_label_and_place_and_get_ids_of_their_own(tmp_path: Path) -> None:
    parts = {"en": split_of(tmp_path, "en", ROWS), "it": split_of(tmp_path, "it", ROWS[:2])}
    together = join("test", parts)
    assert together.ids() == ["en:1", "en:2", "en:3", "en:4", "it:1", "it:2"]
    assert together.texts() == [*parts["en"].texts(), *parts["it"].texts()]
    assert together.labels() == [*parts["en"].labels(), *parts["it"].labels()]
    assert [together.where(row) for row in (0, 5)] == [f"{tmp_path}/en.csv:2", f"{tmp_path}/it.csv:3"]
    assert together.sha256 == {**parts["en"].sha256, **parts["it"].sha256}
    assert together.name == "test"
    assert together.rows._fingerprint != join("test", {"it": parts["en"], "en": parts["it"]}).rows._fingerprint
    assert together.select([5]).texts() == ["my parcel"]


def test_one_language_is_joined_to_itself(tmp_path: Path) -> None:
    part = split_of(tmp_path, "en", ROWS)
    alone = join("train", {"en": part})
    assert (alone.ids(), alone.name) == (part.ids(), "train")


def test_ids_that_are_row_numbers_are_known_as_such(tmp_path: Path) -> None:
    without = write_csv(tmp_path / "without.csv", [("my card", "a"), ("my parcel", "b")], ("text", "label"))
    repeated = split_of(tmp_path, "repeated", [("1", "x", "a"), ("1", "y", "b")])
    assert read_split("test", str(without), DataConfig()).numbered
    assert repeated.numbered
    assert from_lines("stdin", ["my card"]).numbered
    own = split_of(tmp_path, "own", ROWS)
    assert not own.numbered
    assert not own.select([0]).numbered
    assert join("test", {"own": own, "repeated": repeated}).numbered


def test_the_training_rows_of_a_run_are_read_again_as_they_were(tmp_path: Path) -> None:
    config = write(tmp_path, "en.train", "it.train", "en.test")
    corpus = read(config := DataConfig(train=config.train, test=config.test), ["en", "it"], ["en"])
    again = patterns.read_training(config, ["en", "it"], seed=1)
    assert again.texts() == corpus.together("train", ["en", "it"]).texts()
    assert len(again) < 2 * len(ROWS)  # some are held out
    assert patterns.is_pattern(config.train)
    assert not patterns.is_pattern("x/en.csv")
    assert not patterns.is_pattern(None)
