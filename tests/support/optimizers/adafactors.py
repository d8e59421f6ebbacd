"""Adafactor of transformers, where it is installed."""

import pytest
import torch
from torch import nn


def transformers_adafactor(model: nn.Module) -> torch.optim.Optimizer:
    """Return it with momentum of updates; skip the test without transformers."""
    optimization = pytest.importorskip("transformers.optimization")
    return optimization.Adafactor(model.parameters(), beta1=0.9)
