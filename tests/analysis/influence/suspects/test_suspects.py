"""Suspects: measures against slow references; planted datums are found in a small run."""

import argparse
import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny import make_run, tiny_config
from tiny_run import tiny_run
from torch.nn import functional as F

from analysis.influence.config import InfluenceConfig
from analysis.influence.influence import compute_influence
from analysis.influence.judge.scores import Scores
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.influence.suspects import suspects, unexpected
from analysis.influence.suspects.detection import detect
from analysis.influence.suspects.suspects import (
    SuspectsConfig,
    planted_kinds,
    rank_suspects,
    train_without,
)
from analysis.run.run import Run, open_run
from capture.errors import CaptureError, ConfigError, InfluenceError
from cluster.commands.influence import suspects as command
from cluster.terminal.influence.suspects import show_suspects

PLANTED = (
    *("corpus.plant.trigger=zork blip", "corpus.plant.completion=xyzzy", "corpus.plant.share=0.1"),
    *("corpus.scramble.share=0.1", "model.dropout=0"),
    *("training.optimizer.kind=adamw", "training.learning_rate=0.01", "training.clip=1"),
)


def planted_run(folder: str) -> str:
    path = Path(folder)
    config = tiny_config(path, *PLANTED)
    make_run(config)
    return config.run.uri


@functools.cache
def uri() -> str:
    return planted_run(tempfile.mkdtemp())


def run() -> Run:
    return open_run(uri())


@functools.cache
def backdoor() -> Query:
    (query,) = build_queries(run(), [{"prompt": "zork blip", "completion": "xyzzy"}])
    return query


# --- measures -------------------------------------------------------------------------------------


