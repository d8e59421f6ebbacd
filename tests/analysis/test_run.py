"""Reading a run: queries return what was written, and read no more than they need."""

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from pyarrow import parquet
from reference_analysis import all_shifts, read_everything
from tiny_run import copied, make_run, tiny_run

import ontogeny
from analysis.run.run import Run, open_run
from analysis.run.scan import promising_groups
from analysis.run.tallies import neuron_history, tally_windows, token_history
from capture.errors import IncompleteRunWarning
from capture.format.markers import segment_key
from capture.models.transformer import fresh_model
from capture.shards.schema import DATUMS, STEPS, VOCABULARY

TABLE_1 = ["epoch", "batch", "datum_ix", "unit", "index", "diff", "abs_diff", "datum"]
WEIGHT = "layers.1.linear2.weight"


@pytest.fixture(scope="module")
def run() -> Run:
    return open_run(tiny_run())


@pytest.fixture(scope="module")
def everything(run: Run) -> pd.DataFrame:
    return all_shifts(run)


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame without categories, with rows numbered from 0."""
    return frame.astype({"unit": str, "datum": str}).reset_index(drop=True)


# --- shifts ---------------------------------------------------------------------------------------


def test_all_shifts_are_the_joined_tables_in_the_order_of_capture(
    run: Run, everything: pd.DataFrame
) -> None:
    found = run.shifts()
    assert list(found.columns[: len(TABLE_1)]) == TABLE_1
    assert len(found) == 24 * 4 * 50
    assert_frame_equal(plain(found), plain(everything))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_shifts_equal_a_plain_filter(run: Run, everything: pd.DataFrame, data: Any) -> None:
    layout = run.layout
    units = data.draw(st.none() | st.lists(st.sampled_from(layout.names), min_size=1), "unit")
    least = 0 if units is None else min(layout.sizes[layout.names.index(unit)] for unit in units)
    indices = st.lists(st.integers(0, least - 1), min_size=1) if least else st.nothing()
    index = data.draw(st.none() | indices, "index")
    first, end = sorted(data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=2), "steps"))
    steps = data.draw(st.none() | st.just(range(min(first, 23), end + 1)), "steps")
    datum = data.draw(st.none() | st.lists(st.integers(0, run.num_datums - 1), min_size=1), "datum")
    keep = pd.Series(True, index=everything.index)
    keep &= everything["unit"].isin(units) if units is not None else True
    keep &= everything["index"].isin(index) if index is not None else True
    keep &= everything["step"].isin(steps) if steps is not None else True
    keep &= everything["datum_id"].isin(datum) if datum is not None else True
    found = run.shifts(unit=units, index=index, steps=steps, datum=datum)
    assert_frame_equal(plain(found), plain(everything[keep]))


def test_single_values_need_no_list(run: Run, everything: pd.DataFrame) -> None:
    row = everything.iloc[len(everything) // 2]
    found = run.shifts(
        unit=row["unit"],
        index=row["index"],
        steps=range(row["step"], row["step"] + 1),
        datum=np.int64(row["datum_id"]),
    )
    assert found.iloc[0].to_dict() == row.to_dict()
    assert len(found) == 1


def test_steps_may_have_a_stride_or_run_backwards(run: Run, everything: pd.DataFrame) -> None:
    for steps in (range(1, 24, 5), range(16, 3, -3)):
        wanted = everything[everything["step"].isin(steps)]
        assert_frame_equal(plain(run.shifts(steps=steps)), plain(wanted))


def test_categories_are_the_texts_and_units_that_occur(run: Run) -> None:
    found = run.shifts(unit=WEIGHT, datum=[3, 4])
    assert list(found["unit"].cat.categories) == [WEIGHT]
    assert set(found["datum"].cat.categories) == set(run.datums()["text"].iloc[[3, 4]])


# --- reading no more than needed ------------------------------------------------------------------


def groups_read(ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many row groups are read from each outlier shard that is opened."""
    read, original = [], parquet.ParquetFile.read_row_groups

    def counted(file: parquet.ParquetFile, groups: list[int], **options: Any) -> object:
        if "shift" in options["columns"]:
            read.append(len(groups))
        return original(file, groups, **options)

    with monkeypatch.context() as patched:
        patched.setattr(parquet.ParquetFile, "read_row_groups", counted)
        ask()
    return read


