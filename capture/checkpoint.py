"""Weights at the end of a segment, as safetensors; all that resuming and replaying need.

Dropout, batch order and learning rate follow from the seed and the step, so there is no generator
state to keep.
"""

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from capture.errors import ShardError
from capture.store import Store


def key_of(step: int) -> str:
    """Where the weights after ``step`` updates lie."""
    return f"checkpoints/step-{step:06d}.safetensors"


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU, untouched by further training."""
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()
    }


def encode(weights: dict[str, Tensor]) -> bytes:
    return save(weights)


def read_checkpoint(store: Store, step: int) -> dict[str, Tensor]:
    """Weights by parameter name, on the CPU; raises ``ShardError`` if absent or unreadable."""
    where = f"{store.uri}/{key_of(step)}"
    try:
        return load(store.get(key_of(step)))
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", "Run: ontogeny verify") from error
    except SafetensorError as error:
        raise ShardError(where, f"is not readable: {error}", "Run: ontogeny verify") from error


def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights into a model of the same shape, in place."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
