"""What held-out loss becomes without an attention head.

Shapes: N datum, T position.
"""

from collections.abc import Iterator

from analysis.trajectory.metrics.row import Row, head_name, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.passes import losses
from analysis.trajectory.observed.text import Text

MOST_DATUMS = 50
"""Every head takes one forward pass of them all."""


def head_ablation(model: Observed, text: Text) -> Iterator[Row]:
    """Increase of the held-out loss with one head's output set to zero, nats per token.

    The differences are taken datum by datum, on at most 50 datums. Null: 0.
    """
    assert text.held_out
    some = text.held_out.spread(MOST_DATUMS)
    clean_N = losses(model, some, text.num_tokens).mean(1)
    for layer in range(len(model.blocks)):
        for head in range(model.num_heads):
            with model.without_head(layer, head):
                ablated_N = losses(model, some, text.num_tokens).mean(1)
            yield mean_row("head_ablation", head_name(layer, head), ablated_N - clean_N, 0.0)
