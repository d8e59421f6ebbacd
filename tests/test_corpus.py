"""Laws of the corpus (tokens, vocabulary, datums, order), then cases, then what goes wrong."""

import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import wikitext
from capture.corpus import (
    CorpusConfig,
    batches,
    build_vocabulary,
    cut_windows,
    deal,
    epoch_order,
    hold_out,
    load_corpus,
    read_streams,
)
from capture.errors import ConfigError, CorpusError
from capture.text import basic_english, read_path

ROOT = Path(__file__).parents[1]
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
def test_tokens_equal_the_sequence_of_replacements(text):
    assert basic_english(text) == slow_basic_english(text)


@given(texts)
def test_tokens_of_a_text_are_those_of_its_lines(text):
    assert basic_english(text) == [
        token for line in text.split("\n") for token in basic_english(line)
    ]


@given(tokens)
def test_encode_then_look_up_is_identity(stream):
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
def test_windows_are_dealt_in_their_shares_and_evenly(count, validation, test):
    split_W = deal(count, validation=validation, test=test)
    assert len(split_W) == count
    for split, share in (("validation", validation), ("test", test)):
        held_W = split_W == split
        assert held_W.sum() == pytest.approx(share * count, abs=2)
        for half in np.array_split(held_W, 2):
            assert half.sum() == pytest.approx(share * len(half), abs=4)


@given(num_tokens=st.integers(30, 300), share=st.sampled_from([0.1, 0.25, 0.5]))
def test_splits_together_are_the_windows_of_the_stream(num_tokens, share):
    tokens = [str(i % 7) for i in range(num_tokens)]
    config = CorpusConfig(window=3, validation_share=share)
    vocabulary, datums = hold_out(tokens, config)
    stream = vocabulary.encode(tokens)
    whole = cut_windows(stream, 3)
    held_W = deal(len(whole), validation=share, test=0) == "validation"
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


def test_the_order_outlives_versions():
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
def test_batches_are_full_and_leave_the_remainder_out(num_datums, batch, steps):
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


def test_unknown_is_counted_once_and_takes_what_training_lacks():
    vocabulary = build_vocabulary(["b", "<unk>", "a", "b", "<unk>", "<unk>", "c", "a"])
    assert vocabulary.tokens == ["<unk>", "a", "b", "c"]
    assert vocabulary.counts.tolist() == [3, 2, 2, 1]
    assert vocabulary.encode(["c", "zebra", "<unk>", "a"]).tolist() == [3, 0, 0, 1]


def test_text_is_one_stream_with_windows_of_it_held_out(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(str(i) for i in range(100)))
    shares = {"validation_share": 0.1, "test_share": 0.2}
    corpus = load_corpus(CorpusConfig(kind="text", path=str(path), window=3, **shares), batch=2)
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


def test_the_python_reference_needs_nothing():
    corpus = load_corpus(CorpusConfig(), batch=20)
    assert len(batches(np.arange(len(corpus.train)), 20)) > 50
    assert corpus.validation is not None
    assert corpus.test is None
    assert {"the", "function", "lambda"} <= corpus.vocabulary.index.keys()


@pytest.mark.parametrize("column", [0, 1])
def test_wikitext_is_read_under_either_name_with_its_own_splits(tmp_path, column):
    for split, names in wikitext.FILE_NAMES.items():
        (tmp_path / names[column]).write_text(f" = {split} = \n \n one two three . \n")
    pieces = read_streams(CorpusConfig(kind="wikitext2", path=str(tmp_path)))
    assert pieces["train"] == ["=", "train", "=", "one", "two", "three", "."]
    assert pieces["validation"][1] == "validation"
    assert pieces["test"][1] == "test"


def test_wikitext_with_training_text_alone_has_no_other_split(tmp_path):
    (tmp_path / "train.txt").write_text("a b c d e f g")
    config = CorpusConfig(kind="wikitext2", path=str(tmp_path), window=2, validation_share=0.9)
    corpus = load_corpus(config, batch=3)
    assert len(corpus.train) == 3
    assert corpus.validation is corpus.test is None


@pytest.fixture
def hub_file(tmp_path):
    """A small file in the layout of the hub: a row a line, empty ones too."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["", " = Title = \n", " a b <unk> . \n"]}), path)
    return path


def test_without_a_folder_wikitext_comes_from_the_hub(hub_file, monkeypatch):
    asked = []
    monkeypatch.setattr(wikitext, "download", lambda name: asked.append(name) or hub_file)
    pieces = read_streams(CorpusConfig(kind="wikitext2"))
    assert pieces["train"] == pieces["test"] == ["=", "title", "=", "a", "b", "<unk>", "."]
    assert asked == [
        f"wikitext-2-v1/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")
    ]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for huggingface_hub, to be given its two functions."""
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_the_hub_is_not_asked_for_what_is_cached(hub, hub_file):
    hub.try_to_load_from_cache = lambda repo, name, repo_type: str(hub_file)
    assert wikitext.download("f.parquet") == hub_file


def test_what_is_not_cached_is_fetched_with_a_timeout(hub, hub_file):
    asked = []
    hub.try_to_load_from_cache = lambda repo, name, repo_type: None
    hub.hf_hub_download = lambda *args, **options: asked.append((args, options)) or str(hub_file)
    assert wikitext.download("f.parquet") == hub_file
    options = {"repo_type": "dataset", "etag_timeout": wikitext.ANSWER_TIMEOUT_SECONDS}
    assert asked == [(("Salesforce/wikitext", "f.parquet"), options)]


