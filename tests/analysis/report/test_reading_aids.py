"""What helps to read the report: anchors, meanings of columns, colours that can be told apart."""

import re
from importlib import resources

import pytest
from report_pages import Reader, pages, read
from report_run import NEURONS

from analysis.report.drawing import markup
from analysis.report.pages.website import neuron_key

STYLE = resources.files("analysis.report").joinpath("style.css").read_text("utf-8")
LIGHT, DARK = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
TEXT = [*(f"s{number}" for number in range(8)), "ink", "soft", "link"]
"""Variables of colours that text is written in; labels of charts have those of their series."""


def colours(theme: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", theme))


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_labels_of_charts_have_a_contrast_of_4_5(theme: str) -> None:
    found = colours(theme)
    for ground in ("paper", "raised"):
        low = {name: contrast(found[name], found[ground]) for name in TEXT}
        assert {name: ratio for name, ratio in low.items() if ratio < 4.5} == {}, ground
    for ground in ("mark", "target"):
        assert contrast(found["ink"], found[ground]) >= 4.5


def test_every_column_says_what_it_holds() -> None:
    for key, text in pages().items():
        for head in re.findall("<th [^>]*>[^<]*</th>", text):
            assert Reader(head).text.strip(), f"{key}: {head}"
            assert len(Reader(head).of("th")[0]["title"] or "") > 8, f"{key}: {head}"


def test_the_meanings_of_columns_are_below_their_table() -> None:
    columns = [
        markup.Column("size", str, "Size in bytes", numeric=True),
        markup.Column("kind", str, "Kind of file"),
    ]
    page = Reader(markup.data_table("Files", columns, ["1"]))
    assert [tag for tag, _ in page.elements].count("details") == 1
    assert "sizeSize in byteskindKind of file" in page.text
    assert [head["title"] for head in page.of("th")] == ["Size in bytes", "Kind of file"]


def test_every_section_has_an_anchor_and_every_link_within_a_page_a_target() -> None:
    for key, text in pages().items():
        page = Reader(text)
        ids = {attributes.get("id") for _, attributes in page.elements}
        inside = {a["href"] for a in page.of("a") if (a["href"] or "").startswith("#")}
        assert {(href or "#")[1:] for href in inside} <= ids, key
        sections = [attributes["id"] for attributes in page.of("section")]
        assert {f"#{name}" for name in sections} <= inside, key


def test_a_page_with_several_sections_lists_them() -> None:
    page = read(neuron_key(NEURONS[3]))
    (listed,) = [nav for nav in page.of("nav") if nav.get("class") == "contents"]
    assert listed["aria-label"] == "On this page"
    assert page.text.count("Token evidence over training") == 2
    assert not [nav for nav in read("neurons.html").of("nav") if nav.get("class") == "contents"]


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Does ablation agree?", "does-ablation-agree"),
        ("Loss", "loss"),
        ("…", "section"),
        ('Neurons on “<script>"', "neurons-on-script"),
    ],
)
def test_an_anchor_is_made_of_the_heading(heading: str, name: str) -> None:
    assert markup.anchor(heading) == name
