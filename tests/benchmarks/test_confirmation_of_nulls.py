"""Law Null of ``attribute --confirm``: models that could learn nothing get no confirmed tokens."""

from pathlib import Path

import pytest

from benchmarks import confirmation
from capture.corpus.text import Text, python_reference

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seventh of the text, fewer and narrower layers, few held-out datums."""
    text = Text("a part", python_reference().content[:100_000])
    monkeypatch.setattr(confirmation, "python_reference", lambda: text)
    monkeypatch.setattr(
        confirmation, "MODEL", {"layers": 1, "width": 32, "hidden": 32, "heads": 2, "dropout": 0.0}
    )
    monkeypatch.setattr(confirmation, "HELD_OUT", 120)


@pytest.mark.parametrize("case", ["shuffled text", "16 steps"])
def test_a_model_that_could_not_learn_has_at_most_five_percent(tmp_path: Path, case: str) -> None:
    """One is trained on shuffled words, one for a few steps; the nulls printed with them count."""
    lines = list(confirmation.measure(tmp_path, case, seed=1, epochs=4))
    assert [line["case"] for line in lines] == [
        *("record", "untrained model", "shuffled words", "exchanged tokens"),
    ]
    for line in lines:
        assert line["groups"] >= 50
        assert line["confirmed_groups"] <= 0.05 * line["groups"]
        assert line["steps"] > 60 if case == "shuffled text" else line["steps"] == 16
