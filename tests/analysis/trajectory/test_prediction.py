"""Prediction of held-out text: values that are known by construction, and the lens of libraries."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from observed_models import KINDS, T, V, network
from torch import Tensor
from torch.nn import functional as F

from analysis.trajectory.metrics.lens import logit_lens
from analysis.trajectory.metrics.prediction import in_context, prediction
from analysis.trajectory.metrics.row import Row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text, Windows


def by_name(rows) -> dict[str, Row]:
    return {row.metric: row for row in rows}


def fixed(logits_TV: Tensor) -> Any:
    """A model with these logits whatever it reads."""
    return SimpleNamespace(logits=lambda token_NT: logits_TV.expand(len(token_NT), -1, -1))


# --- in-context score -----------------------------------------------------------------------------


def test_the_in_context_score_is_the_last_tenth_less_the_second() -> None:
    """Losses at the 40 positions are 4.0, 3.9, …, 0.1: 0.25 on average in the last tenth and 3.45
    in the second."""
    loss_T = torch.arange(40, 0, -1, dtype=torch.float64) / 10
    logits_T2 = torch.stack([-loss_T, torch.log1p(-torch.exp(-loss_T))], 1)
    windows = Windows(np.ones((5, 40), np.int64), np.zeros((5, 40), np.int64))
    (row,) = in_context(fixed(logits_T2), Text(2, 40, windows, None, []))
    assert row.value == pytest.approx(0.25 - 3.45)
    assert (row.null, row.n) == (0, 5)
    assert row.standard_error == pytest.approx(0)


def test_a_model_without_context_has_an_in_context_score_of_0_within_its_error() -> None:
    rng = np.random.default_rng(0)
    token_NM = rng.integers(0, 9, (400, 41))
    windows = Windows(token_NM[:, :-1], token_NM[:, 1:])
    unigrams = torch.randn(9, generator=torch.Generator().manual_seed(0)).expand(40, 9)
    (row,) = in_context(fixed(unigrams), Text(9, 40, windows, None, []))
    assert abs(row.value) < 3 * row.standard_error


# --- top five -------------------------------------------------------------------------------------


def test_accuracy_and_top_five_count_targets_by_their_rank() -> None:
    """The model ranks token 0 first, token 1 second, and so on, at each position."""
    ranked_TV = -torch.arange(8.0).expand(4, 8)
    target_NT = np.array([[0, 1, 4, 5], [7, 5, 0, 6]])
    training = np.array([[7, 7, 7, 7], [6, 6, 6, 5], [5, 0, 1, 2]])
    text = Text(8, 4, Windows(0 * target_NT, target_NT), Windows(0 * training, training), [])
    found = by_name(prediction(fixed(ranked_TV), text))
    assert found["accuracy"].value == 2 / 8
    assert found["top5"].value == 4 / 8
    # The most frequent tokens of the training text are 7, 6, 5, 0 and 1.
    assert found["accuracy"].null == 1 / 8
    assert found["top5"].null == 7 / 8
    count_V = np.array([2, 2, 2, 1, 1, 3, 4, 5])
    wanted = -np.log(count_V / count_V.sum())[target_NT].mean()
    assert found["loss"].null == pytest.approx(wanted)


# --- logit lens -----------------------------------------------------------------------------------

FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "llama": "model.norm",
    "opt": "model.decoder.final_layer_norm",
}


def lens_of_library(kind: str, token_NT: Tensor) -> list[Tensor]:
    """Final norm and unembedding of the library's own hidden states; the last is the prediction."""
    model: Any = network(kind)
    if kind == "transformer":  # post-norm, so no norm follows the last layer
        kept: list[Tensor] = []
        first = model.layers[0]
        hooks = [
            first.register_forward_pre_hook(lambda _, given: kept.append(given[0])),
            first.register_forward_hook(lambda _, given, out: kept.append(out)),
        ]
        last = model(token_NT)
        for hook in hooks:
            hook.remove()
        return [*map(model.decoder, kept), last]
    whole = model.whole
    states = whole(input_ids=token_NT, output_hidden_states=True).hidden_states
    norm, head = whole.get_submodule(FINAL_NORM[kind]), whole.get_output_embeddings()
    return [*(head(norm(state)) for state in states[:-1]), head(states[-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_the_lens_after_each_layer_is_that_of_the_library_s_hidden_states(kind: str) -> None:
    token_NM = np.random.default_rng(3).integers(1, V, (4, T + 1))
    windows = Windows(token_NM[:, :-1], token_NM[:, 1:])
    model = Observed(0, network(kind))
    rows = {
        (r.metric, r.component): r.value for r in logit_lens(model, Text(V, T, windows, None, []))
    }
    with torch.no_grad():
        logits = lens_of_library(kind, torch.from_numpy(windows.token_NT))
    target_NT = torch.from_numpy(windows.target_NT)
    log_last_NTV = logits[-1].log_softmax(2)
    for name, logits_NTV in zip(("embedding", "layer 0", "layer 1"), logits, strict=True):
        loss = F.cross_entropy(logits_NTV.transpose(1, 2), target_NT)
        assert rows["logit_lens", name] == pytest.approx(float(loss), rel=1e-4)
        log_q_NTV = logits_NTV.log_softmax(2)
        distance = F.kl_div(log_q_NTV, log_last_NTV, reduction="sum", log_target=True)
        wanted = float(distance) / target_NT.numel()
        assert rows["logit_lens_kl", name] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
