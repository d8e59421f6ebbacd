"""Silencing what a behaviour moved: values against naive passes, controls, and refusals."""

import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from reference_ablation import log_probabilities, logits, without
from scipy.stats import mannwhitneyu
from tiny_run import make_run, tiny_run

from analysis.ablation.config import SplitText
from analysis.ablation.subjects import Subject
from analysis.behaviour.behaviour import Behaviour, BehaviourConfig, analyse_behaviour
from analysis.behaviour.predicates import Predicate
from analysis.faithfulness.confirm import ConfirmConfig
from analysis.faithfulness.confirm_behaviour import confirm_behaviour
from analysis.run.run import open_run
from capture.errors import CaptureError
from cluster.cli import main
from cluster.local.threads import run_job

CONDITIONS = (Predicate(target="w3"), Predicate(contains="w3"), Predicate(regex="w3 w[58]"))


@functools.cache
def moved(condition: Predicate) -> Behaviour:
    """Return a behaviour of which every second head and neuron is said to be moved."""
    found = analyse_behaviour(open_run(tiny_run()), run_job, condition, BehaviourConfig())

    def judged(table: pd.DataFrame) -> pd.DataFrame:
        even = table["group"] % 2 == 0
        return table.assign(difference=1.0, q=np.where(even, 0.01, 0.9))

    return replace(found, heads=judged(found.heads), neurons=judged(found.neurons))


def shows(condition: Predicate, text: SplitText, texts: list[str]) -> np.ndarray:
    """Return where the held-out text shows the behaviour, bool [N, T], by plain means."""
    tokens = open_run(tiny_run()).tokens
    words_NT, target_NT = (np.array(tokens)[x] for x in (text.token_NT, text.target_NT))
    if condition.target:
        return target_NT == condition.target
    found = [
        (condition.contains in words)
        if condition.contains
        else any(p in own for p in ("w3 w5", "w3 w8"))
        for words, own in zip(words_NT.tolist(), texts, strict=True)
    ]
    return np.repeat(np.array(found)[:, None], target_NT.shape[1], 1)


@pytest.mark.parametrize("condition", CONDITIONS, ids=str)
def test_changes_are_those_of_naive_passes_at_the_behaviour_s_positions(
    condition: Predicate,
) -> None:
    run = open_run(tiny_run())
    confirmed = confirm_behaviour(run, moved(condition), condition, ConfirmConfig()).confirmed
    text, model = SplitText.of(run, "validation"), run.model()
    shows_NT = shows(condition, text, run.datums("validation")["text"].tolist())
    clean_NT = log_probabilities(logits(model, text.token_NT), text.target_NT)
    assert len(confirmed) > 0
    for row in confirmed.itertuples():
        subject = Subject(row.unit, row.group, row.level)  # pyright: ignore[reportArgumentType]
        after = logits(without(model, subject), text.token_NT)
        change_NT = log_probabilities(after, text.target_NT) - clean_NT
        assert row.positions == shows_NT.sum()
        assert row.change == pytest.approx(change_NT[shows_NT].mean(), abs=1e-5)
        assert row.elsewhere == pytest.approx(change_NT[~shows_NT].mean(), abs=1e-5)
    differences = confirmed["change"] - confirmed["elsewhere"]
    np.testing.assert_allclose(confirmed["difference"], differences)


def test_there_are_as_many_controls_as_moved_and_p_compares_them() -> None:
    run, condition = open_run(tiny_run()), CONDITIONS[0]
    found = confirm_behaviour(run, moved(condition), condition, ConfirmConfig())
    levels = found.confirmation.set_index("level")
    assert levels["moved"].to_dict() == levels["controls"].to_dict() == {"head": 2, "neuron": 10}
    for level, own in found.confirmed.groupby("level"):
        assert (own.loc[own["moved"], "group"] % 2 == 0).all()
        assert (own.loc[~own["moved"], "group"] % 2 == 1).all()
        sides = [own.loc[own["moved"] == side, "difference"] for side in (True, False)]
        wanted = mannwhitneyu(*sides, alternative="less").pvalue
        assert levels["p"].to_dict()[level] == wanted


def test_nothing_moved_gives_empty_tables() -> None:
    run, condition = open_run(tiny_run()), CONDITIONS[0]
    none = replace(moved(condition), heads=moved(condition).heads.assign(q=0.9))
    none = replace(none, neurons=none.neurons.assign(q=0.9))
    found = confirm_behaviour(run, none, condition, ConfirmConfig())
    assert found.confirmed.empty
    assert found.confirmation.empty


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--datums", "1,2,3"], "--confirm: cannot go with --datums, which are no held-out text."),
        (
            ["--regex", "w3 w[45]"],
            "held-out datums show the behaviour, at least 2 must. Hold out",
        ),
    ],
)
def test_what_cannot_be_confirmed_is_one_line(
    options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = make_run("memory://behaviour-confirm-refused")
    assert main(["behaviour", uri, *options, "--confirm"]) == 2
    assert line in capsys.readouterr().err


def test_a_run_without_held_out_text_is_refused() -> None:
    uri = make_run("memory://behaviour-confirm-none", "corpus.validation_share=0")
    with pytest.raises(CaptureError, match="holds no held-out text"):
        confirm_behaviour(open_run(uri), moved(CONDITIONS[0]), CONDITIONS[0], ConfirmConfig())


def test_the_command_shows_what_was_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    uri = make_run(
        "memory://behaviour-confirm-shown", "training.epochs=8", "training.learning_rate=5"
    )
    assert main(["behaviour", uri, "--target", "w3", "--confirm"]) == 0
    assert torch.is_grad_enabled()
    assert "Moved more, by attention head" in capsys.readouterr().out
