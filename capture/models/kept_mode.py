"""Put a model back into its mode, training or evaluation, after passes in the other one."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_mode(model: nn.Module) -> Iterator[None]:
    """At the end of the block, the model is in the mode that it had before, also after an error."""
    training = model.training
    try:
        yield
    finally:
        model.train(training)
