"""A name that the run does not have is told before tables of another question are."""

import functools
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pytest
from tiny_run import copied, tiny_run

import ontogeny
from analysis.jobs.question import Question
from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from cluster.cli import main

UNIT = "layers.1.linear2.weight"
COMMANDS = (
    *("ablate", "activations", "attribute", "behaviour", "bigrams", "directions", "drift"),
    *("influence", "spectrum", "trajectory", "transitions"),
)


@functools.cache
def taken(command: str = "") -> str:
    """Return the URI of a run where each command's unnamed tables answer another question.

    Those of ``trajectory`` are taken in a run of its own, because ``transitions`` reads them.
    """
    if command == "trajectory":
        uri = copied(tiny_run(), "memory://checked-trajectory").uri
    else:
        uri = copied(tiny_run(), "memory://checked-first").uri
        assert main(["attribute", uri, "--quiet", "--name", "whole"]) == 0
    schemas, frames = {"first": pa.schema([("value", pa.int32())])}, pd.DataFrame({"value": [1]})
    for name in COMMANDS:
        if (name == "trajectory") == (command == "trajectory"):
            other = Question(name, {"other": 1}, {"ontogeny": "1"})
            write_tables(open_run(uri), name, {"first": frames}, schemas, other)
    return uri


def taken_for(command: str) -> str:
    return taken("trajectory" if command == "trajectory" else "")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("behaviour RUN --target xyz", "token 'xyz': is not in the vocabulary"),
        ("behaviour RUN --contains xyz", "token 'xyz': is not in the vocabulary"),
        ("behaviour RUN --regex (", "'(' is not a regular expression"),
        ("behaviour RUN --datums 1,999", "has no datum 999"),
        ("activations RUN --tokens w3,xyz", "token 'xyz': is not in the vocabulary"),
        ("activations RUN --neuron layers.1.linear3.weight:4", "has no neurons. Did you mean"),
        (f"activations RUN --neuron {UNIT}:99", "neuron 99: does not exist"),
        ("bigrams RUN --token xyz", "token 'xyz': is not in the vocabulary"),
        ("attribute RUN --token xyz", "token 'xyz': is not in the vocabulary"),
        ("attribute RUN --unit layers.1.linear3.weight", "has no neurons here. Did you mean"),
        ("ablate RUN --attribution whole --only layers.1.linear3.weight:4", "has no neurons. Did"),
        (f"ablate RUN --attribution whole --only {UNIT}:99", "does not exist: the unit's neurons"),
        ("drift RUN layers.1.linear3.weight", "was not captured. Did you mean"),
        ("spectrum RUN --units nothing*", "nothing*: matches no captured unit"),
        ("attribute RUN --steps 500:600", "has steps 0 to 23, asked for 500 to 599"),
        ("influence RUN loss --steps 500:600", "has no steps 500 to 599"),
        ("spectrum RUN --steps 500:600", "has no steps 500 to 599; it has 24"),
        ("directions RUN layers.1.linear3.weight loss", "was not captured. Did you mean"),
        (
            f"directions RUN {UNIT} loss --basis xyz",
            "got 'xyz', which cannot be read. Wanted neurons, pca, dictionary or a .npy file",
        ),
        (
            f"drift RUN {UNIT} --basis xyz",
            "got 'xyz', which cannot be read. Wanted neurons, pca, dictionary, weights or a .npy",
        ),
        ("transitions RUN --metrics xyz", "has no 'xyz'"),
        ("transitions RUN --trajectory xyz", "xyz"),
        ("transitions RUN --target xyz", "'xyz' is not among the curves. Did you mean"),
        ("transitions RUN --around xyz", "'xyz' is not among the curves. Did you mean"),
        ("trajectory RUN --metrics xyz", "got 'xyz', which is no metric"),
        (
            "trajectory RUN --metrics loss loss_components",
            "got 'loss_components', which --components K measures, beside any --metrics",
        ),
        ("trajectory RUN --steps 500", "got 500, but the last checkpoint is at 24"),
    ],
)
def test_a_command_tells_it(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split()
    assert main([word.replace("RUN", taken_for(words[0])) for word in words]) == 2
    told = capsys.readouterr().err
    assert text in told
    assert "another question" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_run_has_is_refused_for_the_tables(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"behaviour": ["--target", "w3"], "drift": [UNIT]}
    asked |= {"ablate": ["--attribution", "whole"], "influence": ["loss"]}
    asked |= {"directions": [UNIT, "loss"]}
    assert main([command, taken_for(command), *asked.get(command, [])]) == 2
    assert "holds the tables of another question" in capsys.readouterr().err


ASKS: dict[str, Callable[[Run], object]] = {
    "behaviour": lambda run: ontogeny.behaviour(run, ontogeny.Predicate(target="xyz"), save=True),
    "bigrams": lambda run: ontogeny.bigrams(run, ontogeny.BigramConfig(token="xyz"), save=True),
    "activations": lambda run: ontogeny.activations(
        run, ontogeny.ActivationConfig(tokens=("xyz",)), save=True
    ),
    "ablate": lambda run: ontogeny.ablate(
        run, ontogeny.AblationConfig(only=("xyz:1",), attribution="whole"), save=True
    ),
    "drift": lambda run: ontogeny.drift(run, ontogeny.DriftConfig(unit="xyz"), save=True),
    "spectrum": lambda run: ontogeny.spectrum(
        run, ontogeny.SpectrumConfig(units=("xyz",)), save=True
    ),
}


@pytest.mark.parametrize("name", ASKS)
def test_a_public_function_tells_it(name: str) -> None:
    with pytest.raises(CaptureError, match=r"xyz\S*: (is not in|was not|matches no|has no)"):
        ASKS[name](open_run(taken()))
