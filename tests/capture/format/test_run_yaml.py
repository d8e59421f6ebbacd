"""``run.yaml`` names the code that made a run."""

from importlib import metadata

import torch

import capture
from capture.config.settings import Config
from capture.format import run_yaml


def test_the_version_is_that_of_the_code_that_runs(monkeypatch):
    """A package that was installed before an update has another version than its code."""
    real = metadata.version
    older = {"ontogeny": "0.0.1"}
    monkeypatch.setattr(metadata, "version", lambda name: older.get(name) or real(name))
    run_yaml.version_of.cache_clear()
    written = run_yaml.describe_run(Config(), torch.device("cpu"))
    found = run_yaml.parse_run_yaml(written, "run.yaml")["versions"]
    assert found["ontogeny"] == capture.__version__
    assert list(found)[:3] == ["python", "ontogeny", "torch"]
