"""Datums print as what they are: text, an image in grey levels, a maze with its path."""

import re

import numpy as np
import pytest
from tiny import tiny_config
from tiny_tasks import EVERYTHING, SMALL, tiny_task

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.behaviour.behaviour import marked_positions
from analysis.behaviour.predicates import Predicate, select_datums
from analysis.neurons.grouping import read_outlier_sums
from analysis.report.pages.neuron.passages import marked_text
from analysis.report.pages.report_data import ReportData
from analysis.run.datums.picture import MARKS, Picture
from analysis.run.run import Run, open_run
from capture.config.reading import read_config
from capture.corpus.config import CorpusConfig
from capture.corpus.datums import load_corpus
from capture.corpus.tasks.maze import FLOOR, WALL
from capture.errors import ConfigError, RunError
from capture.training.loop import capture_run
from cluster.local.threads import run_job


def rows_of(name: str) -> tuple[CorpusConfig, np.ndarray]:
    """Return the corpus of a small run, and its training datums with their last target."""
    config = read_config(name, SMALL[name])
    train = load_corpus(config.corpus, batch=1).train
    return config.corpus, np.column_stack([train.token_NT, train.target_NT[:, -1]])


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Run:
    config = tiny_task(tmp_path_factory.mktemp("digits"), "digits", *EVERYTHING)
    capture_run(config, lambda event: None)
    return open_run(config.run.uri)


def test_an_image_is_as_dark_as_its_pixels():
    config, token_NM = rows_of("digits")
    picture = Picture.of(config, token_NM[0])
    assert picture
    lines = picture.as_text().split("\n")
    assert [len(line) for line in lines] == [16] * 8
    level_T = token_NM[0, :-1]
    shown_T = np.array([[" ░▒▓█".index(line[2 * c]) for c in range(8)] for line in lines]).ravel()
    assert (shown_T == np.ceil(level_T / 4)).all()
    greys = re.findall(r'fill="#(..)\1\1"', picture.as_svg("an image"))
    assert [int(grey, 16) for grey in greys] == [round(255 * (1 - t / 16)) for t in level_T]


def test_a_maze_shows_walls_the_cheese_and_the_path():
    config, token_NM = rows_of("maze")
    for token_M in token_NM[:20]:
        picture = Picture.of(config, token_M)
        assert picture
        text = picture.as_text().replace("\n", "")
        cells = [text[at : at + 2] for at in range(0, len(text), 2)]
        visited = {int(cell) - 4 for cell in token_M[25:]}
        start = 20
        assert cells[start] == "○ "
        for at, cell in enumerate(cells):
            assert (cell == MARKS[WALL]) == (token_M[at] == WALL)
            on_path = at in visited and token_M[at] == FLOOR and at != start
            assert (cell == "· ") == on_path
        assert text.count("◆") == 1


def test_a_label_is_escaped_and_damaged_datums_have_no_picture():
    config, token_NM = rows_of("maze")
    picture = Picture.of(config, token_NM[0])
    assert picture
    assert '<svg aria-label="<' not in picture.as_svg('"><script>')
    assert "<script>" not in picture.as_svg('"><script>')
    for place, token in ((0, 5), (25, 3), (25, 29)):
        damaged_M = token_NM[0].copy()
        damaged_M[place] = token
        assert Picture.of(config, damaged_M) is None
    assert Picture.of(config, token_NM[0, :-1]) is None
    assert Picture.of(CorpusConfig(), token_NM[0]) is None


def test_a_run_s_datum_has_its_label_and_picture(digits):
    datum = digits.datum(3)
    assert datum.targets == (str(digits.target_NT[3, -1]),)
    assert datum.text == f"{datum.targets[0]} (8 × 8 pixels)" == digits.texts[3].as_py()
    assert datum.tokens == tuple(map(str, digits.token_NT[3]))
    assert datum.picture
    assert repr(datum) == f"train datum 3: {datum.text}\n{datum.picture.as_text()}"
    assert datum._repr_html_().count("<rect") == 64
    assert digits.datum(0, "test").split == "test"


def test_a_passage_of_the_report_shows_the_picture_and_marks_the_label(digits):
    data = ReportData(digits, *[None] * 4)  # pyright: ignore[reportArgumentType]
    shown = str(marked_text(data, 3, 0))  # the position that outliers of a perceptron have
    label = digits.datum(3).targets[0]
    assert shown.startswith(f'<blockquote><mark class="target">{label}</mark>')
    assert shown.count("<rect") == 64


def test_a_datum_that_the_run_lacks_is_one_line(digits):
    with pytest.raises(RunError, match=r"has no train datum 180\. They are numbered from 0 to 179"):
        digits.datum(180)
    with pytest.raises(RunError, match="validation"):
        digits.datum(0, "validation")


def test_a_text_prints_as_its_words(tmp_path):
    capture_run(tiny_config(tmp_path, "training.epochs=1"), lambda event: None)
    datum = open_run(str(tmp_path / "run")).datum(1)
    assert datum.picture is None
    assert len(datum.targets) == len(datum.tokens) == 8
    assert repr(datum) == f"train datum 1: {' '.join(datum.tokens)}"


def test_outliers_of_an_image_are_evidence_for_its_label(digits):
    unit = "layers.1.mlp.weight"
    config = AttributionConfig(evidence="target", keep=1.0)
    tokens = attribute(digits, run_job, config).tokens
    assert len(tokens)
    assert set(tokens["token"]) <= {str(label) for label in range(10)}
    rows = digits.shifts()
    row = tokens[tokens["unit"] == unit].iloc[0]
    inputs = digits.layout.shapes[unit][1]
    own = rows[(rows["unit"] == unit) & (rows["index"] % inputs == row["group"])]
    labels = digits.target_NT[own["datum_id"].to_numpy(), -1]
    assert row["count"] == (labels == row["token_id"]).sum()
    sums = read_outlier_sums(digits, run_job).tokens
    counted_V = np.bincount(sums.key_K % sums.num_columns, sums.rows_K, digits.num_tokens)
    assert {digits.tokens[token] for token in np.flatnonzero(counted_V)} <= set(tokens["token"])
    assert counted_V[row["token_id"]] >= row["count"]
    predicate = Predicate(target=row["token"])
    is_label_N = digits.target_NT[:, -1] == row["token_id"]
    assert (select_datums(digits, predicate) == is_label_N).all()
    marked_K1 = marked_positions(digits, predicate, np.arange(digits.num_datums))
    assert (marked_K1 == is_label_N[:, None]).all()
    with pytest.raises(ConfigError, match="a perceptron reads all pixels of an image at once"):
        attribute(digits, run_job, AttributionConfig(evidence="input"))
