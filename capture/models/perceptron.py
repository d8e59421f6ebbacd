"""A multilayer perceptron that classifies images.

A token is the grey level of a pixel. The model scales levels to 0 … 1 and gives one row of logits
for the whole image, in the place of its last pixel.

Shapes: N datum, T pixel, I input width, C class.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capture.models.dropout import Masks


class Dense(nn.Module):
    """A linear layer, named so that its inputs are known as neurons of an MLP."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(inputs, outputs)

    def forward(self, x_NI: Tensor) -> Tensor:
        return self.mlp(x_NI)


class Perceptron(nn.Module):
    """Linear layers with ReLU between them.

    The inputs of ``layers.0.mlp.weight`` are the pixels, those of ``layers.1.mlp.weight`` the
    neurons of the first hidden layer, and so on.
    """

    def __init__(self, *, pixels: int, hidden: int, layers: int, classes: int, levels: int) -> None:
        """``layers``: number of hidden layers. ``levels``: number of grey levels of a pixel."""
        super().__init__()
        self.pixels = pixels
        self.levels = levels
        widths = [pixels, *[hidden] * layers, classes]
        self.layers = nn.ModuleList(Dense(*pair) for pair in pairwise(widths))

    def forward(self, token_NT: Tensor, masks: Masks | None = None) -> Tensor:
        """Return logits, [N, 1, C]; there is no dropout, so ``masks`` must drop nothing.

        Missing pixels at the end count as 0: capture first looks at how a model uses a window that
        is one token shorter.
        """
        assert masks is None or masks.pool_NK is None
        weight = next(self.parameters())
        x_NI = token_NT.to(weight.dtype) / max(1, self.levels - 1)
        x_NI = F.pad(x_NI, (0, self.pixels - token_NT.shape[1]))
        for number, layer in enumerate(self.layers):
            x_NI = layer(F.relu(x_NI) if number else x_NI)
        return x_NI[:, None]


def fresh_perceptron(
    *, pixels: int, hidden: int, layers: int, classes: int, levels: int, seed: int
) -> Perceptron:
    """Return a perceptron with initial weights of this seed, drawn as torch draws ``nn.Linear``.

    Torch's global generator is unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = Perceptron(
            pixels=pixels, hidden=hidden, layers=layers, classes=classes, levels=levels
        )
    for layer in model.layers:
        assert isinstance(layer, Dense)
        bound = 1 / math.sqrt(layer.mlp.in_features)
        nn.init.uniform_(layer.mlp.weight, -bound, bound, generator)
        nn.init.uniform_(layer.mlp.bias, -bound, bound, generator)
    return model
