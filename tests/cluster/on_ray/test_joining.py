"""Clusters that cannot be joined: one line that names what to do."""

import os
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from capture.errors import ClusterError
from capture.process_group import WRITERS_TIMEOUT, gradient_timeout
from cluster.on_ray.session import connect, joining_error, require_ray, require_version


@pytest.mark.parametrize("version", ["2.49.0", "1.13.0", "2.9.3", "2.59.1rc1"])
def test_an_older_ray_names_the_version_that_is_needed(version: str) -> None:
    with pytest.raises(ClusterError) as raised:
        require_version(version)
    assert str(raised.value) == (
        f"Ray: is version {version}, needs 2.60 or newer. Run: pip install 'ontogeny[ray]'."
    )


@pytest.mark.parametrize("version", ["2.60.0", "2.101.3", "3.0.0.dev0", "unknown"])
def test_a_newer_ray_is_accepted(version: str) -> None:
    require_version(version)


def test_an_older_ray_is_refused_before_anything_of_it_is_used(monkeypatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.49.0")
    with pytest.raises(ClusterError, match=r"needs 2\.60 or newer"):
        require_ray()


class AuthenticationError(Exception):
    """Ray's error of this name, which differs between its versions."""


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("Request was refused.\nlong\ntext\n"),
        RuntimeError("InvalidToken: Authentication token is missing"),
        ConnectionError("Unauthenticated: wrong\nmore"),
    ],
)
def test_a_wrong_token_is_one_line_that_names_the_variable(error: Exception) -> None:
    line = str(joining_error("head:6379", error, ""))
    assert line.startswith("head:6379: cannot be joined: ")
    assert "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in line
    assert "\n" not in line


def test_a_deleted_working_directory_is_named(monkeypatch, tmp_path) -> None:
    """Nodes that share a folder delete each other's; Ray's own error is a bare file error."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    line = str(joining_error("head:6379", FileNotFoundError(2, "No such file or directory"), ""))
    assert line == (
        "head:6379: cannot be joined: the working directory of this process was deleted. "
        "Start the command elsewhere; give each node on one machine a --temp-dir of its own."
    )


def test_a_wrong_token_is_found_in_what_ray_prints(monkeypatch, capfd) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        os.write(2, b"gcs_client.cc: Unauthenticated: InvalidAuthToken: wrong\n" * 5)
        raise ConnectionError("Failed to connect to Ray cluster at head:6379")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("cluster.on_ray.session.require_listening", lambda address: None)
    with pytest.raises(ClusterError) as raised, connect("head:6379"):
        pass
    assert "RAY_AUTH_TOKEN" in str(raised.value)
    assert capfd.readouterr().err == ""


def test_what_ray_prints_is_passed_on_where_it_starts(monkeypatch, capfd) -> None:
    monkeypatch.setattr("ray.init", lambda *a, **options: os.write(2, b"a warning of Ray\n"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("cluster.on_ray.session.cluster_size", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connect("local"):
        assert capfd.readouterr().err == "a warning of Ray\n"


@pytest.mark.parametrize("kind", [Exception, ConnectionError, RuntimeError, ValueError, OSError])
def test_whatever_ray_raises_when_it_starts_is_one_line(kind: type, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise kind("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError) as raised, connect("local"):
        pass
    line = str(raised.value)
    assert line.startswith("local: cannot be joined: The current node timed out during startup")
    assert "\n" not in line
    assert "RAY_AUTH_TOKEN" not in line


def test_a_hung_card_ends_the_group_in_minutes_but_an_outage_of_the_store_does_not() -> None:
    assert gradient_timeout(600.0).total_seconds() == 1800
    assert gradient_timeout(7200.0).total_seconds() > 7200
    assert WRITERS_TIMEOUT.total_seconds() == 6 * 3600


def test_the_trainer_waits_so_long_for_gradients(tmp_path, monkeypatch) -> None:
    from tiny import tiny_config

    from cluster.on_ray import workers

    made = {}
    monkeypatch.setattr(workers, "TorchTrainer", lambda *a, **options: made.update(options))
    config = tiny_config(tmp_path, "store.patience_seconds=60")
    workers.trainer(SimpleNamespace(config=config, group="g"), str(tmp_path), use_gpu=False)  # pyright: ignore[reportArgumentType]
    assert made["torch_config"].timeout_s == 60 + 1200
