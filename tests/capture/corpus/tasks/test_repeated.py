"""Repeated sequences: random lengths, and the mix with windows of a text."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from capture.config.reading import make_config
from capture.corpus.tasks.repeated import RepeatedConfig, repeated_sequences
from capture.errors import ConfigError, CorpusError


def periods(token_NM: np.ndarray, most: int) -> list[int]:
    """The shortest distance at which each datum repeats itself."""
    return [
        next(d for d in range(1, most + 1) if (row_M[d:] == row_M[:-d]).all()) for row_M in token_NM
    ]


def test_every_sequence_repeats_after_a_random_length():
    config = RepeatedConfig(datums=300, tokens=50, shortest=4, longest=12)
    token_NM = repeated_sequences(config, 31).token_NM["train"]
    assert token_NM.shape == (300, 32)
    found = Counter(periods(token_NM, 12))
    assert set(found) == set(range(4, 13))
    assert max(found.values()) < 3 * 300 / 9
    assert np.bincount(token_NM.ravel(), minlength=50).min() > 0


def test_a_window_too_short_to_repeat_is_refused():
    with pytest.raises(ConfigError, match=r"repeated\.longest: got 24, must be at most 20"):
        make_config({"corpus": {"kind": "repeated", "window": 39}})


@pytest.fixture
def text(tmp_path) -> Path:
    """A text of 12 words, the first ones the most frequent."""
    rng = np.random.default_rng(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{n:02}" for n in np.minimum(rng.geometric(0.2, 2000), 12)))
    return path


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_sequences_are_mixed_with_windows_of_a_text(text, share):
    config = RepeatedConfig(datums=80, tokens=9, shortest=3, longest=8, text_share=share)
    made = repeated_sequences(config, 15, text)
    words = text.read_text().split()
    count = Counter(words)
    ranked = sorted(count, key=lambda word: (-count[word], word))[:8]
    assert made.names == ["<unk>", *ranked]
    stream = np.array([made.names.index(w) if w in ranked else 0 for w in words])
    starts = range(0, len(stream) - 15, 15)
    windows = {stream[start : start + 16].tobytes() for start in starts}
    token_NM = made.token_NM["train"]
    is_text_N = np.array([row_M.astype(np.int64).tobytes() in windows for row_M in token_NM])
    assert is_text_N.sum() == round(share * 80)
    sequences_NM = token_NM[~is_text_N]
    assert all(period <= 8 for period in periods(sequences_NM, 8))
    assert (sequences_NM > 0).all()  # <unk> is never to be copied
    assert len({row_M.tobytes() for row_M in token_NM[is_text_N]}) > 1
    if share < 1:  # text is among held-out datums as among the others, whatever their shares
        assert 2 <= is_text_N[3::4].sum() <= 8
    again = repeated_sequences(config, 15, text).token_NM["train"]
    assert (again == token_NM).all()


def test_without_a_path_the_text_is_pythons_reference():
    config = RepeatedConfig(datums=10, tokens=50, shortest=4, longest=12, text_share=0.5)
    names = repeated_sequences(config, 31).names
    assert names[0] == "<unk>"
    assert "the" in names[:5]
    assert len(names) == 50


def test_a_text_too_small_for_the_mix_is_one_line(text):
    many = RepeatedConfig(datums=300, tokens=9, shortest=3, longest=8, text_share=0.5)
    with pytest.raises(
        CorpusError, match=r"has 133 windows of 15 tokens, wanted 150\. Lower corpus"
    ):
        repeated_sequences(many, 15, text)
    words = RepeatedConfig(datums=30, tokens=14, shortest=3, longest=8, text_share=0.5)
    with pytest.raises(CorpusError, match=r"has 12 words, wanted 13\. Lower corpus\.repeated\.tok"):
        repeated_sequences(words, 15, text)
