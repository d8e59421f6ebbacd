"""Checkpoints: the weights at the end of a segment, as safetensors.

The optimizer's state is stored with the weights, under ``optimizer/STATE/PARAMETER``. Plain SGD has
no state, and no optimizer has any before its first step.

A checkpoint is all that resuming and replaying need: dropout, batch order and learning rate follow
from the seed and the step, so no generator state is stored.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from capture.errors import ShardError
from capture.format.markers import File, Marker
from capture.models.huggingface import weight_bytes
from capture.models.transformer import ModelConfig
from capture.store import Store

MAX_POSITIONS = 2**28
"""Limit of the numbers in a positional encoding, 1 GiB."""
OPTIMIZER = "optimizer/"
REMEDY = "Run: ontogeny verify"
COPY_AGAIN = "Copy the run's checkpoints again; ontogeny verify lists what is missing"


def key_of(step: int) -> str:
    """Return the key of the weights after ``step`` updates."""
    return f"checkpoints/step-{step:06d}.safetensors"


def snapshot(
    model: nn.Module, remembered: Mapping[str, Tensor] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Copy the weights to the CPU, so that further training does not change them.

    ``remembered``: the optimizer's state from ``optimizer.snapshot``, which is added.
    """
    weights = {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors_of(model).items()
    }
    return weights | {f"{OPTIMIZER}{key}": tensor for key, tensor in remembered.items()}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint stores. Tied weights appear once, under the first
    name."""
    named: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        named.setdefault(id(tensor), name)
    return {name: state[name] for name in named.values()}


def split_checkpoint(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a checkpoint into the weights and the optimizer's state (by ``STATE/PARAMETER``)."""
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
    """Read the weights after ``step`` updates, on the CPU, by parameter name.

    ``marker``: the marker of the segment that ends at this step; the file must be the one that it
    lists. Without a marker, any readable checkpoint is accepted. Raises ``ShardError`` if the file
    is missing, unreadable or a different one.
    """
    where = f"{store.uri}/{key_of(step)}"
    try:
        return decode(read_bytes(store, key_of(step), marker), where)
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", COPY_AGAIN) from error


def decode(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raise ``ShardError`` if it is not readable."""
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ShardError(where, f"is not readable: {error}", REMEDY) from error


def restore(model: nn.Module, weights: dict[str, Tensor], where: str = "checkpoint") -> None:
    """Copy weights into a model, in place. Ignores the optimizer's state among them.

    Raises ``ShardError`` if the weights belong to another model.
    """
    weights, _ = split_checkpoint(weights)
    own = tensors_of(model)
    require_matching(own, weights, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def require_matching(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Raise ``ShardError`` unless the weights have the model's names, shapes and dtypes."""
    wrong = sorted(own.keys() ^ weights.keys())
    if wrong:
        problem = f"{'lacks' if wrong[0] in own else 'has an unknown'} {wrong[0]}"
        raise ShardError(where, problem, REMEDY)
    for name, tensor in own.items():
        found = weights[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            wanted = describe_tensor(tensor)
            problem = f"has {name} as {describe_tensor(found)}, the model as {wanted}"
            raise ShardError(where, problem, REMEDY)


def describe_tensor(tensor: Tensor) -> str:
    size = " × ".join(map(str, tensor.shape)) or "one number"
    return f"{size} of {str(tensor.dtype).removeprefix('torch.')}"


def read_bytes(store: Store, key: str, marker: Marker | None) -> bytes:
    """Read a checkpoint that must be the file that the marker lists, if one is given.

    Sizes are compared first, so that a file that was replaced by a large one is not read.
    """
    if marker is None:
        return store.get(key)
    listed = next((file for file in marker.files_of("checkpoints") if file.key == key), None)
    if listed is None:
        raise ShardError(f"{store.uri}/{key}", "is not the file that its marker names", REMEDY)
    return read_listed(store, listed)


def read_listed(store: Store, file: File) -> bytes:
    """Read a whole file; raise ``ShardError`` if it is not the one that its marker lists."""
    with store.open(file.key) as source:
        data = b""
        if source.seek(0, 2) == file.num_bytes:
            source.seek(0)
            data = source.read(file.num_bytes)
    if File.of(file.key, file.kind, data) != file:
        raise ShardError(f"{store.uri}/{file.key}", "is not the file that its marker names", REMEDY)
    return data


def require_model_fits(store: Store, config: ModelConfig, *, vocabulary: int, window: int) -> None:
    """Raise ``ShardError`` if a run describes a model larger than its first checkpoint.

    Check this before building the model: a configuration from an untrusted run can ask for any
    amount of memory.
    """
    key = f"{store.uri}/{key_of(0)}"
    try:
        with store.open(key_of(0)) as source:
            found = source.seek(0, 2)
    except FileNotFoundError as error:
        raise ShardError(key, "is missing", COPY_AGAIN) from error
    if config.kind == "mlp":
        deeper = (config.layers - 1) * config.hidden**2
        wanted = 4 * ((window + config.classes) * config.hidden + deeper)
    elif config.kind == "hf":
        wanted = weight_bytes(config.hf, vocabulary=vocabulary, window=window, most=found)
    else:
        # A lower bound: biases, LayerNorms and the output bias are left out.
        a_layer = 4 * config.width**2 + 2 * config.width * config.hidden
        wanted = 4 * (2 * vocabulary * config.width + config.layers * a_layer)
    if wanted > found or window * config.width > MAX_POSITIONS:
        problem = f"holds {found:,} bytes, the model of run.yaml needs {wanted:,}"
        raise ShardError(key, problem, REMEDY)
