"""The verdict of ``attribute --confirm`` in the report: beside its nulls, where it works."""

import custom_loops
import pandas as pd
import pyarrow as pa
import pytest
import torch
from report_pages import Reader, build, contents
from report_run import NEURONS, TABLES, report_run

import ontogeny
from analysis.jobs.tables import write_tables
from analysis.report.build import INDEX
from analysis.report.pages.confirmation import verdict_sentence
from analysis.report.pages.sources import WANTED
from analysis.report.pages.website import neuron_key
from analysis.run.run import open_run
from capture.models.transformer import ModelConfig, fresh_model

NOT_EVIDENCE = "A model after 0 steps confirms as many (8 of 8 neurons; the record confirms 8 of 8)"


def test_a_null_that_equals_the_record_is_said_on_the_first_page_and_with_each_neuron() -> None:
    run = report_run("memory://report-null", "attribute")
    tables = TABLES["attribute"](run)
    tables["nulls"] = tables["nulls"].assign(confirmed_groups=8, low=0.68, high=1.0)
    schemas = {name: pa.schema(columns.items()) for name, columns in WANTED["attribute"].items()}
    write_tables(run, "attribute", tables, schemas)
    build(run, max_neurons=2)
    pages = contents(f"{run.uri}/report")
    for key in (INDEX, neuron_key(NEURONS[0])):
        assert f"{NOT_EVIDENCE}: this is not evidence." in Reader(pages[key].decode()).text


def row(**values: object) -> pd.DataFrame:
    found = {"token": "sea", "p": 0.001, "confirmed": True, "alive": True, "rms_change": 0.05}
    found |= {"change": -0.4, "low": -0.5, "high": -0.3, "positions": 20}
    return pd.DataFrame([found | {"first_step": 6.0, "end_step": 12.0} | values])


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        ({}, "Yes, 1 of 1 tokens that were tested. Strongest: sea, −0.400 nats"),
        ({"confirmed": False}, "No: none of the 1 tokens that were tested is confirmed."),
        ({"alive": False, "rms_change": 0.0002}, "No. The neuron is nearly dead: ablating it"),
        ({"p": float("nan")}, "Not judged: its tokens occur too rarely in the held-out text."),
    ],
)
def test_the_verdict_says_yes_or_no_the_effect_and_alive_or_dead(values, beginning: str) -> None:
    assert verdict_sentence(row(**values)).startswith(beginning)


def loop_run(uri: str) -> None:
    """Record a small custom loop whose datums are known."""
    token_ND = custom_loops.tokens()
    shape = {"vocabulary": custom_loops.V, "window": token_ND.shape[1] - 1}
    config = ModelConfig(layers=2, width=16, hidden=12, heads=2, dropout=0)
    model = fresh_model(config, **shape, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    units = ["layers.*.linear2.weight"]
    with ontogeny.record(model, optimizer, run=uri, units=units, datums=token_ND) as recorder:
        for slots in torch.arange(len(token_ND)).split(4):
            recorder.datums(slots)
            custom_loops.loss_of(model, token_ND[slots]).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_the_report_of_a_custom_loop_does_not_advise_what_cannot_work() -> None:
    loop_run("memory://report-loop")
    run = open_run("memory://report-loop")
    selection = ontogeny.SelectionConfig(max_q=1)
    config = ontogeny.AttributionConfig(selection=selection)
    ontogeny.attribute(run, config, save=True)
    assert len(ontogeny.attribute(run, config).tokens)
    build(run, max_neurons=3)
    pages = {key: data for key, data in contents(f"{run.uri}/report").items() if ".html" in key}
    words = "--confirm cannot test them: the run was recorded in a custom training loop"
    assert words in Reader(pages[INDEX].decode()).text
    for key, data in pages.items():
        assert "--confirm" not in Reader(data.decode()).text.replace(words, ""), key
