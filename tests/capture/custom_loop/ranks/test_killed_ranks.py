"""A rank is killed, the others stop, and the resumed run is the whole run. Four ranks at once."""

from pathlib import Path

import pytest
from killed_ranks import be_killed, go_on, on_mortal_workers
from recorded_ranks import LOSS, SETTINGS, record_all, train_alone
from same_record import same_record
from spawned import on_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("killed", "moment"), [(1, "loop"), (1, "recorder"), (0, "recorder")])
def test_a_run_goes_on_after_a_rank_was_killed(killed: int, moment: str, tmp_path: Path):
    exits = on_mortal_workers(2, be_killed, tmp_path, killed, moment)
    assert exits[killed] == -9
    assert exits[1 - killed] == 0
    error = (tmp_path / f"error-{1 - killed}.txt").read_text()
    if moment == "loop":  # the backward pass itself waits for the other rank
        assert error.startswith("RuntimeError")
    else:
        wanted = f"RunError: rank {1 - killed}: another rank has ended or does not answer at step 3"
        assert error.startswith(wanted)
        assert error.endswith("start all processes again with resume=True.")
    assert on_mortal_workers(2, go_on, tmp_path) == [0, 0]
    train_alone(SETTINGS["adamw"], tmp_path, "alone", 2)
    same_record(str(tmp_path / "alone"), str(tmp_path / "run"), 1e-6)


def test_four_ranks_record_what_one_process_records(tmp_path: Path):
    on_workers(4, record_all, tmp_path)
    for name, setting in SETTINGS.items():
        train_alone(setting, tmp_path, f"{name}-alone", 4)
        alone, found = (str(tmp_path / each) for each in (f"{name}-alone", name))
        same_record(alone, found, LOSS.get(name, 1e-6))
