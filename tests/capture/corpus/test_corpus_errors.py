"""Messages for text that cannot be trained on."""

import pickle
import re
from pathlib import Path

import pytest

from capture.corpus.config import CorpusConfig
from capture.corpus.datums import load_corpus
from capture.corpus.tasks.modular_addition import ModularConfig
from capture.errors import ConfigError, CorpusError


def failure(config: CorpusConfig, batch: int = 20) -> str:
    """Return the message of the CorpusError that loading raises, and check that it can be
    pickled."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(config, batch=batch)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["text", "wikitext2"])
def test_a_missing_path_is_named(tmp_path, kind):
    path = tmp_path / "nowhere"
    assert f"{path}: does not exist. " in failure(CorpusConfig(kind=kind, path=str(path)))


def test_a_wikitext_folder_without_training_text_lists_its_files(tmp_path):
    for name in ["valid.txt", "test.txt"]:
        (tmp_path / name).write_text("a b c")
    message = failure(CorpusConfig(kind="wikitext2", path=str(tmp_path)))
    assert "has no train.txt or wiki.train.tokens; it holds test.txt, valid.txt" in message
    assert "corpus.kind=text" in message


def test_a_wikitext_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a b c")
    path = str(tmp_path / "train.txt")
    assert f"{path}: is not a folder. " in failure(CorpusConfig(kind="wikitext2", path=path))


def test_a_folder_without_text_files_lists_its_files(tmp_path):
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


def test_less_than_one_batch_reports_how_many_datums_are_needed(tmp_path):
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


def test_a_task_of_less_than_one_batch_is_told_to_lower_the_batch():
    modular = CorpusConfig(
        kind="modular-addition", window=3, validation_share=0.0, modular=ModularConfig(modulus=3)
    )
    with pytest.raises(CorpusError) as error:
        load_corpus(modular, batch=20)
    assert "gives 9 datums of 3 tokens for training, needed: 20" in str(error.value)
    assert "Lower training.batch to 9 at most" in str(error.value)
    assert "corpus.window" not in str(error.value)
