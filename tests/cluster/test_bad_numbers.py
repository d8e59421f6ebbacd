"""Impossible numbers and usage errors: one helpful line, exit code 2."""

import pytest
from refusals import refusal, refusing_runs

HUGE = 10**24


@pytest.fixture(scope="module")
def runs() -> dict[str, str]:
    return refusing_runs()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {whole} --steps 24:48", "has steps 0 to 23, asked for 24 to 47"),
        (f"attribute {{whole}} --steps 0:{HUGE}", "must be like 0:100, 100: or 7"),
        ("attribute {whole} --steps 5:5", "got 5, must be above the first step, 5."),
        ("attribute {whole} --steps a:b", "--steps: got 'a:b', must be like 0:100"),
        ("attribute {whole} --steps=-5:5", "--steps: got '-5:5', must be like"),
        ("attribute {whole} --keep 0", "got 0.0, must be above 0 and at most 1."),
        ("attribute {whole} --keep nan", "got nan, must be above 0 and at most 1."),
        ("attribute {whole} --max-q 1.5", "got 1.5, must be above 0 and at most 1."),
        (
            "attribute {whole} --evidence update-norm --level head",
            "with evidence update-norm it must be neuron",
        ),
        ("attribute {whole} --evidence mass", "'mass' is now called update-norm. See:"),
        ("attribute {whole} --evidence mass-use", "'mass-use' is now called geometric-mean. See:"),
        ("attribute {whole} --evidence update-norm --weight shift", "it must be count"),
        ("attribute {whole} --evidence update-norm --outliers unit", "it must be absolute"),
        ("ablate {attributed} --scored-datums -1", "got -1, must be at least 0."),
        ("ablate {attributed} --seed -1", "got -1, must be at least 0."),
        ("neurons {whole} --clusters 3", "hdbscan chooses the number of clusters"),
        ("neurons {whole} --method agglomerative", "is not given, but agglomerative needs it."),
        ("neurons {whole} --method agglomerative --clusters 1", "must be at least 2."),
        ("neurons {whole} --method agglomerative --clusters 99", "clustering needs 100."),
        ("neurons {whole} --tokens-weight nan", "got nan, must be from 0 to 1."),
        ("neurons {whole} --tokens-weight 2", "got 2.0, must be from 0 to 1."),
        ("neurons {whole} --min-cluster 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --min-cluster {HUGE}", "must be at most 2147483647."),
        ("neurons {whole} --components 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --components {HUGE}", "must be at most 2147483647."),
        ("neurons {whole} --bootstraps 1", "got 1, must be at least 2."),
        (f"neurons {{whole}} --min-rows {HUGE}", "has 0 neurons with"),
        ("neurons {whole} --seed -1", "got -1, must be at least 0."),
        (f"neurons {{whole}} --seed {HUGE}", "must be at most 2147483647."),
        ("behaviour {whole} --contains w1 --most 1", "got 1, must be at least 2."),
        ("behaviour {whole} --contains w1 --seed -1", "got -1, must be at least 0."),
        (f"behaviour {{whole}} --contains w1 --controls {HUGE}", "ask for fewer controls."),
        ("faithfulness {whole} --text nonsense", "got nonsense, must be held-out or train."),
        ("faithfulness {whole} --seed -1", "got -1, must be at least 0."),
        ("faithfulness {whole} --datums 1", "and 10 are needed."),
        (
            "faithfulness {whole} --min-count 10000",
            "Lower --min-count, or raise --datums, or hold out",
        ),
        ("capture demo run.uri={nowhere} training.batch=0", "training.batch: got 0, must be"),
        ("capture demo run.uri={nowhere} training.batch=x", "must be a whole number."),
        ("demo run.uri={nowhere} training.epochs=-1", "training.epochs: got -1, must be"),
    ],
)
def test_impossible_numbers_are_refused(command, text, runs, capsys):
    assert text in refusal(command, runs, capsys)


@pytest.mark.parametrize("bad", [0, -3])
@pytest.mark.parametrize(
    "command",
    [
        "attribute {whole} --rows",
        "attribute {whole} --windows",
        "attribute {whole} --parameters",
        "attribute {whole} --datums",
        "attribute {whole} --tokens",
        "attribute {whole} --min-count",
        "attribute {whole} --most-frequent",
        "attribute {whole} --most-counted",
        "ablate {attributed} --rows",
        "ablate {attributed} --neurons",
        "ablate {attributed} --datums",
        "activations {whole} --rows",
        "neurons {whole} --rows",
        "neurons {whole} --min-rows",
        "behaviour {whole} --contains w1 --rows",
        "behaviour {whole} --contains w1 --controls",
        "faithfulness {whole} --neurons",
        "faithfulness {whole} --datums",
        "faithfulness {whole} --min-count",
        "report {attributed} --neurons",
    ],
)
def test_counts_must_be_at_least_1(command, bad, runs, capsys):
    assert f"got {bad}, must be at least 1." in refusal(f"{command} {bad}", runs, capsys)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("attribute {whole} --rows x", "--rows: invalid int value: 'x'"),
        ("attribute {whole} --evidence nosuch", "--evidence: invalid choice: 'nosuch'"),
        ("ablate {attributed} --level parameter", "--level: invalid choice"),
        ("activations {whole} --by neither", "--by: invalid choice"),
        ("neurons {whole} --method kmeans", "--method: invalid choice"),
        (
            "behaviour {whole}",
            "behaviour: one of the arguments --contains --target --regex --datums is",
        ),
        (
            "behaviour {whole} --contains w1 --target w2",
            "--target: not allowed with argument --contains",
        ),
        ("report", "the following arguments are required: RUN"),
        ("info {whole} '--no\nsuch'", "info: unrecognized arguments: --no such"),
    ],
)
def test_a_usage_error_of_a_command_is_one_line(command, text, runs, capsys):
    said = refusal(command, runs, capsys)
    assert said.startswith(f"ontogeny: {text}")
    assert said.endswith(f". See: ontogeny {command.split()[0]} --help.\n")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("nosuch", "COMMAND: invalid choice: 'nosuch' (choose from "),
    ],
)
def test_a_usage_error_without_a_command_is_one_line(command, text, runs, capsys):
    said = refusal(command, runs, capsys)
    assert said.startswith(f"ontogeny: {text}")
    assert said.endswith(". See: ontogeny --help.\n")
