"""Whole runs that capture all parameters, embedding and unembedding included: laws 1, 3 and 8."""

import numpy as np
import pytest
from tiny import make_run, read_outliers, tiny_config

from analysis.run.run import open_run
from capture.shifts import wide_units as wide

ALL = ["capture.units=['*']", "training.epochs=1", "corpus.window=16"]
SETTINGS = {
    "SGD": [],
    "last token": ["capture.loss_positions=last"],
    "AdamW": ["training.optimizer.kind=adamw", "training.learning_rate=0.01"],
    "step": ["capture.outliers.scope=step"],
    "unit": ["capture.outliers.scope=unit", "capture.outliers.k=12"],
    "micro-batches": ["training.accumulate=2"],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_selection_by_bounds_gives_the_outliers_of_dense_shifts(tmp_path, monkeypatch, setting):
    """Outliers are the same if all tall units are selected by bounds, or none."""
    make_run(tiny_config(tmp_path, *ALL, *SETTINGS[setting], name="dense"))
    monkeypatch.setattr(wide, "SMALL_SIZE", 0)
    monkeypatch.setattr(wide, "TALL_RATIO", 1)
    monkeypatch.setattr(wide, "SEEDS", 1)
    make_run(tiny_config(tmp_path, *ALL, *SETTINGS[setting], name="wide"))
    one, other = (read_outliers(str(tmp_path / name)) for name in ("dense", "wide"))
    found = set(other["unit"].to_pylist())
    assert "decoder.weight" in found
    for column in ("step", "slot", "datum", "unit", "index", "position"):
        assert one[column].to_pylist() == other[column].to_pylist(), column
    np.testing.assert_allclose(one["shift"], other["shift"], rtol=1e-3, atol=1e-9)
    errors = open_run(str(tmp_path / "wide")).steps()["audit_error"]
    assert ((errors > 0) & (errors < 1e-5)).all()


def test_all_parameters_of_the_model_are_captured(tmp_path):
    make_run(tiny_config(tmp_path, *ALL))
    run = open_run(str(tmp_path / "run"))
    assert run.layout.size == sum(parameter.numel() for parameter in run.model().parameters())
