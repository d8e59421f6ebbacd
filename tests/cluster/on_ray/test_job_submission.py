"""The commands as jobs: a cluster of two nodes by ``ray start``, an S3 server, ``ray job submit``.

On the way one worker is killed, and later the node of another worker. The jobs must write what the
same commands write on this machine alone. Prints the figures for docs/scale.md.
"""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("ray", reason="needs ray")

from ray_nodes import Nodes, kill_processes, ray_nodes
from s3_server import BUCKET, Server, environment, serving

from analysis.run.run import open_run
from capture.store import Store
from cluster.cli import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[3]
SETTINGS = [
    *("corpus.kind=text", "corpus.window=16", "corpus.test_share=0.1"),
    *("model.layers=2", "model.width=24", "model.hidden=24", "model.heads=2"),
    *("training.batch=4", "training.epochs=4", "training.learning_rate=0.5"),
    *("training.device=cpu", "capture.segment_steps=20", "capture.outliers.k=60"),
]
ON_WORKERS = ["workers.count=2", "workers.max_failures=4"]
RUN = f"s3://{BUCKET}/run"
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some pages of Python's reference: real text that every node has."""
    path = tmp_path_factory.mktemp("text") / "reference.txt"
    pages = [topics.topics[name] for name in ("assignment", "class", "numbers", "exceptions")]
    path.write_text("\n".join(pages))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture(scope="module")
def nodes(server: Server) -> Iterator[Nodes]:
    """Two nodes with a core each, so that two workers need a replacement for a lost node."""
    with ray_nodes([1, 1], environment(server.endpoint)) as running:
        yield running


@pytest.fixture(autouse=True)
def reachable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process access to the store, as the nodes have it."""
    for name, value in environment(server.endpoint).items():
        monkeypatch.setenv(name, value)


def finish(job: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a job; returns its exit code and output."""
    said, _ = job.communicate(timeout=600)
    return job.returncode, said


def wait_until(true: Callable[[], object], what: str, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert job.poll() is None, f"ended before {what}:\n{job.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def markers(server: Server) -> int:
    """Number of committed segments, counted in the store's folder."""
    return len(list((server.folder / BUCKET / "run" / "segments").glob("segment-*.json")))


def captured(nodes: Nodes, server: Server, text: Path) -> str:
    """Capture as a job while a worker and a node are killed; returns its output."""
    words = ["wikitext2-cluster", f"run.uri={RUN}", f"corpus.path={text}", *SETTINGS, *ON_WORKERS]
    job = nodes.submit("capture", *words, folder=ROOT)
    wait_until(lambda: markers(server) >= 2, "the second segment", job)
    (victim, *_), before = nodes.workers(), markers(server)
    kill_processes({victim: "worker"})
    wait_until(lambda: markers(server) >= before + 2, "segments after a worker's death", job)
    mark = next(mark for mark in nodes.workers().values() if mark != nodes.started[0])
    before = markers(server)
    nodes.kill(mark)
    nodes.start(cpus=1)
    wait_until(lambda: markers(server) >= before + 2, "segments after a node's death", job)
    code, said = finish(job)
    assert code == 0, said
    return said


def test_the_study_s_commands_as_jobs(
    nodes: Nodes, server: Server, text: Path, tmp_path: Path
) -> None:
    clock = Clock()
    said = captured(nodes, server, text)
    clock.lap("capture, with a worker and a node killed")
    assert_readable(said)
    steps = open_run(RUN).num_steps
    assert re.search(rf"^step {steps}/{steps}  epoch 4/4 ", said, flags=re.MULTILINE), said
    assert f"{RUN}: {steps} of {steps} steps" in said
    for name, options in ASKED.items():
        code, said = finish(nodes.submit(name, RUN, *options, folder=ROOT))
        assert code == 0, said
        assert_readable(said)
        clock.lap(name)
    own = str(tmp_path / "own")
    assert main(["capture", "wikitext2", f"run.uri={own}", f"corpus.path={text}", *SETTINGS]) == 0
    assert main(["verify", RUN]) == 0
    assert_same_training(RUN, own)
    assert_same_answers(RUN, str(tmp_path / "copy"))
    print("\n" + "\n".join(clock.laps))


ASKED = {"attribute": [], "ablate": ["--neurons", "6"], "report": ["--neurons", "6"]}


class Clock:
    """Measures how long each part took."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.laps: list[str] = []

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps.append(f"{name}: {now - self.start:.1f} s")
        self.start = now


def assert_readable(said: str) -> None:
    """Assert that the output has no colours, progress bars or tracebacks."""
    assert ESCAPE not in said
    assert "\r" not in said
    assert "Traceback" not in said


def assert_same_training(uri: str, own: str) -> None:
    """Compare losses and the first outliers, to the tolerance that another order of sums needs."""
    theirs, ours = open_run(uri), open_run(own)
    losses = [run.steps()["loss"].to_numpy() for run in (theirs, ours)]
    errors = np.abs(losses[0] - losses[1]) / losses[1]
    print(
        f"losses apart by at most {errors.max():.1e}, in the first segment {errors[:20].max():.1e}"
    )
    assert errors[:20].max() < 1e-5
    assert errors.max() < 1e-4
    columns = ["step", "slot", "datum", "unit", "index"]
    keys = [set(map(tuple, rows_of(run, range(20))[columns].to_numpy())) for run in (uri, own)]
    shared = len(keys[0] & keys[1]) / len(keys[1])
    print(f"{shared:.4%} of the first segment's outliers are the same")
    assert len(keys[0]) == len(keys[1])
    assert shared > 0.999  # ties within rounding may fall either way


def rows_of(uri: str, steps: range) -> pd.DataFrame:
    run = open_run(uri)
    parts = [shard.file.key for shard in run.shards("outliers") if shard.first_step in steps]
    return pd.concat([pd.read_parquet(f"{uri}/{key}") for key in parts])


def assert_same_answers(uri: str, copy: str) -> None:
    """Compare the jobs' tables with those of the same commands here, on the same record."""
    source, target = Store(uri), Store(copy)
    for key in source.keys():
        if not key.startswith(("analysis/", "report/")):
            target.put(key, source.get(key))
    for name, options in ASKED.items():
        assert main([name, copy, *options, "--no-ray"]) == 0
    tables = [key for key in target.keys("analysis") if key.endswith(".parquet")]
    assert tables
    for key in tables:
        theirs, ours = (pd.read_parquet(f"{where}/{key}") for where in (uri, copy))
        pd.testing.assert_frame_equal(theirs, ours, rtol=1e-6)
    assert set(source.keys("report")) == set(target.keys("report"))


def test_a_job_with_a_wrong_setting_fails_with_the_reason(nodes: Nodes) -> None:
    code, said = finish(nodes.submit("capture", "demo", "modle.layers=2", folder=ROOT))
    assert code != 0
    assert "modle.layers: unknown key" in said
    assert_readable(said)


def test_a_job_that_would_lose_its_run_is_refused(nodes: Nodes) -> None:
    code, said = finish(nodes.submit("demo", folder=ROOT))
    assert code != 0
    assert "run.uri: 'runs/demo' is relative to the job's working directory" in said
    assert_readable(said)


def test_a_job_without_the_token_is_refused(nodes: Nodes) -> None:
    stranger = Nodes(
        nodes.environment | {"RAY_AUTH_TOKEN": "0" * 64}, nodes.folder, "", 0, nodes.dashboard
    )
    code, said = finish(stranger.submit("info", RUN, folder=ROOT))
    assert code != 0
    assert "token" in said.lower()
