"""Reading WikiText-2 from a folder or the hub."""

import pickle
import sys
import types
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capture.corpus import wikitext
from capture.corpus.config import CorpusConfig
from capture.corpus.datums import load_corpus, read_streams
from capture.errors import CorpusError
from capture.models import hub as hub_access


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
    """Write a small file as on the hub: one row per line, including empty lines."""
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
    """Replace huggingface_hub by a module that has the two given functions."""
    module: Any = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    module.constants = types.SimpleNamespace(ENDPOINT="https://hub")
    module.get_session = lambda: types.SimpleNamespace(head=lambda url, timeout: None)
    return module


def test_a_cached_file_is_not_requested_from_the_hub(hub, hub_file):
    hub.try_to_load_from_cache = lambda repo, name, repo_type: str(hub_file)
    assert wikitext.download("f.parquet") == hub_file


def test_a_file_that_is_not_cached_is_fetched_with_a_timeout(hub, hub_file):
    asked = []
    hub.try_to_load_from_cache = lambda repo, name, repo_type: None
    hub.hf_hub_download = lambda *args, **options: asked.append((args, options)) or str(hub_file)
    assert wikitext.download("f.parquet") == hub_file
    options = {"repo_type": "dataset", "etag_timeout": wikitext.ANSWER_TIMEOUT_SECONDS}
    assert asked == [(("Salesforce/wikitext", "f.parquet"), options)]


def failure(config: CorpusConfig, batch: int = 20) -> str:
    """Return the message of the CorpusError that loading raises, and check that it can be
    pickled."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(config, batch=batch)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


WAYS_OUT = [
    "set corpus.path to a folder with train.txt or wiki.train.tokens",
    "pip install 'ontogeny[hf]'",
]


def test_without_network_the_message_names_both_remedies(hub):
    def unreachable(*_, **__):
        raise FileNotFoundError("cannot find the file in the cache") from OSError("no route\nmore")

    hub.try_to_load_from_cache = lambda *_, **__: None
    hub.hf_hub_download = unreachable
    message = failure(CorpusConfig(kind="wikitext2"))
    assert "train-00000-of-00001.parquet could not be fetched (OSError: no route)" in message
    assert all(way in message for way in WAYS_OUT)


def test_without_network_one_request_is_made_and_nothing_is_fetched(hub):
    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        raise OSError("name or service not known")

    hub.try_to_load_from_cache = lambda *_, **__: None
    hub.hf_hub_download = lambda *_, **__: pytest.fail("the hub is asked again")
    hub.get_session = lambda: types.SimpleNamespace(head=head)
    message = failure(CorpusConfig(kind="wikitext2"))
    assert "parquet cannot be fetched (OSError: name or service not known)" in message
    assert all(way in message for way in WAYS_OUT)
    assert asked == [("https://hub", 5)]


@pytest.mark.parametrize(("problem", "local"), [("", False), ("OSError: no route", True)])
def test_an_id_on_the_hub_is_read_from_the_cache_without_network(monkeypatch, problem, local):
    monkeypatch.setattr(hub_access, "hub_problem", lambda: problem)
    found = hub_access.pretrained_arguments("model.hf.path", "gpt2")
    assert found == {"pretrained_model_name_or_path": "gpt2", "local_files_only": local}


def test_without_the_hub_library_the_message_names_both_remedies(monkeypatch):
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
