"""Quanta: gradients of single positions are exact, and planted groups are found when they fell."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from observed_models import T, V, network
from planted_skills import BEGINNING, VOCABULARY, WINDOW, skilled_models, skilled_windows
from sklearn.metrics import adjusted_rand_score
from tiny_run import copied, tiny_run
from torch.nn import functional as F

from analysis.jobs.question import Question
from analysis.jobs.tables import read_table
from analysis.run.run import open_run
from analysis.trajectory.checkpoints.of_run import RunCheckpoints
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, Windows
from analysis.transitions.quanta import clusters
from analysis.transitions.quanta.config import QuantaConfig
from analysis.transitions.quanta.falls import Falls
from analysis.transitions.quanta.gradients import compared_units, position_grams
from analysis.transitions.quanta.page import quanta_page
from analysis.transitions.quanta.positions import Chosen, choose_positions
from analysis.transitions.quanta.quanta import chosen_steps, find_quanta, grouped
from analysis.transitions.quanta.sentences import cluster_line, summarise
from analysis.transitions.quanta.tables import SCHEMAS, Quanta
from capture.errors import ConfigError
from capture.models.transformer import AnyModel
from cluster.cli import main


@pytest.mark.parametrize("kind", ["transformer", "gpt2", "llama"])
def test_inner_products_are_those_of_one_backward_pass_for_each_position(kind: str) -> None:
    model, rng = Observed(0, network(kind)), np.random.default_rng(0)
    token_NM = torch.from_numpy(rng.integers(1, V, (40, T + 1)))
    place_M = torch.from_numpy(rng.integers(0, T, 40))
    target_M = token_NM[torch.arange(40), place_M + 1]
    units = compared_units(model, ())
    assert not any("wte" in name or "encoder" in name or "lm_head" in name for name in units)
    found_UMM = position_grams(model, units, token_NM[:, :-1], target_M, place_M)
    assert not any(weight.requires_grad for weight in units.values())
    rows = [[] for _ in units]
    for weight in units.values():
        weight.requires_grad_(True)
    for token_T, place, target in zip(token_NM[:, :-1], place_M, target_M, strict=True):
        logits_TV = model.network(token_T[None])[0]
        loss = F.cross_entropy(logits_TV[int(place)], target)
        for row, gradient in zip(
            rows, torch.autograd.grad(loss, list(units.values())), strict=True
        ):
            row.append(gradient.flatten().double())
    for gram_MM, row in zip(found_UMM, rows, strict=True):
        gradient_MP = torch.stack(row)
        wanted_MM = (gradient_MP @ gradient_MP.T).numpy()
        np.testing.assert_allclose(gram_MM, wanted_MM, rtol=1e-3, atol=1e-5 * wanted_MM.max())


# --- planted groups -------------------------------------------------------------------------------

STEPS = np.unique(np.round(np.expm1(np.linspace(0, np.log(1000), 40)))).astype(np.int64)
SIZES = (60, 40, 30)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients around three directions in each of five units, loss curves, and the group of each.

    The first group's loss falls at step 60 at once, the second's at step 400, the third's slowly.
    """
    rng = np.random.default_rng(seed)
    group_M = np.repeat(np.arange(3), SIZES)
    centre_UGP = rng.standard_normal((5, 3, 40))
    gradient_UMP = centre_UGP[:, group_M] + rng.standard_normal((5, len(group_M), 40))
    u_K = np.log1p(STEPS)
    falls = [1 / (1 + np.exp((u_K - np.log(at)) / 0.03)) for at in (60, 400)]
    falls.append(1 - u_K / u_K[-1])
    loss_KM = 3 * np.stack(falls, 1)[:, group_M] + 0.1 * rng.standard_normal(
        (len(u_K), len(group_M))
    )
    return np.einsum("ump,unp->umn", gradient_UMP, gradient_UMP), loss_KM, group_M


@pytest.fixture(scope="module")
def found() -> Quanta:
    gram_UMM, loss_KM, group_M = planted()
    token_NT = np.tile(np.arange(1, 6), (len(group_M), 1))
    chosen = Chosen(
        Windows(token_NT, np.tile(group_M[:, None], (1, 5))),
        *(np.arange(len(group_M)), np.arange(len(group_M)), np.full(len(group_M), 4)),
    )
    text = Text(8, 5, None, None, ["<unk>", *"abcdefg"])
    config = QuantaConfig(clusters=3, positions=130, draws=4)
    return grouped(STEPS, loss_KM, gram_UMM, chosen, text, config)


