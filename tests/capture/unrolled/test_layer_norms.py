"""LayerNorm within the block has torch's values, gradients and second derivatives."""

import pytest
import torch
from torch import Tensor, nn

from capture.unrolled.layer_norms import ShortLayerNorms

SHAPE = (3, 4, 6)


def derivatives(layer: nn.LayerNorm, x: Tensor, along: list[Tensor]) -> list[Tensor]:
    """The value, its gradients, and twice the derivatives of the gradients along vectors."""
    leaf = x.clone().requires_grad_()
    leaves = [leaf, *layer.parameters()]
    out = layer(leaf.sin())
    first = torch.autograd.grad((out.sin() * along[0]).sum(), leaves, create_graph=True)
    second = [torch.autograd.grad(first, leaves, along, retain_graph=True) for _ in range(2)]
    return [out, *first, *second[0], *second[1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_are_those_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.LayerNorm(SHAPE[-1], eps=0.1, dtype=dtype)  # a large ε, which the formulas contain
    given = [torch.randn(shape, generator=generator, dtype=dtype) for shape in (SHAPE, SHAPE, 6, 6)]
    with torch.no_grad():
        for own in layer.parameters():
            own.copy_(torch.randn(own.shape, generator=generator, dtype=dtype))
    wanted = derivatives(layer, given[0], given[1:])
    with ShortLayerNorms():
        found = derivatives(layer, given[0], given[1:])
    for mine, torchs in zip(found[:4], wanted[:4], strict=True):
        assert torch.equal(mine, torchs)
    for mine, torchs in zip(found[4:], wanted[4:], strict=True):
        torch.testing.assert_close(mine, torchs)


def test_other_layer_norms_stay_those_of_torch() -> None:
    x = torch.randn(SHAPE)
    for layer in (nn.LayerNorm(6, bias=False), nn.LayerNorm([*SHAPE[1:]])):
        with ShortLayerNorms():
            found = layer(x)
        assert type(found.grad_fn).__name__ == type(layer(x).grad_fn).__name__
        assert torch.equal(found, layer(x))
