"""A test whose processes crash in native code shows where."""

from pathlib import Path

import pytest
from all_parts import results, results_file
from processes import CrashError, crash, run_processes


@pytest.mark.slow
def test_a_process_that_crashes_leaves_its_stacks_in_the_error(tmp_path: Path):
    with pytest.raises(CrashError) as caught:
        run_processes(2, crash, (1,), tmp_path)
    first, _, second = str(caught.value).partition("process 1: ")
    assert "process 1 terminated with signal SIGSEGV" in first
    assert "Segmentation fault" in second
    assert "in crash\n" in second


def test_results_of_parts_that_all_ranks_have_finished_outlive_a_crash(tmp_path: Path):
    results_file(tmp_path, 0).write_text('["one", 1]\n["two", "a"]\n')
    results_file(tmp_path, 1).write_text('["one", 2]\n')
    assert results(tmp_path, 2) == {"one": [1, 2]}
