"""Readers of fused heads: log-probabilities from hidden states, without the logits between them.

TRL trains with such a function. Its gradient for the unembedding is that of a linear layer whose
output gradient is never made: δ_mv = g_m · s · (1[v = y_m] − softmax(s z_m)_v), for logits z, scale
s, target y and gradient g at the log-probability. It is made here, from g, in the backward pass.

Shapes: M row, R row of the batch and window, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capture.gradients.torch_functions import OUTER, SUM, NotSplittable, TorchCall


@dataclass(frozen=True)
class FusedHead:
    """A call that computes the log-probability of one target for each row."""

    call: TorchCall
    """The linear layer inside it; the activation has a row for each position of the batch."""
    num_rows: int
    """Positions of the batch, R."""
    logit_delta: Callable[[Tensor], Tensor]
    """From the gradient at the log-probabilities, [M], to that at the logits, [R, V]."""


def chunked_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    chunk_size: int,
    final_logit_softcapping: float | None = None,
    logit_scale: float = 1.0,
    outputs: Sequence[str] = (),
) -> FusedHead:
    """Read ``trl.kernels.ChunkedLogProbFunction``, whose rows may be those with a label alone."""
    if final_logit_softcapping is not None:
        raise NotSplittable("a fused head with soft-capped logits")
    num_rows, row_M = selected_rows(hidden)
    hidden_MD, scale = hidden.detach(), logit_scale / temperature

    def place(x: Tensor) -> Tensor:
        return x if row_M is None else x.new_zeros(num_rows, x.shape[1]).index_copy_(0, row_M, x)

    def logit_delta(gradient_M: Tensor) -> Tensor:
        with torch.no_grad():
            z_MV = F.linear(hidden_MD, weight, bias).float() * scale
            delta_MV = F.one_hot(targets.long(), len(weight)) - torch.softmax(z_MV, -1)
            return place(delta_MV * (gradient_M.float() * scale)[:, None])

    call = TorchCall([(weight, OUTER), (bias, SUM)], place(hidden_MD))
    return FusedHead(call, num_rows, logit_delta)


def selected_rows(x: Tensor) -> tuple[int, Tensor | None]:
    """Return the rows that there are, and which of them a mask has selected, [M]; None: all.

    ``x = y[mask]`` of [N, T, D] has the mask, [N, T], in autograd's graph.
    """
    node = x.grad_fn
    if node is None or not node.name().startswith("IndexBackward"):
        return len(x), None
    sizes, indices = node._saved_self_sym_sizes, node._saved_indices  # pyright: ignore
    if len(indices) != 1 or indices[0].dtype != torch.bool or indices[0].shape != sizes[:-1]:
        raise NotSplittable("a fused head on selected rows")
    return indices[0].numel(), indices[0].flatten().nonzero()[:, 0]


READERS: Mapping[str, Callable[..., FusedHead]] = {"ChunkedLogProbFunction": chunked_log_probs}
"""Name of a custom function → its reader."""


def read_fused_head(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> FusedHead:
    """Return what a custom function does; raises ``NotSplittable`` for all but fused heads."""
    if name not in READERS:
        raise NotSplittable(f"the custom {name}")
    try:
        return READERS[name](*args, **kwargs)
    except TypeError as error:
        raise NotSplittable(f"the custom {name} with unusual arguments") from error
