"""How well the model predicts held-out text, and whether it uses the context.

Shapes: N datum, T position, V vocabulary, K rank.
"""

from collections.abc import Iterator

import numpy as np
import torch

from analysis.trajectory.metrics.row import Row, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import batches, cross_entropy, losses
from analysis.trajectory.observed.text import Text, Windows

TOP = 5


def prediction(model: Observed, text: Text) -> Iterator[Row]:
    """Loss (nats per token) and the share of targets ranked first, and among the first five.

    Null: what the frequencies of tokens in the training text give (a unigram model).
    """
    assert text.held_out
    loss, first, among, scored = [], [], [], 0
    for batch in batches(text.held_out, text.num_tokens):
        logits_NTV = model.logits(torch.from_numpy(batch.token_NT))
        target_NT = torch.from_numpy(batch.target_NT)[:, -logits_NTV.shape[1] :]
        target_NT = target_NT.to(logits_NTV.device)
        loss.append(cross_entropy(logits_NTV, target_NT))
        best_NTK = logits_NTV.topk(min(TOP, logits_NTV.shape[2]), dim=2).indices
        hit_NTK = (best_NTK == target_NT[:, :, None]).double().cpu().numpy()
        first.append(hit_NTK[:, :, 0])
        among.append(hit_NTK.sum(2))
        scored = logits_NTV.shape[1]
    nulls = unigram_nulls(text, scored)
    for name, values in (("loss", loss), ("accuracy", first), ("top5", among)):
        yield mean_row(name, "", np.concatenate(values).mean(1), nulls[name])


def unigram_nulls(text: Text, scored: int) -> dict[str, float]:
    """Return loss, accuracy and top-5 of the training text's token frequencies, add-one smoothed.

    Only the last ``scored`` positions count. NaN without a training text. Computed once for all
    checkpoints.
    """
    if text.training is None or text.held_out is None:
        return dict.fromkeys(("loss", "accuracy", "top5"), float("nan"))
    return text.remember(f"unigrams of {scored}", lambda: unigram_scores(text, scored))


def unigram_scores(text: Text, scored: int) -> dict[str, float]:
    """Return what ``unigram_nulls`` returns for texts that are known."""
    assert text.training
    assert text.held_out
    seen_M = text.training.target_NT[:, -scored:].ravel()
    count_V = np.bincount(seen_M, minlength=text.num_tokens) + 1.0
    log_V = np.log(count_V / count_V.sum())
    target_M = text.held_out.target_NT[:, -scored:].ravel()
    best_K = np.argsort(-count_V, kind="stable")[:TOP]
    return {
        "loss": float(-log_V[target_M].mean()),
        "accuracy": float((target_M == best_K[0]).mean()),
        "top5": float(np.isin(target_M, best_K).mean()),
    }


def in_context(model: Observed, text: Text) -> Iterator[Row]:
    """Loss late in a window minus loss early in it (Olsson et al. 2022: token 500 against 50).

    Mean over the last tenth of the window minus mean over its second tenth, on held-out text;
    negative for a model that uses the context. Null: 0.
    """
    assert text.held_out
    loss_NT = losses(model, text.held_out, text.num_tokens)
    tenth = text.window // 10
    difference_N = loss_NT[:, -tenth:].mean(1) - loss_NT[:, tenth : 2 * tenth].mean(1)
    yield mean_row("in_context", "", difference_N, 0.0)


def copying(model: Observed, text: Text) -> Iterator[Row]:
    """Loss on the second occurrence of a block of random tokens minus loss on the first.

    Negative for a model that copies from its context. Null: 0.
    """
    token_NT = text.repeated.token_NT
    loss_NT = losses(model, Windows(token_NT[:, :-1], token_NT[:, 1:]), text.num_tokens)
    pairs = zip(loss_NT, text.repeated.length_N, strict=True)
    difference_N = np.array([copied(loss_T, length) for loss_T, length in pairs])
    yield mean_row("copying", "", difference_N, 0.0)


def copied(loss_T: np.ndarray, length: int) -> float:
    """Return the mean loss on the second block minus that on the first.

    The first token of each block, which cannot be foretold, is left out. ``loss_T`` starts with the
    loss of the sequence's second token.
    """
    second = loss_T[-(length - 1) :]
    first = loss_T[-(2 * length - 1) : -length]
    return float(second.mean() - first.mean())
