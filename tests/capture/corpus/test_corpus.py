"""Laws of tokens, vocabulary, datums and order, then examples."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.corpus.config import CorpusConfig
from capture.corpus.datums import (
    assign_splits,
    build_vocabulary,
    cut_windows,
    hold_out,
    load_corpus,
    read_streams,
)
from capture.corpus.order import batches, epoch_order
from capture.corpus.text import basic_english, read_path

ROOT = Path(__file__).parents[3]
WIKITEXT = Path(os.environ.get("ONTOGENY_WIKITEXT2", ROOT / "../shared/data/wikitext-2"))

# torchtext's basic_english to the letter: lower-case, then these in order, then split.
REPLACEMENTS = [
    (r"\'", " '  "),
    (r"\"", ""),
    (r"\.", " . "),
    (r"<br \/>", " "),
    (r",", " , "),
    (r"\(", " ( "),
    (r"\)", " ) "),
    (r"\!", " ! "),
    (r"\?", " ? "),
    (r"\;", " "),
    (r"\:", " "),
    (r"\s+", " "),
]


def slow_basic_english(line: str) -> list[str]:
    line = line.lower()
    for pattern, replacement in REPLACEMENTS:
        line = re.sub(pattern, replacement, line)
    return line.split()


# Pieces that could interact: parts of "<br />", marks, special capitals, every kind of space.
PIECES = [*"<>/ '\".,()!?;:-@Σİßa\n\r\t\x0b\x1c\x85\u00a0\u2028\u0307", "<br />", "<BR />", "<unk>"]
texts = st.lists(st.one_of(st.sampled_from([*PIECES, "b", "br", "br /"]), st.characters())).map(
    "".join
)
tokens = st.lists(st.sampled_from(["<unk>", "the", "of", "a", "b", "é"]), min_size=1)


@given(texts)
def test_tokens_equal_torchtext_s_sequence_of_replacements(text):
    assert basic_english(text) == slow_basic_english(text)


@given(texts)
def test_tokens_of_a_text_are_those_of_its_lines(text):
    assert basic_english(text) == [
        token for line in text.split("\n") for token in basic_english(line)
    ]


@given(tokens)
def test_encoding_then_looking_up_is_identity(stream):
    vocabulary = build_vocabulary(stream)
    ids = vocabulary.encode(stream)
    assert ids.dtype == np.int32
    assert [vocabulary.tokens[i] for i in ids] == stream
    assert np.bincount(ids, minlength=len(vocabulary.tokens)).tolist() == vocabulary.counts.tolist()


@given(tokens)
def test_vocabulary_ranks_by_frequency_then_alphabet(stream):
    vocabulary = build_vocabulary(stream)
    known = sorted(set(stream) - {"<unk>"}, key=lambda token: (-stream.count(token), token))
    assert vocabulary.tokens == ["<unk>", *known]
    assert vocabulary.counts.dtype == np.int64


@given(num_tokens=st.integers(1, 60), window=st.integers(1, 9))
def test_windows_are_the_stream_and_targets_are_one_later(num_tokens, window):
    stream = np.arange(num_tokens, dtype=np.int32)
    datums = cut_windows(stream, window)
    covered = len(datums) * window
    assert datums.token_NT.shape == datums.target_NT.shape == (len(datums), window)
    assert np.array_equal(datums.token_NT.ravel(), stream[:covered])
    assert np.array_equal(datums.target_NT.ravel(), stream[1 : covered + 1])
    assert num_tokens - covered <= window  # one more window would lack a target


@given(count=st.integers(0, 400), validation=st.floats(0, 0.49), test=st.floats(0, 0.49))
def test_splits_have_their_shares_and_are_spread_evenly(count, validation, test):
    split_W = assign_splits(count, validation=validation, test=test)
    assert len(split_W) == count
    for split, share in (("validation", validation), ("test", test)):
        held_W = split_W == split
        assert held_W.sum() == pytest.approx(share * count, abs=2)
        for half in np.array_split(held_W, 2):
            assert half.sum() == pytest.approx(share * len(half), abs=4)


@given(num_tokens=st.integers(30, 300), share=st.sampled_from([0.1, 0.25, 0.5]))
def test_splits_together_have_all_windows_of_the_stream(num_tokens, share):
    tokens = [str(i % 7) for i in range(num_tokens)]
    config = CorpusConfig(window=3, validation_share=share)
    vocabulary, datums = hold_out(tokens, config)
    stream = vocabulary.encode(tokens)
    whole = cut_windows(stream, 3)
    held_W = assign_splits(len(whole), validation=share, test=0) == "validation"
    assert np.array_equal(datums["validation"].token_NT, whole.token_NT[held_W])
    assert np.array_equal(datums["train"].target_NT, whole.target_NT[~held_W])
    assert set(vocabulary.tokens[1:]) == set(
        np.array(tokens)[: len(whole) * 3].reshape(-1, 3)[~held_W].ravel()
    )


@given(num_datums=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 99))
def test_an_epoch_visits_every_datum_once(num_datums, seed, epoch):
    order = epoch_order(num_datums, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_datums))
    assert np.array_equal(order, epoch_order(num_datums, seed=seed, epoch=epoch))


def test_epochs_and_seeds_differ_in_order():
    orders = {
        tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


def test_the_order_is_the_same_in_every_version():
    assert epoch_order(10, seed=0, epoch=0).tolist() == [6, 3, 8, 1, 4, 5, 9, 2, 7, 0]
    assert epoch_order(10, seed=0, epoch=1).tolist() == [1, 3, 8, 6, 2, 0, 7, 5, 4, 9]
    assert epoch_order(58_571, seed=7, epoch=4)[:6].tolist() == [
        50718,
        33747,
        36006,
        5441,
        30571,
        25952,
    ]


@pytest.mark.parametrize(
    ("num_datums", "batch", "steps"), [(58_571, 20, 2928), (19, 20, 0), (6, 2, 3)]
)
def test_batches_are_full_and_drop_the_remainder(num_datums, batch, steps):
    order = epoch_order(num_datums, seed=1, epoch=0)
    by_step = batches(order, batch)
    assert by_step.shape == (steps, batch)
    assert np.array_equal(by_step.ravel(), order[: steps * batch])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("You can now install TorchText using pip!", "you can now install torchtext using pip !"),
        ("= Homarus gammarus =", "= homarus gammarus ="),
        ("a species of <unk> lobster", "a species of <unk> lobster"),
        ("(<UNK> , <unk>)", "( <unk> , <unk> )"),
        ("0 @.@ 7 \u2013 2 @-@ 3 8 @,@ 600", "0 @ . @ 7 \u2013 2 @-@ 3 8 @ , @ 600"),
        ("1.5 U.S. 3,000 ...", "1 . 5 u . s . 3 , 000 . . ."),
        ("don't 'tis dogs'", "don ' t ' tis dogs '"),
        ('only " lobster red " on', "only lobster red on"),
        ('say"so"now', "saysonow"),
        ("one;two:three ; 10:30", "one two three 10 30"),
        ("why?! (yes)", "why ? ! ( yes )"),
        ("end<br />start<BR />x", "end start x"),
        ('<b"r />', ""),
        ("<br/> <br  /> <b;r />", "<br/> <br /> <b r />"),
        ("Ünïcödé ÉTÉ 東京 Straße ΟΔΟΣ", "ünïcödé été 東京 straße οδος"),
        ("a\u00a0b\u2028c\td", "a b c d"),
        ("[x] {y} a/b c-d #$%&*", "[x] {y} a/b c-d #$%&*"),
        (" \n \t", ""),
    ],
)
def test_basic_english_by_example(line, expected):
    assert " ".join(basic_english(line)) == expected
    assert slow_basic_english(line) == basic_english(line)


def test_unknown_tokens_have_id_0():
    vocabulary = build_vocabulary(["b", "<unk>", "a", "b", "<unk>", "<unk>", "c", "a"])
    assert vocabulary.tokens == ["<unk>", "a", "b", "c"]
    assert vocabulary.counts.tolist() == [3, 2, 2, 1]
    assert vocabulary.encode(["c", "zebra", "<unk>", "a"]).tolist() == [3, 0, 0, 1]


def test_a_text_is_one_stream_with_held_out_windows(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(str(i) for i in range(100)))
    config = CorpusConfig(
        kind="text", path=str(path), window=3, validation_share=0.1, test_share=0.2
    )
    corpus = load_corpus(config, batch=2)
    assert corpus.validation is not None
    assert corpus.test is not None
    assert [len(corpus.train), len(corpus.test), len(corpus.validation)] == [24, 6, 3]
    assert len(corpus.vocabulary.tokens) == 1 + 3 * 24
    assert not corpus.validation.token_NT.any()  # unseen in training


def test_a_folder_is_read_in_the_order_of_relative_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name, content in {"c.txt": "4", "a.txt": "\ufeff1", "b/z.txt": "3", "b/a.txt": "2"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "b.md").write_text("not text")
    assert basic_english(read_path(tmp_path).content) == ["1", "2", "3", "4"]


def test_the_python_reference_needs_no_files():
    corpus = load_corpus(CorpusConfig(), batch=20)
    assert len(batches(np.arange(len(corpus.train)), 20)) > 50
    assert corpus.validation is not None
    assert corpus.test is None
    assert {"the", "function", "lambda"} <= corpus.vocabulary.index.keys()


@pytest.mark.skipif(
    not (WIKITEXT / "valid.txt").is_file(),
    reason=f"no WikiText-2 at {WIKITEXT}; set ONTOGENY_WIKITEXT2 to a folder with its .txt files",
)
def test_wikitext_as_plain_text():
    config = CorpusConfig(kind="text", path=str(WIKITEXT))
    corpus = load_corpus(config, batch=20)
    lines = (WIKITEXT / "valid.txt").read_text(encoding="utf-8").split("\n")
    tokens = read_streams(config)["train"]
    last = [token for line in lines for token in slow_basic_english(line)]
    assert tokens[-len(last) :] == last
    assert corpus.validation is not None
    if {path.name for path in WIKITEXT.iterdir()} == {"test.txt", "valid.txt"}:
        assert len(tokens) == 456_276
        assert (len(corpus.train), len(corpus.validation)) == (12_645, 391)
        assert corpus.vocabulary.tokens[:4] == ["<unk>", "the", ",", "."]
