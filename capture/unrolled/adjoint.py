"""The derivative of queries by a state of training: by weights and by the optimizer's moments.

Shapes: Q query; a parameter's own axes follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from capture.errors import ShardError
from capture.optim.optimizer import Tensors, state_names
from capture.optim.optimizer_config import OptimizerConfig

WEIGHTS, MOMENTS = "weights/", "moments/"


@dataclass(frozen=True, eq=False)
class Adjoint:
    """Derivatives of Q queries by a training state; queries are along the first axis."""

    weights: Tensors
    """By the trained parameters, each [Q, …]."""
    moments: Tensors
    """By the optimizer's state, keyed ``STATE/PARAMETER``, each [Q, …]; empty for plain SGD."""

    @classmethod
    def at_end(
        cls, gradients: Sequence[Mapping[str, Tensor]], config: OptimizerConfig
    ) -> "Adjoint":
        """Return the adjoint after the last step: a query depends on the weights alone.

        ``gradients``: of each query by the last weights, with all trained parameters.
        """
        weights = {
            name: torch.stack([gradient[name].detach() for gradient in gradients])
            for name in gradients[0]
        }
        moments = {
            f"{state}/{name}": torch.zeros_like(weight)
            for state in state_names(config)
            for name, weight in weights.items()
        }
        return cls(weights, moments)

    def norm(self) -> Tensor:
        """Return ‖∂query/∂weights‖ of each query, [Q], in float64."""
        norms = [
            torch.linalg.vector_norm(own.flatten(1), dim=1, dtype=torch.float64)
            for _, own in sorted(self.weights.items())  # a stored adjoint has another order
        ]
        return torch.stack(norms).norm(dim=0)

    def is_zero(self) -> Tensor:
        """Return of which queries all derivatives are 0, bool [Q]."""
        tensors = (*self.weights.values(), *self.moments.values())
        return torch.stack([(own.flatten(1) == 0).all(1) for own in tensors]).all(0)

    def without(self, left_out_Q: Tensor) -> "Adjoint":
        """Return the adjoint with all derivatives of some queries (bool [Q]) set to 0."""
        if not bool(left_out_Q.any()):
            return self

        def kept(own: Tensor) -> Tensor:
            return own.masked_fill(left_out_Q.view(-1, *[1] * (own.dim() - 1)), 0)

        weights = {name: kept(own) for name, own in self.weights.items()}
        return Adjoint(weights, {key: kept(own) for key, own in self.moments.items()})

    def encode(self) -> bytes:
        """Return the adjoint as a safetensors file."""
        tensors = {f"{WEIGHTS}{name}": own for name, own in self.weights.items()}
        tensors |= {f"{MOMENTS}{key}": own for key, own in self.moments.items()}
        return save({key: own.cpu().contiguous() for key, own in tensors.items()})

    @classmethod
    def decode(cls, data: bytes, where: str, device: torch.device | str = "cpu") -> "Adjoint":
        """Read what ``encode`` returned; raises ``ShardError`` if it is not readable."""
        try:
            tensors = load(data)
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            problem = f"is not readable: {error}"
            raise ShardError(where, problem, "Delete it; it is computed again") from error
        found = {name: own.to(device) for name, own in tensors.items()}
        return cls(
            {k.removeprefix(WEIGHTS): x for k, x in found.items() if k.startswith(WEIGHTS)},
            {k.removeprefix(MOMENTS): x for k, x in found.items() if k.startswith(MOMENTS)},
        )
