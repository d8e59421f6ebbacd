"""The first things that a user does with a run in Python: open it, look at it, ask for a neuron."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import make_run, tiny_config
from tiny_run import tiny_run

import ontogeny
from analysis.run.run import Run, open_run
from capture.errors import CaptureError, RunError, UnitError

WEIGHT = "layers.1.linear2.weight"


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    make_run(tiny_config(folder))
    return folder / "run"


def test_a_path_is_as_good_as_a_string(folder: Path) -> None:
    assert open_run(folder).uri == open_run(str(folder)).uri
    groups = ontogeny.attribute(folder).groups
    pd.testing.assert_frame_equal(groups, ontogeny.attribute(str(folder)).groups)
    assert ontogeny.verify(folder).empty
    assert ontogeny.replay(folder, records=("tallies",)).uri == str(folder)


def test_a_path_that_lost_a_slash_of_a_bucket_is_refused() -> None:
    with pytest.raises(CaptureError, match="s3:/"):
        open_run(Path("s3://bucket/run"))


def test_repr_has_five_lines_that_say_what_the_run_holds(run: Run) -> None:
    lines = repr(run).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "steps", "datums", "units", "records"]
    assert run.uri in lines[0]
    assert "24 of 24" in lines[1]
    assert f"{run.num_datums}" in lines[2]
    assert f"{len(run.layout.names)} ({run.layout.size:,} parameters)" in lines[3]
    assert f"outliers {len(run.shifts()):,} rows" in lines[4]


def test_html_says_the_same_and_escapes(run: Run, tmp_path: Path) -> None:
    html = run._repr_html_()
    assert html.count("<tr>") == 5
    assert "24 of 24" in html
    config = tiny_config(tmp_path, name="<b>run")
    make_run(config)
    assert "&lt;b&gt;run" in open_run(tmp_path / "<b>run")._repr_html_()


def test_dir_shows_public_names_only(run: Run) -> None:
    names = dir(run)
    assert {"shifts", "steps", "uri", "num_datums", "model", "gradient"} <= set(names)
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize(
    "steps", [range(20, 30), range(25), range(-1, 3), range(24, 25), range(30, 20, -1)]
)
def test_steps_beyond_the_run_are_refused(run: Run, steps: range) -> None:
    with pytest.raises(RunError, match="has steps 0 to 23, asked for"):
        run.shifts(steps=steps)


@pytest.mark.parametrize("steps", [range(24), range(3, 24, 7), range(23, -1, -1), range(5, 6)])
def test_steps_of_the_run_are_answered(run: Run, steps: range) -> None:
    everything = run.shifts()
    expected = everything[everything["step"].isin(list(steps))]
    assert run.shifts(steps=steps)["diff"].tolist() == expected["diff"].tolist()


@pytest.mark.parametrize("neuron", [0, 3, 11, [2, 5]])
def test_a_neuron_is_the_column_of_its_unit(run: Run, neuron: int | list[int]) -> None:
    _, width = run.layout.shapes[WEIGHT]
    everything = run.shifts(unit=WEIGHT)
    wanted = everything["index"].to_numpy() % width
    expected = everything[np.isin(wanted, neuron)]
    found = run.shifts(unit=WEIGHT, neuron=neuron)
    columns = ["step", "datum_id", "index", "diff", "position"]
    assert found[columns].to_numpy().tolist() == expected[columns].to_numpy().tolist()
    assert len(found) > 0


def test_the_neurons_of_a_unit_divide_its_shifts(run: Run) -> None:
    _, columns = run.layout.shapes[WEIGHT]
    parts = [len(run.shifts(unit=WEIGHT, neuron=n)) for n in range(columns)]
    assert sum(parts) == len(run.shifts(unit=WEIGHT))


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"unit": WEIGHT, "neuron": 12}, f"{WEIGHT}:12: does not exist: the unit's neurons are 0 "),
        ({"unit": WEIGHT, "neuron": -1}, f"{WEIGHT}:-1: does not exist"),
        ({"unit": "layers.1.linear2.bias", "neuron": 0}, "has no neurons: it has one axis"),
        ({"unit": "layers.1.linear2", "neuron": 0}, f"was not captured. Did you mean {WEIGHT}."),
        ({"neuron": 3}, "neuron: got 3 without a unit, and 8 units have neurons: layers.0"),
        ({"neuron": 3}, "in_proj_weight', neuron=3)."),
        ({"neuron": 3, "index": 3}, "neuron: got 3 beside an index"),
        ({"unit": WEIGHT, "neuron": 3, "index": 3}, "neuron: got 3 beside an index"),
        ({"unit": [WEIGHT, "layers.0.linear2.weight"], "neuron": 3}, "neuron: got 3 with 2 units"),
    ],
)
def test_a_neuron_that_does_not_exist_is_refused(run: Run, asked: dict, text: str) -> None:
    with pytest.raises(UnitError) as raised:
        run.shifts(**asked)
    assert text in str(raised.value)


def test_a_neuron_needs_no_unit_where_one_unit_alone_has_neurons(tmp_path: Path) -> None:
    units = f"capture.units=[{WEIGHT},layers.1.linear2.bias]"
    config = tiny_config(tmp_path, "training.epochs=1", units)
    make_run(config)
    run = open_run(config.run.uri)
    assert len(run.shifts(neuron=3)) > 0
    assert run.shifts(neuron=3).equals(run.shifts(unit=WEIGHT, neuron=3))
    with pytest.raises(UnitError, match=f"{WEIGHT}:99: does not exist"):
        run.shifts(neuron=99)
