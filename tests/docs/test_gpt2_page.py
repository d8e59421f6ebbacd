"""The page from a Trainer to a report runs as printed, on another text and with fewer steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from analysis.jobs.tables import require_tables
from analysis.run.run import Run, open_run
from capture.corpus.config import CorpusConfig
from capture.corpus.datums import load_corpus

PAGE = (ROOT / "docs" / "how-to" / "gpt2-on-text.md").read_text()
SHORTER = {"max_steps=300": "max_steps=40", "eval_steps=100": "eval_steps=20"}
FEWER = {"300": "20", "600": "40"}
"""Datums that the page asks for → those of the test."""
TABLES = ("attribute", "attribute/heads", "ablate", "ablate/heads", "faithfulness")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train by the page's code, and type its commands."""
    for name in ("accelerate", "datasets", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = tmp_path_factory.mktemp("page")
    corpus = load_corpus(CorpusConfig(), batch=16)
    words = [corpus.vocabulary.tokens[i] for i in corpus.train.token_NT.ravel()]
    (folder / "text.txt").write_text(" ".join(words))
    (code,) = re.findall(r"```python\n(.*?)```\n", PAGE, flags=re.DOTALL)
    for long, short in SHORTER.items():
        assert long in code
        code = code.replace(long, short)
    (folder / "train.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:.", "OMP_NUM_THREADS": "1"}
    lines = re.findall(r"^\$ ontogeny (.*)$", PAGE, flags=re.MULTILINE)
    assert len(lines) == 8
    calls = [["train.py"], *(["-m", "ontogeny", *map(fewer, shlex.split(line))] for line in lines)]
    for call in calls:
        done = subprocess.run(
            [sys.executable, *call], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{call}: {done.stderr[-2000:]}"
    return folder


def fewer(word: str) -> str:
    return FEWER.get(word, word)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_run(str(folder / "runs" / "wiki"))


def test_training_is_recorded_with_the_words_of_the_text(run: Run) -> None:
    assert run.steps_done == 40
    assert not any(segment.unchecked for segment in run.segments)
    assert list(run.evaluations()["step"]) == [20, 40]
    assert {"the", "<unk>"} <= set(run.vocabulary()["token"])


@pytest.mark.parametrize("job", TABLES)
def test_each_command_leaves_its_tables(run: Run, job: str) -> None:
    require_tables(run, job)


def test_the_report_states_what_the_run_knows(folder: Path) -> None:
    page = (folder / "runs" / "wiki" / "report" / "index.html").read_text()
    assert "of the custom training loop" in page
    assert "python-reference" not in page
    assert "learning rate 0.003" in page
