"""The files for Ray's launcher and KubeRay: structure, pins, users, open ports."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker_files import unpinned

from capture.config.reading import read_config
from capture.config.settings import Config
from cluster.cli import parser

ROOT = Path(__file__).parents[2]
RAY = next(
    (
        line.removeprefix("ray==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    ),
    "",
)
JOB_FIELDS = {
    *("entrypoint", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("backoffLimit", "submitterPodTemplate", "rayClusterSpec", "activeDeadlineSeconds"),
    *("runtimeEnvYAML", "metadata", "suspend", "jobId", "clusterSelector", "entrypointNumCpus"),
}
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_FIELDS = {"rayStartParams", "template"}
GROUP_FIELDS = {*HEAD_FIELDS, "groupName", "replicas", "minReplicas", "maxReplicas"}
"""Fields of KubeRay's RayJob (ray.io/v1) from its reference, as far as we would use them."""


def launcher_text() -> str:
    return (ROOT / "cluster" / "ray-cluster.yaml").read_text()


def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "rayjob.yaml").read_text())


def own_machines() -> dict[str, Any]:
    """The launcher's file for machines of one's own, as its comments describe it."""
    text = launcher_text()
    block = re.search(r"^# (provider:\n(?:#   .*\n)+)", text, flags=re.MULTILINE)
    assert block
    provider = yaml.safe_load(block[1].replace("\n# ", "\n"))
    node = {"resources": {}, "node_config": {}, "min_workers": 2, "max_workers": 2}
    types = {"available_node_types": {"local.cluster.node": node}}
    return yaml.safe_load(text) | provider | types | {"head_node_type": "local.cluster.node"}


# --- the launcher ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["amazon", "own machines"])
def test_ray_takes_the_launcher_file(variant: str) -> None:
    ray_says = pytest.importorskip("ray.autoscaler._private.util", reason="needs ray")
    found = yaml.safe_load(launcher_text()) if variant == "amazon" else own_machines()
    ray_says.validate_config({"cluster_synced_files": []} | found)
    with pytest.raises(Exception, match="cluster_nam"):
        ray_says.validate_config(found | {"cluster_nam": "a"})


def test_ray_parses_the_launcher_s_start_commands() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="needs ray")
    found = yaml.safe_load(launcher_text())
    lines = found["head_start_ray_commands"] + found["worker_start_ray_commands"]
    starts = [shlex.split(line) for line in lines if "start" in line]
    assert len(starts) == 2
    for words in starts:
        scripts.start.make_context("start", words[2:])
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_launcher_opens_only_ssh_to_one_address() -> None:
    (rule,) = yaml.safe_load(launcher_text())["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [entry["CidrIp"][-3:] for entry in rule["IpRanges"]] == ["/32"]


def test_every_node_of_the_launcher_holds_the_token() -> None:
    mounts = yaml.safe_load(launcher_text())["file_mounts"]
    assert mounts == {"/home/ontogeny/.ray/auth_token": "~/.ray/auth_token"}


# --- the job on Kubernetes ------------------------------------------------------------------------


def pods(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each pod's spec."""
    cluster = found["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    groups["head"] = cluster["headGroupSpec"]
    specs = {name: group["template"]["spec"] for name, group in groups.items()}
    return specs | {"submitter": found["spec"]["submitterPodTemplate"]["spec"]}


def test_the_job_has_the_fields_that_kuberay_knows() -> None:
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = found["spec"], found["spec"]["rayClusterSpec"]
    assert spec.keys() <= JOB_FIELDS
    assert spec["entrypoint"]
    assert cluster.keys() <= CLUSTER_FIELDS
    assert cluster["headGroupSpec"].keys() == HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == GROUP_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    values = [value for group in groups for value in group["rayStartParams"].values()]
    assert all(isinstance(value, str) for value in values), "KubeRay takes only text"


def test_every_container_is_pinned_and_confined() -> None:
    for name, pod in pods(job()).items():
        (container,) = pod["containers"]
        assert unpinned([container["image"]]) == []
        security = container["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 1000, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"].keys() == {"requests", "limits"}


def test_the_cluster_ends_with_the_job_and_a_retry_resumes() -> None:
    spec = job()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0
    assert "--resume" in spec["entrypoint"]


def test_secrets_come_from_the_cluster_and_not_from_the_file() -> None:
    for name in ("gpu", "head"):
        (container,) = pods(job())[name]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "ontogeny-s3"}}]
        assert "env" not in container
    assert job()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_versions_are_those_of_the_constraints() -> None:
    if not RAY:
        pytest.skip("constraints.txt names no ray")
    assert job()["spec"]["rayClusterSpec"]["rayVersion"] == RAY


def entered() -> Config:
    words = shlex.split(job()["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "cluster"]
    arguments = parser().parse_args(words[3:])
    return read_config(arguments.config, arguments.overrides)


def test_as_many_gpus_as_the_run_has_workers() -> None:
    (group,) = job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert group["replicas"] == entered().workers.count


def test_the_cluster_s_study_is_the_study() -> None:
    """wikitext2-cluster differs from wikitext2 only in its workers and its location."""
    study, on_cluster = read_config("wikitext2"), read_config("wikitext2-cluster")
    for part in ("corpus", "model", "training", "capture", "store"):
        assert getattr(study, part) == getattr(on_cluster, part)
    assert on_cluster.training.batch % on_cluster.workers.count == 0
