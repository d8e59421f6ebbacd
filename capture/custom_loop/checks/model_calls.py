"""The loop's calls of its model: what went in, what came out, and the gradient that came back.

A loop calls the model, or parts of it (``model.encoder(x)``); the outermost module of each such
call counts. A ``ModelCall`` can be run again, for one datum alone or without dropout. Nothing of
the training changes by that: random states, buffers and attributes are as before.

Shapes: N datum.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from capture.custom_loop.checks.autocast_state import AutocastState
from capture.custom_loop.checks.module_attributes import attributes_put_back
from capture.gradients.output_hooks import on_delta

DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(F.alpha_dropout, F.feature_alpha_dropout, torch.dropout, torch.alpha_dropout),
    *(torch.feature_dropout, torch.feature_alpha_dropout),
}


@dataclass(eq=False)
class ModelCall:
    """One call of a module by the loop."""

    name: str
    """Name of the module in the model; "" for the model itself."""
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]
    """All tensors among the arguments."""
    autocast: AutocastState
    versions: list[int]
    """Version counters of the inputs: changed inputs cannot be used again."""
    random_state: Tensor | None
    """State of torch's generator before the call; None once it is known whether it was used."""
    is_random: bool = False
    """Whether the call drew random numbers."""
    outputs: list[Tensor] = field(default_factory=list)
    """All tensors of the result that have a gradient, flattened."""
    deltas: dict[int, Tensor] = field(default_factory=dict)
    """Number of an output → loss gradient at it, summed if ``backward`` came through twice."""
    direct: dict[int, Tensor] | None = None
    """Number of an output → the part of its δ that came from outside of the module; None if this
    is unknown."""
    masks: dict[int, Tensor] = field(default_factory=dict)
    """Number of an output → which of its entries are those of the datum that is checked, once a
    pass of the datum alone has shown it."""

    @classmethod
    def begin(
        cls,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: str,
    ) -> "ModelCall":
        autocast = AutocastState.now(device)
        given = tensors_of((args, kwargs))
        versions = [x._version for x in given if not x.is_inference()]
        return cls(name, module, args, kwargs, given, autocast, versions, torch.get_rng_state())

    def end(self, output: Any) -> None:
        """Note the result, and wait for its gradients."""
        assert self.random_state is not None
        self.is_random = not torch.equal(self.random_state, torch.get_rng_state())
        self.random_state = None
        self.outputs = [x for x in tensors_of(output) if x.requires_grad]
        for number, x in enumerate(self.outputs):
            on_delta(x, partial(self.add_delta, number))

    def add_delta(self, number: int, delta: Tensor) -> None:
        before = self.deltas.get(number)
        self.deltas[number] = delta if before is None else before + delta

    def clear(self) -> None:
        """Let go of all tensors."""
        self.args, self.kwargs = (), {}
        self.outputs, self.deltas, self.direct = [], {}, None

    @property
    def has_loss(self) -> bool:
        """Whether the module has computed a loss, and gradients came back to it."""
        return any(not delta.dim() for delta in self.deltas.values())

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in self.given if x.dim()]

    @property
    def shapes(self) -> tuple[object, ...]:
        """Name of the module and shapes of the inputs."""
        return self.name, *(x.shape for x in self.given)

    @property
    def is_intact(self) -> bool:
        """Whether the inputs are still what they were during the call."""
        return [x._version for x in self.given if not x.is_inference()] == self.versions

    def run_again(self, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Call the module with changed inputs; return the outputs, flattened, as in ``outputs``.

        A module that draws random numbers draws the same at every call, for example which layers
        to leave out.
        """
        if self.is_random:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
        # Inputs are detached, because a call that they come from is run again by itself.
        args, kwargs = tree_map(
            lambda x: change(x).detach() if isinstance(x, Tensor) else x, (self.args, self.kwargs)
        )
        with torch.enable_grad(), self.autocast.again():
            return [x for x in tensors_of(self.module(*args, **kwargs)) if x.requires_grad]


class WithoutDropout(TorchFunctionMode):
    """Functions that drop values at random drop none; everything else is as in training."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = args[:4], kwargs | dict(zip(("is_causal",), args[5:6], strict=False))
            kwargs["dropout_p"] = 0.0
        elif func is F.multi_head_attention_forward:
            args, kwargs = (*args[:10], 0.0, *args[11:]) if len(args) > 10 else args, kwargs
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Put random states, the model's buffers and attributes back at the end of the block."""
    buffers = {name: x.clone() for name, x in model.named_buffers()}
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(attributes_put_back(model))
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            with torch.no_grad():
                for name, x in model.named_buffers():
                    if name in buffers and not torch.equal(x, buffers[name]):
                        x.copy_(buffers[name])


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors in nested lists, tuples, dicts and model outputs, each once."""
    found = {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
    return list(found.values())
