"""Queries about weights and activations: a parameter, a norm, a direction, a user's function.

Shapes: N datum, T position, C entry of a state.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from analysis.influence.queries.material import QueryMaterial, as_tokens
from analysis.influence.queries.query import Query, Weights
from analysis.influence.queries.scored_text import DATUMS_AT_ONCE
from analysis.influence.queries.specification import Specification, chosen_split
from analysis.run.given_model import failure_of
from analysis.run.names import nearest
from capture.errors import CaptureError, ConfigError, UnitError, at_least

ENDS = ("input", "output")
MOST_DATUMS = 100


@dataclass(frozen=True, kw_only=True)
class ParameterQuery(Specification):
    """One weight."""

    kind: ClassVar[str] = "parameter"
    unit: str
    index: int
    """Flat (row-major) index into the unit."""

    def title(self) -> str:
        return f"parameter {self.unit}:{self.index}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``UnitError`` for a unit or an index that does not exist."""
        size = math.prod(shape_of(material, self.unit))
        if not 0 <= self.index < size:
            problem = f"does not exist: indices are 0 to {size - 1}"
            raise UnitError(f"{self.unit}, index {self.index}", problem)
        return self.query([lambda weights: weights[self.unit].flatten()[self.index]], None)


@dataclass(frozen=True, kw_only=True)
class NormQuery(Specification):
    """Euclidean norm of a neuron's weights: a column, or a row where stored [inputs, outputs]."""

    kind: ClassVar[str] = "norm"
    unit: str
    number: int

    def title(self) -> str:
        return f"norm of neuron {self.unit}:{self.number}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``UnitError`` for a neuron that does not exist."""
        shape = shape_of(material, self.unit)
        if len(shape) != 2:
            raise UnitError(self.unit, "has no neurons: it is no matrix", "Name a weight")
        axis = 0 if self.unit in material.transposed else 1
        if not 0 <= self.number < shape[axis]:
            problem = f"does not exist: the unit's neurons are 0 to {shape[axis] - 1}"
            raise UnitError(f"{self.unit} neuron {self.number}", problem)
        return self.query(
            [lambda weights: weights[self.unit].select(axis, self.number).norm()], None
        )


def shape_of(material: QueryMaterial, unit: str) -> tuple[int, ...]:
    """Return a parameter's shape; raise ``UnitError`` for an unknown one."""
    if unit not in material.shapes:
        raise UnitError(unit, "is no parameter", nearest(unit, list(material.shapes)))
    return material.shapes[unit]


