"""Hooks that see the loss gradient at an output as it left its function.

A model may change an output in place afterwards (``nn.ReLU(inplace=True)``, ``x += positions``).
Torch keeps a hook at the output's own function then, unless the output is a view: that of a linear
layer on [N, T, I] is a view of a matrix. A hook of the view would be lost, and one of the matrix is
not, so that is where the hook is put.
"""

from collections.abc import Callable

from torch import Tensor


def on_delta(out: Tensor, receive: Callable[[Tensor], None]) -> None:
    """Call ``receive`` with the loss gradient at ``out``, of its shape, as soon as it arrives."""
    base, shape = out._base, out.shape
    if (
        base is None
        or not base.requires_grad
        or base.grad_fn is None
        or base.numel() != out.numel()
        or not (base.is_contiguous() and out.is_contiguous())
    ):
        out.register_hook(receive)
    else:
        base.register_hook(lambda delta: receive(delta.reshape(shape)))