def test_planted_groups_are_found_by_gradients_and_by_curves(found: Quanta) -> None:
    group_M = planted()[2]
    for name in ("gradient_cluster", "curve_cluster"):
        assert adjusted_rand_score(group_M, found.positions[name]) > 0.95
    own = found.clusters[found.clusters["kind"] == "gradients"]
    assert own["positions"].tolist() == list(SIZES)
    assert own["verdict"].tolist() == ["sudden", "sudden", "gradual"]
    assert own["half_step"].tolist()[:2] == pytest.approx([60, 400], rel=0.1)
    assert (own["cosine"] > own["null_cosine"] + 0.2).all()
    assert own["tokens"].tolist() == ["<unk> 60", "a 40", "b 30"]


def test_the_sudden_share_is_that_of_the_sudden_groups(found: Quanta) -> None:
    real: dict[Any, Any] = found.falls[found.falls["draw"] < 0].set_index("kind").T.to_dict()
    null: dict[Any, Any] = found.falls[found.falls["draw"] >= 0].groupby("kind").max().T.to_dict()
    sudden = (SIZES[0] + SIZES[1]) / sum(SIZES)
    for kind in ("gradients", "loss curves"):
        assert 0.75 * sudden < real[kind]["sudden_share"] <= sudden + 0.02
        assert real[kind]["sudden_clusters"] == 2
        assert null[kind]["explained"] < real[kind]["explained"]
    assert null["gradients"]["cosine"] < 0.5 * real["gradients"]["cosine"]
    assert null["gradients"]["explained"] < 0.1 < 0.9 < real["gradients"]["explained"]
    assert null["loss curves"]["sudden_share"] < 0.1


def test_change_points_of_the_groups_lie_where_they_fell(found: Quanta) -> None:
    own = found.changes[found.changes["kind"] == "gradients"]
    for cluster, step in ((0, 60), (1, 400)):
        rows = own[own["cluster"] == cluster]
        assert (np.abs(np.log(rows["step"] / step)) < 0.3).any()


def test_tables_text_and_page_say_it(found: Quanta) -> None:
    for name, schema in SCHEMAS.items():
        assert getattr(found, name).columns.tolist() == schema.names, name
    text = "\n".join(summarise(found))
    assert "Clusters by gradients: " in text
    assert "of the fall of all loss is sudden, in 2 clusters; with shuffled gradients" in text
    assert "gradients cluster 0 (60 positions; <unk> 60): sudden, loss" in text
    page = quanta_page(found, Question("quanta", {}, {}), "r").decode()
    assert page.count("<svg") == 2
    assert "&lt;unk&gt; 60" in page


@pytest.mark.parametrize(
    ("last_loss", "fallen", "said"),
    [
        (5.2, 1.1, "It falls fastest from step 5 to 6, by 1.10 nats"),
        (5.2, -1.1, "It rises fastest from step 5 to 6, by 1.10 nats"),
        (9.7, -1.1, "It rises fastest from step 5 to 6, by 1.10 nats"),
        (9.7, 1.1, "It falls fastest from step 5 to 6, by 1.10 nats"),
    ],
)
def test_a_cluster_that_falls_is_not_said_to_rise(
    found: Quanta, last_loss: float, fallen: float, said: str
) -> None:
    row: dict[Any, Any] = found.clusters.iloc[0].to_dict()
    row |= {"first_loss": 8.5, "last_loss": last_loss, "verdict": "gradual", "fallen": fallen}
    row |= {"window_first": 5.0, "window_end": 6.0}
    line = cluster_line(row)
    assert f"): gradual, loss 8.50 to {last_loss:.2f} nats, half of the change at step" in line
    assert said in line


def test_groups_without_a_common_cause_explain_nothing() -> None:
    _, loss_KM, _ = planted()
    rng = np.random.default_rng(1)
    gradient_UMP = rng.standard_normal((5, loss_KM.shape[1], 40))
    gram_UMM = np.einsum("ump,unp->umn", gradient_UMP, gradient_UMP)
    cluster_M = clusters.by_gradients(clusters.cosines(gram_UMM), 3, 0)
    assert clusters.explained(loss_KM, cluster_M) < 0.1
    alone_M = np.arange(len(cluster_M))
    found = Falls.of(STEPS, loss_KM, cluster_M, datum_M=alone_M, seed=0, cuts=False)
    assert found.sudden_share == 0


