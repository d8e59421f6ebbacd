"""How much a head reads of what an earlier head writes: Q-, K- and V-composition.

Source: Elhage et al. 2021, "A mathematical framework for transformer circuits", "Q-, K- and
V-composition". Norms between the heads are left out, as there. Shapes: D width, H head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from analysis.trajectory.metrics.row import Row, head_name
from analysis.trajectory.observed.heads import HeadMatrices
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text

KINDS = ("q_composition", "k_composition", "v_composition")
NULL_DRAWS = 50


def composition(model: Observed, text: Text) -> Iterator[Row]:
    """Frobenius norm of the product of two heads' matrices over the product of their norms, 0 to 1.

    For each pair of heads in two layers, as in ``L0H1 > L1H2``: how much of what the first writes
    (W_OV) the second reads for its queries, keys (W_QK) or values (W_OV). Null: the mean of random
    matrices of the same shapes.
    """
    layers = model.head_matrices
    _, width, own_width = layers[0].o_HDE.shape
    null = text.remember("composition", lambda: random_composition(width, own_width, text.seed))
    for second, own in enumerate(layers):
        for first in range(second):
            for number, kind in enumerate(KINDS):
                score_HH = composed(layers[first], own, kind)
                for a, row in enumerate(score_HH.tolist()):
                    for b, score in enumerate(row):
                        name = f"{head_name(first, a)} > {head_name(second, b)}"
                        yield Row(kind, name, score, 1, null=null[number])


def composed(first: HeadMatrices, second: HeadMatrices, kind: str) -> Tensor:
    """Return the score of each head of one layer with each of a later one, [H, H]; 0 if one of
    them is zero."""
    written_HDD, read_HDD = first.writes_HDD, second.reads_HDD
    # Scores are x_tᵀ W_QK x_s: queries read the stream by W_QKᵀ, keys by W_QK.
    reader_HDD = {
        "q_composition": read_HDD.transpose(1, 2),
        "k_composition": read_HDD,
        "v_composition": second.writes_HDD,
    }[kind]
    product_HHDD = torch.einsum("bij,ajk->abik", reader_HDD, written_HDD)
    norm_HH = written_HDD.norm(dim=(1, 2))[:, None] * reader_HDD.norm(dim=(1, 2))
    return product_HHDD.norm(dim=(2, 3)) / norm_HH.clamp(min=1e-300)


def random_composition(width: int, head_width: int, seed: int) -> list[float]:
    """Return the mean score of each kind for heads with independent Gaussian entries."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(heads: int) -> HeadMatrices:
        size = (heads, head_width, width)
        q, k, v, o = (torch.randn(size, generator=generator).double() for _ in range(4))
        return HeadMatrices(q, k, v, o.transpose(1, 2))

    return [float(composed(drawn(5), drawn(NULL_DRAWS // 5), kind).mean()) for kind in KINDS]
