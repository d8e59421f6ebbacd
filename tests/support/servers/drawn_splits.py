"""A model that mixes the datums of a batch from a later step on, for tests of the law "split"."""

from collections.abc import Callable
from pathlib import Path

from spawned import shared_config
from torch import Tensor, nn

from capture.engine import build as assembly
from capture.engine.split import is_drawn
from capture.errors import SplitError
from capture.format.chain import read_segments
from capture.models.transformer import LanguageModel, Layer, build_model
from capture.process_group import Group
from capture.store import Store
from capture.training.loop import capture_run

RIGHT_CALLS = 10
"""Calls with a batch after which datums are mixed: between the first step and step 16."""
CHECKED = 19
"""The only step after the first one, of 28, whose split is checked."""
SEED = next(
    seed for seed in range(10**5) if [n for n in range(1, 28) if is_drawn(seed, n)] == [CHECKED]
)


class Mixing(nn.Module):
    """A norm after which, from a later call on, datums lack the mean of their batch."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.calls = 0

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = self.norm(x_NTD)
        self.calls += self.training and len(x_NTD) > 1
        return x_NTD - x_NTD.mean(0) if self.calls > RIGHT_CALLS else x_NTD


def with_mixing_norm() -> Callable[..., LanguageModel]:
    """Return ``build_model`` for a model whose first layer ends with ``Mixing``."""

    def build(*given, **named) -> LanguageModel:
        model = build_model(*given, **named)
        assert isinstance(model, LanguageModel)
        first = model.layers[0]
        assert isinstance(first, Layer)
        first.norm2 = Mixing(first.norm2)
        return model

    return build


def stored_ends(uri: str) -> list[int]:
    """Return the step after each committed segment of a run that may be incomplete."""
    return [each.end_step for each in read_segments(Store(uri))]


def at_workers(group: Group, folder: Path) -> str:
    """Capture a run whose split goes wrong; return the error of this worker."""
    return capture_wrong(group, folder, "run")


def by_deepspeed(group: Group, folder: Path) -> list[str]:
    """Capture such runs at two stages; return the errors of this worker."""
    return [
        capture_wrong(
            group, folder, f"stage-{stage}", "engine=deepspeed", f"deepspeed.stage={stage}"
        )
        for stage in (2, 3)
    ]


def capture_wrong(group: Group, folder: Path, name: str, *settings: str) -> str:
    assembly.build_model = with_mixing_norm()
    config = shared_config(group, folder, f"run.seed={SEED}", *settings, name=name)
    try:
        capture_run(config, lambda event: None, group=group, owner=f"{name}.1")
    except SplitError as error:
        return str(error)
    return ""