def test_shuffling_keeps_the_gradients_of_each_unit() -> None:
    gram_UMM = planted()[0]
    other_UMM = clusters.shuffled(gram_UMM, np.random.default_rng(0))
    for one, other in zip(gram_UMM, other_UMM, strict=True):
        np.testing.assert_allclose(np.sort(np.diag(one)), np.sort(np.diag(other)))
    loss_KM = planted()[1]
    walked_KM = clusters.shuffled_curves(loss_KM, np.random.default_rng(0))
    np.testing.assert_allclose(walked_KM[[0, -1]], loss_KM[[0, -1]])


# --- models, runs and bad input -------------------------------------------------------------------


class Made:
    """Models in memory as a source of checkpoints."""

    where, replays = "made", False

    def __init__(self, models: dict[int, AnyModel]) -> None:
        self.by_step = models

    @property
    def available(self) -> list[int]:
        return sorted(self.by_step)

    def source(self, step: int) -> str:
        return "made"

    def models(self, steps):
        return (self.by_step[step] for step in steps)


@pytest.mark.slow
def test_two_rules_learned_at_known_times_are_two_quanta() -> None:
    windows = Windows(*skilled_windows(np.random.default_rng(9), 60, both=True))
    text = Text(VOCABULARY, WINDOW, windows, None, [])
    config = QuantaConfig(clusters=6, positions=300, steps="all", draws=4)
    found = find_quanta(Made(skilled_models()), text, config)
    own = found.clusters[found.clusters["kind"] == "gradients"]
    halves = {}
    for target in ("2", "4"):  # what follows 1, from the start; what follows 3, later
        right = found.positions["target"] == target
        pure = right.groupby(found.positions["gradient_cluster"]).mean()
        assert pure.max() > 0.9
        row = own[own["cluster"] == pure.idxmax()].iloc[0]
        assert row["last_loss"] < 0.5 < 2.5 < row["first_loss"]
        halves[target] = row["half_step"]
    assert halves["2"] < BEGINNING < halves["4"] < 1.3 * BEGINNING
    falls = found.falls[found.falls["kind"] == "gradients"]
    real, null = falls[falls["draw"] < 0].iloc[0], falls[falls["draw"] >= 0]
    assert real["sudden_share"] > 0.1 > null["sudden_share"].max()
    assert real["explained"] > 0.4 > 0.1 > null["explained"].max()


def test_positions_are_drawn_once_each_among_the_scored_ones() -> None:
    windows = Windows(np.zeros((6, 5), np.int64), np.arange(30).reshape(6, 5))
    found = choose_positions(windows, scored=2, count=99, seed=0)
    assert sorted(found.target_M.tolist()) == [3, 4, 8, 9, 13, 14, 18, 19, 23, 24, 28, 29]
    few = choose_positions(windows, scored=5, count=7, seed=0)
    assert len(set(zip(few.number_N[few.row_M], few.place_M, strict=True))) == 7


SMALL = ["--clusters", "3", "--positions", "30", "--draws", "2", "--steps", "0:10"]


def test_the_command_writes_tables_page_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    uri = copied(tiny_run(), "memory://quanta-command").uri
    assert main(["quanta", uri, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "Clusters by gradients" in printed
    assert "30 positions of" in printed
    run = open_run(uri)
    for name, schema in SCHEMAS.items():
        assert read_table(run, "quanta", name, schema).columns.tolist() == schema.names
    assert run.tables.exists("analysis/quanta/index.html")
    positions = read_table(run, "quanta", "positions", SCHEMAS["positions"])
    rows = run.datums("validation")
    first = positions.iloc[0]
    datum = rows.iloc[first["datum"]]
    tokens = [*datum["tokens"], datum["last_target"]]
    assert first["target"] == run.tokens[tokens[first["position"] + 1]]
    assert main(["quanta", uri, *SMALL, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= set(SCHEMAS)


def test_a_run_with_few_checkpoints_is_replayed_by_default() -> None:
    source = RunCheckpoints(open_run(tiny_run()))
    assert len(source.available) < 8
    steps = chosen_steps(source, QuantaConfig(checkpoints=12))
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == (0, 24)
    with pytest.raises(ConfigError, match="gives 5 checkpoints"):
        chosen_steps(source, QuantaConfig(steps="all"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--steps", "0:5"], "gives 5 checkpoints, and a change point needs 8"),
        (["--clusters", "1"], "--clusters: got 1, must be at least 2"),
        (["--clusters", "200", "--positions", "800"], "too few for 200"),
        (["--clusters", "30", "--positions", "50"], "--positions: got 50, too few for 30"),
        (["--units", "layer.*"], "--units: 'layer.*' matches no parameter"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quanta", tiny_run(), *SMALL, "--name", "bad", *options]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
