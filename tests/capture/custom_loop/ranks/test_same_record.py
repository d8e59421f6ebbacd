"""Laws 1 and 3: several processes record what one process records of its loop, and fail as one."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from all_parts import all_parts, record_everything, results
from packed_ranks import train_packed
from processes import CrashError
from recorded_ranks import (
    LOSS,
    SETTINGS,
    SLOW,
    begin_alone,
    go_on_alone,
    train,
    train_alone,
)
from refused_ranks import CAUSES
from same_record import same_record
from spawned import on_workers

from analysis.run.run import open_run
from capture.process_group import SINGLE_PROCESS
from capture.store import Store

SIZE = 2
pytestmark = pytest.mark.timeout(600)  # the first test waits for all that two ranks record


@dataclass(frozen=True)
class Recorded:
    """What two ranks have done."""

    folder: Path
    """Their runs."""
    found: dict[str, list[Any]]
    """Results of all parts that both ranks have finished, by rank."""
    crash: str
    """What is known if a rank has crashed; "" if all parts are done."""

    def results(self, part: str) -> list[Any]:
        """Return what each rank has found; fail with the stacks if a rank crashed before."""
        if part not in self.found:
            pytest.fail(f"{part} is not done: {self.crash}")
        return self.found[part]

    def run(self, part: str) -> str:
        """Return the run that this part has recorded."""
        self.results(part)
        return str(self.folder / part)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder, crash = tmp_path_factory.mktemp("pair"), ""
    begin_alone(folder, "resumed", SIZE, steps=2)
    begin_alone(folder, "smaller", SIZE, steps=2)
    begin_alone(folder, "resharded", SIZE, steps=2)
    try:
        on_workers(SIZE, record_everything, folder)
    except CrashError as error:
        crash = str(error)
    return Recorded(folder, results(folder, SIZE), crash)


def test_two_ranks_do_all_parts_without_a_crash(pair: Recorded):
    assert not pair.crash
    assert pair.found.keys() == dict(all_parts()).keys()


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - SLOW))
def test_two_ranks_record_what_one_process_records(name: str, pair: Recorded, tmp_path: Path):
    train_alone(SETTINGS[name], tmp_path, name, SIZE)
    same_record(str(tmp_path / name), pair.run(name), LOSS.get(name, 1e-6))


@pytest.mark.parametrize("name", ["packed rows", "sharded packed rows"])
def test_two_ranks_record_documents_of_packed_rows_as_one_process_does(
    name: str, pair: Recorded, tmp_path: Path
):
    train_packed(tmp_path, name, SINGLE_PROCESS)
    same_record(str(tmp_path / name), pair.run(name), 1e-6)


@pytest.mark.parametrize("name", ["clipped", "sharded"])
def test_two_ranks_record_what_one_process_records_of_the_whole_batch(
    name: str, pair: Recorded, tmp_path: Path
):
    train(SETTINGS[name], tmp_path, name, SINGLE_PROCESS)
    same_record(str(tmp_path / name), pair.run(name), 1e-6)


@pytest.mark.parametrize("name", ["resumed", "resharded"])
def test_two_ranks_go_on_with_the_run_of_one_process(name: str, pair: Recorded, tmp_path: Path):
    train_alone(SETTINGS["adamw"], tmp_path, "adamw", SIZE)
    same_record(str(tmp_path / "adamw"), pair.run(name), 1e-6)


def test_one_process_goes_on_with_the_run_of_two_ranks(pair: Recorded, tmp_path: Path):
    shutil.copytree(pair.run("half"), tmp_path / "half")
    go_on_alone(tmp_path, "half", SIZE)
    train_alone(SETTINGS["adamw"], tmp_path, "adamw", SIZE)
    same_record(str(tmp_path / "adamw"), str(tmp_path / "half"), 1e-6)


def test_recording_leaves_the_training_of_ranks_bit_identical(pair: Recorded):
    assert pair.results("identical") == [[True] * 3] * 2


# --- errors ---------------------------------------------------------------------------------------

ENDED = "Nothing of the open segment is stored; start all processes again with resume=True."
ERRORS = {
    "wrong_id_on_one_rank": (
        rf"RunError: rank 1: stopped at step 1: recorder.datums: got 31 to 31, .* {ENDED}",
        r"ConfigError: recorder\.datums: got 31 to 31, the run's datums are 0 to 23\.",
    ),
    "own_error_on_one_rank": (
        rf"RunError: rank 1: stopped at its loop: ValueError: the disk of the data is gone\. "
        f"{ENDED}",
        "ValueError: the disk of the data is gone",
    ),
    "unequal_numbers_of_steps": (
        r"RunError: rank 1: is at step 2, rank 0 at the end of the loop\. All ranks must",
    )
    * 2,
    "never_averaged": (
        r"RunError: step 0: the gradients of rank 1 differ from those of rank 0: not averaged\. "
        r"Leave no_sync\(\) for the last backward pass of each step\.",
    )
    * 2,
    "joined": (r"RunError: model: is in join\(\), in which some ranks take more steps",) * 2,
    "noise_on_gradients": (
        r"AuditError: step 0: shifts miss the applied change by .* change gradients only by ",
    )
    * 2,
    "a_store_that_fails_on_one_rank": (
        r"RunError: rank 1: stopped at step \d+: outliers/segment-000000-w01\.parquet: cannot be ",
        r"StoreError: outliers/segment-000000-w01\.parquet: cannot be written: no space is left\.",
    ),
    "other_runs": (r"RunError: rank 1: has run\.uri = .*run-1, rank 0 has .*run-0\. Call",) * 2,
    "other_rates": (r"RunError: rank 1: has training.learning_rate = 1\.1, rank 0 has 0\.1",) * 2,
    "in_memory": (r"ConfigError: run: is memory://run, which the processes cannot share",) * 2,
    "changed_by_a_hook": (
        r"RunError: model: is DistributedDataParallel with fp16_compress_hook \(register_comm_hook",
    )
    * 2,
    "a_unit_that_no_rank_can_split": (r"UnitError: norm\.weight: is used by",) * 2,
    "an_existing_run": (
        r"RunError: .*clipped: holds a run already\. Add resume=True",
        r"RunError: rank 0: stopped at the beginning of the run: .*: holds a run already",
    ),
    "never_reduced": (
        r"RunError: step 0: gradients were not added up over the ranks\. Call "
        r"set_requires_gradient_sync\(True\) before the last backward pass of each step",
    )
    * 2,
    "reduced_in_bfloat16": (
        r"RunError: model: adds up the gradients of the processes in bfloat16, which rounds every "
        r"sum\. Set MixedPrecisionPolicy\(…, reduce_dtype=torch\.float32\)",
    )
    * 2,
    "sharded_in_part": (
        r"UnitError: layer\.weight: is sharded by fully_shard, but the model as a whole is not",
    )
    * 2,
    "tensor_parallel": (
        r"UnitError: layer\.weight: is a DTensor, spread over 2 processes not by fully_shard \("
        r"Linear layer, \d+\.\d% of the model\)\. ",
    )
    * 2,
    "sharded_along_two_axes": (
        r"UnitError: embedding\.weight: is a DTensor over 2 axes of processes \(1, 2\) \("
        r"Embedding embedding, \d+\.\d% of the model\)\. Tensor",
    )
    * 2,
    "other_divisor": (r"RunError: model: divides gradients by 1\.0 \(set_gradient_divide_fac",) * 2,
    "outputs_of_all_ranks_in_the_loss": (
        "SplitError: step 0: datums of all processes interact in the loss, which uses all_gather ",
    )
    * 2,
    "another_batch_after_resuming": (
        r"RunError: step 2: has 6 datums \(ranks: 2\), but the steps before have 12 \(ranks: 1\)",
    )
    * 2,
}


@pytest.mark.parametrize("name", CAUSES)
def test_an_error_of_one_rank_ends_the_recording_on_all_with_its_reason(name: str, pair: Recorded):
    first, second = pair.results(name)
    patterns = ERRORS[name]
    assert re.match(patterns[0], first), first
    assert re.match(patterns[1], second), second


BEFORE_THE_RUN = {
    *("other_runs", "other_rates", "in_memory", "changed_by_a_hook", "an_existing_run"),
    *("another_batch_after_resuming", "reduced_in_bfloat16", "sharded_in_part"),
    *("tensor_parallel", "sharded_along_two_axes", "other_divisor"),
}
"""Errors before a run begins in a folder of its own."""
KEPT = {"unequal_numbers_of_steps": 2}
"""Steps that are stored in spite of the error, where there are any."""


@pytest.mark.parametrize("name", sorted(CAUSES.keys() - BEFORE_THE_RUN))
def test_a_run_that_an_error_ends_keeps_whole_segments_and_no_lease(name: str, pair: Recorded):
    run = f"{pair.run(name)}/run"
    assert open_run(run).steps_done == KEPT.get(name, 0)
    assert not Store(run).exists("lease.json")


@pytest.mark.parametrize("name", sorted(BEFORE_THE_RUN))
def test_an_error_before_the_run_begins_leaves_no_run(name: str, pair: Recorded):
    assert not Path(pair.run(name), "run").exists()
