"""One training step in plain torch: forward, one backward pass, clip, SGD; factors on the side."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.dropout import Masks, draw_masks
from capture.errors import ConfigError
from capture.factors import Factors
from capture.model import LanguageModel, masked_per_datum
from capture.tape import Tape
from capture.update import clip_factor


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model learns; the defaults are the study's."""

    epochs: int = 5
    """Passes over the training datums."""
    batch: int = 20
    """Datums per step."""
    learning_rate: float = 5.0
    """SGD's learning rate in the first epoch."""
    decay: float = 0.95
    """The learning rate is multiplied by this after every epoch."""
    clip: float = 0.5
    """The gradient's norm over the whole model is clipped at this."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA device if there is one."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if (found := getattr(self, name)) < 1:
                raise ConfigError(f"training.{name}", f"got {found}, must be at least 1")
        for name in ("learning_rate", "decay", "clip"):
            if not (found := getattr(self, name)) > 0:
                raise ConfigError(f"training.{name}", f"got {found}, must be above 0")
        if self.batch > 2**15:
            raise ConfigError("training.batch", f"got {self.batch}, must be at most {2**15}")


@dataclass(frozen=True)
class LastToken:
    """What the loss at each window's last position alone contributes to a step."""

    factors: Factors
    gradients: dict[str, Tensor]
    """By unit, from autograd: what the factors must add up to."""


@dataclass(frozen=True)
class Step:
    """What one optimizer update was."""

    loss: float
    """Mean cross-entropy of the batch, nats per token."""
    gradient_norm: float
    clip: float
    learning_rate: float
    factors: Factors
    """Of the training loss."""
    last: "LastToken | None"
    """The last token's part of it, where that is what is recorded."""

    @property
    def scale(self) -> float:
        """What a gradient is multiplied by to become a shift."""
        return -self.learning_rate * self.clip


class Engine:
    """A model and its optimizer, advanced one step at a time."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainingConfig,
        *,
        units: dict[str, nn.Parameter],
        last_only: bool,
        seed: int,
    ) -> None:
        self.model = model
        self.config = config
        self.units = units
        self.last_only = last_only
        self.seed = seed
        self.device = model.decoder.weight.device
        self.optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)

    def step(self, token_NT: Tensor, target_NT: Tensor, *, step: int, epoch: int) -> Step:
        """Apply one update. The batch's slots are its rows."""
        learning_rate = self.config.learning_rate * self.config.decay**epoch
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss, factors, last = self.gradients(token_NT, target_NT, step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        self.optimizer.step()
        clip = clip_factor(norm, self.config.clip)
        return Step(loss, norm, clip, learning_rate, factors, last)

    def gradients(
        self, token_NT: Tensor, target_NT: Tensor, step: int
    ) -> tuple[float, Factors, LastToken | None]:
        """Forward and backward: gradients into the parameters, factors on the tape."""
        self.model.train()
        masks = self.masks(range(len(token_NT)), step, token_NT.shape[1])
        tape = Tape(self.units, len(token_NT))
        with tape if self.units else nullcontext():
            logit_NTV = self.model(token_NT, masks)
        loss = F.cross_entropy(logit_NTV.flatten(0, 1), target_NT.flatten())
        loss.backward(retain_graph=self.last_only)
        factors = tape.factors()
        if not self.last_only:
            return loss.item(), factors, None
        tape.forget_deltas()
        last = F.cross_entropy(logit_NTV[:, -1], target_NT[:, -1], reduction="sum")
        grads = torch.autograd.grad(last / target_NT.numel(), list(self.units.values()))
        gradients = dict(zip(self.units, grads, strict=True))
        return loss.item(), factors, LastToken(tape.factors(), gradients)

    def masks(self, slots: Sequence[int], step: int, window: int) -> Masks:
        return draw_masks(
            slots,
            entries=masked_per_datum(self.model.config, window),
            dropout=self.model.config.dropout,
            seed=self.seed,
            step=step,
            device=self.device,
        )


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device asked for; raises ``ConfigError`` where there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("training.device", "got cuda, but torch finds no CUDA device here")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


@contextmanager
def deterministic() -> Iterator[None]:
    """Within: torch's operations give the same bits for the same input, or refuse to run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = sys.modules["torch.utils.deterministic"]
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a costly aid for finding reads of such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