def failure(config: CorpusConfig, batch: int = 20) -> str:
    """The message of the CorpusError that loading raises; it survives pickling."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(config, batch=batch)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


WAYS_OUT = [
    "set corpus.path to a folder with train.txt or wiki.train.tokens",
    "pip install 'ontogeny[wikitext]'",
]


def test_no_network_names_both_ways_out(hub):
    def unreachable(*_, **__):
        raise FileNotFoundError("cannot find the file in the cache") from OSError("no route\nmore")

    hub.try_to_load_from_cache = lambda *_, **__: None
    hub.hf_hub_download = unreachable
    message = failure(CorpusConfig(kind="wikitext2"))
    assert "train-00000-of-00001.parquet could not be fetched (OSError: no route)" in message
    assert all(way in message for way in WAYS_OUT)


def test_no_hub_library_names_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = failure(CorpusConfig(kind="wikitext2"))
    assert "huggingface_hub is not installed" in message
    assert all(way in message for way in WAYS_OUT)


@pytest.mark.parametrize("broken", ["bytes", "column"])
def test_a_damaged_download_is_named(tmp_path, monkeypatch, broken):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and no more")
    if broken == "column":
        pq.write_table(pa.table({"line": ["a"]}), path)
    monkeypatch.setattr(wikitext, "download", lambda name: path)
    message = failure(CorpusConfig(kind="wikitext2"))
    assert f"{path}: is not a Parquet file with a column 'text'" in message
    assert "Delete it and run again" in message


@pytest.mark.parametrize("kind", ["text", "wikitext2"])
def test_a_missing_path_is_named(tmp_path, kind):
    path = tmp_path / "nowhere"
    assert f"{path}: does not exist. " in failure(CorpusConfig(kind=kind, path=str(path)))


def test_a_wikitext_folder_without_training_text_says_what_it_holds(tmp_path):
    for name in ["valid.txt", "test.txt"]:
        (tmp_path / name).write_text("a b c")
    message = failure(CorpusConfig(kind="wikitext2", path=str(tmp_path)))
    assert "has no train.txt or wiki.train.tokens; it holds test.txt, valid.txt" in message
    assert "corpus.kind=text" in message


def test_a_wikitext_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a b c")
    path = str(tmp_path / "train.txt")
    assert f"{path}: is not a folder. " in failure(CorpusConfig(kind="wikitext2", path=path))


def test_a_folder_without_text_files_says_what_it_holds(tmp_path):
    config = CorpusConfig(kind="text", path=str(tmp_path))
    assert "has no .txt file; it holds nothing" in failure(config)
    for i in range(9):
        (tmp_path / f"{i}.md").write_text("a")
    assert "it holds 0.md, 1.md, 2.md, 3.md, 4.md, 5.md, 3 more. " in failure(config)


def test_undecodable_bytes_are_located(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 latin")
    message = failure(CorpusConfig(kind="text", path=str(tmp_path)))
    assert f"{tmp_path / 'b.txt'}: is not UTF-8: byte 0xe9 at offset 3. " in message


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.txt"
    path.write_text("fine")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    message = failure(CorpusConfig(kind="text", path=str(path)))
    assert f"{path}: cannot be read (Permission denied). " in message


@pytest.mark.parametrize("content", ["", " \n\t", '";:"'])
def test_an_empty_text_is_refused(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_text(content)
    assert f"{path}: holds no words. " in failure(CorpusConfig(kind="text", path=str(path)))


def test_less_than_one_batch_says_how_many_datums_it_takes(tmp_path):
    path = tmp_path / "a.txt"
    config = CorpusConfig(kind="text", path=str(path), validation_share=0)
    path.write_text("word " * 700)
    message = failure(config)
    assert "gives 19 datums of 35 tokens for training, needed: 20" in message
    assert "Give more text, or lower corpus.window or training.batch." in message
    path.write_text("word " * 701)
    assert len(load_corpus(config, batch=20).train) == 20


def test_a_held_out_split_without_a_datum_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 1000)
    message = failure(CorpusConfig(kind="text", path=str(path)))
    assert "gives 0 datums of 35 tokens for validation, needed: 1" in message
    assert "set corpus.validation_share to 0" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 0}, "corpus.window: got 0, must be at least 1"),
        ({"validation_share": 1.0}, "corpus.validation_share: got 1.0, must be at least 0 and"),
        ({"test_share": -0.1}, "corpus.test_share: got -0.1, must be at least 0 and below 1"),
        ({"validation_share": float("nan")}, "corpus.validation_share: got nan, must be"),
        ({"validation_share": 0.5, "test_share": 0.5}, "corpus.test_share: got 1.0 together with"),
        ({"kind": "text"}, "corpus.path: got null, must name a file or folder when corpus.kind"),
        ({"path": "x.txt"}, "corpus.path: got 'x.txt', must be null when corpus.kind is python-"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        CorpusConfig(**values)


@pytest.mark.skipif(
    not (WIKITEXT / "valid.txt").is_file(),
    reason=f"no WikiText-2 at {WIKITEXT}; set ONTOGENY_WIKITEXT2 to a folder with its .txt files",
)
def test_real_text():
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
