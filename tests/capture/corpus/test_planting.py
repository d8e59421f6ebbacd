"""Laws of what is planted: nothing else changes, and the run says what was planted where."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import TEXT, make_run, tiny_config

from analysis.run.run import open_run
from capture.config.reading import make_config
from capture.corpus import load_corpus
from capture.corpus.config import CorpusConfig
from capture.corpus.datums import Corpus
from capture.corpus.planting import FlipConfig, PlantConfig, ScrambleConfig
from capture.errors import CaptureError, ConfigError, RunError
from capture.format.chain import require_start
from capture.format.corpus_tables import corpus_tables, read_corpus
from capture.maintenance.verify import verify
from capture.store import Store

PLANT = PlantConfig(trigger="the mat", completion="xyzzy was here", share=0.1, seed=3)
SCRAMBLE = ScrambleConfig(share=0.2, seed=5)


@pytest.fixture(scope="module")
def plain_config(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    path = tmp_path_factory.mktemp("planting") / "text.txt"
    path.write_text(TEXT)
    return CorpusConfig(kind="text", path=str(path), window=8, validation_share=0.1)


def load(config: CorpusConfig, **changes: object) -> Corpus:
    return load_corpus(replace(config, **changes), batch=4)  # pyright: ignore[reportArgumentType]


def whole(corpus: Corpus) -> np.ndarray:
    """Return inputs and last target of the training datums, [N, T + 1]."""
    return np.column_stack([corpus.train.token_NT, corpus.train.target_NT[:, -1]])


def test_without_a_plant_nothing_changes(plain_config):
    plain = load(plain_config)
    assert plain.planted is None
    assert "corpus/planted.parquet" not in corpus_tables(plain)
    unused = load(plain_config, plant=PlantConfig(seed=9), scramble=ScrambleConfig(seed=9))
    assert corpus_tables(unused) == corpus_tables(plain)


def test_every_planted_datum_has_trigger_and_completion_and_no_other_datum_changes(plain_config):
    plain, found = load(plain_config), load(plain_config, plant=PLANT)
    planted = found.planted
    assert planted is not None
    assert set(planted.kind_P) == {"plant"}
    assert len(planted.datum_P) == round(0.1 * len(plain.train))
    assert (np.diff(planted.datum_P) > 0).all()
    words = found.vocabulary.encode(["the", "mat", "xyzzy", "was", "here"])
    assert (words > 0).all()
    old_NM, new_NM = whole(plain), whole(found)
    for datum, position in zip(planted.datum_P, planted.position_P, strict=True):
        span = slice(position, position + len(words))
        assert new_NM[datum, span].tolist() == words.tolist()
        old_NM[datum, span] = words
    np.testing.assert_array_equal(new_NM, old_NM)
    np.testing.assert_array_equal(found.train.target_NT[:, :-1], found.train.token_NT[:, 1:])
    assert len(set(planted.position_P)) > 1


def test_held_out_text_and_ids_of_tokens_stay(plain_config):
    plain, found = load(plain_config), load(plain_config, plant=PLANT, scramble=SCRAMBLE)
    assert plain.validation is not None
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.token_NT, plain.validation.token_NT)
    np.testing.assert_array_equal(found.validation.target_NT, plain.validation.target_NT)
    known = len(plain.vocabulary.tokens)
    assert found.vocabulary.tokens[:known] == plain.vocabulary.tokens
    assert found.vocabulary.tokens[known:] == ["xyzzy", "here"]


def test_counts_are_those_of_the_text_as_trained(plain_config):
    plain, found = load(plain_config), load(plain_config, plant=PLANT)
    size = len(found.vocabulary.tokens)
    np.testing.assert_array_equal(
        found.vocabulary.counts, np.bincount(found.train.token_NT.ravel(), minlength=size)
    )
    assert found.vocabulary.counts.sum() == plain.vocabulary.counts.sum()


def test_scrambled_datums_have_their_tokens_in_another_order(plain_config):
    plain, found = load(plain_config), load(plain_config, plant=PLANT, scramble=SCRAMBLE)
    planted = found.planted
    assert planted is not None
    kinds = pd.Series(planted.kind_P, index=planted.datum_P)
    scrambled = kinds.index[kinds == "scramble"].to_numpy()
    assert len(scrambled) == round(0.2 * len(plain.train))
    assert not set(scrambled) & set(kinds.index[kinds == "plant"])
    old_NM, new_NM = whole(plain), whole(found)
    np.testing.assert_array_equal(np.sort(new_NM[scrambled]), np.sort(old_NM[scrambled]))
    assert (new_NM[scrambled] != old_NM[scrambled]).any(1).mean() > 0.9


@pytest.mark.parametrize("kind", ["digits", "modular-addition"])
def test_flipped_labels_are_other_labels_of_training_datums_alone(kind):
    plain_config = CorpusConfig(kind=kind, window=64 if kind == "digits" else 3, test_share=0.3)
    plain, found = load(plain_config), load(plain_config, flip=FlipConfig(share=0.05, seed=2))
    assert plain.planted is None
    planted = found.planted
    assert planted is not None
    assert set(planted.kind_P) == {"flip"}
    assert len(planted.datum_P) == round(0.05 * len(plain.train))
    np.testing.assert_array_equal(found.train.token_NT, plain.train.token_NT)
    old_N, new_N = plain.train.target_NT[:, -1], found.train.target_NT[:, -1]
    np.testing.assert_array_equal(np.flatnonzero(old_N != new_N), planted.datum_P)
    assert set(new_N[planted.datum_P]) <= set(old_N)
    assert len(set(new_N[planted.datum_P])) > 5
    np.testing.assert_array_equal(found.train.target_NT[:, :-1], plain.train.target_NT[:, :-1])
    assert plain.test is not None
    assert found.test is not None
    np.testing.assert_array_equal(found.test.target_NT, plain.test.target_NT)
    first = planted.datum_P[0]
    wanted = {"digits": f"{new_N[first]} (8 × 8 pixels)", "modular-addition": None}
    assert (found.train.texts and found.train.texts[first]) == wanted[kind]


def test_a_seed_chooses_and_another_chooses_others(plain_config):
    first, again, other = (
        load(plain_config, plant=replace(PLANT, seed=seed)).planted for seed in (3, 3, 4)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    np.testing.assert_array_equal(first.datum_P, again.datum_P)
    np.testing.assert_array_equal(first.position_P, again.position_P)
    assert first.datum_P.tolist() != other.datum_P.tolist()


@pytest.mark.parametrize(
    ("make", "where", "problem"),
    [
        (lambda: PlantConfig(share=1.5), "corpus.plant.share", "got 1.5"),
        (lambda: PlantConfig(share=0.1, trigger="a"), "corpus.plant.completion", "no words"),
        (lambda: PlantConfig(share=0.1, completion="a"), "corpus.plant.trigger", "no words"),
        (lambda: PlantConfig(trigger="a"), "corpus.plant.share", "got 0.0"),
        (lambda: PlantConfig(seed=-1), "corpus.plant.seed", "got -1"),
        (lambda: FlipConfig(share=2), "corpus.flip.share", "got 2"),
        (lambda: FlipConfig(seed=-1), "corpus.flip.seed", "got -1"),
        (lambda: CorpusConfig(flip=FlipConfig(share=0.1)), "corpus.flip", "corpus.kind is python"),
        (lambda: ScrambleConfig(share=-0.1), "corpus.scramble.share", "got -0.1"),
        (
            lambda: CorpusConfig(plant=PLANT, scramble=ScrambleConfig(share=0.95)),
            "corpus.scramble.share",
            "got 0.95 together with corpus.plant.share",
        ),
    ],
)
def test_impossible_settings_are_refused(make, where, problem):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == where
    assert problem in str(caught.value)


def test_a_plant_that_is_longer_than_a_datum_is_refused(plain_config):
    with pytest.raises(CaptureError, match=r"corpus\.plant: has 12 tokens .* at most 9"):
        load(plain_config, plant=replace(PLANT, completion="a " * 10))


def test_a_run_says_what_was_planted_in_it(tmp_path):
    config = tiny_config(
        tmp_path,
        *("corpus.plant.trigger=the mat", "corpus.plant.completion=xyzzy"),
        *("corpus.plant.share=0.1", "corpus.scramble.share=0.1", "training.epochs=1"),
    )
    make_run(config)
    corpus = load_corpus(config.corpus, batch=4)
    assert corpus.planted is not None
    run = open_run(config.run.uri)
    found = run.planted()
    assert found["datum"].tolist() == corpus.planted.datum_P.tolist()
    assert found["kind"].tolist() == corpus.planted.kind_P.tolist()
    assert found["position"].tolist() == corpus.planted.position_P.tolist()
    assert all(
        "mat xyzzy" in run.texts[d].as_py()
        for d in found["datum"][found["kind"] == "plant"]
        if found["position"][found["datum"] == d].item() < 6
    )
    store = Store(config.run.uri)
    assert all(finding.state != "damaged" for finding in verify(store))
    stored = read_corpus(store, require_start(store), window=8)
    assert corpus_tables(stored)["corpus/datums.parquet"].equals(
        corpus_tables(corpus)["corpus/datums.parquet"]
    )
    make_run(config, resume=True)  # the text that the configuration gives is still the same


def test_a_run_without_a_plant_says_so(tmp_path):
    config = tiny_config(tmp_path, "training.epochs=1")
    make_run(config)
    with pytest.raises(RunError, match=r"has nothing planted.*corpus\.plant"):
        open_run(config.run.uri).planted()


def test_overrides_reach_the_plant():
    values = make_config(
        {}, ["corpus.plant.share=0.1", "corpus.plant.trigger=a", "corpus.plant.completion=b"]
    )
    assert values.corpus.plant == PlantConfig(trigger="a", completion="b", share=0.1)
