"""Datums of different length, padded by the loop: ids, gradients, positions, tables, readers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from custom_loops import TOP, Small, V, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.attribution.outlier_weights import RowEvidence
from analysis.attribution.row_evidence import evidence_from_rows
from analysis.attribution.row_passes import OutlierRows
from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.checks.unchecked import Unchecked
from capture.custom_loop.datums import datum_tables
from capture.custom_loop.identity import DatumIdentity
from capture.custom_loop.record import record
from capture.errors import ConfigError, ShardError
from cluster.cli import main
from cluster.local.threads import run_job

PAD = 0
DATUMS = [[1, 2, 3], [4, 5], [1, 2, 3, 6, 7, 8], [9, 8, 7, 6], [2, 1, 10], [4, 6, 4, 4]]


def padded(ids: list[int], more: int = 0, ignored: int = -100) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a batch; targets are ``ignored`` beyond a datum's end."""
    width = max(len(DATUMS[i]) for i in ids) - 1 + more
    token_NT = torch.full((len(ids), width), PAD)
    target_NT = torch.full((len(ids), width), ignored)
    for row, i in enumerate(ids):
        own = torch.tensor(DATUMS[i])
        token_NT[row, : len(own) - 1] = own[:-1]
        target_NT[row, : len(own) - 1] = own[1:]
    return token_NT, target_NT


def total_loss(model: nn.Module, token_NT: Tensor, target_NT: Tensor) -> Tensor:
    return F.cross_entropy(model(token_NT).flatten(0, 1), target_NT.flatten(), reduction="sum") / 6


BATCHES = [[5, 1, 0], [3, 2, 4], [1, 5]]


def recorded(
    folder: Path, *, told: bool = False, more: int = 0, ignored: int = -100
) -> tuple[Run, list[Small]]:
    """Record three steps; returns the run and the model before each step."""
    model, before = Small(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"datums": DATUMS, "outliers": TOP, "factors": FactorConfig(enabled=True)}
    with record(model, optimizer, run=uri(folder), **options) as recorder:
        for ids in BATCHES:
            before.append(Small())
            before[-1].load_state_dict(model.state_dict())
            if told:
                recorder.datums(ids)
            total_loss(model, *padded(ids, more, ignored)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(uri(folder)), before


@pytest.fixture(scope="module")
def run_and_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Small]]:
    return recorded(tmp_path_factory.mktemp("unequal"))


def test_ids_and_gradients_are_those_of_datums_without_padding(
    run_and_models: tuple[Run, list[Small]],
) -> None:
    run, models = run_and_models
    assert [list(ids) for ids in run.steps()["datums"]] == BATCHES
    for step, (ids, model) in enumerate(zip(BATCHES, models, strict=True)):
        for i in ids:
            model.zero_grad()
            total_loss(model, *padded([i])).backward()
            for unit in run.layout.shapes:
                wanted = model.get_parameter(unit).grad
                assert wanted is not None
                assert np.allclose(run.gradient(step, i, unit), wanted.numpy(), atol=1e-6)


def test_told_ids_and_wider_padding_give_the_same_record(
    tmp_path: Path, run_and_models: tuple[Run, list[Small]]
) -> None:
    found, wanted = recorded(tmp_path, told=True, more=3)[0].shifts(), run_and_models[0].shifts()
    columns = ["unit", "index", "step", "datum_id", "position"]
    assert found[columns].equals(wanted[columns])
    assert np.allclose(found["diff"], wanted["diff"], atol=1e-6)


def test_tables_hold_the_datums_without_padding(run_and_models: tuple[Run, list[Small]]) -> None:
    run, _ = run_and_models
    table = run.datums()
    both = zip(table["tokens"], table["last_target"], strict=True)
    assert [[*tokens, last] for tokens, last in both] == DATUMS
    assert table["text"][1] == "4"
    assert run.tokens == [*map(str, range(V)), "<padding>"]
    assert run.token_NT.tolist()[0] == [1, 2, V, V, V]
    assert run.target_NT.tolist()[:3] == [[2, 3, V, V, V], [5, V, V, V, V], [2, 3, 6, 7, 8]]


def test_every_shift_is_at_a_position_of_its_datum(run_and_models: tuple[Run, list[Small]]) -> None:
    run, _ = run_and_models
    shifts = run.shifts()
    length_N = np.array([len(datum) - 1 for datum in DATUMS])
    assert (shifts["position"] < length_N[shifts["datum_id"]]).all()
    assert (length_N == run.length_N).all()


