"""Weights at the end of a segment, as safetensors; all that resuming and replaying need.

What an optimizer remembers stands beside them, as ``optimizer/STATE/PARAMETER``; plain SGD keeps
nothing, nor does any other before its first step. Who wants the weights alone need not know.

Dropout, batch order and learning rate follow from the seed and the step, so there is no generator
state to keep.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from capture.errors import ShardError
from capture.format.markers import File, Marker
from capture.models.huggingface import bytes_of
from capture.models.transformer import ModelConfig
from capture.store.store import Store

MAX_POSITIONS = 2**28
"""Numbers in the encoding of positions: 1 GiB."""
OPTIMIZER = "optimizer/"
REMEDY = "Run: ontogeny verify"


def key_of(step: int) -> str:
    """Where the weights after ``step`` updates lie."""
    return f"checkpoints/step-{step:06d}.safetensors"


def snapshot(
    model: nn.Module, remembered: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """A copy of the weights on the CPU, untouched by further training; with an optimizer's state
    (``optimizer.snapshot``) beside it."""
    weights = {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors_of(model).items()
    }
    return weights | {f"{OPTIMIZER}{key}": tensor for key, tensor in remembered.items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model; of tied weights the first name alone."""
    named: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        named.setdefault(id(tensor), name)
    return {name: state[name] for name in named.values()}


def parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of a checkpoint: the weights, and what the optimizer remembers (``STATE/PARAMETER``)."""
    remembered = {
        name.removeprefix(OPTIMIZER): tensor
        for name, tensor in tensors.items()
        if name.startswith(OPTIMIZER)
    }
    weights = {n: tensor for n, tensor in tensors.items() if not n.startswith(OPTIMIZER)}
    return weights, remembered


def encode(weights: dict[str, Tensor]) -> bytes:
    return save(weights)


def read_checkpoint(store: Store, step: int, marker: Marker | None = None) -> dict[str, Tensor]:
    """Weights by parameter name, on the CPU, as the marker of the segment before them names them.

    Raises ``ShardError`` if they are absent, unreadable or others. Without a marker any readable
    checkpoint will do.
    """
    where = f"{store.uri}/{key_of(step)}"
    try:
        data = store.get(key_of(step))
        if marker and File.of(key_of(step), "checkpoints", data) not in marker.files:
            raise ShardError(where, "is not the file that its marker names", REMEDY)
        return load(data)
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", REMEDY) from error
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ShardError(where, f"is not readable: {error}", REMEDY) from error


def restore(model: nn.Module, weights: dict[str, Tensor], where: str = "checkpoint") -> None:
    """Put weights into a model, in place; raises ``ShardError`` if they are of another model.

    What the optimizer remembers may stand among them and is passed over.
    """
    weights, _ = parted(weights)
    own = tensors_of(model)
    require_of_model(own, weights, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def require_of_model(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Raises ``ShardError`` if these weights are not named, shaped and typed as a model's own."""
    wrong = sorted(own.keys() ^ weights.keys())
    if wrong:
        problem = f"{'lacks' if wrong[0] in own else 'has an unknown'} {wrong[0]}"
        raise ShardError(where, problem, REMEDY)
    for name, tensor in own.items():
        found = weights[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            problem = f"has {name} as {kind_of(found)}, the model as {kind_of(tensor)}"
            raise ShardError(where, problem, REMEDY)


def kind_of(tensor: Tensor) -> str:
    size = " × ".join(map(str, tensor.shape)) or "one number"
    return f"{size} of {str(tensor.dtype).removeprefix('torch.')}"


def require_room(store: Store, config: ModelConfig, *, vocabulary: int, window: int) -> None:
    """Raises ``ShardError`` if a run describes a model that its first checkpoint cannot hold.

    Only then is it safe to build the model: a configuration can ask for any amount of memory.
    """
    key = f"{store.uri}/{key_of(0)}"
    try:
        with store.open(key_of(0)) as source:
            found = source.seek(0, 2)
    except FileNotFoundError as error:
        raise ShardError(key, "is missing", REMEDY) from error
    if config.kind == "hf":
        wanted = bytes_of(config.hf, vocabulary=vocabulary, window=window, most=found)
    else:
        a_layer = 4 * config.width**2 + 2 * config.width * config.hidden
        wanted = 4 * (2 * vocabulary * config.width + config.layers * a_layer)
    if wanted > found or window * config.width > MAX_POSITIONS:
        problem = f"holds {found:,} bytes, the model of run.yaml needs {wanted:,}"
        raise ShardError(key, problem, REMEDY)
