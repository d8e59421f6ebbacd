"""What ``attribute --confirm`` says where it proves nothing: weak nulls, custom loops."""

from collections.abc import Mapping
from pathlib import Path

import custom_loops
import pandas as pd
import pytest
import torch

import ontogeny
from analysis.measures.nulls import EXCHANGED, SHUFFLED, UNTRAINED, null_sentences
from analysis.measures.shares import wilson
from capture.models.transformer import ModelConfig, fresh_model
from cluster.cli import main

UNIT = "layers.1.linear2.weight"
CASES = [UNTRAINED, SHUFFLED, EXCHANGED]


def counts(case: str, confirmed: int, groups: int = 67) -> Mapping[str, object]:
    low, high = wilson(confirmed, groups)
    pairs = {"pairs": 3 * groups, "confirmed_pairs": confirmed}
    found = {"case": case, "groups": groups, "confirmed_groups": confirmed}
    return found | pairs | {"low": float(low), "high": float(high)}


@pytest.mark.parametrize(
    ("record", "null", "wanted"),
    [
        (
            19,
            19,
            "A model after 0 steps confirms as many (19 of 67 neurons; the record confirms 19",
        ),
        (2, 19, "A model after 0 steps confirms as many or more (19 of 67 neurons; the record"),
        (60, 19, "A model after 0 steps confirms more than 5% (19 of 67 neurons; the record"),
        (5, 3, "The 95 % intervals overlap: the two cannot be told apart on this text."),
        (40, 1, None),
        (0, 0, None),
    ],
)
def test_a_null_that_the_record_does_not_beat_is_said(record, null, wanted: str | None) -> None:
    nulls = pd.DataFrame([counts("record", record), counts("untrained model", null)])
    lines = null_sentences(nulls, "neuron")
    assert len(lines) == (wanted is not None)
    if wanted is not None:
        assert wanted in lines[0]
    assert any("this is not evidence" in line for line in lines) == (0 < record <= null)


def test_every_null_is_named_in_its_own_words() -> None:
    nulls = pd.DataFrame([counts("record", 2), *(counts(case, 9) for case in CASES)])
    lines = null_sentences(nulls, "head")
    beginnings = ["A model after 0 steps", "A text with its words in", "Tokens of another head"]
    assert all(map(str.startswith, lines, beginnings))


def test_a_custom_loop_is_refused_by_name_and_not_advised(tmp_path, capsys) -> None:
    uri = loop_run(tmp_path)
    assert main(["attribute", uri, "--max-q", "1", "--confirm"]) == 2
    line = capsys.readouterr().err
    assert "was recorded in a custom training loop, and only its code can build the model" in line
    assert "held-out" not in line
    assert main(["attribute", uri, "--max-q", "1"]) == 0
    shown = capsys.readouterr().out
    assert "untrained model gets such tokens too." in shown
    assert "--confirm" not in shown


def loop_run(folder: Path) -> str:
    """Record a small custom loop whose datums are known."""
    token_ND = custom_loops.tokens()
    shape = {"vocabulary": custom_loops.V, "window": token_ND.shape[1] - 1}
    model = fresh_model(
        ModelConfig(layers=2, width=16, hidden=12, heads=2, dropout=0), **shape, seed=0
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    uri = custom_loops.uri(folder)
    with ontogeny.record(model, optimizer, run=uri, units=[UNIT], datums=token_ND) as recorder:
        for slots in torch.arange(len(token_ND)).split(4):
            recorder.datums(slots)
            custom_loops.loss_of(model, token_ND[slots]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return uri
