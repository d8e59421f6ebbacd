"""Operations of the recorder that no tape has to look at."""

from contextlib import AbstractContextManager

import torch


def without_torch_functions() -> AbstractContextManager[object]:
    """Within the block, torch calls no ``__torch_function__``, so that no tape sees an operation.

    The recorder's own operations around the optimizer's step are more than a thousand. A tape that
    looks at each of them costs as much time as a tenth of a small model's step.
    """
    return torch._C.DisableTorchFunction()
