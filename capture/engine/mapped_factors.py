"""Apply an optimizer's linear map of a matrix (``SideMap``) to gradients, dense or as factors.

Q Σ_t l_t r_tᵀ = Σ_t (Q l_t) r_tᵀ, so factors stay factors, and each keeps its position.

Shapes: N datum, T position, R row of a unit, C column, P all captured parameters.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from capture.gradients.factors import Factor, Factors
from capture.gradients.layout import Layout
from capture.optim.side_map import SideMap


def mapped_factors(factors: Factors, maps: Mapping[str, SideMap] | None) -> Factors:
    """Return the factors with the gradients of the named units mapped."""
    if not maps:
        return factors
    mapped = {name: [mapped_use(use, own) for use in factors[name]] for name, own in maps.items()}
    return factors | mapped


def mapped_use(use: Factor, own: SideMap) -> Factor:
    """Return a factor whose gradient is the mapped gradient of ``use``."""
    matrix = own.matrix
    if use.kind == "rows":
        if own.side == "right":
            return replace(use, delta_NTO=use.delta_NTO @ matrix)
        assert use.token_NT is not None  # row token_t of the identity times Q
        left_NTR = matrix[use.token_NT]
        return Factor("outer", left_NTR, use.delta_NTO, per_position=use.per_position)
    if use.kind == "sum":  # all entries of the matrix at one position
        N, T, _ = use.delta_NTO.shape
        shape = (len(matrix), -1) if own.side == "left" else (-1, len(matrix))
        dense = own(use.delta_NTO.reshape(N, T, *shape))
        return replace(use, delta_NTO=dense.reshape(N, T, -1))
    on_left = (own.side == "left") != use.transposed
    if on_left:
        return replace(use, delta_NTO=use.delta_NTO @ matrix)
    assert use.a_NTI is not None
    return replace(use, a_NTI=use.a_NTI @ matrix)


def mapped_gradients(value_P: Tensor, layout: Layout, maps: Mapping[str, SideMap]) -> Tensor:
    """Return gradients of all units, flattened, with those of the named units mapped."""
    parts = zip(layout.names, value_P.split(layout.sizes), strict=True)
    return torch.cat(
        [
            maps[name](own_S.view(layout.shapes[name])).reshape(-1) if name in maps else own_S
            for name, own_S in parts
        ]
    )
