"""The report of a custom loop's run states what was recorded, not settings of other runs."""

from pathlib import Path

import pytest
import torch
from custom_loops import Small, loss_of, tokens, uri

from analysis.report.measured.update_norms import checkpoint_scales
from analysis.report.pages.overview import run_settings
from analysis.run.run import Run, open_run
from capture.custom_loop.record import record


@pytest.fixture
def run(tmp_path: Path) -> Run:
    model, token_NT = Small(), tokens()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    with record(model, optimizer, run=uri(tmp_path), datums=token_NT) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5]):
            recorder.datums(ids)
            loss_of(model, token_NT[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(uri(tmp_path))


def test_the_first_page_states_what_is_known_of_the_loop(run: Run) -> None:
    found = str(run_settings(run, {}))
    for known in ("12 datums of 5 tokens, vocabulary 11", "of the custom training loop", "SGD"):
        assert known in found
    for made_up in ("python-reference", "layers", "epochs", "clip", "seed", "dropout"):
        assert made_up not in found


def test_update_norms_are_scaled_by_the_datums_of_each_step(run: Run) -> None:
    assert checkpoint_scales(run) == {0: pytest.approx((0.5 / 4 + 0.5 / 2) / 2)}
