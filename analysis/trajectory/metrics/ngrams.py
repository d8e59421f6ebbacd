"""How far the model is from the n-gram statistics of its training text.

Source: Belrose et al. 2024, "Neural networks learn statistics of increasing complexity".
Shapes: N datum, T position, V vocabulary, M scored position, C context.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from analysis.trajectory.metrics.row import Row, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import batches
from analysis.trajectory.observed.text import Text, Windows

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}


@dataclass(frozen=True, eq=False)
class NGrams:
    """Distribution of the next token after each context of the training text."""

    order: int
    code_C: np.ndarray
    """Numbers of the contexts, ascending; see ``context_codes``."""
    share_CV: sparse.csr_array
    """Share of each next token after a context."""
    entropy_C: np.ndarray
    """Entropy of each row, nats."""

    @classmethod
    def of(cls, windows: Windows, order: int, num_tokens: int) -> "NGrams":
        """Count the next tokens of all contexts that lie within a window."""
        code_NT = context_codes(windows.token_NT, order, num_tokens)
        target_NT = windows.target_NT[:, windows.target_NT.shape[1] - code_NT.shape[1] :]
        code_C, row_M = np.unique(code_NT.ravel(), return_inverse=True)
        ones_M = np.ones(len(row_M))
        shape = (len(code_C), num_tokens)
        counts = sparse.coo_array((ones_M, (row_M, target_NT.ravel())), shape=shape).tocsr()
        counts.sum_duplicates()
        sums_C = np.asarray(counts.sum(axis=1)).ravel()
        share_CV = counts.multiply(1 / sums_C[:, None]).tocsr()
        logs_CV = share_CV.copy()
        logs_CV.data = -share_CV.data * np.log(share_CV.data)
        return cls(order, code_C, share_CV, np.asarray(logs_CV.sum(axis=1)).ravel())

    def rows(self, code_M: np.ndarray) -> np.ndarray:
        """Return the row of each context, -1 if the training text does not have it."""
        row_M = np.searchsorted(self.code_C, code_M).clip(max=len(self.code_C) - 1)
        return np.where(self.code_C[row_M] == code_M, row_M, -1)

    def divergence(self, log_p_MV: np.ndarray, row_M: np.ndarray) -> np.ndarray:
        """Return KL(n-gram ‖ model) = −H(q) − Σ q log p for known contexts, nats, [M]."""
        if self.order == 1:  # one dense row for all
            expected_M = log_p_MV @ self.share_CV.toarray()[0]
        else:
            share_MV = self.share_CV[row_M]
            expected_M = np.asarray(share_MV.multiply(log_p_MV).sum(axis=1)).ravel()
        return -self.entropy_C[row_M] - expected_M


def context_codes(token_NT: np.ndarray, order: int, num_tokens: int) -> np.ndarray:
    """Return a number for the last ``order`` − 1 tokens at each position that has as many."""
    width = token_NT.shape[1]
    if order == 1:
        return np.zeros_like(token_NT)
    code_NT = np.zeros((len(token_NT), width - order + 2), np.int64)
    for back in range(order - 2, -1, -1):
        start = order - 2 - back
        code_NT = code_NT * num_tokens + token_NT[:, start : start + code_NT.shape[1]]
    return code_NT


def ngram_divergence(model: Observed, text: Text) -> Iterator[Row]:
    """KL divergence from n-gram statistics to the model, nats per position of held-out text.

    KL(q ‖ p) = Σ q log(q / p): q is the share of each next token in the training text after the
    same 0, 1 or 2 tokens, p is the model's prediction. Positions whose context the training text
    lacks are left out. Null: the same for a uniform prediction, log V − H(q).
    """
    assert text.held_out
    grams = text.remember("ngrams", lambda: count_ngrams(text))
    sums = {name: [] for name in ORDERS}
    nulls = {name: [] for name in ORDERS}
    for batch in batches(text.held_out, text.num_tokens):
        logits_NTV = model.logits(torch.from_numpy(batch.token_NT))
        log_p_NTV = logits_NTV.double().log_softmax(2).cpu().numpy()
        for name, gram in grams.items():
            for log_p_TV, token_T in zip(log_p_NTV, batch.token_NT, strict=True):
                codes = context_codes(token_T[None], gram.order, text.num_tokens)[0]
                row_M = gram.rows(codes[-len(log_p_TV) :])
                known_M, log_p_MV = row_M >= 0, log_p_TV[len(log_p_TV) - len(row_M) :]
                if known_M.any():
                    row_M = row_M[known_M]
                    sums[name].append(gram.divergence(log_p_MV[known_M], row_M).mean())
                    nulls[name].append(np.log(text.num_tokens) - gram.entropy_C[row_M].mean())
    for name in ORDERS:
        if sums[name]:
            yield mean_row("ngram_kl", name, np.array(sums[name]), float(np.mean(nulls[name])))


def count_ngrams(text: Text) -> dict[str, NGrams]:
    """Return the n-grams of the training text, by name, as far as a window is long enough."""
    assert text.training
    window = text.training.token_NT.shape[1]
    known = {name: order for name, order in ORDERS.items() if order - 1 <= window}
    return {name: NGrams.of(text.training, order, text.num_tokens) for name, order in known.items()}
