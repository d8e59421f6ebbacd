"""Law 3 for engines: a run with DeepSpeed equals the run with the plain engine."""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deepspeed_runs import (
    FEW_CASES,
    MANY_CASES,
    capture_few,
    capture_many,
    capture_tied,
    delete_segment,
    ignore,
    plain_config,
    resume_on_other_engine,
    tied_config,
)
from same_runs import read_all, same_rounded_run, same_run
from spawned import on_workers
from tiny import make_run

from capture.config.reading import make_config
from capture.config.settings import to_values
from capture.engine.deepspeed_setup import require_installed
from capture.errors import ConfigError
from capture.store import Store
from capture.training.loop import capture_run
from cluster.local.torchrun import LAUNCHER_VARIABLES, capture_launched

pytestmark = pytest.mark.machines

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def same_as_plain(cases: list[str], folder: Path) -> None:
    """Compare outliers, tallies, steps, evaluations and checkpoints with the plain engine's."""
    for variant in dict.fromkeys(case.split()[0] for case in cases):
        if not (folder / variant).exists():
            make_run(plain_config(folder, variant))
    for case in cases:
        wanted, found = str(folder / case.split()[0]), str(folder / case.replace(" ", "-"))
        if case.startswith("rounded"):
            same_rounded_run(wanted, found)
        else:
            same_run(wanted, found, size=2)


@needs_deepspeed
def test_deepspeed_gives_the_run_of_the_plain_engine(tmp_path: Path):
    on_workers(2, capture_few, tmp_path)
    same_as_plain(FEW_CASES, tmp_path)
    errors = read_all(str(tmp_path / "sgd-1"), "steps")["audit_error"]
    assert errors.between(1e-9, 1e-6).all()


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_and_optimizer_gives_the_same_run(tmp_path: Path):
    on_workers(2, capture_many, tmp_path)
    same_as_plain(MANY_CASES, tmp_path)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_either_engine_resumes_the_other_s_run(tmp_path: Path):
    for variant, name in (("adamw", "taken-over"), ("nesterov", "taken-back")):
        make_run(plain_config(tmp_path, variant))
        make_run(plain_config(tmp_path, variant, name))
        delete_segment(Store(str(tmp_path / name)))
    on_workers(2, resume_on_other_engine, tmp_path)
    make_run(plain_config(tmp_path, "adamw", "left"), resume=True)
    for variant, name in (("adamw", "taken-over"), ("nesterov", "taken-back"), ("adamw", "left")):
        same_run(str(tmp_path / variant), str(tmp_path / name), size=2)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_partitioned_tied_weights_are_captured(tmp_path: Path):
    pytest.importorskip("transformers")
    on_workers(2, capture_tied, tmp_path)
    make_run(tied_config(tmp_path, name="tied"))
    same_run(str(tmp_path / "tied"), str(tmp_path / "tied-3"), size=2)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_launcher_s_processes_capture_together(tmp_path: Path):
    make_run(plain_config(tmp_path, "sgd"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(to_values(plain_config(tmp_path, "sgd", "launched"))))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "cluster", "capture", str(config), "engine=deepspeed", "deepspeed.stage=2"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("every step audited") == 1
    same_run(str(tmp_path / "sgd"), str(tmp_path / "launched"), size=2)


def test_another_number_of_workers_than_the_launcher_s_is_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in zip(LAUNCHER_VARIABLES, ("0", "2", "localhost", "1"), strict=True):
        monkeypatch.setenv(name, value)
    config = make_config({}, ["workers.count=4"])
    with pytest.raises(ConfigError, match=r"got 4, but the launcher has started 2\. Leave it out"):
        capture_launched(config, ignore)


# --- unsupported settings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "deepspeed.offload=all",
            r"deepspeed\.offload: got all with stage 2, which does not partition weights\. "
            r"Set it to optimizer, or set deepspeed\.stage=3\.",
        ),
        ("deepspeed.stage=4", r"deepspeed\.stage: got 4, must be one of 1, 2, 3\."),
        (
            "engine=deepspeed capture.loss_positions=last",
            r"capture\.loss_positions: got last, which needs a second backward pass; DeepSpeed "
            r"runs one\. Set engine=plain, or leave this at its default\.",
        ),
        (
            "engine=deepspeed capture.fallback=vmap",
            r"capture\.fallback: got vmap, which needs whole weights; DeepSpeed partitions them",
        ),
    ],
)
def test_unsupported_settings_are_refused_with_the_reason(overrides: str, message: str):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        make_config({}, overrides.split())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_deepspeed_without_a_process_group_is_refused(tmp_path: Path):
    config = make_config({}, ["engine=deepspeed", f"run.uri={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=r"^engine: got deepspeed, which takes the workers of a"):
        capture_run(config, ignore)
    assert not (tmp_path / "run").exists()


def test_without_deepspeed_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError) as caught:
        require_installed()
    assert str(caught.value) == (
        "engine: got deepspeed, which is not installed here. "
        "Install it: pip install 'ontogeny[deepspeed]'."
    )
