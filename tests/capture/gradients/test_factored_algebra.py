"""Algebra on factors equals algebra on dense gradients, for every kind of factor."""

import pytest
import torch
from torch import Tensor

from capture.gradients.factored_algebra import along, column, dense, inner_products, row
from capture.gradients.factors import Factor

R, C = 11, 6
GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def outer(N: int, T: int, *, transposed: bool = False) -> Factor:
    left, right = draw(N, T, R), draw(N, T, C)
    return Factor("outer", *((right, left) if transposed else (left, right)), transposed)


def rows(N: int, T: int) -> Factor:
    token_NT = torch.randint(R, (N, T), generator=GENERATOR)
    return Factor("rows", draw(N, T, C), token_NT=token_NT)


def whole(N: int, T: int) -> Factor:
    """A dense gradient as a factor with one position."""
    return Factor("sum", draw(N, T, R * C))


MATRICES = {
    "outer": lambda N: [outer(N, 5)],
    "transposed": lambda N: [outer(N, 5, transposed=True)],
    "rows": lambda N: [rows(N, 9)],
    "tied": lambda N: [rows(N, 5), outer(N, 5)],
    "tied, other order, other lengths": lambda N: [outer(N, 4), rows(N, 7), outer(N, 5)],
    "whole": lambda N: [whole(N, 1)],
}
VECTORS = {
    "sum": lambda N: [Factor("sum", draw(N, 5, C))],
    "scale": lambda N: [Factor("scale", draw(N, 5, C), draw(N, 5, C))],
    "both": lambda N: [Factor("sum", draw(N, 5, C)), Factor("scale", draw(N, 3, C), draw(N, 3, C))],
}


def reference_gradient(uses: list[Factor], n: int, shape: tuple[int, ...]) -> Tensor:
    """Return one datum's gradient, added up position by position."""
    out = torch.zeros(shape, dtype=torch.float64)
    for use in uses:
        for t, delta in enumerate(use.delta_NTO[n]):
            if use.kind == "rows":
                assert use.token_NT is not None
                out[use.token_NT[n, t]] += delta
            elif use.a_NTI is None:
                out += delta.view(shape)
            elif use.kind == "scale":
                out += delta * use.a_NTI[n, t]
            else:
                piece = torch.outer(delta, use.a_NTI[n, t])
                out += piece.T if use.transposed else piece
    return out


@pytest.mark.parametrize("kind", MATRICES)
def test_a_dense_gradient_its_rows_and_its_columns_equal_the_reference(kind):
    uses = MATRICES[kind](3)
    wanted = torch.stack([reference_gradient(uses, n, (R, C)) for n in range(3)])
    torch.testing.assert_close(dense(uses, (R, C)), wanted)
    for n in range(C):
        torch.testing.assert_close(column(uses, n, (R, C)), wanted[:, :, n])
    for r in range(R):
        torch.testing.assert_close(row(uses, r, (R, C)), wanted[:, r])


@pytest.mark.parametrize("kind", VECTORS)
def test_the_gradient_of_a_vector_equals_the_reference(kind):
    uses = VECTORS[kind](3)
    wanted = torch.stack([reference_gradient(uses, n, (C,)) for n in range(3)])
    torch.testing.assert_close(dense(uses, (C,)), wanted)


@pytest.mark.parametrize("kind", [*MATRICES, *VECTORS])
def test_inner_products_equal_those_of_dense_gradients(kind):
    make, shape = (MATRICES[kind], (R, C)) if kind in MATRICES else (VECTORS[kind], (C,))
    one, other = make(3), make(4)
    wanted = dense(one, shape).flatten(1) @ dense(other, shape).flatten(1).T
    torch.testing.assert_close(inner_products(one, other), wanted)


@pytest.mark.parametrize("kind", [*MATRICES, *VECTORS])
def test_inner_products_with_directions_equal_those_of_dense_gradients(kind):
    make, shape = (MATRICES[kind], (R, C)) if kind in MATRICES else (VECTORS[kind], (C,))
    uses, direction_Q = make(3), draw(2, *shape)
    wanted_QN = direction_Q.flatten(1) @ dense(uses, shape).flatten(1).T
    torch.testing.assert_close(along(uses, direction_Q, shape), wanted_QN)


def test_a_convolution_kernel_is_a_matrix_with_one_row_per_output_channel():
    uses = [outer(2, 5)]
    wanted = dense(uses, (R, C))
    assert dense(uses, (R, 3, 2)).shape == (2, R, 3, 2)
    torch.testing.assert_close(column(uses, 4, (R, 3, 2)), wanted[:, :, 4])
    direction_Q = draw(2, R, 3, 2)
    of_matrices = along(uses, direction_Q.reshape(2, R, C), (R, C))
    torch.testing.assert_close(along(uses, direction_Q, (R, 3, 2)), of_matrices)
