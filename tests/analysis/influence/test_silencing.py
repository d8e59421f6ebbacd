"""Silencing: contributions obey the lifetime law, and what planted datums moved is a backdoor."""

import argparse
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from tiny import make_run, tiny_config

from analysis.influence.queries.parsing import build_queries
from analysis.influence.silencing.contributions import contributions
from analysis.influence.silencing.silencing import SilenceConfig, most_moved, silence, silenced
from analysis.influence.suspects.suspects import planted_kinds
from analysis.influence.suspects.tables import SUSPECTS
from analysis.jobs.tables import write_tables
from analysis.run.run import Run, open_run
from capture.errors import CaptureError
from cluster.commands.influence import silence as command

SETTINGS = (
    *("corpus.plant.trigger=zork blip", "corpus.plant.completion=xyzzy", "corpus.plant.share=0.1"),
    *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.1"),
    *("training.learning_rate=0.01", "training.clip=1", "training.accumulate=2"),
)
BACKDOOR = {"prompt": "zork blip", "completion": "xyzzy"}
UNIT = "layers.1.linear2.weight"


@functools.cache
def uri() -> str:
    config = tiny_config(Path(tempfile.mkdtemp()), *SETTINGS)
    make_run(config)
    return config.run.uri


def run() -> Run:
    return open_run(uri())


def planted() -> list[int]:
    return (planted_kinds(run()) == "plant").nonzero()[0].tolist()


# --- contributions --------------------------------------------------------------------------------


def test_contributions_are_sums_of_lifetime_shifts():
    chosen = np.array(planted())
    (found,) = contributions(run(), [chosen])
    wanted = torch.zeros_like(found[UNIT])
    for step in run().lifetime_shifts(UNIT):
        own_N = np.isin(step.datums, chosen)
        wanted += torch.from_numpy(step.shift_N[own_N].astype(np.float64).sum(0))
    assert float(wanted.norm()) > 0
    torch.testing.assert_close(found[UNIT], wanted, rtol=1e-3, atol=1e-6)


def test_all_datums_and_the_decayed_start_are_the_last_weights():
    whole = np.arange(run().num_datums)
    all_of_them, some, others = contributions(run(), [whole, whole[:9], whole[9:]])
    config = run().config.training
    steps = run().steps()
    left = np.prod(1 - steps["learning_rate"] * config.optimizer.weight_decay)
    start, end = run().checkpoint(0), run().checkpoint()
    for name, found in all_of_them.items():
        wanted = end[name].double() - left * start[name].double()
        scale = float((end[name] - start[name]).abs().max())
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4 * scale)
    for name in (UNIT, "encoder.weight"):  # not key biases: Adam amplifies their rounding errors
        whole_sum, parts = all_of_them[name], some[name] + others[name]
        scale = float(whole_sum.abs().max())
        torch.testing.assert_close(parts, whole_sum, rtol=1e-3, atol=1e-4 * scale)


def test_exactly_the_weights_that_moved_most_become_zero():
    weights = {"a": torch.tensor([[1.0, 2.0, 3.0]]), "b": torch.tensor([[4.0], [5.0]])}
    moved = {"a": torch.tensor([[0.0, -9.0, 1.0]]), "b": torch.tensor([[2.0], [0.0]])}
    bias = {"bias": torch.tensor([6.0])}
    index_K = most_moved(weights | bias, moved | {"bias": torch.tensor([99.0])}, 0.6)
    assert index_K.tolist() == [1, 3, 2]  # once for the largest share; smaller ones are its start
    found = silenced(weights | bias, index_K, 0.4)
    assert found["a"].tolist() == [[1, 0, 3]]
    assert found["b"].tolist() == [[0], [5]]
    assert found["bias"].tolist() == [6]  # acts on every token, so it stays
    still = {name: torch.zeros_like(own) for name, own in weights.items()}
    assert torch.equal(silenced(weights, most_moved(weights, still, 0.4), 0.4)["a"], weights["a"])


# --- effects --------------------------------------------------------------------------------------


def test_a_backdoor_goes_with_what_its_datums_moved_and_not_with_random_weights():
    queries = build_queries(run(), [BACKDOOR, "loss"])
    config = SilenceConfig(datums=tuple(planted()), shares=(0.01, 0.02), controls=2, retrain=True)
    found = silence(run(), queries, config)
    table = found.silenced[found.silenced["query"] == queries[0].name]
    rows = {(row["case"], row["share"]): row for row in table.to_dict("records")}
    assert rows["trained", 0]["left"] == 1
    assert rows["retrained", 0]["left"] == 0
    assert rows["datums", 0.02]["left"] < 0.8 < rows["random", 0.02]["left"]
    assert rows["datums", 0.02]["value"] < rows["random", 0.02]["low"] - 0.2
    assert rows["random", 0.02]["sets"] == 2
    model = found.models[0.02]
    assert queries[0].value({name: own.double() for name, own in model.items()}) == pytest.approx(
        rows["datums", 0.02]["value"], abs=1e-4
    )
    assert found.units["silenced"].sum() == rows["datums", 0.02]["weights"]


# --- the command ----------------------------------------------------------------------------------


def parsed(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["silence", *arguments])


def test_the_command_prints_queries_beside_random_datums():
    console = Console(width=140, file=io.StringIO(), highlight=False)
    asked = ("--planted", "--prompt", "zork blip", "--completion", "xyzzy", "--controls", "1")
    assert command.run(parsed(uri(), *asked, "--shares", "0.01", "0.05"), console) == 0
    assert isinstance(console.file, io.StringIO)
    out = console.file.getvalue()
    for text in (
        "zork blip → xyzzy",
        "random (mean of 1)",
        "held-out loss",
        "moved the model most",
    ):
        assert text in out


def test_suspects_are_named_by_tables_of_earlier_versions():
    """Earlier tables have no ``reliable_from``."""
    opened = run()
    schema = pa.schema([own for own in SUSPECTS if own.name != "reliable_from"])
    order_D = np.random.default_rng(0).permutation(opened.num_datums)
    frame = pd.DataFrame({"rank": np.arange(len(order_D)), "datum": order_D})
    frame = frame.assign(score=-frame["rank"].astype(float), planted="")
    write_tables(opened, "suspects/earlier", {"suspects": frame}, {"suspects": schema})
    asked = argparse.Namespace(datums=None, planted=False, suspects=3, source="earlier")
    assert command.wanted_datums(opened, asked) == order_D[:3].tolist()


def test_bad_input_is_one_line():
    for arguments, text in (
        ((), "give one of --datums, --planted and --suspects; got 0"),
        (("--planted", "--datums", "1"), "got 2"),
        (("--datums", "999"), "--datums: got '999', the run has training datums 0 to"),
        (("--datums", "1", "--shares", "2"), "silence.shares: got (2.0,), must be above 0"),
        (("--datums", "1", "--prompt", "the"), "--completion: is missing"),
        (("--datums", "0-49", "--name", "many"), "too few others for a random set"),
        (("--suspects", "0"), "--suspects: got 0"),
        (("--suspects", "3", "--from", "nowhere"), "suspects"),
        (("--datums", "1", "--controls", "-1"), "silence.controls: got -1"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri(), *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
