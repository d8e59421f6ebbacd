"""The bundled tasks at their own size are learned: held-out accuracy far above a guess.

Modular addition is in ``test_tasks``; that it generalizes is a claim of the study of grokking.
"""

import os
from pathlib import Path

import pytest
from checkout import ROOT
from tiny import make_run

from analysis.run.run import open_run
from capture.config.reading import read_config

MNIST = Path(os.environ.get("ONTOGENY_MNIST", ROOT / "../shared/data/mnist"))
PLAIN = ("capture.record=checkpoints", "training.device=cpu")


def last_evaluation(folder: Path, name: str, *overrides: str) -> dict:
    """Return the last row of the evaluations of a bundled configuration."""
    make_run(read_config(name, [f"run.uri={folder / 'run'}", *PLAIN, *overrides]))
    return open_run(str(folder / "run")).evaluations().iloc[-1].to_dict()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_digits_are_learned(tmp_path: Path) -> None:
    """90.0 % after 2 epochs were measured; a guess has 10 %."""
    assert last_evaluation(tmp_path, "digits", "training.epochs=2")["accuracy"] > 0.8


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no folder {MNIST}; name one with ONTOGENY_MNIST")
def test_mnist_is_learned(tmp_path: Path) -> None:
    """At full size, but 1 of its 2 epochs; a guess has 10 %."""
    found = last_evaluation(tmp_path, "mnist", f"corpus.path={MNIST}", "training.epochs=1")
    assert found["accuracy"] > 0.85


@pytest.mark.slow
@pytest.mark.machines
@pytest.mark.timeout(900)
def test_repeated_sequences_are_copied(tmp_path: Path) -> None:
    """Without a copying head the repeated tokens are a guess, too: 1 of 64."""
    found = last_evaluation(tmp_path, "induction", "training.epochs=4")
    assert found["accuracy"] > 0.3


@pytest.mark.slow
@pytest.mark.machines
@pytest.mark.timeout(900)
def test_mazes_are_solved(tmp_path: Path) -> None:
    """58 % with the cheese anywhere at step 500 were measured, and 2 % at step 250."""
    found = last_evaluation(tmp_path, "maze")
    assert found["split"] == "test"
    assert found["datum_accuracy"] > 0.3
