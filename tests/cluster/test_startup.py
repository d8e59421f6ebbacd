"""Help, version, usage errors and completion load no heavy library. Counts modules, no clock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

import ontogeny
from cluster.cli import COMMANDS

HEAVY = {
    *("torch", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "ray", "rich", "omegaconf"),
    *("botocore", "fsspec", "safetensors", "transformers", "yaml"),
}
MEASURED = """\
import os
import sys
from cluster.cli import main

try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
with open(os.environ["LOADED"], "w") as file:
    print(code, *sorted(sys.modules), file=file)
"""
"""Runs one command line in a new process; writes its exit code and all loaded modules to a file."""


def run_measured(arguments: list[str], tmp_path: Path) -> tuple[int, set[str], str]:
    """The exit code, the heavy libraries that were loaded, and everything that was printed."""
    loaded = tmp_path / "loaded"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=ROOT,
        env=os.environ | {"LOADED": str(loaded)},
        capture_output=True,
        text=True,
    )
    code, *modules = loaded.read_text().split()
    packages = {module.partition(".")[0] for module in modules}
    assert "cluster" in packages
    return int(code), packages & HEAVY, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--help"], 0, "usage: ontogeny"),
        (["--version"], 0, f"ontogeny {ontogeny.__version__}\n"),
        (["attribute", "--help"], 0, "usage: ontogeny attribute"),
        (["capture", "--help"], 0, "usage: ontogeny capture"),
        (["nonsense"], 2, "COMMAND: invalid choice: 'nonsense'"),
        (["attribute", "RUN", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["attribute", "RUN", "--rows", "x"], 2, "--rows: invalid int value"),
        ([], 2, "usage: ontogeny"),
    ],
)
def test_answers_without_work_load_no_heavy_library(
    arguments: list[str], code: int, text: str, tmp_path: Path
) -> None:
    found, heavy, printed = run_measured(arguments, tmp_path)
    assert text in printed
    assert (found, heavy) == (code, set())


def test_the_measurement_sees_a_heavy_library(tmp_path: Path) -> None:
    code, heavy, _ = run_measured(["info", "memory://no-such-run"], tmp_path)
    assert code == 2
    assert {"torch", "rich", "pandas"} <= heavy


COMPLETED = """\
import os
import sys


def leave(code):
    loaded = {module.partition(".")[0] for module in sys.modules}
    os.write(2, " ".join(sorted(loaded & set(sys.argv[1:]))).encode())
    end(code)


end, os._exit = os._exit, leave
from cluster.cli import main
main([])
"""
"""Answers one request for completions; argcomplete ends the process with ``os._exit``, so the heavy
modules are listed just before that."""


def completions(line: str, tmp_path: Path) -> set[str]:
    """What a shell offers at the end of a command line, without the spaces behind it."""
    answer = tmp_path / "answer"
    request = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETED, *HEAVY],
        cwd=ROOT,
        env=os.environ | request,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return {word.strip() for word in answer.read_text().split("\n") if word.strip()}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ontogeny at", {"attribute"}),
        ("ontogeny f", {"faithfulness"}),
        ("ontogeny attribute runs/demo --sk", {"--skip-damaged"}),
        ("ontogeny attribute runs/demo --level ne", {"neuron"}),
        ("ontogeny capture pythia-", {"pythia-deepspeed", "pythia-tiny"}),
        ("ontogeny selfcheck dem", {"demo"}),
        ("ontogeny plan wikitext2-", {"wikitext2-cluster"}),
    ],
)
def test_tab_completes_commands_options_choices_and_bundled_configurations(
    line: str, offered: set[str], tmp_path: Path
) -> None:
    assert completions(line, tmp_path) == offered


def test_tab_completes_a_yaml_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    assert completions(f"ontogeny capture {tmp_path}/mi", tmp_path) == {f"{tmp_path}/mine.yaml"}


def test_every_command_is_offered(tmp_path: Path) -> None:
    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert {word for word in completions("ontogeny ", tmp_path) if word[0] != "-"} == (
        names - {"garbage"} | {"gc"}
    )


def test_the_literals_of_the_parser_are_those_of_the_modules_that_define_them() -> None:
    from analysis.ablation import config, replacement, subjects
    from analysis.activations import quantities
    from analysis.attribution.config import CHOICES, FORMER_EVIDENCE
    from analysis.influence.judge.judge import DEFAULT_METHODS
    from analysis.influence.judge.scores import METHODS
    from analysis.influence.suspects.held_out import HELD_OUT
    from analysis.influence.suspects.unexpected import UNEXPECTED
    from analysis.neurons import clustering, grouping
    from analysis.report.build import ReportConfig
    from analysis.spectra.config import WHAT
    from capture.config import reading, records
    from capture.maintenance.garbage import GRACE
    from capture.replay.segments import TOLERANCE
    from cluster.commands import attribute
    from cluster.options import arguments, choices

    assert {name: allowed for name, (allowed, _) in attribute.CHOICES.items()} == CHOICES
    assert choices.ABLATION_LEVELS == subjects.LEVELS
    assert choices.ACTIVATION_QUANTITIES == quantities.QUANTITIES
    assert choices.ABLATION_SPLITS == config.SPLITS
    assert choices.ABLATION_VALUES == replacement.VALUES
    assert choices.ATTRIBUTION_FORMER_EVIDENCE == FORMER_EVIDENCE
    assert choices.CLUSTERING_METHODS == clustering.METHODS
    assert choices.CLUSTERING_WEIGHTS == grouping.WEIGHTS
    assert GRACE.total_seconds() == choices.GARBAGE_AGE_MINUTES * 60
    assert choices.JUDGE_DEFAULTS == DEFAULT_METHODS
    assert choices.JUDGE_METHODS == METHODS
    assert choices.SPECTRUM_OF == WHAT
    assert (*UNEXPECTED, *HELD_OUT) == choices.UNEXPECTED_EVIDENCE
    assert tuple(HELD_OUT) == choices.RETRAINED_EVIDENCE
    assert choices.RECORD_KINDS == records.KINDS
    assert choices.REPLAY_TOLERANCE == TOLERANCE
    assert ReportConfig.max_neurons == choices.REPORT_NEURONS
    assert arguments.BUNDLED == reading.BUNDLED