# --- activations ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DirectionQuery(Specification):
    """Mean over a text's positions of ⟨activation, direction⟩ at a module's input or output."""

    kind: ClassVar[str] = "direction"
    module: str
    """Name of a module of the model, such as layers.1.linear2."""
    vector: str
    """A .npy file with one floating-point vector, as long as the activation is wide."""
    at: str = "input"
    """input or output of the module."""
    split: str = ""
    """Default: validation, else test, else train."""
    max_datums: int = MOST_DATUMS
    """Datums of the split, from the first."""

    def __post_init__(self) -> None:
        if self.at not in ENDS:
            raise ConfigError("direction.at", f"got {self.at!r}, wanted {' or '.join(ENDS)}")
        at_least("direction.max_datums", self.max_datums, 1)

    def title(self) -> str:
        return f"{self.at} of {self.module} along {Path(self.vector).stem}"

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``UnitError`` for an unknown module, ``ConfigError`` for an unfit vector."""
        known = [name for name, _ in material.model.named_modules() if name]
        if self.module not in known:
            raise UnitError(self.module, "is no module", nearest(self.module, known))
        vector_C = torch.from_numpy(read_vector(self.vector))
        text = material.text(chosen_split(material, self.split))
        token_NT = as_tokens(text.token_NT[: self.max_datums])
        share_C = vector_C / len(token_NT)
        parts = [
            partial(self.projected, material, share_C, piece)
            for piece in token_NT.split(DATUMS_AT_ONCE)
        ]
        return self.query(parts, None)

    def projected(
        self, material: QueryMaterial, vector_C: Tensor, token_NT: Tensor, weights: Weights
    ) -> Tensor:
        """Return Σ over datums of the mean of ⟨activation, vector⟩ over the datum's positions.

        A perceptron reads a datum at one position, whatever the number of its tokens.
        """
        with captured_state(material.model.get_submodule(self.module), self.at) as seen:
            material.logits(weights, token_NT)
        (state_NTC,) = seen
        if state_NTC.shape[-1] != len(vector_C):
            problem = f"has {len(vector_C)} entries, but the {self.at} of {self.module} has "
            raise ConfigError(self.vector, problem + f"{state_NTC.shape[-1]}")
        along_N = (state_NTC @ vector_C.to(state_NTC)).reshape(len(token_NT), -1).mean(1)
        return along_N.sum()


@contextmanager
def captured_state(module: nn.Module, at: str) -> Iterator[list[Tensor]]:
    """Collect the first tensor that enters, or leaves, a module in the forward passes within."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, given: Any, made: Any = None) -> None:
        state = given if at == "input" else made
        state = state[0] if isinstance(state, tuple) and state else state
        if not isinstance(state, Tensor):
            problem = f"has no tensor for {at}, but {type(state).__name__}"
            raise UnitError(type(module).__name__, problem, "Name another module")
        seen.append(state)

    if at == "input":
        hook = module.register_forward_pre_hook(keep)
    else:
        hook = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def read_vector(path: str) -> np.ndarray:
    """Read one vector from a .npy file, float64; raise ``ConfigError`` for anything else."""
    try:
        with open(path, "rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise ConfigError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(path, "is no .npy file of numbers", "Save it with numpy.save") from error
    if found.ndim != 1 or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        wanted = "one vector of finite numbers"
        raise ConfigError(path, f"holds {found.dtype} of shape {found.shape}, wanted {wanted}")
    if not found.any():
        raise ConfigError(path, "holds the zero vector, which is no direction")
    return found.astype(np.float64)


# --- a user's function ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FunctionQuery(Specification):
    """A user's function of (model, weights) that returns a scalar tensor.

    It evaluates the model with ``torch.func.functional_call(model, weights, (token_NT,))``.
    """

    kind: ClassVar[str] = "function"
    function: str
    """MODULE:NAME, importable from the current folder."""

    def title(self) -> str:
        return self.function

    def build(self, material: QueryMaterial) -> Query:
        """Raises ``ConfigError`` if there is no such function."""
        return self.query([partial(self.call, load_function(self.function), material)], None)

    def call(
        self, function: Callable[..., Any], material: QueryMaterial, weights: Weights
    ) -> Tensor:
        device = next(iter(weights.values())).device
        model = material.model.to(device)
        # Stored weights come in another order than a model's own.
        names = dict.fromkeys([*(name for name, _ in model.named_parameters()), *weights])
        own = {name: weights[name] for name in names if name in weights}
        try:
            found = function(model, own)
        except CaptureError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(self.function, failure_of(function, error), "Correct it") from error
        if not isinstance(found, Tensor) or found.numel() != 1:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(self.function, f"returned {shown}, wanted a tensor with one entry")
        return found.reshape(())


def load_function(name: str) -> Callable[..., Any]:
    """Import MODULE:NAME, from the current folder too; raise ``ConfigError`` if there is none."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError("function", f"got {name!r}, wanted MODULE:NAME", "As in mine:fact")
    here, before = str(Path.cwd()), list(sys.path)
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(name, f"cannot be loaded ({said})", f"Looked from {here}") from error
    finally:
        sys.path[:] = before
    if not callable(found):
        raise ConfigError(name, f"is no function but {type(found).__name__}")
    return found
