"""Keep inputs and outputs of some units during forward passes of a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from capture.models.transformer import LanguageModel

States = dict[str, tuple[Tensor, Tensor]]
"""Unit → its input, [N, T, I], and its output, [N, T, O]."""


@contextmanager
def unit_states(model: LanguageModel, units: Sequence[str]) -> Iterator[States]:
    """Yield a dictionary that holds the states of the latest forward pass, dropout aside."""
    states: States = {}

    def keep(unit: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, args, output: states.update({unit: (args[0], output)})

    modules = [model.get_submodule(unit.removesuffix(".weight")) for unit in units]
    pairs = zip(units, modules, strict=True)
    handles = [module.register_forward_hook(keep(unit)) for unit, module in pairs]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
