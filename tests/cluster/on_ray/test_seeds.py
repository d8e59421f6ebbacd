"""Seeds that train on a cluster make the runs that this machine makes."""

from pathlib import Path

import pytest
from tiny import TEXT, contents

from cluster.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def words(folder: Path, name: str) -> list[str]:
    (folder / "text.txt").write_text(TEXT)
    settings = ["corpus.kind=text", f"corpus.path={folder}/text.txt", "corpus.window=8"]
    settings += ["model.layers=1", "model.width=8", "model.hidden=8", "model.heads=2"]
    settings += ["training.epochs=1", "training.device=cpu", "corpus.validation_share=0.2"]
    settings += ["capture.outliers.k=50"]
    return ["seeds", "demo", f"run.uri={folder}/{name}", *settings, "--seeds", "0:3", "--quiet"]


def test_a_cluster_trains_the_same_runs_as_this_machine(ray_nodes, tmp_path: Path) -> None:
    assert main([*words(tmp_path, "there"), "--ray", str(ray_nodes.address)]) == 0
    assert main(words(tmp_path, "here")) == 0
    for seed in range(3):
        here, there = (f"{tmp_path}/{name}-seeds/seed-{seed}" for name in ("here", "there"))
        mine, theirs = contents(here), contents(there)
        weights = [key for key in mine if key.startswith("checkpoints/")]
        assert weights
        assert all(theirs[key] == mine[key] for key in weights)
    assert not (tmp_path / "there-seeds" / "seeds-begin").exists()


def test_runs_that_workers_cannot_see_are_refused(ray_nodes, tmp_path: Path, capsys) -> None:
    command = [*words(tmp_path, "run"), "run.uri=memory://unseen/run"]
    assert main([*command, "--ray", str(ray_nodes.address)]) == 2
    assert "out of workers' reach" in capsys.readouterr().err
