"""Law 8 in whole runs: ``capture.outliers.scope=unit`` keeps the top k of each unit and datum."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import Small, loss_of, tokens, uri
from tiny import contents, make_run, tiny_config

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.replay.segments import read_replayable_run, replay_segment
from capture.shifts.outliers import OutlierConfig
from capture.store import Store
from cluster.local.threads import run_job

K = 15
BY_UNIT = ["capture.outliers.scope=unit", f"capture.outliers.k={K}", "training.epochs=1"]
FACTORS = "capture.factors.enabled=true"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with micro-batches and every record; tests must not change it."""
    folder = tmp_path_factory.mktemp("whole")
    make_run(tiny_config(folder, *BY_UNIT, FACTORS, "training.accumulate=2"))
    return folder / "run"


def require_top_of_units(run: Run, steps: list[int], k: int) -> None:
    """Compare all rows of these steps with the dense shifts of each unit and datum."""
    rows = run.shifts()
    assert len(rows) == run.steps_done * len(run.steps()["datums"][0]) * sum(
        min(k, size) for size in run.layout.sizes
    )
    for step in steps:
        for datum in run.steps()["datums"][step]:
            here = rows[(rows["step"] == step) & (rows["datum_id"] == datum)]
            for unit in run.layout.names:
                shift_S = run.shift(step, int(datum), unit).ravel()
                largest = np.lexsort((np.arange(len(shift_S)), -np.abs(shift_S)))[:k]
                own = here[here["unit"] == unit]
                assert own["index"].tolist() == sorted(largest.tolist())
                assert np.array_equal(own["diff"], shift_S[own["index"]])


def test_a_run_keeps_the_k_largest_of_each_unit_and_datum(whole: Path):
    require_top_of_units(open_run(str(whole)), [9], K)


def test_replay_of_outliers_by_unit_gives_the_same_bytes(whole: Path, tmp_path: Path):
    settings = ["capture.record=checkpoints", "training.accumulate=2"]
    make_run(tiny_config(tmp_path, *BY_UNIT, *settings, name="bare"))
    bare = Store(str(tmp_path / "bare"))
    for segment in (1, 0):
        replay_segment(read_replayable_run(bare), segment, ["outliers"])
    wanted, found = (
        {key: data for key, data in contents(uri).items() if key.startswith("outliers/")}
        for uri in (str(whole), bare.uri)
    )
    assert found == wanted
    assert len(found) == 2


def test_every_datum_is_evidence_for_every_unit(whole: Path):
    """The training text of an attribution is that of all datums, as with outliers by datum."""
    run = open_run(str(whole))
    config = AttributionConfig(level="row", evidence="target", background="train")
    groups = attribute(run, run_job, config).groups
    each = groups.groupby("unit")["rows"].sum()
    weights = [name for name in run.layout.names if len(run.layout.shapes[name]) == 2]
    assert each.to_dict() == dict.fromkeys(weights, 14 * 4 * K)


def test_a_custom_loop_keeps_the_k_largest_of_each_unit_and_datum(tmp_path: Path):
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {"outliers": OutlierConfig(k=7, scope="unit"), "factors": FactorConfig(enabled=True)}
    with record(model, optimizer, run=uri(tmp_path), datums=12, **options) as recorder:
        for step in range(2):
            for first in (4 * step, 4 * step + 2):
                recorder.datums(range(first, first + 2))
                (loss_of(model, tokens()[first : first + 2]) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    require_top_of_units(open_run(uri(tmp_path)), [0, 1], 7)
