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
COMMANDS = ("ablate", "activations", "attribute", "behaviour", "bigrams", "drift", "spectrum")


@functools.cache
def taken() -> str:
    """Return the URI of a run where each command's unnamed tables answer another question."""
    uri = copied(tiny_run(), "memory://checked-first").uri
    assert main(["attribute", uri, "--quiet", "--name", "whole"]) == 0
    schemas, frames = {"first": pa.schema([("value", pa.int32())])}, pd.DataFrame({"value": [1]})
    for command in COMMANDS:
        other = Question(command, {"other": 1}, {"ontogeny": "1"})
        write_tables(open_run(uri), command, {"first": frames}, schemas, other)
    return uri


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
    ],
)
def test_a_command_tells_it(line: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.replace("RUN", taken()) for word in line.split()]) == 2
    told = capsys.readouterr().err
    assert text in told
    assert "another question" not in told


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_run_has_is_refused_for_the_tables(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"behaviour": ["--target", "w3"], "drift": [UNIT]}
    asked |= {"ablate": ["--attribution", "whole"]}
    assert main([command, taken(), *asked.get(command, [])]) == 2
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