def test_one_parameter_reads_few_row_groups(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = groups_read(run.shifts, monkeypatch)
    assert sum(whole) > 70
    counts = run.shifts(unit=WEIGHT)["index"].value_counts()
    typical = int(counts.index[len(counts) // 2])
    few = groups_read(lambda: run.shifts(unit=WEIGHT, index=typical), monkeypatch)
    assert len(few) == len(whole)
    assert sum(few) <= sum(whole) / 5


def test_steps_open_only_their_segments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run.segments) == 4
    asked = groups_read(lambda: run.shifts(steps=range(8, 10)), monkeypatch)
    assert len(asked) == 1
    assert len(groups_read(lambda: run.shifts(steps=range(6, 8)), monkeypatch)) == 2


def test_no_row_group_with_a_wanted_row_is_skipped(run: Run) -> None:
    for shard in run.shards("outliers"):
        with shard.reading() as file:
            for index in range(0, 192, 17):
                kept = promising_groups(file.metadata, {"unit": [WEIGHT], "index": [index]})
                for group in set(range(file.metadata.num_row_groups)) - set(kept):
                    rows = file.read_row_group(group).to_pandas()
                    assert not ((rows["unit"] == WEIGHT) & (rows["index"] == index)).any()


def test_a_shard_without_a_marker_is_not_read(everything: pd.DataFrame) -> None:
    store = copied(tiny_run(), "memory://run-orphan")
    store.put(
        "outliers/segment-000004-w00.parquet", store.get("outliers/segment-000000-w00.parquet")
    )
    store.put("outliers/segment-000001-w07.parquet", b"not even Parquet")
    assert_frame_equal(plain(open_run(store.uri).shifts()), plain(everything))


def test_a_run_ends_at_its_last_marker(everything: pd.DataFrame) -> None:
    store = copied(tiny_run(), "memory://run-cut")
    store.delete(segment_key(3))
    with pytest.warns(IncompleteRunWarning, match="is shorter than it was"):
        run = open_run(store.uri)
    assert (run.steps_done, run.num_steps) == (21, 24)
    assert_frame_equal(plain(run.shifts()), plain(everything[everything["step"] < 21]))
    assert run.steps()["step"].tolist() == list(range(21))


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "documented",
    [
        *(open_run, Run.steps, Run.shifts, Run.gradient, Run.lifetime_shifts, Run.model),
        *(tally_windows, neuron_history, token_history),
    ],
)
def test_the_example_in_the_docstring_runs(
    run: Run, documented: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if documented is open_run:
        make_run("runs/demo")
    (test,) = doctest.DocTestFinder(recurse=False).find(
        documented, globs={"ontogeny": ontogeny, "run": run, "np": np}
    )
    assert test.examples
    messages: list[str] = []
    failed = doctest.DocTestRunner().run(test, out=messages.append).failed
    assert failed == 0, "".join(messages)


# --- tables and weights ---------------------------------------------------------------------------


def test_tables_have_their_columns(run: Run) -> None:
    assert run.steps().columns.tolist() == STEPS.names
    assert_frame_equal(run.steps(), read_everything(run, "steps"), check_dtype=False)
    assert run.evaluations()["split"].tolist() == ["validation"] * 2
    assert run.vocabulary().columns.tolist() == VOCABULARY.names
    assert run.datums().columns.tolist() == DATUMS.names
    assert len(run.datums("validation")) == 6
    assert run.tokens == run.vocabulary()["token"].tolist()


def test_targets_are_the_tokens_one_later(run: Run) -> None:
    token_NT, target_NT = run.token_NT, run.target_NT
    assert token_NT.shape == target_NT.shape == (run.num_datums, 8)
    assert np.array_equal(token_NT[:, 1:], target_NT[:, :-1])
    last = run.datums()["last_target"]
    assert np.array_equal(target_NT[:, -1], last)
    words = run.datums()["text"][3].split()
    assert [run.tokens[token] for token in token_NT[3]] == words


def test_configuration_and_sizes_are_those_of_the_capture(run: Run) -> None:
    assert run.config.model.width == 16
    assert run.provenance["config"]["model"]["width"] == 16
    assert run.num_steps == run.steps_done == 24
    assert run.layout.shapes[WEIGHT] == (16, 12)


def test_the_model_has_the_weights_of_the_step(run: Run) -> None:
    shape = {"vocabulary": run.num_tokens, "window": 8}
    fresh = fresh_model(run.config.model, **shape, seed=run.config.run.seed)
    for name, weight in run.model(0).named_parameters():
        assert torch.equal(weight, fresh.get_parameter(name))
    last = run.model()
    assert not last.training
    for name in run.layout.names:
        change = (last.get_parameter(name) - fresh.get_parameter(name)).abs().max()
        assert change > 0
    assert torch.equal(run.model(24).decoder.weight, last.decoder.weight)