@pytest.mark.parametrize("evidence", ["target", "input", "window"])
def test_attribution_counts_the_tokens_of_datums_and_never_padding(
    tmp_path: Path, evidence: RowEvidence
) -> None:
    """The loop learns to predict padding too, so that shifts are at padding."""
    run, _ = recorded(tmp_path, ignored=PAD)
    config = AttributionConfig(level="unit", evidence=evidence, background="train")
    rows = OutlierRows.of(run, run_job, config)
    groups = rows.groups()
    found = evidence_from_rows(rows, groups, rows.collect(groups, tokens=True))
    shifts, counts_GV = run.shifts(), np.zeros((groups.num_named, V + 1))
    number = {name: group for group, name in enumerate(groups.units)}
    at_padding = 0
    for unit, datum, position in shifts[["unit", "datum_id", "position"]].itertuples(index=False):
        own = DATUMS[datum]
        if position >= len(own) - 1:
            at_padding += 1
            continue
        tokens = own[:-1] if evidence == "window" else [own[position + (evidence == "target")]]
        np.add.at(counts_GV[number[unit]], tokens, 1)
    assert at_padding > 0
    assert np.array_equal(found.sample(0, groups.num_named), counts_GV)
    assert np.array_equal(found.weight_G, counts_GV.sum(1))
    assert (found.effective_G <= found.weight_G + 1e-9).all()
    text = [token for own in DATUMS for token in (own[1:] if evidence == "target" else own[:-1])]
    assert np.array_equal(found.train_V, np.bincount(text, minlength=V + 1))
    assert "<padding>" not in set(attribute(run, run_job, config).tokens["token"])


class Named:
    """Looks rows of one batch up."""

    def __init__(self, datums: list[list[int]]) -> None:
        self.unchecked = Unchecked()
        self.identity = DatumIdentity(datum_tables(datums, None), self.unchecked)

    def __call__(self, *rows: list[int]) -> list[int] | None:
        found = self.identity.of_batch([torch.tensor(rows)], None)
        return None if found is None else found.tolist()


def test_rows_may_hold_all_tokens_or_all_but_the_last_target() -> None:
    named = Named(DATUMS)
    assert named([1, 2, 3, 0], [4, 5, 0, 0], [9, 8, 7, 6]) == [0, 1, 3]
    assert named([1, 2, 0], [4, 0, 0], [9, 8, 7]) == [0, 1, 3]
    assert not named.unchecked.total
    assert named([1, 2, 3, 6]) == [2]  # its beginning, or datum 0 padded with 6
    assert list(named.unchecked.total.values()) == [1]


def test_rows_that_may_hold_several_datums_are_counted_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    named = Named([[1, 2, 3], [1, 2, 4], [5, 6, 7], [5, 6, 7]])
    assert named([1, 2], [5, 6]) == [0, 2]
    named.unchecked.warn("run")
    assert "run: 1 rows hold tokens with which several datums begin" in caplog.text


def test_datums_behind_padding_are_refused() -> None:
    named = Named(DATUMS)
    with pytest.raises(ConfigError) as caught:
        named([1, 2, 3, 0, 0], [0, 0, 4, 6, 4])
    assert str(caught.value) == (
        "datums: row 1 of the input holds datum 5 from position 2 on, so that its positions are "
        "not those of the datum. Pad datums at their end, and pass all tokens that the model sees."
    )


def test_shorter_datums_without_the_padding_token_are_damage(tmp_path: Path) -> None:
    run, _ = recorded(tmp_path)
    run.__dict__["tokens"] = list(map(str, range(V + 1)))
    with pytest.raises(ShardError, match="has datums that are not of 5 tokens"):
        _ = run.token_NT


def test_info_says_that_datums_differ_in_length(
    run_and_models: tuple[Run, list[Small]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = run_and_models
    assert main(["info", run.uri]) == 0
    assert "6 datums of at most 5 tokens" in capsys.readouterr().out
    assert main(["verify", run.uri]) == 0


def test_a_datum_s_text_is_shown_without_padding(run_and_models: tuple[Run, list[Small]]) -> None:
    run, _ = run_and_models
    assert [run.datum_tokens(i).tolist() for i in range(len(DATUMS))] == DATUMS
