"""Pictures: the same bytes for the same figures, text that stays text, and lines that show what was measured."""

import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from finetune.errors import UserError
from finetune.report.pictures import (
    INK,
    Series,
    alignment,
    curves,
    heat_map,
    heat_map_in_words,
    inline,
    intervals,
    intervals_in_words,
    save_svg,
)

SVG = "{http://www.w3.org/2000/svg}"
WEIGHTS = np.array([[0.9, 0.1, 0.0], [0.2, 0.05, 0.75]])


def texts(path: Path) -> list[str]:
    """Return the texts that a reader of the picture sees."""
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text")]


def drawn_map(path: Path, source: list[str] | None = None, title: str = "map") -> Path:
    save_svg(alignment(source or ["ein", "Hut", "."], ["a", "hat"], WEIGHTS, title), path)
    return path


def test_a_map_names_its_tokens_and_the_larger_shares_in_percent(tmp_path: Path) -> None:
    found = texts(drawn_map(tmp_path / "a.svg"))
    assert {"ein", "Hut", ".", "a", "hat", "map"} <= set(found)
    assert [text for text in found if text.isdigit()] == ["90", "10", "20", "75"]


def test_the_same_map_twice_is_the_same_bytes_whatever_the_users_own_settings(tmp_path: Path) -> None:
    first = drawn_map(tmp_path / "a.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert drawn_map(tmp_path / "b.svg").read_bytes() == first
    assert not re.search(rb"\d\d:\d\d:\d\d", first)


def test_markup_formulas_other_scripts_and_control_characters_in_tokens_stay_text(tmp_path: Path) -> None:
    source = ["<script>&amp;", "$x^2$", "中文\x1b"]
    path = drawn_map(tmp_path / "a.svg", source, title="<b> & $5 or $6")
    assert {*source[:2], "中文\\x1b", "<b> & $5 or $6"} <= set(texts(path))
    assert "<script" not in path.read_text(encoding="utf-8")
    assert ElementTree.parse(path).findtext(f"{SVG}title") == "<b> & $5 or $6"


def test_a_map_has_a_white_ground(tmp_path: Path) -> None:
    ground = next(ElementTree.parse(drawn_map(tmp_path / "a.svg")).iter(f"{SVG}path"))
    assert "#ffffff" in ground.attrib["style"]


def test_a_map_of_sixty_tokens_a_side_stays_small_and_a_long_token_is_shortened(tmp_path: Path) -> None:
    tokens = ["x" * 200, *(f"token{number}" for number in range(59))]
    save_svg(alignment(tokens, tokens, np.full((60, 60), 1 / 60), "wide"), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size < 600_000  # bytes, where every cell is drawn
    assert texts(tmp_path / "a.svg")[0] == "x" * 23 + "…"


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights \(2, 3\) for 3 target and 2 source"):
        alignment(["a", "b"], ["c", "d", "e"], WEIGHTS, "")


@pytest.mark.parametrize("logarithmic", ["", "x", "y", "xy"])
def test_curves_have_labels_a_legend_and_bands_where_there_are_intervals(tmp_path: Path, logarithmic: str) -> None:
    x = [8, 16, 64]
    lines = [Series("dot", x, [1, 2, 3]), Series("scaled & dot", x, [2, 3, 4], low=[1, 2, 3], high=[3, 4, 5])]
    figure = curves(lines, "Scaling", "head size", "chrF", logarithmic)
    save_svg(figure, tmp_path / "a.svg")
    assert {"Scaling", "head size", "chrF", "dot", "scaled & dot"} <= set(texts(tmp_path / "a.svg"))
    assert len(figure.axes[0].collections) == 1
    if "x" in logarithmic:
        assert {"8", "16", "64"} <= set(texts(tmp_path / "a.svg"))


def test_a_picture_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises((UserError, OSError), match="nowhere"):
        drawn_map(tmp_path / "nowhere" / "a.svg")


Grid = list[list[float | None]]
MAP: tuple[list[str], list[str], Grid] = (
    ["BERT, <en>", "oracle"], ["en", "it", "日本"], [[0.95, 0.5, 0.4551], [None, 0.871, None]],
)  # fmt: skip


def test_a_heat_map_has_a_number_in_each_cell_that_was_measured(tmp_path: Path) -> None:
    save_svg(heat_map(*MAP, "Accuracy", "darker is higher"), tmp_path / "a.svg")
    found = texts(tmp_path / "a.svg")
    assert [text for text in found if re.fullmatch(r"\d\.\d+", text)] == ["0.950", "0.500", "0.455", "0.871"]
    assert {"BERT, <en>", "oracle", "en", "it", "日本", "Accuracy", "darker is higher"} <= set(found)


def test_a_higher_cell_is_darker_and_its_number_stands_out() -> None:
    axes = heat_map(["a"], ["x", "y", "z"], [[0.1, 0.5, 0.9]], "shades").axes[0]
    mesh = axes.collections[0]
    mesh.update_scalarmappable()
    light = mesh.get_facecolors()[:, :3].mean(axis=1)  # type: ignore[attr-defined]
    assert light[0] > light[1] > light[2]
    assert [text.get_color() for text in axes.texts] == [INK, INK, "white"]


@pytest.mark.parametrize("values", [[[0.5, 0.5]], [[None, 0.5]], [[None, None]]])
def test_a_heat_map_of_one_value_or_none_can_be_drawn(tmp_path: Path, values: Grid) -> None:
    save_svg(heat_map(["a"], ["x", "y"], values, "flat"), tmp_path / "a.svg")
    assert texts(tmp_path / "a.svg").count("0.500") == sum(value is not None for value in values[0])


def test_a_heat_map_is_told_in_words_to_those_who_cannot_see_it(tmp_path: Path) -> None:
    words = heat_map_in_words(*MAP)
    assert words == "BERT, <en>: en 0.950, it 0.500, 日本 0.455; oracle: it 0.871"
    for title in ("Accuracy & more", ""):
        save_svg(heat_map(*MAP, title), tmp_path / "a.svg", words)
        root = ElementTree.parse(tmp_path / "a.svg").getroot()
        assert root.findtext(f"{SVG}desc") == words
        assert (root.findtext(f"{SVG}title") or "") == title
    assert "desc>" not in drawn_map(tmp_path / "b.svg").read_text(encoding="utf-8")


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values \(1, 2\) for 1 rows and 3 columns"):
        heat_map(["a"], ["x", "y", "z"], [[0.1, 0.2]], "")


# In a page


GROUPS = {"en": {"BERT": (0.9, 0.85, 0.95), "TF-IDF": (0.95, 0.9, 1.0)}, "it": {"BERT": (0.7, 0.6, 0.85)}}


def test_a_picture_of_a_page_has_words_its_own_names_and_the_ink_of_the_page() -> None:
    line = Series("<b>", [1, 2, 3], [0.1, 0.2, 0.4], [0, 0.1, 0.3], [0.2, 0.3, 0.5])
    first = inline(curves([line], "", "x", "y", small=True), 'one "picture" & <more>')
    root = ElementTree.fromstring(first.replace("xlink:href", "href"))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'one "picture" & <more>'
    assert {"x", "y"} <= {"".join(node.itertext()) for node in root.iter("text")}
    assert "stroke: currentColor" in first
    assert not re.search(r"fill: (#ffffff|white)|<style|<metadata|<title|xmlns", first)
    names = set(re.findall(r' id="([^"]+)"', first))
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', first))
    assert used
    assert used == names
    second = inline(curves([line], "", "x", "another y", small=True), "")
    assert not names & set(re.findall(r' id="([^"]+)"', second))
    assert inline(curves([line], "", "x", "y", small=True), 'one "picture" & <more>') == first


def test_intervals_are_drawn_where_they_are() -> None:
    axes = intervals(GROUPS, "accuracy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["en", "it"]
    (of_bert, of_tfidf) = axes.containers
    assert of_bert.lines[0].get_xdata().tolist() == [0.9, 0.7]  # type: ignore[attr-defined]
    (segments,) = of_bert.lines[2]  # type: ignore[attr-defined]
    assert [[round(x, 6) for x, _ in ends] for ends in segments.get_segments()] == [[0.85, 0.95], [0.6, 0.85]]
    assert of_bert.lines[0].get_ydata()[0] < of_tfidf.lines[0].get_ydata()[0]  # type: ignore[attr-defined]
    alone = intervals({"": {"a": (36.31, 34.2, 38.5), "b": (13.9, 11.5, 16.2)}}, "rouge1", at=20.0, digits=1).axes[0]
    assert [text.get_text() for text in alone.texts] == ["36.3 [34.2, 38.5]", "13.9 [11.5, 16.2]"]
    assert [label.get_text() for label in alone.get_yticklabels()] == ["a", "b"]


def test_intervals_are_told_in_words() -> None:
    assert intervals_in_words(GROUPS) == (
        "en: BERT 0.900 [0.850, 0.950], TF-IDF 0.950 [0.900, 1.000]; it: BERT 0.700 [0.600, 0.850]"
    )
    assert intervals_in_words({"": {"a": (36.31, 34.2, 38.5)}}, 1) == "a 36.3 [34.2, 38.5]"
