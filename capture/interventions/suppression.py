"""Suppress parts of a model: their outputs are 0 in the passes of some steps.

A part is a set of inputs of a weight: a head those of the attention's last weight, a neuron an
input of the weight that reads it. A hook on the module that owns the weight sets them to 0. So the
part adds nothing to the forward pass, and its gradient is 0: capture then sees the inputs and
output gradients of the model as it trains, and every record stays exact. Biases of the module stay.

Shapes: N datum, T token, C input of a module.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.interventions.config import KEY, InterventionConfig, split_part
from capture.models.kept_mode import kept_mode
from capture.models.transformer import AnyModel, LanguageModel, SelfAttention
from capture.parts import parted

SUPPRESS = f"{KEY}.suppress"


@dataclass(frozen=True, eq=False)
class Suppression:
    """Which inputs of which modules are 0, and in which steps."""

    mask_C: Mapping[str, Tensor]
    """Module → True at the inputs that are set to 0, on the model's device."""
    steps: range

    @contextmanager
    def within(self, model: nn.Module, step: int) -> Iterator[None]:
        """Suppress the parts of a model in the passes within, if the step is one of ``steps``."""
        with ExitStack() as hooks:
            if step in self.steps:
                for name, mask_C in self.mask_C.items():
                    hook = zeroing(mask_C)
                    hooks.enter_context(
                        model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
                    )
            yield


def zeroing(mask_C: Tensor) -> Callable[..., Any]:
    """Return a hook that sets some entries of a module's input to 0."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [*args, *kwargs.values()]
        inputs[0] = inputs[0].masked_fill(mask_C, 0)
        return tuple(inputs[: len(args)]), dict(zip(kwargs, inputs[len(args) :], strict=True))

    return hook


def find_suppression(
    model: AnyModel, config: InterventionConfig, token_NT: Tensor, num_steps: int
) -> Suppression | None:
    """Return the suppression that a configuration asks for; None if it asks for none.

    ``token_NT``: some datums that the model takes. Raises ``ConfigError`` for a part that the model
    does not have or that cannot be suppressed, and for steps that the run does not have.
    """
    steps = config.steps(num_steps)
    if not config.suppress:
        return None
    weights = weights_of(model)
    heads = heads_of(model, config, weights, token_NT)
    known = [*heads, *weights]
    chosen: dict[str, list[tuple[str, list[range] | None]]] = {}
    for entry in config.suppress:
        name, numbers = split_part(entry)
        found = [one for one in known if one == name] or [
            one for one in known if fnmatchcase(one, name)
        ]
        if not found:
            near = difflib.get_close_matches(name, known, n=1) or known[:3]
            problem = f"got {name!r}, which is no attention and no weight of a layer"
            raise ConfigError(SUPPRESS, problem, f"For example {', '.join(near)}")
        for one in found:
            module = heads[one][0] if one in heads else weights[one]
            chosen.setdefault(module, []).append((one, numbers))
    sizes = input_sizes(model, list(chosen), token_NT[:1])
    masks = {}
    for module, parts in chosen.items():
        mask_C = torch.zeros(sizes[module], dtype=torch.bool, device=token_NT.device)
        for part, numbers in parts:
            groups_GE = mask_C.view(heads[part][1] if part in heads else len(mask_C), -1)
            require_numbers(part, numbers, len(groups_GE), "heads" if part in heads else "inputs")
            for own in [range(len(groups_GE))] if numbers is None else numbers:
                groups_GE[own.start : own.stop] = True
        masks[module] = mask_C
    suppression = Suppression(masks, steps)
    require_dependence(model, suppression, token_NT[:1])
    return suppression


@torch.no_grad()
def require_dependence(model: nn.Module, suppression: Suppression, token_1T: Tensor) -> None:
    """Raise ``ConfigError`` if the predictions no longer depend on the datum.

    A datum is compared with itself in reverse order, in passes without dropout.
    """
    both = (token_1T, token_1T.flip(1))
    with kept_mode(model):
        model.eval()
        whole = [model(one) for one in both]
        with suppression.within(model, suppression.steps.start):
            rest = [model(one) for one in both]
    if torch.equal(*rest) and not torch.equal(*whole):
        names = ", ".join(suppression.mask_C)
        problem = f"without {names}, predictions no longer depend on the datum"
        raise ConfigError(SUPPRESS, problem, "Suppress less, for example some inputs: NAME:0-9")


def require_numbers(part: str, numbers: list[range] | None, count: int, noun: str) -> None:
    last = max((own[-1] for own in numbers or ()), default=0)
    if last >= count:
        problem = f"got {part}:{last}, but it has {noun} 0 to {count - 1}"
        raise ConfigError(SUPPRESS, problem)


def weights_of(model: nn.Module) -> dict[str, str]:
    """Return weight → module, for modules that multiply their input by a weight of their own."""
    return {
        f"{name}.weight": name
        for name, module in model.named_modules()
        if name
        and not isinstance(module, nn.Embedding)
        and isinstance(own := getattr(module, "weight", None), nn.Parameter)
        and own.dim() == 2
    }


def heads_of(
    model: AnyModel, config: InterventionConfig, weights: Mapping[str, str], token_NT: Tensor
) -> dict[str, tuple[str, int]]:
    """Return attention module → the module that reads its heads, and their number.

    Those of a Hugging Face model are looked for only if a part is none of ``weights``.
    """
    if isinstance(model, LanguageModel):
        return {
            name: (f"{name}.out_proj", module.heads)
            for name, module in model.named_modules()
            if isinstance(module, SelfAttention)
        }
    names = [split_part(entry)[0] for entry in config.suppress]
    if all(any(fnmatchcase(weight, name) for weight in weights) for name in names):
        return {}
    try:
        found = parted(model, token_NT).parts.attention
    except ConfigError:
        return {}  # a perceptron
    return {own.name: (own.out.rpartition(".")[0], own.heads) for own in found if own}


@torch.no_grad()
def input_sizes(model: AnyModel, modules: list[str], token_1T: Tensor) -> dict[str, int]:
    """Return the width of each module's input; ``ConfigError`` unless a pass calls it once."""
    widths: dict[str, list[int]] = {name: [] for name in modules}

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            widths[name].append(next(iter([*args, *kwargs.values()])).shape[-1])

        return hook

    with kept_mode(model), ExitStack() as hooks:
        for name in modules:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(look(name), with_kwargs=True))
        model.eval()(token_1T)
    for name, found in widths.items():
        if len(found) != 1:
            problem = f"got {name}, which a forward pass calls {len(found)} times, must be once"
            raise ConfigError(SUPPRESS, problem)
    return {name: found[0] for name, found in widths.items()}
