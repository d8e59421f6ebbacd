"""A run answers the questions that are asked most: ``run.attribute()``, ``ablate``, ``neuron``."""

import doctest
import re
from collections.abc import Iterator

import pandas as pd
import pytest
from checkout import ROOT
from refusals import snapshot
from tiny_run import copied, tiny_run

import ontogeny
from capture.errors import ConfigError, RunError, UnitError

UNIT = "layers.1.linear2.weight"
URI = "memory://run-methods"


@pytest.fixture(scope="module")
def uri() -> str:
    """A run with an unnamed attribution."""
    copied(tiny_run(), URI)
    loose = ontogeny.SelectionConfig(max_q=1, min_observations=0)
    config = ontogeny.AttributionConfig(evidence="target", selection=loose)
    ontogeny.open_run(URI).attribute(config, save=True)
    return URI


@pytest.fixture
def run(uri: str) -> Iterator[ontogeny.Run]:
    before = snapshot(uri)
    yield ontogeny.open_run(uri)
    assert snapshot(uri) == before


def test_methods_answer_as_the_functions_do(run: ontogeny.Run) -> None:
    config = ontogeny.AttributionConfig(level="head", evidence="target")
    for table, found in vars(run.attribute(config)).items():
        pd.testing.assert_frame_equal(found, getattr(ontogeny.attribute(run, config), table))
    only = ontogeny.AblationConfig(only=(f"{UNIT}:3",), max_datums=9)
    pd.testing.assert_frame_equal(run.ablate(only).neurons, ontogeny.ablate(run.uri, only).neurons)


def test_a_neuron_has_its_rows_of_the_attribution(run: ontogeny.Run) -> None:
    tokens = stored(run, "tokens")
    unit, number = tokens.iloc[0][["unit", "group"]]
    mine = tokens[(tokens["unit"] == unit) & (tokens["group"] == number)]
    neuron = run.neuron(unit, int(number))
    assert neuron.tokens["token"].tolist() == mine.sort_values("rank")["token"].tolist()
    datums = stored(run, "datums")
    own = datums[(datums["unit"] == unit) & (datums["group"] == number)]
    assert neuron.datums["datum"].tolist() == own["datum"].tolist()
    assert neuron.datums["text"].iloc[0] == run.texts[int(own["datum"].iloc[0])].as_py()


def stored(run: ontogeny.Run, table: str) -> pd.DataFrame:
    from analysis.attribution.tables import TABLES
    from analysis.jobs.tables import read_table

    return read_table(run, "attribute", table, TABLES[table], {"level": ["neuron"]})


def test_a_neuron_without_a_stored_attribution_has_a_computed_one() -> None:
    run = ontogeny.open_run(tiny_run())
    whole = ontogeny.attribute(run)
    for unit, number in ((UNIT, 3), ("layers.0.linear1.weight", 5)):
        mine = whole.datums[(whole.datums["unit"] == unit) & (whole.datums["group"] == number)]
        assert run.neuron(unit, number).datums["datum"].tolist() == mine["datum"].tolist()


def test_history_and_ablation_are_those_of_the_functions(run: ontogeny.Run) -> None:
    neuron = run.neuron(UNIT, 3)
    pd.testing.assert_frame_equal(neuron.history, ontogeny.neuron_history(run, UNIT, 3))
    assert "ablation" not in repr(neuron)
    only = ontogeny.AblationConfig(only=(f"{UNIT}:3",))
    pd.testing.assert_series_equal(neuron.ablation, run.ablate(only).neurons.iloc[0])
    assert "log-probability" in repr(neuron)


def test_a_neuron_shows_a_summary(run: ontogeny.Run) -> None:
    unit, number = stored(run, "tokens").iloc[0][["unit", "group"]]
    neuron = run.neuron(unit, int(number))
    lines = repr(neuron).splitlines()
    assert lines[0] == f"neuron   {unit}:{number} of {run.uri}"
    assert lines[1].startswith(f"tokens   {neuron.tokens['token'].iloc[0]} (")
    assert lines[2].startswith("when     steps 0–")
    assert sum(float(share) for share in re.findall(r"(\d+)%", lines[2])) == pytest.approx(
        100, abs=4
    )
    assert lines[3].startswith(f"datums   {neuron.datums['datum'].iloc[0]} (step ")
    assert "<table><tr><th" in neuron._repr_html_()
    assert not [name for name in dir(neuron) if name.startswith("_")]


def test_a_neuron_without_tokens_says_so(run: ontogeny.Run) -> None:
    empty = stored(run, "tokens").head(0)
    found = ontogeny.Neuron.of(
        run,
        UNIT,
        1,
        tokens=empty,
        windows=stored(run, "windows").head(0),
        datums=stored(run, "datums").head(0),
    )
    assert "none stands out" in repr(found)
    assert "none has a recorded shift" in repr(found)


@pytest.mark.parametrize(
    ("unit", "number", "text"),
    [
        ("layers.1.linear3.weight", 0, "was not captured. Did you mean layers.1.linear"),
        (UNIT, 12, "does not exist: the unit's neurons are 0 to 11"),
        (UNIT, -1, "does not exist"),
        ("layers.1.norm1.weight", 0, "has no neurons: it has one axis"),
    ],
)
def test_a_neuron_that_does_not_exist_is_an_error(run, unit, number, text) -> None:
    with pytest.raises(UnitError, match=text):
        run.neuron(unit, number)


def test_an_attribution_that_does_not_exist_is_an_error(run: ontogeny.Run) -> None:
    with pytest.raises(RunError, match="has no tables of attribute/late"):
        run.neuron(UNIT, 3, attribution="late")


def test_saving_keeps_the_tables_of_another_question(uri: str) -> None:
    run, config = ontogeny.open_run(uri), ontogeny.AttributionConfig(level="head")
    with pytest.raises(RunError, match=r"holds the tables of another question \("):
        run.attribute(config, save=True)
    with pytest.raises(ConfigError, match=r"name: is given, but no tables are kept\. Add save"):
        run.attribute(config, name="heads")
    elsewhere = ontogeny.open_run(uri, tables="memory://run-methods-elsewhere")
    elsewhere.attribute(config, save=True)
    assert elsewhere.tables.uri == "memory://run-methods-elsewhere"


def test_tab_completion_offers_what_is_documented(run: ontogeny.Run) -> None:
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    members = page.split("autoclass:: ontogeny.Run\n   :members: ")[1].split("   :member-order")[0]
    assert sorted(dir(run)) == sorted(re.findall(r"\w+", members))
    assert all(hasattr(type(run), name) or name in vars(run) for name in dir(run))


@pytest.mark.parametrize("name", ["attribute", "ablate", "neuron"])
def test_the_example_of_each_method_runs(run: ontogeny.Run, name: str) -> None:
    method = getattr(ontogeny.Run, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(
        method, globs={"ontogeny": ontogeny, "run": run}
    )
    assert test.examples
    said: list[str] = []
    assert doctest.DocTestRunner().run(test, out=said.append).failed == 0, "".join(said)


def test_functions_return_such_runs(run: ontogeny.Run) -> None:
    assert type(run) is ontogeny.Run
    assert "datums" in repr(run)


def test_one_run_alone_is_no_comparison(run: ontogeny.Run) -> None:
    for one in (run, run.uri, [], [run]):
        with pytest.raises(ConfigError, match=r"must be (a list of )?two or more"):
            ontogeny.compare(one)  # pyright: ignore[reportArgumentType]
