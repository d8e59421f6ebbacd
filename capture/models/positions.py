"""Sinusoidal encoding of positions.

Source: Vaswani et al. 2017, section 3.5. Shapes: T position, D width.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Positions = Literal["sine_cosine", "all_sine", "learned"]
"""Kinds of positional encoding; see ``ModelConfig.positions``."""


def sinusoids(kind: Positions, *, window: int, width: int) -> Tensor:
    """Return the encoding of each position of a window, [T, D]; ``kind`` is not learned.

    all_sine has sine in the odd columns too.
    """
    t_T1 = torch.arange(window)[:, None]
    frequency_D = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
    out_TD = torch.empty(window, width)
    out_TD[:, 0::2] = torch.sin(t_T1 * frequency_D)
    odd = torch.cos if kind == "sine_cosine" else torch.sin
    out_TD[:, 1::2] = odd(t_T1 * frequency_D)
    return out_TD
