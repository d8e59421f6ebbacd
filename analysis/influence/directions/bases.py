"""Directions of a weight's inputs or outputs: neurons, principal components, a dictionary, a file.

Activations for the last two kinds are those of the last model on training text, without dropout.

Shapes: N datum, T position, M activation, C width (inputs, or outputs), K direction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from analysis.influence.queries.material import QueryMaterial, as_tokens
from analysis.influence.queries.states import captured_state
from analysis.run.run import Run
from capture.errors import ConfigError

Side = Literal["inputs", "outputs"]
SIDES: tuple[Side, ...] = get_args(Side)
NEURONS, PCA, DICTIONARY = "neurons", "pca", "dictionary"
NAMES = (NEURONS, PCA, DICTIONARY)
DATUMS_AT_ONCE = 32
MOST_ACTIVATIONS = 8192
"""Activations that a basis is computed from, of the first training datums."""


def read_directions(
    where: str, name: str, width: int, names: Sequence[str] = NAMES
) -> np.ndarray | None:
    """Return the directions of a .npy file, [K, C]; None for the name of a basis.

    ``names``: the bases that an error lists.

    Raises ``ConfigError``, which names the setting ``where``, for a file that does not hold finite
    directions of this width, or holds one of length 0.
    """
    if name in NAMES:
        return None
    try:
        with Path(name).expanduser().open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        remedy = f"Wanted {', '.join(names)} or a .npy file"
        raise ConfigError(where, f"got {name!r}, which cannot be read", remedy) from error
    found = np.atleast_2d(found)
    if found.ndim != 2 or found.shape[1] != width or found.dtype.kind not in "fiu":
        size = " × ".join(map(str, found.shape))
        problem = f"{name} holds {found.dtype} of {size}, wanted numbers, K × {width}"
        raise ConfigError(where, problem)
    if not np.isfinite(found).all():
        raise ConfigError(where, f"{name} holds numbers that are not finite")
    if not found.any(1).all():
        raise ConfigError(where, f"{name} holds a direction of length 0")
    return found.astype(np.float64)


def directions(run: Run, unit: str, side: Side, name: str, width: int, seed: int) -> np.ndarray:
    """Return the directions of a named basis, [K, C], each of length 1.

    Raises ``ConfigError`` for a unit whose module has no activations of its own.
    """
    if name == NEURONS:
        return np.eye(width)
    state_MC = activations(run, unit, side)
    if name == PCA:
        return principal_components(np.cov(state_MC, rowvar=False))
    from analysis.neurons.dictionary import sparse_dictionary  # loads scikit-learn

    return sparse_dictionary(state_MC, width, seed)


def principal_components(covariance_CC: np.ndarray) -> np.ndarray:
    """Return the eigenvectors, largest variance first, [K, C]."""
    return np.linalg.eigh(np.atleast_2d(covariance_CC))[1][:, ::-1].T.copy()


def module_of(run: Run, unit: str) -> str:
    """Return the name of the linear module whose weight a unit is; raise ``ConfigError`` if there
    is none that is called by itself."""
    module, _, last = unit.rpartition(".")
    if last != "weight" or not module:
        problem = "is no weight of a linear module, so it has no inputs and outputs of its own"
        raise ConfigError(unit, problem, "Name a weight such as layers.0.linear1.weight")
    return module


def activations(run: Run, unit: str, side: Side) -> np.ndarray:
    """Return activations at the inputs or outputs of a unit, float64 [M, C]."""
    material, found, count = QueryMaterial(run), [], 0
    weights = {name: own.detach() for name, own in material.model.named_parameters()}
    module = material.model.get_submodule(module_of(run, unit))
    for token_NT in as_tokens(run.token_NT).split(DATUMS_AT_ONCE):
        with torch.no_grad(), captured_state(module, side.removesuffix("s")) as seen:
            material.logits(weights, token_NT)
        if not seen:
            problem = "is used by another module, so it has no inputs and outputs of its own"
            raise ConfigError(unit, problem, "Name a weight of an MLP")
        found.append(seen[0].flatten(0, -2).double().cpu().numpy())
        count += len(found[-1])
        if count >= MOST_ACTIVATIONS:
            break
    return np.concatenate(found)[:MOST_ACTIVATIONS]
