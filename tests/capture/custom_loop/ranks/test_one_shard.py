"""A model that ``fully_shard`` keeps on one process is recorded like the model alone."""

import pytest
import torch
from custom_loops import Small
from recorded_ranks import SETTINGS, STEPS, Remembering, sharded, take_step, train
from same_record import same_record

from capture.custom_loop.record import record
from capture.errors import UnitError
from capture.process_group import SINGLE_PROCESS
from capture.shifts.outliers import OutlierConfig


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_one_process_records_its_shards_as_the_model_alone(one_process, tmp_path):
    setting = SETTINGS["sharded"]
    train(setting, tmp_path, "alone", SINGLE_PROCESS)
    model = Small(0)
    sharded(model, setting)
    optimizer = setting.optimizer(model.parameters(), **setting.options)
    more = {"outliers": OutlierConfig(k=20), "segment_steps": 2, "datums": 24} | setting.more
    with record(model, optimizer, run=str(tmp_path / "run"), **more) as recorder:
        for step in range(STEPS):
            take_step(setting, model, optimizer, recorder, step, [SINGLE_PROCESS])
    assert isinstance(recorder.units["layer.weight"], torch.nn.Parameter)
    same_record(str(tmp_path / "alone"), str(tmp_path / "run"), 1e-6)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_modules_that_would_run_again_are_refused_in_a_sharded_model(one_process, tmp_path):
    setting = SETTINGS["sharded"]
    model = Remembering(0)
    sharded(model, setting)
    optimizer = setting.optimizer(model.parameters(), **setting.options)

    def loop() -> None:
        with record(model, optimizer, run=str(tmp_path / "run"), datums=24) as recorder:
            take_step(setting, model, optimizer, recorder, 0, [SINGLE_PROCESS])

    with pytest.raises(UnitError, match=r"is used by gru, which capture cannot split") as raised:
        loop()
    assert "fallback" not in str(raised.value)
