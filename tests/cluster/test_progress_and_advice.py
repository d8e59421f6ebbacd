"""What a user reads while a capture runs, and after it was stopped."""

import io

import pytest
from rich.console import Console

from capture.config.reading import read_config
from capture.training.loop import Progress
from cluster.cli import how_to_continue, parse_arguments
from cluster.commands.capture import first_questions
from cluster.on_ray.job import JOB_CONFIG_VARIABLE
from cluster.terminal.plain import program
from cluster.terminal.progress import Lines


def standing(steps_done: int) -> Progress:
    return Progress(steps_done, 100, 0, 2, 6.5, steps_done * 20_000, 12_000_000)


def lines_of(monkeypatch, *steps: int) -> list[str]:
    clock = [100.0]
    monkeypatch.setattr("cluster.terminal.progress.time.monotonic", lambda: clock[0])
    text = io.StringIO()
    lines = Lines(Console(file=text, width=110))
    for done in steps:
        lines(standing(done))
        clock[0] += 20.0
    return text.getvalue().splitlines()


def test_the_first_line_after_a_resume_claims_no_rate_and_no_end(monkeypatch) -> None:
    first, second = lines_of(monkeypatch, 40, 60)
    assert first == "step 40/100  epoch 1/2  loss 6.50  … rows/s  12.0 MB  ETA …"
    assert "20.0k rows/s" in second
    assert "ETA 0:00:40" in second


def test_a_run_that_is_done_has_no_time_left(monkeypatch) -> None:
    (line,) = lines_of(monkeypatch, 100)
    assert line.endswith("… rows/s  12.0 MB  ETA 0:00:00")


@pytest.mark.parametrize("package", ["cluster", "ontogeny"])
def test_a_module_names_itself_as_it_was_started(package: str, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", [f"/some/where/{package}/__main__.py", "capture"])
    assert program() == f"python -m {package}"


def test_a_stopped_job_advises_its_own_command(monkeypatch) -> None:
    arguments = parse_arguments(["capture", "demo", "run.uri=s3://lab/run"])
    assert arguments is not None
    monkeypatch.setattr("sys.argv", ["/job/cluster/__main__.py"])
    command = "python -m cluster capture demo run.uri=s3://lab/run --resume"
    assert how_to_continue(arguments) == f"Committed segments are safe; continue with: {command}"
    monkeypatch.setenv(JOB_CONFIG_VARIABLE, "{}")
    assert how_to_continue(arguments).endswith(f"; continue with another job: {command}")


def test_a_capture_leads_to_questions_that_its_run_can_answer() -> None:
    wanted = {"modular-addition": "trajectory", "induction": "trajectory", "digits": "attribute"}
    assert {name: first_questions(read_config(name, []))[0] for name in wanted} == wanted
