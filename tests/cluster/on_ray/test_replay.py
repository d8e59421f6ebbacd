"""Segments replayed on a cluster have the same bytes as those replayed here."""

from pathlib import Path

import pytest
from tiny import contents, make_run, tiny_config

from capture.store import Store
from cluster.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_cluster_writes_the_same_bytes_as_one_process(ray_nodes, tmp_path: Path) -> None:
    uris = []
    for name in ("here", "there"):
        config = tiny_config(tmp_path, "capture.record=checkpoints", name=name)
        make_run(config)
        uris.append(config.run.uri)
    here, there = uris
    record = ["--record", "outliers,factors,tallies", "--quiet"]
    assert main(["replay", here, *record, "--workers", "1"]) == 0
    assert main(["replay", there, *record, "--ray", str(ray_nodes.address)]) == 0
    assert Store(there).keys("factors")
    assert contents(there) == contents(here)


def test_a_run_that_workers_cannot_see_is_refused(ray_nodes, tmp_path: Path, capsys) -> None:
    settings = ["capture.record=checkpoints", "training.epochs=1", "run.uri=memory://unseen/run"]
    make_run(tiny_config(tmp_path, *settings))
    assert main(["replay", "memory://unseen/run", "--ray", str(ray_nodes.address)]) == 2
    assert "out of workers' reach" in capsys.readouterr().err
