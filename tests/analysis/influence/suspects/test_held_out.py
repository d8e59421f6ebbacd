"""Each datum is judged by a model that was not trained on it, against other data and orders."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_run, tiny_config
from torch.nn import functional as F

from analysis.influence.judge.designs import reweighted
from analysis.influence.judge.retrainings import is_kept
from analysis.influence.queries.parsing import build_queries
from analysis.influence.suspects import held_out
from analysis.influence.suspects.suspects import SuspectsConfig, rank_suspects
from analysis.jobs.sweep import in_turn
from analysis.run.run import Run, open_run
from capture.errors import ConfigError
from capture.retraining.retrain import retrain
from capture.retraining.weighting import Weighting

SCRAMBLED = (
    *("corpus.scramble.share=0.1", "model.dropout=0", "training.optimizer.kind=adamw"),
    *("training.learning_rate=0.01", "training.clip=1"),
)


@functools.cache
def run() -> Run:
    folder = Path(tempfile.mkdtemp())
    config = tiny_config(folder, *SCRAMBLED)
    make_run(config)
    return open_run(config.run.uri)


def nothing(done: int, wanted: int) -> None:
    """Report to nobody."""


def test_every_datum_is_in_one_fold_and_folds_have_one_size():
    folds = held_out.folds_of(43)
    assert sorted(np.concatenate(folds).tolist()) == list(range(43))
    assert {len(datum_N) for datum_N in folds} == {8, 9}
    assert len(held_out.folds_of(3)) == 3


@functools.cache
def model_without(fold: int) -> torch.nn.Module:
    weight_D = np.ones(run().num_datums)
    weight_D[held_out.folds_of(run().num_datums)[fold]] = 0
    model = run().network()
    model.load_state_dict(retrain(run().gradients.replayable, Weighting(weight_D)), strict=False)
    return model


def losses(fold: int, token_NM: np.ndarray) -> np.ndarray:
    """Losses of texts under the run trained again without a fold, [N, T]."""
    text_NM = torch.from_numpy(token_NM).long()
    logit_NVT = model_without(fold)(text_NM[:, :-1]).detach().transpose(1, 2)
    return F.cross_entropy(logit_NVT, text_NM[:, 1:], reduction="none").numpy()


def test_evidence_is_that_of_models_trained_without_the_datum():
    whole_DM = held_out.whole_datums(run())
    folds, loss_DT = held_out.folds_of(run().num_datums), np.empty(run().target_NT.shape)
    for number, datum_N in enumerate(folds):
        loss_DT[datum_N] = losses(number, whole_DM[datum_N])
    by_target = [loss_DT[run().target_NT == target].mean() for target in run().target_NT[5]]
    score_D = held_out.HELD_OUT["held-out"](run(), nothing, in_turn)
    assert score_D[5] == pytest.approx((loss_DT[5] - by_target).mean(), abs=1e-5)
    rng, shuffles = np.random.default_rng(1), 64
    (fold,) = (number for number, datum_N in enumerate(folds) if 5 in datum_N)
    orders_KM = np.stack([rng.permutation(whole_DM[5]) for _ in range(shuffles)])
    shuffled_K = losses(fold, orders_KM).mean(1)
    wanted = loss_DT[5].mean() - (np.mean(by_target) + np.mean(shuffled_K)) / 2
    score_D = held_out.HELD_OUT["order"](run(), nothing, in_turn)
    error = float(np.std(shuffled_K)) * (1 / shuffles + 1 / held_out.SHUFFLES) ** 0.5 / 2
    assert score_D[5] == pytest.approx(wanted, abs=5 * error)


def test_the_retrainings_are_kept_in_the_run():
    assert len([*held_out.held_out_models(run(), nothing, in_turn)]) == held_out.FOLDS
    for datum_N in held_out.folds_of(run().num_datums):
        assert is_kept(run(), reweighted(run().num_datums, datum_N, "removal"))


@pytest.mark.parametrize("evidence", ["held-out", "order"])
def test_scrambled_datums_are_found(evidence: str):
    (query,) = build_queries(run(), ["loss"])
    found = rank_suspects(run(), query, SuspectsConfig(evidence=evidence)).detection
    assert found["kind"].tolist() == ["scramble"]
    assert found["auc"].item() > 0.9


def test_flipped_labels_are_found_and_have_no_order(tmp_path: Path):
    config = tiny_config(
        tmp_path,
        *("corpus.kind=modular-addition", "corpus.path=null", "corpus.window=3"),
        *("corpus.modular.modulus=6", "corpus.flip.share=0.2", "training.epochs=1"),
        "corpus.validation_share=0",
    )
    make_run(config)
    labelled = open_run(config.run.uri)
    (query,) = build_queries(labelled, ["loss:train"])
    found = rank_suspects(labelled, query, SuspectsConfig(evidence="held-out"))
    assert found.detection["kind"].tolist() == ["flip"]
    assert (found.suspects["planted"] == "flip").sum() == round(0.2 * labelled.num_datums)
    with pytest.raises(ConfigError, match=r"got 'order', but a datum of modular-addition is no"):
        rank_suspects(labelled, query, SuspectsConfig(evidence="order"))