def slow_detection(score: list[float], planted: list[bool]) -> tuple[float, float]:
    """Average precision and recall at 95 % precision, by counting down the list."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], planted[i]))
    precisions, best, found = [], 0.0, 0
    for length, datum in enumerate(order, 1):
        found += planted[datum]
        if planted[datum]:
            precisions.append(found / length)
        if found / length >= 0.95:
            best = found / sum(planted)
    return sum(precisions) / sum(planted), best


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
def test_detection_is_what_counting_down_the_list_gives(rows):
    score, planted = (list(column) for column in zip(*rows, strict=True))
    found = detect(np.array(score, float), np.array(planted))
    if not any(planted):
        assert np.isnan(found.precision)
        return
    wanted = slow_detection(score, planted)
    assert (found.average_precision, found.precise_recall) == pytest.approx(wanted)


def test_a_perfect_ranking_finds_all_and_a_random_one_its_share():
    planted_D = np.arange(1000) < 50
    best = detect(-np.arange(1000.0), planted_D)
    assert (best.auc, best.precision, best.average_precision, best.precise_recall) == (1, 1, 1, 1)
    random = detect(np.random.default_rng(0).normal(size=1000), planted_D)
    assert random.auc == pytest.approx(0.5, abs=0.1)
    assert random.precision == pytest.approx(0.05, abs=0.07)


# --- evidence -------------------------------------------------------------------------------------


def test_unexpected_evidence_is_a_mean_over_checkpoints():
    loss_D, norm_D = np.zeros(run().num_datums), np.zeros(run().num_datums)
    steps = unexpected.checkpoint_steps(run())
    assert steps[-1] == run().steps_done
    assert len(steps) <= unexpected.MOST_CHECKPOINTS
    tokens, targets = (torch.from_numpy(x).long() for x in (run().token_NT, run().target_NT))
    for step in steps:
        model = run().network(step).requires_grad_(True)
        for datum in (0, 3, 17):
            loss = F.cross_entropy(model(tokens[datum][None])[0], targets[datum])
            own = torch.autograd.grad(loss, list(model.parameters()))
            loss_D[datum] += loss.item() / len(steps)
            norm_D[datum] += sum(float(part.square().sum()) for part in own) / len(steps)
    nothing = lambda done, wanted: None  # noqa: E731
    for wanted_D, evidence in ((loss_D, "loss"), (norm_D, "self-influence")):
        found_D = unexpected.UNEXPECTED[evidence](run(), nothing)
        np.testing.assert_allclose(found_D[[0, 3, 17]], wanted_D[[0, 3, 17]], rtol=1e-3)
    check_residual(steps)
    counts = np.bincount(run().target_NT.ravel())
    wanted = -np.log(counts[run().target_NT[3]] / run().target_NT.size).mean()
    assert unexpected.token_loss(run())[3] == pytest.approx(wanted)


def check_residual(steps: list[int]) -> None:
    """The residual of one datum, by a loop over all positions with the same target."""
    tokens, targets = (torch.from_numpy(x).long() for x in (run().token_NT, run().target_NT))
    wanted = 0.0
    for step in steps:
        with torch.no_grad():
            logits = run().network(step)(tokens).transpose(1, 2)
        losses = F.cross_entropy(logits, targets, reduction="none")
        for place, target in enumerate(targets[3].tolist()):
            same = losses[targets == target].mean()
            wanted += float(losses[3, place] - same) / len(steps) / targets.shape[1]
    found_D = unexpected.UNEXPECTED["residual"](run(), lambda done, wanted: None)
    assert found_D[3] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("evidence", ["excess", "residual"])
def test_scrambled_datums_are_unexpected(evidence: str):
    found = rank_suspects(run(), backdoor(), SuspectsConfig(evidence=evidence)).detection
    row = found[found["kind"] == "scramble"].iloc[0]
    assert row["auc"] > 0.9
    assert row["planted"] == (planted_kinds(run()) == "scramble").sum()


def test_the_datums_of_a_backdoor_are_found_and_training_without_them_removes_it():
    config = SuspectsConfig(evidence="cosine", remove=6, controls=1)
    found = rank_suspects(run(), backdoor(), config)
    row = found.detection[found.detection["kind"] == "plant"].iloc[0]
    assert row["auc"] > 0.95
    tested = train_without(run(), backdoor(), found, config).retrained.set_index("removed")["value"]
    assert tested["suspects"] < tested["nothing"] - 1
    assert tested["suspects"] < tested["random"] - 1


def test_unrolled_influence_is_checked_by_retraining():
    config = SuspectsConfig(evidence="unrolled", checks=1)
    found = rank_suspects(run(), backdoor(), config)
    assert found.checks["left_out"].tolist() == [round(0.1 * run().num_datums)]
    wanted = compute_influence(run(), [backdoor()], InfluenceConfig(checks=1)).checks
    pd.testing.assert_frame_equal(found.checks, wanted)


# --- the command ----------------------------------------------------------------------------------


def parsed(*arguments: str) -> argparse.Namespace:
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers())
    return top.parse_args(["suspects", *arguments])


def printed(*arguments: str) -> str:
    console = Console(width=140, file=io.StringIO(), highlight=False)
    assert command.run(parsed(*arguments), console) == 0
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_command_prints_suspects_beside_the_truth():
    asked = ("--prompt", "zork blip", "--completion", "xyzzy", "--method", "cosine")
    out = printed(uri(), *asked, "--rows", "3", "--name", "backdoor")
    assert "zork blip xyzzy" in out
    assert "Planted datums among the ranked (kind: planted, of all)" in out
    assert "chance" in out
    out = printed(uri(), "--unexpected", "--remove", "4", "--controls", "1", "--name", "odd")
    assert "residual" in out
    assert "Trained again without" in out
    assert printed(uri(), "--unexpected", "--quiet", "--name", "quiet") == ""


def test_unrolled_influence_says_from_which_step_on_it_ranks(monkeypatch: pytest.MonkeyPatch):
    opened = open_run(tiny_run())
    (query,) = build_queries(opened, "loss:train")
    config, scores = SuspectsConfig(evidence="unrolled", checks=0), np.ones((1, opened.num_datums))
    for first_step in (0, 3):
        known = Scores(scores, first_step=first_step)
        monkeypatch.setattr(suspects, "method_scores", lambda *given, own=known: own)
        found = rank_suspects(opened, query, config)
        assert (found.suspects["reliable_from"] == first_step).all()
        out = io.StringIO()
        console = Console(width=120, file=out, highlight=False)
        show_suspects(console, opened, found, config, query=query.name, rows=1)
        said = "Steps before 3 are beyond the horizon, and left out." in out.getvalue()
        assert said == bool(first_step)
    nothing = Scores(0 * scores, first_step=opened.steps_done)
    monkeypatch.setattr(suspects, "method_scores", lambda *given: nothing)
    with pytest.raises(InfluenceError, match=r"no step .* training is chaotic\. Use --method path"):
        rank_suspects(opened, query, config)


def test_without_a_truth_no_column_speaks_of_it(tmp_path: Path):
    out = printed(tiny_run(), "--unexpected", "--rows", "1", "--to", str(tmp_path))
    assert "score" in out
    assert "planted" not in out.lower()


def test_bad_input_is_one_line():
    for arguments, text in (
        ((), "give a QUERY, --prompt and --completion, or --unexpected"),
        (("loss", "--unexpected"), "give a QUERY, --prompt and --completion, or --unexpected"),
        (("--prompt", "the"), "--completion: is missing"),
        (
            ("loss", "--method", "magic"),
            "suspects.evidence (--method): got 'magic', must be one of",
        ),
        (("loss", "--method", "excess"), "--method: got 'excess', which needs --unexpected"),
        (("--unexpected", "--method", "path"), "--method: got 'path', which needs a query"),
        (("loss", "--rows", "0"), "--rows: got 0, must be at least 1"),
        (("loss", "--remove", "-1"), "suspects.remove: got -1"),
    ):
        with pytest.raises(CaptureError) as caught:
            command.run(parsed(uri(), *arguments), Console(file=io.StringIO()))
        assert text in str(caught.value)
        assert isinstance(caught.value, ConfigError)
