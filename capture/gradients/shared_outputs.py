"""Outputs that all datums use, such as position embeddings looked up once: the δ of each datum.

The gradient at such an output is already a sum over datums. So the functions that are applied to it
are followed until one combines the result with the batch, as in ``x + positions``. There the
argument is replaced by a view of it that is expanded along N. The values are the same, and the
model never sees the view; but the gradient at the view has a row for each datum. It is carried back
to the output datum by datum.

Shapes: N datum.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.gradients.torch_functions import NotSplittable

BROADCASTING = {
    *(torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__),
    *(torch.Tensor.__iadd__, torch.sub, torch.Tensor.sub, torch.Tensor.sub_, torch.Tensor.__sub__),
    *(torch.Tensor.__rsub__, torch.mul, torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.__mul__),
    *(torch.Tensor.__rmul__, torch.where, torch.Tensor.where, torch.maximum, torch.minimum),
}
"""Functions of several tensors that broadcast, entry by entry."""
REPEATING = {
    *(torch.Tensor.repeat, torch.Tensor.expand, torch.Tensor.expand_as, torch.tile),
    *(torch.Tensor.tile, torch.broadcast_to, torch.Tensor.broadcast_to),
}
"""Functions that may copy one tensor for each datum."""

Receive = Callable[[Tensor], None]
"""Takes a part of δ with a row for each datum, [N, *shape of the output]."""


@dataclass(frozen=True, eq=False)
class Source:
    """An output that all datums use."""

    out: Tensor
    units: tuple[str, ...]
    receive: Receive

    def carry_back(self, reached: Tensor, delta_N: Tensor) -> None:
        """Carry a δ of each datum at a tensor computed from the output back to it."""
        if reached is self.out:
            self.receive(delta_N)
            return
        # The graph between both has not been passed yet, for this runs while δ is on its way there.
        with torch.enable_grad():
            (own_N,) = torch.autograd.grad(
                reached, self.out, delta_N, retain_graph=True, is_grads_batched=True
            )
        self.receive(own_N)


class SharedOutputs:
    """The shared outputs of a forward pass, and everything computed from them alone."""

    def __init__(self) -> None:
        self.reached: dict[int, tuple[Tensor, tuple[Source, ...]]] = {}
        """Id → tensor (kept alive, for its id) and the sources that it was computed from."""

    def add(self, out: Tensor, units: Iterable[str], receive: Receive) -> None:
        _, sources = self.reached.get(id(out), (out, ()))
        self.reached[id(out)] = out, (*sources, Source(out, tuple(units), receive))

    def __contains__(self, x: Any) -> bool:
        return id(x) in self.reached

    def clear(self) -> None:
        self.reached.clear()

    def expand_arguments(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], N: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with shared ones expanded along N where they meet the batch.

        Raises ``NotSplittable`` for a function that combines them with the batch in another way.
        """
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if func is F.scaled_dot_product_attention:
            return self.expand_bias(args, kwargs, N)
        if func not in BROADCASTING:
            batch = [x for x in tensors if id(x) not in self.reached]
            if any(x.shape[:1] == (N,) and not isinstance(x, nn.Parameter) for x in batch):
                name = getattr(func, "__name__", str(func))
                raise NotSplittable(f"a look-up for all datums that meets the batch in {name}")
            return args, kwargs
        shape = torch.broadcast_shapes(*(x.shape for x in tensors))
        new = {id(x): self.expanded(x, shape, N) for x in tensors if id(x) in self.reached}
        return (
            tuple(new.get(id(x), x) if isinstance(x, Tensor) else x for x in args),
            {k: new.get(id(x), x) if isinstance(x, Tensor) else x for k, x in kwargs.items()},
        )

    def expand_bias(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], N: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of attention with a shared bias of the scores expanded along N."""
        query, *others = args[:3] if len(args) > 2 else (*args, kwargs["key"], kwargs["value"])
        bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if any(id(x) in self.reached for x in (query, *others)) or not isinstance(bias, Tensor):
            raise NotSplittable("a look-up for all datums that meets the batch in attention")
        view = self.expanded(bias, torch.Size((N, *query.shape[1:-1], others[0].shape[-2])), N)
        if len(args) > 3:
            return (*args[:3], view, *args[4:]), kwargs
        return args, kwargs | {"attn_mask": view}

    def expanded(self, x: Tensor, shape: torch.Size, N: int) -> Tensor:
        """Return ``x`` expanded along the axis of datums; ``x`` itself if it meets no batch."""
        padded = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
        axes = [
            a for a, (n, own) in enumerate(zip(shape, padded, strict=True)) if (n, own) == (N, 1)
        ]
        if not axes:
            return x
        axis = axes[0]  # the outermost: a batch that puts it elsewhere fails the check of the split
        sizes = [N if a == axis else n for a, n in enumerate(padded)]
        view = x.expand(sizes[min(axis, len(shape) - x.dim()) :])
        self.watch(view, x, axis - (len(shape) - view.dim()))
        return view

    def watch(self, view: Tensor, x: Tensor, axis: int) -> None:
        """Carry the gradient at a view with one row for each datum back to the sources of ``x``."""
        reached, sources = self.reached[id(x)]

        def arrived(delta: Tensor) -> None:
            delta_N = delta.movedim(axis, 0).reshape(-1, *reached.shape)
            for source in sources:
                source.carry_back(reached, delta_N)

        view.register_hook(arrived)

    def follow(self, func: Callable[..., Any], args: Iterable[Any], out: Any, N: int) -> None:
        """Note that ``out`` was computed from shared outputs alone, unless it has N rows now."""
        before = [self.reached[id(x)] for x in args if id(x) in self.reached]
        if not before or not isinstance(out, Tensor) or not out.requires_grad:
            return
        x = before[0][0]
        if func in REPEATING and out.shape in ((N * x.shape[0], *x.shape[1:]), (N, *x.shape)):
            self.watch(out, x, 0)
            return
        sources = {id(source): source for _, own in before for source in own}
        self.reached[id(out)] = out, tuple(sources.values())
