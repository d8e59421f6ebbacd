"""Where a command computes: arguments, environment variables, and errors of the connection."""

import argparse
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from ray_jobs import ENVIRONMENT

from analysis.jobs.sweep import in_turn
from capture.errors import ClusterError
from capture.store import Store
from cluster.cli import main
from cluster.commands import demo
from cluster.local import threads as local
from cluster.on_ray.job import JOB_CONFIG_VARIABLE
from cluster.on_ray.session import PACKAGES, connect, package_environment
from cluster.options.arguments import add_ray
from cluster.options.machines import HERE, Machines, cluster_address, machines


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    add_ray(parser)
    return parser.parse_args(["RUN", *words])


@pytest.mark.parametrize(
    ("words", "environment", "address"),
    [
        ((), "", None),
        ((), "head:6379", "head:6379"),
        (("--no-ray",), "head:6379", None),
        (("--ray",), "", ""),
        (("--ray",), "head:6379", "head:6379"),
        (("--ray", "auto"), "", ""),
        (("--ray", "local"), "head:6379", "local"),
        (("--ray", "other:10001"), "head:6379", "other:10001"),
        (("--ray", "[::1]:6379"), "", "[::1]:6379"),
    ],
)
def test_arguments_and_environment_choose_the_cluster(
    words: tuple[str, ...], environment: str, address: str | None
) -> None:
    asked = arguments(*words)
    assert cluster_address(asked.ray, asked.no_ray, environment) == address


@pytest.mark.parametrize("word", ["runs/demo", "ray://head:10001", "head", "s3://b:1", ":6379"])
def test_a_malformed_address_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("--ray", word)
    assert "is not a cluster's address: host:port or local; put RUN before --ray" in (
        capsys.readouterr().err
    )


def test_ray_is_not_imported_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with machines(arguments()) as on:
        assert on is HERE


def test_without_ray_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError) as raised, connect("local"):
        pass
    assert str(raised.value) == "Ray: is not installed. Run: pip install 'ontogeny[ray]'."


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ClusterError) as raised, connect(address):
        pass
    found = str(raised.value)
    assert found.startswith(f"{address}: has no Ray cluster: ")
    assert found.endswith(
        "Start one with ray start --head, or give --ray local for a temporary one."
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001"])
def test_an_address_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError) as raised, connect():
        pass
    assert str(raised.value) == (
        f"{address}: is not a cluster's own address, host:port. Set RAY_ADDRESS to the head's, as "
        "in head:6379; the address for submitting jobs goes into RAY_API_SERVER_ADDRESS."
    )


@pytest.mark.parametrize(
    "command", ["demo", "attribute", "ablate", "activations", "neurons", "report"]
)
def test_commands_that_read_shards_or_run_the_model_take_ray(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--ray [ADDRESS]" in capsys.readouterr().out


def test_the_demo_s_analyses_run_on_the_chosen_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Machines(local.run_job, in_turn)
    places: list[object] = []

    @contextmanager
    def cluster(arguments: argparse.Namespace) -> Iterator[Machines]:
        yield there

    def note(*given: object, on: Machines = HERE, **options: object) -> None:
        places.append(on)

    monkeypatch.setattr("cluster.options.machines.machines", cluster)
    monkeypatch.setattr("analysis.run.run.open_run", mock.MagicMock())
    for name in ("record", "perform", "report"):
        monkeypatch.setattr(demo, name, note)
    assert main(["demo", "--quiet"]) == 0
    assert [on is there for on in places] == [False, True, True, True]


def test_workers_get_our_packages_unless_a_job_brought_a_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(JOB_CONFIG_VARIABLE, raising=False)
    sent = package_environment()["py_modules"]
    assert isinstance(sent, list)
    assert [Path(path).name for path in sent] == list(PACKAGES)
    assert all(Path(path).is_dir() for path in sent)
    monkeypatch.setenv(
        JOB_CONFIG_VARIABLE, json.dumps({"runtime_env": {"working_dir": "gcs://x.zip"}})
    )
    assert package_environment() == {}
    monkeypatch.setenv(JOB_CONFIG_VARIABLE, json.dumps({"runtime_env": {}}))
    assert package_environment()["py_modules"] == sent


def test_a_cluster_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ClusterError("item 1", "was lost", "See the logs")))
    assert type(error) is ClusterError
    assert (str(error), error.exit_code) == ("item 1: was lost. See the logs.", 2)


def test_a_pickled_store_has_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Store("run").put("a", b"1")
    sent = pickle.dumps(Store("run"))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).get("a") == b"1"


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_ends_a_job_in_order_and_the_cluster_with_it(tmp_path: Path, number: int) -> None:
    """Runs in its own process, which creates a file when its shard is running."""
    pytest.importorskip("ray")
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    while not (tmp_path / "awaited").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, ""), out
    assert out == "stopped\n"


ENDLESS = """
import sys
import time
from pathlib import Path
from cluster.on_ray.mapreduce import run_job
from cluster.on_ray.session import connect
from cluster.local.signals import exit_code, stoppable
from ray_jobs import JoinNames, shards_named

folder = sys.argv[1]
try:
    with stoppable(), connect("local"):
        run_job(JoinNames(folder), shards_named(Path(folder), ["await"]))
except KeyboardInterrupt as stop:
    print("stopped")
    sys.exit(exit_code(stop))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_closing_an_unfinished_sweep_starts_no_second_cluster(tmp_path: Path) -> None:
    """A consumer that raised leaves its sweep open; closing it after the session does nothing."""
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", UNFETCHED, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("A\nFalse\n", "")


UNFETCHED = """
import sys
import ray
from cluster.on_ray.model_actors import sweep
from cluster.on_ray.session import connect
from ray_jobs import ActOnNames

with connect("local"):
    results = sweep(ActOnNames(sys.argv[1]), ["a", "b"])
    print(next(results))
results.close()
print(ray.is_initialized())
"""
