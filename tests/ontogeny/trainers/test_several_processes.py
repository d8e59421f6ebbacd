"""A Hugging Face ``Trainer`` in two processes, as ``torchrun`` starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from safetensors.torch import load_file
from tiny import contents
from trainer_runs import datums_of, largest_error, llama, own_loss

from analysis.run.run import open_run

pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")


def train(folder: Path, mode: str) -> None:
    script = ROOT / "tests" / "support" / "trainers" / "trainer_ranks.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join(map(str, (ROOT, script.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), str(folder), mode], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_record_one_run(tmp_path: Path) -> None:
    train(tmp_path, "plain")
    train(tmp_path, "recorded")
    uri = str(tmp_path / "run")
    plain, recorded = (load_file(tmp_path / f"{n}.safetensors") for n in ("plain", "recorded"))
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    run = open_run(uri)
    assert not any(segment.unchecked for segment in run.segments)
    # The last batches of an epoch are filled up with its first rows, so that all have as many.
    assert [len(datums) for datums in datums_of(run)] == [8, 8]
    assert {datum for datums in datums_of(run) for datum in datums} == {*range(13)}
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert largest_error(uri, llama(), own_loss(counts)) < 1e-5
    before = contents(uri)
    train(tmp_path, "continued")
    assert contents(uri) == before
