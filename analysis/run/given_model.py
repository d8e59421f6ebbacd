"""What the user says about a run's model: the module of a custom loop, and where its parts are."""

import copy
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capture.errors import CaptureError, ConfigError, RunError
from capture.format import checkpoint
from capture.models.perceptron import Perceptron
from capture.models.transformer import LanguageModel
from capture.parts import KnownModel, ModelParts, parted

Given = nn.Module | ModelParts | tuple[nn.Module, ModelParts] | Callable[[], Any]
"""A module, its parts, both, or a function that returns one of these."""
NUM_DATUMS = 3
"""Datums on which a model's parts are found."""


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A module whose weights are replaced by those of checkpoints, and what is said of its parts.

    Either may be missing: the run knows the module unless it was recorded in a custom loop, and
    parts are found by structure.
    """

    module: nn.Module | None = None
    parts: ModelParts | None = None

    @classmethod
    def of(cls, given: Given | None) -> "GivenModel":
        """Return what was given; raises ``ConfigError`` for anything else."""
        if given is None:
            return cls()
        what, remedy = "got", "Or give a function without arguments that returns it"
        if callable(given) and not isinstance(given, nn.Module):
            given, what = returned(given), f"{name_of(given)} returned"
            remedy = "Correct the function"
        pair = given if isinstance(given, tuple) else (given,)
        modules = [own for own in pair if isinstance(own, nn.Module)]
        parts = [own for own in pair if isinstance(own, ModelParts)]
        if len(modules) > 1 or len(parts) > 1 or len(modules) + len(parts) != len(pair):
            shown = "None" if given is None else type(given).__name__
            problem = f"{what} {shown}, must be a module, its ModelParts, or both"
            raise ConfigError("model", problem, remedy)
        return cls(modules[0] if modules else None, parts[0] if parts else None)

    def copy(self) -> nn.Module:
        """Return a copy of the module, without the wrapper of ``torch.compile``."""
        assert self.module is not None
        return copy.deepcopy(getattr(self.module, "_orig_mod", self.module))


def returned(function: Callable[[], Any]) -> Any:
    """Call the user's function; whatever it raises becomes a ``ConfigError``."""
    try:
        return function()
    except CaptureError:
        raise
    except Exception as error:  # the user's code may raise anything
        problem = f"{name_of(function)} {failure_of(function, error)}"
        raise ConfigError("model", problem, "Correct it") from error


def name_of(function: Callable[..., Any]) -> str:
    """Return MODULE:FUNCTION, or the type of a callable without a name."""
    own = getattr(function, "__qualname__", "")
    return f"{function.__module__}:{own}" if own else type(function).__name__


def failure_of(function: Callable[..., Any], error: Exception) -> str:
    """Return what a user's function raised, with the last line of its own file that was run."""
    file = None
    with suppress(TypeError):  # of a function that is not written in Python
        file = inspect.getsourcefile(inspect.unwrap(function))
    lines = [
        own.lineno for own in traceback.extract_tb(error.__traceback__) if own.filename == file
    ]
    place = f" at {file}, line {lines[-1]}" if lines else ""
    said = " ".join(str(error).split())
    return f"raised {type(error).__name__}{f' ({said})' if said else ''}{place}"


def require_recorded(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ``ConfigError`` unless the module that the user gave has the weights of the run."""
    own, kind = checkpoint.tensors_of(module), type(module).__name__
    recorded, _ = checkpoint.split_checkpoint(weights)
    more, fewer = sorted(own.keys() - recorded.keys()), sorted(recorded.keys() - own.keys())
    other = [
        name
        for name in sorted(own.keys() & recorded.keys())
        if (own[name].shape, own[name].dtype) != (recorded[name].shape, recorded[name].dtype)
    ]
    if more or fewer:
        problem = f"it has {more[0]}" if more else f"it lacks {fewer[0]}"
        problem += f", the run has {fewer[0]}" if more and fewer else ""
    elif other:
        sizes = [checkpoint.describe_tensor(found[other[0]]) for found in (own, recorded)]
        problem = f"it has {other[0]} as {sizes[0]}, the run as {sizes[1]}"
    else:
        return
    remedy = "Give the model that was recorded, with the same settings"
    raise ConfigError("model", f"got a {kind} that is not the model of the run: {problem}", remedy)


def known_model(
    network: nn.Module, token_NT: np.ndarray, given: GivenModel, uri: str
) -> KnownModel:
    """Return a model with its parts, found on the first datums; the study's transformer as it is.

    Raises ``RunError`` for a perceptron, and ``ConfigError`` if parts are not found, or if the
    model does not take the tokens.
    """
    if isinstance(network, LanguageModel):
        return network
    if isinstance(network, Perceptron):
        problem = "has a perceptron, which has no layers of neurons and heads"
        remedy = "These work with any model: attribute, behaviour, influence, report"
        raise RunError(uri, problem, remedy)
    token = torch.from_numpy(token_NT[:NUM_DATUMS]).long()
    try:
        return parted(network, token, given.parts)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        problem = f"fails on token ids of shape {list(token.shape)}: {str(error).splitlines()[0]}"
        remedy = "Say how to call it: ModelParts(logits=lambda model, tokens: …)"
        raise ConfigError(type(network).__name__, problem, remedy) from error


def load_function(text: str) -> Callable[[], Any]:
    """Return the function that ``MODULE:FUNCTION`` names, also of a file in the working directory.

    This runs the module's code. Raises ``ConfigError`` if it has no such function, if the function
    wants arguments, or if the module cannot be imported.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name.isidentifier():
        problem = f"got {text!r}, must be MODULE:FUNCTION"
        raise ConfigError("--model", problem, "For example mine:make_model, for mine.py here")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that no file here hides a library
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError("--model", f"cannot import {module_name}: {said}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError("--model", f"{module_name} has no function {name}")
    wanted = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty]
    if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in wanted):
        problem = f"{text} wants arguments"
        raise ConfigError("--model", problem, "Name a function without arguments")
    return found
